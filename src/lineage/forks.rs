//! Making volumes whose history begins at a moment of another.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::lineage::{Moment, PinHolder};
use crate::format::manifest::{Hydration, Manifest};
use crate::limits::NAME_BYTES_MAX;
use crate::lineage::leftovers::GRACE;
use crate::lineage::pins;
use crate::ownership::{self, Loaded};
use crate::store::{ByteRange, ObjectKey, Store, StoreErrorKind};
use crate::units::{UnixMillis, VolumeId};

/// Forks are made this soon after they were pinned, or not at all: long before their pins are taken for leftovers.
const PATIENCE: Duration = Duration::from_secs(20 * 60);
const _: () = assert!(PATIENCE.as_secs() * 2 < GRACE.as_secs());

/// Manifests written at the same time.
const WRITES_AT_ONCE: usize = 16;

/// The name of a fork that was given none: not its parent's, by which clients of the parent may go on to call it.
fn name_of_fork(parent: &str) -> String {
    const SUFFIX: &str = "-fork";
    let stem = parent.strip_suffix(SUFFIX).unwrap_or(parent);
    format!("{}{SUFFIX}", &stem[..stem.floor_char_boundary(NAME_BYTES_MAX - SUFFIX.len())])
}

/// Forks that are to be made.
#[derive(Clone, Debug)]
pub struct ForksToMake {
    /// Their ids.
    pub ids: Vec<VolumeId>,
    /// The region they are to be in, if another than their parent's.
    pub region: Option<String>,
    /// When they were asked for.
    pub created_at: UnixMillis,
}

impl ForksToMake {
    /// So many forks, in the region of this name, or in that of `store` if none is said. One request for another region.
    ///
    /// # Errors
    /// As [`region_to_make_in`].
    pub async fn new(store: &dyn Store, count: u32, region: Option<&str>) -> Result<Self> {
        let region = region_to_make_in(store, region).await?;
        let ids = (0..count).map(|_| VolumeId(clock::random_u64())).collect();
        Ok(ForksToMake { ids, region, created_at: clock::now() })
    }

    /// Notes in the parent's manifest that they need `moment`.
    pub fn pin(&self, parent: &mut Manifest, moment: &Moment) {
        for &volume in &self.ids {
            let holder = PinHolder::Fork { volume, created_at: self.created_at, region: self.region.clone() };
            pins::pin(parent, moment, holder);
        }
    }
}

/// The region of this name, if it is another than that of `store`, and something can be made there.
///
/// # Errors
/// `Invalid` for a region that is not known, or has no store yet; what its store says.
pub async fn region_to_make_in(store: &dyn Store, region: Option<&str>) -> Result<Option<String>> {
    let Some(region) = region.filter(|region| store.region() != Some(region)) else { return Ok(None) };
    let Some(there) = store.store_in(region) else {
        return Err(Error::invalid(format!(
            "nothing can be made in the region '{region}': the settings file does not name it, or its store cannot be opened. Put \
             [regions.{region}] with its store there, for varve and for the daemon"
        )));
    };
    if store.region().is_none() {
        return Err(Error::invalid(format!(
            "{} has no region by which '{region}' could call it: put region = \"NAME\" into the settings file",
            store.address()
        )));
    }
    match there.get(&ObjectKey::store_root(), ByteRange::Full).await {
        Ok(_) => Ok(Some(region.to_owned())),
        Err(error) if error.kind == StoreErrorKind::NotFound => Err(Error::invalid(format!(
            "{}, in the region '{region}', is not a store of varve yet: 'varve --store {} volumes create' makes it one",
            there.address(),
            there.address()
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Writes the manifests of forks that are pinned already: one request each.
///
/// # Errors
/// `Conflict` if that took so long since they were pinned (a host that slept, say) that they were put away as left over; what the store
/// says. Those of the forks that were made nevertheless are named.
pub async fn create_forks(
    store: &dyn Store,
    parent: &Manifest,
    moment: &Moment,
    forks: &ForksToMake,
    name: Option<&str>,
) -> Result<Vec<Manifest>> {
    let manifests = forks.ids.iter().map(|&id| {
        let name = name.map_or_else(|| name_of_fork(&parent.name), str::to_owned);
        let mut fork = pins::fork_of(parent, moment, id, name, clock::random_token(), forks.created_at);
        settle(store, &mut fork, forks.region.as_deref());
        fork
    });
    let mut manifests: Vec<Manifest> = manifests.collect();
    for fork in &mut manifests {
        if let Err(error) = ownership::encrypt_fork(store, parent, fork).await {
            unpin(store, parent, forks).await;
            return Err(error);
        }
    }
    if clock::now().0.saturating_sub(forks.created_at.0) > PATIENCE.as_millis() as u64 {
        let message = format!("making forks of {} took so long that it was given up: try again", parent.volume);
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    let creations = manifests.into_iter().map(|manifest| ownership::create(store, manifest));
    let created: Vec<Result<Loaded>> = stream::iter(creations).buffered(WRITES_AT_ONCE).collect().await;
    let mut made = Vec::with_capacity(created.len());
    let mut failed = None;
    for result in created {
        match result {
            Ok(loaded) => made.push(loaded.manifest),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match failed {
        None => Ok(made),
        Some(error) if made.is_empty() => Err(error),
        // Those that were made are whole volumes: whoever asked must know them, to use or to destroy them.
        Some(error) => {
            let ids: Vec<String> = made.iter().map(|manifest| manifest.volume.to_string()).collect();
            Err(Error::new(error.kind(), format!("{error}; made before that: {}", ids.join(", "))))
        }
    }
}

/// Takes back what was noted in the parent's manifest of forks of which none was made.
async fn unpin(store: &dyn Store, parent: &Manifest, forks: &ForksToMake) {
    let released = ownership::change(store, parent.volume, |manifest| {
        for fork in &forks.ids {
            pins::release_fork(manifest, *fork);
        }
        Ok(())
    });
    // It is put right as what a crash leaves behind then.
    if let Err(error) = released.await {
        tracing::warn!(volume = %parent.volume, %error, "forks that were not made are still noted in their origin");
    }
}

/// Makes a fork's manifest one for another region, if it is to be in one.
pub(super) fn settle(store: &dyn Store, fork: &mut Manifest, region: Option<&str>) {
    if let (Some(region), Some(home)) = (region, store.region()) {
        store.place(fork.volume, region);
        send_to(fork, region, home);
    }
}

/// Makes a fork's manifest one for another region than its parent's, whose region is `home`: what it has of its origins is copied by and by.
fn send_to(fork: &mut Manifest, region: &str, home: &str) {
    region.clone_into(&mut fork.region);
    fork.hydration = Some(Hydration { since: fork.created_at });
    for origin in &mut fork.origins {
        let from = origin.region.take().unwrap_or_else(|| home.to_owned());
        origin.region = Some(from).filter(|from| from != region);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_does_not_take_its_parents_name() {
        assert_eq!(name_of_fork("weights"), "weights-fork");
        assert_eq!(name_of_fork("weights-fork"), "weights-fork");
        let long = "\u{e9}".repeat(NAME_BYTES_MAX / 2);
        let name = name_of_fork(&long);
        assert!(name.len() <= NAME_BYTES_MAX && name.ends_with("-fork"), "{name}");
    }
}

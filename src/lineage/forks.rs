//! Making volumes whose history begins at a moment of another.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::lineage::{Moment, PinHolder};
use crate::format::manifest::Manifest;
use crate::limits::NAME_BYTES_MAX;
use crate::lineage::leftovers::GRACE;
use crate::lineage::pins;
use crate::ownership::{self, Loaded};
use crate::store::Store;
use crate::units::{UnixMillis, VolumeId};

/// Forks are made this soon after they were pinned, or not at all: long before their pins are taken for leftovers.
const PATIENCE: Duration = Duration::from_secs(20 * 60);
const _: () = assert!(PATIENCE.as_secs() * 2 < GRACE.as_secs());

/// Manifests written at the same time.
const WRITES_AT_ONCE: usize = 16;

/// Ids for new volumes.
pub fn new_volumes(count: u32) -> Vec<VolumeId> {
    (0..count).map(|_| VolumeId(clock::random_u64())).collect()
}

/// The name of a fork that was given none: not its parent's, by which clients of the parent may go on to call it.
fn name_of_fork(parent: &str) -> String {
    const SUFFIX: &str = "-fork";
    let stem = parent.strip_suffix(SUFFIX).unwrap_or(parent);
    format!("{}{SUFFIX}", &stem[..stem.floor_char_boundary(NAME_BYTES_MAX - SUFFIX.len())])
}

/// Notes in the parent's manifest that the forks `ids` need `moment`.
pub fn pin_forks(parent: &mut Manifest, moment: &Moment, ids: &[VolumeId], created_at: UnixMillis) {
    for &volume in ids {
        pins::pin(parent, moment, PinHolder::Fork { volume, created_at });
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
    ids: &[VolumeId],
    name: Option<&str>,
    created_at: UnixMillis,
) -> Result<Vec<Manifest>> {
    let manifests: Vec<Manifest> = ids
        .iter()
        .map(|&id| {
            let name = name.map_or_else(|| name_of_fork(&parent.name), str::to_owned);
            pins::fork_of(parent, moment, id, name, clock::random_token(), created_at)
        })
        .collect();
    if clock::now().0.saturating_sub(created_at.0) > PATIENCE.as_millis() as u64 {
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

//! Purging: removing for good what was destroyed more than a day ago, and what crashes left behind.
//!
//! Guarantees: nothing is removed of a volume that is pinned, owned, or can still be brought back. When each request to the store is
//! made, and why this is enough, is argued in `design/purging.md`.
//!
//! Order: the manifest is marked by compare-and-swap (from now on the volume cannot be brought back, pinned or owned); its objects are
//! deleted; its pins on the volumes it was forked from are released; the manifest is deleted last.
//!
//! After a crash: a volume whose manifest is marked, which the next sweep goes on with.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::watch;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::lineage::PinHolder;
use crate::format::manifest::Manifest;
use crate::lineage;
use crate::ownership::{self, Loaded};
use crate::service::Swept;
use crate::store::{Listed, ObjectKey, Store};
use crate::units::{UnixMillis, VolumeId};

/// How long a destroyed volume can be brought back.
pub const UNDELETE_MILLIS: u64 = 24 * 60 * 60 * 1000;
/// The time of destruction of a volume whose purge has begun: longer ago than anybody could bring it back from.
pub const MARK: UnixMillis = UnixMillis(0);
/// Objects deleted at the same time.
const DELETES_AT_ONCE: usize = 16;
/// How long a sweep that failed is left alone; and how often the clock is looked at while a volume waits for its day to pass.
const PATIENCE: Duration = Duration::from_hours(1);

/// When a volume will be due that nothing but time keeps; `None` if it is not destroyed, or pinned by what stays.
pub fn due(manifest: &Manifest) -> Option<UnixMillis> {
    let at = manifest.destroyed_at?;
    if manifest.owner.is_some() {
        return None;
    }
    let from = if at == MARK { 0 } else { at.0.saturating_add(UNDELETE_MILLIS) };
    // Snapshots that go by themselves only put it off.
    let mut holders = manifest.pins.iter().flat_map(|pin| &pin.holders);
    let due = holders.try_fold(from, |due, holder| match holder {
        PinHolder::Snapshot(record) => record.expires_at.map(|at| due.max(at.0)),
        PinHolder::Fork { .. } => None,
    });
    due.map(UnixMillis)
}

/// Removes for good all that may be removed at the time `now`.
///
/// # Errors
/// What the store says to the listing; what fails for one volume is in the answer.
pub async fn sweep(store: &dyn Store, now: UnixMillis) -> Result<Swept> {
    let mut swept = Swept::default();
    loop {
        let mut unpinned = false;
        for (id, loaded) in ownership::list(store).await? {
            match loaded {
                Ok(loaded) => unpinned |= sweep_volume(store, loaded, now, &mut swept).await,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => swept.failures.push(format!("volume {id}: {error}")),
            }
        }
        // What was pinned by a purged fork only may be due itself; it was passed over, or not yet.
        if !unpinned {
            break;
        }
        swept.failures.clear();
    }
    for id in ownership::leftovers(store).await? {
        match remove_leftovers(store, id, now).await {
            Ok(0) => {}
            Ok(objects) => {
                swept.leftovers.push(id);
                swept.objects += objects;
            }
            Err(error) => swept.failures.push(format!("leftovers of volume {id}: {error}")),
        }
    }
    Ok(swept)
}

/// Purges a volume if it is due. True if a volume that it was forked from may have become free.
async fn sweep_volume(store: &dyn Store, loaded: Loaded, now: UnixMillis, swept: &mut Swept) -> bool {
    let (id, is_fork) = (loaded.manifest.volume, !loaded.manifest.origins.is_empty());
    // An owner lets go of expired snapshots itself; what nobody owns is left to us.
    let loaded = if loaded.manifest.owner.is_some() {
        loaded
    } else {
        match lineage::forget_expired(store, loaded, now).await {
            Ok(loaded) => loaded,
            Err(error) => {
                swept.failures.push(format!("expired snapshots of volume {id}: {error}"));
                return false;
            }
        }
    };
    match due(&loaded.manifest) {
        None => false,
        Some(at) if at > now => {
            swept.next_due = Some(swept.next_due.map_or(at, |next| next.min(at)));
            false
        }
        Some(_) => match purge(store, loaded).await {
            Ok(objects) => {
                swept.purged.push(id);
                swept.objects += objects;
                is_fork
            }
            Err(error) => {
                swept.failures.push(format!("volume {id}: {error}"));
                false
            }
        },
    }
}

/// Removes a volume that is due, or that was never finished. Returns how many objects that were.
///
/// # Errors
/// `Conflict` if somebody changed its manifest meanwhile; what the store says.
pub async fn purge(store: &dyn Store, loaded: Loaded) -> Result<u64> {
    let id = loaded.manifest.volume;
    let loaded = if loaded.manifest.destroyed_at == Some(MARK) {
        loaded
    } else {
        ownership::update(store, &loaded, |manifest| manifest.destroyed_at = Some(MARK)).await?
    };
    let manifest_key = ObjectKey::manifest(id);
    let objects = delete_all(store, &ObjectKey::volume(id), |listed| listed.key != manifest_key).await?;
    for origin in loaded.manifest.origins.iter().chain(&loaded.manifest.letting_go) {
        release_pin(store, origin.volume, id).await?;
    }
    store.delete(&manifest_key).await?;
    tracing::info!(volume = %id, objects, "removed for good");
    Ok(objects + 1)
}

/// Takes the pin of a fork out of the manifest of a volume that it was forked from.
async fn release_pin(store: &dyn Store, origin: VolumeId, fork: VolumeId) -> Result<()> {
    loop {
        let loaded = match ownership::load(store, origin).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let mut manifest = loaded.manifest.clone();
        if !lineage::release_fork(&mut manifest, fork) {
            return Ok(());
        }
        match ownership::update(store, &loaded, |changed| *changed = manifest).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Removes the objects of a volume that has no manifest, unless they are younger than a day: a late put of an owner that was
/// fenced long ago, say.
async fn remove_leftovers(store: &dyn Store, id: VolumeId, now: UnixMillis) -> Result<u64> {
    match ownership::load(store, id).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(_) => return Ok(0),
    }
    delete_all(store, &ObjectKey::volume(id), |listed| listed.modified.0.saturating_add(UNDELETE_MILLIS) < now.0).await
}

/// Deletes the objects under a prefix that `may_go`, and says how many they were.
async fn delete_all(store: &dyn Store, prefix: &ObjectKey, may_go: impl Fn(&Listed) -> bool) -> Result<u64> {
    let (mut after, mut deleted) = (None, 0);
    loop {
        let page = store.list(prefix, after.as_ref()).await?;
        let going: Vec<ObjectKey> =
            page.objects.into_iter().filter(|listed| may_go(listed)).map(|listed| listed.key).collect();
        deleted += going.len() as u64;
        let deletes = going.into_iter().map(|key| async move { store.delete(&key).await.map_err(Error::from) });
        stream::iter(deletes).buffer_unordered(DELETES_AT_ONCE).try_collect::<()>().await?;
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(deleted),
        }
    }
}

/// The earliest time at which a sweep is known to have something to do. Whoever reads manifests anyway tells it what was destroyed, so
/// that the daemon need not look.
#[derive(Clone)]
pub struct PurgeTimer(Arc<watch::Sender<Option<UnixMillis>>>);

impl Default for PurgeTimer {
    fn default() -> Self {
        PurgeTimer(Arc::new(watch::Sender::new(None)))
    }
}

impl PurgeTimer {
    /// Notes that something will be due.
    pub fn note(&self, at: Option<UnixMillis>) {
        let Some(at) = at else { return };
        self.0.send_if_modified(|earliest| match earliest {
            Some(known) if *known <= at => false,
            _ => {
                *earliest = Some(at);
                true
            }
        });
    }

    /// Sweeps once now, and then when something is due; never ends. Makes no request to the store while nothing is.
    pub async fn run(self, store: Arc<dyn Store>) {
        let mut noted = self.0.subscribe();
        self.note(Some(clock::now()));
        loop {
            let earliest = *noted.borrow_and_update();
            let now = clock::now();
            match earliest {
                Some(at) if at <= now => {
                    self.0.send_replace(None);
                    self.note(swept(&*store, now).await);
                }
                Some(at) => {
                    // In steps, since the wall clock may jump and the machine may sleep.
                    let wait = Duration::from_millis(at.0 - now.0).min(PATIENCE);
                    tokio::select! {
                        biased;
                        () = clock::sleep(wait) => {}
                        _ = noted.changed() => {}
                    }
                }
                // Fails only without a sender, and we hold one.
                None => drop(noted.changed().await),
            }
        }
    }
}

/// Sweeps, and says when to sweep again.
async fn swept(store: &dyn Store, now: UnixMillis) -> Option<UnixMillis> {
    let later = UnixMillis(clock::now().0.saturating_add(PATIENCE.as_millis() as u64));
    match sweep(store, now).await {
        Ok(swept) if swept.failures.is_empty() => swept.next_due,
        Ok(swept) => {
            for failure in &swept.failures {
                tracing::warn!(%failure, "could not be removed for good; it is tried again later");
            }
            Some(swept.next_due.map_or(later, |at| at.min(later)))
        }
        Err(error) => {
            tracing::warn!(%error, "destroyed volumes could not be looked for; it is tried again later");
            Some(later)
        }
    }
}

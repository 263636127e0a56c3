//! What a crash in the middle of a command leaves: found by comparing pins, manifests and the objects of snapshots.
//!
//! None of it does harm, and none of it is removed while it may only be under way: only what is older than [`GRACE`] is. A fork that
//! was pinned but never made is made, as a destroyed volume: so whoever still tries to make it finds the name taken, and purging lets go of
//! it, pin and all, in the ordinary way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::lineage::{Moment, Pin, PinHolder, SnapshotObject, SnapshotRecord};
use crate::format::manifest::Manifest;
use crate::format::trace::{TRACE_BYTES_MAX, Trace};
use crate::lineage::{forks, pins, snapshots};
use crate::ownership;
use crate::store::{ByteRange, ObjectKey, Store, list_all};
use crate::units::{SnapshotId, UnixMillis, VolumeId};

/// What is younger may be under way.
pub const GRACE: Duration = Duration::from_secs(60 * 60);

/// Something that a crash left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remnant {
    /// A pin for a fork that was never made.
    Fork {
        /// The volume that was forked.
        parent: VolumeId,
        /// The fork.
        fork: VolumeId,
        /// Where.
        moment: Moment,
        /// The region it was to be in, if not its parent's.
        region: Option<String>,
        /// When.
        since: UnixMillis,
    },
    /// The object of a snapshot that was never taken, or was destroyed.
    SnapshotObject {
        /// The snapshot.
        id: SnapshotId,
        /// When it was written.
        since: UnixMillis,
    },
    /// The trace of a snapshot that was never taken, or was destroyed.
    Trace {
        /// The snapshot.
        id: SnapshotId,
        /// When it was written.
        since: UnixMillis,
    },
    /// A snapshot that cannot be found by its id.
    SnapshotWithoutObject {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        record: SnapshotRecord,
        /// Its content.
        moment: Moment,
    },
    /// A volume that is being made, or whose making never ended: an import, or a fork whose pin was put right. A purge removes it when a
    /// day has passed without a sign of life.
    Unmade {
        /// The volume.
        volume: VolumeId,
        /// Its last sign of life.
        since: UnixMillis,
    },
}

impl Remnant {
    /// When it was left.
    pub fn since(&self) -> UnixMillis {
        match self {
            Remnant::Fork { since, .. }
            | Remnant::SnapshotObject { since, .. }
            | Remnant::Trace { since, .. }
            | Remnant::Unmade { since, .. } => *since,
            Remnant::SnapshotWithoutObject { record, .. } => record.created_at,
        }
    }

    /// The thing, and why it is there, for people.
    pub fn describe(&self) -> (String, String) {
        match self {
            Remnant::Fork { parent, fork, .. } => {
                (format!("pin of {fork} in {parent}"), "the making of this fork was interrupted".to_owned())
            }
            Remnant::SnapshotObject { id, .. } => (
                ObjectKey::snapshot(*id).to_string(),
                "the taking or destroying of this snapshot was interrupted".to_owned(),
            ),
            Remnant::Trace { id, .. } => (
                ObjectKey::trace(*id).to_string(),
                "the taking or destroying of the snapshot that it belongs to was interrupted".to_owned(),
            ),
            Remnant::SnapshotWithoutObject { record, volume, .. } => (
                format!("snapshot {} of {volume}", record.id),
                "its object is missing, so its id leads nowhere".to_owned(),
            ),
            Remnant::Unmade { volume, .. } => (
                ObjectKey::volume(*volume).to_string(),
                "it is being made, or that was interrupted: 'varve volumes purge' removes it a day after its last sign of life"
                    .to_owned(),
            ),
        }
    }
}

/// Finds what crashes left in the families of `manifests`, which must be all of the store's. With `of` only what belongs to one volume.
///
/// # Errors
/// What the store says.
pub async fn remnants(
    store: &dyn Store,
    manifests: &BTreeMap<VolumeId, Manifest>,
    of: Option<VolumeId>,
) -> Result<Vec<Remnant>> {
    let mut found = Vec::new();
    let objects = list_all(store, &ObjectKey::snapshots()).await?;
    let present: BTreeSet<SnapshotId> = objects.iter().filter_map(|object| object.key.parse_snapshot()).collect();
    let mut pinned = BTreeSet::new();
    for manifest in manifests.values() {
        let is_wanted = of.is_none_or(|id| id == manifest.volume);
        if let (true, Some(since)) = (manifest.being_made, manifest.destroyed_at)
            && (is_wanted || manifest.origins.first().is_some_and(|parent| Some(parent.volume) == of))
        {
            found.push(Remnant::Unmade { volume: manifest.volume, since });
        }
        for Pin { moment, holders, .. } in &manifest.pins {
            for holder in holders {
                match holder {
                    PinHolder::Snapshot(record) => {
                        pinned.insert(record.id);
                        if is_wanted && !present.contains(&record.id) {
                            let (volume, record) = (manifest.volume, record.clone());
                            found.push(Remnant::SnapshotWithoutObject { volume, record, moment: moment.clone() });
                        }
                    }
                    PinHolder::Fork { volume: fork, created_at, region } => {
                        // Where nobody can look, nobody can say that it is missing.
                        let can_look = region.as_ref().is_none_or(|region| store.store_in(region).is_some());
                        if is_wanted && can_look && !manifests.contains_key(fork) && is_missing(store, *fork).await? {
                            let (parent, moment) = (manifest.volume, moment.clone());
                            let region = region.clone();
                            found.push(Remnant::Fork { parent, fork: *fork, moment, region, since: *created_at });
                        }
                    }
                }
            }
        }
    }
    for object in objects {
        let since = object.modified;
        let is_free = |id: &SnapshotId| !pinned.contains(id);
        if let Some(id) = object.key.parse_snapshot().filter(is_free)
            && (of.is_none() || volume_of(store, id).await? == of)
        {
            found.push(Remnant::SnapshotObject { id, since });
        }
        if let Some(id) = object.key.parse_trace().filter(is_free)
            && (of.is_none() || volume_of_trace(store, id).await? == of)
        {
            found.push(Remnant::Trace { id, since });
        }
    }
    Ok(found)
}

async fn is_missing(store: &dyn Store, id: VolumeId) -> Result<bool> {
    match ownership::load(store, id).await {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// The volume that the object of a snapshot names, if it can be read.
async fn volume_of(store: &dyn Store, id: SnapshotId) -> Result<Option<VolumeId>> {
    match store.get(&ObjectKey::snapshot(id), ByteRange::Full).await.map_err(Error::from) {
        Ok(fetched) => Ok(SnapshotObject::decode(id, &fetched.bytes).ok().map(|object| object.volume)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The volume that a trace names, if it can be read.
async fn volume_of_trace(store: &dyn Store, id: SnapshotId) -> Result<Option<VolumeId>> {
    match store.get(&ObjectKey::trace(id), ByteRange::Suffix(TRACE_BYTES_MAX)).await.map_err(Error::from) {
        Ok(fetched) => Ok(Trace::peek(id, &fetched.bytes).ok().map(|(volume, _)| volume)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts right what was left, unless it is so young at `now` that it may be under way. Says whether it did.
///
/// # Errors
/// What the store says.
pub async fn put_right(store: &dyn Store, remnant: &Remnant, now: UnixMillis) -> Result<bool> {
    if now.0.saturating_sub(remnant.since().0) < GRACE.as_millis() as u64 {
        return Ok(false);
    }
    match remnant {
        // Only a purge can tell that nobody makes it any more.
        Remnant::Unmade { .. } => return Ok(false),
        Remnant::SnapshotObject { id, .. } => store.delete(&ObjectKey::snapshot(*id)).await?,
        Remnant::Trace { id, .. } => store.delete(&ObjectKey::trace(*id)).await?,
        Remnant::SnapshotWithoutObject { volume, record, moment } => {
            let object = SnapshotObject { volume: *volume, snapshot: record.clone(), moment: moment.clone() };
            snapshots::put_object(store, &object).await?;
        }
        Remnant::Fork { parent, fork, moment, region, since } => {
            let parent = ownership::load(store, *parent).await?.manifest;
            let mut tombstone =
                pins::fork_of(&parent, moment, *fork, parent.name.clone(), clock::random_token(), *since);
            // Whoever purges it there must know where its parent is.
            forks::settle(store, &mut tombstone, region.as_deref());
            tombstone.being_made = true;
            tombstone.destroyed_at = Some(*since);
            match ownership::create(store, tombstone).await {
                // It was made after all.
                Err(error) if error.kind() == ErrorKind::Conflict => return Ok(false),
                other => drop(other?),
            }
        }
    }
    Ok(true)
}

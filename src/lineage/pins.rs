//! Pins: what manifests say about moments that others need. Pure.

use crate::error::{Error, Result};
use crate::format::lineage::{Moment, Pin, PinHolder, SnapshotRecord};
use crate::format::manifest::{Manifest, Origin, Position};
use crate::lineage::history::{note_jump, note_present};
use crate::service::{SnapshotStatus, SnapshotSummary};
use crate::units::{SegmentNumber, SnapshotId, Token, UnixMillis, VolumeId};
use crate::work::simulated::{self, Mutation};

/// Notes that `holder` needs `moment`. Noting it twice is noting it once.
pub fn pin(manifest: &mut Manifest, moment: &Moment, holder: PinHolder) {
    if simulated::has(Mutation::ForgetPin) {
        return;
    }
    if let PinHolder::Snapshot(record) = &holder {
        manifest.snapshotted = manifest.snapshotted.max(moment.sequence);
        if record.scheduled {
            manifest.scheduled_at = manifest.scheduled_at.max(Some(record.created_at));
        }
    }
    if let Some(pin) = manifest.pins.iter_mut().find(|pin| pin.moment == *moment) {
        if !pin.holders.contains(&holder) {
            pin.holders.push(holder);
        }
        return;
    }
    manifest.pins.push(Pin { moment: moment.clone(), holders: vec![holder], seal: None });
}

/// The snapshots whose time is over, oldest first.
pub fn expired(manifest: &Manifest, now: UnixMillis) -> Vec<SnapshotId> {
    snapshots(manifest).into_iter().filter(|(record, _)| record.is_expired(now)).map(|(record, _)| record.id).collect()
}

/// Lets go of several snapshots.
pub fn unpin_snapshots(manifest: &mut Manifest, ids: &[SnapshotId]) {
    unpin(manifest, |holder| matches!(holder, PinHolder::Snapshot(record) if ids.contains(&record.id)));
}

/// Lets go of a fork; false if nothing pinned it.
pub fn release_fork(manifest: &mut Manifest, fork: VolumeId) -> bool {
    unpin(manifest, |holder| matches!(holder, PinHolder::Fork { volume, .. } if *volume == fork))
}

fn unpin(manifest: &mut Manifest, is_gone: impl Fn(&PinHolder) -> bool) -> bool {
    let mut found = false;
    for pin in &mut manifest.pins {
        let before = pin.holders.len();
        pin.holders.retain(|holder| !is_gone(holder));
        found |= pin.holders.len() < before;
    }
    manifest.pins.retain(|pin| !pin.holders.is_empty());
    found
}

/// The snapshots of a volume, expired ones too, oldest first.
pub fn snapshots(manifest: &Manifest) -> Vec<(&SnapshotRecord, &Moment)> {
    let mut found: Vec<_> = manifest
        .pins
        .iter()
        .flat_map(|pin| pin.holders.iter().map(move |holder| (holder, &pin.moment)))
        .filter_map(|(holder, moment)| match holder {
            PinHolder::Snapshot(record) => Some((record, moment)),
            PinHolder::Fork { .. } => None,
        })
        .collect();
    found.sort_by_key(|(record, _)| (record.created_at, record.id));
    found
}

/// A snapshot that is there and not expired.
pub fn find_snapshot(manifest: &Manifest, id: SnapshotId, now: UnixMillis) -> Option<(&SnapshotRecord, &Moment)> {
    snapshots(manifest).into_iter().find(|(record, _)| record.id == id && !record.is_expired(now))
}

/// A snapshot as people see it.
pub fn summary(volume: VolumeId, record: &SnapshotRecord, moment: &Moment, now: UnixMillis) -> SnapshotSummary {
    SnapshotSummary {
        id: record.id,
        name: record.name.clone(),
        volume,
        status: if record.is_expired(now) { SnapshotStatus::Expired } else { SnapshotStatus::Ready },
        size: moment.size,
        stored_bytes: moment.stored_bytes,
        created_at: record.created_at,
        expires_at: record.expires_at,
        scheduled: record.scheduled,
    }
}

/// The first manifest of a volume whose history begins at `moment` of `parent`.
pub fn fork_of(
    parent: &Manifest,
    moment: &Moment,
    volume: VolumeId,
    name: String,
    nonce: Token,
    now: UnixMillis,
) -> Manifest {
    let Moment { position, sequence, .. } = *moment;
    let nearest = Origin { volume: parent.volume, position, sequence, region: None };
    let mut fork = Manifest {
        region: parent.region.clone(),
        durability: parent.durability,
        checkpoint: moment.checkpoint,
        sequence: moment.sequence,
        inherited: moment.replay.clone(),
        schedule: parent.schedule,
        snapshotted: moment.sequence,
        origins: std::iter::once(nearest).chain(parent.origins.iter().cloned()).collect(),
        history_seconds: parent.history_seconds,
        ..Manifest::first(volume, name, moment.size, now, nonce)
    };
    note_present(&mut fork, now);
    fork
}

/// Refuses a volume that is destroyed, or that is only being made.
///
/// # Errors
/// `Invalid`, saying what can be done.
pub fn only_if_usable(manifest: &Manifest) -> Result<()> {
    let id = manifest.volume;
    if manifest.being_made {
        return Err(Error::invalid(format!("volume {id} is still being made, or its import never ended")));
    }
    if manifest.destroyed_at.is_some() {
        return Err(Error::invalid(format!("volume {id} is destroyed: 'varve volumes undelete {id}' brings it back")));
    }
    Ok(())
}

/// Refuses a volume whose manifest does not say all that the store holds of it: its late owner did not hand it back, and an attachment since
/// has failed.
///
/// # Errors
/// `Invalid`, saying what can be done.
pub fn only_if_complete(manifest: &Manifest) -> Result<()> {
    if manifest.owner.is_none() && manifest.complete {
        return Ok(());
    }
    let id = manifest.volume;
    Err(Error::invalid(format!(
        "volume {id} was not detached in good order: 'varve volumes attach {id}', then 'varve volumes detach {id}' puts that right"
    )))
}

/// Makes an older moment of a detached volume its present. Sequence and size stay: the one only grows, the other never shrinks.
///
/// # Errors
/// `Invalid` if the volume did not end in good order, which an owner must put right first.
pub fn roll_back(manifest: &mut Manifest, moment: &Moment, now: UnixMillis) -> Result<()> {
    only_if_complete(manifest)?;
    manifest.epoch = manifest.epoch.next();
    manifest.replay_from = Position { epoch: manifest.epoch.next(), number: SegmentNumber(0) };
    manifest.checkpoint = moment.checkpoint;
    manifest.inherited.clone_from(&moment.replay);
    manifest.size = manifest.size.max(moment.size);
    // What was dead may be in use again.
    manifest.census = None;
    note_jump(manifest, now);
    Ok(())
}

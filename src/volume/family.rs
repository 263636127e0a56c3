//! What the owner of a volume does for its family: moments, snapshots, forks, growth, and changes of its manifest.
//!
//! A moment is taken under the writer's lock, so that it holds exactly what was acknowledged before (`design/lineage.md`);
//! writers go on at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::lineage::{Moment, PinHolder, SnapshotObject, SnapshotRecord, push_segment};
use crate::format::manifest::{Manifest, Position};
use crate::format::map_object::CheckpointRef;
use crate::format::segment::SegmentIndex;
use crate::format::trace::Trace;
use crate::limits::{FORKS_AT_ONCE_MAX, VOLUME_BYTES_MAX};
use crate::lineage::{self, ForksToMake};
use crate::ownership;
use crate::service::{Durability, NewForks, NewSnapshot, SnapshotSummary, VolumeChange};
use crate::units::{BLOCK_SIZE, ByteLen, SnapshotId, VolumeId};
use crate::volume::core::Volume;

/// A moment of which the cleaner deletes nothing for as long as this is kept: until a manifest pins it.
pub(super) struct HeldMoment {
    pub moment: Moment,
    _held: Arc<Moment>,
}

impl Volume {
    /// The disk as it is now: exactly what was acknowledged before the call. Waits until the store holds it.
    ///
    /// # Errors
    /// Why it cannot be uploaded.
    pub(super) async fn moment(&self) -> Result<HeldMoment> {
        self.pass_gate().await?;
        let (size, receiver) = {
            // Nothing is acknowledged while the writer is held.
            let _writer = self.writer.lock();
            // Of now: the volume may have grown by the time the store holds it.
            let size = ByteLen(self.size_bytes());
            let mut progress = self.progress.lock();
            let wanted = progress.end_run();
            let (sender, receiver) = oneshot::channel();
            self.moment_waiters.lock().push((wanted, sender));
            (size, receiver)
        };
        self.upload_wake.notify_one();
        let held = self.answered(receiver).await?;
        Ok(HeldMoment { moment: Moment { size, ..(*held).clone() }, _held: held })
    }

    fn newest_moment(&self) -> Moment {
        let moment = self.newest.lock().clone();
        Moment { size: ByteLen(self.size_bytes()), ..moment }
    }

    /// Notes that a segment has taken effect.
    pub(super) fn note_stored(&self, index: &SegmentIndex) {
        let id = index.header.id;
        let mut newest = self.newest.lock();
        push_segment(&mut newest.replay, id);
        newest.position = Position { epoch: id.epoch, number: id.number.next() };
        newest.sequence = index.header.last;
        newest.stored_bytes.0 += index.object_length;
    }

    /// Notes that a checkpoint holds everything that the store does.
    pub(super) fn note_checkpoint(&self, reference: CheckpointRef, stored_bytes: ByteLen) {
        let mut newest = self.newest.lock();
        newest.stored_bytes = stored_bytes;
        newest.checkpoint = Some(reference);
        newest.replay.clear();
    }

    /// Gives their moment to those who waited for just this place of the sequence. Only the uploader does, so that no checkpoint is being
    /// written: what the moment needs is held from now on, until it is pinned or let go of.
    pub(super) fn serve_moment_waiters(&self) {
        let moment = self.newest_moment();
        let mut waiters = self.moment_waiters.lock();
        let (served, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *waiters).into_iter().partition(|(wanted, _)| *wanted == moment.sequence);
        *waiters = waiting;
        drop(waiters);
        if served.is_empty() {
            return;
        }
        let held = self.books.lock().hold(moment);
        for (_, sender) in served {
            // Whoever asked may have gone away; then nobody needs it.
            let _ = sender.send(held.clone());
        }
    }

    /// Takes a snapshot: two requests besides the upload of the lag, and one for its trace.
    ///
    /// # Errors
    /// `Fenced`; what the store says.
    pub(crate) async fn snapshot(&self, new: NewSnapshot) -> Result<SnapshotSummary> {
        self.take_snapshot(lineage::record(new.name, new.retention_seconds, false)).await
    }

    pub(super) async fn take_snapshot(&self, record: SnapshotRecord) -> Result<SnapshotSummary> {
        let held = self.moment().await?;
        let moment = &held.moment;
        let object = SnapshotObject { volume: self.id, snapshot: record.clone(), moment: moment.clone() };
        let (put, ()) = tokio::join!(lineage::put_object(&*self.shared.store, &object), self.put_trace(record.id));
        put?;
        self.change_manifest(|manifest| {
            lineage::only_if_usable(manifest)?;
            lineage::pin(manifest, moment, PinHolder::Snapshot(record.clone()));
            Ok(())
        })
        .await?;
        tracing::info!(volume = %self.id, snapshot = %record.id, sequence = %moment.sequence, "took a snapshot");
        Ok(lineage::summary(self.id, &record, moment, record.created_at))
    }

    /// Keeps what was read first beside a snapshot that is being taken, if anything was. The snapshot does not depend on it.
    async fn put_trace(&self, snapshot: SnapshotId) {
        let trace = Trace { snapshot, volume: self.id, runs: self.first_reads.runs() };
        if !trace.runs.is_empty()
            && let Err(error) = lineage::put_trace(&*self.shared.store, &trace).await
        {
            tracing::info!(volume = %self.id, %error, "a snapshot is taken without a trace");
        }
    }

    /// Makes forks of the disk as it is now: one request, and one for each, besides the upload of the lag.
    ///
    /// # Errors
    /// `Fenced`; what the store says.
    pub(crate) async fn fork(&self, new: &NewForks) -> Result<Vec<Manifest>> {
        check_count(new)?;
        let forks = ForksToMake::new(&*self.shared.store, new.count, new.region.as_deref()).await?;
        let held = self.moment().await?;
        let moment = &held.moment;
        let pinned = self.change_manifest(|manifest| {
            lineage::only_if_usable(manifest)?;
            forks.pin(manifest, moment);
            Ok(())
        });
        let parent = pinned.await?;
        lineage::create_forks(&*self.shared.store, &parent, moment, &forks, new.name.as_deref()).await
    }

    /// Changes the manifest as its owner, and returns it.
    ///
    /// # Errors
    /// What `change` says; `Fenced` if the volume has another owner by now; `Stopping` if it was handed back, since whoever sweeps the store
    /// knows nothing of what this attachment holds; what the store says.
    pub(super) async fn change_manifest(
        &self,
        change: impl Fn(&mut Manifest) -> Result<()> + Send + Sync,
    ) -> Result<Manifest> {
        self.swap_manifest(false, change).await
    }

    /// As [`Volume::change_manifest`]; the change that hands the volume back may be repeated after it had effect.
    pub(super) async fn swap_manifest(
        &self,
        hands_back: bool,
        change: impl Fn(&mut Manifest) -> Result<()> + Send + Sync,
    ) -> Result<Manifest> {
        let mut loaded = self.manifest.lock().await;
        loop {
            if !hands_back && !self.owns(&loaded.manifest) {
                return Err(Error::new(ErrorKind::Stopping, format!("volume {} was handed back meanwhile", self.id)));
            }
            match ownership::change_loaded(&*self.shared.store, &loaded, &change).await {
                Ok(updated) => {
                    *loaded = updated;
                    return Ok(loaded.manifest.clone());
                }
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    let current = ownership::load(&*self.shared.store, self.id).await?;
                    let (found, known) = (current.manifest.generation, loaded.manifest.generation);
                    if found < known {
                        let error = Error::damaged(format!(
                            "the manifest of volume {} was put back to an older version (change {found}; this owner knows change {known}): \
                             snapshots and forks made since are missing in it. Put the newest version back, then attach again",
                            self.id
                        ));
                        self.fail(&error);
                        return Err(error);
                    }
                    if current.manifest.epoch != self.epoch {
                        let by = current.manifest.owner.map_or_else(|| "nobody".to_owned(), |owner| owner.host);
                        let error = self.fenced(&by);
                        self.fail(&error);
                        return Err(error);
                    }
                    *loaded = current;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Changes what can be changed of a volume in use: in the store first, so that no restart can see an older size than a client did.
    ///
    /// # Errors
    /// `Invalid` for a smaller size; as for a change of the manifest.
    pub async fn update(&self, change: &VolumeChange) -> Result<()> {
        let before = self.durability();
        if change.durability == Some(Durability::Store) {
            self.durability.store(Durability::Store as u8, Ordering::Release);
        }
        let changed = self.change_manifest(|manifest| apply_change(manifest, change)).await;
        // What was strict before stays so if there is an error, and so does what the store has not answered for: it may be in force there.
        let keeps = |error: &Error| before == Durability::Store || error.kind() == ErrorKind::Unavailable;
        if !changed.as_ref().is_err_and(keeps) {
            // From the manifest in force: another change may have come after this one, and one that was refused changes nothing.
            let in_force = self.manifest.lock().await;
            self.durability.store(in_force.manifest.durability as u8, Ordering::Release);
        }
        let manifest = changed?;
        self.size.fetch_max(manifest.size.0, Ordering::AcqRel);
        Ok(())
    }
}

/// Refuses to make no forks, or too many.
///
/// # Errors
/// `Invalid`.
pub fn check_count(new: &NewForks) -> Result<()> {
    if !(1..=FORKS_AT_ONCE_MAX).contains(&new.count) {
        return Err(Error::invalid(format!(
            "{} forks cannot be made at once: 1 to {FORKS_AT_ONCE_MAX} can",
            new.count
        )));
    }
    Ok(())
}

/// Makes a change of a volume's properties.
///
/// # Errors
/// `Invalid` for a size that is smaller or that no volume can have, and for a schedule without time.
pub fn apply_change(manifest: &mut Manifest, change: &VolumeChange) -> Result<()> {
    if let Some(size) = change.size {
        if size < manifest.size {
            return Err(Error::invalid(format!(
                "volume {} has {} bytes and cannot shrink to {size}: what lies behind would be lost. Make a smaller volume and copy what it needs",
                manifest.volume, manifest.size
            )));
        }
        if size.0 > VOLUME_BYTES_MAX || !size.0.is_multiple_of(BLOCK_SIZE) {
            return Err(Error::invalid(format!(
                "volume {} cannot have {size} bytes: a size is a multiple of {BLOCK_SIZE} and at most {VOLUME_BYTES_MAX}",
                manifest.volume
            )));
        }
        manifest.size = size;
    }
    if let Some(durability) = change.durability {
        manifest.durability = durability;
    }
    if let Some(schedule) = change.schedule {
        if schedule.interval_seconds == Some(0) || schedule.retention_seconds == Some(0) {
            return Err(Error::invalid("scheduled snapshots are at least 1 s apart, and are kept for at least 1 s"));
        }
        manifest.schedule = schedule.apply(manifest.schedule);
    }
    if let Some(seconds) = change.history_seconds {
        manifest.history_seconds = seconds;
        lineage::forget_past(manifest, clock::now());
    }
    Ok(())
}

/// Says who owns a volume and what can be done, where only the owner could do it.
pub fn owned_by_another(manifest: &Manifest, id: VolumeId, what: &str) -> Option<Error> {
    let owner = manifest.owner.as_ref()?;
    Some(Error::new(
        ErrorKind::Busy,
        format!(
            "volume {id} is attached by {} (process {}, control socket {}), and only that daemon can {what} it: run this there, or detach \
             the volume first; if that host is gone for good, 'varve volumes attach {id} --takeover' goes on from what the store holds",
            owner.host, owner.pid, owner.control
        ),
    ))
}

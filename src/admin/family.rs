//! What `varve` does for families straight on the store, where nobody owns the volume: snapshots, forks, restores, changes.

use crate::admin::volumes::{Admin, summary};
use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::lineage::{Moment, PastMoment, PinHolder, SnapshotObject};
use crate::format::manifest::Manifest;
use crate::lineage::{self, ForksToMake};
use crate::ownership::{self, Loaded};
use crate::service::{NewForks, NewSnapshot, NewVolume, SnapshotSummary, VolumeChange, VolumeSummary};
use crate::units::{ByteLen, SnapshotId, UnixMillis, VolumeId};
use crate::volume::{apply_change, check_count, owned_by_another};

impl Admin {
    /// Changes a volume that nobody owns.
    ///
    /// # Errors
    /// `Busy` if somebody owns it; `Invalid` for a smaller size; what the store says.
    pub async fn update_volume(&self, id: VolumeId, change: VolumeChange) -> Result<VolumeSummary> {
        let changed = ownership::change_unlocked(&*self.store, id, |manifest| {
            only_if_free(manifest, "change")?;
            apply_change(manifest, &change)
        });
        changed.await.map(|loaded| summary(&loaded.manifest))
    }

    /// Takes a snapshot of a volume that nobody owns: three requests.
    ///
    /// # Errors
    /// `Busy` if somebody owns it; what the store says.
    pub async fn snapshot(&self, id: VolumeId, new: NewSnapshot) -> Result<SnapshotSummary> {
        loop {
            let loaded = ownership::load_unlocked(&*self.store, id).await?;
            match self.snapshot_loaded(&loaded, &new).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                other => return other.map(|(summary, _)| summary),
            }
        }
    }

    async fn snapshot_loaded(&self, loaded: &Loaded, new: &NewSnapshot) -> Result<(SnapshotSummary, Loaded)> {
        only_if_free(&loaded.manifest, "take a snapshot of")?;
        ownership::ensure_here(&*self.store, loaded.manifest.volume)?;
        let (volume, moment) = (loaded.manifest.volume, loaded.manifest.moment());
        let record = lineage::record(new.name.clone(), new.retention_seconds, false);
        let object = SnapshotObject { volume, snapshot: record.clone(), moment: moment.clone() };
        lineage::put_object(&*self.store, &object).await?;
        let pinned = ownership::update(&*self.store, loaded, |manifest| {
            lineage::pin(manifest, &moment, PinHolder::Snapshot(record.clone()));
        })
        .await;
        // After any other error the pin may be there, and needs its object; also after a conflict, if the change was made and another came after it.
        if pinned.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict)
            && let Ok(now) = ownership::load(&*self.store, volume).await
            && lineage::find_snapshot(&now.manifest, record.id, clock::now()).is_none()
        {
            lineage::delete_objects(&*self.store, &[record.id]).await;
        }
        Ok((lineage::summary(volume, &record, &moment, record.created_at), pinned?))
    }

    /// The snapshots of a volume, oldest first; those whose time is over go on this occasion.
    ///
    /// # Errors
    /// `NotFound`, and what the store says.
    pub async fn snapshots(&self, id: VolumeId) -> Result<Vec<SnapshotSummary>> {
        let mut loaded = ownership::load(&*self.store, id).await?;
        let now = clock::now();
        // Whoever changed the manifest meanwhile, or the next command, lets go of them as well.
        if let Ok(without) = lineage::forget_expired(&*self.store, loaded.clone(), now).await {
            loaded = without;
        }
        let snapshots = lineage::snapshots(&loaded.manifest).into_iter();
        let snapshots = snapshots.filter(|(record, _)| !record.is_expired(now));
        Ok(snapshots.map(|(record, moment)| lineage::summary(id, record, moment, now)).collect())
    }

    /// Looks at a snapshot.
    ///
    /// # Errors
    /// `NotFound`, and what the store says.
    pub async fn snapshot_summary(&self, id: SnapshotId) -> Result<SnapshotSummary> {
        let found = lineage::find(&*self.store, id).await?;
        Ok(lineage::summary(found.volume.manifest.volume, &found.record, &found.moment, clock::now()))
    }

    /// Destroys a snapshot, also of a volume in use. Volumes made from it keep what they need.
    ///
    /// # Errors
    /// `NotFound`, and what the store says.
    pub async fn destroy_snapshot(&self, id: SnapshotId) -> Result<SnapshotSummary> {
        let found = lineage::destroy(&*self.store, id).await?;
        Ok(lineage::summary(found.volume.manifest.volume, &found.record, &found.moment, clock::now()))
    }

    /// Makes forks of a volume that nobody owns: two requests, and one for each fork.
    ///
    /// # Errors
    /// `Busy` if somebody owns it; what the store says.
    pub async fn fork_volume(&self, id: VolumeId, new: NewForks) -> Result<Vec<VolumeSummary>> {
        check_count(&new)?;
        ownership::ensure_here(&*self.store, id)?;
        let forks = ForksToMake::new(&*self.store, new.count, new.region.as_deref()).await?;
        let pinned = ownership::change_unlocked(&*self.store, id, |manifest| {
            only_if_free(manifest, "fork")?;
            let moment = manifest.moment();
            forks.pin(manifest, &moment);
            Ok(())
        });
        let parent = pinned.await?.manifest;
        let moment = parent.moment();
        let forks = lineage::create_forks(&*self.store, &parent, &moment, &forks, new.name.as_deref()).await?;
        Ok(forks.iter().map(summary).collect())
    }

    /// Makes volumes from a snapshot. What `new` says of them counts, and its size may be larger than the snapshot's, or zero for the
    /// snapshot's own.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a smaller size; what the store says.
    pub async fn create_from_snapshot(
        &self,
        snapshot: SnapshotId,
        new: NewVolume,
        count: u32,
    ) -> Result<Vec<VolumeSummary>> {
        let found = lineage::find(&*self.store, snapshot).await?;
        if new.size.0 != 0 && new.size < found.moment.size {
            return Err(too_small(&format!("snapshot {snapshot}"), found.moment.size, new.size));
        }
        ownership::ensure_here(&*self.store, found.volume.manifest.volume)?;
        let forks = ForksToMake::new(&*self.store, count, self.named_region(&new)).await?;
        let pinned = ownership::change_unlocked(&*self.store, found.volume.manifest.volume, |manifest| {
            if lineage::find_snapshot(manifest, snapshot, forks.created_at).is_none() {
                return Err(Error::not_found(format!("snapshot {snapshot} was destroyed meanwhile")));
            }
            forks.pin(manifest, &found.moment);
            Ok(())
        });
        self.create_pinned(pinned.await?.manifest, found.moment, &forks, &new).await
    }

    /// Makes forks of a volume as it was at `time`, also of one in use.
    ///
    /// # Errors
    /// `Invalid` if the volume cannot go back to that; what the store says.
    pub async fn fork_past(&self, id: VolumeId, time: UnixMillis, new: NewForks) -> Result<Vec<VolumeSummary>> {
        check_count(&new)?;
        let forks = ForksToMake::new(&*self.store, new.count, new.region.as_deref()).await?;
        let (parent, moment) = self.pin_past(id, time, &forks).await?;
        let forks = lineage::create_forks(&*self.store, &parent, &moment, &forks, new.name.as_deref()).await?;
        Ok(forks.iter().map(summary).collect())
    }

    /// Makes volumes from a volume as it was at `time`. What `new` says of them counts, and its size may be larger, or zero for the size
    /// that the volume had then.
    ///
    /// # Errors
    /// `Invalid` for a smaller size, or if the volume cannot go back to that; what the store says.
    pub async fn create_from_past(
        &self,
        id: VolumeId,
        time: UnixMillis,
        new: NewVolume,
        count: u32,
    ) -> Result<Vec<VolumeSummary>> {
        let forks = ForksToMake::new(&*self.store, count, self.named_region(&new)).await?;
        let size = ownership::load(&*self.store, id).await?.manifest.size;
        if new.size.0 != 0 && new.size < size {
            return Err(too_small(&format!("volume {id}"), size, new.size));
        }
        let (parent, moment) = self.pin_past(id, time, &forks).await?;
        self.create_pinned(parent, moment, &forks, &new).await
    }

    /// Notes that these forks need the moment at `time`, and returns that, and the manifest that says so.
    async fn pin_past(&self, id: VolumeId, time: UnixMillis, forks: &ForksToMake) -> Result<(Manifest, Moment)> {
        ownership::ensure_here(&*self.store, id)?;
        let mut known: Option<(PastMoment, Moment)> = None;
        loop {
            let loaded = ownership::load_unlocked(&*self.store, id).await?;
            let manifest = &loaded.manifest;
            lineage::only_if_usable(manifest)?;
            let past = lineage::past_before(manifest, time, clock::now())?;
            let is_kept = |from: &PastMoment| manifest.history.iter().any(|past| past.moment == from.moment);
            let (from, moment) = match known.take().filter(|(from, _)| is_kept(from)) {
                Some(known) => known,
                None => match lineage::moment_at(&*self.store, manifest, past, time).await {
                    Ok(moment) => (past.clone(), moment),
                    Err(error) => {
                        // The window may have moved on meanwhile, and what was needed may be deleted.
                        let now = ownership::load(&*self.store, id).await?.manifest;
                        if now.history.iter().any(|known| known.moment == past.moment) {
                            return Err(error);
                        }
                        continue;
                    }
                },
            };
            // As long as the moment that it was found from is in the history, nothing that follows that is deleted.
            let pinned = ownership::update(&*self.store, &loaded, |manifest| forks.pin(manifest, &moment));
            match pinned.await {
                Err(error) if error.kind() == ErrorKind::Conflict => known = Some((from, moment)),
                other => return Ok((other?.manifest, moment)),
            }
        }
    }

    async fn create_pinned(
        &self,
        mut parent: Manifest,
        mut moment: Moment,
        forks: &ForksToMake,
        new: &NewVolume,
    ) -> Result<Vec<VolumeSummary>> {
        moment.size = moment.size.max(new.size);
        parent.region.clone_from(&new.region);
        parent.durability = new.durability;
        parent.schedule = new.schedule;
        parent.history_seconds = new.history_seconds;
        let forks = lineage::create_forks(&*self.store, &parent, &moment, forks, Some(&new.name)).await?;
        Ok(forks.iter().map(summary).collect())
    }

    /// Makes a snapshot the present of its volume, which nobody may own. A snapshot of the present is taken first, and returned.
    ///
    /// # Errors
    /// `Busy` if somebody owns the volume; `Invalid` if the snapshot is of another volume; what the store says.
    pub async fn roll_back(&self, id: VolumeId, to: SnapshotId) -> Result<(VolumeSummary, SnapshotSummary)> {
        let found = lineage::find(&*self.store, to).await?;
        if found.volume.manifest.volume != id {
            return Err(Error::invalid(format!(
                "snapshot {to} is of volume {}, not of {id}: 'varve volumes create NAME --snapshot-id {to}' makes a new volume of it",
                found.volume.manifest.volume
            )));
        }
        let name = Some(format!("before the restore to {to}"));
        let new = NewSnapshot { name, retention_seconds: None };
        loop {
            let loaded = ownership::load_unlocked(&*self.store, id).await?;
            only_if_detached(&loaded.manifest)?;
            if lineage::find_snapshot(&loaded.manifest, to, clock::now()).is_none() {
                return Err(Error::not_found(format!("snapshot {to} was destroyed meanwhile")));
            }
            let (kept, pinned) = match self.snapshot_loaded(&loaded, &new).await {
                Err(error) if error.kind() == ErrorKind::Conflict => continue,
                other => other?,
            };
            let rolled = ownership::change_loaded(&*self.store, &pinned, |manifest| {
                lineage::roll_back(manifest, &found.moment, clock::now())
            })
            .await;
            match rolled {
                Ok(rolled) => return Ok((summary(&rolled.manifest), kept)),
                // The volume is as it was: so is the list of its snapshots.
                Err(error) if error.kind() == ErrorKind::Invalid => {
                    lineage::destroy(&*self.store, kept.id).await?;
                    return Err(error);
                }
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    let now = ownership::load(&*self.store, id).await?;
                    if leads_to_the_same(&now.manifest, &pinned.manifest) {
                        lineage::destroy(&*self.store, kept.id).await?;
                    }
                    // Else it may have been restored, and changed or attached since: then only this snapshot has what it was before.
                }
                // It may have been restored: then only this snapshot has what it was before.
                Err(error) => {
                    return Err(error)
                        .context(|| format!("{id} may have been restored; snapshot {} is of before", kept.id));
                }
            }
        }
    }
}

/// True if two manifests of a volume lead to the same content, in the same epoch.
fn leads_to_the_same(one: &Manifest, other: &Manifest) -> bool {
    let (one_moment, other_moment) = (one.moment(), other.moment());
    one.epoch == other.epoch
        && one_moment.position == other_moment.position
        && one_moment.sequence == other_moment.sequence
        && one_moment.checkpoint == other_moment.checkpoint
}

fn too_small(of: &str, size: ByteLen, wanted: ByteLen) -> Error {
    Error::invalid(format!("{of} has {size} bytes: a volume made from it cannot have only {wanted}"))
}

/// Refuses what nobody can do while there is an owner.
fn only_if_detached(manifest: &Manifest) -> Result<()> {
    let (id, Some(owner)) = (manifest.volume, &manifest.owner) else { return Ok(()) };
    Err(Error::new(
        ErrorKind::Busy,
        format!(
            "volume {id} is attached by {} (process {}, control socket {}) and is not restored: detach it there first, with \
             'varve volumes detach {id}'; if that host is gone for good, take it over here with 'varve volumes attach {id} --takeover'",
            owner.host, owner.pid, owner.control
        ),
    ))
}

/// Refuses what only an owner can do while there is one, and anything for a volume that is destroyed or not made yet.
pub(super) fn only_if_free(manifest: &Manifest, what: &str) -> Result<()> {
    if let Some(error) = owned_by_another(manifest, manifest.volume, what) {
        return Err(error);
    }
    lineage::only_if_usable(manifest)?;
    lineage::only_if_complete(manifest)
}

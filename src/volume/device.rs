//! The volume as a block device: the seam that the doors see.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::block_device::{Attempt, BlockDevice, Change, ChangeExtent, CommitDone, Geometry, ResidenceExtent, Sharing};
use crate::error::Result;
use crate::log::Committer;
use crate::service::Durability;
use crate::units::{BLOCK_SIZE, SnapshotId};
use crate::volume::core::Volume;
use crate::volume::frozen_device::Compared;
use crate::volume::gate::Refusal;
use crate::volume::near::{self, ReadsAhead};

/// An attached volume, as one client's block device.
pub struct VolumeDevice {
    volume: Arc<Volume>,
    compared: Compared,
}

impl VolumeDevice {
    /// A device of this volume.
    pub fn new(volume: Arc<Volume>) -> Self {
        VolumeDevice { volume, compared: Compared::default() }
    }
}

#[async_trait]
impl BlockDevice for VolumeDevice {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.volume.size_bytes(), read_only: false, preferred_block: BLOCK_SIZE as u32 }
    }

    fn try_change(&self, changes: &[Change<&[u8]>], outcomes: &mut Vec<Attempt>) {
        self.volume.try_changes(changes, outcomes);
    }

    async fn change(&self, change: Change<Bytes>) -> Result<()> {
        self.volume.change_waiting(change).await
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Attempt {
        self.volume.try_read_bytes(offset, buffer)
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        near::copy_parts(&self.volume.share_bytes(offset, buffer.len() as u64).await?, buffer);
        Ok(())
    }

    fn try_share(&self, offset: u64, length: u64) -> Sharing {
        self.volume.try_share_bytes(offset, length)
    }

    async fn share(&self, offset: u64, length: u64) -> Result<Vec<Bytes>> {
        self.volume.share_bytes(offset, length).await
    }

    fn commit(&self, done: CommitDone) {
        self.commit_on(done, Committer::commit);
    }

    fn commit_here(&self, done: CommitDone) {
        self.commit_on(done, Committer::commit_here);
    }

    async fn prefetch(&self, offset: u64, length: u64) -> Result<()> {
        self.volume.pass_gate().await?;
        self.volume.check_range(offset, length)?;
        self.volume.bring_all_near(offset, length).await
    }

    async fn residence(&self, offset: u64, length: u64, extents_max: usize) -> Result<Vec<ResidenceExtent>> {
        self.volume.residence_of(offset, length, extents_max).await
    }

    async fn changed_since(
        &self,
        snapshot: SnapshotId,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<ChangeExtent>> {
        let map = self.compared.get(&self.volume.shared, snapshot).await?;
        self.volume.changed_since(&map, offset, length, extents_max).await
    }
}

impl VolumeDevice {
    fn commit_on(&self, done: CommitDone, how: fn(&Committer, CommitDone)) {
        match self.volume.gate.check() {
            Ok(()) => self.volume.commit_now(done, how),
            Err(Refusal::Closed(error)) => done(Err(error)),
            Err(Refusal::Doubtful) => {
                let volume = self.volume.clone();
                drop(self.volume.shared.runtime.spawn(async move {
                    match volume.pass_gate().await {
                        Ok(()) => volume.commit_now(done, Committer::commit),
                        Err(error) => done(Err(error)),
                    }
                }));
            }
        }
    }
}

impl Volume {
    /// Commits to the level promised just now. The answer is given only if the volume is still ours as far as it knows.
    fn commit_now(self: &Arc<Self>, done: CommitDone, how: fn(&Committer, CommitDone)) {
        match self.durability() {
            Durability::Store => self.commit_to_store(done),
            Durability::Local => {
                let volume = self.clone();
                let committed: CommitDone = Box::new(move |result| match (result, volume.gate.check()) {
                    (Ok(()), Ok(())) => done(Ok(())),
                    (Ok(()), Err(Refusal::Closed(error))) => done(Err(error)),
                    (Err(error), _) => {
                        volume.fail(&error);
                        done(Err(error));
                    }
                    (Ok(()), Err(Refusal::Doubtful)) => {
                        let waiting = volume.clone();
                        drop(volume.shared.runtime.spawn(async move { done(waiting.pass_gate().await) }));
                    }
                });
                how(&self.committer, committed);
            }
        }
    }
}

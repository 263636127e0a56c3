//! Snapshots as disks, and as something to compare a disk with.
//!
//! A snapshot never changes: it is served to any number of clients of any number of hosts, without an owner, a log or a change
//! in the store. Its clients here share one map of it, and the read cache with everything else. A client that has opened it goes on reading
//! when it is destroyed; new ones are refused.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::block_device::{
    Attempt, BlockDevice, Change, ChangeExtent, CommitDone, Geometry, Residence, ResidenceExtent, Sharing,
};
use crate::error::{Error, ErrorKind, Result};
use crate::lineage::{self, FrozenMap, FrozenPages};
use crate::map::{PagePlace, join_places};
use crate::ownership;
use crate::store::Store;
use crate::units::{BLOCK_SIZE, BlockRange, SnapshotId};
use crate::volume::fetch;
use crate::volume::near::{self, Content, Loads, ReadsAhead, Residences, WholeBlocks};
use crate::volume::read_ahead::ReadAhead;
use crate::volume::shared::Shared;

/// The maps of snapshots that somebody uses here, one of each. They share memory for their pages.
#[derive(Default)]
pub struct FrozenMaps {
    known: Mutex<HashMap<SnapshotId, Weak<FrozenMap>>>,
    pages: FrozenPages,
}

impl FrozenMaps {
    /// The map of a snapshot that exists: two requests, and what opening it takes if nobody here has.
    ///
    /// # Errors
    /// `NotFound` if there is no such snapshot, or none any more; `Damaged`, and what the store says.
    pub async fn open(&self, store: &Arc<dyn Store>, id: SnapshotId) -> Result<Arc<FrozenMap>> {
        let found = lineage::find(&**store, id).await?;
        ownership::unlock(&**store, &found.volume.manifest).await?;
        if let Some(map) = self.known.lock().get(&id).and_then(Weak::upgrade) {
            return Ok(map);
        }
        let map = Arc::new(FrozenMap::open_sharing(store, &found.moment, &self.pages).await?);
        let mut known = self.known.lock();
        // Somebody else may have opened it meanwhile.
        if let Some(map) = known.get(&id).and_then(Weak::upgrade) {
            return Ok(map);
        }
        known.retain(|_, map| map.strong_count() > 0);
        known.insert(id, Arc::downgrade(&map));
        Ok(map)
    }
}

/// The snapshots that one client compares with; open as long as it is there.
#[derive(Default)]
pub struct Compared(tokio::sync::Mutex<HashMap<SnapshotId, Arc<FrozenMap>>>);

impl Compared {
    /// The map of a snapshot.
    ///
    /// # Errors
    /// As [`FrozenMaps::open`].
    pub async fn get(&self, shared: &Shared, id: SnapshotId) -> Result<Arc<FrozenMap>> {
        let mut known = self.0.lock().await;
        if let Some(map) = known.get(&id) {
            return Ok(map.clone());
        }
        let map = shared.frozen_maps.open(&shared.store, id).await?;
        known.insert(id, map.clone());
        Ok(map)
    }
}

struct Inner {
    id: SnapshotId,
    shared: Arc<Shared>,
    map: Arc<FrozenMap>,
    read_ahead: Mutex<ReadAhead>,
    compared: Compared,
}

/// A snapshot, as one client's block device.
pub struct FrozenDevice(Arc<Inner>);

impl FrozenDevice {
    /// Opens a snapshot.
    ///
    /// # Errors
    /// As [`FrozenMaps::open`].
    pub async fn open(shared: &Arc<Shared>, id: SnapshotId) -> Result<Self> {
        let map = shared.frozen_maps.open(&shared.store, id).await?;
        let shared = shared.clone();
        Ok(FrozenDevice(Arc::new(Inner {
            id,
            shared,
            map,
            read_ahead: Mutex::default(),
            compared: Compared::default(),
        })))
    }
}

/// What clients are told of a disk that never changes.
pub fn frozen_geometry(size: u64) -> Geometry {
    Geometry { size, read_only: true, preferred_block: BLOCK_SIZE as u32 }
}

impl Inner {
    fn refusal(&self) -> Error {
        let message = format!(
            "snapshot {0} is read-only: 'varve volumes create NAME --snapshot-id {0}' makes a volume of it",
            self.id
        );
        Error::new(ErrorKind::ReadOnly, message)
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        near::check_range(format_args!("snapshot {}", self.id), self.map.size().0, offset, length)
    }

    fn try_read_blocks(&self, range: BlockRange, buffer: &mut [u8]) -> Attempt {
        let mut places = Vec::new();
        if !self.map.try_lookup(range, &mut places) {
            return Attempt::WouldBlock;
        }
        for found in places {
            let part = near::slice_of(range, found.range, buffer);
            match found.place {
                None => part.fill(0),
                Some(place) if fetch::try_copy(&self.shared, place, part) => {}
                Some(_) => return Attempt::WouldBlock,
            }
        }
        Attempt::Done
    }

    async fn share_blocks(&self, range: BlockRange) -> Result<Vec<Bytes>> {
        let mut places = Vec::new();
        self.map.lookup(range, &mut places).await?;
        join_places(&mut places);
        near::share(&self.shared, places.into_iter().map(content)).await
    }

    /// As of [`BlockDevice::try_share`].
    fn try_share(self: &Arc<Self>, offset: u64, length: u64) -> Sharing {
        if self.check_range(offset, length).is_err() {
            return Sharing::Copy;
        }
        let range = BlockRange::covering(offset, length);
        let mut places = Vec::new();
        if !self.map.try_lookup(range, &mut places) {
            return Sharing::WouldBlock;
        }
        join_places(&mut places);
        let Some(parts) = near::try_share(&self.shared, places.into_iter().map(content)) else {
            return Sharing::WouldBlock;
        };
        self.note_hit(offset, length);
        Sharing::Parts(near::cut(parts, range.start, offset, length))
    }
}

fn content(found: PagePlace) -> Content {
    let count = found.range.count;
    found.place.map_or(Content::Zeros(count), |place| Content::Segment(place, count))
}

impl ReadsAhead for Inner {
    fn name(&self) -> String {
        self.id.to_string()
    }

    fn size(&self) -> u64 {
        self.map.size().0
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn reads(&self) -> &Mutex<ReadAhead> {
        &self.read_ahead
    }

    async fn bring_near(&self, offset: u64, length: u64) -> Result<()> {
        let mut loads = Loads::default();
        for range in near::steps(offset, length) {
            let mut places = Vec::new();
            self.map.lookup(range, &mut places).await?;
            join_places(&mut places);
            for found in places {
                if let Some(place) = found.place {
                    loads.begin(&self.shared, place, found.range.count.0);
                }
            }
        }
        loads.finish().await
    }
}

#[async_trait]
impl BlockDevice for FrozenDevice {
    fn geometry(&self) -> Geometry {
        frozen_geometry(self.0.map.size().0)
    }

    fn try_change(&self, changes: &[Change<&[u8]>], outcomes: &mut Vec<Attempt>) {
        outcomes.extend(changes.iter().map(|_| Attempt::Failed(self.0.refusal())));
    }

    async fn change(&self, _: Change<Bytes>) -> Result<()> {
        Err(self.0.refusal())
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Attempt {
        let length = buffer.len() as u64;
        if let Err(error) = self.0.check_range(offset, length) {
            return Attempt::Failed(error);
        }
        let mut blocks = WholeBlocks::around(offset, buffer);
        let outcome = self.0.try_read_blocks(blocks.range, blocks.bytes());
        blocks.finish();
        if matches!(outcome, Attempt::Done) {
            self.0.note_hit(offset, length);
        }
        outcome
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        near::copy_parts(&self.share(offset, buffer.len() as u64).await?, buffer);
        Ok(())
    }

    fn try_share(&self, offset: u64, length: u64) -> Sharing {
        self.0.try_share(offset, length)
    }

    async fn share(&self, offset: u64, length: u64) -> Result<Vec<Bytes>> {
        self.0.check_range(offset, length)?;
        near::check_read_length(length)?;
        self.0.note_stream(offset, length);
        let range = BlockRange::covering(offset, length);
        let parts = self.0.share_blocks(range).await?;
        Ok(near::cut(parts, range.start, offset, length))
    }

    /// Everything is in the store already.
    fn commit(&self, done: CommitDone) {
        done(Ok(()));
    }

    async fn prefetch(&self, offset: u64, length: u64) -> Result<()> {
        self.0.check_range(offset, length)?;
        self.0.bring_all_near(offset, length).await
    }

    async fn residence(&self, offset: u64, length: u64, extents_max: usize) -> Result<Vec<ResidenceExtent>> {
        self.0.check_range(offset, length)?;
        let mut residences = Residences::default();
        for part in near::residence_steps(offset, length) {
            if residences.len() > extents_max {
                break;
            }
            let mut places = Vec::new();
            self.0.map.lookup(BlockRange::covering(part.start, part.end - part.start), &mut places).await?;
            for found in places {
                let length = near::length_within(found.range, &part);
                match found.place {
                    None => residences.push(length, Residence::Hole),
                    Some(place) => residences.push_segment(&self.0.shared, place, length),
                }
            }
        }
        Ok(residences.finish(extents_max))
    }

    async fn changed_since(
        &self,
        snapshot: SnapshotId,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<ChangeExtent>> {
        self.0.check_range(offset, length)?;
        let other = self.0.compared.get(&self.0.shared, snapshot).await?;
        let range = BlockRange::covering(offset, length);
        let (changed, looked) = lineage::changes_within(&*other, &*self.0.map, range, extents_max).await?;
        Ok(near::change_extents(offset, offset + length, looked, &changed, extents_max))
    }
}

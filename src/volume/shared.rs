//! What all volumes of a daemon share: the store, the index, the cache, budgets and threads.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::cache::ReadCache;
use crate::checkpoint::KnownDirectories;
use crate::clean::Goal;
use crate::disk::Disk;
use crate::error::Result;
use crate::format::segment::{FrameEntry, SegmentIndex};
use crate::index::Index;
use crate::limits::SEGMENT_BYTES_TARGET;
use crate::segment::open_frame;
use crate::store::Store;
use crate::units::{ByteLen, FrameId, SegmentId, StoreId};
use crate::volume::fetch::SegmentIndexCache;
use crate::volume::first_reads::RunsNoted;
use crate::volume::frozen_device::FrozenMaps;
use crate::volume::keep::Waiting;
use crate::volume::packers::Packers;
use crate::volume::pages::PageBudget;
use crate::volume::places::PlacesBudget;
use crate::volume::warm::Warming;
use crate::work::Runtime;

/// How clean a volume is kept: its segments take at most 1.35 times what is in use in them, besides what a small volume may waste.
pub const CLEANING: Goal = Goal { percent: 135, slack: 64 << 20, fullest: 90 };
/// Volumes of a daemon that move blocks at the same time.
pub const CLEANERS: usize = 1;
/// Bytes of segments that are packed or uploaded at the same time, of all volumes together, in KiB: two full ones that cannot be
/// compressed, or twice as many of those that can. A longer one goes alone.
pub const UPLOADS_KIB_MAX: usize = (2 * SEGMENT_BYTES_TARGET as usize + (2 << 20)) >> 10;

/// How the engine is set up.
#[derive(Clone, Debug)]
pub struct EngineSettings {
    /// Length of each volume's write log, in bytes.
    pub log_length: ByteLen,
    /// How old a small amount of data may become before it is uploaded.
    pub segment_age: Duration,
    /// Segments after which a checkpoint is written.
    pub segments_per_checkpoint: u64,
    /// How clean each volume is kept.
    pub cleaning: Goal,
    /// Whether what is read first of volumes is noted, and brought before it is asked for.
    pub prefetch: bool,
    /// Path of this daemon's control socket, for the manifest's owner.
    pub control: String,
}

/// What the volumes of a daemon share.
pub struct Shared {
    /// For requests that a client waits for: patience is bounded.
    pub store: Arc<dyn Store>,
    /// Identity of the store.
    pub store_id: StoreId,
    /// The local disk.
    pub disk: Arc<dyn Disk>,
    /// Directory of the volumes' local files.
    pub volumes_directory: PathBuf,
    /// RocksDB.
    pub index: Arc<Index>,
    /// The read cache.
    pub cache: Arc<ReadCache>,
    /// Stored frames on their way into the disk part of the cache.
    pub waiting_for_disk: Arc<Waiting>,
    /// Room for segments on their way to the store, in KiB.
    pub uploads: Arc<Semaphore>,
    /// Indexes of segments, in memory.
    pub segment_indexes: SegmentIndexCache,
    /// Maps of the snapshots in use.
    pub frozen_maps: FrozenMaps,
    /// Memory of the places in the write logs.
    pub places: Arc<PlacesBudget>,
    /// Directories of checkpoints, in memory.
    pub directories: KnownDirectories,
    /// Memory of the map's pages.
    pub page_budget: Arc<PageBudget>,
    /// Threads that pack segments.
    pub packers: Packers,
    /// A volume that moves blocks to clean holds one: bounds memory.
    pub cleaners: Semaphore,
    /// Warming goes behind what clients wait for.
    pub warming: Warming,
    /// Bounds what is noted of first reads.
    pub runs_noted: Arc<RunsNoted>,
    /// The runtime of everything that waits.
    pub runtime: Runtime,
    /// Settings.
    pub settings: EngineSettings,
}

impl Shared {
    /// Verifies the stored bytes of a frame and returns its blocks.
    ///
    /// # Errors
    /// `Damaged`; `Denied` for a volume that was not unlocked.
    pub fn open_frame(&self, segment: SegmentId, number: u32, entry: &FrameEntry, stored: &Bytes) -> Result<Bytes> {
        open_frame(segment, number, entry, stored, self.store.key_of(segment.volume)?.as_deref())
    }
}

/// The weight of a segment index in its cache, by its memory.
#[derive(Clone, Copy, Debug)]
pub struct IndexWeight;

impl quick_cache::Weighter<SegmentId, Arc<SegmentIndex>> for IndexWeight {
    fn weight(&self, _: &SegmentId, index: &Arc<SegmentIndex>) -> u64 {
        index.memory_bytes() as u64
    }
}

/// The cache's slots, kept in RocksDB.
pub struct SlotsInIndex(pub Arc<Index>);

impl crate::cache::SlotIndex for SlotsInIndex {
    fn get(&self, frame: FrameId) -> Result<Option<u64>> {
        self.0.slot(frame)
    }

    fn get_many(&self, frames: &[FrameId]) -> Result<Vec<Option<u64>>> {
        self.0.slots(frames)
    }

    fn apply(&self, puts: &[(FrameId, u64)], deletes: &[FrameId]) -> Result<()> {
        self.0.apply_slots(puts, deletes)
    }

    fn clear(&self) -> Result<()> {
        self.0.clear_slots()
    }
}

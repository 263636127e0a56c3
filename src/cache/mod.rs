//! The read cache that all volumes of a daemon share: frames of segments, which never change, so nothing is ever
//! invalidated, and forks share what they have in common.
//!
//! | file | what |
//! | --- | --- |
//! | `memory`, `newcomers` | plain (decoded) frames in memory, and one fetch for each missing frame |
//! | `ring` | stored frames (compressed, encrypted) on the local disk: insert, read, switch off |
//! | `rotate` | the ring's writer: what is kept and what dies when the ring comes round |
//! | `door` | what may enter the ring while what it holds is in use |
//! | `recover` | the ring's file: created, or found and carried on with |
//! | `chunk` | the buffered chunks of the ring that reads can see, and the marks of what was read |
//!
//! Owns: one file of the state directory, and the meaning of the index of slots (kept elsewhere, behind [`SlotIndex`]).
//! Guarantees: neither part exceeds its budget; a frame is given out only after its checksum, its name and its place
//! were verified (the memory part holds what its users verified and decoded); exactly one of those who ask for a
//! missing frame fetches it.
//! Errors: none reach the caller. A damaged entry is a miss; when the disk or the index fails, the disk part
//! switches itself off, says so once, and everything else goes on. Nothing here retries.
//! After a crash: entries verify themselves, so index and file may be of different age; what does not match is a miss.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::Disk;
use crate::error::Result;
use crate::units::{ByteLen, FrameId};

mod chunk;
mod door;
mod memory;
mod newcomers;
mod recover;
mod ring;
mod rotate;
#[cfg(test)]
mod tests;

pub use memory::{Claim, Lead, MemoryStatistics, Wait};
pub use ring::DiskStatistics;

use memory::MemoryCache;
use ring::RingCache;

/// The index of slots: which frame is where in the ring. It may forget (then frames are missed) and may lag behind or
/// run ahead of the ring; what it says is verified. The integers mean nothing to it.
pub trait SlotIndex: Send + Sync + 'static {
    /// The slot of a frame.
    ///
    /// # Errors
    /// If the index cannot be read; the disk part then switches itself off.
    fn get(&self, frame: FrameId) -> Result<Option<u64>>;

    /// The slots of several frames, in their order.
    ///
    /// # Errors
    /// As [`SlotIndex::get`].
    fn get_many(&self, frames: &[FrameId]) -> Result<Vec<Option<u64>>>;

    /// Deletes some slots, then puts others, all at once.
    ///
    /// # Errors
    /// If the index cannot be written; the disk part then switches itself off.
    fn apply(&self, puts: &[(FrameId, u64)], deletes: &[FrameId]) -> Result<()>;

    /// Deletes all slots.
    ///
    /// # Errors
    /// As [`SlotIndex::apply`].
    fn clear(&self) -> Result<()>;
}

/// What a read cache needs to know.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// Budget of the memory part.
    pub memory: ByteLen,
    /// Budget of the disk part; the file is never longer. 0 switches it off.
    pub disk: ByteLen,
    /// The file of the disk part; its directory must exist.
    pub path: PathBuf,
}

/// What the cache did since it was opened, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheStatistics {
    /// The memory part.
    pub memory: MemoryStatistics,
    /// The disk part.
    pub disk: DiskStatistics,
}

/// The read cache. Share it by `Arc`.
pub struct ReadCache {
    memory: Arc<MemoryCache>,
    ring: RingCache,
}

impl ReadCache {
    /// Opens the cache, carrying on with what the file holds; a file that is damaged, of another size or version is
    /// made anew. Never fails: without a usable file (no space, no permission) only the memory part works, and the log
    /// and [`DiskStatistics::off`] say why. Blocking.
    pub fn open(settings: &CacheSettings, disk: &dyn Disk, index: Arc<dyn SlotIndex>) -> Self {
        let memory = Arc::new(MemoryCache::new(settings.memory));
        let warm = Arc::clone(&memory);
        let is_warm = Box::new(move |frame: FrameId| warm.contains(frame));
        let ring = RingCache::open(disk, &settings.path, settings.disk, index, is_warm);
        ReadCache { memory, ring }
    }

    /// A plain frame from memory.
    pub fn get(&self, frame: FrameId) -> Option<Bytes> {
        self.memory.get(frame)
    }

    /// A plain frame from memory, or the duty to fetch it, or the wait for whoever has that duty. The one who leads
    /// looks into the disk part ([`ReadCache::read_stored`]), then the store, decodes, and fills.
    ///
    /// A request may hold several leads while it fetches, but it must fill or drop all of them before it waits for
    /// another's; so no two requests ever wait for each other.
    pub fn claim(&self, frame: FrameId) -> Claim {
        self.memory.claim(frame)
    }

    /// How much of what is new to the memory part stays at least, before newer frames push it out.
    pub fn room_for_the_new(&self) -> ByteLen {
        self.memory.room_for_the_new()
    }

    /// True if the disk part keeps what it is given.
    pub fn keeps_on_disk(&self) -> bool {
        self.ring.is_on()
    }

    /// True if neither part has anything yet.
    pub fn is_empty(&self) -> bool {
        self.ring.statistics().used.0 == 0 && self.memory.statistics().frames == 0
    }

    /// Stored bytes that may be brought in ahead of those who read them: what is free in the disk part, or half of it if that is more, since
    /// whatever was read stays then. Without a disk part: what is new to the memory part and stays.
    pub fn room_to_warm(&self) -> ByteLen {
        let ring = self.ring.statistics();
        if ring.off.is_some() {
            return ByteLen(self.room_for_the_new().0 / 2);
        }
        ByteLen(ring.budget.0.saturating_sub(ring.used.0).max(ring.budget.0 / 2))
    }

    /// Puts a plain frame into memory that was not claimed (read-ahead, or what was just packed). `bytes` should own
    /// its memory: a slice of a longer buffer keeps all of that alive, which the budget does not see.
    pub fn insert_plain(&self, frame: FrameId, bytes: Bytes) {
        self.memory.insert(frame, bytes);
    }

    /// Puts a frame in its stored form into the disk part, unless it is there. Blocking, most calls just copy;
    /// one in a chunk's worth writes that chunk. A frame over 256 KiB is not kept.
    pub fn insert_stored(&self, frame: FrameId, stored: &[u8]) {
        self.ring.insert(frame, stored);
    }

    /// As [`ReadCache::insert_stored`] of a frame that was looked for there and not found, if that is just a copy. False if nothing was done.
    pub fn try_insert_stored(&self, frame: FrameId, stored: &[u8]) -> bool {
        self.ring.try_insert(frame, stored)
    }

    /// True if the disk part is to be given a frame that somebody asked for and that it does not have: while what it holds is in use, frames
    /// that are asked for once stay outside. Notes that it was asked for.
    pub fn admits(&self, frame: FrameId) -> bool {
        self.ring.admits(frame)
    }

    /// A frame in its stored form from the disk part, verified. Blocking.
    pub fn read_stored(&self, frame: FrameId) -> Option<Bytes> {
        self.ring.read(frame)
    }

    /// As [`ReadCache::read_stored`], but only if that takes no waiting for the disk.
    pub fn try_read_stored(&self, frame: FrameId) -> Option<Bytes> {
        self.ring.try_read(frame)
    }

    /// Forgets a frame of the disk part, since what it holds could not be decoded.
    pub fn discard_stored(&self, frame: FrameId) {
        self.ring.discard(frame);
    }

    /// True if the frame is in memory or, by the index, on disk. Reads no frame; brief, but may read the index: call it
    /// from where blocking is allowed if there are many.
    pub fn contains(&self, frame: FrameId) -> bool {
        self.memory.contains(frame) || self.ring.contains(frame)
    }

    /// Writes out what the disk part has buffered and where it stands, so that a restart finds it. Blocking. Also done
    /// on drop.
    pub fn flush(&self) {
        self.ring.flush();
    }

    /// What it did and what it holds.
    pub fn statistics(&self) -> CacheStatistics {
        CacheStatistics { memory: self.memory.statistics(), disk: self.ring.statistics() }
    }
}

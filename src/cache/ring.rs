//! The disk part: one preallocated file, written as a ring of chunks of 1 MiB, and reads from it.
//!
//! The ring is the newest part of an endless stream of chunks. One chunk is being filled in memory (active); when it
//! is full it is sealed: written in one go, then named in the index (`rotate`). A frame is looked for in the buffers,
//! then through the index in the file. What the index says is believed only as far as the entry there confirms it.
//!
//! Locks: `writer` is held by the one who seals, opens a chunk or changes the index; `buffers` is taken inside it,
//! briefly, and never the other way round. Reads take `buffers` alone, unless they find something to remove.
//!
//! No data is ever synced: after power loss what is torn or missing fails its checksum and is a miss.

use std::io::IoSliceMut;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::cache::SlotIndex;
use crate::cache::chunk::{ChunkBuffer, Geometry, Marks};
use crate::cache::door::Door;
use crate::cache::recover;
use crate::disk::{Disk, DiskFile};
use crate::error::{Context, Result};
use crate::format::cache::{Slot, decode_entry, entry_bytes};
use crate::units::{ByteLen, FrameId};

/// Says whether the memory part holds a frame: such a frame is in use, though reads of it never reach the disk.
pub type IsWarm = Box<dyn Fn(FrameId) -> bool + Send + Sync>;

/// What the disk part did since it was opened, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskStatistics {
    /// Reads that found their frame.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Bytes of stored frames that hits gave.
    pub hit_bytes: u64,
    /// Frames inserted.
    pub inserted: u64,
    /// Frames that were written again when the ring came round, since they had been read.
    pub kept: u64,
    /// Frames that left when the ring came round.
    pub dropped: u64,
    /// Frames too long to be kept.
    pub refused: u64,
    /// Slots that did not hold what the index said and had not been overwritten: damage, or a crash.
    pub damaged: u64,
    /// Failures of the disk or the index. After the first the disk part is off.
    pub failures: u64,
    /// Bytes of the ring in use.
    pub used: ByteLen,
    /// The budget; the file is never longer.
    pub budget: ByteLen,
    /// Why the disk part is off, if it is.
    pub off: Option<String>,
}

#[derive(Default)]
pub(super) struct Counters {
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub hit_bytes: AtomicU64,
    pub inserted: AtomicU64,
    pub kept: AtomicU64,
    pub dropped: AtomicU64,
    pub refused: AtomicU64,
    pub damaged: AtomicU64,
    pub failures: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What is in memory of the stream, and which part of it is on disk.
#[derive(Default)]
pub(super) struct Buffers {
    /// The chunk being filled. None before the first insert after an open or a flush.
    pub active: Option<ChunkBuffer>,
    /// The chunk being written.
    pub sealed: Option<Arc<ChunkBuffer>>,
    /// The first chunk whose bytes are on disk and may be read.
    pub oldest: u64,
    /// The chunk after the last such one.
    pub written_end: u64,
}

impl Buffers {
    fn get(&self, frame: FrameId) -> Option<(Slot, Bytes)> {
        let active = self.active.as_ref().and_then(|chunk| chunk.get(frame));
        active.or_else(|| self.sealed.as_ref().and_then(|chunk| chunk.get(frame)))
    }

    fn contains(&self, frame: FrameId) -> bool {
        self.active.as_ref().is_some_and(|chunk| chunk.contains(frame))
            || self.sealed.as_ref().is_some_and(|chunk| chunk.contains(frame))
    }

    fn is_readable(&self, slot: Slot) -> bool {
        (self.oldest..self.written_end).contains(&slot.position.chunk())
    }
}

/// What only the one who writes needs.
pub(super) struct Writer {
    /// Number of the last superblock written.
    pub superblock: u64,
    /// Bytes that may be kept when the ring comes round; see `rotate`.
    pub credit: u64,
    /// Chunks opened in a row of which more than half was kept.
    pub crowded: u32,
    /// A chunk's memory, to be used again: fresh memory costs more than what is put into it.
    pub spare: Option<ChunkBuffer>,
}

/// The parts of a ring that is open.
pub(super) struct Ring {
    pub file: Arc<dyn DiskFile>,
    pub identity: u64,
    pub geometry: Geometry,
    pub marks: Marks,
    pub door: Door,
    pub index: Arc<dyn SlotIndex>,
    pub is_warm: IsWarm,
    pub buffers: RwLock<Buffers>,
    pub writer: Mutex<Writer>,
    pub counters: Counters,
}

/// What reading a slot brought.
enum SlotRead {
    Whole(Bytes),
    /// Not what the index says.
    Mismatch,
}

/// The disk part, working or switched off.
pub struct RingCache {
    ring: Option<Ring>,
    budget: ByteLen,
    is_off: AtomicBool,
    why_off: Mutex<Option<String>>,
}

impl RingCache {
    /// Opens or creates the file. If that cannot be done, the disk part is off and says why.
    pub fn open(disk: &dyn Disk, path: &Path, budget: ByteLen, index: Arc<dyn SlotIndex>, is_warm: IsWarm) -> Self {
        let closed = |why: Option<String>| RingCache {
            ring: None,
            budget,
            is_off: AtomicBool::new(true),
            why_off: Mutex::new(why),
        };
        if budget.0 == 0 {
            return closed(Some("it is switched off in the settings".into()));
        }
        match recover::open(disk, path, budget, index, is_warm) {
            Ok(ring) => {
                RingCache { ring: Some(ring), budget, is_off: AtomicBool::new(false), why_off: Mutex::new(None) }
            }
            Err(error) => {
                let cache = closed(None);
                cache.turn_off(&error.to_string());
                cache
            }
        }
    }

    /// True if it keeps what it is given.
    pub fn is_on(&self) -> bool {
        self.ring.is_some() && !self.is_off.load(Ordering::Acquire)
    }

    /// Adds a frame unless it is there. Blocking.
    pub fn insert(&self, frame: FrameId, stored: &[u8]) {
        self.guarded(|ring| ring.insert(frame, stored));
    }

    /// Adds a frame that is not there, if that takes no waiting for the disk. False if it does.
    pub fn try_insert(&self, frame: FrameId, stored: &[u8]) -> bool {
        self.guarded(|ring| Ok(entry_bytes(stored.len()).is_some() && ring.try_append(frame, stored))) == Some(true)
    }

    /// True if a frame that was asked for is to be added.
    pub fn admits(&self, frame: FrameId) -> bool {
        self.ring.as_ref().is_none_or(|ring| ring.door.admits(frame))
    }

    /// A frame in its stored form. Blocking.
    pub fn read(&self, frame: FrameId) -> Option<Bytes> {
        self.guarded(|ring| ring.read(frame)).flatten()
    }

    /// A frame, if that takes no waiting for the disk; it may be there nevertheless.
    pub fn try_read(&self, frame: FrameId) -> Option<Bytes> {
        self.guarded(|ring| ring.try_read(frame)).flatten()
    }

    /// Forgets a frame.
    pub fn discard(&self, frame: FrameId) {
        self.guarded(|ring| {
            count(&ring.counters.damaged);
            ring.remove(frame, None)
        });
    }

    /// True if the frame is buffered or named by the index.
    pub fn contains(&self, frame: FrameId) -> bool {
        self.guarded(|ring| ring.contains(frame)).unwrap_or(false)
    }

    /// Writes out what is buffered, and the superblock.
    pub fn flush(&self) {
        self.guarded(Ring::flush);
    }

    /// What it did and what it holds.
    pub fn statistics(&self) -> DiskStatistics {
        let mut statistics =
            DiskStatistics { budget: self.budget, off: self.why_off.lock().clone(), ..Default::default() };
        if let Some(ring) = &self.ring {
            ring.fill_statistics(&mut statistics);
        }
        statistics
    }

    /// Runs `work` if the disk part is on, and switches it off if that fails.
    fn guarded<T>(&self, work: impl FnOnce(&Ring) -> Result<T>) -> Option<T> {
        let ring = self.ring.as_ref().filter(|_| self.is_on())?;
        match work(ring) {
            Ok(done) => Some(done),
            Err(error) => {
                count(&ring.counters.failures);
                self.turn_off(&error.to_string());
                // What is buffered will not be read again.
                let mut buffers = ring.buffers.write();
                (buffers.active, buffers.sealed) = (None, None);
                None
            }
        }
    }

    fn turn_off(&self, why: &str) {
        let mut why_off = self.why_off.lock();
        self.is_off.store(true, Ordering::Release);
        if why_off.is_none() {
            tracing::warn!(
                "the disk part of the read cache is off until the next start, reads go to the store instead: {why}"
            );
            *why_off = Some(why.to_owned());
        }
    }
}

impl Drop for RingCache {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Ring {
    fn insert(&self, frame: FrameId, stored: &[u8]) -> Result<()> {
        if entry_bytes(stored.len()).is_none() {
            count(&self.counters.refused);
            return Ok(());
        }
        if self.contains(frame)? {
            return Ok(());
        }
        while !self.try_append(frame, stored) {
            let mut writer = self.writer.lock();
            // Whoever held the lock before may have made room.
            if self.try_append(frame, stored) {
                break;
            }
            self.rotate(&mut writer)?;
        }
        Ok(())
    }

    /// Appends the frame to the active chunk if there is room (or it is buffered already).
    fn try_append(&self, frame: FrameId, stored: &[u8]) -> bool {
        let mut buffers = self.buffers.write();
        if buffers.contains(frame) {
            return true;
        }
        let Some(active) = buffers.active.as_mut().filter(|chunk| chunk.has_room(stored.len())) else {
            return false;
        };
        active.append(frame, stored);
        count(&self.counters.inserted);
        true
    }

    fn read(&self, frame: FrameId) -> Result<Option<Bytes>> {
        let found = self.find(frame)?;
        match &found {
            Some(bytes) => self.note_hit(bytes),
            None => count(&self.counters.misses),
        }
        Ok(found)
    }

    /// As `read`, but only what takes no waiting for the disk: whatever is unusual is left to `read`.
    fn try_read(&self, frame: FrameId) -> Result<Option<Bytes>> {
        let buffered = self.buffers.read().get(frame);
        let found = match buffered {
            Some(found) => Some(found),
            None => self.try_read_slot(frame)?,
        };
        Ok(found.map(|(slot, bytes)| {
            self.marks.set(slot);
            self.note_hit(&bytes);
            bytes
        }))
    }

    fn try_read_slot(&self, frame: FrameId) -> Result<Option<(Slot, Bytes)>> {
        let slot = self.index.get(frame)?.and_then(Slot::unpacked);
        let Some(slot) = slot.filter(|&slot| self.buffers.read().is_readable(slot)) else { return Ok(None) };
        let mut bytes = vec![0; slot.bytes() as usize];
        let offset = self.geometry.file_offset(slot.position);
        if !self.file.try_read_at(&mut bytes, offset).context(|| describe_read(slot, offset))? {
            return Ok(None);
        }
        Ok(match self.confirm(frame, slot, bytes) {
            SlotRead::Whole(bytes) => Some((slot, bytes)),
            SlotRead::Mismatch => None,
        })
    }

    fn note_hit(&self, bytes: &Bytes) {
        count(&self.counters.hits);
        self.counters.hit_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    fn find(&self, frame: FrameId) -> Result<Option<Bytes>> {
        // A second look, since the ring may come round between the index and the read, and what was kept is then
        // elsewhere.
        for _ in 0..2 {
            if let Some((slot, bytes)) = self.buffers.read().get(frame) {
                self.marks.set(slot);
                return Ok(Some(bytes));
            }
            let Some(packed) = self.index.get(frame)? else { return Ok(None) };
            let Some(slot) = Slot::unpacked(packed).filter(|&slot| self.buffers.read().is_readable(slot)) else {
                self.remove(frame, Some(packed))?;
                continue;
            };
            match self.read_slot(frame, slot)? {
                SlotRead::Whole(bytes) => {
                    self.marks.set(slot);
                    return Ok(Some(bytes));
                }
                SlotRead::Mismatch if self.buffers.read().is_readable(slot) => {
                    count(&self.counters.damaged);
                    tracing::debug!(?frame, "a damaged entry of the read cache is a miss");
                    self.remove(frame, Some(packed))?;
                    return Ok(None);
                }
                SlotRead::Mismatch => {}
            }
        }
        Ok(None)
    }

    fn read_slot(&self, frame: FrameId, slot: Slot) -> Result<SlotRead> {
        let mut bytes = vec![0; slot.bytes() as usize];
        let offset = self.geometry.file_offset(slot.position);
        self.file.read_at(&mut [IoSliceMut::new(&mut bytes)], offset).context(|| describe_read(slot, offset))?;
        Ok(self.confirm(frame, slot, bytes))
    }

    /// Whether the bytes of a slot are what the index says.
    fn confirm(&self, frame: FrameId, slot: Slot, bytes: Vec<u8>) -> SlotRead {
        let entry = decode_entry(self.identity, slot.position, &bytes);
        match entry.filter(|entry| entry.frame == frame && entry.slot == slot) {
            Some(entry) => SlotRead::Whole(Bytes::from(bytes).slice(entry.payload)),
            None => SlotRead::Mismatch,
        }
    }

    /// Forgets a frame: wherever it is, or only if the index still says `packed`.
    fn remove(&self, frame: FrameId, packed: Option<u64>) -> Result<()> {
        let _writer = self.writer.lock();
        let Some(packed) = packed else {
            if let Some(active) = &mut self.buffers.write().active {
                active.remove(frame);
            }
            return self.index.apply(&[], &[frame]);
        };
        // A chunk that was sealed meanwhile is readable by now, and then the index may be right after all.
        let is_readable = Slot::unpacked(packed).is_some_and(|slot| self.buffers.read().is_readable(slot));
        let is_damaged_or_gone =
            self.index.get(frame)? == Some(packed) && !self.is_whole(frame, packed, is_readable)?;
        if is_damaged_or_gone { self.index.apply(&[], &[frame]) } else { Ok(()) }
    }

    fn is_whole(&self, frame: FrameId, packed: u64, is_readable: bool) -> Result<bool> {
        match Slot::unpacked(packed).filter(|_| is_readable) {
            Some(slot) => Ok(matches!(self.read_slot(frame, slot)?, SlotRead::Whole(_))),
            None => Ok(false),
        }
    }

    fn contains(&self, frame: FrameId) -> Result<bool> {
        if self.buffers.read().contains(frame) {
            return Ok(true);
        }
        let slot = self.index.get(frame)?.and_then(Slot::unpacked);
        Ok(slot.is_some_and(|slot| self.buffers.read().is_readable(slot)))
    }

    fn fill_statistics(&self, statistics: &mut DiskStatistics) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        statistics.hits = load(&self.counters.hits);
        statistics.misses = load(&self.counters.misses);
        statistics.hit_bytes = load(&self.counters.hit_bytes);
        statistics.inserted = load(&self.counters.inserted);
        statistics.kept = load(&self.counters.kept);
        statistics.dropped = load(&self.counters.dropped);
        statistics.refused = load(&self.counters.refused);
        statistics.damaged = load(&self.counters.damaged);
        statistics.failures = load(&self.counters.failures);
        let buffers = self.buffers.read();
        statistics.used = ByteLen((buffers.written_end - buffers.oldest) * crate::format::cache::CHUNK_BYTES);
    }
}

fn describe_read(slot: Slot, offset: u64) -> String {
    format!("reading {} bytes at {offset} of the read cache's file", slot.bytes())
}

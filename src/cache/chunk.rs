//! Parts of the ring that live in memory: a chunk being filled, which reads can see, and the marks of what was read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::disk::DIRECT_BYTES;
use crate::format::cache::{CHUNK_BYTES, HEADER_BYTES, RING_START, RingPosition, Slot, encode_entry, entry_bytes};
use crate::units::FrameId;

/// Bytes of the ring that share one mark: small enough for one frame, and so coarse that 100 GB take 3 MiB of marks.
const MARK_BYTES: u64 = 4096;
const MARKS_PER_CHUNK: u64 = CHUNK_BYTES / MARK_BYTES;
const WORDS_PER_CHUNK: u64 = MARKS_PER_CHUNK / 64;

const _: () = assert!(MARKS_PER_CHUNK.is_multiple_of(64));

/// A chunk that is not on disk yet: its bytes as they will be there, and what they hold.
pub struct ChunkBuffer {
    ring: u64,
    chunk: u64,
    bytes: Vec<u8>,
    /// Where the chunk begins in `bytes`: at a place from which a disk takes it without a copy.
    start: usize,
    entries: BTreeMap<FrameId, (Slot, usize)>,
}

impl ChunkBuffer {
    /// An empty chunk, by its number in the stream of a ring; in the memory of one that is not needed any more, if there is one.
    pub fn new(old: Option<ChunkBuffer>, ring: u64, chunk: u64) -> Self {
        let mut bytes = old.map_or_else(|| Vec::with_capacity(CHUNK_BYTES as usize + DIRECT_BYTES), |old| old.bytes);
        bytes.clear();
        // It never grows beyond its capacity, and so stays where it is.
        let start = bytes.as_ptr().align_offset(DIRECT_BYTES).min(DIRECT_BYTES);
        bytes.resize(start, 0);
        ChunkBuffer { ring, chunk, bytes, start, entries: BTreeMap::new() }
    }

    fn length(&self) -> u64 {
        (self.bytes.len() - self.start) as u64
    }

    /// Nothing is added any more: fills it up to what a disk takes past the page cache.
    pub fn seal(&mut self) {
        let length = self.bytes().len().next_multiple_of(DIRECT_BYTES);
        self.bytes.resize(self.start + length, 0);
    }

    /// True if a frame of `length` stored bytes fits.
    pub fn has_room(&self, length: usize) -> bool {
        entry_bytes(length).is_some_and(|bytes| self.length() + bytes <= CHUNK_BYTES)
    }

    /// Adds a frame, for which there must be room, and returns the bytes that it takes.
    pub fn append(&mut self, frame: FrameId, stored: &[u8]) -> u64 {
        assert!(self.has_room(stored.len()), "the caller looks for room");
        let position = RingPosition(RingPosition::of_chunk(self.chunk).0 + self.length());
        let slot = encode_entry(self.ring, position, frame, stored, &mut self.bytes);
        self.entries.insert(frame, (slot, stored.len()));
        slot.bytes()
    }

    /// A frame's slot and bytes.
    pub fn get(&self, frame: FrameId) -> Option<(Slot, Bytes)> {
        let &(slot, length) = self.entries.get(&frame)?;
        let start = self.start + (slot.position.0 % CHUNK_BYTES) as usize + HEADER_BYTES;
        Some((slot, Bytes::copy_from_slice(&self.bytes[start..start + length])))
    }

    /// True if it holds the frame.
    pub fn contains(&self, frame: FrameId) -> bool {
        self.entries.contains_key(&frame)
    }

    /// Forgets a frame; its bytes stay and mean nothing.
    pub fn remove(&mut self, frame: FrameId) {
        self.entries.remove(&frame);
    }

    /// True if nothing was added.
    pub fn is_empty(&self) -> bool {
        self.length() == 0
    }

    /// Its number in the stream.
    pub fn chunk(&self) -> u64 {
        self.chunk
    }

    /// Its bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// What it holds, as the index of slots keeps it.
    pub fn slots(&self) -> Vec<(FrameId, u64)> {
        self.entries.iter().map(|(&frame, &(slot, _))| (frame, slot.packed())).collect()
    }
}

/// Where the chunks of a ring are in its file.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Chunks in the ring, at least 1.
    pub chunks: u64,
}

impl Geometry {
    /// Length of the file.
    pub fn file_bytes(self) -> u64 {
        RING_START + self.chunks * CHUNK_BYTES
    }

    /// Where a position of the stream is in the file.
    pub fn file_offset(self, position: RingPosition) -> u64 {
        RING_START + position.0 % (self.chunks * CHUNK_BYTES)
    }
}

/// One bit for every 4 KiB of the ring: was an entry that begins there read since it was written?
pub struct Marks {
    geometry: Geometry,
    words: Vec<AtomicU64>,
}

impl Marks {
    /// Nothing was read.
    pub fn new(geometry: Geometry) -> Self {
        let words = (0..geometry.chunks * WORDS_PER_CHUNK).map(|_| AtomicU64::new(0)).collect();
        Marks { geometry, words }
    }

    fn place(&self, slot: Slot) -> (&AtomicU64, u64) {
        let mark = (self.geometry.file_offset(slot.position) - RING_START) / MARK_BYTES;
        (&self.words[(mark / 64) as usize], 1 << (mark % 64))
    }

    /// The entry was read.
    pub fn set(&self, slot: Slot) {
        let (word, bit) = self.place(slot);
        // Most hits are not the first: a look spares the write, and with it the other cores' caches.
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Was it?
    pub fn is_set(&self, slot: Slot) -> bool {
        let (word, bit) = self.place(slot);
        word.load(Ordering::Relaxed) & bit != 0
    }

    /// Nothing of this chunk was read.
    pub fn clear_chunk(&self, chunk: u64) {
        let first = (chunk % self.geometry.chunks) * WORDS_PER_CHUNK;
        for word in &self.words[first as usize..(first + WORDS_PER_CHUNK) as usize] {
            word.store(0, Ordering::Relaxed);
        }
    }
}

//! The writer of the ring. Called with the writer lock held, so there is one at a time.
//!
//! Order, sealing chunk `c`: 1. its bytes go to the file; 2. the index learns its slots, all at once; 3. the chunk
//! counts as written and its buffer is let go. Reads find every frame at every moment: in the buffer until 3, by the
//! index from 2 on.
//!
//! Order, opening chunk `n` of a ring of `N`: 1. the bytes of chunk `n - N`, in whose place it will be written, are
//! read; 2. what was read from it since it was written, or is in memory, is copied into the new chunk; 3. the rest
//! leaves the index; 4. the new chunk becomes active and the old one unreadable. Nothing is overwritten before the new
//! chunk is sealed: a crash loses no survivor.
//!
//! How much may be kept: every chunk opened earns credit for half a chunk, up to a quarter of the ring, and keeping
//! spends it; so in the long run at most half of what is written is kept, while a dense run of hot frames is kept
//! whole. After three crowded chunks in a row the next one leaves half its room to whoever is waiting: an insert
//! writes at most four chunks.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cache::chunk::ChunkBuffer;
use crate::cache::ring::{Ring, Writer, count};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::cache::{
    CHUNK_BYTES, CHUNKS_MAX, RingPosition, SUPERBLOCK_BYTES, Superblock, entries_of_chunk, entry_bytes,
};

/// What a chunk earns, and what an insert can count on after crowded chunks. Longer than the longest entry.
const HALF_CHUNK: u64 = CHUNK_BYTES / 2;
/// Crowded chunks in a row, at most.
const CROWDED_MAX: u32 = 3;
/// Chunks between superblocks, at most. What is younger is found at open by looking, a small read each.
const SUPERBLOCK_EVERY_MAX: u64 = 64;

/// The credit that may gather in a ring of so many chunks.
pub fn credit_max(chunks: u64) -> u64 {
    chunks * CHUNK_BYTES / 4
}

/// Chunks between superblocks: even the older of the two copies must not be a round behind, or the end is not found.
fn superblock_every(chunks: u64) -> u64 {
    (chunks / 4).clamp(1, SUPERBLOCK_EVERY_MAX)
}

impl Ring {
    /// Seals the active chunk, if there is one, and opens the next.
    pub(super) fn rotate(&self, writer: &mut Writer) -> Result<()> {
        self.seal(writer)?;
        self.open_next(writer)
    }

    /// Seals the active chunk and writes the superblock.
    pub(super) fn flush(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        self.seal(&mut writer)?;
        self.write_superblock(&mut writer)
    }

    fn seal(&self, writer: &mut Writer) -> Result<()> {
        let full = {
            let mut buffers = self.buffers.write();
            // An empty chunk need not be written; it is opened again.
            let Some(mut full) = buffers.active.take().filter(|chunk| !chunk.is_empty()) else {
                return Ok(());
            };
            full.seal();
            let full = Arc::new(full);
            buffers.sealed = Some(Arc::clone(&full));
            full
        };
        let offset = self.geometry.file_offset(RingPosition::of_chunk(full.chunk()));
        self.file
            .write_around(full.bytes(), offset)
            .context(|| format!("writing {} bytes at {offset} of the read cache's file", full.bytes().len()))?;
        self.index.apply(&full.slots(), &[])?;
        let written_end = {
            let mut buffers = self.buffers.write();
            buffers.sealed = None;
            buffers.written_end = full.chunk() + 1;
            buffers.written_end
        };
        writer.spare = Arc::try_unwrap(full).ok();
        if written_end.is_multiple_of(superblock_every(self.geometry.chunks)) {
            self.write_superblock(writer)?;
        }
        Ok(())
    }

    fn open_next(&self, writer: &mut Writer) -> Result<()> {
        let next = self.buffers.read().written_end;
        if next >= CHUNKS_MAX {
            return Err(Error::new(ErrorKind::Full, "the read cache's ring has no positions left: delete its file"));
        }
        let mut chunk = ChunkBuffer::new(writer.spare.take(), self.identity, next);
        let replaced = next.checked_sub(self.geometry.chunks);
        if let Some(replaced) = replaced {
            self.keep_what_is_hot(writer, replaced, &mut chunk)?;
        }
        self.marks.clear_chunk(next);
        let mut buffers = self.buffers.write();
        buffers.oldest = replaced.map_or(buffers.oldest, |replaced| replaced + 1);
        buffers.active = Some(chunk);
        Ok(())
    }

    /// Copies what is hot in the old chunk into the new one as far as credit goes, and takes the rest out of the index.
    fn keep_what_is_hot(&self, writer: &mut Writer, old: u64, new: &mut ChunkBuffer) -> Result<()> {
        let bytes = self.read_chunk(old)?;
        let found: Vec<_> = entries_of_chunk(self.identity, old, &bytes).collect();
        let frames: Vec<_> = found.iter().map(|(_, entry)| entry.frame).collect();
        let slots = self.index.get_many(&frames)?;
        writer.credit = (writer.credit + HALF_CHUNK).min(credit_max(self.geometry.chunks));
        let most = if writer.crowded < CROWDED_MAX { CHUNK_BYTES } else { HALF_CHUNK };
        let allowed = writer.credit.min(most);
        let (mut kept, mut in_use) = (0, 0);
        let mut dead = Vec::new();
        for ((offset, entry), slot) in found.into_iter().zip(slots) {
            // The index may name a newer copy, or none.
            if slot != Some(entry.slot.packed()) {
                continue;
            }
            let stored = &bytes[offset..][entry.payload];
            let fits = entry_bytes(stored.len()).is_some_and(|bytes| kept + bytes <= allowed);
            let is_used = self.marks.is_set(entry.slot) || (self.is_warm)(entry.frame);
            in_use += if is_used { entry.slot.bytes() } else { 0 };
            if fits && is_used {
                kept += new.append(entry.frame, stored);
                count(&self.counters.kept);
            } else {
                dead.push(entry.frame);
            }
        }
        self.door.note_replaced(in_use);
        writer.credit -= kept;
        writer.crowded = if kept > HALF_CHUNK { writer.crowded + 1 } else { 0 };
        self.counters.dropped.fetch_add(dead.len() as u64, Ordering::Relaxed);
        self.index.apply(&[], &dead)
    }

    /// The bytes of a chunk as the file has them.
    pub(super) fn read_chunk(&self, chunk: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; CHUNK_BYTES as usize];
        let offset = self.geometry.file_offset(RingPosition::of_chunk(chunk));
        self.file
            .read_at(&mut [IoSliceMut::new(&mut bytes)], offset)
            .context(|| format!("reading a chunk at {offset} of the read cache's file"))?;
        Ok(bytes)
    }

    /// Notes how far the ring is written. Two copies take turns, so that a torn one leaves the other.
    pub(super) fn write_superblock(&self, writer: &mut Writer) -> Result<()> {
        let superblock = Superblock {
            number: writer.superblock + 1,
            ring: self.identity,
            chunks: self.geometry.chunks,
            next_chunk: self.buffers.read().written_end,
        };
        let offset = superblock.number % 2 * SUPERBLOCK_BYTES;
        self.file
            .write_at(&[IoSlice::new(&superblock.encode())], offset)
            .context(|| "writing the superblock of the read cache's file")?;
        writer.superblock = superblock.number;
        Ok(())
    }
}

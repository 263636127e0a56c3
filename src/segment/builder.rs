//! Building a segment in one pass: blocks come in block order and are cut into frames, compressed where it pays.
//!
//! Memory: the object's own bytes (reserved for the case that nothing can be compressed) and one frame. Compression is skipped where it does not pay: a frame that
//! shrinks by less than an eighth is stored as it is, and after several such frames in a row only
//! every eighth is tried until one pays again.

use std::sync::Arc;

use bytes::Bytes;

use crate::clock;
use crate::compression;
use crate::error::{Error, Result};
use crate::format::segment::{
    Codec, EntryKind, FrameEntry, HEADER_BYTES, IndexEntry, IndexSeal, SegmentHeader, SegmentIndex, encode_header,
    encode_tail,
};
use crate::limits::FRAME_BLOCKS;
use crate::map::SegmentPlace;
use crate::seal::{FrameSeal, ObjectSealer, Salt, VolumeKey};
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange, Lba};

const FRAME_BYTES: usize = (FRAME_BLOCKS * BLOCK_SIZE) as usize;
/// A block that reads as zero.
const ZERO_BLOCK: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];
/// After this many frames in a row that did not pay, most are not tried.
const FUTILE_FRAMES: u32 = 4;
const TRY_EVERY: u32 = 8;
/// Room for the index of an ordinary segment, besides that for its frames.
const TAIL_ROOM: usize = 256 << 10;

/// A segment, ready to be uploaded.
#[derive(Clone, Debug)]
pub struct BuiltSegment {
    /// The object's bytes.
    pub bytes: Bytes,
    /// What it says of itself.
    pub index: SegmentIndex,
}

/// Builds one segment.
pub struct SegmentBuilder {
    header: SegmentHeader,
    key: Option<Arc<VolumeKey>>,
    sealer: Option<ObjectSealer>,
    out: Vec<u8>,
    frame: Vec<u8>,
    compressed: Vec<u8>,
    frames: Vec<FrameEntry>,
    entries: Vec<IndexEntry>,
    blocks: u32,
    futile: u32,
}

impl SegmentBuilder {
    /// Begins a segment that will hold about `expected` blocks, sealed with the key of its volume if it has one.
    pub fn new(header: SegmentHeader, expected: BlockCount, key: Option<Arc<VolumeKey>>) -> Self {
        let header = salted(header, key.as_deref());
        let sealer = key.as_ref().zip(header.salt).map(|(key, salt)| key.segment(header.id, salt));
        // Room for all of it, compressed or not: what is not touched takes no memory, but growing would leave copies of half and a quarter of
        // the object behind, which the allocator keeps for a second.
        let expected = usize::try_from(expected.bytes().0).unwrap_or(0);
        let mut out = Vec::with_capacity(HEADER_BYTES + expected + expected / 128 + TAIL_ROOM);
        out.extend_from_slice(&encode_header(&header));
        SegmentBuilder {
            header,
            key,
            sealer,
            out,
            frame: Vec::with_capacity(FRAME_BYTES),
            compressed: vec![0; compression::bound(FRAME_BYTES)],
            frames: Vec::new(),
            entries: Vec::new(),
            blocks: 0,
            futile: 0,
        }
    }

    /// Adds a run of blocks; `fill` writes the content of some of them, from the given block of the run on, into its buffer. Those that hold
    /// nothing but zeros take no room.
    ///
    /// # Errors
    /// What `fill` says.
    pub fn push_data(&mut self, range: BlockRange, mut fill: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
        let mut done = 0;
        while done < range.count.0 {
            let (start, take) = self.fill_frame(done, range.count.0 - done, &mut fill)?;
            let mut end = start;
            for number in 0..take {
                let from = start + (number * BLOCK_SIZE) as usize;
                let content = from..from + BLOCK_SIZE as usize;
                let lba = Lba(range.start.0 + done + number);
                if self.frame[content.clone()] == ZERO_BLOCK {
                    self.push_zero(BlockRange::new(lba, BlockCount(1)));
                    continue;
                }
                if from != end {
                    self.frame.copy_within(content, end);
                }
                end += BLOCK_SIZE as usize;
                self.add_block(lba)?;
            }
            self.frame.truncate(end);
            done += take;
            self.end_frame_if_full()?;
        }
        Ok(())
    }

    /// Adds a run of blocks that cleaning copied from `old`.
    ///
    /// # Errors
    /// What `fill` says.
    pub fn push_moved(
        &mut self,
        range: BlockRange,
        old: SegmentPlace,
        mut fill: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let block = self.blocks;
        let mut done = 0;
        while done < range.count.0 {
            done += self.fill_frame(done, range.count.0 - done, &mut fill)?.1;
            self.end_frame_if_full()?;
        }
        let count = u32::try_from(range.count.0).map_err(|_| too_many_blocks())?;
        self.blocks = self.blocks.checked_add(count).ok_or_else(too_many_blocks)?;
        self.entries.push(IndexEntry { range, kind: EntryKind::Moved { block, old } });
        Ok(())
    }

    /// Says that a run of blocks reads as zero.
    pub fn push_zero(&mut self, range: BlockRange) {
        match self.entries.last_mut() {
            Some(IndexEntry { range: last, kind: EntryKind::Zero }) if last.end() == range.start => {
                last.count.0 += range.count.0;
            }
            _ => self.entries.push(IndexEntry { range, kind: EntryKind::Zero }),
        }
    }

    /// Ends the segment.
    ///
    /// # Errors
    /// What the compressor says.
    pub fn finish(mut self) -> Result<BuiltSegment> {
        self.end_frame()?;
        let frames_end = self.out.len() as u64;
        let seal = IndexSeal::of(self.key.as_deref());
        self.out.extend_from_slice(&encode_tail(&self.header, &self.frames, &self.entries, frames_end, seal)?);
        let object_length = self.out.len() as u64;
        let index = SegmentIndex { header: self.header, frames: self.frames, entries: self.entries, object_length };
        Ok(BuiltSegment { bytes: Bytes::from(self.out), index })
    }

    /// Adds some of `left` blocks to the frame: where they begin in it, and how many they are.
    fn fill_frame(
        &mut self,
        done: u64,
        left: u64,
        fill: &mut impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<(usize, u64)> {
        let start = self.frame.len();
        let take = ((FRAME_BYTES - start) as u64 / BLOCK_SIZE).min(left);
        self.frame.resize(start + (take * BLOCK_SIZE) as usize, 0);
        fill(done, &mut self.frame[start..])?;
        Ok((start, take))
    }

    /// Says where the block is that was added last; neighbours that lie together are one entry.
    fn add_block(&mut self, lba: Lba) -> Result<()> {
        let block = self.blocks;
        self.blocks = block.checked_add(1).ok_or_else(too_many_blocks)?;
        match self.entries.last_mut() {
            Some(IndexEntry { range: last, kind: EntryKind::Data { block: first } })
                if last.end() == lba && u64::from(*first) + last.count.0 == u64::from(block) =>
            {
                last.count.0 += 1;
            }
            _ => {
                let range = BlockRange::new(lba, BlockCount(1));
                self.entries.push(IndexEntry { range, kind: EntryKind::Data { block } });
            }
        }
        Ok(())
    }

    fn end_frame_if_full(&mut self) -> Result<()> {
        if self.frame.len() == FRAME_BYTES { self.end_frame() } else { Ok(()) }
    }

    fn end_frame(&mut self) -> Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let offset = u32::try_from(self.out.len()).map_err(|_| Error::invalid("a segment cannot be this large"))?;
        let attempt = self.futile < FUTILE_FRAMES || self.futile.is_multiple_of(TRY_EVERY);
        let mut codec = Codec::Raw;
        let mut packed: &[u8] = &self.frame;
        if attempt {
            let length = compression::compress_to(&self.frame, &mut self.compressed)
                .map_err(|error| Error::io("zstd failed", &error))?;
            if length < self.frame.len() - self.frame.len() / 8 {
                codec = Codec::Zstd;
                packed = &self.compressed[..length];
            }
        }
        self.futile = if codec == Codec::Zstd { 0 } else { self.futile + 1 };
        self.out.extend_from_slice(packed);
        let stored = &mut self.out[offset as usize..];
        let seal = self.header.salt.zip(self.sealer.as_ref()).map(|(salt, sealer)| {
            // A segment has far fewer frames than a word counts.
            FrameSeal { salt, tag: sealer.seal_frame(self.frames.len() as u32, stored) }
        });
        self.frames.push(FrameEntry {
            offset,
            stored_length: stored.len() as u32,
            blocks: (self.frame.len() as u64 / BLOCK_SIZE) as u16,
            codec,
            crc: crc32c::crc32c(stored),
            seal,
        });
        self.frame.clear();
        Ok(())
    }
}

fn too_many_blocks() -> Error {
    Error::invalid("a segment cannot hold this many blocks")
}

/// The header of a segment of a volume with this key: every object gets random bits of its own.
fn salted(header: SegmentHeader, key: Option<&VolumeKey>) -> SegmentHeader {
    SegmentHeader { salt: key.map(|_| Salt(clock::random_token().0)), ..header }
}

/// Builds the object that ends an epoch, sealed with the key of its volume if it has one.
///
/// # Errors
/// As [`SegmentBuilder::finish`].
pub fn build_seal(header: SegmentHeader, key: Option<&VolumeKey>) -> Result<Bytes> {
    assert!(header.seal, "a seal says that it is one");
    let header = salted(header, key);
    let mut out = encode_header(&header);
    out.extend_from_slice(&encode_tail(&header, &[], &[], HEADER_BYTES as u64, IndexSeal::of(key))?);
    Ok(Bytes::from(out))
}

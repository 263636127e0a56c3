//! Building a segment in one pass: blocks come in block order and are cut into frames, compressed where it pays.
//!
//! Memory: the object's own bytes (reserved for the case that nothing can be compressed) and one frame. Compression is skipped where it does not pay: a frame that
//! shrinks by less than an eighth is stored as it is, and after several such frames in a row only
//! every eighth is tried until one pays again.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::format::segment::{
    Codec, EntryKind, FrameEntry, HEADER_BYTES, IndexEntry, SegmentHeader, SegmentIndex, encode_header, encode_tail,
};
use crate::limits::FRAME_BLOCKS;
use crate::map::SegmentPlace;
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange};

const FRAME_BYTES: usize = (FRAME_BLOCKS * BLOCK_SIZE) as usize;
/// zstd's fastest ordinary level: the packer shares two cores with the foreground.
const ZSTD_LEVEL: i32 = 1;
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
    out: Vec<u8>,
    frame: Vec<u8>,
    compressed: Vec<u8>,
    compressor: zstd::bulk::Compressor<'static>,
    frames: Vec<FrameEntry>,
    entries: Vec<IndexEntry>,
    blocks: u32,
    futile: u32,
}

impl SegmentBuilder {
    /// Begins a segment that will hold about `expected` blocks.
    ///
    /// # Errors
    /// `Io` if the compressor cannot be made.
    pub fn new(header: SegmentHeader, expected: BlockCount) -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)
            .map_err(|error| Error::io("cannot make a zstd compressor", &error))?;
        // Room for all of it, compressed or not: what is not touched takes no memory, but growing would leave copies of half and a quarter of
        // the object behind, which the allocator keeps for a second.
        let expected = usize::try_from(expected.bytes().0).unwrap_or(0);
        let mut out = Vec::with_capacity(HEADER_BYTES + expected + expected / 128 + TAIL_ROOM);
        out.extend_from_slice(&encode_header(&header));
        Ok(SegmentBuilder {
            header,
            out,
            frame: Vec::with_capacity(FRAME_BYTES),
            compressed: vec![0; zstd::zstd_safe::compress_bound(FRAME_BYTES)],
            compressor,
            frames: Vec::new(),
            entries: Vec::new(),
            blocks: 0,
            futile: 0,
        })
    }

    /// Adds a run of blocks; `fill` writes the content of some of them, from the given block of the run on, into its buffer.
    ///
    /// # Errors
    /// What `fill` says.
    pub fn push_data(&mut self, range: BlockRange, fill: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
        self.push_blocks(range, EntryKind::Data { block: self.blocks }, fill)
    }

    /// Adds a run of blocks that cleaning copied from `old`.
    ///
    /// # Errors
    /// What `fill` says.
    pub fn push_moved(
        &mut self,
        range: BlockRange,
        old: SegmentPlace,
        fill: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.push_blocks(range, EntryKind::Moved { block: self.blocks, old }, fill)
    }

    /// Says that a run of blocks reads as zero.
    pub fn push_zero(&mut self, range: BlockRange) {
        self.entries.push(IndexEntry { range, kind: EntryKind::Zero });
    }

    /// Ends the segment.
    ///
    /// # Errors
    /// What the compressor says.
    pub fn finish(mut self) -> Result<BuiltSegment> {
        self.end_frame()?;
        let frames_end = self.out.len() as u64;
        self.out.extend_from_slice(&encode_tail(&self.header, &self.frames, &self.entries, frames_end)?);
        let object_length = self.out.len() as u64;
        let index = SegmentIndex { header: self.header, frames: self.frames, entries: self.entries, object_length };
        Ok(BuiltSegment { bytes: Bytes::from(self.out), index })
    }

    fn push_blocks(
        &mut self,
        range: BlockRange,
        kind: EntryKind,
        mut fill: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < range.count.0 {
            let room = (FRAME_BYTES - self.frame.len()) as u64 / BLOCK_SIZE;
            let take = room.min(range.count.0 - done);
            let start = self.frame.len();
            self.frame.resize(start + (take * BLOCK_SIZE) as usize, 0);
            fill(done, &mut self.frame[start..])?;
            done += take;
            if self.frame.len() == FRAME_BYTES {
                self.end_frame()?;
            }
        }
        self.entries.push(IndexEntry { range, kind });
        let count = u32::try_from(range.count.0).ok().and_then(|count| self.blocks.checked_add(count));
        self.blocks = count.ok_or_else(|| Error::invalid("a segment cannot hold this many blocks"))?;
        Ok(())
    }

    fn end_frame(&mut self) -> Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let offset = u32::try_from(self.out.len()).map_err(|_| Error::invalid("a segment cannot be this large"))?;
        let attempt = self.futile < FUTILE_FRAMES || self.futile.is_multiple_of(TRY_EVERY);
        let mut codec = Codec::Raw;
        let mut stored: &[u8] = &self.frame;
        if attempt {
            let length = self
                .compressor
                .compress_to_buffer(&self.frame, &mut self.compressed[..])
                .map_err(|error| Error::io("zstd failed", &error))?;
            if length < self.frame.len() - self.frame.len() / 8 {
                codec = Codec::Zstd;
                stored = &self.compressed[..length];
            }
        }
        self.futile = if codec == Codec::Zstd { 0 } else { self.futile + 1 };
        self.frames.push(FrameEntry {
            offset,
            stored_length: stored.len() as u32,
            blocks: (self.frame.len() as u64 / BLOCK_SIZE) as u16,
            codec,
            key_id: 0,
            crc: crc32c::crc32c(stored),
            tag: 0,
        });
        self.out.extend_from_slice(stored);
        self.frame.clear();
        Ok(())
    }
}

/// Builds the object that ends an epoch.
///
/// # Errors
/// As [`SegmentBuilder::finish`].
pub fn build_seal(header: SegmentHeader) -> Result<Bytes> {
    assert!(header.seal, "a seal says that it is one");
    let mut out = encode_header(&header);
    out.extend_from_slice(&encode_tail(&header, &[], &[], HEADER_BYTES as u64)?);
    Ok(Bytes::from(out))
}

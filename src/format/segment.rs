//! The segment object: header, frames, index, trailer. Byte tables in `design/formats.md`.
//!
//! The index stands behind the frames, so that a segment is built in one pass, and the trailer has a fixed length at the
//! very end, so that one request for the last bytes of the object brings both. The index repeats the header, so that the tail
//! of an object tells all about it. A **seal** is a segment without
//! frames and entries, with the seal flag: it takes the place that the next segment of its epoch would have had.

use crate::error::{Error, Result};
use crate::format::codec::{Reader, Writer};
use crate::limits::{COUNT_MAX, FRAME_BLOCKS, SEGMENT_INDEX_BYTES_MAX, SEGMENT_OBJECT_BYTES_MAX, VOLUME_BYTES_MAX};
use crate::map::SegmentPlace;
use crate::units::{
    BLOCK_SIZE, BlockCount, BlockRange, Epoch, Lba, SegmentId, SegmentNumber, Sequence, Token, UnixMillis, VolumeId,
};

const HEADER_MAGIC: &[u8; 4] = b"VRVS";
const TRAILER_MAGIC: &[u8; 4] = b"VRVT";
const VERSION: u16 = 1;
/// Length of the header, in bytes; the first frame begins here.
pub const HEADER_BYTES: usize = 96;
/// Length of the trailer, in bytes.
pub const TRAILER_BYTES: usize = 64;
const FRAME_ENTRY_BYTES: usize = 36;
const ENTRY_BYTES: usize = 24;
const MOVED_BYTES: usize = 24;
const FLAG_SEAL: u8 = 1;

/// Who wrote a segment, and which part of the sequence it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Its name.
    pub id: SegmentId,
    /// The attachment that wrote it.
    pub token: Token,
    /// First place of the sequence that it holds; for a seal the place after the last.
    pub first: Sequence,
    /// Last place of the sequence that it holds; for a seal the last of its epoch.
    pub last: Sequence,
    /// When it was built.
    pub created_at: UnixMillis,
    /// True if it ends its epoch.
    pub seal: bool,
}

/// How a frame's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    Raw,
    /// zstd.
    Zstd,
}

impl Codec {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Codec::Raw),
            1 => Some(Codec::Zstd),
            _ => None,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Codec::Raw => 0,
            Codec::Zstd => 1,
        }
    }
}

/// One frame: where it lies in the object, and how to verify and open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameEntry {
    /// Byte offset in the object. Not stored: frames lie back to back.
    pub offset: u32,
    /// Bytes in the object.
    pub stored_length: u32,
    /// Blocks it holds; all frames but the last hold as many as fit.
    pub blocks: u16,
    /// Compression.
    pub codec: Codec,
    /// Which key encrypts it; 0 for none.
    pub key_id: u32,
    /// CRC32C of the stored bytes.
    pub crc: u32,
    /// Authentication tag of the encryption; zeros without.
    pub tag: u128,
}

/// What a segment says of a run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// They are the segment's blocks from this number on.
    Data {
        /// Block number within the segment.
        block: u32,
    },
    /// They read as zero.
    Zero,
    /// They are the segment's blocks from `block` on, for those that the map still has at `old`: written by cleaning.
    Moved {
        /// Block number within the segment.
        block: u32,
        /// Where they were when they were copied.
        old: SegmentPlace,
    },
}

/// One entry of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The blocks of the volume.
    pub range: BlockRange,
    /// Where they are.
    pub kind: EntryKind,
}

/// All that a segment says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIndex {
    /// Who and where.
    pub header: SegmentHeader,
    /// Its frames in order.
    pub frames: Vec<FrameEntry>,
    /// What it changes; ranges of entries do not overlap.
    pub entries: Vec<IndexEntry>,
    /// Length of the whole object, in bytes.
    pub object_length: u64,
}

impl SegmentIndex {
    /// The frame that holds a block, and the block's number within it.
    pub fn frame_of(&self, block: u32) -> Option<(u32, &FrameEntry, usize)> {
        let number = u64::from(block) / FRAME_BLOCKS;
        let within = usize::try_from(u64::from(block) % FRAME_BLOCKS).ok()?;
        let frame = self.frames.get(usize::try_from(number).ok()?)?;
        (within < usize::from(frame.blocks)).then_some((u32::try_from(number).ok()?, frame, within))
    }

    /// Number of blocks stored.
    pub fn block_count(&self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.blocks)).sum()
    }

    /// Bytes of memory that it takes, for a budget.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.frames.capacity() * size_of::<FrameEntry>()
            + self.entries.capacity() * size_of::<IndexEntry>()
    }
}

/// The header as bytes.
pub fn encode_header(header: &SegmentHeader) -> Vec<u8> {
    let mut out = Writer::with_capacity(HEADER_BYTES);
    out.put(HEADER_MAGIC).u16(VERSION).u8(u8::from(header.seal) * FLAG_SEAL).u8(0);
    out.u32(0).u32(0); // incompatible, compatible features
    encode_identity(&mut out, header);
    out.u64(header.created_at.0).u64(0).u64(0); // reserved
    out.crc();
    assert_eq!(out.bytes.len(), HEADER_BYTES, "the header has a fixed length");
    out.bytes
}

fn encode_identity(out: &mut Writer, header: &SegmentHeader) {
    out.u64(header.id.volume.0).u64(header.id.number.0).u32(header.id.epoch.0);
    out.u128(header.token.0).u64(header.first.0).u64(header.last.0);
}

/// Reads the first [`HEADER_BYTES`] bytes of the object that should be segment `id`.
///
/// # Errors
/// `Damaged` (also if it is another segment) or `Unsupported`.
pub fn decode_header(id: SegmentId, bytes: &[u8]) -> Result<SegmentHeader> {
    let what = format!("segment {id}");
    let mut input = Reader::new(&what, bytes);
    let fields = input.take(HEADER_BYTES)?;
    let (covered, crc) = fields.split_at(HEADER_BYTES - 4);
    let mut input = Reader::new(&what, covered);
    if input.take(4)? != HEADER_MAGIC {
        return Err(input.damaged("it does not begin as a segment"));
    }
    if Reader::new(&what, crc).u32()? != crc32c::crc32c(covered) {
        return Err(input.damaged("the checksum of its header is wrong"));
    }
    let version = input.u16()?;
    let flags = input.u8()?;
    input.u8()?;
    let incompatible = input.u32()?;
    input.check_version(version, VERSION, incompatible)?;
    input.u32()?;
    let mut header = decode_identity(id, &mut input)?;
    header.created_at = UnixMillis(input.u64()?);
    header.seal = flags & FLAG_SEAL != 0;
    Ok(header)
}

fn decode_identity(id: SegmentId, input: &mut Reader<'_>) -> Result<SegmentHeader> {
    let volume = VolumeId(input.u64()?);
    let number = SegmentNumber(input.u64()?);
    let epoch = Epoch(input.u32()?);
    if (SegmentId { volume, epoch, number }) != id {
        return Err(input.damaged(&format!("it is segment {volume}/{epoch}/{number}")));
    }
    let token = Token(input.u128()?);
    let (first, last) = (Sequence(input.u64()?), Sequence(input.u64()?));
    if first.0.max(last.0) > COUNT_MAX {
        return Err(input.damaged("its places in the sequence make no sense"));
    }
    Ok(SegmentHeader { id, token, first, last, created_at: UnixMillis(0), seal: false })
}

/// The index (compressed) and the trailer as bytes, to stand behind `frames_end` bytes of header and frames.
///
/// # Errors
/// `Damaged` if the compressor fails, `Invalid` for more than a reader would accept; only a bug can cause either.
pub fn encode_tail(
    header: &SegmentHeader,
    frames: &[FrameEntry],
    entries: &[IndexEntry],
    frames_end: u64,
) -> Result<Vec<u8>> {
    let mut index = Writer::with_capacity(
        HEADER_BYTES + 8 + frames.len() * FRAME_ENTRY_BYTES + entries.len() * (ENTRY_BYTES + MOVED_BYTES),
    );
    index.put(&encode_header(header)).u32(count(frames.len())?).u32(count(entries.len())?);
    for frame in frames {
        index.u32(frame.stored_length).u16(frame.blocks).u8(frame.codec.byte()).u8(0);
        index.u32(frame.key_id).u32(frame.crc).u128(frame.tag).u32(0);
    }
    for entry in entries {
        let (kind, block) = match entry.kind {
            EntryKind::Data { block } => (1, block),
            EntryKind::Zero => (2, 0),
            EntryKind::Moved { block, .. } => (3, block),
        };
        index.u32(kind).u32(block).u64(entry.range.start.0).u64(entry.range.count.0);
        if let EntryKind::Moved { old, .. } = entry.kind {
            index.u64(old.segment.volume.0).u64(old.segment.number.0).u32(old.segment.epoch.0).u32(old.block);
        }
    }
    let raw = index.bytes;
    if raw.len() as u64 > SEGMENT_INDEX_BYTES_MAX {
        return Err(Error::invalid(format!("segment {} cannot hold this many changes", header.id)));
    }
    let compressed = zstd::bulk::compress(&raw, 1)
        .map_err(|error| Error::damaged(format!("the index of segment {} cannot be compressed: {error}", header.id)))?;
    let (codec, stored) =
        if compressed.len() < raw.len() { (Codec::Zstd, compressed) } else { (Codec::Raw, raw.clone()) };
    let mut out = Writer { bytes: stored };
    let index_crc = crc32c::crc32c(&out.bytes);
    let stored_length = count(out.bytes.len())?;
    let mut trailer = Writer::with_capacity(TRAILER_BYTES);
    trailer.put(TRAILER_MAGIC).u16(VERSION).u8(codec.byte()).u8(u8::from(header.seal) * FLAG_SEAL);
    trailer.u32(0).u32(0); // incompatible, compatible features
    trailer.u64(frames_end).u32(stored_length).u32(count(raw.len())?).u32(index_crc);
    trailer.u64(frames_end + u64::from(stored_length) + TRAILER_BYTES as u64);
    trailer.u64(header.first.0).u64(header.last.0);
    trailer.crc();
    assert_eq!(trailer.bytes.len(), TRAILER_BYTES, "the trailer has a fixed length");
    out.put(&trailer.bytes);
    Ok(out.bytes)
}

fn count(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::invalid("a segment cannot be this large"))
}

/// The trailer's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Where the index begins and the frames end.
    pub frames_end: u64,
    /// Bytes of the index as stored.
    pub index_length: u32,
    raw_length: u32,
    crc: u32,
    codec: Codec,
}

impl Trailer {
    /// How many of the object's last bytes hold index and trailer.
    pub fn tail_length(&self) -> u64 {
        u64::from(self.index_length) + TRAILER_BYTES as u64
    }
}

/// The name that the header of an object claims; not verified.
pub fn peek_id(bytes: &[u8]) -> Option<SegmentId> {
    let mut input = Reader::new("a segment", bytes);
    if input.take(4).ok()? != HEADER_MAGIC {
        return None;
    }
    input.take(12).ok()?;
    let (volume, number) = (VolumeId(input.u64().ok()?), SegmentNumber(input.u64().ok()?));
    Some(SegmentId { volume, number, epoch: Epoch(input.u32().ok()?) })
}

/// The length of the whole object that a tail kept locally says it belongs to; not verified.
pub fn announced_length(tail: &[u8]) -> Option<u64> {
    let trailer = tail.get(tail.len().checked_sub(TRAILER_BYTES)?..)?;
    let mut input = Reader::new("a trailer", trailer);
    input.take(36).ok()?;
    input.u64().ok()
}

/// Reads the trailer from the last bytes of an object of `object_length` bytes.
///
/// # Errors
/// `Damaged` or `Unsupported`.
pub fn decode_trailer(id: SegmentId, tail: &[u8], object_length: u64) -> Result<Trailer> {
    let what = format!("segment {id}");
    let whole = Reader::new(&what, tail);
    if tail.len() < TRAILER_BYTES || object_length > SEGMENT_OBJECT_BYTES_MAX {
        return Err(whole.damaged(&format!("{object_length} bytes cannot be a segment")));
    }
    let (covered, crc) = tail[tail.len() - TRAILER_BYTES..].split_at(TRAILER_BYTES - 4);
    let mut input = Reader::new(&what, covered);
    if input.take(4)? != TRAILER_MAGIC {
        return Err(input.damaged("it does not end as a segment"));
    }
    if Reader::new(&what, crc).u32()? != crc32c::crc32c(covered) {
        return Err(input.damaged("the checksum of its trailer is wrong"));
    }
    let version = input.u16()?;
    let codec = input.u8()?;
    input.u8()?;
    let incompatible = input.u32()?;
    input.check_version(version, VERSION, incompatible)?;
    input.u32()?;
    let codec = Codec::from_byte(codec).ok_or_else(|| input.damaged("unknown compression of its index"))?;
    let (frames_end, index_length) = (input.u64()?, input.u32()?);
    let (raw_length, crc) = (input.u32()?, input.u32()?);
    let trailer = Trailer { frames_end, index_length, raw_length, crc, codec };
    let announced = input.u64()?;
    if announced != object_length || frames_end.checked_add(trailer.tail_length()) != Some(object_length) {
        return Err(input.damaged(&format!("it has {object_length} bytes where {announced} belong")));
    }
    Ok(trailer)
}

/// Reads the index from the last bytes of an object, of which at least [`Trailer::tail_length`] are given.
///
/// # Errors
/// `Damaged` or `Unsupported`.
pub fn decode_index(id: SegmentId, trailer: &Trailer, tail: &[u8]) -> Result<SegmentIndex> {
    let what = format!("the index of segment {id}");
    let reader = Reader::new(&what, tail);
    let (index_length, tail_length) = (trailer.index_length as usize, trailer.index_length as usize + TRAILER_BYTES);
    if tail.len() < tail_length {
        return Err(reader.damaged("it ends too early"));
    }
    let stored = &tail[tail.len() - tail_length..][..index_length];
    if crc32c::crc32c(stored) != trailer.crc {
        return Err(reader.damaged("its checksum is wrong"));
    }
    if u64::from(trailer.raw_length.max(trailer.index_length)) > SEGMENT_INDEX_BYTES_MAX {
        return Err(reader.damaged("it announces more than the index of a segment can hold"));
    }
    let raw = match trailer.codec {
        Codec::Raw => stored.to_vec(),
        Codec::Zstd => zstd::bulk::decompress(stored, trailer.raw_length as usize)
            .map_err(|error| reader.damaged(&format!("it cannot be decompressed: {error}")))?,
    };
    let header = decode_header(id, &raw)?;
    let mut input = Reader::new(&what, &raw);
    input.take(HEADER_BYTES)?;
    let (frame_count, entry_count) = (input.u32()? as usize, input.u32()? as usize);
    let frames = decode_frames(&mut input, frame_count, trailer.frames_end)?;
    let blocks: u64 = frames.iter().map(|frame| u64::from(frame.blocks)).sum();
    input.expect_items(entry_count, ENTRY_BYTES)?;
    let mut entries = Vec::with_capacity(entry_count);
    for _ in 0..entry_count {
        entries.push(decode_entry(&mut input, blocks)?);
    }
    if input.remaining() > 0 {
        return Err(input.damaged("more follows than it announces"));
    }
    check_apart(&input, &entries)?;
    let object_length = trailer.frames_end + trailer.tail_length();
    Ok(SegmentIndex { header, frames, entries, object_length })
}

/// Refuses entries that overlap: readers apply them in any order.
fn check_apart(input: &Reader<'_>, entries: &[IndexEntry]) -> Result<()> {
    let follow = |pair: &[IndexEntry]| pair[0].range.end() <= pair[1].range.start;
    if entries.windows(2).all(follow) {
        return Ok(());
    }
    let mut sorted = entries.to_vec();
    sorted.sort_unstable_by_key(|entry| entry.range.start);
    if sorted.windows(2).all(follow) { Ok(()) } else { Err(input.damaged("entries overlap")) }
}

fn decode_frames(input: &mut Reader<'_>, frame_count: usize, frames_end: u64) -> Result<Vec<FrameEntry>> {
    input.expect_items(frame_count, FRAME_ENTRY_BYTES)?;
    let mut frames = Vec::with_capacity(frame_count);
    let mut offset = HEADER_BYTES as u32;
    for number in 0..frame_count {
        let (stored_length, blocks, codec) = (input.u32()?, input.u16()?, input.u8()?);
        input.u8()?;
        let (key_id, crc, tag) = (input.u32()?, input.u32()?, input.u128()?);
        input.u32()?;
        let codec = Codec::from_byte(codec).ok_or_else(|| input.damaged("a frame has an unknown compression"))?;
        let full = u64::from(blocks) == FRAME_BLOCKS || (number + 1 == frame_count && u64::from(blocks) < FRAME_BLOCKS);
        let raw_fits = codec != Codec::Raw || u64::from(stored_length) == u64::from(blocks) * BLOCK_SIZE;
        if blocks == 0 || !full || !raw_fits || u64::from(stored_length) > FRAME_BLOCKS * BLOCK_SIZE {
            return Err(input.damaged("a frame has a length that makes no sense"));
        }
        frames.push(FrameEntry { offset, stored_length, blocks, codec, key_id, crc, tag });
        offset = offset.checked_add(stored_length).ok_or_else(|| input.damaged("its frames are too long"))?;
    }
    if u64::from(offset) != frames_end {
        return Err(input.damaged("its frames do not fill the place they have"));
    }
    Ok(frames)
}

fn decode_entry(input: &mut Reader<'_>, blocks: u64) -> Result<IndexEntry> {
    let (kind, block) = (input.u32()?, input.u32()?);
    let (start, length) = (input.u64()?, input.u64()?);
    let end = start.checked_add(length).filter(|&end| length > 0 && end <= VOLUME_BYTES_MAX / BLOCK_SIZE);
    let within = kind == 2 || u64::from(block).checked_add(length).is_some_and(|end| end <= blocks);
    if end.is_none() || !within {
        return Err(input.damaged("an entry has a range that makes no sense"));
    }
    let kind = match kind {
        1 => EntryKind::Data { block },
        2 => EntryKind::Zero,
        3 => {
            let (volume, number) = (VolumeId(input.u64()?), SegmentNumber(input.u64()?));
            let (epoch, old_block) = (Epoch(input.u32()?), input.u32()?);
            if u64::from(old_block) + length > u64::from(u32::MAX) {
                return Err(input.damaged("an entry was moved from a place that no segment has"));
            }
            let segment = SegmentId { volume, epoch, number };
            EntryKind::Moved { block, old: SegmentPlace { segment, block: old_block } }
        }
        _ => return Err(input.damaged("an entry is of an unknown kind")),
    };
    Ok(IndexEntry { range: BlockRange::new(Lba(start), BlockCount(length)), kind })
}

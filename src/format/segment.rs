//! The segment object: header, frames, index, trailer. Byte tables in `design/formats.md`.
//!
//! The index stands behind the frames, so that a segment is built in one pass, and the trailer has a fixed length at the
//! very end, so that one request for the last bytes of the object brings both. The index repeats the header, so that the tail
//! of an object tells all about it. A **seal** is a segment without
//! frames and entries, with the seal flag: it takes the place that the next segment of its epoch would have had.

use crate::error::Result;
use crate::format::codec::{Reader, Writer};
use crate::limits::{COUNT_MAX, FRAME_BLOCKS};
use crate::map::SegmentPlace;
use crate::seal::{FrameSeal, Salt};
use crate::units::{BlockRange, Epoch, SegmentId, SegmentNumber, Sequence, Token, UnixMillis, VolumeId};

mod tail;

pub use tail::{IndexSeal, Trailer, announced_length, decode_index, decode_trailer, encode_tail};

const HEADER_MAGIC: &[u8; 4] = b"VRVS";
const VERSION: u16 = 1;
/// Length of the header, in bytes; the first frame begins here.
pub const HEADER_BYTES: usize = 96;
const FLAG_SEAL: u8 = 1;
/// Incompatible feature: frames and index are sealed with the key of the volume.
const FEATURE_SEALED: u32 = 1;

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
    /// If frames and index are sealed: what their key is derived with.
    pub salt: Option<Salt>,
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
    /// CRC32C of the stored bytes.
    pub crc: u32,
    /// If it is sealed: what opens it.
    pub seal: Option<FrameSeal>,
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
    out.u32(features(header)).u32(0); // incompatible, compatible features
    encode_identity(&mut out, header);
    out.u64(header.created_at.0).u128(salt_field(header));
    out.crc();
    assert_eq!(out.bytes.len(), HEADER_BYTES, "the header has a fixed length");
    out.bytes
}

fn features(header: &SegmentHeader) -> u32 {
    if header.salt.is_some() { FEATURE_SEALED } else { 0 }
}

fn salt_field(header: &SegmentHeader) -> u128 {
    header.salt.map_or(0, |salt| salt.0)
}

fn salt_of(incompatible: u32, field: u128) -> Option<Salt> {
    (incompatible & FEATURE_SEALED != 0).then_some(Salt(field))
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
    input.check_version(version, VERSION, incompatible & !FEATURE_SEALED)?;
    input.u32()?;
    let mut header = decode_identity(id, &mut input)?;
    header.created_at = UnixMillis(input.u64()?);
    header.seal = flags & FLAG_SEAL != 0;
    header.salt = salt_of(incompatible, input.u128()?);
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
    Ok(SegmentHeader { id, token, first, last, created_at: UnixMillis(0), seal: false, salt: None })
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

//! The end of a segment: the index, and the trailer that says where it is and how it is stored.

use std::borrow::Cow;

use super::{
    Codec, EntryKind, FEATURE_SEALED, FLAG_SEAL, FrameEntry, HEADER_BYTES, IndexEntry, SegmentHeader, SegmentIndex,
    VERSION, decode_header, encode_header, features, salt_of,
};
use crate::compression;
use crate::error::{Error, Result};
use crate::format::codec::{Reader, Writer};
use crate::limits::{FRAME_BLOCKS, SEGMENT_INDEX_BYTES_MAX, SEGMENT_OBJECT_BYTES_MAX, VOLUME_BYTES_MAX};
use crate::map::SegmentPlace;
use crate::seal::{FrameSeal, Salt, VolumeKey};
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange, Epoch, Lba, SegmentId, SegmentNumber, VolumeId};

const TRAILER_MAGIC: &[u8; 4] = b"VRVT";
/// Length of the trailer, in bytes.
const TRAILER_BYTES: usize = 64;
/// Bytes of the trailer before what depends on the length of the index.
const TRAILER_FRONT_BYTES: usize = 24;
const FRAME_ENTRY_BYTES: usize = 36;
const ENTRY_BYTES: usize = 24;
const MOVED_BYTES: usize = 24;
/// What a frame names as its key if it is sealed: the key that its volume has had from the start.
const KEY_OF_THE_VOLUME: u32 = 1;

/// How an index is sealed.
#[derive(Clone, Copy, Debug)]
pub enum IndexSeal<'a> {
    /// Not at all: the volume has no key.
    Plain,
    /// With the key of its volume.
    With(&'a VolumeKey),
    /// By what is around it: a copy on a local disk.
    Around,
}

impl<'a> IndexSeal<'a> {
    /// That of segments in the store, of a volume with this key, if it has one.
    pub fn of(key: Option<&'a VolumeKey>) -> Self {
        key.map_or(IndexSeal::Plain, IndexSeal::With)
    }
}

/// The index (compressed, and sealed) and the trailer as bytes, to stand behind `frames_end` bytes of header and
/// frames.
///
/// # Errors
/// `Damaged` if the compressor fails, `Invalid` for more than a reader would accept; only a bug can cause either.
pub fn encode_tail(
    header: &SegmentHeader,
    frames: &[FrameEntry],
    entries: &[IndexEntry],
    frames_end: u64,
    seal: IndexSeal<'_>,
) -> Result<Vec<u8>> {
    let mut index = Writer::with_capacity(
        HEADER_BYTES + 8 + frames.len() * FRAME_ENTRY_BYTES + entries.len() * (ENTRY_BYTES + MOVED_BYTES),
    );
    index.put(&encode_header(header)).u32(count(frames.len())?).u32(count(entries.len())?);
    for frame in frames {
        index.u32(frame.stored_length).u16(frame.blocks).u8(frame.codec.byte()).u8(0);
        index.u32(if frame.seal.is_some() { KEY_OF_THE_VOLUME } else { 0 }).u32(frame.crc);
        index.u128(frame.seal.map_or(0, |seal| seal.tag)).u32(0);
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
    let compressed = compression::compress(&raw)
        .map_err(|error| Error::damaged(format!("the index of segment {} cannot be compressed: {error}", header.id)))?;
    let (codec, stored) =
        if compressed.len() < raw.len() { (Codec::Zstd, compressed) } else { (Codec::Raw, raw.clone()) };
    let raw_length = count(raw.len())?;
    let mut out = Writer { bytes: stored };
    let mut trailer = Writer::with_capacity(TRAILER_BYTES);
    trailer.put(TRAILER_MAGIC).u16(VERSION).u8(codec.byte()).u8(u8::from(header.seal) * FLAG_SEAL);
    trailer.u32(features(header)).u32(0); // incompatible, compatible features
    trailer.u64(frames_end);
    if let (IndexSeal::With(key), Some(salt)) = (seal, header.salt) {
        key.segment(header.id, salt).seal_index(&trailer.bytes, &mut out.bytes);
    }
    let stored_length = count(out.bytes.len())?;
    trailer.u32(stored_length).u32(raw_length).u32(crc32c::crc32c(&out.bytes));
    trailer.u64(frames_end + u64::from(stored_length) + TRAILER_BYTES as u64);
    match header.salt {
        Some(salt) => trailer.u128(salt.0),
        None => trailer.u64(header.first.0).u64(header.last.0),
    };
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
    /// The bytes that an index is sealed together with: those up to and with where it begins.
    front: [u8; TRAILER_FRONT_BYTES],
    salt: Option<Salt>,
}

impl Trailer {
    /// How many of the object's last bytes hold index and trailer.
    pub fn tail_length(&self) -> u64 {
        u64::from(self.index_length) + TRAILER_BYTES as u64
    }
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
    input.check_version(version, VERSION, incompatible & !FEATURE_SEALED)?;
    input.u32()?;
    let codec = Codec::from_byte(codec).ok_or_else(|| input.damaged("unknown compression of its index"))?;
    let mut front = [0; TRAILER_FRONT_BYTES];
    front.copy_from_slice(&covered[..TRAILER_FRONT_BYTES]);
    let (frames_end, index_length) = (input.u64()?, input.u32()?);
    let (raw_length, crc) = (input.u32()?, input.u32()?);
    let announced = input.u64()?;
    let salt = salt_of(incompatible, input.u128()?);
    let trailer = Trailer { frames_end, index_length, raw_length, crc, codec, front, salt };
    if announced != object_length || frames_end.checked_add(trailer.tail_length()) != Some(object_length) {
        return Err(input.damaged(&format!("it has {object_length} bytes where {announced} belong")));
    }
    Ok(trailer)
}

/// Reads the index from the last bytes of an object, of which at least [`Trailer::tail_length`] are given.
///
/// # Errors
/// `Damaged` (also if it is sealed otherwise than `seal` says) or `Unsupported`.
pub fn decode_index(id: SegmentId, trailer: &Trailer, tail: &[u8], seal: IndexSeal<'_>) -> Result<SegmentIndex> {
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
    let opened = open_index(id, trailer, stored, seal).map_err(|why| reader.damaged(why))?;
    let raw = match trailer.codec {
        Codec::Raw => opened.into_owned(),
        Codec::Zstd => compression::decompress(&opened, trailer.raw_length as usize)
            .map_err(|error| reader.damaged(&format!("it cannot be decompressed: {error}")))?,
    };
    let header = decode_header(id, &raw)?;
    if header.salt != trailer.salt {
        return Err(reader.damaged("its header contradicts the trailer"));
    }
    let mut input = Reader::new(&what, &raw);
    input.take(HEADER_BYTES)?;
    let (frame_count, entry_count) = (input.u32()? as usize, input.u32()? as usize);
    let frames = decode_frames(&mut input, frame_count, trailer)?;
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

/// The index without its seal, if it has one, as it must if its volume has a key.
fn open_index<'a>(
    id: SegmentId,
    trailer: &Trailer,
    stored: &'a [u8],
    seal: IndexSeal<'_>,
) -> std::result::Result<Cow<'a, [u8]>, &'static str> {
    match (trailer.salt, seal) {
        (None, IndexSeal::Plain) | (_, IndexSeal::Around) => Ok(Cow::Borrowed(stored)),
        (Some(salt), IndexSeal::With(key)) => key
            .segment(id, salt)
            .open_index(&trailer.front, stored)
            .map(Cow::Owned)
            .ok_or("it was changed, or sealed with another key or for another place"),
        (None, IndexSeal::With(_)) => Err("it is not encrypted, though its volume is"),
        (Some(_), IndexSeal::Plain) => Err("it is encrypted, though its volume is not"),
    }
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

fn decode_frames(input: &mut Reader<'_>, frame_count: usize, trailer: &Trailer) -> Result<Vec<FrameEntry>> {
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
        if key_id != if trailer.salt.is_some() { KEY_OF_THE_VOLUME } else { 0 } {
            return Err(input.damaged("a frame is sealed otherwise than its segment"));
        }
        let seal = trailer.salt.map(|salt| FrameSeal { salt, tag });
        frames.push(FrameEntry { offset, stored_length, blocks, codec, crc, seal });
        offset = offset.checked_add(stored_length).ok_or_else(|| input.damaged("its frames are too long"))?;
    }
    if u64::from(offset) != trailer.frames_end {
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

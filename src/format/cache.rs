//! The bytes of the read cache's file: superblock and entries. Pure: it converts, checks and bounds, and knows no file.
//!
//! The tables that bind are in `design/read-cache.md`. All integers are little-endian, all checksums CRC32C.
//! Decoders take any bytes and answer `None` for what is not, whole and unchanged, what it has to be.

use std::ops::Range;

use crate::limits::COUNT_MAX;
use crate::units::{Epoch, FrameId, SegmentId, SegmentNumber, VolumeId};

#[cfg(test)]
mod tests;

/// Bytes of one copy of the superblock.
pub const SUPERBLOCK_BYTES: u64 = 4096;
/// Where the ring begins in the file: after the two copies of the superblock.
pub const RING_START: u64 = 2 * SUPERBLOCK_BYTES;
/// Bytes of a chunk, the unit in which the ring is written and reused. No entry crosses the end of one. 1 MiB
/// makes writes long enough for any disk, and bounds what is buffered.
pub const CHUNK_BYTES: u64 = 1 << 20;
/// Every entry begins at, and is padded to, a multiple of this.
pub const GRANULE_BYTES: u64 = 64;
/// Bytes of an entry's header.
pub const HEADER_BYTES: usize = 64;
/// Granules in the longest entry: what 12 bits of a slot can count.
pub const ENTRY_GRANULES_MAX: u64 = (1 << SLOT_COUNT_BITS) - 1;
/// Longest payload of an entry.
pub const PAYLOAD_BYTES_MAX: usize = (ENTRY_GRANULES_MAX * GRANULE_BYTES) as usize - HEADER_BYTES;

const SLOT_COUNT_BITS: u32 = 12;
const ENTRY_MAGIC: [u8; 4] = *b"vslt";
const SUPERBLOCK_MAGIC: [u8; 8] = *b"varvecac";
const VERSION: u16 = 1;
/// Where the checksum of an entry's header and payload stands: the last field, so that all before it is covered.
const ENTRY_CRC: usize = 60;
const SUPERBLOCK_CRC: usize = 60;

const _: () = assert!(HEADER_BYTES as u64 == GRANULE_BYTES);
const _: () = assert!(ENTRY_GRANULES_MAX * GRANULE_BYTES < CHUNK_BYTES);

/// A byte position in the endless stream of which the ring holds the newest part. It only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingPosition(pub u64);

impl RingPosition {
    /// The first byte of a chunk, by its number in the stream.
    pub fn of_chunk(chunk: u64) -> Self {
        RingPosition(chunk * CHUNK_BYTES)
    }

    /// The number of the chunk in which it lies.
    pub fn chunk(self) -> u64 {
        self.0 / CHUNK_BYTES
    }
}

/// Where an entry is, and how much to read: what the index of slots keeps, as one integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its first byte.
    pub position: RingPosition,
    /// Its length with header and padding, in granules.
    pub granules: u64,
}

impl Slot {
    /// The integer that the index keeps.
    pub fn packed(self) -> u64 {
        ((self.position.0 / GRANULE_BYTES) << SLOT_COUNT_BITS) | self.granules
    }

    /// The slot that an integer of the index stands for; `None` if it stands for none.
    pub fn unpacked(value: u64) -> Option<Self> {
        let granules = value & ENTRY_GRANULES_MAX;
        let slot = Slot { position: RingPosition((value >> SLOT_COUNT_BITS) * GRANULE_BYTES), granules };
        let offset = slot.position.0 % CHUNK_BYTES;
        (granules > 0 && offset + slot.bytes() <= CHUNK_BYTES).then_some(slot)
    }

    /// Bytes that the entry takes in the ring.
    pub fn bytes(self) -> u64 {
        self.granules * GRANULE_BYTES
    }
}

/// Bytes that a frame with a payload of `length` bytes takes in the ring; `None` if it is too long for an entry.
pub fn entry_bytes(length: usize) -> Option<u64> {
    (length <= PAYLOAD_BYTES_MAX).then(|| ((HEADER_BYTES + length) as u64).next_multiple_of(GRANULE_BYTES))
}

/// Appends an entry for `payload`, which must not be longer than [`PAYLOAD_BYTES_MAX`], to `out`, and returns its slot.
pub fn encode_entry(ring: u64, position: RingPosition, frame: FrameId, payload: &[u8], out: &mut Vec<u8>) -> Slot {
    assert!(payload.len() <= PAYLOAD_BYTES_MAX, "the caller bounds the payload");
    assert!(position.0.is_multiple_of(GRANULE_BYTES), "entries begin at a granule");
    let mut header = [0u8; HEADER_BYTES];
    header[0..4].copy_from_slice(&ENTRY_MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    header[8..16].copy_from_slice(&position.0.to_le_bytes());
    header[16..24].copy_from_slice(&ring.to_le_bytes());
    header[24..32].copy_from_slice(&frame.segment.volume.0.to_le_bytes());
    header[32..40].copy_from_slice(&frame.segment.number.0.to_le_bytes());
    header[40..44].copy_from_slice(&frame.segment.epoch.0.to_le_bytes());
    header[44..48].copy_from_slice(&frame.frame.to_le_bytes());
    header[48..52].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..ENTRY_CRC]), payload);
    header[ENTRY_CRC..].copy_from_slice(&crc.to_le_bytes());
    let start = out.len();
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    out.resize(start + (HEADER_BYTES + payload.len()).next_multiple_of(GRANULE_BYTES as usize), 0);
    Slot { position, granules: (out.len() - start) as u64 / GRANULE_BYTES }
}

/// An entry that was found whole and unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The frame.
    pub frame: FrameId,
    /// Where its bytes are, counted from the start of what was decoded.
    pub payload: Range<usize>,
    /// Its place and length in the ring.
    pub slot: Slot,
}

/// Decodes the entry with which `bytes` begins and which must have been written to `position` of `ring`; more may
/// follow it.
pub fn decode_entry(ring: u64, position: RingPosition, bytes: &[u8]) -> Option<Entry> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    let is_ours = header[0..4] == ENTRY_MAGIC
        && u16_at(header, 4) == VERSION
        && u64_at(header, 8) == position.0
        && u64_at(header, 16) == ring;
    let length = u32_at(header, 48) as usize;
    if !is_ours || length > PAYLOAD_BYTES_MAX {
        return None;
    }
    let payload = HEADER_BYTES..HEADER_BYTES + length;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..ENTRY_CRC]), bytes.get(payload.clone())?);
    if crc != u32_at(header, ENTRY_CRC) {
        return None;
    }
    let segment = SegmentId {
        volume: VolumeId(u64_at(header, 24)),
        epoch: Epoch(u32_at(header, 40)),
        number: SegmentNumber(u64_at(header, 32)),
    };
    let granules = (payload.end as u64).div_ceil(GRANULE_BYTES);
    Some(Entry { frame: FrameId { segment, frame: u32_at(header, 44) }, payload, slot: Slot { position, granules } })
}

/// The whole entries of a chunk, in order. What is damaged or left over from an earlier round is passed over.
pub fn entries_of_chunk(ring: u64, chunk: u64, bytes: &[u8]) -> impl Iterator<Item = (usize, Entry)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at + HEADER_BYTES <= bytes.len() {
            let offset = at;
            let position = RingPosition(RingPosition::of_chunk(chunk).0 + offset as u64);
            if let Some(entry) = decode_entry(ring, position, &bytes[offset..]) {
                at += entry.slot.bytes() as usize;
                return Some((offset, entry));
            }
            at += GRANULE_BYTES as usize;
        }
        None
    })
}

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Counts superblocks: of two valid copies the one with the higher number holds.
    pub number: u64,
    /// 64 random bits, fresh for every file, that every entry of the file carries. Guests must not learn them: with
    /// them, and a damaged slot, bytes of a guest could pass for an entry.
    pub ring: u64,
    /// Chunks in the ring.
    pub chunks: u64,
    /// The number in the stream of a chunk that was not written yet when the superblock was.
    pub next_chunk: u64,
}

impl Superblock {
    /// The bytes of one copy.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_BYTES as usize];
        bytes[0..8].copy_from_slice(&SUPERBLOCK_MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(CHUNK_BYTES as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.ring.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.chunks.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.next_chunk.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..SUPERBLOCK_CRC]);
        bytes[SUPERBLOCK_CRC..SUPERBLOCK_CRC + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// What one copy says; `None` if it is damaged, of another version, or speaks of more than can be counted.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<64>()?;
        let is_ours = bytes[0..8] == SUPERBLOCK_MAGIC
            && u16_at(bytes, 8) == VERSION
            && u64::from(u32_at(bytes, 12)) == CHUNK_BYTES
            && u32_at(bytes, SUPERBLOCK_CRC) == crc32c::crc32c(&bytes[..SUPERBLOCK_CRC]);
        let superblock = Superblock {
            number: u64_at(bytes, 16),
            ring: u64_at(bytes, 24),
            chunks: u64_at(bytes, 32),
            next_chunk: u64_at(bytes, 40),
        };
        let countable =
            superblock.chunks <= CHUNKS_MAX && superblock.next_chunk <= CHUNKS_MAX && superblock.number <= COUNT_MAX;
        (is_ours && countable).then_some(superblock)
    }
}

/// Chunks after which a ring must start anew: far beyond what a disk survives (256 PiB written), and so low that
/// every position fits into a slot's 52 bits of granules.
pub const CHUNKS_MAX: u64 = 1 << 38;
const _: () = assert!(CHUNKS_MAX * (CHUNK_BYTES / GRANULE_BYTES) <= 1 << (64 - SLOT_COUNT_BITS));

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |field| u16::from_le_bytes(*field))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |field| u32::from_le_bytes(*field))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |field| u64::from_le_bytes(*field))
}

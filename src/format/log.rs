//! The bytes of a write log: superblock and records. Pure: it converts, checks and bounds, and knows no file.
//!
//! The tables that bind are in `design/write-log.md`; `tests.rs` beside this file holds golden bytes. All integers are
//! little-endian, all checksums CRC32C. Decoders take any bytes: they answer `None` or an error, never more.

use crate::error::{Error, ErrorKind, Result};
use crate::limits::{COUNT_MAX, RECORD_BYTES_MAX, VOLUME_BYTES_MAX};
use crate::seal::{LogSealer, TAG_BYTES};
use crate::units::{
    BLOCK_SIZE, BlockCount, BlockRange, ByteLen, Epoch, Lba, LogOffset, Sequence, StoreId, Token, UnixMillis, VolumeId,
};

#[cfg(test)]
mod tests;

/// Bytes of one copy of the superblock.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Where the ring begins in the file: after the two copies of the superblock.
pub const RING_START: u64 = 2 * SUPERBLOCK_BYTES as u64;
/// Every record begins at, and is padded to, a multiple of this.
pub const RECORD_ALIGN: u64 = 64;
/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 64;
/// Blocks in the longest record.
pub const RECORD_BLOCKS_MAX: u64 = RECORD_BYTES_MAX / BLOCK_SIZE;
/// Bytes of the longest record, all included.
pub const RECORD_SPAN_MAX: u64 = write_span(RECORD_BLOCKS_MAX, true);
/// Bytes of a fence record.
pub const FENCE_SPAN: u64 = 2 * HEADER_BYTES as u64;
/// The magic number with which every record begins ("vrec"), so that a search can skip what is none.
pub const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"vrec");
/// The same as it stands at the start of a record.
pub const RECORD_MAGIC_BYTES: [u8; 4] = RECORD_MAGIC.to_le_bytes();

const SUPERBLOCK_MAGIC: &[u8; 8] = b"varvelog";
const VERSION: u16 = 1;
/// Incompatible feature: records are sealed with the key of the volume.
const FEATURE_SEALED: u32 = 1;
const INCOMPATIBLE_KNOWN: u32 = FEATURE_SEALED;
/// In a record's flags: it is sealed.
const FLAG_SEALED: u8 = 1;
/// Where the first block stands that a record changes, or what it is sealed as.
const START_AT: usize = 32;
/// In the mark field: nothing is known to be durable.
const MARK_UNKNOWN: u32 = u32::MAX;

const _: () = assert!(BLOCK_SIZE.is_multiple_of(RECORD_ALIGN));
const _: () = assert!(RING_START.is_multiple_of(BLOCK_SIZE));
const _: () = assert!(RECORD_SPAN_MAX < 34 << 20);

/// Who a log belongs to, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The store in which the volume is at home.
    pub store: StoreId,
    /// The volume.
    pub volume: VolumeId,
    /// The attachment that writes it.
    pub epoch: Epoch,
    /// The token of that attachment.
    pub token: Token,
    /// When that attachment began, for people.
    pub attached_at: UnixMillis,
}

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Counts the superblocks written; the newest valid one is true.
    pub generation: u64,
    /// Who the log belongs to.
    pub identity: LogIdentity,
    /// When the log was created, for people.
    pub created_at: UnixMillis,
    /// Length of the ring in bytes, a multiple of the block size.
    pub ring_length: ByteLen,
    /// Where the first record to keep is, or will be.
    pub tail: LogOffset,
    /// The sequence of the first write or zero record at or after the tail.
    pub tail_sequence: Sequence,
    /// The incarnation that was current just before the record at the tail.
    pub tail_incarnation: u64,
    /// The incarnation that writes the log now.
    pub incarnation: u64,
    /// Everything before this is known to have been durable when the superblock was written.
    pub durable_to: LogOffset,
    /// Write and zero records are sealed with the key of the volume.
    pub sealed: bool,
}

/// What a record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// Blocks get the content that follows.
    Write,
    /// Blocks become zero.
    Zero,
    /// A new incarnation begins.
    Fence,
    /// Nothing: it fills the ring to its end.
    Pad,
}

/// The fields of a record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What it does.
    pub kind: RecordKind,
    /// The attachment that wrote it.
    pub epoch: Epoch,
    /// Its place in the sequence; of a fence or pad, the place of the next write or zero record.
    pub sequence: Sequence,
    /// The start of the log that wrote it.
    pub incarnation: u64,
    /// The blocks it changes; empty for a fence or pad.
    pub range: BlockRange,
    /// Where it was meant to be: tells a misdirected or an old record.
    pub offset: LogOffset,
    /// CRC32C of the first block of a write; else 0.
    pub first_crc: u32,
    /// The end of what was durable when it was written, if known.
    pub mark: Option<LogOffset>,
    /// What it changes is sealed with the key of the volume.
    pub sealed: bool,
}

/// What a fence says beyond its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FenceBody {
    /// The incarnation whose records end here.
    pub previous: u64,
    /// Who writes from here on. The header has the same epoch.
    pub identity: LogIdentity,
}

/// Bytes of the table in a write of `blocks` blocks: the checksum of each but the first, which is in the header, and, if it is sealed, the tag of
/// the header and that of each block.
pub const fn table_bytes(blocks: u64, sealed: bool) -> usize {
    let tags = if sealed { tags_bytes(blocks) } else { 0 };
    ((blocks.saturating_sub(1) * 4 + tags).next_multiple_of(RECORD_ALIGN)) as usize
}

const fn tags_bytes(blocks: u64) -> u64 {
    (blocks + 1) * TAG_BYTES as u64
}

/// Bytes of a write record of `blocks` blocks.
pub const fn write_span(blocks: u64, sealed: bool) -> u64 {
    HEADER_BYTES as u64 + table_bytes(blocks, sealed) as u64 + blocks * BLOCK_SIZE
}

/// Bytes of a zero record.
pub const fn zero_span(sealed: bool) -> u64 {
    HEADER_BYTES as u64 + zero_extension(sealed) as u64
}

const fn zero_extension(sealed: bool) -> usize {
    if sealed { TAG_BYTES.next_multiple_of(RECORD_ALIGN as usize) } else { 0 }
}

impl RecordHeader {
    /// Bytes after the header that its checksum covers: the table, or the body of a fence.
    pub fn extension_bytes(&self) -> usize {
        match self.kind {
            RecordKind::Write => table_bytes(self.range.count.0, self.sealed),
            RecordKind::Fence => HEADER_BYTES,
            RecordKind::Zero => zero_extension(self.sealed),
            RecordKind::Pad => 0,
        }
    }

    /// Bytes of the whole record in a ring of this length.
    pub fn span(&self, ring_length: ByteLen) -> u64 {
        match self.kind {
            RecordKind::Write => write_span(self.range.count.0, self.sealed),
            RecordKind::Zero => zero_span(self.sealed),
            RecordKind::Fence => FENCE_SPAN,
            RecordKind::Pad => ring_length.0 - self.offset.0 % ring_length.0,
        }
    }

    /// The offset right after the record.
    pub fn end(&self, ring_length: ByteLen) -> LogOffset {
        LogOffset(self.offset.0 + self.span(ring_length))
    }

    /// Where the payload begins.
    pub fn payload(&self) -> LogOffset {
        LogOffset(self.offset.0 + (HEADER_BYTES + self.extension_bytes()) as u64)
    }
}

/// The checksum of one block of payload.
pub fn block_crc(block: &[u8]) -> u32 {
    crc32c::crc32c(block)
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

fn take_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

fn take_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

/// Appends a write record, but for its payload, to `out`: header and table of checksums. Only `header.first_crc` is ignored.
/// `data` is the payload; its length is a multiple of the block size and says how many blocks there are. If the record is sealed, `data` is
/// what its blocks were sealed as, and `seal` has their tags.
pub fn encode_write(header: &RecordHeader, data: &[u8], seal: Option<RecordSeal<'_>>, out: &mut Vec<u8>) {
    let at = out.len();
    let blocks = BlockCount((data.len() / BLOCK_SIZE as usize) as u64);
    let range = BlockRange::new(header.range.start, blocks);
    let mut header = RecordHeader { kind: RecordKind::Write, range, sealed: seal.is_some(), ..*header };
    out.resize(at + HEADER_BYTES + table_bytes(blocks.0, header.sealed), 0);
    for (index, block) in data.chunks_exact(BLOCK_SIZE as usize).enumerate() {
        match index {
            0 => header.first_crc = block_crc(block),
            _ => put(out, at + HEADER_BYTES + (index - 1) * 4, block_crc(block).to_le_bytes()),
        }
    }
    if let Some(seal) = &seal {
        for (index, tag) in seal.tags.iter().enumerate() {
            put(out, at + block_tag_at(&header, index), tag.to_le_bytes());
        }
    }
    finish_record(&header, seal.map(|seal| seal.sealer), &mut out[at..]);
}

/// Appends a zero record to `out`, sealed if there is something to seal it with.
pub fn encode_zero(header: &RecordHeader, sealer: Option<&LogSealer>, out: &mut Vec<u8>) {
    let at = out.len();
    let header = RecordHeader { kind: RecordKind::Zero, sealed: sealer.is_some(), ..*header };
    out.resize(at + HEADER_BYTES + header.extension_bytes(), 0);
    finish_record(&header, sealer, &mut out[at..]);
}

/// Appends a pad record to `out`: a header alone.
pub fn encode_pad(header: &RecordHeader, out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + HEADER_BYTES, 0);
    finish_record(&RecordHeader { kind: RecordKind::Pad, ..*header }, None, &mut out[at..]);
}

/// How a write record was sealed.
#[derive(Clone, Copy)]
pub struct RecordSeal<'a> {
    /// What sealed it.
    pub sealer: &'a LogSealer,
    /// The tags of its blocks.
    pub tags: &'a [u128],
}

/// Where the tag of a sealed record's header stands.
fn header_tag_at(header: &RecordHeader) -> usize {
    let checksums = if header.kind == RecordKind::Write { header.range.count.0.saturating_sub(1) * 4 } else { 0 };
    HEADER_BYTES + checksums as usize
}

fn block_tag_at(header: &RecordHeader, index: usize) -> usize {
    header_tag_at(header) + (index + 1) * TAG_BYTES
}

/// The tag of block `index` of a sealed write. `bytes` are its header and table, verified.
pub fn block_tag(header: &RecordHeader, bytes: &[u8], index: u64) -> Option<u128> {
    let at = block_tag_at(header, usize::try_from(index).ok()?);
    Some(u128::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The header of a sealed record with where its blocks belong, of which `bytes`, verified, are header and table; `None` if it is not what was
/// sealed, or makes no sense.
pub fn open_header(header: &RecordHeader, bytes: &[u8], sealer: &LogSealer) -> Option<RecordHeader> {
    let tag = u128::from_le_bytes(*bytes.get(header_tag_at(header)..)?.first_chunk()?);
    let start = sealer.open_start(header.offset, &sealed_with(bytes)?, take_u64(bytes, START_AT), tag)?;
    let range = BlockRange::new(start, header.range.count);
    is_in_a_volume(start.0, range.count.0).then_some(RecordHeader { range, ..*header })
}

/// The bytes of a header that are authenticated with where its blocks belong: all the others but magic and checksum.
fn sealed_with(bytes: &[u8]) -> Option<[u8; HEADER_BYTES - 16]> {
    let mut rest = [0; HEADER_BYTES - 16];
    rest[..START_AT - 8].copy_from_slice(bytes.get(8..START_AT)?);
    rest[START_AT - 8..].copy_from_slice(bytes.get(START_AT + 8..HEADER_BYTES)?);
    Some(rest)
}

fn is_in_a_volume(start: u64, count: u64) -> bool {
    start.checked_add(count).is_some_and(|end| end <= VOLUME_BYTES_MAX / BLOCK_SIZE)
}

/// The bytes of a fence record.
pub fn encode_fence(header: &RecordHeader, body: &FenceBody) -> [u8; FENCE_SPAN as usize] {
    let mut bytes = [0; FENCE_SPAN as usize];
    put(&mut bytes, 64, body.previous.to_le_bytes());
    put(&mut bytes, 72, body.identity.token.0.to_le_bytes());
    put(&mut bytes, 88, body.identity.store.0.to_le_bytes());
    put(&mut bytes, 96, body.identity.volume.0.to_le_bytes());
    put(&mut bytes, 104, body.identity.attached_at.0.to_le_bytes());
    let header = RecordHeader { kind: RecordKind::Fence, epoch: body.identity.epoch, sealed: false, ..*header };
    finish_record(&header, None, &mut bytes);
    bytes
}

/// Writes the header's fields, seals where its blocks belong if it is to be sealed, and last writes the checksum over all the rest of `bytes`.
fn finish_record(header: &RecordHeader, sealer: Option<&LogSealer>, bytes: &mut [u8]) {
    let kind: u8 = match header.kind {
        RecordKind::Write => 1,
        RecordKind::Zero => 2,
        RecordKind::Fence => 3,
        RecordKind::Pad => 4,
    };
    let units = header.mark.map_or(u64::MAX, |mark| (header.offset.0 - mark.0) / RECORD_ALIGN);
    put(bytes, 0, RECORD_MAGIC.to_le_bytes());
    bytes[8] = kind;
    bytes[9] = if sealer.is_some() { FLAG_SEALED } else { 0 };
    put(bytes, 12, header.epoch.0.to_le_bytes());
    put(bytes, 16, header.sequence.0.to_le_bytes());
    put(bytes, 24, header.incarnation.to_le_bytes());
    put(bytes, START_AT, header.range.start.0.to_le_bytes());
    put(bytes, 40, header.range.count.0.to_le_bytes());
    put(bytes, 48, header.offset.0.to_le_bytes());
    put(bytes, 56, header.first_crc.to_le_bytes());
    put(bytes, 60, u32::try_from(units).unwrap_or(MARK_UNKNOWN).to_le_bytes());
    if let Some((sealer, rest)) = sealer.zip(sealed_with(bytes)) {
        let (start, tag) = sealer.seal_start(header.offset, &rest, header.range.start);
        put(bytes, START_AT, start.to_le_bytes());
        put(bytes, header_tag_at(header), tag.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[8..]);
    put(bytes, 4, crc.to_le_bytes());
}

/// What the first 64 bytes of a record claim, before anything is verified but that it makes sense: the right magic, known
/// values, bounded lengths, and the place `offset` in a ring of `ring_length`, without wrapping. Where the blocks of a sealed record belong is not
/// known yet.
pub fn peek_header(bytes: &[u8; HEADER_BYTES], offset: LogOffset, ring_length: ByteLen) -> Option<RecordHeader> {
    let (flags, reserved) = (bytes[9], [bytes[10], bytes[11]]);
    let is_known = flags & !FLAG_SEALED == 0 && reserved == [0, 0];
    if take_u32(bytes, 0) != RECORD_MAGIC || !is_known || take_u64(bytes, 48) != offset.0 {
        return None;
    }
    let kind = match bytes[8] {
        1 => RecordKind::Write,
        2 => RecordKind::Zero,
        3 => RecordKind::Fence,
        4 => RecordKind::Pad,
        _ => return None,
    };
    let sealed = flags & FLAG_SEALED != 0;
    let (start, count) = (if sealed { 0 } else { take_u64(bytes, START_AT) }, take_u64(bytes, 40));
    let fits = match kind {
        RecordKind::Write => (1..=RECORD_BLOCKS_MAX).contains(&count),
        RecordKind::Zero => count > 0,
        RecordKind::Fence | RecordKind::Pad => count == 0 && start == 0 && !sealed,
    };
    let mark = match take_u32(bytes, 60) {
        MARK_UNKNOWN => None,
        units => Some(LogOffset(offset.0.checked_sub(u64::from(units) * RECORD_ALIGN)?)),
    };
    let header = RecordHeader {
        kind,
        epoch: Epoch(take_u32(bytes, 12)),
        sequence: Sequence(take_u64(bytes, 16)),
        incarnation: take_u64(bytes, 24),
        range: BlockRange::new(Lba(start), BlockCount(count)),
        offset,
        first_crc: take_u32(bytes, 56),
        mark,
        sealed,
    };
    let inside =
        fits && is_in_a_volume(start, count) && offset.0 % ring_length.0 + header.span(ring_length) <= ring_length.0;
    inside.then_some(header)
}

/// True if the checksum in the header is that of the rest of `bytes`: header and extension.
pub fn header_verifies(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER_BYTES && take_u32(bytes, 4) == crc32c::crc32c(&bytes[8..])
}

/// The checksum that block `index` of a write must have. `bytes` are its header and table, verified.
pub fn expected_crc(bytes: &[u8], index: u64) -> Option<u32> {
    let at =
        if index == 0 { 56 } else { HEADER_BYTES.checked_add(usize::try_from(index - 1).ok()?.checked_mul(4)?)? };
    let end = at.checked_add(4)?;
    (end <= bytes.len()).then(|| take_u32(bytes, at))
}

/// The body of a fence of which `bytes`, verified, are header and body.
pub fn decode_fence(bytes: &[u8; FENCE_SPAN as usize]) -> FenceBody {
    FenceBody {
        previous: take_u64(bytes, 64),
        identity: LogIdentity {
            token: Token(u128::from_le_bytes(take(bytes, 72))),
            store: StoreId(take_u64(bytes, 88)),
            volume: VolumeId(take_u64(bytes, 96)),
            attached_at: UnixMillis(take_u64(bytes, 104)),
            epoch: Epoch(take_u32(bytes, 12)),
        },
    }
}

/// The bytes of one copy of a superblock.
pub fn encode_superblock(value: &Superblock) -> Box<[u8; SUPERBLOCK_BYTES]> {
    let mut bytes = Box::new([0; SUPERBLOCK_BYTES]);
    let out = bytes.as_mut_slice();
    put(out, 0, *SUPERBLOCK_MAGIC);
    put(out, 12, VERSION.to_le_bytes());
    put(out, 16, if value.sealed { FEATURE_SEALED } else { 0 }.to_le_bytes());
    put(out, 24, value.generation.to_le_bytes());
    put(out, 32, value.identity.store.0.to_le_bytes());
    put(out, 40, value.identity.volume.0.to_le_bytes());
    put(out, 48, value.identity.epoch.0.to_le_bytes());
    put(out, 56, value.identity.token.0.to_le_bytes());
    put(out, 72, value.created_at.0.to_le_bytes());
    put(out, 80, value.identity.attached_at.0.to_le_bytes());
    put(out, 88, value.ring_length.0.to_le_bytes());
    put(out, 96, value.tail.0.to_le_bytes());
    put(out, 104, value.tail_sequence.0.to_le_bytes());
    put(out, 112, value.tail_incarnation.to_le_bytes());
    put(out, 120, value.incarnation.to_le_bytes());
    put(out, 128, value.durable_to.0.to_le_bytes());
    let crc = crc32c::crc32c(&out[12..]);
    put(out, 8, crc.to_le_bytes());
    bytes
}

/// The slot, 0 or 1, that a superblock of this generation is written to.
pub fn superblock_slot(generation: u64) -> u64 {
    generation % 2
}

/// Reads one copy of a superblock.
///
/// # Errors
/// `Damaged` for bytes that are not what was written; `Unsupported` for a newer version.
pub fn decode_superblock(bytes: &[u8; SUPERBLOCK_BYTES]) -> Result<Superblock> {
    if bytes[..8] != *SUPERBLOCK_MAGIC {
        return Err(Error::damaged("it does not begin as a write log does"));
    }
    if take_u32(bytes, 8) != crc32c::crc32c(&bytes[12..]) {
        return Err(Error::damaged("its checksum is wrong"));
    }
    let version = u16::from_le_bytes(take(bytes, 12));
    let unknown = take_u32(bytes, 16) & !INCOMPATIBLE_KNOWN;
    if version != VERSION || unknown != 0 {
        let message =
            format!("it has version {version} and the unknown features {unknown:#x}; use the varve that wrote it");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let value = Superblock {
        generation: take_u64(bytes, 24),
        identity: LogIdentity {
            store: StoreId(take_u64(bytes, 32)),
            volume: VolumeId(take_u64(bytes, 40)),
            epoch: Epoch(take_u32(bytes, 48)),
            token: Token(u128::from_le_bytes(take(bytes, 56))),
            attached_at: UnixMillis(take_u64(bytes, 80)),
        },
        created_at: UnixMillis(take_u64(bytes, 72)),
        ring_length: ByteLen(take_u64(bytes, 88)),
        tail: LogOffset(take_u64(bytes, 96)),
        tail_sequence: Sequence(take_u64(bytes, 104)),
        tail_incarnation: take_u64(bytes, 112),
        incarnation: take_u64(bytes, 120),
        durable_to: LogOffset(take_u64(bytes, 128)),
        sealed: take_u32(bytes, 16) & FEATURE_SEALED != 0,
    };
    let ring = value.ring_length.0;
    let counts = [ring, value.tail.0, value.generation, value.tail_sequence.0, value.durable_to.0];
    let bounded = ring > 0
        && value.tail_sequence.0 > 0
        && ring.is_multiple_of(BLOCK_SIZE)
        && counts.into_iter().all(|count| count < COUNT_MAX);
    if !bounded || !value.tail.0.is_multiple_of(RECORD_ALIGN) {
        return Err(Error::damaged("its lengths make no sense"));
    }
    Ok(value)
}

//! Walking over the bytes of a ring: which record is at a place, what follows on what, and what lies beyond the end.

use std::io::IoSliceMut;

use super::read::fence_body;
use super::sealing::opened;
use super::shared::Ring;
use crate::error::Result;
use crate::format::log::{
    FenceBody, HEADER_BYTES, RECORD_ALIGN, RECORD_MAGIC_BYTES, RECORD_SPAN_MAX, RecordHeader, RecordKind, block_crc,
    expected_crc, header_verifies, peek_header,
};
use crate::units::{BLOCK_SIZE, Epoch, LogOffset, Sequence};

/// How far beyond the longest record a search for later records goes on.
const SEARCH_SLACK: u64 = 16 << 20;
/// Payload verified at a time.
const VERIFY_BYTES: u64 = 1 << 20;

/// A part of the ring in memory.
pub(super) struct Window {
    ring: Ring,
    buffer: Vec<u8>,
    start: LogOffset,
    chunk: usize,
}

impl Window {
    /// A window that reads at least `chunk` bytes at a time.
    pub fn new(ring: Ring, chunk: usize) -> Self {
        Window { ring, buffer: Vec::new(), start: LogOffset(0), chunk }
    }

    /// The bytes at `offset`; they must lie within one lap.
    pub fn get(&mut self, offset: LogOffset, length: usize) -> Result<&[u8]> {
        let inside = offset >= self.start && offset.0 + length as u64 <= self.start.0 + self.buffer.len() as u64;
        if !inside {
            let wanted = (self.chunk.max(length) as u64).min(self.ring.room(offset)) as usize;
            self.buffer.resize(wanted, 0);
            if let Err(error) = self.ring.read(&mut [IoSliceMut::new(&mut self.buffer)], offset) {
                self.buffer.clear();
                return Err(error);
            }
            self.start = offset;
        }
        let at = (offset.0 - self.start.0) as usize;
        Ok(&self.buffer[at..at + length])
    }
}

/// What is at a place of the ring.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    /// No record of this place.
    Nothing,
    /// What claims to be a record of this place, but does not verify.
    Claim(RecordHeader),
    /// A record whose header (and table, or body) verifies; its payload is another matter.
    Record(RecordHeader, Option<FenceBody>),
}

/// Looks at a place.
pub(super) fn record_at(window: &mut Window, offset: LogOffset) -> Result<Found> {
    let ring = window.ring.clone();
    let bytes = window.get(offset, HEADER_BYTES)?;
    let header = bytes.first_chunk::<HEADER_BYTES>().and_then(|bytes| peek_header(bytes, offset, ring.length));
    let Some(header) = header else { return Ok(Found::Nothing) };
    let bytes = window.get(offset, HEADER_BYTES + header.extension_bytes())?;
    if !header_verifies(bytes) {
        return Ok(Found::Claim(header));
    }
    let changes = matches!(header.kind, RecordKind::Write | RecordKind::Zero);
    if changes && header.sealed != ring.sealing.is_some() {
        // No log writes both: it is something else that looks like a record, in what a client wrote, say.
        return Ok(Found::Nothing);
    }
    let fence = if header.kind == RecordKind::Fence { fence_body(bytes) } else { None };
    let header = opened(&ring, header, bytes)?;
    Ok(Found::Record(header, fence))
}

/// True if every block of a record's payload has its checksum.
pub(super) fn payload_verifies(window: &mut Window, header: &RecordHeader, table: &mut Vec<u8>) -> Result<bool> {
    if header.kind != RecordKind::Write {
        return Ok(true);
    }
    table.clear();
    table.extend_from_slice(window.get(header.offset, HEADER_BYTES + header.extension_bytes())?);
    let blocks = header.range.count.0;
    let mut index = 0;
    while index < blocks {
        let count = (blocks - index).min(VERIFY_BYTES / BLOCK_SIZE);
        let at = LogOffset(header.payload().0 + index * BLOCK_SIZE);
        let bytes = window.get(at, (count * BLOCK_SIZE) as usize)?;
        for block in bytes.chunks_exact(BLOCK_SIZE as usize) {
            if expected_crc(table, index) != Some(block_crc(block)) {
                return Ok(false);
            }
            index += 1;
        }
    }
    Ok(true)
}

/// What the next record must be to follow on the one before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    pub offset: LogOffset,
    pub sequence: Sequence,
    pub incarnation: u64,
    /// Not known before the first record: the superblock may be younger than what is at the tail.
    pub epoch: Option<Epoch>,
}

impl Chain {
    /// True if a verified record follows.
    pub fn accepts(&self, header: &RecordHeader, fence: Option<&FenceBody>) -> bool {
        let incarnation = match fence {
            Some(fence) => fence.previous == self.incarnation,
            None => header.incarnation == self.incarnation && self.epoch.is_none_or(|epoch| epoch == header.epoch),
        };
        incarnation && header.sequence == self.sequence
    }

    /// Goes past an accepted record.
    pub fn advance(&mut self, header: &RecordHeader, end: LogOffset) {
        self.offset = end;
        self.incarnation = header.incarnation;
        self.epoch = Some(header.epoch);
        if matches!(header.kind, RecordKind::Write | RecordKind::Zero) {
            self.sequence = self.sequence.next();
        }
    }
}

/// What lies beyond a place where the records end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beyond {
    /// Records of the same history.
    pub records: u64,
    /// The furthest place that one of them knows to have been durable.
    pub mark: Option<LogOffset>,
}

/// Searches for records of one of these incarnations, or of one that a fence derives from them, from `from` on, and goes on
/// for as long as it finds some within the length of the longest record and some slack.
pub(super) fn look_beyond(
    window: &mut Window,
    from: LogOffset,
    limit: LogOffset,
    known: &mut Vec<u64>,
) -> Result<Beyond> {
    let mut beyond = Beyond::default();
    let mut at = from;
    let mut stop = LogOffset(limit.0.min(from.0 + RECORD_SPAN_MAX + SEARCH_SLACK));
    while at < stop {
        let mut next = LogOffset(at.0 + RECORD_ALIGN);
        if window.get(at, 4)? == RECORD_MAGIC_BYTES
            && let Found::Record(header, fence) = record_at(window, at)?
        {
            let ours = fence.map_or(header.incarnation, |fence| fence.previous);
            if known.contains(&ours) {
                if fence.is_some() {
                    known.push(header.incarnation);
                }
                beyond.records += 1;
                beyond.mark = beyond.mark.max(header.mark);
                next = header.end(window.ring.length);
                stop = LogOffset(limit.0.min(next.0 + RECORD_SPAN_MAX + SEARCH_SLACK));
            }
        }
        at = next;
    }
    Ok(beyond)
}

//! Reading records back while the log is in use, without a lock.
//!
//! A place may be reused while it is read. Reuse begins only after the reusable limit has passed it, so a read is good
//! if the limit has still not passed the record after the bytes were read, and its result is thrown away otherwise.

use std::io::IoSliceMut;
use std::sync::Arc;

use super::scan::{Found, Window, record_at};
use super::sealing::open_blocks;
use super::shared::{Ring, Shared};
use super::{LogPlace, RecordView};
use crate::error::{Error, Result};
use crate::format::log::{
    FENCE_SPAN, FenceBody, HEADER_BYTES, RecordHeader, RecordKind, block_crc, decode_fence, expected_crc,
    header_verifies, peek_header, table_bytes,
};
use crate::units::{BLOCK_SIZE, LogOffset, Sequence};
use crate::work::simulated::{self, Mutation};

/// Header and table are read into a buffer of this length on the stack where they fit.
const SCRATCH_BYTES: usize = 4096;
/// Bytes read at a time when only headers are of interest.
const HEADERS_WINDOW_BYTES: usize = 256 << 10;

/// How a read has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogRead {
    /// The buffer holds the blocks, verified.
    Done,
    /// The record has been released: look up again where the blocks are. The buffer's content is undefined.
    Gone,
}

/// Reads an open log. Clones read the same log; any number of threads may.
#[derive(Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

impl LogReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        LogReader { shared }
    }

    /// Fills `buffer` with blocks of the write record that begins at `record`, from its block
    /// `first_block` on, and verifies them.
    ///
    /// # Errors
    /// `Damaged` if the record or one of these blocks is not what was written; `Invalid` for a buffer that is empty or not of
    /// whole blocks, or blocks that the record does not have; `Io`.
    pub fn read_blocks(&self, record: LogOffset, first_block: u32, buffer: &mut [u8]) -> Result<LogRead> {
        if buffer.is_empty() || !(buffer.len() as u64).is_multiple_of(BLOCK_SIZE) {
            return Err(Error::invalid("the write log reads whole blocks only"));
        }
        self.guarded(record, || read_record(&self.shared.ring, record, u64::from(first_block), buffer))
            .map(|done| done.map_or(LogRead::Gone, |()| LogRead::Done))
    }

    /// The header of the record that begins at `offset`, verified; `None` if it has been released.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub fn header_at(&self, offset: LogOffset) -> Result<Option<RecordView>> {
        let ring = &self.shared.ring;
        let header = self.guarded(offset, || self.header(offset).map(|(header, _)| header))?;
        Ok(header.map(|header| view(&header, ring)))
    }

    /// The headers of all records from `from` on, where a record begins, to `to`, where one ends. The caller keeps them
    /// from being released meanwhile.
    pub fn headers(&self, from: LogOffset, to: LogOffset) -> Headers {
        Headers::new(self.shared.ring.clone(), from, to)
    }

    /// The sequence and the incarnation with which recovery would have to begin at `offset`.
    pub(super) fn chain_at(&self, offset: LogOffset) -> Result<(Sequence, u64)> {
        let (header, fence) = self.header(offset)?;
        Ok((header.sequence, fence.map_or(header.incarnation, |fence| fence.previous)))
    }

    /// Runs `read`, and answers `None`, whatever it said, if the record was released before it was done.
    fn guarded<T>(&self, record: LogOffset, read: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        if record < self.shared.reusable() {
            return Ok(None);
        }
        let result = read();
        if record < self.shared.reusable() {
            return Ok(None);
        }
        result.map(Some)
    }

    fn header(&self, offset: LogOffset) -> Result<(RecordHeader, Option<FenceBody>)> {
        let ring = &self.shared.ring;
        let mut window = Window::new(ring.clone(), SCRATCH_BYTES);
        match record_at(&mut window, offset)? {
            Found::Record(header, fence) => Ok((header, fence)),
            Found::Claim(_) | Found::Nothing => Err(damaged(ring, offset)),
        }
    }
}

/// Reads whole blocks of the write record that begins at `record`, and verifies them.
pub(super) fn read_record(ring: &Ring, record: LogOffset, first: u64, buffer: &mut [u8]) -> Result<()> {
    let mut scratch = [0; SCRATCH_BYTES];
    let blocks = buffer.len() as u64 / BLOCK_SIZE;
    // Most reads want all of a short record: then header, table and payload come in one call.
    let known = HEADER_BYTES + table_bytes(blocks, ring.sealing.is_some());
    if first == 0 && known <= SCRATCH_BYTES && (known + buffer.len()) as u64 <= ring.room(record) {
        let front = &mut scratch[..known];
        ring.read(&mut [IoSliceMut::new(front), IoSliceMut::new(buffer)], record)?;
        let header = expect_write(ring, front, record)?;
        if header.range.count.0 == blocks {
            return verify_and_open(ring, front, &header, first, buffer);
        }
    }
    let length = (SCRATCH_BYTES as u64).min(ring.room(record)) as usize;
    ring.read(&mut [IoSliceMut::new(&mut scratch[..length])], record)?;
    let header = expect_write(ring, &scratch, record)?;
    if first + blocks > header.range.count.0 {
        let message = format!(
            "record {} has {} blocks: {blocks} from {first} on cannot be read",
            header.sequence, header.range.count
        );
        return Err(Error::invalid(message));
    }
    let known = HEADER_BYTES + header.extension_bytes();
    let mut long = Vec::new();
    let front = if known <= length {
        &scratch[..known]
    } else {
        long.resize(known, 0);
        ring.read(&mut [IoSliceMut::new(&mut long)], record)?;
        &long[..]
    };
    ring.read(&mut [IoSliceMut::new(buffer)], LogOffset(header.payload().0 + first * BLOCK_SIZE))?;
    verify_and_open(ring, front, &header, first, buffer)
}

/// The header in `front`, if it is the expected one; its checksum is not looked at yet.
fn expect_write(ring: &Ring, front: &[u8], record: LogOffset) -> Result<RecordHeader> {
    let header = front.first_chunk::<HEADER_BYTES>().and_then(|bytes| peek_header(bytes, record, ring.length));
    let header = header.filter(|header| header.kind == RecordKind::Write);
    header.ok_or_else(|| damaged(ring, record))
}

fn verify_and_open(ring: &Ring, front: &[u8], header: &RecordHeader, first: u64, buffer: &mut [u8]) -> Result<()> {
    verify(ring, front, header, first, buffer)?;
    if header.sealed != ring.sealing.is_some() {
        return Err(damaged(ring, header.offset));
    }
    open_blocks(ring, header, front, first, buffer)
}

fn verify(ring: &Ring, front: &[u8], header: &RecordHeader, first: u64, buffer: &[u8]) -> Result<()> {
    if !header_verifies(front) {
        return Err(damaged(ring, header.offset));
    }
    for (index, block) in buffer.chunks_exact(BLOCK_SIZE as usize).enumerate() {
        let index = first + index as u64;
        if expected_crc(front, index) != Some(block_crc(block)) && !simulated::has(Mutation::IgnoreChecksum) {
            let message =
                format!("block {index} of the record at {} of the write log {} is damaged", header.offset, ring.name);
            return Err(Error::damaged(message));
        }
    }
    Ok(())
}

fn damaged(ring: &Ring, offset: LogOffset) -> Error {
    Error::damaged(format!("the record at {offset} of the write log {} is damaged, or not the one expected", ring.name))
}

pub(super) fn view(header: &RecordHeader, ring: &Ring) -> RecordView {
    RecordView {
        place: LogPlace { record: header.offset, sequence: header.sequence, end: header.end(ring.length) },
        kind: header.kind,
        epoch: header.epoch,
        range: header.range,
    }
}

/// The headers of a run of records, each verified, in order; payloads are not looked at. Ends after the first error.
pub struct Headers {
    window: Window,
    ring: Ring,
    next: LogOffset,
    to: LogOffset,
}

impl Headers {
    pub(super) fn new(ring: Ring, from: LogOffset, to: LogOffset) -> Self {
        Headers { window: Window::new(ring.clone(), HEADERS_WINDOW_BYTES), ring, next: from, to }
    }
}

impl Iterator for Headers {
    type Item = Result<RecordView>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.to {
            return None;
        }
        let offset = self.next;
        self.next = self.to;
        Some(match record_at(&mut self.window, offset) {
            Ok(Found::Record(header, _)) => {
                self.next = header.end(self.ring.length);
                Ok(view(&header, &self.ring))
            }
            Ok(_) => Err(damaged(&self.ring, offset)),
            Err(error) => Err(error),
        })
    }
}

/// Reads the body of a fence out of its bytes.
pub(super) fn fence_body(bytes: &[u8]) -> Option<FenceBody> {
    bytes.first_chunk::<{ FENCE_SPAN as usize }>().map(decode_fence)
}

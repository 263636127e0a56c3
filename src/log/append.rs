//! Appending: many records, one system call.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use super::commit::Poke;
use super::shared::{Ends, Shared};
use super::{LOG_RESERVE_BYTES, LogPlace};
use crate::error::{Error, Result};
use crate::format::log::{
    RECORD_BLOCKS_MAX, RecordHeader, RecordKind, RecordSeal, encode_pad, encode_write, encode_zero, write_span,
    zero_span,
};
use crate::seal::LogSealer;
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange, ByteLen, Lba, LogOffset, Sequence};

/// Unsynced bytes after which the log asks for a sync by itself: bounds what a restart must write again.
const UNSYNCED_BYTES_MAX: u64 = 64 << 20;

/// A record to append.
#[derive(Clone, Copy, Debug)]
pub enum NewRecord<'a> {
    /// New content.
    Write {
        /// The first block.
        lba: Lba,
        /// Whole blocks, at least one, at most [`RECORD_BYTES_MAX`](crate::limits::RECORD_BYTES_MAX).
        data: &'a [u8],
    },
    /// Blocks that become zero.
    Zero {
        /// The first block.
        lba: Lba,
        /// How many, at least one.
        blocks: BlockCount,
    },
}

/// Room for sealed payloads that is kept from batch to batch, in bytes.
const SEALED_BYTES_KEPT: usize = 1 << 20;

/// A piece of what is to be written: a range of the arena, then maybe the payload of a record.
struct Piece {
    arena: Range<usize>,
    payload: Payload,
}

enum Payload {
    None,
    /// As the client gave it with this record.
    Given(usize),
    /// This range of what was sealed.
    Sealed(Range<usize>),
}

/// The one who appends. Not shared: the volume's lock is around it.
pub struct Appender {
    shared: Arc<Shared>,
    poke: Poke,
    ends: Ends,
    /// Headers and tables of the batch at hand; kept for its capacity, as are the next two.
    arena: Vec<u8>,
    /// Payloads of the batch at hand, sealed, and the tags of the blocks of one record.
    sealed: Vec<u8>,
    tags: Vec<u128>,
    sealer: Option<Arc<LogSealer>>,
    pieces: Vec<Piece>,
    slices: Vec<IoSlice<'static>>,
}

impl NewRecord<'_> {
    fn span(&self, sealed: bool) -> u64 {
        match self {
            NewRecord::Write { data, .. } => write_span(data.len() as u64 / BLOCK_SIZE, sealed),
            NewRecord::Zero { .. } => zero_span(sealed),
        }
    }

    fn check(&self, ring: ByteLen, sealed: bool) -> Result<()> {
        let (lba, blocks) = match self {
            NewRecord::Write { lba, data } => {
                let blocks = data.len() as u64 / BLOCK_SIZE;
                if !(data.len() as u64).is_multiple_of(BLOCK_SIZE) || blocks > RECORD_BLOCKS_MAX {
                    let message = format!("{} bytes cannot be a record of the write log", data.len());
                    return Err(Error::invalid(message));
                }
                (lba.0, blocks)
            }
            NewRecord::Zero { lba, blocks } => (lba.0, blocks.0),
        };
        if blocks == 0 || lba.checked_add(blocks).is_none_or(|end| end > u64::MAX / BLOCK_SIZE) {
            return Err(Error::invalid(format!(
                "{blocks} blocks from block {lba} on cannot be a record of the write log"
            )));
        }
        if self.span(sealed) > (ring.0 - LOG_RESERVE_BYTES) / 2 {
            return Err(Error::invalid(format!(
                "a record of {blocks} blocks is too long for a write log of {ring} bytes"
            )));
        }
        Ok(())
    }
}

impl Appender {
    pub(super) fn new(shared: Arc<Shared>, poke: Poke) -> Self {
        let ends = shared.ends();
        let sealer = shared.ring.sealing.as_ref().map(|sealing| sealing.sealer(shared.epoch, shared.incarnation));
        let (arena, sealed, tags) = (Vec::new(), Vec::new(), Vec::new());
        Appender { shared, poke, ends, arena, sealed, tags, sealer, pieces: Vec::new(), slices: Vec::new() }
    }

    /// The sequence of the next record.
    pub fn next_sequence(&self) -> Sequence {
        self.ends.next_sequence
    }

    /// The end of the newest record.
    pub fn head(&self) -> LogOffset {
        self.ends.head
    }

    /// Appends as many of `records`, from the front, as there is space for, and pushes the place of each onto `places`. Returns
    /// how many. They survive the death of the process when it returns.
    ///
    /// # Errors
    /// `Invalid` for a record that no log of this length can hold, and nothing is done; `Io` if the log is poisoned, or is now.
    pub fn append(&mut self, records: &[NewRecord<'_>], places: &mut Vec<LogPlace>) -> Result<usize> {
        if let Some(error) = self.shared.poison_error() {
            return Err(error);
        }
        for record in records {
            record.check(self.shared.ring.length, self.sealer.is_some())?;
        }
        self.arena.clear();
        self.sealed.clear();
        self.sealed.shrink_to(SEALED_BYTES_KEPT);
        self.pieces.clear();
        let places_before = places.len();
        let (ends, lap) = self.build(records, places);
        let count = places.len() - places_before;
        if count == 0 {
            return Ok(0);
        }
        self.shared.claim_for_append(ends.head);
        if let Err(error) = self.write(records, lap) {
            places.truncate(places_before);
            return Err(self.shared.poison(&error));
        }
        self.ends = ends;
        self.shared.set_ends(ends);
        if ends.head.0 - self.shared.synced().0 > UNSYNCED_BYTES_MAX {
            self.poke.sync_soon();
        }
        Ok(count)
    }

    /// Builds headers and tables. Returns where the log then ends, and the piece that begins a new lap of the ring.
    fn build(&mut self, records: &[NewRecord<'_>], places: &mut Vec<LogPlace>) -> (Ends, Option<usize>) {
        let ring = &self.shared.ring;
        let limit = self.shared.reusable().0 + ring.length.0 - LOG_RESERVE_BYTES;
        let synced = self.shared.synced();
        let mut ends = self.ends;
        let mut lap = None;
        for (index, record) in records.iter().enumerate() {
            let (span, room) = (record.span(self.sealer.is_some()), ring.room(ends.head));
            let pad = if span > room { room } else { 0 };
            if ends.head.0 + pad + span > limit {
                break;
            }
            let mut header = RecordHeader {
                kind: RecordKind::Pad,
                epoch: self.shared.epoch,
                sequence: ends.next_sequence,
                incarnation: self.shared.incarnation,
                range: BlockRange::new(Lba(0), BlockCount(0)),
                offset: ends.head,
                first_crc: 0,
                mark: Some(synced),
                sealed: false,
            };
            let start = self.arena.len();
            if pad > 0 {
                encode_pad(&header, &mut self.arena);
                self.pieces.push(Piece { arena: start..self.arena.len(), payload: Payload::None });
                header.offset = LogOffset(ends.head.0 + pad);
            }
            if header.offset.0.is_multiple_of(ring.length.0) && !self.pieces.is_empty() {
                lap = Some(self.pieces.len());
            }
            let start = self.arena.len();
            let payload = match record {
                NewRecord::Write { lba, data } => {
                    header.range.start = *lba;
                    encode_payload(
                        &header,
                        data,
                        self.sealer.as_deref(),
                        (&mut self.sealed, &mut self.tags, &mut self.arena),
                    )
                    .unwrap_or(Payload::Given(index))
                }
                NewRecord::Zero { lba, blocks } => {
                    header.range = BlockRange::new(*lba, *blocks);
                    encode_zero(&header, self.sealer.as_deref(), &mut self.arena);
                    Payload::None
                }
            };
            self.pieces.push(Piece { arena: start..self.arena.len(), payload });
            let end = LogOffset(header.offset.0 + span);
            places.push(LogPlace { record: header.offset, sequence: ends.next_sequence, end });
            ends = Ends { head: end, next_sequence: ends.next_sequence.next() };
        }
        (ends, lap)
    }

    /// Writes the pieces: one call, or two where the ring begins anew.
    fn write(&mut self, records: &[NewRecord<'_>], lap: Option<usize>) -> Result<()> {
        let ring = &self.shared.ring;
        let mut slices: Vec<IoSlice<'_>> = std::mem::take(&mut self.slices);
        let mut lap_slice = None;
        for (index, piece) in self.pieces.iter().enumerate() {
            if lap == Some(index) {
                lap_slice = Some(slices.len());
            }
            slices.push(IoSlice::new(&self.arena[piece.arena.clone()]));
            match &piece.payload {
                Payload::None => {}
                Payload::Sealed(range) => slices.push(IoSlice::new(&self.sealed[range.clone()])),
                Payload::Given(record) => {
                    if let NewRecord::Write { data, .. } = records[*record] {
                        slices.push(IoSlice::new(data));
                    }
                }
            }
        }
        let head = self.ends.head;
        let result = match lap_slice {
            None => ring.write(&slices, head),
            Some(at) => ring
                .write(&slices[..at], head)
                .and_then(|()| ring.write(&slices[at..], LogOffset(head.0 + ring.room(head)))),
        };
        // Collecting in place keeps the allocation while the borrows end.
        slices.clear();
        self.slices = slices.into_iter().map(|_| IoSlice::new(&[])).collect();
        result
    }
}

/// Encodes a write. If it is to be sealed, its payload is sealed behind what is in `sealed` already, and where is returned.
fn encode_payload(
    header: &RecordHeader,
    data: &[u8],
    sealer: Option<&LogSealer>,
    (sealed, tags, arena): (&mut Vec<u8>, &mut Vec<u128>, &mut Vec<u8>),
) -> Option<Payload> {
    let Some(sealer) = sealer else {
        encode_write(header, data, None, arena);
        return None;
    };
    let start = sealed.len();
    sealed.extend_from_slice(data);
    tags.clear();
    let payload = &mut sealed[start..];
    sealer.seal_blocks(header.offset, payload, BLOCK_SIZE as usize, |tag| tags.push(tag));
    encode_write(header, payload, Some(RecordSeal { sealer, tags }), arena);
    Some(Payload::Sealed(start..sealed.len()))
}

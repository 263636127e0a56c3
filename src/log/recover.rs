//! Recovery: what a log holds after whatever happened to it. It reports, and changes nothing.
//!
//! The records from the tail on are followed while each verifies, header and payload, and follows on the one before: own offset,
//! sequence, incarnation, epoch. Where that ends there is either the end, or a tail torn by a crash, or damage. It is damage
//! if something proves that the place had been durable: the superblock, an earlier record's durable mark, or the mark of a
//! record beyond that belongs to the same history.

use std::io::IoSliceMut;
use std::path::Path;
use std::sync::Arc;

use super::read::{Headers, read_record};
use super::scan::{Chain, Found, Window, look_beyond, payload_verifies, record_at};
use super::sealing::{KeyOf, Sealing};
use super::shared::Ring;
use super::{LogIdentity, RecordKind};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::log::{
    FenceBody, RECORD_ALIGN, RING_START, RecordHeader, SUPERBLOCK_BYTES, Superblock, decode_superblock,
};
use crate::units::{BlockRange, ByteLen, LogOffset, Sequence};

/// Bytes read at a time.
const WINDOW_BYTES: usize = 1 << 20;

/// How the records of a log end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing is behind the last record.
    Clean,
    /// What follows was never durable, and is cut: normal after a crash.
    Torn {
        /// Records behind the end that are whole, but follow on something that is not.
        records_beyond: u64,
    },
    /// What follows had been durable and is not what was written.
    Damaged {
        /// Where the damage is.
        at: LogOffset,
        /// The blocks that the damaged record changes, if its header is whole.
        blocks: Option<BlockRange>,
        /// Whole records of the same history behind it, which would be lost as well.
        records_beyond: u64,
    },
}

/// The trailing fence of a log: nothing follows it, so another may take its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct TrailingFence {
    pub offset: LogOffset,
    pub previous: u64,
}

/// A log as it was found.
pub struct Recovered {
    pub(super) ring: Ring,
    pub(super) superblock: Superblock,
    pub(super) chain: Chain,
    pub(super) identity: LogIdentity,
    pub(super) ending: Ending,
    /// Everything before this is known to be durable.
    pub(super) durable_to: LogOffset,
    pub(super) trailing_fence: Option<TrailingFence>,
    records: u64,
}

impl Recovered {
    /// Who wrote the newest records.
    pub fn identity(&self) -> LogIdentity {
        self.identity
    }

    /// Where the first record is.
    pub fn tail(&self) -> LogOffset {
        self.superblock.tail
    }

    /// The sequence of the first write or zero record, or of the next one if there is none.
    pub fn tail_sequence(&self) -> Sequence {
        self.superblock.tail_sequence
    }

    /// Where the last record ends.
    pub fn end(&self) -> LogOffset {
        self.chain.offset
    }

    /// The sequence of the last write or zero record; if there is none, that of the one before the tail.
    pub fn last_sequence(&self) -> Sequence {
        Sequence(self.chain.sequence.0.saturating_sub(1))
    }

    /// The number of write and zero records.
    pub fn record_count(&self) -> u64 {
        self.records
    }

    /// How the records end.
    pub fn ending(&self) -> Ending {
        self.ending
    }

    /// Length of the ring.
    pub fn ring_length(&self) -> ByteLen {
        self.ring.length
    }

    /// Fills `buffer` with blocks of the write record that begins at `record`, from its block `first_block` on, and verifies them.
    ///
    /// # Errors
    /// `Damaged`, `Invalid` for what the record does not have, `Io`.
    pub fn read_blocks(&self, record: LogOffset, first_block: u32, buffer: &mut [u8]) -> Result<()> {
        read_record(&self.ring, record, u64::from(first_block), buffer)
    }

    /// The headers of all records, fences and pads among them, in order.
    pub fn records(&self) -> Headers {
        Headers::new(self.ring.clone(), self.tail(), self.end())
    }
}

/// What a log says of itself before its records are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFront {
    /// Who it belongs to; whoever wrote the newest records may have a newer epoch.
    pub identity: LogIdentity,
    /// True if its records are sealed.
    pub sealed: bool,
}

/// Looks at the superblock of a log.
///
/// # Errors
/// As [`recover`].
pub fn peek(disk: &dyn Disk, path: &Path) -> Result<LogFront> {
    open(disk, path).map(|(_, superblock)| LogFront { identity: superblock.identity, sealed: superblock.sealed })
}

/// Reads a log and verifies every byte from its tail on, with the key of its volume, if that has one.
///
/// # Errors
/// `NotFound`; `Damaged` if it is no log, neither superblock is whole, or a record does not open with the key; `Unsupported` for a newer version;
/// `Io`; what `key_of` says. Damage among the records is no error here: see [`Recovered::ending`].
pub fn recover(disk: &dyn Disk, path: &Path, key_of: KeyOf<'_>) -> Result<Recovered> {
    let (file, superblock) = open(disk, path)?;
    let shown = path.display();
    let key = key_of(superblock.identity.volume)?;
    if key.is_some() != superblock.sealed {
        let (log, volume) = if superblock.sealed { ("is", "is not") } else { ("is not", "is") };
        return Err(Error::damaged(format!("the write log {shown} {log} encrypted, though its volume {volume}")));
    }
    let sealing = key.map(|key| Arc::new(Sealing::new(key)));
    let ring = Ring { file, name: shown.to_string().into(), length: superblock.ring_length, sealing };
    Scan::new(ring, superblock).run()
}

fn open(disk: &dyn Disk, path: &Path) -> Result<(Arc<dyn DiskFile>, Superblock)> {
    let shown = path.display();
    let file = disk.open(path, OpenMode::Existing).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::not_found(format!("there is no write log at {shown}")),
        _ => Error::io(format_args!("opening the write log {shown}"), &error),
    })?;
    let length = file.length().context(|| format!("looking at the write log {shown}"))?;
    if length < RING_START {
        return Err(Error::damaged(format!("the write log {shown} is only {length} bytes long: it has been cut off")));
    }
    let superblock = read_superblock(file.as_ref()).context(|| format!("the superblock of the write log {shown}"))?;
    if length - RING_START < superblock.ring_length.0 {
        let message = format!(
            "the write log {shown} is {length} bytes long, but its ring has {}: it has been cut off",
            superblock.ring_length
        );
        return Err(Error::damaged(message));
    }
    Ok((file, superblock))
}

/// The newest valid one of the two copies.
fn read_superblock(file: &dyn DiskFile) -> Result<Superblock> {
    let mut newest: Option<Superblock> = None;
    let mut why = None;
    for slot in 0..2 {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        file.read_at(&mut [IoSliceMut::new(&mut bytes)], slot * SUPERBLOCK_BYTES as u64).context(|| "reading")?;
        match decode_superblock(&bytes) {
            Ok(found) if newest.is_none_or(|known| known.generation < found.generation) => newest = Some(found),
            Ok(_) => {}
            // A newer varve wrote here: its tail may be anywhere.
            Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
            Err(error) => why = Some(error),
        }
    }
    newest.ok_or_else(|| why.unwrap_or_else(|| Error::damaged("neither copy can be read")))
}

/// Why a scan stopped.
enum Stop {
    /// No record, or one that does not follow.
    NoRecord,
    /// A record of this history that does not verify; its blocks, if its header does.
    Broken(Option<RecordHeader>),
}

struct Scan {
    ring: Ring,
    superblock: Superblock,
    window: Window,
    chain: Chain,
    identity: LogIdentity,
    /// The furthest durable mark.
    mark: LogOffset,
    trailing_fence: Option<TrailingFence>,
    /// The incarnations met so far.
    met: Vec<u64>,
    records: u64,
}

impl Scan {
    fn new(ring: Ring, superblock: Superblock) -> Self {
        let chain = Chain {
            offset: superblock.tail,
            sequence: superblock.tail_sequence,
            incarnation: superblock.tail_incarnation,
            epoch: None,
        };
        Scan {
            window: Window::new(ring.clone(), WINDOW_BYTES),
            ring,
            chain,
            identity: superblock.identity,
            mark: superblock.durable_to,
            trailing_fence: None,
            met: vec![chain.incarnation],
            records: 0,
            superblock,
        }
    }

    fn limit(&self) -> LogOffset {
        LogOffset(self.superblock.tail.0 + self.ring.length.0)
    }

    fn run(mut self) -> Result<Recovered> {
        let mut table = Vec::new();
        let stop = loop {
            if self.chain.offset >= self.limit() {
                break Stop::NoRecord;
            }
            match record_at(&mut self.window, self.chain.offset)? {
                Found::Nothing => break Stop::NoRecord,
                Found::Claim(claim) if claim.incarnation == self.chain.incarnation => break Stop::Broken(None),
                Found::Claim(_) => break Stop::NoRecord,
                Found::Record(header, fence) => {
                    let end = header.end(self.ring.length);
                    if !self.chain.accepts(&header, fence.as_ref()) || end > self.limit() {
                        break Stop::NoRecord;
                    }
                    if !payload_verifies(&mut self.window, &header, &mut table)? {
                        break Stop::Broken(Some(header));
                    }
                    self.pass(&header, fence, end);
                }
            }
        };
        let ending = self.ending(&stop)?;
        Ok(Recovered {
            durable_to: self.mark.min(self.chain.offset),
            ring: self.ring,
            superblock: self.superblock,
            chain: self.chain,
            identity: self.identity,
            ending,
            trailing_fence: self.trailing_fence,
            records: self.records,
        })
    }

    fn pass(&mut self, header: &RecordHeader, fence: Option<FenceBody>, end: LogOffset) {
        self.chain.advance(header, end);
        self.mark = self.mark.max(header.mark.unwrap_or_default());
        self.records += u64::from(matches!(header.kind, RecordKind::Write | RecordKind::Zero));
        self.trailing_fence = fence.map(|fence| TrailingFence { offset: header.offset, previous: fence.previous });
        if let Some(fence) = fence {
            self.met.push(header.incarnation);
            if fence.identity.epoch >= self.identity.epoch {
                self.identity = fence.identity;
            }
        }
    }

    fn ending(&mut self, stop: &Stop) -> Result<Ending> {
        let at = self.chain.offset;
        let broken = match stop {
            Stop::Broken(header) => *header,
            Stop::NoRecord => None,
        };
        let mut known = vec![self.chain.incarnation];
        // The fence with which the present incarnation began may be what is damaged.
        if !self.met.contains(&self.superblock.incarnation) {
            known.push(self.superblock.incarnation);
        }
        let from = broken.map_or(LogOffset(at.0 + RECORD_ALIGN), |header| header.end(self.ring.length));
        let limit = self.limit();
        let beyond = look_beyond(&mut self.window, from, limit, &mut known)?;
        let durable = self.mark.max(beyond.mark.unwrap_or_default());
        Ok(if durable > at {
            Ending::Damaged { at, blocks: broken.map(|header| header.range), records_beyond: beyond.records }
        } else if beyond.records > 0 || matches!(stop, Stop::Broken(_)) {
            Ending::Torn { records_beyond: beyond.records }
        } else {
            Ending::Clean
        })
    }
}

//! Carrying on with a recovered log.

use std::io::IoSlice;

use super::create::open;
use super::recover::{Ending, Recovered};
use super::scan::Window;
use super::shared::Ends;
use super::{LogIdentity, WriteLog};
use crate::clock;
use crate::error::{Error, Result};
use crate::format::log::{
    FENCE_SPAN, FenceBody, HEADER_BYTES, RecordHeader, RecordKind, Superblock, encode_fence, encode_pad,
};
use crate::units::{BlockCount, BlockRange, Lba, LogOffset};

/// Bytes written again at a time.
const REWRITE_BYTES: usize = 1 << 20;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;

impl Recovered {
    /// Carries on with the log as `identity`. What lies behind [`Recovered::end`] is cut off for good: a fence with a
    /// new incarnation is put there and made durable before anything else, and then the superblock is.
    ///
    /// # Errors
    /// `Damaged` if the log ends in damage and `accept_damage` does not say that what lies behind may be lost; `Invalid` for
    /// another volume's or an older epoch's identity; `Full`; `Io`. The log is then as it was, but maybe for the fence.
    pub fn resume(self, identity: LogIdentity, accept_damage: bool) -> Result<WriteLog> {
        self.check(&identity, accept_damage)?;
        // A trailing fence is replaced: else a host that crashes on every start would fill the log with fences. But only
        // one within a sector, so that either the old or the new one is there whatever happens; another gets a successor.
        let (at, previous) = match self.trailing_fence {
            Some(fence) if fence.offset.0 % SECTOR_BYTES + FENCE_SPAN <= SECTOR_BYTES => (fence.offset, fence.previous),
            _ => (self.end(), self.chain.incarnation),
        };
        let incarnation = clock::random_u64();
        let mut header = RecordHeader {
            kind: RecordKind::Pad,
            epoch: self.chain.epoch.unwrap_or(self.superblock.identity.epoch),
            sequence: self.chain.sequence,
            incarnation: previous,
            range: BlockRange::new(Lba(0), BlockCount(0)),
            offset: at,
            first_crc: 0,
            mark: Some(self.durable_to.min(at)),
            sealed: false,
        };
        let mut pad = Vec::new();
        if self.ring.room(at) < FENCE_SPAN {
            encode_pad(&header, &mut pad);
            header.offset = LogOffset(at.0 + self.ring.room(at));
        }
        let head = LogOffset(header.offset.0 + FENCE_SPAN);
        if head.0 - self.tail().0 > self.ring.length.0 {
            return Err(Error::new(
                crate::error::ErrorKind::Full,
                format!("the write log {} has no room for a fence", self.ring.name),
            ));
        }
        // The copy that was read must be durable before the other one is overwritten.
        self.ring.write_superblock(&self.superblock)?;
        self.write_again(at)?;
        if !pad.is_empty() {
            self.ring.write(&[IoSlice::new(&pad[..HEADER_BYTES])], at)?;
        }
        header.incarnation = incarnation;
        let fence = encode_fence(&header, &FenceBody { previous, identity });
        self.ring.write(&[IoSlice::new(&fence)], header.offset)?;
        self.ring.sync()?;
        let superblock = Superblock {
            generation: self.superblock.generation + 1,
            identity,
            incarnation,
            durable_to: head,
            ..self.superblock
        };
        self.ring.write_superblock(&superblock)?;
        self.ring.sync()?;
        let ends = Ends { head, next_sequence: self.chain.sequence };
        let warm_to = if head.0 >= self.ring.length.0 { self.ring.length.0 } else { head.0 };
        open(self.ring, superblock, ends, warm_to)
    }

    /// Makes durable whose the log is, before a claim rests on it: an attachment that died or failed within [`Recovered::resume`] may have left
    /// its fence in the page cache alone. Nothing changes of what can be read.
    ///
    /// # Errors
    /// `Io`; then nothing may be built on the log's identity.
    pub fn settle(&self) -> Result<()> {
        // A superblock follows the sync of its fence.
        if self.identity.token == self.superblock.identity.token {
            return Ok(());
        }
        self.ring.write_superblock(&self.superblock)?;
        self.write_again(self.end())?;
        self.ring.sync()
    }

    fn check(&self, identity: &LogIdentity, accept_damage: bool) -> Result<()> {
        let name = &self.ring.name;
        if identity.store != self.identity.store || identity.volume != self.identity.volume {
            let message = format!(
                "the write log {name} belongs to {} of {}, not to {}",
                self.identity.volume, self.identity.store, identity.volume
            );
            return Err(Error::invalid(message));
        }
        if identity.epoch < self.identity.epoch {
            let message = format!(
                "the write log {name} was written in epoch {}, after epoch {}",
                self.identity.epoch, identity.epoch
            );
            return Err(Error::invalid(message));
        }
        match self.ending {
            Ending::Damaged { at, blocks, records_beyond } if !accept_damage => {
                let blocks = blocks.map_or(String::new(), |range| {
                    format!(", in a write of {} blocks from block {}", range.count, range.start)
                });
                Err(Error::damaged(format!(
                    "the write log {name} is damaged at {at}{blocks}: {records_beyond} later records would be lost as well; nothing was changed"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Writes again what is not known to be durable, as it was read and verified. The page cache may hold bytes that
    /// a failed sync has lost, and would sync them no more unless they are written anew.
    fn write_again(&self, to: LogOffset) -> Result<()> {
        let mut window = Window::new(self.ring.clone(), REWRITE_BYTES);
        let mut at = self.durable_to.max(self.tail());
        while at < to {
            let length = (to.0 - at.0).min(self.ring.room(at)).min(REWRITE_BYTES as u64);
            let bytes = window.get(at, length as usize)?;
            self.ring.write(&[IoSlice::new(bytes)], at)?;
            at = LogOffset(at.0 + length);
        }
        Ok(())
    }
}

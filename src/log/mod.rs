//! The write log: the ring of accepted writes of one attached volume, in one preallocated file.
//!
//! # Owns
//! The file, its superblock, and the meaning of every [`LogOffset`] in it. The bytes are `format::log`'s; the tables and
//! the argument why recovery is right are in `design/write-log.md`.
//!
//! # Guarantees
//! - What [`Appender::append`] returned for survives the death of the process; what was appended before a successful
//!   [`Committer::commit`] survives power loss.
//! - Recovery finds a prefix of what was appended with all that was committed in it, and never a record of a history that was cut off.
//! - A read verifies every byte, and answers [`LogRead::Gone`] rather than bytes of another record.
//! - With a key, what a record changes and where is sealed; the lengths of writes, zeros and flushes show.
//! - Space is reused only after the superblock that gives it up is durable.
//!
//! # Order
//! create: allocate, superblocks, zeros, sync, rename, sync of the directory. resume: rewrite what may not be durable, fence,
//! sync, superblock, sync; only then is anything appended. release: superblock, sync, its other copy, sync, then the space is free.
//!
//! # Errors
//! A failed write or sync poisons the log: every later append and commit fails with `Io` until the log is recovered anew.
//! Reads go on. No sync is repeated.
//!
//! # Threads
//! One appender (its owner brings the lock), any number of readers without a lock, one thread that syncs.
//!
//! # After a crash
//! [`recover`] reports and changes nothing; [`Recovered::resume`] cuts what is not part of the history.

mod append;
mod commit;
#[cfg(test)]
mod concurrency;
mod create;
mod read;
mod recover;
mod resume;
mod scan;
mod sealing;
mod shared;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use append::{Appender, NewRecord};
pub use commit::{Committer, SpaceFreed};
pub use create::create;
pub use read::{Headers, LogRead, LogReader};
pub use recover::{Ending, LogFront, Recovered, peek, recover};
pub use sealing::KeyOf;

pub use crate::format::log::{LogIdentity, RecordKind};
use crate::units::{BlockRange, Epoch, LogOffset, Sequence};

/// Bytes of the ring that appends leave free, so that a full log can still be resumed: a pad and a fence.
pub const LOG_RESERVE_BYTES: u64 = 4096;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPlace {
    /// Where it begins.
    pub record: LogOffset,
    /// Its place in the sequence.
    pub sequence: Sequence,
    /// Where the next record begins.
    pub end: LogOffset,
}

/// What a record's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView {
    /// Where it is. A fence or pad has the sequence of the next write or zero record.
    pub place: LogPlace,
    /// What it does.
    pub kind: RecordKind,
    /// The attachment that wrote it.
    pub epoch: Epoch,
    /// The blocks it changes; empty for a fence or pad.
    pub range: BlockRange,
}

/// A log ready for use, in its three parts.
pub struct WriteLog {
    /// Takes new records.
    pub appender: Appender,
    /// Reads records back.
    pub reader: LogReader,
    /// Makes records durable, and gives space back.
    pub committer: Committer,
}

//! What the parts of an open log share.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use super::LOG_RESERVE_BYTES;
use super::sealing::Sealing;
use crate::disk::DiskFile;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::log::{RING_START, SUPERBLOCK_BYTES, Superblock, encode_superblock, superblock_slot};
use crate::units::{BLOCK_SIZE, ByteLen, Epoch, LogOffset, Sequence};

/// Zeros are written this far ahead of the newest record, during the first lap.
const WARM_AHEAD: u64 = 4 << 20;
/// Zeros written at a time.
const WARM_STEP: u64 = 512 << 10;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A log's file and the arithmetic of its ring.
#[derive(Clone)]
pub(super) struct Ring {
    pub file: Arc<dyn DiskFile>,
    /// The file's path, for messages.
    pub name: Arc<str>,
    pub length: ByteLen,
    /// With the key of the volume, if it has one.
    pub sealing: Option<Arc<Sealing>>,
}

impl Ring {
    /// Bytes from `offset` to the end of its lap.
    pub fn room(&self, offset: LogOffset) -> u64 {
        self.length.0 - offset.0 % self.length.0
    }

    /// Fills the buffers from an offset on; they must end within the lap.
    pub fn read(&self, buffers: &mut [IoSliceMut<'_>], offset: LogOffset) -> Result<()> {
        let result = self.file.read_at(buffers, RING_START + offset.0 % self.length.0);
        result.context(|| format!("reading the write log {} at {offset}", self.name))
    }

    /// Writes the buffers from an offset on; they must end within the lap.
    pub fn write(&self, buffers: &[IoSlice<'_>], offset: LogOffset) -> Result<()> {
        let result = self.file.write_at(buffers, RING_START + offset.0 % self.length.0);
        result.context(|| format!("writing the write log {} at {offset}", self.name))
    }

    /// Writes zeros over `length` bytes; they must end within the lap.
    pub fn write_zeros(&self, offset: LogOffset, length: u64) -> Result<()> {
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(ZEROS.len() as u64);
            self.write(&[IoSlice::new(&ZEROS[..piece as usize])], LogOffset(offset.0 + done))?;
            done += piece;
        }
        Ok(())
    }

    /// Writes a superblock over the older of the two copies.
    pub fn write_superblock(&self, superblock: &Superblock) -> Result<()> {
        let bytes = encode_superblock(superblock);
        let at = superblock_slot(superblock.generation) * SUPERBLOCK_BYTES as u64;
        let result = self.file.write_at(&[IoSlice::new(bytes.as_slice())], at);
        result.context(|| format!("writing the superblock of the write log {}", self.name))
    }

    /// Makes everything written durable.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().context(|| format!("syncing the write log {}", self.name))
    }
}

/// Where the newest record ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub head: LogOffset,
    pub next_sequence: Sequence,
}

/// How far the first lap has been overwritten with zeros.
#[derive(Debug)]
struct Warm {
    /// Appends may be writing anything before this.
    append_to: u64,
    /// Zeros reach to here.
    warm_to: u64,
    /// Zeros are being written here just now.
    claim: Option<(u64, u64)>,
}

/// The state of an open log.
pub(super) struct Shared {
    pub ring: Ring,
    /// Names this start of the log in each of its records.
    pub incarnation: u64,
    pub epoch: Epoch,
    ends: Mutex<Ends>,
    /// Everything before this is durable.
    synced: AtomicU64,
    /// Everything before this may be overwritten: the durable superblock says so.
    reusable: AtomicU64,
    poisoned: AtomicBool,
    poison: Mutex<Option<Error>>,
    /// False once the first lap is over: then every block of the ring has been written, and zeros gain nothing.
    warming: AtomicBool,
    warm: Mutex<Warm>,
    claim_ended: Condvar,
}

impl Shared {
    pub fn new(ring: Ring, superblock: &Superblock, ends: Ends, warm_to: u64) -> Self {
        Shared {
            incarnation: superblock.incarnation,
            epoch: superblock.identity.epoch,
            ends: Mutex::new(ends),
            synced: AtomicU64::new(ends.head.0),
            reusable: AtomicU64::new(superblock.tail.0),
            poisoned: AtomicBool::new(false),
            poison: Mutex::new(None),
            warming: AtomicBool::new(warm_to < ring.length.0),
            warm: Mutex::new(Warm { append_to: ends.head.0, warm_to, claim: None }),
            claim_ended: Condvar::new(),
            ring,
        }
    }

    pub fn ends(&self) -> Ends {
        *self.ends.lock()
    }

    pub fn set_ends(&self, ends: Ends) {
        *self.ends.lock() = ends;
    }

    pub fn synced(&self) -> LogOffset {
        LogOffset(self.synced.load(Ordering::SeqCst))
    }

    pub fn set_synced(&self, to: LogOffset) {
        self.synced.fetch_max(to.0, Ordering::SeqCst);
    }

    pub fn reusable(&self) -> LogOffset {
        LogOffset(self.reusable.load(Ordering::SeqCst))
    }

    pub fn set_reusable(&self, to: LogOffset) {
        self.reusable.fetch_max(to.0, Ordering::SeqCst);
    }

    pub fn used(&self) -> ByteLen {
        // The tail first: it only grows towards the head, so the difference cannot become negative.
        let tail = self.reusable();
        ByteLen(self.ends().head.0 - tail.0)
    }

    pub fn free(&self) -> ByteLen {
        ByteLen((self.ring.length.0 - LOG_RESERVE_BYTES).saturating_sub(self.used().0))
    }

    /// Poisons the log because of `cause`, and returns the error for whoever met it.
    pub fn poison(&self, cause: &Error) -> Error {
        let mut poison = self.poison.lock();
        let error = poison.get_or_insert_with(|| {
            let message = format!(
                "the write log {} is poisoned until the volume is reopened, since the local disk failed: {cause}",
                self.ring.name
            );
            Error::new(ErrorKind::Io, message)
        });
        self.poisoned.store(true, Ordering::SeqCst);
        error.clone()
    }

    /// Ends all writing for good.
    pub fn close(&self) {
        let closed = || Error::new(ErrorKind::Stopping, format!("the write log {} is closed", self.ring.name));
        self.poison.lock().get_or_insert_with(closed);
        self.poisoned.store(true, Ordering::SeqCst);
    }

    /// The error that poisoned the log.
    pub fn poison_error(&self) -> Option<Error> {
        if self.poisoned.load(Ordering::SeqCst) { self.poison.lock().clone() } else { None }
    }

    /// Called before an append writes up to `end`: from now on no zeros are written before `end`, and none are
    /// still being written there.
    pub fn claim_for_append(&self, end: LogOffset) {
        if !self.warming.load(Ordering::Acquire) {
            return;
        }
        let mut warm = self.warm.lock();
        warm.append_to = warm.append_to.max(end.0);
        while warm.claim.is_some_and(|(from, _)| from < end.0) {
            self.claim_ended.wait(&mut warm);
        }
        if end.0 >= self.ring.length.0 {
            self.warming.store(false, Ordering::Release);
        }
    }

    /// Writes some zeros ahead of the newest record if there are few left. Syncing an overwritten block is several times
    /// faster than syncing one that was only allocated, since no journal of the file system has to be written.
    pub fn warm(&self) -> Result<()> {
        if !self.warming.load(Ordering::Acquire) {
            return Ok(());
        }
        let (from, to) = {
            let mut warm = self.warm.lock();
            let from = warm.warm_to.max(warm.append_to.next_multiple_of(BLOCK_SIZE));
            let to = (from + WARM_STEP).min(self.ring.length.0);
            if from >= to || from >= warm.append_to + WARM_AHEAD || warm.append_to > self.ring.length.0 {
                return Ok(());
            }
            warm.claim = Some((from, to));
            (from, to)
        };
        let result = self.ring.write_zeros(LogOffset(from), to - from);
        let mut warm = self.warm.lock();
        warm.claim = None;
        warm.warm_to = to;
        self.claim_ended.notify_all();
        result
    }
}

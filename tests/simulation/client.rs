//! What clients do with one attached volume, on its host, and how the record learns of it.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use varve::block_device::{Attempt, BlockDevice, Change};
use varve::clock;
use varve::error::{Error, ErrorKind, Result};
use varve::service::Durability;
use varve::volume::{Volume, VolumeDevice};

use super::journal::Journal;
use super::layout::Layout;
use super::record::{BLOCK, Record, SECTOR, Stamp, Step, fill, stamps_of};

/// What goes wrong in a history: promises that were broken.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Vec<String>>>);

impl Faults {
    pub fn note(&self, fault: String) {
        self.0.lock().unwrap().push(fault);
    }

    pub fn first(&self) -> Option<String> {
        self.0.lock().unwrap().first().cloned()
    }
}

/// What an attachment may be excused for.
#[derive(Default)]
pub struct Excuses {
    /// Another host tried to take the volume over.
    pub rival: AtomicBool,
    /// The store, or the way to it, is in trouble.
    pub store: AtomicBool,
    /// The local disk is.
    pub disk: AtomicBool,
    /// Bits were flipped.
    pub rot: AtomicBool,
    /// It is being detached.
    pub leaving: AtomicBool,
}

/// A change as a client sends it.
#[derive(Clone, Debug)]
pub enum Wish {
    Write(Step),
    Zero(Step),
    Trim(Step),
}

impl Wish {
    pub fn range(&self) -> Step {
        match self {
            Wish::Write(step) | Wish::Zero(step) | Wish::Trim(step) => *step,
        }
    }

    /// The parts that take effect one after the other.
    pub fn steps(&self) -> Vec<Step> {
        let range = self.range();
        let (inner, inner_end) = (range.first.next_multiple_of(BLOCK), range.end() / BLOCK * BLOCK);
        let zeros = |first: usize, end: usize| Step { first, count: end.saturating_sub(first), stamp: 0 };
        let steps = match self {
            Wish::Write(step) => vec![*step],
            Wish::Trim(_) => vec![zeros(inner, inner_end.max(inner))],
            // Each block that is zero in part is a record of its own.
            Wish::Zero(_) if inner <= inner_end => {
                vec![zeros(range.first, inner), zeros(inner_end, range.end()), zeros(inner, inner_end)]
            }
            // Within one block.
            Wish::Zero(_) => vec![zeros(range.first, range.end())],
        };
        steps.into_iter().filter(|step| step.count > 0).collect()
    }

    fn change(&self, layout: Layout) -> Change<Bytes> {
        let range = layout.range(&self.range());
        let (offset, length) = (range.start, range.end - range.start);
        match self {
            Wish::Zero(_) => Change::Zero { offset, length },
            Wish::Trim(_) => Change::Trim { offset, length },
            Wish::Write(step) => {
                let mut data = vec![0; step.count * SECTOR];
                for (number, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
                    fill(step.stamp, step.first + number, sector);
                }
                Change::Write { offset, data: data.into() }
            }
        }
    }
}

/// The clients of one attachment. Clones are the same.
#[derive(Clone)]
pub struct Client {
    pub volume: Arc<Volume>,
    pub witness: Witness,
}

impl Deref for Client {
    type Target = Witness;

    fn deref(&self) -> &Witness {
        &self.witness
    }
}

/// What the clients know and note, without the volume: what the volume itself holds, and a death leaves unanswered, must not hold the volume.
#[derive(Clone)]
pub struct Witness {
    pub record: Arc<Mutex<Record>>,
    pub faults: Faults,
    pub journal: Journal,
    pub excuses: Arc<Excuses>,
    /// The volume takes no more requests.
    pub has_failed: Arc<AtomicBool>,
    pub name: String,
}

impl Witness {
    /// Notes an error that a client was given: is there an excuse?
    pub fn met(&self, what: &str, error: &Error) {
        let is = |excuse: &AtomicBool| excuse.load(Ordering::SeqCst);
        let excuses = &self.excuses;
        let is_excused = match error.kind() {
            ErrorKind::Fenced => is(&excuses.rival) || is(&excuses.leaving),
            ErrorKind::Io => is(&excuses.disk),
            ErrorKind::Full => is(&excuses.disk) || is(&excuses.store),
            ErrorKind::Unavailable | ErrorKind::Denied => is(&excuses.store),
            ErrorKind::Damaged => is(&excuses.rot),
            ErrorKind::Stopping | ErrorKind::NotFound => is(&excuses.leaving),
            ErrorKind::Invalid => is(&excuses.leaving) && error.message().contains("is destroyed"),
            // Another change of the manifest whose outcome is unknown may look like a rival's.
            // A wall clock that has jumped makes a command give up.
            ErrorKind::Conflict => is(&excuses.rival) || is(&excuses.store) || error.message().contains("took so long"),
            _ => false,
        };
        self.journal.note(format_args!("{}: {what} is answered with {:?}: {error}", self.name, error.kind()));
        if error.kind() == ErrorKind::Fenced {
            self.journal.hit("owner: fenced");
        }
        if !is_excused {
            self.faults.note(format!("{}: {what} failed for no reason: {:?}: {error}", self.name, error.kind()));
        }
        if matches!(
            error.kind(),
            ErrorKind::Fenced | ErrorKind::Io | ErrorKind::Stopping | ErrorKind::NotFound | ErrorKind::Damaged
        ) {
            self.has_failed.store(true, Ordering::SeqCst);
        }
    }

    fn flushed(&self, result: &Result<()>, durability: Durability, to: usize) {
        match result {
            Ok(()) => {
                self.journal.note(format_args!("{}: a flush to {to} is acknowledged ({durability:?})", self.name));
                let mut record = self.record.lock().unwrap();
                let noted = match durability {
                    Durability::Local => {
                        record.flushed(to);
                        Ok(())
                    }
                    Durability::Store => record.stored(to),
                };
                if let Err(fault) = noted {
                    self.faults.note(format!("{}: {fault}", self.name));
                }
            }
            Err(error) => self.met("a flush", error),
        }
    }
}

impl Client {
    /// Waits while the volume is in doubt whose it is. What is asked of it meanwhile is done at the end of the doubt, and what the disk is then
    /// cannot be told beforehand.
    ///
    /// # Errors
    /// Why the volume takes no requests any more.
    pub async fn past_doubt(&self) -> Result<()> {
        loop {
            let mut outcomes = Vec::new();
            // It changes nothing, and is refused; in doubt it is not even looked at.
            self.device().try_change(&[Change::Zero { offset: 0, length: 0 }], &mut outcomes);
            match outcomes.pop() {
                Some(Attempt::WouldBlock) => {}
                Some(Attempt::Failed(error)) if error.kind() != ErrorKind::Invalid => return Err(error),
                _ => return Ok(()),
            }
            clock::sleep(Duration::from_millis(1)).await;
        }
    }

    fn device(&self) -> VolumeDevice {
        VolumeDevice::new(self.volume.clone())
    }

    pub fn sectors(&self) -> usize {
        self.layout().sectors(self.device().geometry().size)
    }

    pub fn layout(&self) -> Layout {
        Layout::of(self.device().geometry().size)
    }

    /// Makes a change that the record has begun with, and flushes it if it is FUA.
    pub async fn change(self, number: u64, wish: Wish, fua: bool) {
        let change = wish.change(self.layout());
        let borrowed = match &change {
            Change::Write { offset, data } => Change::Write { offset: *offset, data: &data[..] },
            Change::Zero { offset, length } => Change::Zero { offset: *offset, length: *length },
            Change::Trim { offset, length } => Change::Trim { offset: *offset, length: *length },
        };
        let mut outcomes = Vec::new();
        self.device().try_change(&[borrowed], &mut outcomes);
        let outcome = match outcomes.pop() {
            Some(Attempt::Done) => Ok(()),
            Some(Attempt::Failed(error)) => Err(error),
            _ => {
                self.journal.hit("client: waits for a change");
                self.device().change(change).await
            }
        };
        match outcome {
            Ok(()) => {
                self.record.lock().unwrap().acknowledged(number);
                self.journal.note(format_args!("{}: change {number} is acknowledged", self.name));
                if fua {
                    self.flush().await;
                }
            }
            Err(error) => {
                self.record.lock().unwrap().failed(number);
                self.met("a change", &error);
            }
        }
    }

    pub async fn flush(self) {
        let (durability, to) = (self.volume.durability(), self.record.lock().unwrap().now());
        let (sender, receiver) = oneshot::channel();
        let (witness, volume) = (self.witness.clone(), Arc::downgrade(&self.volume));
        // The record learns of it in the step in which the engine says so.
        self.device().commit(Box::new(move |result| {
            // A flush that waited for the end of a doubt promises what is promised then: somebody may have switched that meanwhile.
            let now = volume.upgrade().map_or(durability, |volume| volume.durability());
            let level = if now == Durability::Local { now } else { durability };
            witness.flushed(&result, level, to);
            // Whoever waits may be gone.
            let _ = sender.send(());
        }));
        // Without an answer the log was closed, which somebody else tells of.
        let _ = receiver.await;
    }

    pub async fn sync(self) {
        let to = self.record.lock().unwrap().now();
        match self.volume.sync().await {
            Ok(()) => {
                self.journal.note(format_args!("{}: a sync to {to} is acknowledged", self.name));
                if let Err(fault) = self.record.lock().unwrap().stored(to) {
                    self.faults.note(format!("{}: {fault}", self.name));
                }
            }
            Err(error) => self.met("a sync", &error),
        }
    }

    pub async fn read(self, first: usize, count: usize) {
        let (before, since) = {
            let record = self.record.lock().unwrap();
            (record.range(first, count), record.now())
        };
        match self.read_sectors(first, count).await {
            Ok(read) => {
                let checked =
                    read.and_then(|read| self.record.lock().unwrap().check_read(first, &before, since, &read));
                if let Err(fault) = checked {
                    self.faults.note(format!("{}: {fault}", self.name));
                }
            }
            Err(error) => self.met("a read", &error),
        }
    }

    /// Reads sectors; the inner result tells of wrong data.
    pub async fn read_sectors(&self, first: usize, count: usize) -> Result<std::result::Result<Vec<Stamp>, String>> {
        read_device(&self.device(), first, count).await
    }

    pub async fn prefetch(self, first: usize, count: usize) {
        let layout = self.layout();
        for range in layout.parts(first, count).iter().map(|part| layout.range(part)) {
            if let Err(error) = self.device().prefetch(range.start, range.end - range.start).await {
                return self.met("a prefetch", &error);
            }
        }
    }
}

/// Reads sectors of any device, as the doors do it.
pub async fn read_device(
    device: &dyn BlockDevice,
    first: usize,
    count: usize,
) -> Result<std::result::Result<Vec<Stamp>, String>> {
    let layout = Layout::of(device.geometry().size);
    let mut stamps = Vec::with_capacity(count);
    for part in layout.parts(first, count) {
        let mut bytes = vec![0xa5; part.count * SECTOR];
        let offset = layout.offset(part.first);
        match device.try_read(offset, &mut bytes) {
            Attempt::Done => {}
            Attempt::Failed(error) => return Err(error),
            Attempt::WouldBlock => device.read(offset, &mut bytes).await?,
        }
        match stamps_of(&bytes, part.first) {
            Ok(read) => stamps.extend(read),
            fault => return Ok(fault),
        }
    }
    Ok(Ok(stamps))
}

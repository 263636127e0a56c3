//! A disk that fails on purpose: it counts operations, and makes chosen ones fail. For tests of what the rooms above do then.
//!
//! Counting is over all files of one [`FaultDisk`], from 1, per kind of operation. A write chosen to fall short writes its
//! first bytes before it fails, as a full or dying disk does. The failing sync has not synced.

use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile, OpenMode};

/// The kinds of operations that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// [`DiskFile::read_at`].
    Read,
    /// [`DiskFile::write_at`].
    Write,
    /// [`DiskFile::sync_data`].
    Sync,
    /// [`DiskFile::allocate`].
    Allocate,
}

/// How many operations there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Allocations.
    pub allocates: u64,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    operation: Operation,
    number: u64,
    kind: io::ErrorKind,
    written_first: usize,
}

#[derive(Debug, Default)]
struct Plan {
    counts: Counts,
    faults: Vec<Fault>,
}

impl Plan {
    fn step(&mut self, operation: Operation) -> Option<Fault> {
        let count = self.count(operation);
        *count += 1;
        let number = *count;
        self.faults.iter().find(|fault| fault.operation == operation && fault.number == number).copied()
    }

    fn count(&mut self, operation: Operation) -> &mut u64 {
        match operation {
            Operation::Read => &mut self.counts.reads,
            Operation::Write => &mut self.counts.writes,
            Operation::Sync => &mut self.counts.syncs,
            Operation::Allocate => &mut self.counts.allocates,
        }
    }
}

/// A disk over another one. Clones share counts and faults.
#[derive(Clone)]
pub struct FaultDisk {
    inner: Arc<dyn Disk>,
    plan: Arc<Mutex<Plan>>,
}

impl FaultDisk {
    /// A disk that passes everything to `inner` for now.
    pub fn new(inner: Arc<dyn Disk>) -> Self {
        FaultDisk { inner, plan: Arc::default() }
    }

    /// Makes the `nth` operation of that kind from now on (1 is the next one) fail with `kind`.
    pub fn fail(&self, operation: Operation, nth: u64, kind: io::ErrorKind) {
        self.add(operation, nth, kind, 0);
    }

    /// Makes the `nth` write from now on write only its first `bytes` and then fail with `kind`.
    pub fn fail_short(&self, nth: u64, bytes: usize, kind: io::ErrorKind) {
        self.add(Operation::Write, nth, kind, bytes);
    }

    /// What was asked of the disk so far.
    pub fn counts(&self) -> Counts {
        self.plan.lock().counts
    }

    fn add(&self, operation: Operation, nth: u64, kind: io::ErrorKind, written_first: usize) {
        let mut plan = self.plan.lock();
        let number = *plan.count(operation) + nth;
        plan.faults.push(Fault { operation, number, kind, written_first });
    }
}

struct FaultFile {
    inner: Arc<dyn DiskFile>,
    plan: Arc<Mutex<Plan>>,
}

impl FaultFile {
    fn step(&self, operation: Operation) -> io::Result<()> {
        let fault = self.plan.lock().step(operation);
        fault.map_or(Ok(()), |fault| Err(io::Error::from(fault.kind)))
    }
}

impl DiskFile for FaultFile {
    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        self.step(Operation::Read)?;
        self.inner.read_at(buffers, offset)
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let fault = self.plan.lock().step(Operation::Write);
        let Some(fault) = fault else { return self.inner.write_at(buffers, offset) };
        let mut bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
        bytes.truncate(fault.written_first);
        if !bytes.is_empty() {
            self.inner.write_at(&[IoSlice::new(&bytes)], offset)?;
        }
        Err(io::Error::from(fault.kind))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.step(Operation::Sync)?;
        self.inner.sync_data()
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.step(Operation::Allocate)?;
        self.inner.allocate(length)
    }
}

impl Disk for FaultDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.inner.open(path, mode)?;
        Ok(Arc::new(FaultFile { inner, plan: self.plan.clone() }))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.inner.create_directory(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        self.inner.list(directory)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_directory(path)
    }
}

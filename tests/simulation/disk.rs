//! A host's disk with faults: errors of reads, writes and syncs, short writes, a full disk. What a failed sync should have made
//! durable never will be. All over `SimulatedDisk`, which outlives the process.

use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use varve::disk::simulated::SimulatedDisk;
use varve::disk::{Disk, DiskFile, OpenMode};

use super::journal::Journal;
use super::network::Capture;

/// A deliberate bug of the disk's edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Syncs of the log do nothing.
    SkipSync,
    /// A write is answered before it is made.
    AckBeforeAppend,
}

pub const FAULTS: &[&str] =
    &["disk: read error", "disk: write error", "disk: short write", "disk: sync error", "disk: full"];

/// A write that was answered and is still to be made.
type Owed = Option<(Arc<dyn DiskFile>, Vec<u8>, u64)>;

struct State {
    random: StdRng,
    /// Of ten thousand operations, how many fail.
    trouble: u32,
    capture: Option<Capture>,
    broken: Option<Broken>,
    owed: Owed,
}

/// Clones are the same disk.
#[derive(Clone)]
pub struct FaultyDisk {
    pub inner: SimulatedDisk,
    journal: Journal,
    state: Arc<Mutex<State>>,
}

impl FaultyDisk {
    pub fn new(inner: SimulatedDisk, seed: u64, journal: Journal, broken: Option<Broken>) -> FaultyDisk {
        let random = StdRng::seed_from_u64(seed);
        let state = State { random, trouble: 0, capture: None, broken, owed: None };
        FaultyDisk { inner, journal, state: Arc::new(Mutex::new(state)) }
    }

    /// From now on, of ten thousand operations this many fail.
    pub fn trouble(&self, trouble: u32) {
        self.state.lock().unwrap().trouble = trouble;
    }

    pub fn capture(&self, capture: Option<Capture>) {
        self.state.lock().unwrap().capture = capture;
    }

    fn broken(&self) -> Option<Broken> {
        self.state.lock().unwrap().broken
    }

    fn captured(&self, what: &str, path: &Path) {
        let capture = self.state.lock().unwrap().capture.clone();
        if let Some(capture) = capture {
            capture(&format!("{what} {}", path.display()));
        }
    }

    fn fails(&self, fault: &'static str, path: &Path) -> bool {
        let mut state = self.state.lock().unwrap();
        // Files are seldom made: else there would hardly ever be no space for one.
        let trouble = if fault == "disk: full" { state.trouble * 8 } else { state.trouble };
        if trouble == 0 || state.random.random_range(0..10_000) >= trouble {
            return false;
        }
        drop(state);
        self.journal.hit(fault);
        self.journal.note(format_args!("{fault} of {}", path.display()));
        true
    }

    fn choose(&self, below: usize) -> usize {
        self.state.lock().unwrap().random.random_range(0..below.max(1))
    }
}

fn failure(kind: io::ErrorKind) -> io::Error {
    io::Error::new(kind, "the simulated disk failed")
}

struct FaultyFile {
    disk: FaultyDisk,
    path: PathBuf,
    inner: Arc<dyn DiskFile>,
}

impl FaultyFile {
    fn is_log(&self) -> bool {
        self.path.ends_with("log") || self.path.ends_with("log.new")
    }

    fn pay(&self) -> io::Result<()> {
        let owed = self.disk.state.lock().unwrap().owed.take();
        owed.map_or(Ok(()), |(file, bytes, offset)| file.write_at(&[IoSlice::new(&bytes)], offset))
    }
}

impl DiskFile for FaultyFile {
    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        if self.disk.fails("disk: read error", &self.path) {
            return Err(failure(io::ErrorKind::Other));
        }
        self.pay()?;
        self.inner.read_at(buffers, offset)
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        if self.disk.fails("disk: write error", &self.path) {
            return Err(failure(io::ErrorKind::Other));
        }
        if self.disk.fails("disk: short write", &self.path) {
            let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
            let length = self.disk.choose(bytes.len());
            self.inner.write_at(&[IoSlice::new(&bytes[..length])], offset)?;
            return Err(failure(io::ErrorKind::Other));
        }
        self.disk.captured("before write", &self.path);
        self.pay()?;
        if self.is_log() && self.disk.broken() == Some(Broken::AckBeforeAppend) {
            let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
            self.disk.state.lock().unwrap().owed = Some((self.inner.clone(), bytes, offset));
            return Ok(());
        }
        let length: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        self.disk.journal.note(format_args!("disk: write {} {offset} {length}", self.path.display()));
        self.inner.write_at(buffers, offset)?;
        self.disk.captured("after write", &self.path);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.disk.fails("disk: sync error", &self.path) {
            self.disk.inner.lose_unsynced(&self.path)?;
            return Err(failure(io::ErrorKind::Other));
        }
        self.disk.captured("before sync", &self.path);
        self.pay()?;
        self.disk.journal.note(format_args!("disk: sync {}", self.path.display()));
        if self.is_log() && self.disk.broken() == Some(Broken::SkipSync) {
            return Ok(());
        }
        self.inner.sync_data()?;
        self.disk.captured("after sync", &self.path);
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        if self.disk.fails("disk: full", &self.path) {
            return Err(failure(io::ErrorKind::StorageFull));
        }
        self.inner.allocate(length)
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        if mode == OpenMode::CreateNew && self.fails("disk: full", path) {
            return Err(failure(io::ErrorKind::StorageFull));
        }
        let inner = self.inner.open(path, mode)?;
        if mode == OpenMode::CreateNew {
            self.captured("after creation", path);
        }
        Ok(Arc::new(FaultyFile { disk: self.clone(), path: path.to_owned(), inner }))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.inner.create_directory(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        self.inner.list(directory)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.fails("disk: write error", from) {
            return Err(failure(io::ErrorKind::Other));
        }
        self.captured("before renaming", from);
        self.inner.rename(from, to)?;
        self.captured("after renaming", from);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)?;
        self.captured("after removal", path);
        Ok(())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        if self.fails("disk: sync error", path) {
            return Err(failure(io::ErrorKind::Other));
        }
        self.captured("before sync of", path);
        self.inner.sync_directory(path)?;
        self.captured("after sync of", path);
        Ok(())
    }
}

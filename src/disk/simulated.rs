//! A disk in memory that can lose power.
//!
//! # Fault model
//! - [`SimulatedDisk::kill`]: the process dies. Every write that returned is kept (it is in the page cache), and is still
//!   unsynced. Open files answer with an error from then on, as does everything of the dead process.
//! - [`SimulatedDisk::power_loss`]: of each file remains what was synced, and of the writes since, each independently and in
//!   any combination: all of it, nothing, or a random set of its 512-byte sectors (a torn write). Sectors are atomic. A length
//!   that was not synced is kept or lost. Of the names changed since the directory was synced, a random first part is kept:
//!   journals keep the order of names.
//! - [`SimulatedDisk::flip_bit`]: bit rot, also of what was synced.
//!
//! A write may reach the medium in parts before its sync returns, and so may a power loss show a write whose sync was under way; nothing
//! that was synced is lost but by `flip_bit`. Not modelled: a sync that lies.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Disk, DiskFile, OpenMode};

/// The unit that a medium writes whole or not at all.
const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Add(PathBuf, u64),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

#[derive(Debug, Default)]
struct State {
    /// Counts the deaths of the process: files opened before the last one are dead.
    life: u64,
    inodes: BTreeMap<u64, Inode>,
    inode_next: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    unsynced_names: Vec<NameChange>,
    directories: Vec<PathBuf>,
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, change: &NameChange) {
    match change {
        NameChange::Add(path, inode) => {
            names.insert(path.clone(), *inode);
        }
        NameChange::Remove(path) => {
            names.remove(path);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

fn overwrite(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if image.len() < at + bytes.len() {
        image.resize(at + bytes.len(), 0);
    }
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Inode {
    fn lose_power(&mut self, random: &mut StdRng) {
        let mut image = std::mem::take(&mut self.durable);
        if random.random_bool(0.5) {
            image.resize(self.current.len().max(image.len()), 0);
        }
        for (at, bytes) in self.unsynced.drain(..) {
            match random.random_range(0..4) {
                0 => {}
                1 | 2 => overwrite(&mut image, at, &bytes),
                _ => {
                    let end = at + bytes.len();
                    let mut start = at;
                    while start < end {
                        let stop = (start + SECTOR - start % SECTOR).min(end);
                        if random.random_bool(0.5) {
                            overwrite(&mut image, start, &bytes[start - at..stop - at]);
                        }
                        start = stop;
                    }
                }
            }
        }
        self.current = image.clone();
        self.durable = image;
    }
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

impl SimulatedDisk {
    /// An empty disk with only its root directory.
    pub fn new() -> Self {
        SimulatedDisk::default()
    }

    /// The process dies; what it wrote stays.
    pub fn kill(&self) {
        self.state.lock().life += 1;
    }

    /// The host loses power; `seed` decides what of the unsynced remains.
    pub fn power_loss(&self, seed: u64) {
        let random = &mut StdRng::seed_from_u64(seed);
        let mut state = self.state.lock();
        state.life += 1;
        for inode in state.inodes.values_mut() {
            inode.lose_power(random);
        }
        let kept = random.random_range(0..=state.unsynced_names.len());
        let changes = std::mem::take(&mut state.unsynced_names);
        for change in &changes[..kept] {
            apply(&mut state.durable_names, change);
        }
        state.names = state.durable_names.clone();
    }

    /// Flips one bit of a file, on the medium and in memory alike.
    ///
    /// # Errors
    /// `NotFound`; `UnexpectedEof` beyond the file.
    pub fn flip_bit(&self, path: &Path, byte: u64, bit: u8) -> io::Result<()> {
        let mut state = self.state.lock();
        let inode = state.names.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        let inode = state.inodes.get_mut(&inode).ok_or(io::ErrorKind::NotFound)?;
        let at = usize::try_from(byte).map_err(io::Error::other)?;
        for image in [&mut inode.durable, &mut inode.current] {
            *image.get_mut(at).ok_or(io::ErrorKind::UnexpectedEof)? ^= 1 << (bit % 8);
        }
        Ok(())
    }

    /// All bytes of a file as a reader would see them.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state.lock();
        let inode = state.names.get(path).and_then(|inode| state.inodes.get(inode));
        Ok(inode.ok_or(io::ErrorKind::NotFound)?.current.clone())
    }
}

impl SimulatedDisk {
    /// The paths of all files, sorted.
    pub fn everything(&self) -> Vec<PathBuf> {
        self.state.lock().names.keys().cloned().collect()
    }
}

struct SimulatedFile {
    state: Arc<Mutex<State>>,
    life: u64,
    inode: u64,
}

impl SimulatedFile {
    fn with<T>(&self, act: impl FnOnce(&mut Inode) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        if state.life != self.life {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the process that opened this file is dead"));
        }
        act(state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?)
    }
}

impl DiskFile for SimulatedFile {
    fn length(&self) -> io::Result<u64> {
        self.with(|inode| Ok(inode.current.len() as u64))
    }

    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        self.with(|inode| {
            let mut at = usize::try_from(offset).map_err(io::Error::other)?;
            for buffer in buffers {
                let end = at.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(inode.current.get(at..end).ok_or(io::ErrorKind::UnexpectedEof)?);
                at = end;
            }
            Ok(())
        })
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.with(|inode| {
            let at = usize::try_from(offset).map_err(io::Error::other)?;
            let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
            overwrite(&mut inode.current, at, &bytes);
            inode.unsynced.push((at, bytes));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|inode| {
            let length = inode.current.len();
            inode.durable.resize(length, 0);
            for (at, bytes) in inode.unsynced.drain(..) {
                overwrite(&mut inode.durable, at, &bytes);
            }
            Ok(())
        })
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.with(|inode| {
            let length = usize::try_from(length).map_err(io::Error::other)?;
            if inode.current.len() < length {
                inode.current.resize(length, 0);
            }
            Ok(())
        })
    }
}

impl Disk for SimulatedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        let inode = match (state.names.get(path).copied(), mode) {
            (Some(inode), OpenMode::Existing) => inode,
            (None, OpenMode::Existing) => return Err(io::ErrorKind::NotFound.into()),
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, OpenMode::CreateNew) => {
                state.inode_next += 1;
                let inode = state.inode_next;
                state.inodes.insert(inode, Inode::default());
                state.names.insert(path.to_owned(), inode);
                state.unsynced_names.push(NameChange::Add(path.to_owned(), inode));
                inode
            }
        };
        Ok(Arc::new(SimulatedFile { state: self.state.clone(), life: state.life, inode }))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.directories.iter().any(|known| known == path) {
            state.directories.push(path.to_owned());
        }
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.state.lock();
        let held: Vec<PathBuf> = state.names.keys().filter(|path| path.parent() == Some(directory)).cloned().collect();
        if held.is_empty() && !state.directories.iter().any(|known| known.starts_with(directory)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(held)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), inode);
        state.unsynced_names.push(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        state.unsynced_names.push(NameChange::Remove(path.to_owned()));
        Ok(())
    }

    /// Simpler than real: any directory's sync makes all names durable up to it.
    fn sync_directory(&self, _path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let changes = std::mem::take(&mut state.unsynced_names);
        for change in &changes {
            apply(&mut state.durable_names, change);
        }
        Ok(())
    }
}

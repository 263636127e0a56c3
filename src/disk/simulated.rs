//! A disk in memory that can lose power.
//!
//! # Fault model
//! - [`SimulatedDisk::kill`]: the process dies. Every write that returned is kept (it is in the page cache), and is still
//!   unsynced. Open files answer with an error from then on, as does everything of the dead process.
//! - [`SimulatedDisk::power_loss`]: of each file remains what was synced, and of the writes since, each independently and in
//!   any combination: all of it, nothing, or a random set of its 512-byte sectors (a torn write). Sectors are atomic. A length
//!   that was not synced is kept or lost. Of the names changed since the directory was synced, a random first part is kept:
//!   journals keep the order of names. [`SimulatedDisk::power_loss_keeping`] says exactly what is kept.
//! - [`SimulatedDisk::lose_unsynced`]: what a failed sync leaves behind. Readers still see the writes, which are clean by now: no later
//!   sync writes them, and power loss ends them.
//! - [`SimulatedDisk::flip_bit`]: bit rot, also of what was synced.
//!
//! A write may reach the medium in parts before its sync returns, and so may a power loss show a write whose sync was under way; nothing
//! that was synced is lost but by `flip_bit`. Not modelled: a sync that lies.
//!
//! Files are kept in pieces, shared by copies of the disk, and none where nothing but zeros was written: large files cost nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Disk, DiskFile, OpenMode};

/// The unit that a medium writes whole or not at all.
const SECTOR: usize = 512;
/// Length of the pieces that files are kept in.
const PIECE: usize = 4096;

/// The bytes of a file.
#[derive(Clone, Debug, Default)]
struct Image {
    length: usize,
    pieces: Vec<Option<Arc<[u8; PIECE]>>>,
}

impl Image {
    fn grow(&mut self, length: usize) {
        if self.length < length {
            self.length = length;
            self.pieces.resize(length.div_ceil(PIECE), None);
        }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.grow(at + bytes.len());
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let (number, from) = (at / PIECE, at % PIECE);
            let (part, behind) = rest.split_at(rest.len().min(PIECE - from));
            let piece = &mut self.pieces[number];
            if piece.is_some() || part.iter().any(|&byte| byte != 0) {
                let piece = piece.get_or_insert_with(|| Arc::new([0; PIECE]));
                Arc::make_mut(piece)[from..from + part.len()].copy_from_slice(part);
            }
            at += part.len();
            rest = behind;
        }
    }

    /// Fills `buffer`, unless the file ends before.
    fn read(&self, at: usize, buffer: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        if end > self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut rest) = (at, buffer);
        while !rest.is_empty() {
            let (number, from) = (at / PIECE, at % PIECE);
            let length = rest.len().min(PIECE - from);
            let (part, behind) = rest.split_at_mut(length);
            match &self.pieces[number] {
                Some(piece) => part.copy_from_slice(&piece[from..from + length]),
                None => part.fill(0),
            }
            at += length;
            rest = behind;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Image,
    current: Image,
}

/// Something that is not durable yet, in the order in which it was done.
#[derive(Clone, Debug)]
enum Unsynced {
    Write { inode: u64, at: usize, bytes: Vec<u8> },
    Length { inode: u64, length: usize },
    Name(NameChange),
}

#[derive(Clone, Debug)]
enum NameChange {
    Add(PathBuf, u64),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

/// What of the unsynced a power loss leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing.
    Nothing,
    /// All of it.
    Everything,
    /// This many writes, lengths and names, from the oldest on.
    First(usize),
    /// As many, and of the next write some of its sectors, drawn by the seed.
    Torn(usize, u64),
    /// Some, drawn by the seed.
    Some(u64),
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Counts the deaths of the process: files opened before the last one are dead.
    life: u64,
    inodes: BTreeMap<u64, Inode>,
    inode_next: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    unsynced: Vec<Unsynced>,
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

impl State {
    fn settle(&mut self, change: &Unsynced) {
        match change {
            Unsynced::Write { inode, at, bytes } => {
                if let Some(inode) = self.inodes.get_mut(inode) {
                    inode.durable.write(*at, bytes);
                }
            }
            Unsynced::Length { inode, length } => {
                if let Some(inode) = self.inodes.get_mut(inode) {
                    inode.durable.grow(*length);
                }
            }
            Unsynced::Name(change) => apply(&mut self.durable_names, change),
        }
    }

    fn settle_torn(&mut self, change: &Unsynced, random: &mut StdRng) {
        let Unsynced::Write { inode, at, bytes } = change else { return };
        let Some(inode) = self.inodes.get_mut(inode) else { return };
        let end = at + bytes.len();
        let mut start = *at;
        while start < end {
            let stop = (start + SECTOR - start % SECTOR).min(end);
            if random.random_bool(0.5) {
                inode.durable.write(start, &bytes[start - at..stop - at]);
            }
            start = stop;
        }
    }

    fn lose_power(&mut self, kept: Kept) {
        self.life += 1;
        let unsynced = std::mem::take(&mut self.unsynced);
        match kept {
            Kept::Nothing => {}
            Kept::Everything => unsynced.iter().for_each(|change| self.settle(change)),
            Kept::First(count) => unsynced.iter().take(count).for_each(|change| self.settle(change)),
            Kept::Torn(count, seed) => {
                unsynced.iter().take(count).for_each(|change| self.settle(change));
                if let Some(torn) = unsynced.get(count) {
                    self.settle_torn(torn, &mut StdRng::seed_from_u64(seed));
                }
            }
            Kept::Some(seed) => self.keep_some(&unsynced, &mut StdRng::seed_from_u64(seed)),
        }
        self.names = self.durable_names.clone();
        let held: BTreeSet<u64> = self.names.values().copied().collect();
        self.inodes.retain(|number, _| held.contains(number));
        self.inodes.values_mut().for_each(|inode| inode.current = inode.durable.clone());
    }

    fn keep_some(&mut self, unsynced: &[Unsynced], random: &mut StdRng) {
        let names = unsynced.iter().filter(|change| matches!(change, Unsynced::Name(_))).count();
        let mut names_kept = random.random_range(0..=names);
        for change in unsynced {
            match change {
                Unsynced::Name(_) => {
                    if names_kept > 0 {
                        names_kept -= 1;
                        self.settle(change);
                    }
                }
                Unsynced::Length { .. } => {
                    if random.random_bool(0.5) {
                        self.settle(change);
                    }
                }
                Unsynced::Write { .. } => match random.random_range(0..4) {
                    0 => {}
                    1 | 2 => self.settle(change),
                    _ => self.settle_torn(change, random),
                },
            }
        }
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

    /// A disk of its own with the same content, on the medium and beyond.
    pub fn fork(&self) -> Self {
        SimulatedDisk { state: Arc::new(Mutex::new(self.state.lock().clone())) }
    }

    /// The process dies; what it wrote stays.
    pub fn kill(&self) {
        self.state.lock().life += 1;
    }

    /// The host loses power; `seed` decides what of the unsynced remains.
    pub fn power_loss(&self, seed: u64) {
        self.power_loss_keeping(Kept::Some(seed));
    }

    /// The host loses power, and of the unsynced remains what `kept` says.
    pub fn power_loss_keeping(&self, kept: Kept) {
        self.state.lock().lose_power(kept);
    }

    /// The number of writes, lengths and names that are not synced.
    pub fn unsynced(&self) -> usize {
        self.state.lock().unsynced.len()
    }

    /// What is not synced of a file is not on the medium, and will not be: a sync of it has failed.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn lose_unsynced(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let wanted = state.names.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        state.unsynced.retain(|change| !matches!(change, Unsynced::Write { inode, .. } if *inode == wanted));
        Ok(())
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
        let mut flipped = [0];
        inode.current.read(at, &mut flipped)?;
        flipped[0] ^= 1 << (bit % 8);
        inode.current.write(at, &flipped);
        if inode.durable.length > at {
            inode.durable.read(at, &mut flipped)?;
            flipped[0] ^= 1 << (bit % 8);
            inode.durable.write(at, &flipped);
        }
        Ok(())
    }

    /// All bytes of a file as a reader would see them.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state.lock();
        let inode = state.names.get(path).and_then(|inode| state.inodes.get(inode)).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; inode.current.length];
        inode.current.read(0, &mut bytes)?;
        Ok(bytes)
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
    fn with<T>(&self, act: impl FnOnce(&mut State, &mut Inode) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        if state.life != self.life {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the process that opened this file is dead"));
        }
        let mut inode = state.inodes.remove(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        let answer = act(&mut state, &mut inode);
        state.inodes.insert(self.inode, inode);
        answer
    }
}

impl DiskFile for SimulatedFile {
    fn length(&self) -> io::Result<u64> {
        self.with(|_, inode| Ok(inode.current.length as u64))
    }

    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        self.with(|_, inode| {
            let mut at = usize::try_from(offset).map_err(io::Error::other)?;
            for buffer in buffers {
                inode.current.read(at, buffer)?;
                at += buffer.len();
            }
            Ok(())
        })
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let number = self.inode;
        self.with(|state, inode| {
            let at = usize::try_from(offset).map_err(io::Error::other)?;
            let mut bytes = Vec::with_capacity(buffers.iter().map(|buffer| buffer.len()).sum());
            buffers.iter().for_each(|buffer| bytes.extend_from_slice(buffer));
            inode.current.write(at, &bytes);
            state.unsynced.push(Unsynced::Write { inode: number, at, bytes });
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let number = self.inode;
        self.with(|state, inode| {
            inode.durable.grow(inode.current.length);
            let (synced, rest) = std::mem::take(&mut state.unsynced).into_iter().partition(|change| match change {
                Unsynced::Write { inode, .. } | Unsynced::Length { inode, .. } => *inode == number,
                Unsynced::Name(_) => false,
            });
            state.unsynced = rest;
            let synced: Vec<Unsynced> = synced;
            for change in &synced {
                if let Unsynced::Write { at, bytes, .. } = change {
                    inode.durable.write(*at, bytes);
                }
            }
            Ok(())
        })
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let number = self.inode;
        self.with(|state, inode| {
            let length = usize::try_from(length).map_err(io::Error::other)?;
            inode.current.grow(length);
            state.unsynced.push(Unsynced::Length { inode: number, length });
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
                state.unsynced.push(Unsynced::Name(NameChange::Add(path.to_owned(), inode)));
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
        state.unsynced.push(Unsynced::Name(NameChange::Rename(from.to_owned(), to.to_owned())));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        state.unsynced.push(Unsynced::Name(NameChange::Remove(path.to_owned())));
        Ok(())
    }

    /// Simpler than real: any directory's sync makes all names durable up to it.
    fn sync_directory(&self, _path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        for change in std::mem::take(&mut state.unsynced) {
            match change {
                Unsynced::Name(change) => apply(&mut state.durable_names, &change),
                other => state.unsynced.push(other),
            }
        }
        Ok(())
    }
}

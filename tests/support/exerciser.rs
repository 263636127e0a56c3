//! Exercises one file of a mounted file system as fsx does: random writes, truncations, holes, syncs and reads, each read compared with a model
//! in memory. The operations of a seed are always the same.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};

use super::history::Chance;

/// Longest the file becomes, and the longest operation on it.
const FILE_BYTES_MAX: u64 = 4 << 20;
const OPERATION_BYTES_MAX: u64 = 200_000;

/// The file, and what it must hold.
pub struct Exerciser {
    file: File,
    model: Vec<u8>,
    chance: Chance,
    /// Operations so far.
    pub done: u64,
}

impl Exerciser {
    /// A new file.
    pub fn new(path: &Path, seed: u64) -> Exerciser {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
        Exerciser { file, model: Vec::new(), chance: Chance::new(seed), done: 0 }
    }

    /// One operation.
    #[track_caller]
    pub fn step(&mut self) {
        let length = 1 + self.chance.below(OPERATION_BYTES_MAX);
        let offset = self.chance.below(FILE_BYTES_MAX - length);
        match self.chance.below(20) {
            0..8 => self.write(offset, length),
            8 => self.truncate(offset),
            9 => self.punch(offset, length),
            10 => self.file.sync_data().unwrap(),
            11 => self.check(),
            _ => self.read(offset, length),
        }
        self.done += 1;
    }

    fn write(&mut self, offset: u64, length: u64) {
        let first = self.chance.next();
        let data: Vec<u8> = (0..length).map(|at| (first >> (at % 8 * 8)) as u8 ^ at as u8).collect();
        self.file.write_all_at(&data, offset).unwrap();
        let end = (offset + length) as usize;
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[offset as usize..end].copy_from_slice(&data);
    }

    fn truncate(&mut self, length: u64) {
        self.file.set_len(length).unwrap();
        self.model.resize(length as usize, 0);
    }

    fn punch(&mut self, offset: u64, length: u64) {
        fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length).unwrap();
        let end = ((offset + length) as usize).min(self.model.len());
        if let Some(hole) = self.model.get_mut(offset as usize..end) {
            hole.fill(0);
        }
    }

    #[track_caller]
    fn read(&self, offset: u64, length: u64) {
        let end = ((offset + length) as usize).min(self.model.len());
        let Some(wanted) = self.model.get(offset as usize..end) else { return };
        let mut found = vec![0; wanted.len()];
        self.file.read_exact_at(&mut found, offset).unwrap();
        let wrong = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
        assert_eq!(wrong, None, "operation {}: wrong from there on in {length} bytes at {offset}", self.done);
    }

    /// Compares all of it, from the disk and not from the page cache.
    #[track_caller]
    pub fn check(&self) {
        self.file.sync_data().unwrap();
        fadvise(&self.file, 0, None, Advice::DontNeed).unwrap();
        assert_eq!(self.file.metadata().unwrap().len(), self.model.len() as u64, "length of the file");
        self.read(0, self.model.len() as u64);
    }

    /// What the file must hold.
    pub fn content(&self) -> &[u8] {
        &self.model
    }
}

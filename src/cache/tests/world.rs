//! A cache on a disk and an index that live in memory, outlive it, and fail on demand.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::cache::{CacheSettings, ReadCache, SlotIndex};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{Error, ErrorKind, Result};
use crate::format::cache::{CHUNK_BYTES, RING_START};
use crate::units::{ByteLen, Epoch, FrameId, SegmentId, SegmentNumber, VolumeId};

/// The frame of a number.
pub fn frame(number: u64) -> FrameId {
    let segment = SegmentId { volume: VolumeId(7), epoch: Epoch(1), number: SegmentNumber(number / 10) };
    FrameId { segment, frame: (number % 10) as u32 }
}

/// What the frame of a number holds: 100 to 24,000 bytes that no other frame has.
pub fn content(number: u64) -> Vec<u8> {
    let length = 100 + (number * 7919) % 23_901;
    (0..length).map(|at| (number * 31 + at * 17 + (at >> 8)) as u8).collect()
}

/// A file in memory. Its length is fixed by `allocate`; writing past it is an error, as the budget demands.
#[derive(Default)]
pub struct TestFile {
    pub bytes: Mutex<Vec<u8>>,
    pub fails_reads: AtomicBool,
    pub fails_writes: AtomicBool,
    space: u64,
}

impl TestFile {
    pub fn length_now(&self) -> u64 {
        self.bytes.lock().len() as u64
    }
}

impl DiskFile for TestFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.length_now())
    }

    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        if self.fails_reads.load(Ordering::Relaxed) {
            return Err(io::Error::other("simulated EIO"));
        }
        let bytes = self.bytes.lock();
        let mut at = offset as usize;
        for buffer in buffers {
            let source = bytes.get(at..at + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(source);
            at += buffer.len();
        }
        Ok(())
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        if self.fails_writes.load(Ordering::Relaxed) {
            return Err(io::Error::other("simulated EIO"));
        }
        let mut bytes = self.bytes.lock();
        let mut at = offset as usize;
        for buffer in buffers {
            bytes.get_mut(at..at + buffer.len()).ok_or(io::ErrorKind::StorageFull)?.copy_from_slice(buffer);
            at += buffer.len();
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        if length > self.space {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.lock().resize(length as usize, 0);
        Ok(())
    }
}

/// A disk in memory with so much space for each file.
pub struct TestDisk {
    pub files: Mutex<HashMap<PathBuf, Arc<TestFile>>>,
    pub space: AtomicU64,
}

impl Disk for TestDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = self.files.lock();
        match (files.get(path), mode) {
            (Some(file), OpenMode::Existing) => Ok(Arc::clone(file) as Arc<dyn DiskFile>),
            (None, OpenMode::Existing) => Err(io::ErrorKind::NotFound.into()),
            (Some(_), OpenMode::CreateNew) => Err(io::ErrorKind::AlreadyExists.into()),
            (None, OpenMode::CreateNew) => {
                let file = Arc::new(TestFile { space: self.space.load(Ordering::Relaxed), ..TestFile::default() });
                files.insert(path.to_owned(), Arc::clone(&file));
                Ok(file)
            }
        }
    }

    fn create_directory(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _directory: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.files.lock().keys().cloned().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.files.lock().remove(from).ok_or(io::ErrorKind::NotFound)?;
        self.files.lock().insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files.lock().remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_directory(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// An index in memory.
#[derive(Default)]
pub struct TestIndex {
    pub slots: Mutex<HashMap<FrameId, u64>>,
    pub fails: AtomicBool,
}

impl TestIndex {
    pub fn is_empty(&self) -> bool {
        self.slots.lock().is_empty()
    }

    fn check(&self) -> Result<()> {
        match self.fails.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Io, "simulated failure of the index")),
            false => Ok(()),
        }
    }
}

impl SlotIndex for TestIndex {
    fn get(&self, frame: FrameId) -> Result<Option<u64>> {
        self.check()?;
        Ok(self.slots.lock().get(&frame).copied())
    }

    fn get_many(&self, frames: &[FrameId]) -> Result<Vec<Option<u64>>> {
        self.check()?;
        let slots = self.slots.lock();
        Ok(frames.iter().map(|frame| slots.get(frame).copied()).collect())
    }

    fn apply(&self, puts: &[(FrameId, u64)], deletes: &[FrameId]) -> Result<()> {
        self.check()?;
        let mut slots = self.slots.lock();
        for frame in deletes {
            slots.remove(frame);
        }
        slots.extend(puts.iter().copied());
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        self.check()?;
        self.slots.lock().clear();
        Ok(())
    }
}

/// A cache and what it stands on.
pub struct World {
    pub settings: CacheSettings,
    pub disk: Arc<TestDisk>,
    pub index: Arc<TestIndex>,
    pub cache: ReadCache,
}

impl World {
    /// A budget that gives a ring of so many chunks, and a little that goes unused.
    pub fn budget(chunks: u64) -> ByteLen {
        ByteLen(RING_START + chunks * CHUNK_BYTES + 100)
    }

    /// A fresh cache with a ring of so many chunks, and 1 MiB of memory.
    pub fn new(chunks: u64) -> Self {
        Self::with_space(chunks, u64::MAX)
    }

    /// The same on a disk with so much space.
    pub fn with_space(chunks: u64, space: u64) -> Self {
        let settings =
            CacheSettings { memory: ByteLen(1 << 20), disk: Self::budget(chunks), path: PathBuf::from("/state/cache") };
        let disk = Arc::new(TestDisk { files: Mutex::default(), space: AtomicU64::new(space) });
        let index = Arc::new(TestIndex::default());
        let cache = ReadCache::open(&settings, disk.as_ref(), Arc::clone(&index) as Arc<dyn SlotIndex>);
        World { settings, disk, index, cache }
    }

    /// Closes the cache in an orderly way and opens it again.
    pub fn restart(&mut self) {
        // Only the file and the index are left of the old one before the new one opens.
        self.cache.flush();
        self.crash();
    }

    /// Opens a new cache on file and index as they are now; what the old one does when it is dropped does not reach
    /// them.
    pub fn crash(&mut self) {
        let old = std::mem::take(&mut *self.disk.files.lock());
        let files = old.into_iter().map(|(path, file)| {
            let bytes = Mutex::new(file.bytes.lock().clone());
            (path, Arc::new(TestFile { bytes, space: u64::MAX, ..TestFile::default() }))
        });
        let space = AtomicU64::new(self.disk.space.load(Ordering::Relaxed));
        self.disk = Arc::new(TestDisk { files: Mutex::new(files.collect()), space });
        let slots = self.index.slots.lock().clone();
        self.index = Arc::new(TestIndex { slots: Mutex::new(slots), ..TestIndex::default() });
        let index = Arc::clone(&self.index) as Arc<dyn SlotIndex>;
        self.cache = ReadCache::open(&self.settings, self.disk.as_ref(), index);
    }

    /// The file of the disk part.
    pub fn file(&self) -> Arc<TestFile> {
        Arc::clone(&self.disk.files.lock()[&self.settings.path])
    }
}

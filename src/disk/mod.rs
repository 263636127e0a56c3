//! The local disk: files with positioned reads and writes, and honest syncs. Two narrow traits, so that the
//! write log and the read cache run unchanged on real files, on a simulated disk that loses and tears
//! what was not synced, and on a disk that fails on purpose.
//!
//! Nothing in here knows what the bytes mean. Writes may be buffered: they survive the death of the
//! process at once, and power loss only after [`DiskFile::sync_data`]. A failed sync says nothing about which of
//! the writes before it are safe, and must never be repeated in the hope of a better answer.

use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub mod fault;
pub mod host;
pub mod image;
pub mod simulated;

/// What writes past the page cache are aligned to: enough for any disk.
pub const DIRECT_BYTES: usize = 4096;

/// An open file.
pub trait DiskFile: Send + Sync + 'static {
    /// Length in bytes.
    ///
    /// # Errors
    /// What the operating system says.
    fn length(&self) -> io::Result<u64>;

    /// Fills all the buffers from byte `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` past the end of the file, or what the operating system says.
    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()>;

    /// Fills the buffer from byte `offset` on if that takes no waiting for the disk, and says whether it did; if not, the buffer may hold
    /// anything. A disk that cannot tell never does.
    ///
    /// # Errors
    /// As [`DiskFile::read_at`].
    fn try_read_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<bool> {
        Ok(false)
    }

    /// Writes all the buffers, one after the other, from byte `offset` on.
    ///
    /// # Errors
    /// What the operating system says; an unknown part may have been written.
    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// As [`DiskFile::write_at`], but past the page cache where that is possible, for what is not read again soon: copying into fresh
    /// pages costs more than the disk does. Possible if the bytes in memory, their length and `offset` are multiples of [`DIRECT_BYTES`].
    ///
    /// # Errors
    /// As [`DiskFile::write_at`].
    fn write_around(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(&[IoSlice::new(bytes)], offset)
    }

    /// Makes everything written before this call durable.
    ///
    /// # Errors
    /// What the operating system says; then nothing is known about what was written since the last success.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes the file `length` bytes long with its space reserved, so that no write within can fail for
    /// want of space. Bytes that were never written read as zero.
    ///
    /// # Errors
    /// `StorageFull`, or what the operating system says.
    fn allocate(&self, length: u64) -> io::Result<()>;
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// It must exist.
    Existing,
    /// It must not exist; it is created for the owner only (mode 0600).
    CreateNew,
}

/// A place where files are.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, or what the operating system says.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a directory and its parents (mode 0700); one that exists is fine.
    ///
    /// # Errors
    /// What the operating system says.
    fn create_directory(&self, path: &Path) -> io::Result<()>;

    /// The paths of what a directory holds, sorted.
    ///
    /// # Errors
    /// `NotFound`, or what the operating system says.
    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>>;

    /// Gives a file another name within the same file system, atomically, replacing what had it.
    ///
    /// # Errors
    /// What the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable: creations, renames and removals.
    ///
    /// # Errors
    /// What the operating system says.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
}

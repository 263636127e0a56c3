//! Real files, through the page cache unless it is to be passed by.
//!
//! Owns: how a request of any length becomes system calls. A short read or write is carried on with, an interrupted one
//! repeated; every other error is passed up as it is, and no sync is ever repeated. Files are for their owner only
//! (0600, directories 0700) and are not inherited by programs that the daemon starts.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::{Deref, Range};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::{DIRECT_BYTES, Disk, DiskFile, OpenMode};
use crate::error::{Error, ErrorKind, Result};

/// The most buffers that Linux takes in one call (IOV_MAX).
const BUFFERS_MAX: usize = 1024;

/// The files of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostDisk;

/// An open file of this host.
#[derive(Debug)]
pub struct HostFile {
    fd: OwnedFd,
    /// The same file past the page cache, once somebody wants that; `None` if it cannot be had.
    direct: OnceLock<Option<OwnedFd>>,
}

impl HostFile {
    fn direct(&self) -> Option<&OwnedFd> {
        let open = || {
            // By its descriptor: the file may have another name by now.
            let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
            rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::DIRECT, Mode::empty()).ok()
        };
        self.direct.get_or_init(open).as_ref()
    }
}

fn is_aligned(bytes: &[u8], offset: u64) -> bool {
    let address = bytes.as_ptr().addr();
    address.is_multiple_of(DIRECT_BYTES)
        && bytes.len().is_multiple_of(DIRECT_BYTES)
        && offset.is_multiple_of(DIRECT_BYTES as u64)
}

/// Repeats a system call for as long as it is interrupted.
fn uninterrupted<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

fn too_far() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the offset is beyond what a file can have")
}

/// Where in `lengths` the byte `done` lies: which buffer, and how far into it. Skips empty buffers.
fn position(lengths: impl Iterator<Item = usize>, mut done: usize) -> Option<(usize, usize)> {
    for (index, length) in lengths.enumerate() {
        if done < length {
            return Some((index, done));
        }
        done -= length;
    }
    None
}

/// Calls `call` until all bytes of the buffers have been moved. It gets the buffers, the run of them to move, how far into the first of
/// the run to begin (if not at 0, only that one is to be moved), and where in the file; it says how many bytes it moved. If it can move none,
/// the error is `at_end`.
fn carry_on<C: AsRef<[B]>, B: Deref<Target = [u8]>>(
    mut buffers: C,
    offset: u64,
    at_end: io::ErrorKind,
    mut call: impl FnMut(&mut C, Range<usize>, usize, u64) -> rustix::io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    while let Some((first, within)) = position(buffers.as_ref().iter().map(|buffer| buffer.len()), done) {
        let at = offset.checked_add(done as u64).ok_or_else(too_far)?;
        let run = first..buffers.as_ref().len().min(first + BUFFERS_MAX);
        match uninterrupted(|| call(&mut buffers, run.clone(), within, at))? {
            0 => return Err(io::Error::from(at_end)),
            count => done += count,
        }
    }
    Ok(())
}

impl DiskFile for HostFile {
    fn length(&self) -> io::Result<u64> {
        let status = uninterrupted(|| rustix::fs::fstat(&self.fd))?;
        u64::try_from(status.st_size).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }

    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        carry_on(buffers, offset, io::ErrorKind::UnexpectedEof, |buffers, run, within, at| match within {
            0 => rustix::io::preadv(&self.fd, &mut buffers[run], at),
            _ => rustix::io::pread(&self.fd, &mut buffers[run.start][within..], at),
        })
    }

    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        let wanted = buffer.len();
        match rustix::io::preadv2(&self.fd, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
            Ok(count) => Ok(count == wanted),
            // Not in the page cache, or not as this file system can.
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        carry_on(buffers, offset, io::ErrorKind::WriteZero, |buffers, run, within, at| match within {
            0 => rustix::io::pwritev(&self.fd, &buffers[run], at),
            _ => rustix::io::pwrite(&self.fd, &buffers[run.start][within..], at),
        })
    }

    fn write_around(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if is_aligned(bytes, offset)
            && let Some(direct) = self.direct()
        {
            match rustix::io::pwrite(direct, bytes, offset) {
                Ok(count) if count == bytes.len() => return Ok(()),
                // Interrupted, cut short, or not as this file system wants it: the ordinary way does the whole, or says what is wrong.
                Ok(_) | Err(_) => {}
            }
        }
        self.write_at(&[IoSlice::new(bytes)], offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        // Interrupted or not: a sync that did not say "done" has failed, for good.
        rustix::fs::fdatasync(&self.fd).map_err(io::Error::from)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        uninterrupted(|| rustix::fs::fallocate(&self.fd, FallocateFlags::empty(), 0, length))
    }
}

impl Disk for HostDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let flags = match mode {
            OpenMode::Existing => OFlags::empty(),
            OpenMode::CreateNew => OFlags::CREATE | OFlags::EXCL,
        };
        let flags = flags | OFlags::RDWR | OFlags::CLOEXEC;
        let fd = uninterrupted(|| rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR))?;
        Ok(Arc::new(HostFile { fd, direct: OnceLock::new() }))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(directory)? {
            paths.push(entry?.path());
        }
        paths.sort();
        Ok(paths)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let fd = uninterrupted(|| {
            rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        })?;
        rustix::fs::fsync(&fd).map_err(io::Error::from)
    }
}

/// The proof that this process alone uses a state directory. Ends when dropped, or when the process dies.
#[derive(Debug)]
pub struct LockGuard {
    _fd: OwnedFd,
}

/// Takes the one exclusive lock on a directory, through its file `lock`.
///
/// # Errors
/// `Busy` when another process has it; `Io`.
pub fn lock_exclusive(directory: &Path) -> Result<LockGuard> {
    let path = directory.join("lock");
    let failed = |errno: io::Error| Error::io(format_args!("locking {}", path.display()), &errno);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let fd = uninterrupted(|| rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)).map_err(failed)?;
    match uninterrupted(|| rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(LockGuard { _fd: fd }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Error::new(
            ErrorKind::Busy,
            format!(
                "the state directory {} is in use by another varved; stop it, or choose another --state",
                directory.display()
            ),
        )),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn many_buffers_go_out_and_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = HostDisk.open(&directory.path().join("f"), OpenMode::CreateNew).unwrap();
        file.allocate(1 << 20).unwrap();
        assert_eq!(file.length().unwrap(), 1 << 20);
        let pieces: Vec<Vec<u8>> = (0..3000).map(|index| vec![index as u8; index % 7]).collect();
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        file.write_at(&slices, 11).unwrap();
        file.sync_data().unwrap();
        let mut back: Vec<Vec<u8>> = pieces.iter().map(|piece| vec![0; piece.len()]).collect();
        let mut into: Vec<IoSliceMut<'_>> = back.iter_mut().map(|piece| IoSliceMut::new(piece)).collect();
        file.read_at(&mut into, 11).unwrap();
        assert_eq!(back, pieces);
        let mut beyond = [0; 2];
        let error = file.read_at(&mut [IoSliceMut::new(&mut beyond)], (1 << 20) - 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_in_the_page_cache_needs_no_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let file = HostDisk.open(&directory.path().join("f"), OpenMode::CreateNew).unwrap();
        file.write_at(&[IoSlice::new(&[7; 8192])], 0).unwrap();
        let mut buffer = [0; 4096];
        assert!(file.try_read_at(&mut buffer, 4096).unwrap());
        assert_eq!(buffer, [7; 4096]);
        assert!(!file.try_read_at(&mut buffer, 8000).unwrap(), "part of it lies behind the end");
    }

    #[test]
    fn what_goes_past_the_page_cache_is_read_through_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = HostDisk.open(&directory.path().join("f"), OpenMode::CreateNew).unwrap();
        file.allocate(64 << 10).unwrap();
        let buffer: Vec<u8> = (0..3 * DIRECT_BYTES).map(|index| (index / 7) as u8).collect();
        let start = buffer.as_ptr().align_offset(DIRECT_BYTES);
        let mut back = vec![0; DIRECT_BYTES];
        // Aligned in every way, then each way of not being so.
        for (from, length, offset) in
            [(start, 4096, 8192), (start + 1, 4096, 8192), (start, 4095, 8192), (start, 4096, 8191)]
        {
            file.write_at(&[IoSlice::new(&vec![1; 32 << 10])], 0).unwrap();
            file.read_at(&mut [IoSliceMut::new(&mut back)], 8192).unwrap();
            file.write_around(&buffer[from..from + length], offset).unwrap();
            let mut back = vec![0; length];
            file.read_at(&mut [IoSliceMut::new(&mut back)], offset).unwrap();
            assert_eq!(back, buffer[from..from + length]);
        }
    }

    #[test]
    fn files_and_directories_are_for_the_owner_only() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a/b");
        HostDisk.create_directory(&directory).unwrap();
        HostDisk.create_directory(&directory).unwrap();
        HostDisk.open(&directory.join("f"), OpenMode::CreateNew).unwrap();
        HostDisk.sync_directory(&directory).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join("f")), 0o600);
        assert_eq!(
            HostDisk.open(&directory.join("f"), OpenMode::CreateNew).err().unwrap().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(
            HostDisk.open(&directory.join("g"), OpenMode::Existing).err().unwrap().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(HostDisk.list(&directory).unwrap(), vec![directory.join("f")]);
    }

    #[test]
    fn l12_a_second_lock_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock_exclusive(directory.path()).unwrap();
        let refused = lock_exclusive(directory.path()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        drop(first);
        lock_exclusive(directory.path()).unwrap();
    }
}

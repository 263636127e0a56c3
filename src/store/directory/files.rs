//! The file operations of a directory store, blocking. What they guarantee is said in the module above; everything is
//! relative to the open root, so that a file system unmounted or mounted over under us is never taken for an empty store.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{
    Advice, AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps, fadvise, flock, fstat,
    fsync, futimens, linkat, mkdirat, openat, renameat, statat, unlinkat,
};
use rustix::io::{Errno, pread, retry_on_intr, write};

use super::super::{ByteRange, Condition, ETag, Fetched, ObjectKey, StoreError, StoreErrorKind, StoreResult};
use crate::clock;
use crate::limits::OBJECT_BYTES_MAX;

const TEMPORARY: &str = ".tmp";
const LOCK: &str = ".lock";
/// Age from which a file in `.tmp/` belongs to nobody any more.
const LEFT_OVER_AGE_SECONDS: u64 = 24 * 60 * 60;
const NANOSECONDS_PER_MILLI: i128 = 1_000_000;
const NANOSECONDS_PER_SECOND: i128 = 1_000_000_000;

const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIRECTORY_MODE: Mode = Mode::RWXU;

/// The open directory.
pub(super) struct Root {
    fd: OwnedFd,
    path: PathBuf,
    /// Directories whose own names are known to be durable.
    durable: Mutex<HashSet<String>>,
    /// A sync of a directory failed: what is on disk is not what the kernel shows.
    poisoned: AtomicBool,
}

/// A name that may be a part of a path in the store: none that starts with a dot, and only letters that ids have.
pub(super) fn is_ordinary(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.bytes().all(letter)
}

fn checked(key: &ObjectKey) -> StoreResult<&str> {
    if key.as_str().split('/').all(is_ordinary) {
        return Ok(key.as_str());
    }
    let message = format!("'{}' cannot be the name of an object in a directory", key.as_str().escape_default());
    Err(StoreError::new(StoreErrorKind::Rejected, message))
}

fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(".", |(parent, _)| parent)
}

fn modified_nanoseconds(stat: &Stat) -> i128 {
    i128::from(stat.st_mtime) * NANOSECONDS_PER_SECOND + i128::from(stat.st_mtime_nsec)
}

/// Milliseconds since 1970; 0 for what is before.
pub(super) fn modified_millis(stat: &Stat) -> u64 {
    u64::try_from(modified_nanoseconds(stat) / NANOSECONDS_PER_MILLI).unwrap_or(0)
}

fn version_of(stat: &Stat) -> ETag {
    ETag(format!("\"{:x}-{}-{:x}\"", stat.st_ino, modified_nanoseconds(stat), stat.st_size))
}

/// The modification time of a version made by [`version_of`]; of any other text 0, which no file will match.
fn modified_of(version: &ETag) -> i128 {
    version.0.split('-').nth(1).and_then(|part| part.parse().ok()).unwrap_or(0)
}

impl Root {
    pub(super) fn open(path: &Path, create: bool) -> StoreResult<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if create {
            make_directories(path)?;
        }
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => {
                let message =
                    format!("there is no directory {}: is it mounted? `varve init` makes a new store", path.display());
                StoreError::new(StoreErrorKind::NoStore, message)
            }
            other => failure("open the store", path, other),
        })?;
        Ok(Root { fd, path: path.to_owned(), durable: Mutex::default(), poisoned: AtomicBool::new(false) })
    }

    /// Opens a directory of the store; `.` is the root.
    pub(super) fn open_directory(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.fd, path, flags, Mode::empty())
    }

    /// The attributes of a file, not following links.
    pub(super) fn stat(&self, path: &str) -> rustix::io::Result<Stat> {
        statat(&self.fd, path, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// A failure with an object of this store.
    pub(super) fn failure(&self, what: &str, path: &str, errno: Errno) -> StoreError {
        if matches!(errno, Errno::NOENT | Errno::NOTDIR) && self.is_gone() {
            let message = format!("the directory {} was removed while in use", self.path.display());
            return StoreError::new(StoreErrorKind::NoStore, message);
        }
        failure(what, &self.path.join(path), errno)
    }

    /// The same for a change: something that it needs is missing, which is not to be taken for a missing object.
    fn change_failure(&self, what: &str, path: &str, errno: Errno) -> StoreError {
        let mut error = self.failure(what, path, errno);
        if error.kind == StoreErrorKind::NotFound {
            error.kind = StoreErrorKind::Unavailable;
        }
        error
    }

    fn is_gone(&self) -> bool {
        fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Removes what crashed writers left behind. Failing to do so harms nobody.
    pub(super) fn sweep(&self) {
        let Ok(entries) = self.open_directory(TEMPORARY).and_then(Dir::new) else { return };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().to_str() else { continue };
            let path = format!("{TEMPORARY}/{name}");
            let Ok(stat) = self.stat(&path) else { continue };
            let age_seconds = clock::now().0.saturating_sub(modified_millis(&stat)) / 1000;
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            if is_file && age_seconds > LEFT_OVER_AGE_SECONDS && unlinkat(&self.fd, &path, AtFlags::empty()).is_ok() {
                tracing::info!(file = %self.path.join(&path).display(), "removed what an interrupted write left behind");
            }
        }
    }

    pub(super) fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        let path = checked(key)?;
        let malformed = |what: String| {
            let message = format!("cannot read {}: {what}", self.path.join(path).display());
            StoreError::new(StoreErrorKind::Malformed, message)
        };
        // NONBLOCK: opening a pipe that somebody put there must not hang.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&self.fd, path, flags, Mode::empty()).map_err(|errno| self.failure("read", path, errno))?;
        let stat = fstat(&file).map_err(|errno| self.failure("read", path, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(malformed("it is not a plain file".into()));
        }
        let object_length = u64::try_from(stat.st_size).unwrap_or(0);
        if range == ByteRange::Full && object_length > OBJECT_BYTES_MAX {
            return Err(malformed(format!("it has {object_length} bytes, more than any object of varve")));
        }
        let (offset, length) = range
            .within(object_length)
            .ok_or_else(|| malformed(format!("it has {object_length} bytes, which do not hold {range:?}")))?;
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| malformed("it is too long".into()))?];
        let mut filled = 0;
        while filled < bytes.len() {
            let read = retry_on_intr(|| pread(&file, &mut bytes[filled..], offset + filled as u64));
            match read.map_err(|errno| self.failure("read", path, errno))? {
                0 => return Err(malformed(format!("it became shorter than {object_length} bytes"))),
                count => filled += count,
            }
        }
        Ok(Fetched { bytes: bytes.into(), object_length, etag: version_of(&stat) })
    }

    pub(super) fn put(&self, key: &ObjectKey, body: &Bytes, condition: &Condition) -> StoreResult<ETag> {
        let path = checked(key)?;
        self.refuse_if_poisoned(path)?;
        let modified = match condition {
            Condition::IfAbsent => present(),
            Condition::IfMatch(replaced) => present().max(modified_of(replaced) + 1),
        };
        let (temporary, etag) = self.write_temporary(path, body, modified)?;
        self.make_parents(path)?;
        let failed = |errno| self.change_failure("write", path, errno);
        let refused = |reason: &str| {
            StoreError::new(StoreErrorKind::PreconditionFailed, format!("{} {reason}", self.path.join(path).display()))
        };
        match condition {
            Condition::IfAbsent => match linkat(&self.fd, &temporary.path, &self.fd, path, AtFlags::empty()) {
                Ok(()) => self.sync_directory(parent_of(path), StoreErrorKind::OutcomeUnknown)?,
                Err(Errno::EXIST) => {
                    // Whoever learns that an object is there may build on it.
                    self.sync_directory(parent_of(path), StoreErrorKind::Unavailable)?;
                    return Err(refused("exists already"));
                }
                Err(errno) => return Err(self.forgetful(failed(errno))),
            },
            Condition::IfMatch(wanted) => {
                let _lock = self.lock(path)?;
                match self.stat(path) {
                    Ok(stat) if version_of(&stat) == *wanted => {}
                    Ok(_) => return Err(refused("has been changed by somebody else")),
                    Err(Errno::NOENT) if !self.is_gone() => return Err(refused("does not exist any more")),
                    Err(errno) => return Err(failed(errno)),
                }
                renameat(&self.fd, &temporary.path, &self.fd, path).map_err(failed)?;
                self.sync_directory(parent_of(path), StoreErrorKind::OutcomeUnknown)?;
            }
        }
        Ok(etag)
    }

    pub(super) fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        let path = checked(key)?;
        self.refuse_if_poisoned(path)?;
        let _lock = self.lock(path)?;
        match unlinkat(&self.fd, path, AtFlags::empty()) {
            Ok(()) => self.sync_directory(parent_of(path), StoreErrorKind::OutcomeUnknown),
            Err(Errno::NOENT | Errno::NOTDIR) if !self.is_gone() => Ok(()),
            Err(errno) => Err(self.change_failure("delete", path, errno)),
        }
    }

    /// Writes and syncs a body under a name of its own, with the modification time that its version needs.
    fn write_temporary(&self, path: &str, body: &Bytes, modified: i128) -> StoreResult<(Temporary<'_>, ETag)> {
        let failed = |errno| self.change_failure("write", path, errno);
        let name = format!("{TEMPORARY}/{:016x}", clock::random_u64());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut opened = openat(&self.fd, &name, flags, FILE_MODE);
        if matches!(opened, Err(Errno::NOENT)) {
            match mkdirat(&self.fd, TEMPORARY, DIRECTORY_MODE) {
                Ok(()) | Err(Errno::EXIST) => opened = openat(&self.fd, &name, flags, FILE_MODE),
                Err(errno) => return Err(failed(errno)),
            }
        }
        let file = opened.map_err(failed)?;
        let temporary = Temporary { root: self, path: name };
        let mut rest = &body[..];
        while !rest.is_empty() {
            let written = retry_on_intr(|| write(&file, rest)).map_err(failed)?;
            rest = &rest[written..];
        }
        let time = Timespec {
            tv_sec: i64::try_from(modified.div_euclid(NANOSECONDS_PER_SECOND)).unwrap_or(i64::MAX),
            tv_nsec: modified.rem_euclid(NANOSECONDS_PER_SECOND) as _,
        };
        futimens(&file, &Timestamps { last_access: time, last_modification: time }).map_err(failed)?;
        fsync(&file).map_err(failed)?;
        // Rarely read soon, since the cache and the log come first: its pages are worth more to the log. Advice may be ignored.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        let stat = fstat(&file).map_err(failed)?;
        if modified_nanoseconds(&stat) != modified {
            let message = format!(
                "the file system of {} does not keep file times to the nanosecond, which a store needs to tell \
                 versions apart: put it on ext4, xfs, btrfs or the like",
                self.path.display()
            );
            return Err(StoreError::new(StoreErrorKind::Rejected, message));
        }
        Ok((temporary, version_of(&stat)))
    }

    /// Makes the directories that lead to `path`, each durable before anything is put into it.
    fn make_parents(&self, path: &str) -> StoreResult<()> {
        for (end, _) in path.match_indices('/') {
            let directory = &path[..end];
            if self.durable.lock().contains(directory) {
                continue;
            }
            match mkdirat(&self.fd, directory, DIRECTORY_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.forgetful(self.change_failure("make a directory for", path, errno))),
            }
            // Also if it exists: whoever made it may not have synced it yet.
            self.sync_directory(parent_of(directory), StoreErrorKind::Unavailable)?;
            self.durable.lock().insert(directory.to_owned());
        }
        Ok(())
    }

    /// Passes an error on; since a directory may have been removed, all are looked at again with the next try.
    fn forgetful(&self, error: StoreError) -> StoreError {
        self.durable.lock().clear();
        error
    }

    fn sync_directory(&self, path: &str, failed_as: StoreErrorKind) -> StoreResult<()> {
        let failed = |errno| StoreError::new(failed_as.clone(), self.change_failure("sync", path, errno).message);
        let directory = self.open_directory(path).map_err(failed)?;
        fsync(&directory).map_err(|errno| {
            self.poisoned.store(true, Ordering::Release);
            failed(errno)
        })
    }

    fn refuse_if_poisoned(&self, path: &str) -> StoreResult<()> {
        if !self.poisoned.load(Ordering::Acquire) {
            return Ok(());
        }
        let message = format!(
            "cannot change {}: a sync of the directory failed earlier, so what is on the disk is not known; check the \
             disk and the kernel's log, remount the file system, then restart",
            self.path.join(path).display()
        );
        Err(StoreError::new(StoreErrorKind::Unavailable, message))
    }

    /// Holds the store's lock until the descriptor is dropped; a new one each time, so that threads exclude each other too.
    fn lock(&self, path: &str) -> StoreResult<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file =
            openat(&self.fd, LOCK, flags, FILE_MODE).map_err(|errno| self.change_failure("lock", path, errno))?;
        retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
            .map_err(|errno| self.change_failure("lock", path, errno))?;
        Ok(file)
    }
}

/// Nanoseconds since 1970, true to the millisecond and random below.
fn present() -> i128 {
    i128::from(clock::now().0) * NANOSECONDS_PER_MILLI + i128::from(clock::random_u64() % 1_000_000)
}

/// Makes a directory and what leads to it, and syncs each new name.
fn make_directories(path: &Path) -> StoreResult<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    for directory in missing.into_iter().rev() {
        match rustix::fs::mkdir(directory, DIRECTORY_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failure("make the directory", directory, errno)),
        }
        if let Some(parent) = directory.parent() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let synced = rustix::fs::open(parent, flags, Mode::empty()).and_then(fsync);
            synced.map_err(|errno| failure("sync the directory", parent, errno))?;
        }
    }
    Ok(())
}

pub(super) fn failure(what: &str, path: &Path, errno: Errno) -> StoreError {
    let (kind, remedy) = match errno {
        Errno::NOENT | Errno::NOTDIR => (StoreErrorKind::NotFound, ""),
        Errno::NOSPC | Errno::DQUOT => (StoreErrorKind::Full, ": free some space, or raise the quota"),
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            (StoreErrorKind::Denied, ": check the owner and mode of the directory, and how it is mounted")
        }
        Errno::NAMETOOLONG | Errno::INVAL | Errno::ISDIR | Errno::NOTSUP | Errno::FBIG => {
            (StoreErrorKind::Rejected, ": this file system cannot hold a store")
        }
        Errno::LOOP => (StoreErrorKind::Malformed, ": there is a symbolic link where a plain file belongs"),
        _ => (StoreErrorKind::Unavailable, ""),
    };
    StoreError::new(kind, format!("cannot {what} {}: {errno}{remedy}", path.display()))
}

/// A file in `.tmp/`; its name there goes away with this value, whatever other name it has by then.
struct Temporary<'a> {
    root: &'a Root,
    path: String,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // After a rename there is none; otherwise a left-over is swept one day.
        let _ = unlinkat(&self.root.fd, &self.path, AtFlags::empty());
    }
}

//! Walks a directory store in the order of the objects' names, which is not the order of the directories' names: a
//! directory sorts as if its name ended in a slash.
//!
//! Every page reads again the directories it touches, but looks at no more files than it returns.

use rustix::fs::{AtFlags, Dir, FileType, statat};
use rustix::io::Errno;

use super::super::{Listed, Listing, ObjectKey, StoreResult};
use super::files::{Root, is_ordinary, modified_millis};
use crate::units::UnixMillis;

/// Directories within directories that are followed; names of objects have five parts at most.
const DEPTH_MAX: usize = 8;

struct Walk<'a> {
    root: &'a Root,
    prefix: &'a str,
    after: Option<&'a str>,
    page_objects: usize,
    found: Listing,
}

/// One page of the objects whose names begin with `prefix` and come after `after`.
pub(super) fn list(root: &Root, prefix: &str, after: Option<&str>, page_objects: usize) -> StoreResult<Listing> {
    let mut walk = Walk { root, prefix, after, page_objects, found: Listing::default() };
    walk.directory("", 0)?;
    Ok(walk.found)
}

impl Walk<'_> {
    /// Visits a directory, whose path is empty or ends in a slash. Returns false once the page is full.
    fn directory(&mut self, path: &str, depth: usize) -> StoreResult<bool> {
        for name in self.names_in(path, depth)? {
            let going_on = if name.ends_with('/') { self.directory(&name, depth + 1)? } else { self.file(name)? };
            if !going_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The files and directories (these with a slash) in a directory that can matter, as sorted paths.
    fn names_in(&self, path: &str, depth: usize) -> StoreResult<Vec<String>> {
        let opened = if path.is_empty() { "." } else { path.trim_end_matches('/') };
        let failed = |errno| self.root.failure("list", opened, errno);
        let directory = match self.root.open_directory(opened) {
            Ok(directory) => directory,
            // Symbolic links are not followed; what is removed meanwhile is not there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !path.is_empty() => return Ok(Vec::new()),
            Err(errno) => return Err(failed(errno)),
        };
        let mut names = Vec::new();
        let mut entries = 0;
        for entry in Dir::read_from(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            entries += 1;
            let Some(name) = entry.file_name().to_str().ok().filter(|name| is_ordinary(name)) else { continue };
            let kind = match entry.file_type() {
                FileType::Unknown => statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode)),
                known => known,
            };
            let candidate = match kind {
                FileType::RegularFile => format!("{path}{name}"),
                FileType::Directory if depth < DEPTH_MAX => format!("{path}{name}/"),
                _ => continue,
            };
            if self.can_matter(&candidate) {
                names.push(candidate);
            }
        }
        if entries == 0 && path.is_empty() {
            // Even an empty directory has `.` and `..`, unless it was removed.
            return Err(failed(Errno::NOENT));
        }
        names.sort_unstable();
        Ok(names)
    }

    fn can_matter(&self, candidate: &str) -> bool {
        let is_directory = candidate.ends_with('/');
        let within_prefix = candidate.starts_with(self.prefix) || (is_directory && self.prefix.starts_with(candidate));
        let still_to_come =
            self.after.is_none_or(|after| candidate > after || (is_directory && after.starts_with(candidate)));
        within_prefix && still_to_come
    }

    fn file(&mut self, path: String) -> StoreResult<bool> {
        let stat = match self.root.stat(&path) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(true),
            Err(errno) => return Err(self.root.failure("list", &path, errno)),
        };
        if self.found.objects.len() == self.page_objects {
            self.found.next = self.found.objects.last().map(|last| last.key.clone());
            return Ok(false);
        }
        self.found.objects.push(Listed {
            key: ObjectKey::from_listing(path),
            length: u64::try_from(stat.st_size).unwrap_or(0),
            modified: UnixMillis(modified_millis(&stat)),
        });
        Ok(true)
    }
}

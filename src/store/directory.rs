//! A directory as a store: the embedded default, `file:///path`. Objects are plain files with exactly the body as
//! their content, at the path that their name spells, so that any tool can copy or inspect them.
//!
//! Owns everything below the directory: the objects, `.tmp/` (bodies on their way) and `.lock`. Many processes
//! of one host may use it at the same time; a network file system is as good as its locks and links are.
//!
//! # Guarantees, and the order of effects
//! A body is written to a file in `.tmp/` (mode 0600) and synced before anything refers to it. Then
//! - `IfAbsent` gives it its name by `link`, which is atomic and fails if the name is taken, without any lock;
//! - `IfMatch` takes the lock file (`flock`, exclusive), compares the version, and renames; a deletion takes the
//!   same lock, so nothing can come between;
//!
//! and the directory is synced before the answer, after each newly made parent was. A put that fails before it has its name
//! had no effect. If the last sync fails, the outcome is not known, and since the kernel would report success for the next
//! sync without having written anything, this process then refuses further changes. Reads need no lock: a
//! file never changes once it has a name, and an open one stays readable after it was replaced.
//!
//! # Versions
//! The ETag is made of inode, modification time in nanoseconds, and length: it costs no more than the `fstat` that a read
//! needs anyhow, and no attribute that a file system or a backup might not keep. Kernel timestamps would be too coarse, so
//! a writer sets the time itself: under `IfMatch` to the present, but at least one nanosecond after the version that it
//! replaces, so the versions of a name never repeat while it exists, whatever the clock does; for a new name to the present
//! with random nanoseconds. That the file system keeps nanoseconds is verified with each write. Touching or restoring
//! a file makes a new version, which at worst fails a condition.
//!
//! # After a crash
//! Left-overs in `.tmp/` are removed on open once they are a day old. Empty directories stay: removing one could race with
//! a writer about to use it. Symbolic links, and names that varve does not write, are not objects and are left alone.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Arrivals, ByteRange, Condition, ETag, Fetched, Listing, ObjectKey, Store, StoreError, StoreErrorKind, StoreResult,
};

mod files;
mod listing;

use files::Root;

/// A part that is fetched in pieces is read so many bytes at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// Objects in one page of a listing.
const PAGE_OBJECTS: usize = 1000;

/// A directory as a store.
pub struct DirectoryStore {
    root: Arc<Root>,
    address: String,
}

impl DirectoryStore {
    /// Opens the directory at the absolute `path`; with `create`, makes it first if it is missing.
    ///
    /// # Errors
    /// `NoStore` if it is missing; `Denied`, `Full` and so on as the file system says.
    pub async fn open(path: &Path, create: bool) -> StoreResult<Self> {
        let (path, address) = (path.to_owned(), format!("file://{}", path.display()));
        let root = tokio::task::spawn_blocking(move || {
            let root = Root::open(&path, create)?;
            root.sweep();
            Ok(root)
        });
        let root = root.await.map_err(|error| interrupted(StoreErrorKind::Unavailable, "open", &error))??;
        Ok(DirectoryStore { root: Arc::new(root), address })
    }

    /// Runs file operations where they may block.
    async fn blocking<T: Send + 'static>(
        &self,
        what: &str,
        interrupted_as: StoreErrorKind,
        work: impl FnOnce(&Root) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let root = self.root.clone();
        let answer = tokio::task::spawn_blocking(move || work(&root)).await;
        answer.map_err(|error| interrupted(interrupted_as, what, &error))?
    }
}

fn interrupted(kind: StoreErrorKind, what: &str, error: &tokio::task::JoinError) -> StoreError {
    StoreError::new(kind, format!("{what} in a directory store was interrupted: {error}"))
}

#[async_trait]
impl Store for DirectoryStore {
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        let key = key.clone();
        self.blocking("read", StoreErrorKind::Unavailable, move |root| root.get(&key, range)).await
    }

    async fn get_in_pieces(
        &self,
        key: &ObjectKey,
        offset: u64,
        length: u64,
        arrivals: &dyn Arrivals,
    ) -> StoreResult<()> {
        let mut arrived = 0;
        while arrived < length {
            let part =
                ByteRange::Part { offset: offset.saturating_add(arrived), length: PIECE_BYTES.min(length - arrived) };
            let bytes = self.get(key, part).await?.bytes;
            arrived += bytes.len() as u64;
            arrivals.take(bytes);
        }
        Ok(())
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag> {
        let key = key.clone();
        self.blocking("write", StoreErrorKind::OutcomeUnknown, move |root| root.put(&key, &body, &condition)).await
    }

    async fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        let key = key.clone();
        self.blocking("delete", StoreErrorKind::OutcomeUnknown, move |root| root.delete(&key)).await
    }

    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing> {
        let (prefix, after) = (prefix.clone(), after.cloned());
        self.blocking("list", StoreErrorKind::Unavailable, move |root| {
            listing::list(root, prefix.as_str(), after.as_ref().map(ObjectKey::as_str), PAGE_OBJECTS)
        })
        .await
    }

    fn address(&self) -> &str {
        &self.address
    }
}

#[cfg(test)]
mod tests;

//! The store: where the durable home of every volume is reached. A narrow trait, its implementations
//! and the wrappers that add behaviour to any of them.
//!
//! | file | what |
//! | --- | --- |
//! | `key` | names of objects, and nothing else makes one |
//! | `s3`, `directory`, `memory` | the implementations; all three pass `tests/store.rs` |
//! | `retry`, `meter`, `fault` | wrappers: same trait in, same trait out |
//! | `keyed` | the keys by which objects are sealed, carried beside the store |
//! | `regions` | several stores as one: a volume's objects are where the volume is |
//! | `probe` | is this store fit to be trusted with fencing? |
//! | `open` | from a URL to a store in its wrappers |
//!
//! Guarantees: a `put` with a condition has effect exactly when the condition held at that moment, also among
//! concurrent writers on different hosts; a `get` after a successful `put` sees it. Bodies are not
//! interpreted here; every object carries its own checksums, which its reader verifies.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::keys::Keyring;
use crate::seal::VolumeKey;
use crate::units::VolumeId;

mod directory;
mod fault;
mod key;
mod keyed;
mod memory;
mod meter;
mod open;
mod probe;
mod regions;
mod retry;
mod s3;

pub use directory::DirectoryStore;
pub use fault::{Effect, Faults, Gate, Logged, Matching};
pub use key::ObjectKey;
pub use keyed::Keyed;
pub use memory::MemoryStore;
pub use meter::{Counts, Meter};
pub use open::{OpenStore, StoreUrl, open, open_with_regions, wrap};
pub use probe::probe;
pub use regions::Regions;
pub use retry::{Retry, RetryPolicy};
pub use s3::{S3Access, S3Store};

/// The version of an object as the store names it; equal exactly for the same write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ETag(pub String);

/// Which bytes of an object to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// All of them.
    Full,
    /// `length` bytes from `offset`; both must lie within the object, and `length` is not 0.
    Part {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// The last bytes: this many, or all if the object is shorter. Not 0.
    Suffix(u64),
}

impl ByteRange {
    /// Where the range begins in an object of `object_length` bytes, and how long it is there; `None` if it does not
    /// lie within it.
    pub fn within(self, object_length: u64) -> Option<(u64, u64)> {
        match self {
            ByteRange::Full => Some((0, object_length)),
            ByteRange::Part { offset, length } => {
                let end = offset.checked_add(length)?;
                (length > 0 && end <= object_length).then_some((offset, length))
            }
            ByteRange::Suffix(length) => {
                let length = length.min(object_length);
                Some((object_length - length, length))
            }
        }
    }
}

/// What a put demands of the state before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// No object has this name.
    IfAbsent,
    /// The object is still of this version.
    IfMatch(ETag),
}

/// The kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the methods of the trait are")]
pub enum Operation {
    Get,
    Put,
    Delete,
    List,
}

/// What a get brings.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The bytes asked for, of exactly the length asked for.
    pub bytes: Bytes,
    /// Length of the whole object, in bytes.
    pub object_length: u64,
    /// Version of the object.
    pub etag: ETag,
}

/// One object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub key: ObjectKey,
    /// Its length in bytes.
    pub length: u64,
    /// When it was last written, by the store's clock.
    pub modified: crate::units::UnixMillis,
}

/// One page of a listing, sorted by key.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The objects.
    pub objects: Vec<Listed>,
    /// Where to go on: pass it as `after`. `None` if this was all.
    pub next: Option<ObjectKey>,
}

/// How a request to the store ended when it did not succeed: sorted by what may be concluded from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// No object has this name.
    NotFound,
    /// The condition did not hold, and nothing was changed (unless an earlier try of the same put was applied).
    PreconditionFailed,
    /// The store refuses us: credentials, permissions, clock. Nothing was changed. Retrying soon is pointless.
    Denied,
    /// The bucket or directory itself is missing. Nothing was changed.
    NoStore,
    /// The store has no room or quota left. Nothing was changed; may pass.
    Full,
    /// The store refused the request as such (a bug of ours or a feature it lacks). Nothing was changed.
    Rejected,
    /// Busy, failing or not to be reached, and the request certainly had no effect. Retry.
    Unavailable,
    /// No or no usable answer: the request may have had its effect, or may still have it later. Retry, then settle.
    OutcomeUnknown,
    /// The store answered with something that is not what was asked for (wrong length, cut body).
    Malformed,
}

/// A store's failure: the kind, and what was said, about which object.
#[derive(Clone, Debug)]
pub struct StoreError {
    /// What may be concluded.
    pub kind: StoreErrorKind,
    /// For people: the operation, the object and the store's own words.
    pub message: String,
}

impl StoreError {
    /// A failure of the given kind.
    pub fn new(kind: StoreErrorKind, message: impl Into<String>) -> Self {
        StoreError { kind, message: message.into() }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StoreError {}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let kind = match error.kind {
            StoreErrorKind::NotFound => ErrorKind::NotFound,
            StoreErrorKind::PreconditionFailed => ErrorKind::Conflict,
            StoreErrorKind::Denied | StoreErrorKind::NoStore => ErrorKind::Denied,
            StoreErrorKind::Full => ErrorKind::Full,
            StoreErrorKind::Rejected => ErrorKind::Unsupported,
            StoreErrorKind::Unavailable | StoreErrorKind::OutcomeUnknown | StoreErrorKind::Malformed => {
                ErrorKind::Unavailable
            }
        };
        Error::new(kind, error.message)
    }
}

/// The result of a request to a store.
pub type StoreResult<T> = std::result::Result<T, StoreError>;

/// Takes what a get brings while it arrives.
pub trait Arrivals: Send + Sync {
    /// The next bytes of what was asked for. Each comes once, in order.
    fn take(&self, bytes: Bytes);
}

/// An object store. Requests may run concurrently and may be dropped at any point; a dropped `put` may still take effect.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Fetches an object, or a part of one.
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched>;

    /// As [`Store::get`] of `length` bytes from `offset` on, which hands on what arrives while it arrives: a long part never is in memory as a whole. After an
    /// error, `arrivals` has been given what came before it.
    async fn get_in_pieces(
        &self,
        key: &ObjectKey,
        offset: u64,
        length: u64,
        arrivals: &dyn Arrivals,
    ) -> StoreResult<()> {
        arrivals.take(self.get(key, ByteRange::Part { offset, length }).await?.bytes);
        Ok(())
    }

    /// Writes an object if the condition holds, and returns its new version.
    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag>;

    /// Deletes an object; deleting what is not there succeeds.
    async fn delete(&self, key: &ObjectKey) -> StoreResult<()>;

    /// Lists the objects whose names begin with `prefix`, after `after`, a page at a time (at most 1,000).
    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing>;

    /// The address for people and messages, without secrets: `file:///...` or `s3://bucket/prefix`.
    fn address(&self) -> &str;

    /// What other regions call the one that this store is in, if it has a name.
    fn region(&self) -> Option<&str> {
        None
    }

    /// The store of the region of this name, if its volumes can be reached through this one.
    fn store_in(&self, _region: &str) -> Option<Arc<dyn Store>> {
        None
    }

    /// Says that a volume is in the region of this name. What stands for one region alone has no use for it.
    fn place(&self, _volume: VolumeId, _region: &str) {}

    /// The region of a volume that is known to be in another one than this.
    fn elsewhere(&self, _volume: VolumeId) -> Option<String> {
        None
    }

    /// The keys by which objects of volumes are sealed. Without any, all volumes are plain.
    fn keyring(&self) -> Option<&Arc<Keyring>> {
        None
    }
}

impl dyn Store {
    /// The key by which the objects of a volume are sealed; `None` if they are not.
    ///
    /// # Errors
    /// `Denied` if the volume was not unlocked.
    pub fn key_of(&self, volume: VolumeId) -> Result<Option<Arc<VolumeKey>>> {
        self.keyring().map_or(Ok(None), |keyring| keyring.key_of(volume))
    }
}

/// All objects whose names begin with `prefix`, sorted: for where there are not more than memory may hold.
///
/// # Errors
/// What the store says.
pub async fn list_all(store: &dyn Store, prefix: &ObjectKey) -> StoreResult<Vec<Listed>> {
    let mut objects = Vec::new();
    let mut after = None;
    loop {
        let page = store.list(prefix, after.as_ref()).await?;
        objects.extend(page.objects);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(objects),
        }
    }
}

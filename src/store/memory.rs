//! A store in memory, for tests and the simulated world. Deterministic: versions are counted from 1, and no
//! request ever waits. Owns its objects; gone when dropped.
//!
//! Guarantees: those of the trait; every request takes effect at once, under one lock. Errors: `NotFound`,
//! `PreconditionFailed`, and `Malformed` for a range outside of the object; never anything else.

use std::collections::BTreeMap;
use std::ops::Bound;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    ByteRange, Condition, ETag, Fetched, Listed, Listing, ObjectKey, Store, StoreError, StoreErrorKind, StoreResult,
};
use crate::clock;
use crate::units::UnixMillis;

/// Objects in one page of a listing, unless set otherwise.
const PAGE_OBJECTS: usize = 1000;

#[derive(Clone)]
struct Object {
    body: Bytes,
    version: u64,
    modified: UnixMillis,
}

impl Object {
    fn etag(&self) -> ETag {
        ETag(format!("\"memory-{}\"", self.version))
    }
}

#[derive(Clone, Default)]
struct Contents {
    objects: BTreeMap<ObjectKey, Object>,
    writes: u64,
}

/// A store in memory.
pub struct MemoryStore {
    contents: Mutex<Contents>,
    page_objects: usize,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::with_page(PAGE_OBJECTS)
    }

    /// A store of its own with the same objects.
    pub fn fork(&self) -> Self {
        MemoryStore { contents: Mutex::new(self.contents.lock().clone()), page_objects: self.page_objects }
    }

    /// An empty store whose listings have at most `page_objects` objects a page (at least 1).
    pub fn with_page(page_objects: usize) -> Self {
        MemoryStore { contents: Mutex::default(), page_objects: page_objects.max(1) }
    }
}

fn not_found(key: &ObjectKey) -> StoreError {
    StoreError::new(StoreErrorKind::NotFound, format!("{key} is not in the store"))
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        let contents = self.contents.lock();
        let object = contents.objects.get(key).ok_or_else(|| not_found(key))?;
        let object_length = object.body.len() as u64;
        let (offset, length) = range.within(object_length).ok_or_else(|| {
            let message = format!("{key} has {object_length} bytes, which do not hold {range:?}");
            StoreError::new(StoreErrorKind::Malformed, message)
        })?;
        let bytes = object.body.slice(offset as usize..(offset + length) as usize);
        Ok(Fetched { bytes, object_length, etag: object.etag() })
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag> {
        let mut contents = self.contents.lock();
        let current = contents.objects.get(key).map(Object::etag);
        let refused = match (&condition, &current) {
            (Condition::IfAbsent, None) => None,
            (Condition::IfAbsent, Some(_)) => Some("exists already"),
            (Condition::IfMatch(wanted), Some(current)) if wanted == current => None,
            (Condition::IfMatch(_), Some(_)) => Some("has been changed by somebody else"),
            (Condition::IfMatch(_), None) => Some("does not exist any more"),
        };
        if let Some(reason) = refused {
            return Err(StoreError::new(StoreErrorKind::PreconditionFailed, format!("{key} {reason}")));
        }
        contents.writes += 1;
        let object = Object { body, version: contents.writes, modified: clock::now() };
        let etag = object.etag();
        contents.objects.insert(key.clone(), object);
        Ok(etag)
    }

    async fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        self.contents.lock().objects.remove(key);
        Ok(())
    }

    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing> {
        let contents = self.contents.lock();
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut matching = contents
            .objects
            .range((start, Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix.as_str()))
            .map(|(key, object)| Listed {
                key: key.clone(),
                length: object.body.len() as u64,
                modified: object.modified,
            });
        let objects: Vec<Listed> = matching.by_ref().take(self.page_objects).collect();
        let next = matching.next().and(objects.last()).map(|last| last.key.clone());
        Ok(Listing { objects, next })
    }

    fn address(&self) -> &str {
        "memory:"
    }
}

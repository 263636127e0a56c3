//! Keys beside a store. Bodies pass as they are: whoever makes an object seals it, and whoever reads it opens it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Arrivals, ByteRange, Condition, ETag, Fetched, Listing, ObjectKey, Store, StoreResult};
use crate::keys::Keyring;
use crate::units::VolumeId;

/// A store, and the keys of its volumes.
pub struct Keyed {
    inner: Arc<dyn Store>,
    keyring: Arc<Keyring>,
}

impl Keyed {
    /// Puts keys beside a store.
    pub fn new(inner: Arc<dyn Store>, keyring: Arc<Keyring>) -> Self {
        Keyed { inner, keyring }
    }
}

#[async_trait]
impl Store for Keyed {
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        self.inner.get(key, range).await
    }

    async fn get_in_pieces(
        &self,
        key: &ObjectKey,
        offset: u64,
        length: u64,
        arrivals: &dyn Arrivals,
    ) -> StoreResult<()> {
        self.inner.get_in_pieces(key, offset, length, arrivals).await
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag> {
        self.inner.put(key, body, condition).await
    }

    async fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        self.inner.delete(key).await
    }

    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing> {
        self.inner.list(prefix, after).await
    }

    fn address(&self) -> &str {
        self.inner.address()
    }

    fn region(&self) -> Option<&str> {
        self.inner.region()
    }

    fn store_in(&self, region: &str) -> Option<Arc<dyn Store>> {
        self.inner.store_in(region)
    }

    fn place(&self, volume: VolumeId, region: &str) {
        self.inner.place(volume, region);
    }

    fn elsewhere(&self, volume: VolumeId) -> Option<String> {
        self.inner.elsewhere(volume)
    }

    fn keyring(&self) -> Option<&Arc<Keyring>> {
        Some(&self.keyring)
    }
}

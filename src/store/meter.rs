//! Counts requests and bytes by kind. Stands under the retries, so that every try counts: it is what the store
//! bills and what an idle volume must keep at zero. Owns the counters; changes nothing about a request.
//!
//! A request counts when it begins, sent bytes with it; received bytes count when they have arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Arrivals, ByteRange, Condition, ETag, Fetched, Listing, ObjectKey, Store, StoreResult};
use crate::service::StoreCounts;

/// Counters that run for as long as the daemon does.
#[derive(Debug, Default)]
pub struct Counts {
    gets: AtomicU64,
    get_bytes: AtomicU64,
    puts: AtomicU64,
    put_bytes: AtomicU64,
    deletes: AtomicU64,
    lists: AtomicU64,
    retries: AtomicU64,
}

impl Counts {
    /// The counts up to now.
    pub fn snapshot(&self) -> StoreCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreCounts {
            gets: read(&self.gets),
            get_bytes: read(&self.get_bytes),
            puts: read(&self.puts),
            put_bytes: read(&self.put_bytes),
            deletes: read(&self.deletes),
            lists: read(&self.lists),
            retries: read(&self.retries),
        }
    }

    /// Counts one more try of a request that failed.
    pub fn retried(&self) {
        add(&self.retries, 1);
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// A store whose requests are counted.
pub struct Meter {
    inner: Arc<dyn Store>,
    counts: Arc<Counts>,
}

impl Meter {
    /// Counts the requests to `inner` in `counts`.
    pub fn new(inner: Arc<dyn Store>, counts: Arc<Counts>) -> Self {
        Meter { inner, counts }
    }
}

/// Counts what arrives.
struct Counting<'a> {
    counts: &'a Counts,
    arrivals: &'a dyn Arrivals,
}

impl Arrivals for Counting<'_> {
    fn take(&self, bytes: Bytes) {
        add(&self.counts.get_bytes, bytes.len() as u64);
        self.arrivals.take(bytes);
    }
}

#[async_trait]
impl Store for Meter {
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        add(&self.counts.gets, 1);
        let fetched = self.inner.get(key, range).await?;
        add(&self.counts.get_bytes, fetched.bytes.len() as u64);
        Ok(fetched)
    }

    async fn get_in_pieces(
        &self,
        key: &ObjectKey,
        offset: u64,
        length: u64,
        arrivals: &dyn Arrivals,
    ) -> StoreResult<()> {
        add(&self.counts.gets, 1);
        let counting = Counting { counts: &self.counts, arrivals };
        self.inner.get_in_pieces(key, offset, length, &counting).await
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag> {
        add(&self.counts.puts, 1);
        add(&self.counts.put_bytes, body.len() as u64);
        self.inner.put(key, body, condition).await
    }

    async fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        add(&self.counts.deletes, 1);
        self.inner.delete(key).await
    }

    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing> {
        add(&self.counts.lists, 1);
        self.inner.list(prefix, after).await
    }

    fn address(&self) -> &str {
        self.inner.address()
    }
}

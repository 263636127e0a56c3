//! Parts that are fetched in pieces: every byte once and in order, over tries that were cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use varve::store::{
    Arrivals, ByteRange, Condition, Counts, ETag, Fetched, Listing, MemoryStore, Meter, ObjectKey, Retry, RetryPolicy,
    Store, StoreError, StoreErrorKind, StoreResult,
};
use varve::units::VolumeId;

/// Keeps what arrives.
#[derive(Default)]
pub struct Gathered(Mutex<Vec<Bytes>>);

impl Gathered {
    /// All of it.
    pub fn bytes(&self) -> Bytes {
        self.0.lock().concat().into()
    }
}

impl Arrivals for Gathered {
    fn take(&self, bytes: Bytes) {
        self.0.lock().push(bytes);
    }
}

/// A store whose answers end early, or late.
struct Cutting {
    inner: MemoryStore,
    /// Bytes that an answer has at most.
    most: usize,
    /// Bytes that an answer has too many.
    beyond: usize,
    asked: Mutex<Vec<(u64, u64)>>,
    deaf_tries: AtomicUsize,
}

#[async_trait]
impl Store for Cutting {
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
        self.asked.lock().push((offset, length));
        let cut = || StoreError::new(StoreErrorKind::Unavailable, "the connection ended");
        if self.deaf_tries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(cut());
        }
        let mut bytes = self.inner.get(key, ByteRange::Part { offset, length }).await?.bytes;
        bytes.truncate(self.most);
        let is_whole = bytes.len() as u64 == length;
        while !bytes.is_empty() {
            arrivals.take(bytes.split_to(bytes.len().min(1000)));
        }
        if self.beyond > 0 {
            arrivals.take(Bytes::from(vec![0; self.beyond]));
        }
        if is_whole { Ok(()) } else { Err(cut()) }
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
        "memory:"
    }
}

fn key() -> ObjectKey {
    ObjectKey::manifest(VolumeId(1))
}

const PATIENCE: Duration = Duration::from_secs(5);

/// An object of 100,000 bytes in a store whose answers have `most` bytes at most, and `beyond` too many.
async fn cutting(most: usize, beyond: usize, patience: Duration) -> (Arc<Cutting>, Retry, Arc<Counts>, Bytes) {
    let inner = MemoryStore::new();
    let body: Bytes = (0..100_000u32).map(|at| (at % 251) as u8).collect();
    inner.put(&key(), body.clone(), Condition::IfAbsent).await.unwrap();
    let cutting = Arc::new(Cutting { inner, most, beyond, asked: Mutex::default(), deaf_tries: AtomicUsize::new(0) });
    let policy = RetryPolicy {
        first_delay: Duration::from_micros(500),
        delay_max: Duration::from_millis(2),
        try_deadline: Duration::from_secs(5),
        patience: Some(patience),
        refused_delay: None,
    };
    let counts = Arc::new(Counts::default());
    let metered = Arc::new(Meter::new(cutting.clone(), counts.clone()));
    (cutting, Retry::new(metered, policy, counts.clone()), counts, body)
}

#[tokio::test]
async fn a_part_goes_on_where_it_was_cut() {
    let (cutting, store, counts, body) = cutting(17_001, 0, PATIENCE).await;
    cutting.deaf_tries.store(2, Ordering::Relaxed);
    let gathered = Gathered::default();
    store.get_in_pieces(&key(), 5_000, 90_000, &gathered).await.unwrap();
    assert!(gathered.bytes() == body.slice(5_000..95_000), "bytes are missing, twice there, or out of order");
    let asked = cutting.asked.lock().clone();
    assert_eq!(asked[..3], [(5_000, 90_000); 3], "nothing had arrived");
    assert!(asked[2..].windows(2).all(|pair| pair[1] == (pair[0].0 + 17_001, pair[0].1 - 17_001)), "{asked:?}");
    let seen = counts.snapshot();
    assert_eq!((seen.gets, seen.get_bytes, seen.retries), (8, 90_000, 7));
}

#[tokio::test]
async fn what_does_not_move_is_given_up() {
    let (cutting, store, ..) = cutting(0, 0, Duration::from_secs(1)).await;
    let gathered = Gathered::default();
    let error = store.get_in_pieces(&key(), 0, 100_000, &gathered).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(cutting.asked.lock().len() > 1, "it was tried again");
    assert!(gathered.bytes().is_empty());
}

#[tokio::test]
async fn more_than_was_asked_for_is_no_answer() {
    let (_, store, _, body) = cutting(usize::MAX, 10, PATIENCE).await;
    let gathered = Gathered::default();
    let error = store.get_in_pieces(&key(), 0, 50_000, &gathered).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Malformed);
    assert!(gathered.bytes() == body.slice(..50_000), "nothing of what was too much is passed on");
}

//! A store at which actors take turns: before and after each request others may have theirs, as the seed decides. Now and then an answer is
//! lost, a request fails, or a write arrives when its sender has long given it up.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use varve::store::{
    ByteRange, Condition, Counts, ETag, Fetched, Listing, MemoryStore, ObjectKey, Retry, RetryPolicy, Store,
    StoreError, StoreErrorKind, StoreResult,
};

/// Turns that others may have before a request, and before its answer.
const TURNS_MAX: u32 = 12;
/// Turns that a late write may take.
const LATE_TURNS_MAX: u32 = 80;

pub struct Turns {
    inner: Arc<MemoryStore>,
    random: Mutex<StdRng>,
    /// Of a hundred requests, how many go wrong in each way.
    faults: u32,
}

/// What becomes of a write.
enum Fate {
    Applied,
    AnswerLost,
    NotApplied,
    Late,
}

impl Turns {
    /// A view of `inner` for one actor, with the retries that the daemon has.
    pub fn of(inner: &Arc<MemoryStore>, seed: u64, faults: u32) -> Arc<dyn Store> {
        let random = Mutex::new(StdRng::seed_from_u64(seed));
        let turns = Arc::new(Turns { inner: inner.clone(), random, faults });
        let policy = RetryPolicy { first_delay: Duration::from_millis(1), ..RetryPolicy::default() };
        Arc::new(Retry::new(turns, policy, Arc::new(Counts::default())))
    }

    fn random(&self, end: u32) -> u32 {
        self.random.lock().unwrap().random_range(0..end)
    }

    async fn let_others(&self, most: u32) {
        for _ in 0..self.random(most) {
            tokio::task::yield_now().await;
        }
    }

    fn fate(&self) -> Fate {
        match self.random(100) {
            fate if fate < self.faults => Fate::AnswerLost,
            fate if fate < 2 * self.faults => Fate::NotApplied,
            fate if fate < 3 * self.faults => Fate::Late,
            _ => Fate::Applied,
        }
    }

    async fn read<T>(&self, key: &ObjectKey, request: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        self.let_others(TURNS_MAX).await;
        let answer = request.await;
        self.let_others(TURNS_MAX).await;
        if self.random(100) < self.faults { Err(failed(StoreErrorKind::Unavailable, key)) } else { answer }
    }
}

fn failed(kind: StoreErrorKind, key: &ObjectKey) -> StoreError {
    StoreError::new(kind, format!("the request on {key} went wrong, as the seed decided"))
}

#[async_trait]
impl Store for Turns {
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        self.read(key, self.inner.get(key, range)).await
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag> {
        self.let_others(TURNS_MAX).await;
        let answer = match self.fate() {
            Fate::Applied => self.inner.put(key, body, condition).await,
            Fate::AnswerLost => {
                let _ = self.inner.put(key, body, condition).await;
                Err(failed(StoreErrorKind::OutcomeUnknown, key))
            }
            Fate::NotApplied => Err(failed(StoreErrorKind::Unavailable, key)),
            Fate::Late => {
                let (inner, key, turns) = (self.inner.clone(), key.clone(), self.random(LATE_TURNS_MAX));
                let unknown = Err(failed(StoreErrorKind::OutcomeUnknown, &key));
                drop(tokio::spawn(async move {
                    for _ in 0..turns {
                        tokio::task::yield_now().await;
                    }
                    let _ = inner.put(&key, body, condition).await;
                }));
                unknown
            }
        };
        self.let_others(TURNS_MAX).await;
        answer
    }

    async fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        self.read(key, self.inner.delete(key)).await
    }

    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing> {
        self.read(prefix, self.inner.list(prefix, after)).await
    }

    fn address(&self) -> &str {
        self.inner.address()
    }
}

/// Runs one race.
pub fn block_on<T>(race: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(race)
}

/// Lets everything that is still under way arrive.
pub async fn settle() {
    for _ in 0..LATE_TURNS_MAX {
        tokio::task::yield_now().await;
    }
}

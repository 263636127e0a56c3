//! A store in memory whose writes may be held up, answered badly, or take effect long after whoever sent them has died.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{Notify, oneshot};
use varve::store::{
    ByteRange, Condition, ETag, Fetched, Listing, MemoryStore, ObjectKey, Store, StoreError, StoreErrorKind,
    StoreResult,
};

/// A put on its way.
struct Held {
    key: ObjectKey,
    body: Bytes,
    condition: Condition,
    answer: Option<oneshot::Sender<StoreResult<ETag>>>,
}

struct State {
    random: StdRng,
    /// Of ten puts, how many are held up.
    holding: u32,
    held: Vec<Held>,
    /// Sent by those who have died since.
    stray: Vec<Held>,
}

/// The store as the world sees it.
pub struct LateStore {
    inner: MemoryStore,
    state: std::sync::Mutex<State>,
    arrived: Notify,
}

impl LateStore {
    pub fn new(seed: u64) -> Arc<LateStore> {
        let state = State { random: StdRng::seed_from_u64(seed), holding: 0, held: Vec::new(), stray: Vec::new() };
        Arc::new(LateStore { inner: MemoryStore::new(), state: std::sync::Mutex::new(state), arrived: Notify::new() })
    }

    /// The store as one life of a host sees it.
    pub fn line(self: &Arc<Self>) -> (Arc<dyn Store>, Cut) {
        let cut = Cut(Arc::new(AtomicBool::new(false)));
        (Arc::new(Line { late: self.clone(), cut: cut.clone() }), cut)
    }

    /// From now on, this many of ten puts are held up.
    pub fn hold(&self, of_ten: u32) {
        self.state.lock().unwrap().holding = of_ten;
    }

    /// Waits until a put is held up.
    pub async fn arrived(&self) {
        loop {
            let woken = self.arrived.notified();
            if !self.state.lock().unwrap().held.is_empty() {
                return;
            }
            woken.await;
        }
    }

    /// Lets one of the held puts, whichever, take effect, and mostly says so.
    pub async fn deliver_one(&self) {
        let (held, whim) = {
            let mut state = self.state.lock().unwrap();
            if state.held.is_empty() {
                return;
            }
            let (count, whim) = (state.held.len(), state.random.random_range(0..24));
            let choice = state.random.random_range(0..count);
            (state.held.swap_remove(choice), whim)
        };
        let Held { key, body, condition, answer } = held;
        let Some(answer) = answer else { return };
        let failed = |kind| Err(StoreError::new(kind, format!("the simulated store failed on {key}")));
        let outcome = match whim {
            0 => failed(StoreErrorKind::Unavailable),
            1 => {
                // It has taken effect, and nobody is told.
                let _ = self.inner.put(&key, body, condition).await;
                failed(StoreErrorKind::OutcomeUnknown)
            }
            2 => {
                // It has not, and will at any time, perhaps after a second try has.
                let unknown = failed(StoreErrorKind::OutcomeUnknown);
                self.state.lock().unwrap().stray.push(Held { key: key.clone(), body, condition, answer: None });
                unknown
            }
            _ => self.inner.put(&key, body, condition).await,
        };
        // Whoever asked may be dead.
        let _ = answer.send(outcome);
    }

    /// The host has died: some of what it sent is lost, the rest arrives whenever it likes.
    pub fn orphan(&self) {
        let mut state = self.state.lock().unwrap();
        let State { random, held, stray, holding } = &mut *state;
        *holding = 0;
        stray.extend(held.drain(..).filter(|_| random.random_bool(0.6)).map(|held| Held { answer: None, ..held }));
    }

    /// Lets a stray put take effect, now and then.
    async fn straggle(&self) {
        let stray = {
            let mut state = self.state.lock().unwrap();
            let count = state.stray.len();
            if count == 0 || !state.random.random_bool(0.3) {
                return;
            }
            let choice = state.random.random_range(0..count);
            state.stray.swap_remove(choice)
        };
        let _ = self.inner.put(&stray.key, stray.body, stray.condition).await;
    }

    fn holds_up(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        let holding = state.holding;
        state.random.random_range(0..10) < holding
    }
}

/// Cuts a line: the host at its end is dead, and nothing that it asks for or waits for happens any more.
#[derive(Clone)]
pub struct Cut(Arc<AtomicBool>);

impl Cut {
    pub fn cut(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    async fn pass(&self) {
        if self.0.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

struct Line {
    late: Arc<LateStore>,
    cut: Cut,
}

#[async_trait]
impl Store for Line {
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        self.cut.pass().await;
        self.late.straggle().await;
        let fetched = self.late.inner.get(key, range).await;
        self.cut.pass().await;
        fetched
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag> {
        self.cut.pass().await;
        self.late.straggle().await;
        let answer = if self.late.holds_up() {
            let (sender, receiver) = oneshot::channel();
            let held = Held { key: key.clone(), body, condition, answer: Some(sender) };
            self.late.state.lock().unwrap().held.push(held);
            self.late.arrived.notify_waiters();
            match receiver.await {
                Ok(answer) => answer,
                Err(_) => std::future::pending().await,
            }
        } else {
            self.late.inner.put(key, body, condition).await
        };
        self.cut.pass().await;
        answer
    }

    async fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        self.cut.pass().await;
        self.late.inner.delete(key).await
    }

    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing> {
        self.cut.pass().await;
        self.late.inner.list(prefix, after).await
    }

    fn address(&self) -> &str {
        self.late.inner.address()
    }
}

//! A store that fails on demand, for tests: before a request takes effect, or after it did and the answer is lost; late,
//! held, cut or with a flipped byte. It also keeps a log of the requests.
//!
//! [`Faults`] is the handle; it can wrap any store, and several at once. Owns the rules, the switch for an outage and the
//! log. Without a rule that matches, a request passes untouched. Rules are taken in the order in which they were made;
//! each request meets at most one of them. Deterministic, apart from the order of concurrent requests.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    ByteRange, Condition, ETag, Fetched, Listing, ObjectKey, Operation, Store, StoreError, StoreErrorKind, StoreResult,
};

/// Which requests are meant.
#[derive(Clone, Debug, Default)]
pub struct Matching {
    operation: Option<Operation>,
    key_part: String,
}

impl Matching {
    /// All requests.
    pub fn any() -> Self {
        Matching::default()
    }

    /// All of one kind.
    pub fn operation(operation: Operation) -> Self {
        Matching { operation: Some(operation), key_part: String::new() }
    }

    /// Of these, those whose object's name contains `part`.
    pub fn on(mut self, part: &str) -> Self {
        self.key_part = part.into();
        self
    }

    fn matches(&self, operation: Operation, key: &ObjectKey) -> bool {
        self.operation.is_none_or(|wanted| wanted == operation) && key.as_str().contains(&self.key_part)
    }
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Effect {
    /// It fails and has no effect.
    FailBefore(StoreErrorKind),
    /// It takes effect, and then fails: with `OutcomeUnknown` the ambiguous write.
    FailAfter(StoreErrorKind),
    /// It fails as `OutcomeUnknown` at once, and takes effect when the gate opens.
    ApplyLate(Gate),
    /// It begins later.
    Delay(Duration),
    /// It begins when the gate opens.
    HoldBefore(Gate),
    /// It takes effect; the answer comes when the gate opens.
    HoldAfter(Gate),
    /// A get brings at most this many bytes.
    Truncate(usize),
    /// A get brings this byte (counted from 0, of the fetched ones) inverted.
    Flip(usize),
}

/// Holds requests until it is opened. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<GateState>>);

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    arrived: usize,
    finished: usize,
}

impl Default for Gate {
    fn default() -> Self {
        Gate::closed()
    }
}

impl Gate {
    /// A gate that is shut.
    pub fn closed() -> Self {
        Gate(Arc::new(watch::Sender::new(GateState::default())))
    }

    /// Lets all through who wait, and who come later.
    pub fn open(&self) {
        self.0.send_modify(|state| state.open = true);
    }

    /// Waits until at least `count` requests have come to the gate.
    pub async fn arrived(&self, count: usize) {
        // Fails only without a sender, and we hold one.
        let _ = self.0.subscribe().wait_for(|state| state.arrived >= count).await;
    }

    /// Waits until at least `count` requests that came here have run to their end.
    pub async fn finished(&self, count: usize) {
        let _ = self.0.subscribe().wait_for(|state| state.finished >= count).await;
    }

    fn finish(&self) {
        self.0.send_modify(|state| state.finished += 1);
    }

    async fn pass(&self) {
        self.0.send_modify(|state| state.arrived += 1);
        let _ = self.0.subscribe().wait_for(|state| state.open).await;
    }
}

/// A request that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Its kind.
    pub operation: Operation,
    /// Its object, or the prefix of a listing.
    pub key: ObjectKey,
    /// When it began, and when it was answered (`None`: not yet, or dropped), on a clock that ticks at each such event.
    pub began: u64,
    /// See `began`.
    pub ended: Option<u64>,
}

struct Rule {
    matching: Matching,
    effect: Effect,
    left: usize,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    outage: Option<StoreErrorKind>,
    log: Vec<Logged>,
    ticks: u64,
}

/// The handle by which a test orders faults. Clones are the same handle.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

impl Faults {
    /// No faults yet.
    pub fn new() -> Self {
        Faults::default()
    }

    /// `inner`, with the faults of this handle.
    pub fn wrap(&self, inner: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(FaultStore { inner, faults: self.clone() })
    }

    /// The next `count` requests that match meet `effect`.
    pub fn inject(&self, matching: Matching, effect: Effect, count: usize) {
        self.0.lock().rules.push(Rule { matching, effect, left: count });
    }

    /// Forgets all rules.
    pub fn clear(&self) {
        self.0.lock().rules.clear();
    }

    /// While `Some`, every request fails with this kind and has no effect.
    pub fn outage(&self, kind: Option<StoreErrorKind>) {
        self.0.lock().outage = kind;
    }

    /// The requests so far, in the order in which they began.
    pub fn log(&self) -> Vec<Logged> {
        self.0.lock().log.clone()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        self.0.lock().log.clear();
    }

    /// How many requests so far match.
    pub fn count(&self, matching: &Matching) -> usize {
        self.0.lock().log.iter().filter(|logged| matching.matches(logged.operation, &logged.key)).count()
    }

    /// The longest chain of requests so far in which each began after the one before it was answered: round trips
    /// that somebody may have waited for.
    pub fn round_trips(&self) -> usize {
        let mut spans: Vec<(u64, u64)> = self.log().iter().map(|l| (l.ended.unwrap_or(u64::MAX), l.began)).collect();
        spans.sort_unstable();
        let mut chain = 0;
        let mut last_end = None;
        for (ended, began) in spans {
            if last_end.is_none_or(|last| began > last) {
                chain += 1;
                last_end = Some(ended);
            }
        }
        chain
    }

    fn begin(&self, operation: Operation, key: &ObjectKey) -> (usize, Option<Effect>) {
        let mut state = self.0.lock();
        state.ticks += 1;
        let began = state.ticks;
        state.log.push(Logged { operation, key: key.clone(), began, ended: None });
        let place = state.log.len() - 1;
        if let Some(kind) = &state.outage {
            return (place, Some(Effect::FailBefore(kind.clone())));
        }
        let rule = state.rules.iter_mut().find(|rule| rule.left > 0 && rule.matching.matches(operation, key));
        let effect = rule.map(|rule| {
            rule.left -= 1;
            rule.effect.clone()
        });
        (place, effect)
    }

    fn end(&self, place: usize, key: &ObjectKey) {
        let mut state = self.0.lock();
        state.ticks += 1;
        let now = state.ticks;
        // The log may have been cleared meanwhile.
        if let Some(logged) = state.log.get_mut(place).filter(|logged| logged.key == *key) {
            logged.ended = Some(now);
        }
    }
}

struct FaultStore {
    inner: Arc<dyn Store>,
    faults: Faults,
}

fn failure(operation: Operation, key: &ObjectKey, kind: StoreErrorKind) -> StoreError {
    let message = format!("{operation:?} of {key}: a fault as ordered ({kind:?})");
    StoreError::new(kind, message)
}

impl FaultStore {
    async fn run<T: Send + 'static>(
        &self,
        operation: Operation,
        key: &ObjectKey,
        request: impl Future<Output = StoreResult<T>> + Send + 'static,
        spoil: impl FnOnce(T, &Effect) -> T + Send,
    ) -> StoreResult<T> {
        let (place, effect) = self.faults.begin(operation, key);
        let answer = match effect {
            None => request.await,
            Some(Effect::FailBefore(kind)) => Err(failure(operation, key, kind)),
            Some(Effect::FailAfter(kind)) => match request.await {
                Ok(_) => Err(failure(operation, key, kind)),
                Err(error) => Err(error),
            },
            Some(Effect::ApplyLate(gate)) => {
                tokio::spawn(async move {
                    gate.pass().await;
                    // Nobody waits for this answer any more.
                    drop(request.await);
                    gate.finish();
                });
                Err(failure(operation, key, StoreErrorKind::OutcomeUnknown))
            }
            Some(Effect::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                request.await
            }
            Some(Effect::HoldBefore(gate)) => {
                gate.pass().await;
                let answer = request.await;
                gate.finish();
                answer
            }
            Some(Effect::HoldAfter(gate)) => {
                let answer = request.await;
                gate.pass().await;
                gate.finish();
                answer
            }
            Some(effect @ (Effect::Truncate(_) | Effect::Flip(_))) => {
                request.await.map(|answer| spoil(answer, &effect))
            }
        };
        self.faults.end(place, key);
        answer
    }
}

fn spoil_bytes(mut fetched: Fetched, effect: &Effect) -> Fetched {
    match effect {
        Effect::Truncate(length) => fetched.bytes.truncate(*length),
        Effect::Flip(position) => {
            let mut bytes = fetched.bytes.to_vec();
            if let Some(byte) = bytes.get_mut(*position) {
                *byte = !*byte;
            }
            fetched.bytes = bytes.into();
        }
        _ => {}
    }
    fetched
}

#[async_trait]
impl Store for FaultStore {
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        let (inner, object) = (self.inner.clone(), key.clone());
        self.run(Operation::Get, key, async move { inner.get(&object, range).await }, spoil_bytes).await
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag> {
        let (inner, object) = (self.inner.clone(), key.clone());
        let request = async move { inner.put(&object, body, condition).await };
        self.run(Operation::Put, key, request, |etag, _| etag).await
    }

    async fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        let (inner, object) = (self.inner.clone(), key.clone());
        self.run(Operation::Delete, key, async move { inner.delete(&object).await }, |(), _| ()).await
    }

    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing> {
        let (inner, object, after) = (self.inner.clone(), prefix.clone(), after.cloned());
        let request = async move { inner.list(&object, after.as_ref()).await };
        self.run(Operation::List, prefix, request, |listing, _| listing).await
    }

    fn address(&self) -> &str {
        self.inner.address()
    }
}

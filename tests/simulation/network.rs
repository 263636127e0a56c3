//! The store, and the network between it and the hosts. A request travels by itself: it arrives late, twice over, out of order, after
//! whoever sent it has died, or never; and so does its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::oneshot;
use varve::clock;
use varve::store::{
    ByteRange, Condition, ETag, Fetched, Listing, MemoryStore, ObjectKey, Store, StoreError, StoreErrorKind,
    StoreResult,
};
use varve::work::simulated::{self, HostId};

use super::journal::Journal;

/// A deliberate bug of the store's edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A segment is said to be stored before it is.
    PublishOutOfOrder,
    /// A segment goes with the first snapshot that does.
    DeleteEarly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Well,
    Slow,
    Busy,
    Denied,
    Full,
    RequestLost,
    AnswerLost,
    AppliedUnknown,
    UnknownThenApplied,
    Cut,
    Rotten,
}

#[derive(Clone, Debug)]
enum Request {
    Get(ObjectKey, ByteRange),
    Put(ObjectKey, Bytes, Condition),
    Delete(ObjectKey),
    List(ObjectKey, Option<ObjectKey>),
}

enum Answer {
    Got(Fetched),
    Put(ETag),
    Deleted,
    Listed(Listing),
}

/// What is captured at each request, if somebody wants to: called before and after it takes effect.
pub type Capture = Arc<dyn Fn(&str) + Send + Sync>;

struct State {
    random: StdRng,
    /// Of a thousand requests, how many meet with trouble.
    trouble: u32,
    /// Of a thousand answers, how many are rotten.
    rot: u32,
    cut: BTreeMap<HostId, bool>,
    dead: BTreeMap<HostId, bool>,
    requests: u64,
    capture: Option<Capture>,
    /// The request of this number has this fate, for the enumeration.
    fated: Option<(u64, Fate)>,
    broken: Option<Broken>,
    /// Manifests that were deleted.
    removed: BTreeSet<ObjectKey>,
}

/// The store and its network.
pub struct Network {
    pub store: MemoryStore,
    journal: Journal,
    state: Mutex<State>,
}

fn failed(kind: StoreErrorKind, key: &ObjectKey) -> StoreError {
    StoreError::new(kind, format!("the simulated store failed on {key}"))
}

impl Request {
    fn key(&self) -> &ObjectKey {
        match self {
            Request::Get(key, _) | Request::Put(key, ..) | Request::Delete(key) | Request::List(key, _) => key,
        }
    }

    fn show(&self) -> String {
        match self {
            Request::Get(key, range) => format!("get {key} {range:?}"),
            Request::Put(key, body, condition) => {
                format!("put {key} {} bytes {:08x} {condition:?}", body.len(), crc32c::crc32c(body))
            }
            Request::Delete(key) => format!("delete {key}"),
            Request::List(key, after) => format!("list {key} {after:?}"),
        }
    }
}

impl Network {
    pub fn new(seed: u64, store: MemoryStore, journal: Journal, broken: Option<Broken>) -> Arc<Network> {
        let state = State {
            random: StdRng::seed_from_u64(seed),
            trouble: 0,
            rot: 0,
            cut: BTreeMap::new(),
            dead: BTreeMap::new(),
            requests: 0,
            capture: None,
            fated: None,
            broken,
            removed: BTreeSet::new(),
        };
        Arc::new(Network { store, journal, state: Mutex::new(state) })
    }

    /// The store as a host sees it.
    pub fn line(self: &Arc<Self>, host: HostId) -> Arc<dyn Store> {
        Arc::new(Line { network: self.clone(), host })
    }

    /// From now on, of a thousand requests this many meet with trouble, and this many answers are rotten.
    pub fn trouble(&self, trouble: u32, rot: u32) {
        let mut state = self.state.lock().unwrap();
        (state.trouble, state.rot) = (trouble, rot);
    }

    /// Cuts a host off, or connects it again.
    pub fn cut(&self, host: HostId, is_cut: bool) {
        self.state.lock().unwrap().cut.insert(host, is_cut);
    }

    /// The host is dead: what it has sent arrives or not.
    pub fn died(&self, host: HostId) {
        self.state.lock().unwrap().dead.insert(host, true);
    }

    pub fn requests(&self) -> u64 {
        self.state.lock().unwrap().requests
    }

    pub fn capture(&self, capture: Option<Capture>) {
        self.state.lock().unwrap().capture = capture;
    }

    /// The request of this number loses its answer after it took effect, or never takes effect.
    pub fn lose(&self, number: u64, is_applied: bool) {
        let fate = if is_applied { Fate::AppliedUnknown } else { Fate::Busy };
        self.state.lock().unwrap().fated = Some((number, fate));
    }

    fn fate(&self, request: &Request) -> (Fate, Duration, Duration) {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        state.requests += 1;
        let mut delay = || Duration::from_micros(state.random.random_range(100..8000));
        let (there, back) = (delay(), delay());
        if let Some((number, fate)) = state.fated
            && number == state.requests
        {
            return (fate, there, back);
        }
        if matches!(request, Request::Get(..)) && state.random.random_range(0..1000) < state.rot {
            return (Fate::Rotten, there, back);
        }
        if state.random.random_range(0..1000) >= state.trouble {
            return (Fate::Well, there, back);
        }
        let fate = match state.random.random_range(0..16) {
            0..=4 => Fate::Busy,
            5 => [Fate::Denied, Fate::Full][state.random.random_range(0..2)],
            6 => Fate::RequestLost,
            7 => Fate::AnswerLost,
            8..=9 => Fate::AppliedUnknown,
            10..=11 => Fate::UnknownThenApplied,
            12 => Fate::Cut,
            _ => Fate::Slow,
        };
        (fate, there, back)
    }

    fn late(&self) -> Duration {
        let mut state = self.state.lock().unwrap();
        let most = [50, 1000, 20_000, 90_000][state.random.random_range(0..4)];
        Duration::from_millis(state.random.random_range(1..most))
    }

    /// Carries one request.
    async fn carry(self: Arc<Self>, host: HostId, request: Request, answer: oneshot::Sender<StoreResult<Answer>>) {
        let (fate, there, back) = self.fate(&request);
        if fate != Fate::Well {
            self.journal.hit(name_of(fate));
        }
        clock::sleep(there).await;
        let mut answer = Some(answer);
        let mut reply = |with: StoreResult<Answer>| {
            // Whoever asked may be dead, or may have given up.
            answer.take().map(|answer| answer.send(with).is_ok())
        };
        match fate {
            Fate::Busy | Fate::Denied | Fate::Full => {
                let kind = kind_of(fate);
                self.journal.note(format_args!("store: refuses {} of {}: {kind:?}", request.show(), host.0));
                reply(Err(failed(kind, request.key())));
                return;
            }
            Fate::RequestLost => {
                self.journal.note(format_args!("store: never sees {} of {}", request.show(), host.0));
                // Kept for as long as anybody waits: it is a silence, not an answer.
                return clock::sleep(Duration::from_secs(600)).await;
            }
            Fate::UnknownThenApplied => {
                reply(Err(failed(unknown(&request), request.key())));
                clock::sleep(self.late()).await;
            }
            Fate::Slow => clock::sleep(self.late()).await,
            _ => {}
        }
        if self.is_lost(host) {
            self.journal.hit("network: partition");
            self.journal.note(format_args!("store: {} of {} is lost", request.show(), host.0));
            return clock::sleep(Duration::from_secs(600)).await;
        }
        if self.is_a_day_late(&request) {
            self.journal.note(format_args!("store: {} of {} would come a day late", request.show(), host.0));
            return clock::sleep(Duration::from_secs(600)).await;
        }
        if self.breaks(&request, &mut reply).await {
            return;
        }
        let outcome = self.apply(host, &request).await;
        match fate {
            Fate::AnswerLost => return clock::sleep(Duration::from_secs(600)).await,
            Fate::AppliedUnknown => {
                reply(Err(failed(unknown(&request), request.key())));
                return;
            }
            _ => {}
        }
        clock::sleep(back).await;
        if self.is_lost(host) {
            return clock::sleep(Duration::from_secs(600)).await;
        }
        reply(outcome.map(|answer| spoil(answer, fate)));
    }

    /// True if the request or its answer meets a cut line, or the half of what a dead host had sent.
    fn is_lost(&self, host: HostId) -> bool {
        let mut state = self.state.lock().unwrap();
        let is_dead = state.dead.get(&host).copied().unwrap_or(false);
        state.cut.get(&host).copied().unwrap_or(false) || (is_dead && state.random.random_bool(0.4))
    }

    /// True of the creation of a volume that was removed for good: that is a day after the last sign of it, and no request is under way for so long,
    /// but in a world where the clock is put forward by a day.
    fn is_a_day_late(&self, request: &Request) -> bool {
        let mut state = self.state.lock().unwrap();
        match request {
            Request::Delete(key) if key.parse_manifest().is_some() => {
                state.removed.insert(key.clone());
                false
            }
            Request::Put(key, _, Condition::IfAbsent) => state.removed.contains(key),
            _ => false,
        }
    }

    async fn apply(&self, host: HostId, request: &Request) -> StoreResult<Answer> {
        let capture = self.state.lock().unwrap().capture.clone();
        let shown = request.show();
        if let Some(capture) = &capture {
            capture(&format!("before {shown}"));
        }
        let outcome = match request {
            Request::Get(key, range) => self.store.get(key, *range).await.map(Answer::Got),
            Request::Put(key, body, condition) => {
                self.store.put(key, body.clone(), condition.clone()).await.map(Answer::Put)
            }
            Request::Delete(key) => self.store.delete(key).await.map(|()| Answer::Deleted),
            Request::List(key, after) => self.store.list(key, after.as_ref()).await.map(Answer::Listed),
        };
        if let Some(capture) = &capture {
            capture(&format!("after {shown}"));
        }
        let said = outcome.as_ref().err().map_or_else(|| "done".to_owned(), |error| format!("{:?}", error.kind));
        self.journal.note(format_args!("store: {shown} of {}: {said}", host.0));
        let is_dead = self.state.lock().unwrap().dead.get(&host).copied().unwrap_or(false);
        if let (Request::Put(key, ..), true) = (request, is_dead) {
            self.journal.hit("network: a put of the dead arrives");
            let meets = outcome.as_ref().err().map(|error| error.kind.clone());
            if meets == Some(StoreErrorKind::PreconditionFailed) && key.parse_segment().is_some() {
                self.journal.hit("network: a segment of the dead meets a seal or itself");
            }
        }
        outcome
    }

    /// The deliberate bugs.
    async fn breaks(
        self: &Arc<Self>,
        request: &Request,
        reply: &mut impl FnMut(StoreResult<Answer>) -> Option<bool>,
    ) -> bool {
        let broken = self.state.lock().unwrap().broken;
        match (broken, request) {
            (Some(Broken::PublishOutOfOrder), Request::Put(key, body, condition)) if key.parse_segment().is_some() => {
                if self.store.get(key, ByteRange::Full).await.is_ok() {
                    return false;
                }
                reply(Ok(Answer::Put(ETag("early".to_owned()))));
                clock::sleep(self.late()).await;
                // It may meet a seal by now.
                let _ = self.store.put(key, body.clone(), condition.clone()).await;
                true
            }
            (Some(Broken::DeleteEarly), Request::Delete(_)) => {
                let everything = self.store.list(&ObjectKey::volumes(), None).await;
                let objects = everything.map(|listing| listing.objects).unwrap_or_default();
                let newest = objects.iter().rfind(|object| object.key.parse_segment().is_some() && object.length > 600);
                if let Some(segment) = newest {
                    let _ = self.store.delete(&segment.key).await;
                }
                false
            }
            _ => false,
        }
    }
}

fn kind_of(fate: Fate) -> StoreErrorKind {
    match fate {
        Fate::Denied => StoreErrorKind::Denied,
        Fate::Full => StoreErrorKind::Full,
        _ => StoreErrorKind::Unavailable,
    }
}

fn unknown(request: &Request) -> StoreErrorKind {
    match request {
        Request::Put(..) => StoreErrorKind::OutcomeUnknown,
        _ => StoreErrorKind::Unavailable,
    }
}

fn spoil(answer: Answer, fate: Fate) -> Answer {
    match (answer, fate) {
        (Answer::Got(mut fetched), Fate::Cut) => {
            fetched.bytes.truncate(fetched.bytes.len() / 2);
            Answer::Got(fetched)
        }
        (Answer::Got(mut fetched), Fate::Rotten) => {
            let mut bytes = fetched.bytes.to_vec();
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 8;
            }
            fetched.bytes = bytes.into();
            Answer::Got(fetched)
        }
        (answer, _) => answer,
    }
}

fn name_of(fate: Fate) -> &'static str {
    match fate {
        Fate::Well => "store: well",
        Fate::Slow => "store: slow",
        Fate::Busy => "store: 429, 500 or 503",
        Fate::Denied => "store: forbids",
        Fate::Full => "store: full",
        Fate::RequestLost => "store: request lost",
        Fate::AnswerLost => "store: answer lost",
        Fate::AppliedUnknown => "store: failed after taking effect",
        Fate::UnknownThenApplied => "store: took effect after it had failed",
        Fate::Cut => "store: short body",
        Fate::Rotten => "store: rotten answer",
    }
}

/// The faults that the network can do.
pub fn faults() -> impl Iterator<Item = &'static str> {
    let fates = [
        Fate::Slow,
        Fate::Busy,
        Fate::Denied,
        Fate::Full,
        Fate::RequestLost,
        Fate::AnswerLost,
        Fate::AppliedUnknown,
        Fate::UnknownThenApplied,
        Fate::Cut,
        Fate::Rotten,
    ];
    let others = [
        "network: partition",
        "network: a put of the dead arrives",
        "network: a segment of the dead meets a seal or itself",
    ];
    fates.into_iter().map(name_of).chain(others)
}

struct Line {
    network: Arc<Network>,
    host: HostId,
}

impl Line {
    async fn ask(&self, request: Request) -> StoreResult<Answer> {
        let (sender, receiver) = oneshot::channel();
        drop(simulated::spawn_on(HostId(0), self.network.clone().carry(self.host, request, sender)));
        match receiver.await {
            Ok(answer) => answer,
            Err(_) => std::future::pending().await,
        }
    }
}

fn mixed_up() -> StoreError {
    StoreError::new(StoreErrorKind::Rejected, "the simulated store mixed up its answers")
}

#[async_trait]
impl Store for Line {
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        match self.ask(Request::Get(key.clone(), range)).await? {
            Answer::Got(fetched) => Ok(fetched),
            _ => Err(mixed_up()),
        }
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag> {
        match self.ask(Request::Put(key.clone(), body, condition)).await? {
            Answer::Put(etag) => Ok(etag),
            _ => Err(mixed_up()),
        }
    }

    async fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        self.ask(Request::Delete(key.clone())).await.map(drop)
    }

    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing> {
        match self.ask(Request::List(prefix.clone(), after.cloned())).await? {
            Answer::Listed(listing) => Ok(listing),
            _ => Err(mixed_up()),
        }
    }

    fn address(&self) -> &str {
        "simulated:"
    }
}

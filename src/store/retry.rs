//! Tries again, waits longer each time, and settles what became of a write whose outcome is unknown.
//!
//! Owns the policy: the delays (exponential, with jitter), the deadline of each try and the patience for the whole.
//! Nothing below retries, so that the tries are counted and bounded here alone.
//!
//! | kind of failure | what happens |
//! | --- | --- |
//! | `Unavailable`, `OutcomeUnknown` | tried again until patience ends |
//! | `Denied`, `NoStore`, `Full` | returned at once, unless the policy has a `refused_delay`: then tried again at that pace |
//! | `Malformed` | tried again a few times; rot in the store stays rot |
//! | `NotFound`, `PreconditionFailed`, `Rejected` | returned at once |
//!
//! # Settling
//! A `put` of which one try had an unknown outcome may have been applied. If a later try then fails its condition, the
//! object is read back and compared with the body (all of it, or for long ones the length and both ends, which in every
//! object of ours hold a random token and a checksum of the whole). Equal means that the earlier try was ours:
//! success. If patience ends, or a refusal comes, after such a try, the answer is `OutcomeUnknown`: never a definite error.
//! `PreconditionFailed` after such a try means: what is there now is not ours, and no try of ours can take
//! effect any more; but one may have been applied and then replaced by the one whose object was found.
//!
//! Deadlines: a try that runs out of time makes the next one's deadline twice as long, up to eight times, and for a long body there is more
//! patience, so that a slow line carries it in the end. A part that is fetched in pieces goes on where the last try ended, and there is more patience for
//! whatever has arrived. Dropping a request stops it; nothing runs on.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;

use super::meter::Counts;
use super::{
    Arrivals, ByteRange, Condition, ETag, Fetched, Listing, ObjectKey, Store, StoreError, StoreErrorKind, StoreResult,
};
use crate::clock;

/// Tries of a request whose answer is malformed. Cut bodies pass; rot does not, and is to be reported soon.
const MALFORMED_TRIES: u32 = 4;
/// For each so many bytes of a body, or of what has arrived in pieces, there is a second more of patience.
const BYTES_FOR_A_SECOND: u64 = 128 << 10;
/// How often the deadline of a try is doubled at most.
const DEADLINE_DOUBLINGS: u32 = 3;
/// Bodies up to this length are compared as a whole when settling.
const COMPARE_WHOLE_BYTES_MAX: u64 = 1 << 20;
/// Bytes compared at both ends of a longer body.
const COMPARE_END_BYTES: u64 = 4096;
/// Failed tries after which the log of the daemon mentions it (and again each time their number has doubled).
const TRIES_BEFORE_WARNING: u32 = 4;

/// How long to try, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Pause after the first failure; doubles from there, plus up to as much again at random.
    pub first_delay: Duration,
    /// Longest pause.
    pub delay_max: Duration,
    /// How long one try may take before it is given up.
    pub try_deadline: Duration,
    /// How long to go on altogether, and longer for long bodies and what arrives of them; `None`: for as long as it takes.
    pub patience: Option<Duration>,
    /// Pause after the store refused us (`Denied`, `NoStore`, `Full`); `None`: such a failure is returned at once.
    pub refused_delay: Option<Duration>,
}

impl Default for RetryPolicy {
    /// For requests that somebody waits for: 30 seconds, refusals at once.
    fn default() -> Self {
        RetryPolicy {
            first_delay: Duration::from_millis(50),
            delay_max: Duration::from_secs(5),
            try_deadline: Duration::from_secs(15),
            patience: Some(Duration::from_secs(30)),
            refused_delay: None,
        }
    }
}

impl RetryPolicy {
    /// For work in the background that must succeed in the end, such as uploads: no end, and refusals are outlasted.
    pub fn unlimited() -> Self {
        RetryPolicy {
            try_deadline: Duration::from_secs(30),
            patience: None,
            refused_delay: Some(Duration::from_secs(5)),
            ..RetryPolicy::default()
        }
    }
}

/// A store whose requests are tried again.
pub struct Retry {
    inner: Arc<dyn Store>,
    policy: RetryPolicy,
    counts: Arc<Counts>,
}

impl Retry {
    /// Tries requests to `inner` as `policy` says, and counts the further tries.
    pub fn new(inner: Arc<dyn Store>, policy: RetryPolicy, counts: Arc<Counts>) -> Self {
        Retry { inner, policy, counts }
    }

    /// Tries a request that may be repeated freely.
    async fn persist<T, F>(&self, what: &str, key: &ObjectKey, request: impl Fn() -> F) -> StoreResult<T>
    where
        F: Future<Output = StoreResult<T>>,
    {
        self.persist_within(&mut Tries::new(&self.policy, what, key, 0), request).await
    }

    async fn persist_within<T, F>(&self, tries: &mut Tries<'_>, request: impl Fn() -> F) -> StoreResult<T>
    where
        F: Future<Output = StoreResult<T>>,
    {
        loop {
            match tries.once(request(), StoreErrorKind::Unavailable).await {
                Ok(answer) => return Ok(answer),
                Err(error) => tries.pause_after(error).await?,
            }
            self.counts.retried();
        }
    }

    /// A body that is not as long as it should be must not pass for an answer, whatever stands below.
    async fn get_once(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        let fetched = self.inner.get(key, range).await?;
        let (length, object_length) = (fetched.bytes.len() as u64, fetched.object_length);
        if range.within(object_length).is_some_and(|(_, expected)| expected == length) {
            return Ok(fetched);
        }
        let message = format!("cannot read {key}: {length} bytes came for {range:?} of {object_length}");
        Err(StoreError::new(StoreErrorKind::Malformed, message))
    }

    /// Asks for what has not arrived yet.
    async fn get_rest(&self, key: &ObjectKey, offset: u64, rest: &Rest<'_>) -> StoreResult<()> {
        let arrived = rest.arrived();
        if arrived < rest.length {
            self.inner.get_in_pieces(key, offset + arrived, rest.length - arrived, rest).await?;
        }
        if rest.arrived() == rest.length {
            return Ok(());
        }
        let message = format!("cannot read {key}: {} bytes came for {} at {offset}", rest.arrived(), rest.length);
        Err(StoreError::new(StoreErrorKind::Malformed, message))
    }

    /// The version of the object if it holds `body`, else `None`.
    async fn find_ours(&self, tries: &mut Tries<'_>, key: &ObjectKey, body: &Bytes) -> StoreResult<Option<ETag>> {
        let length = body.len() as u64;
        let fetch = async |tries: &mut Tries<'_>, range| match self
            .persist_within(tries, || self.inner.get(key, range))
            .await
        {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        if length <= COMPARE_WHOLE_BYTES_MAX {
            // Of a longer object only the end is fetched; its length then tells it apart.
            let found = fetch(tries, ByteRange::Suffix(length.max(1))).await?;
            let ours = found.filter(|found| found.object_length == length && found.bytes == *body);
            return Ok(ours.map(|found| found.etag));
        }
        let Some(end) = fetch(tries, ByteRange::Suffix(COMPARE_END_BYTES)).await? else { return Ok(None) };
        if end.object_length != length || end.bytes[..] != body[body.len() - end.bytes.len()..] {
            return Ok(None);
        }
        let range = ByteRange::Part { offset: 0, length: COMPARE_END_BYTES };
        let Some(start) = fetch(tries, range).await? else { return Ok(None) };
        let same = start.etag == end.etag && body.starts_with(&start.bytes);
        Ok(same.then_some(end.etag))
    }
}

#[async_trait]
impl Store for Retry {
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        self.persist("read", key, || self.get_once(key, range)).await
    }

    async fn get_in_pieces(
        &self,
        key: &ObjectKey,
        offset: u64,
        length: u64,
        arrivals: &dyn Arrivals,
    ) -> StoreResult<()> {
        let rest = Rest { length, arrived: AtomicU64::new(0), arrivals };
        let mut tries = Tries::new(&self.policy, "read", key, 0);
        loop {
            let before = rest.arrived();
            match tries.once(self.get_rest(key, offset, &rest), StoreErrorKind::Unavailable).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tries.earn(rest.arrived() - before);
                    tries.pause_after(error).await?;
                }
            }
            self.counts.retried();
        }
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag> {
        let mut tries = Tries::new(&self.policy, "write", key, body.len() as u64);
        let mut unknown: Option<StoreError> = None;
        loop {
            let request = self.inner.put(key, body.clone(), condition.clone());
            let error = match tries.once(request, StoreErrorKind::OutcomeUnknown).await {
                Ok(etag) => return Ok(etag),
                Err(error) => error,
            };
            if let (StoreErrorKind::PreconditionFailed, Some(unknown)) = (&error.kind, &unknown) {
                return match self.find_ours(&mut tries, key, &body).await {
                    Ok(Some(etag)) => {
                        tracing::debug!(%key, "an earlier try took effect");
                        Ok(etag)
                    }
                    Ok(None) => Err(error),
                    Err(reading) => Err(undecided(unknown, &reading)),
                };
            }
            if error.kind == StoreErrorKind::OutcomeUnknown {
                unknown = Some(error.clone());
            }
            if let Err(last) = tries.pause_after(error).await {
                return Err(match unknown {
                    Some(unknown) if last.kind != StoreErrorKind::OutcomeUnknown => undecided(&unknown, &last),
                    _ => last,
                });
            }
            self.counts.retried();
        }
    }

    async fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        self.persist("delete", key, || self.inner.delete(key)).await
    }

    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing> {
        self.persist("list", prefix, || self.inner.list(prefix, after)).await
    }

    fn address(&self) -> &str {
        self.inner.address()
    }
}

/// What is still to come of a part that is fetched in pieces: a further try asks for no more than that.
struct Rest<'a> {
    length: u64,
    arrived: AtomicU64,
    arrivals: &'a dyn Arrivals,
}

impl Rest<'_> {
    fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

impl Arrivals for Rest<'_> {
    fn take(&self, mut bytes: Bytes) {
        let before = self.arrived.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        // More than was asked for is an error, and none of it is passed on.
        bytes.truncate(usize::try_from(self.length.saturating_sub(before)).unwrap_or(usize::MAX));
        self.arrivals.take(bytes);
    }
}

/// A definite error after a try whose outcome is not known decides nothing.
fn undecided(unknown: &StoreError, last: &StoreError) -> StoreError {
    let message = format!("{}; whether an earlier try took effect is not known ({})", last.message, unknown.message);
    StoreError::new(StoreErrorKind::OutcomeUnknown, message)
}

/// The tries of one request.
struct Tries<'a> {
    policy: &'a RetryPolicy,
    what: &'a str,
    key: &'a ObjectKey,
    patience: Option<Duration>,
    began: Duration,
    failed: u32,
    malformed: u32,
    timeouts: u32,
    delays: ExponentialBackoff,
}

impl<'a> Tries<'a> {
    /// Of a request with a body of so many bytes.
    fn new(policy: &'a RetryPolicy, what: &'a str, key: &'a ObjectKey, bytes: u64) -> Self {
        let delays = ExponentialBuilder::new()
            .with_min_delay(policy.first_delay)
            .with_max_delay(policy.delay_max)
            .without_max_times()
            .with_jitter()
            .with_jitter_seed(clock::random_u64())
            .build();
        let patience = policy.patience.map(|patience| patience + Duration::from_secs(bytes / BYTES_FOR_A_SECOND));
        let began = clock::running();
        Tries { policy, what, key, patience, began, failed: 0, malformed: 0, timeouts: 0, delays }
    }

    /// There is more patience for what has moved by so many bytes.
    fn earn(&mut self, bytes: u64) {
        let earned = Duration::from_secs_f64(bytes as f64 / BYTES_FOR_A_SECOND as f64);
        self.patience = self.patience.map(|patience| patience + earned);
    }

    fn elapsed(&self) -> Duration {
        clock::running().saturating_sub(self.began)
    }

    /// One try, within its deadline; `late` is the kind of failure if it takes longer.
    async fn once<T>(&mut self, request: impl Future<Output = StoreResult<T>>, late: StoreErrorKind) -> StoreResult<T> {
        let own = self.policy.try_deadline.saturating_mul(1 << self.timeouts.min(DEADLINE_DOUBLINGS));
        let left = self.patience.map(|patience| patience.saturating_sub(self.elapsed()));
        let deadline = left.map_or(own, |left| own.min(left));
        match clock::timeout(deadline, request).await {
            Ok(answer) => {
                if answer.is_ok() && self.failed >= TRIES_BEFORE_WARNING {
                    tracing::info!("the store works again: {self}");
                }
                answer
            }
            Err(_) => {
                self.timeouts += 1;
                let message = format!("cannot {} {}: no answer within {deadline:.1?}", self.what, self.key);
                Err(StoreError::new(late, message))
            }
        }
    }

    /// Waits until the next try is due, or returns the error if there is to be none.
    async fn pause_after(&mut self, error: StoreError) -> StoreResult<()> {
        self.failed += 1;
        let delay = match error.kind {
            StoreErrorKind::Unavailable | StoreErrorKind::OutcomeUnknown => self.delays.next(),
            StoreErrorKind::Malformed => {
                self.malformed += 1;
                self.delays.next().filter(|_| self.malformed < MALFORMED_TRIES)
            }
            StoreErrorKind::Denied | StoreErrorKind::NoStore | StoreErrorKind::Full => self.policy.refused_delay,
            StoreErrorKind::NotFound | StoreErrorKind::PreconditionFailed | StoreErrorKind::Rejected => None,
        };
        let Some(delay) = delay else { return Err(error) };
        if self.patience.is_some_and(|patience| self.elapsed() + delay >= patience) {
            let message = format!("{} ({self})", error.message);
            return Err(StoreError::new(error.kind, message));
        }
        if self.failed >= TRIES_BEFORE_WARNING && self.failed.is_power_of_two() {
            tracing::warn!(%error, "trying again: {self}");
        } else {
            tracing::debug!(%error, "trying again: {self}");
        }
        clock::sleep(delay).await;
        Ok(())
    }
}

impl fmt::Display for Tries<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed().as_secs_f64();
        write!(f, "{} {}, {} tries failed in {seconds:.1} s", self.what, self.key, self.failed)
    }
}

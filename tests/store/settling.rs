//! Trying again, and settling what became of a write, with a policy in milliseconds instead of seconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use varve::store::{
    ByteRange, Condition, Counts, ETag, Effect, Faults, Gate, Matching, MemoryStore, Meter, ObjectKey, Operation,
    Retry, RetryPolicy, Store, StoreErrorKind,
};
use varve::units::VolumeId;

const LONG: usize = 3 << 20;

struct World {
    bare: Arc<MemoryStore>,
    faults: Faults,
    counts: Arc<Counts>,
    store: Arc<dyn Store>,
}

fn world_with(policy: RetryPolicy) -> World {
    let (bare, faults, counts) = (Arc::new(MemoryStore::new()), Faults::new(), Arc::new(Counts::default()));
    let metered: Arc<dyn Store> = Arc::new(Meter::new(faults.wrap(bare.clone()), counts.clone()));
    let store = Arc::new(Retry::new(metered, policy, counts.clone()));
    World { bare, faults, counts, store }
}

/// The default policy, a hundred times as fast.
fn quick() -> RetryPolicy {
    RetryPolicy {
        first_delay: Duration::from_micros(500),
        delay_max: Duration::from_millis(10),
        try_deadline: Duration::from_millis(150),
        patience: Some(Duration::from_secs(20)),
        refused_delay: None,
    }
}

fn impatient() -> RetryPolicy {
    RetryPolicy { patience: Some(Duration::from_millis(200)), ..quick() }
}

fn world() -> World {
    world_with(quick())
}

fn key() -> ObjectKey {
    ObjectKey::manifest(VolumeId(1))
}

fn puts() -> Matching {
    Matching::operation(Operation::Put)
}

fn gets() -> Matching {
    Matching::operation(Operation::Get)
}

fn body(text: &str, length: usize) -> Bytes {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(length, b'.');
    bytes.into()
}

impl World {
    async fn create(&self, body: &Bytes) -> Result<ETag, StoreErrorKind> {
        self.store.put(&key(), body.clone(), Condition::IfAbsent).await.map_err(|error| error.kind)
    }

    async fn content(&self) -> (Bytes, ETag) {
        let found = self.bare.get(&key(), ByteRange::Full).await.unwrap();
        (found.bytes, found.etag)
    }
}

#[tokio::test]
async fn a_write_that_was_applied_without_an_answer_succeeds() {
    for length in [0, 1, 100, 1 << 20, (1 << 20) + 1, LONG] {
        let world = world();
        world.faults.inject(puts(), Effect::FailAfter(StoreErrorKind::OutcomeUnknown), 1);
        let etag = world.create(&body("", length)).await.unwrap();
        assert_eq!(world.content().await, (body("", length), etag));
        let counts = world.counts.snapshot();
        assert_eq!((counts.puts, counts.retries), (2, 1));
        assert!(counts.get_bytes <= 1 << 20, "settling must not read long objects back as a whole");
    }
}

#[tokio::test]
async fn a_replacement_that_was_applied_without_an_answer_succeeds() {
    let world = world();
    let first = world.create(&body("first", 100)).await.unwrap();
    world.faults.inject(puts(), Effect::FailAfter(StoreErrorKind::OutcomeUnknown), 1);
    let second = world.store.put(&key(), body("second", 100), Condition::IfMatch(first)).await.unwrap();
    assert_eq!(world.content().await, (body("second", 100), second));
}

#[tokio::test]
async fn a_write_that_was_not_applied_is_repeated() {
    let world = world();
    world.faults.inject(puts(), Effect::FailBefore(StoreErrorKind::OutcomeUnknown), 3);
    let etag = world.create(&body("ours", 100)).await.unwrap();
    assert_eq!(world.content().await, (body("ours", 100), etag));
    assert_eq!(world.counts.snapshot().retries, 3);
}

#[tokio::test]
async fn a_slow_line_carries_a_long_body_in_the_end() {
    let (slow, never) = (Effect::Delay(Duration::from_millis(500)), Effect::HoldBefore(Gate::closed()));
    for (length, line, expected) in [(100, never, Err(StoreErrorKind::OutcomeUnknown)), (LONG, slow, Ok(()))] {
        let world = world_with(RetryPolicy { patience: Some(Duration::from_millis(300)), ..quick() });
        world.faults.inject(puts(), line, 100);
        assert_eq!(world.create(&body("slow", length)).await.map(drop), expected);
    }
}

#[tokio::test]
async fn somebody_elses_object_is_not_taken_for_ours() {
    let mut end_differs = body("same", LONG).to_vec();
    end_differs[LONG - 1] ^= 1;
    for (ours, theirs) in [
        (body("ours", 100), body("theirs", 100)),
        (body("same", 100), body("same", 101)),
        (body("same", 100), body("same", 99)),
        (body("same", 100), body("", 0)),
        (body("", 0), body("same", 100)),
        (body("ours", LONG), body("theirs", LONG)),
        (body("same", LONG), body("same", LONG + 1)),
        (body("same", LONG), end_differs.into()),
    ] {
        let world = world();
        world.bare.put(&key(), theirs.clone(), Condition::IfAbsent).await.unwrap();
        world.faults.inject(puts(), Effect::FailBefore(StoreErrorKind::OutcomeUnknown), 1);
        assert_eq!(world.create(&ours).await, Err(StoreErrorKind::PreconditionFailed));
        assert!(world.content().await.0 == theirs);
    }
}

#[tokio::test]
async fn an_object_that_vanished_is_not_taken_for_ours() {
    let world = world();
    let first = world.create(&body("first", 100)).await.unwrap();
    world.bare.delete(&key()).await.unwrap();
    world.faults.inject(puts(), Effect::FailBefore(StoreErrorKind::OutcomeUnknown), 1);
    let replaced = world.store.put(&key(), body("second", 100), Condition::IfMatch(first)).await;
    assert_eq!(replaced.unwrap_err().kind, StoreErrorKind::PreconditionFailed);
}

#[tokio::test]
async fn without_doubt_a_failed_condition_is_final() {
    let world = world();
    let same = body("same", 100);
    world.create(&same).await.unwrap();
    assert_eq!(world.create(&same).await, Err(StoreErrorKind::PreconditionFailed));
    assert_eq!(world.faults.count(&gets()), 0, "nothing is read back when no try was in doubt");
}

#[tokio::test]
async fn a_write_in_doubt_never_ends_with_a_definite_error() {
    for last in [StoreErrorKind::Unavailable, StoreErrorKind::Denied, StoreErrorKind::Full, StoreErrorKind::Rejected] {
        let world = world_with(impatient());
        world.faults.inject(puts(), Effect::FailAfter(StoreErrorKind::OutcomeUnknown), 1);
        world.faults.inject(puts(), Effect::FailBefore(last), 1000);
        assert_eq!(world.create(&body("ours", 100)).await, Err(StoreErrorKind::OutcomeUnknown));
        assert_eq!(world.content().await.0, body("ours", 100));
    }
    // Nor if it cannot be read back.
    let world = world_with(impatient());
    world.faults.inject(puts(), Effect::FailAfter(StoreErrorKind::OutcomeUnknown), 1);
    world.faults.inject(gets(), Effect::FailBefore(StoreErrorKind::Denied), 1);
    assert_eq!(world.create(&body("ours", 100)).await, Err(StoreErrorKind::OutcomeUnknown));
}

#[tokio::test]
async fn a_definite_error_stays_definite() {
    for kind in [StoreErrorKind::Denied, StoreErrorKind::NoStore, StoreErrorKind::Full, StoreErrorKind::Rejected] {
        let world = world();
        world.faults.inject(Matching::any(), Effect::FailBefore(kind.clone()), 2);
        assert_eq!(world.create(&body("ours", 100)).await, Err(kind.clone()));
        assert_eq!(world.store.get(&key(), ByteRange::Full).await.unwrap_err().kind, kind);
        assert_eq!(world.counts.snapshot().retries, 0);
    }
}

#[tokio::test]
async fn a_write_that_arrives_late_changes_nothing() {
    let world = world();
    let first = world.create(&body("first", 100)).await.unwrap();
    let gate = Gate::closed();
    world.faults.inject(puts(), Effect::ApplyLate(gate.clone()), 1);
    let second = world.store.put(&key(), body("second", 100), Condition::IfMatch(first)).await.unwrap();
    let third = world.store.put(&key(), body("third", 100), Condition::IfMatch(second)).await.unwrap();
    gate.arrived(1).await;
    gate.open();
    gate.finished(1).await;
    assert_eq!(world.content().await, (body("third", 100), third));
}

#[tokio::test]
async fn an_outage_is_ridden_out() {
    let world = world_with(RetryPolicy { patience: None, refused_delay: Some(Duration::from_millis(5)), ..quick() });
    world.faults.outage(Some(StoreErrorKind::Unavailable));
    let (store, ours) = (world.store.clone(), body("ours", 100));
    let writer = tokio::spawn(async move { store.put(&key(), ours, Condition::IfAbsent).await });
    for kind in [StoreErrorKind::Unavailable, StoreErrorKind::Denied, StoreErrorKind::NoStore, StoreErrorKind::Full] {
        world.faults.outage(Some(kind));
        let before = world.faults.count(&puts());
        while world.faults.count(&puts()) < before + 10 {
            tokio::task::yield_now().await;
        }
        assert!(!writer.is_finished());
    }
    world.faults.outage(None);
    let etag = writer.await.unwrap().unwrap();
    assert_eq!(world.content().await, (body("ours", 100), etag));
}

#[tokio::test]
async fn patience_has_an_end() {
    let world = world_with(RetryPolicy { patience: Some(Duration::from_secs(2)), ..quick() });
    world.faults.outage(Some(StoreErrorKind::Unavailable));
    let began = Instant::now();
    let error = world.store.get(&key(), ByteRange::Full).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.message.contains("tries failed in"), "{error}");
    // It ends when the next pause, of 20 ms at most, would reach beyond.
    assert!(began.elapsed() >= Duration::from_millis(1970), "{:?}", began.elapsed());
    let tries = world.counts.snapshot().gets;
    assert!(tries <= 400, "{tries} tries: pauses must grow");
}

#[tokio::test]
async fn a_hanging_request_is_given_up_and_repeated() {
    let world = world();
    world.faults.inject(puts(), Effect::HoldAfter(Gate::closed()), 1);
    let etag = world.create(&body("ours", 100)).await.unwrap();
    world.faults.inject(gets(), Effect::HoldBefore(Gate::closed()), 1);
    let began = Instant::now();
    assert_eq!(world.store.get(&key(), ByteRange::Full).await.unwrap().etag, etag);
    assert!(began.elapsed() >= quick().try_deadline);
}

#[tokio::test]
async fn a_slow_line_gets_more_time_with_each_try() {
    let policy = RetryPolicy { patience: None, try_deadline: Duration::from_millis(100), ..quick() };
    let world = world_with(policy);
    // Three run out of time however late their deadlines are noticed.
    world.faults.inject(puts(), Effect::HoldBefore(Gate::closed()), 3);
    // With less than twice as much each time this one would too, and a fifth would succeed.
    world.faults.inject(puts(), Effect::Delay(Duration::from_millis(600)), 1);
    let began = Instant::now();
    world.create(&body("ours", 100)).await.unwrap();
    assert_eq!(world.counts.snapshot().puts, 4, "100, 200, 400 and then up to 800 ms");
    assert!(began.elapsed() >= Duration::from_millis(100 + 200 + 400 + 600), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_cut_body_is_fetched_again_but_not_for_ever() {
    let world = world();
    world.create(&body("ours", 100)).await.unwrap();
    world.faults.inject(gets(), Effect::Truncate(99), 2);
    assert_eq!(world.store.get(&key(), ByteRange::Full).await.unwrap().bytes, body("ours", 100));
    world.faults.inject(gets(), Effect::Truncate(0), 1000);
    world.faults.clear_log();
    let range = ByteRange::Part { offset: 10, length: 10 };
    assert_eq!(world.store.get(&key(), range).await.unwrap_err().kind, StoreErrorKind::Malformed);
    assert_eq!(world.faults.count(&gets()), 4);
}

#[tokio::test]
async fn faults_can_be_aimed_and_are_logged() {
    let world = world();
    let other = ObjectKey::store_root();
    world.faults.inject(puts().on("varve.json"), Effect::FailBefore(StoreErrorKind::Rejected), 1);
    world.create(&body("ours", 100)).await.unwrap();
    assert!(world.store.put(&other, body("", 1), Condition::IfAbsent).await.is_err());
    world.faults.inject(gets(), Effect::Flip(3), 1);
    let flipped = world.store.get(&key(), ByteRange::Full).await.unwrap().bytes;
    assert_eq!(flipped[3], !body("ours", 100)[3]);
    world.store.list(&ObjectKey::everything(), None).await.unwrap();
    world.store.delete(&key()).await.unwrap();
    assert_eq!(world.faults.count(&Matching::any()), 5);
    assert_eq!(world.faults.count(&puts().on("varve")), 1);
    assert_eq!(world.faults.round_trips(), 5);
    world.faults.clear_log();
    let ours = body("a", 1);
    let together = tokio::join!(world.create(&ours), world.store.get(&other, ByteRange::Full));
    assert!(together.0.is_ok() && together.1.is_err());
    assert_eq!(world.faults.log().len(), 2);
    let counts = world.counts.snapshot();
    assert_eq!((counts.gets, counts.puts, counts.deletes, counts.lists, counts.retries), (2, 3, 1, 1, 0));
    assert_eq!((counts.get_bytes, counts.put_bytes), (100, 102));
}

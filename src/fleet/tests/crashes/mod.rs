//! A crash at every request to the store that a command of the family makes: the process dies there, or the store is gone for it from there on, or
//! only that request fails. Each before and after the request has had its effect. Whoever comes next finds the state of before or of
//! after; `check` and a purge name and remove what is left; and then the store holds nothing that nothing refers to.

use super::*;
use crate::admin::purge;
use crate::clock;
use crate::lineage::{self, Remnant};
use crate::ownership;
use crate::store::{Counts, Effect, Gate, Matching, ObjectKey, Retry, RetryPolicy, StoreErrorKind, list_all};
use crate::units::UnixMillis;

mod commands;
mod family;
mod walk;

use family::{Base, Family};
use walk::{shown, unreachable_objects, view};

const HOUR: u64 = 3_600_000;

/// How a process and its store part at a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The process dies.
    KilledBefore,
    KilledAfter,
    /// The store is gone for this process, which learns it, and dies soon.
    DeadBefore,
    DeadAfter,
    /// Only this request fails.
    OnceBefore,
    OnceAfter,
}

const CUTS: [Cut; 6] =
    [Cut::KilledBefore, Cut::KilledAfter, Cut::DeadBefore, Cut::DeadAfter, Cut::OnceBefore, Cut::OnceAfter];

/// Failures that a process is told before it dies.
const FAILURES_TOLD: usize = 20;

impl Cut {
    /// Lets `passed` requests pass, and cuts then. The gate is where requests wait that come too late.
    fn order(self, faults: &Faults, passed: usize) -> Gate {
        let gate = Gate::closed();
        faults.clear();
        faults.clear_log();
        let order = |effect, count| faults.inject(Matching::any(), effect, count);
        order(Effect::Delay(Duration::ZERO), passed);
        match self {
            Cut::KilledBefore => {}
            Cut::KilledAfter => order(Effect::HoldAfter(gate.clone()), 1),
            Cut::DeadBefore | Cut::OnceBefore => order(Effect::FailBefore(StoreErrorKind::Unavailable), 1),
            Cut::DeadAfter | Cut::OnceAfter => order(Effect::FailAfter(StoreErrorKind::OutcomeUnknown), 1),
        }
        match self {
            Cut::OnceBefore | Cut::OnceAfter => {}
            Cut::KilledBefore | Cut::KilledAfter => order(Effect::HoldBefore(gate.clone()), usize::MAX),
            Cut::DeadBefore | Cut::DeadAfter => {
                order(Effect::FailBefore(StoreErrorKind::Unavailable), FAILURES_TOLD);
                order(Effect::HoldBefore(gate.clone()), usize::MAX);
            }
        }
        gate
    }
}

/// A world with a family in it, as it was built once. What the engine asks of the store is tried again, as in the daemon.
fn world_of(base: &Base) -> (World, Arc<dyn Store>) {
    let bare = base.copy();
    let faults = Faults::new();
    let policy = RetryPolicy {
        first_delay: Duration::from_millis(1),
        delay_max: Duration::from_millis(2),
        ..RetryPolicy::default()
    };
    let store = Arc::new(Retry::new(faults.wrap(bare.clone()), policy, Arc::new(Counts::default())));
    (World { directory: folder(), store, faults, memory_size: ByteLen(32 << 20) }, bare)
}

/// In memory if that is possible: hundreds of daemons are started, and none of them loses power.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// What is on the store after a command that nothing disturbed, and after the one before it.
struct Known {
    /// What people see: before, after, and what may be seen of a command that ended half-way.
    views: Vec<Vec<String>>,
    /// What nothing refers to, also when all goes well: what was written over, and older maps.
    garbage: Vec<Vec<String>>,
}

/// Looks at the store after a cut, cleans it, and looks again.
async fn judge(bare: &Arc<dyn Store>, family: &Family, known: &Known, what: &str) {
    let seen = view(bare, family).await;
    assert!(known.views.contains(&seen), "{what}: neither old nor new:\n{seen:#?}\nof\n{:#?}", known.views);
    let before: Vec<String> = names(bare).await;
    let named = clean(bare, what).await;
    let after = view(bare, family).await;
    let kept = |lines: &[String]| lines.iter().filter(|line| shown(line)).cloned().collect::<Vec<_>>();
    assert_eq!(kept(&after), kept(&seen), "{what}: cleaning changed what people see");
    let left = names(bare).await;
    for name in before.iter().filter(|name| !left.contains(name)) {
        assert!(named.iter().any(|part| name.contains(part)), "{what}: nothing names {name}, which went: {named:?}");
    }
    let garbage = unreachable_objects(bare, family).await;
    assert!(
        known.garbage.contains(&garbage),
        "{what}: nothing refers to\n{garbage:#?}\nand at best\n{:#?}",
        known.garbage
    );
}

async fn names(store: &Arc<dyn Store>) -> Vec<String> {
    let objects = list_all(&**store, &ObjectKey::everything()).await.unwrap();
    objects.into_iter().map(|object| object.key.to_string()).collect()
}

async fn remnants(store: &Arc<dyn Store>) -> Vec<Remnant> {
    let mut manifests = std::collections::BTreeMap::new();
    for (id, loaded) in ownership::list(&**store).await.unwrap() {
        manifests.insert(id, loaded.unwrap().manifest);
    }
    lineage::remnants(&**store, &manifests, None).await.unwrap()
}

/// Does what `check --clean` and `store sweep` do two hours later, and a purge a day later. Returns the names of all that was said to be left: of
/// objects, of the volumes that were destroyed or never made, and of those without a manifest.
async fn clean(store: &Arc<dyn Store>, what: &str) -> Vec<String> {
    let (soon, later) = (UnixMillis(clock::now().0 + 2 * HOUR), UnixMillis(clock::now().0 + 25 * HOUR));
    let mut named = Vec::new();
    for remnant in remnants(store).await {
        named.push(remnant.describe().0);
        let early = lineage::put_right(&**store, &remnant, clock::now()).await.unwrap();
        assert!(!early, "{what}: {remnant:?} may be under way, and was put right");
        let is_right = lineage::put_right(&**store, &remnant, soon).await.unwrap();
        assert!(is_right || matches!(remnant, Remnant::Unmade { .. }), "{what}: {remnant:?} stays");
    }
    for (id, loaded) in ownership::list(&**store).await.unwrap() {
        if loaded.unwrap().manifest.destroyed_at.is_some() {
            named.push(id.to_string());
        }
    }
    named.extend(ownership::leftovers(&**store).await.unwrap().iter().map(ToString::to_string));
    let swept = purge::sweep(&**store, later).await.unwrap();
    assert!(swept.failures.is_empty(), "{what}: {swept:?}");
    // What only a fork that was never made has kept is dead by now.
    let left_over = Admin::new(store.clone()).sweep_at(false, soon).await.unwrap();
    assert!(left_over.failures.is_empty(), "{what}: {left_over:?}");
    named.extend(left_over.objects.into_iter().map(|object| object.key));
    let left = remnants(store).await;
    assert!(left.is_empty(), "{what}: still left: {left:?}");
    let again = purge::sweep(&**store, later).await.unwrap();
    assert!(again.purged.is_empty() && again.leftovers.is_empty(), "{what}: a second purge found {again:?}");
    named
}

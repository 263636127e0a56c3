//! Running histories: many at a time, or one to be read.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use rand::RngExt;
use varve::work::simulated;

use super::blows::BLOWS;
use super::journal::{self, Journal, Listener};
use super::world::{Broken, World};
use super::{disk, network};

/// Seeds that found something, when the engine and the world were as they were then.
pub const KEPT: &[(u64, &str)] = &[
    (2279, "a command of a client of before may come to a volume that is destroyed by now"),
    (4408, "a flush that waited for the end of a doubt promises what is promised then"),
    (8733, "clients of before are cut off, too"),
    (9971, "a volume that was rolled back has owners of before"),
    (10403, "an owner that was put out and cut off answered an attachment as if all were well"),
    (13896, "a fork that is asked for late has a later size"),
    (18233, "zeros over parts of two blocks are two records"),
    (22795, "rot stays when the same attachment is asked for again"),
    (23263, "a volume was handed back although the log could not be read"),
    (23592, "the same, with a snapshot under way"),
    (26147, "the same, with a clock that stands still"),
    (32171, "the same"),
    (38701, "the same"),
    (41915, "rot is found by a later attachment"),
    (45500, "rot concerns clients of before, too"),
    (302848, "a change that needed more room than the log keeps free waited for ever"),
    (600456, "whoever waited for room in a log whose disk failed was never told"),
    (403430, "a snapshot that is asked for in doubt is one of its end"),
    (301090, "an owner that was put out took what the next one had deleted for damage when it cleaned"),
    (302179, "the same"),
    (302884, "the same"),
    (303007, "the same, and asked for it again and again"),
    (303924, "the same"),
    (306409, "the same"),
    (306505, "the same"),
    (701849, "a prefetch did not look again for what had moved, nor asked who the owner is"),
    (
        708931,
        "an old log of which both superblocks had rotted was in the way of attaching for good, even with --takeover",
    ),
    (713256, "an owner that was put out missed an object when it wrote a checkpoint, and took that for damage"),
    (722179, "the same, with a census"),
    (
        728866,
        "hints that came into doubt while the books were being read were never out of it, and cleaning had no end",
    ),
    (737670, "whoever waited for a checkpoint that failed was told that the volume was stopping, and not why"),
    (
        750503,
        "what died while the objects of a volume were counted was taken for dead before: a snapshot lost a segment",
    ),
    (766816, "an owner that was put out missed a segment, could not ask whose the volume is, and called it damage"),
    (797547, "a fork may let go of its origin behind the sweep that finds the origin pinned"),
    (821383, "a segment that could not be looked at after a crash was taken for looked at, and stayed for ever"),
    (916087, "the store's clock is put forward while volumes are purged, and what is put then seems to be of tomorrow"),
    (937106, "a write that waited over a suspension was appended before others and answered after them"),
    (1017115, "a read of before an attachment is asked for again sees what clients write after that"),
    (
        9058954,
        "of a volume whose objects were listed, since its census was damaged, nothing is ever taken for left over",
    ),
    (7002811, "a volume that was removed for good was created again by a request that was under way for a day"),
];

/// Which histories are to be run.
pub struct Plan {
    pub from: u64,
    pub count: u64,
    pub shows: bool,
}

impl Plan {
    /// What the environment asks for, and whether it does: `VARVE_TEST_SEED` for one history, shown line by line; `VARVE_TEST_SEEDS` and
    /// `VARVE_TEST_FROM` for as many as wanted.
    pub fn chosen(count: u64) -> (Plan, bool) {
        let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
        if let Some(from) = number("VARVE_TEST_SEED") {
            return (Plan { from, count: 1, shows: true }, true);
        }
        match number("VARVE_TEST_SEEDS") {
            Some(count) => (Plan { from: number("VARVE_TEST_FROM").unwrap_or(0), count, shows: false }, true),
            None => (Plan { from: 0, count, shows: false }, false),
        }
    }
}

/// What a history came to.
pub struct Outcome {
    pub digest: (u64, u64),
    pub hits: BTreeMap<&'static str, u64>,
    pub failure: Option<String>,
}

#[derive(Default)]
pub struct Done {
    pub histories: u64,
    pub seconds: f64,
    pub hits: BTreeMap<&'static str, u64>,
    pub failed: BTreeMap<u64, String>,
}

/// Runs one history.
pub fn history(seed: u64, shows: bool) -> Outcome {
    history_with(seed, shows, None, Broken::default())
}

/// What a history takes at most, of the real clock: far more than any that ends, on whatever machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// Says which history has no end, and ends the process, unless what this returns is dropped before: a task that never waits for anything
/// cannot be stopped otherwise.
fn watch(seed: u64) -> mpsc::Sender<()> {
    let (running, stopped) = mpsc::channel();
    std::thread::spawn(move || {
        if stopped.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("seed {seed} has not ended after {PATIENCE:?}");
            std::process::abort();
        }
    });
    running
}

/// Runs one history in a world with deliberate bugs.
pub fn history_with(seed: u64, shows: bool, mutation: Option<simulated::Mutation>, broken: Broken) -> Outcome {
    let _running = watch(seed);
    let journal = Journal::new(shows);
    let told = journal.clone();
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let world = simulated::World::begin(seed, mutation);
        tracing::subscriber::with_default(Listener(told.clone()), || {
            world.run(async move {
                let mut world = World::begin(seed, told, broken).await;
                world.stir();
                for _ in 0..world.random.random_range(60..240) {
                    world.act().await;
                }
                world.end().await;
            });
        });
        tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || drop(world));
    }));
    let failure = result.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    });
    Outcome { digest: journal.digest(), hits: journal.hits(), failure }
}

/// Runs histories on all cores.
pub fn run(plan: &Plan) -> Done {
    let began = std::time::Instant::now();
    let next = AtomicU64::new(plan.from);
    let end = plan.from + plan.count;
    let done = Mutex::new(Done::default());
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || done.lock().unwrap().failed.len() > 10 {
                        return;
                    }
                    let outcome = history(seed, plan.shows);
                    let mut done = done.lock().unwrap();
                    done.histories += 1;
                    if done.histories.is_multiple_of(5000) {
                        let seconds = began.elapsed().as_secs_f64();
                        println!("{} histories in {seconds:.0} s, {} failed", done.histories, done.failed.len());
                    }
                    if let Some(failure) = &outcome.failure {
                        println!("seed {seed} failed: {}", failure.lines().next().unwrap_or_default());
                    }
                    outcome.hits.iter().for_each(|(what, count)| *done.hits.entry(what).or_default() += count);
                    done.failed.extend(outcome.failure.map(|failure| (seed, failure)));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.seconds = began.elapsed().max(Duration::from_millis(1)).as_secs_f64();
    done
}

/// All that should have been met at least once.
fn wanted() -> impl Iterator<Item = &'static str> {
    let others = [
        "recovery: replay of the log",
        "recovery: after a detach",
        "owner: detached",
        "owner: a second one is refused",
        "owner: a late one goes on",
        "family: growth",
        "family: fork",
        "family: a snapshot is verified",
        "family: a snapshot is destroyed",
        "family: a volume is rolled back",
        "family: a volume is destroyed",
        "family: a volume is purged",
        "family: a fork hydrates",
        "family: a fork of the past",
        "family: a past that is over",
        "client: waits for a change",
        "clean: nothing is left over",
    ];
    BLOWS
        .iter()
        .copied()
        .chain(disk::FAULTS.iter().copied())
        .chain(network::faults())
        .chain(journal::branches())
        .chain(others)
}

pub fn missed(hits: &BTreeMap<&'static str, u64>) -> Vec<&'static str> {
    wanted().filter(|what| !hits.contains_key(what)).collect()
}

/// How often what was met.
pub fn table(hits: &BTreeMap<&'static str, u64>) -> String {
    let mut all: BTreeMap<&str, u64> = wanted().map(|what| (what, 0)).collect();
    all.extend(hits.iter().map(|(what, count)| (*what, *count)));
    all.iter().map(|(what, count)| format!("{count:>9}  {what}\n")).collect()
}

pub fn failures(failed: &BTreeMap<u64, String>) -> String {
    let lines: Vec<String> = failed.iter().map(|(seed, failure)| format!("seed {seed}: {failure}")).collect();
    let (count, text) = (failed.len(), lines.join("\n"));
    format!("{count} histories failed; VARVE_TEST_SEED=<seed> shows one line by line\n{text}")
}

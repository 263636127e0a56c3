//! The whole engine in a simulated world: hosts that die, pause and lose touch, disks and a store that fail, over a thousand and more
//! histories. One seed is one exact history; `design/simulation.md` says what is simulated and what is checked.
#![cfg(test)]

#[path = "simulation/acts.rs"]
mod acts;
#[path = "simulation/attach.rs"]
mod attach;
#[path = "simulation/blows.rs"]
mod blows;
#[path = "simulation/client.rs"]
mod client;
#[path = "simulation/commands.rs"]
mod commands;
#[path = "simulation/disk.rs"]
mod disk;
#[path = "simulation/finale.rs"]
mod finale;
#[path = "simulation/host.rs"]
mod host;
#[path = "simulation/journal.rs"]
mod journal;
#[path = "simulation/layout.rs"]
mod layout;
#[path = "simulation/mutants.rs"]
mod mutants;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/past.rs"]
mod past;
#[path = "simulation/points.rs"]
mod points;
#[path = "simulation/record.rs"]
mod record;
#[path = "simulation/runs.rs"]
mod runs;
#[path = "simulation/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use runs::{Plan, history, run};

/// Histories of a test run.
const HISTORIES: u64 = 2000;
/// Histories that are run twice.
const TWICE: u64 = 25;

#[test]
fn the_engine_survives_power_loss_death_and_loss_of_the_host() {
    let (plan, is_chosen) = Plan::chosen(HISTORIES);
    let done = run(&plan);
    println!("{}", runs::table(&done.hits));
    assert!(done.failed.is_empty(), "{}", runs::failures(&done.failed));
    println!("{} histories in {:.1} s", done.histories, done.seconds);
    let missed = runs::missed(&done.hits);
    assert!(is_chosen || missed.is_empty(), "never met in {} histories: {missed:?}", done.histories);
}

#[test]
fn seeds_that_found_something_pass() {
    let failed = all_cores(
        runs::KEPT,
        |(seed, _)| assert_eq!(history(*seed, false).failure, None),
        |(seed, found)| format!("seed {seed}, which found that {found}"),
    );
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn one_seed_is_one_history() {
    let digests: Vec<BTreeMap<u64, (u64, u64)>> =
        (0..2).map(|_| (0..TWICE).map(|seed| (seed, history(seed, false).digest)).collect()).collect();
    assert_eq!(digests[0], digests[1]);
    let different: std::collections::BTreeSet<_> = digests[0].values().collect();
    assert_eq!(different.len() as u64, TWICE, "and another seed is another history");
}

/// Points and endings that are tried at least.
const POINTS_MIN: usize = 500;
const ENDINGS_MIN: usize = 5000;
/// Requests that fail, or lose their answers, at least.
const REQUESTS_MIN: usize = 300;

/// Runs jobs on all cores, and returns what they panicked with.
fn all_cores<T: Sync>(jobs: &[T], run: impl Fn(&T) + Sync, name: impl Fn(&T) -> String + Sync) -> Vec<String> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(job))) {
                        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                        failed.lock().unwrap().push(format!("{}: {text}", name(job)));
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

#[test]
fn any_point_of_a_history_may_be_its_last() {
    let (mut points, mut endings) = (0, 0);
    for script in points::Script::ALL {
        let (captured, requests) = points::capture(script);
        let jobs: Vec<(&points::Point, points::Ending)> =
            captured.iter().flat_map(|point| point.endings().into_iter().map(move |ending| (point, ending))).collect();
        println!("{script:?}: {requests} requests, {} points, {} endings", captured.len(), jobs.len());
        let failed = all_cores(
            &jobs,
            |(point, ending)| point.go_on(*ending),
            |(point, ending)| format!("{script:?}, {} {ending:?}", point.what),
        );
        assert!(
            failed.is_empty(),
            "{} of {} failed:\n{}",
            failed.len(),
            jobs.len(),
            failed[..failed.len().min(9)].join("\n")
        );
        points += captured.len();
        endings += jobs.len();
    }
    println!("{points} points, {endings} endings");
    assert!(points >= POINTS_MIN && endings >= ENDINGS_MIN, "{points} points, {endings} endings");
}

#[test]
fn any_request_may_fail_or_lose_its_answer() {
    let mut jobs = Vec::new();
    for script in points::Script::ALL {
        let (_, requests) = points::capture(script);
        jobs.extend((1..=requests).flat_map(|number| [(script, number, false), (script, number, true)]));
    }
    let failed = all_cores(
        &jobs,
        |(script, number, is_applied)| points::lose_one(*script, *number, *is_applied),
        |job| format!("{job:?}"),
    );
    println!("{} requests failed, or lost their answers", jobs.len());
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed[..failed.len().min(9)].join("\n"));
    assert!(jobs.len() >= REQUESTS_MIN, "only {} requests", jobs.len());
}

#[test]
fn every_deliberate_bug_is_found() {
    let mut unseen = Vec::new();
    for mutant in mutants::all() {
        match mutant.hunt() {
            Some((seed, failure)) => println!("{}: seed {seed}: {}", mutant.name, failure.lines().next().unwrap_or("")),
            None => unseen.push(mutant.name),
        }
    }
    assert!(unseen.is_empty(), "no history found that {unseen:?}");
}

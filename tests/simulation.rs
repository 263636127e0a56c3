//! The whole engine in a simulated world: hosts that die, pause and lose touch, disks and a store that fail, over a thousand and more
//! histories. One seed is one exact history; `design/simulation.md` says what is simulated and what is checked.
#![cfg(test)]

#[path = "simulation/acts.rs"]
mod acts;
#[path = "simulation/attach.rs"]
mod attach;
#[path = "simulation/client.rs"]
mod client;
#[path = "simulation/disk.rs"]
mod disk;
#[path = "simulation/finale.rs"]
mod finale;
#[path = "simulation/host.rs"]
mod host;
#[path = "simulation/journal.rs"]
mod journal;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/record.rs"]
mod record;
#[path = "simulation/runs.rs"]
mod runs;
#[path = "simulation/world.rs"]
mod world;

use std::collections::BTreeMap;

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
fn one_seed_is_one_history() {
    let digests: Vec<BTreeMap<u64, (u64, u64)>> =
        (0..2).map(|_| (0..TWICE).map(|seed| (seed, history(seed, false).digest)).collect()).collect();
    assert_eq!(digests[0], digests[1]);
    let different: std::collections::BTreeSet<_> = digests[0].values().collect();
    assert_eq!(different.len() as u64, TWICE, "and another seed is another history");
}

//! The volume family against plain byte arrays: seeded sequences of everything that can be done to volumes and snapshots, on two hosts over one
//! store. Every volume and every snapshot equals its model whenever it is looked at; what two of them differ in is named by a comparison of
//! the two; at the end of a sequence everything is destroyed, and nothing is left in the store.
//!
//! The seed decides what is done; the engine's own threads take their turns as they come, so that a seed repeats a sequence closely, not exactly.
#![cfg(test)]

#[path = "model/changes.rs"]
mod changes;
#[path = "support/engine.rs"]
#[allow(dead_code, reason = "each test file uses a part of the support")]
mod engine;
#[path = "model/looking.rs"]
mod looking;
#[path = "support/minio.rs"]
#[allow(dead_code, reason = "each test file uses a part of the support")]
mod minio;
#[path = "model/site.rs"]
mod site;
#[path = "model/steps.rs"]
mod steps;
#[path = "model/world.rs"]
mod world;

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use site::Site;
use world::{Counts, Said, World};

/// They mostly wait for each other's threads and for the store.
const AT_ONCE: usize = 4;

/// Runs sequences, some at the same time, and says what was done in them.
fn run(name: &str, site: fn() -> Site, seeds: Range<u64>, steps: usize) {
    let one: Option<u64> = std::env::var("VARVE_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seeds = one.map_or(seeds, |seed| seed..seed + 1);
    let (next, counts, failed) = (AtomicU64::new(seeds.start), Mutex::new(Counts::default()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || !failed.lock().unwrap().is_empty() {
                        return;
                    }
                    let said = Said::default();
                    let world = AssertUnwindSafe(|| World::new(seed, site(), said.clone()).run(steps));
                    match std::panic::catch_unwind(world) {
                        Ok(done) => counts.lock().unwrap().add(&done),
                        Err(_) => failed.lock().unwrap().push((seed, said)),
                    }
                }
            });
        }
    });
    let (counts, failed) = (counts.into_inner().unwrap(), failed.into_inner().unwrap());
    println!("{name}: {counts:?}");
    for (seed, said) in &failed {
        println!("the steps of VARVE_TEST_SEED={seed}:\n  {}", said.lock().unwrap().join("\n  "));
    }
    assert!(failed.is_empty(), "the sequences of some seeds failed: their steps are printed above");
    let never = counts.never();
    assert!(one.is_some() || never.is_empty(), "these never happened: {never:?}");
}

#[test]
fn families_equal_their_models_in_memory() {
    run("memory", Site::memory, 0..8, 250);
}

#[test]
fn families_equal_their_models_on_a_directory() {
    run("directory", Site::directory, 100..106, 200);
}

#[test]
fn families_equal_their_models_on_minio() {
    run("minio", Site::minio, 200..205, 170);
}

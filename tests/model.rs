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

use site::Site;
use world::{Counts, World};

/// Runs sequences one after the other, and says what was done in them.
fn run(name: &str, site: fn() -> Site, seeds: std::ops::Range<u64>, steps: usize) {
    let one: Option<u64> = std::env::var("VARVE_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seeds = one.map_or(seeds, |seed| seed..seed + 1);
    let mut counts = Counts::default();
    for seed in seeds {
        World::new(seed, site()).run(steps, &mut counts);
    }
    println!("{name}: {counts:?}");
    let never = counts.never();
    assert!(one.is_some() || never.is_empty(), "these never happened: {never:?}");
}

#[test]
fn families_equal_their_models_in_memory() {
    run("memory", Site::memory, 0..8, 300);
}

#[test]
fn families_equal_their_models_on_a_directory() {
    run("directory", Site::directory, 100..105, 260);
}

#[test]
fn families_equal_their_models_on_minio() {
    run("minio", Site::minio, 200..203, 200);
}

//! The disk part against a model, on a disk in memory that fails on demand.

mod faults;
mod memory;
mod scan;
mod world;

use std::collections::HashSet;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::format::cache::CHUNK_BYTES;
use world::{World, content, frame};

#[test]
fn a_frame_enters_at_once_unless_a_chunk_must_be_written() {
    let world = World::new(6);
    let stored = vec![7; 10_000];
    assert!(!world.cache.try_insert_stored(frame(0), &stored), "no chunk is open yet");
    world.cache.insert_stored(frame(0), &stored);
    let entered = (1..1000).take_while(|&number| world.cache.try_insert_stored(frame(number), &stored)).count() as u64;
    let in_a_chunk = CHUNK_BYTES / stored.len() as u64;
    assert!((in_a_chunk - 3..in_a_chunk).contains(&entered), "{entered} frames");
    for number in 0..=entered {
        assert_eq!(world.cache.read_stored(frame(number)).as_deref(), Some(&stored[..]), "frame {number}");
    }
    assert_eq!(world.cache.read_stored(frame(entered + 1)), None);
    assert!(!world.cache.try_insert_stored(frame(5000), &vec![7; 300 << 10]), "too long to be kept");
}

#[test]
fn equals_a_model_over_many_rounds_and_restarts() {
    for seed in 0..6 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut world = World::new(6);
        let (mut inserted, mut written): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        let mut discarded: HashSet<u64> = HashSet::new();
        let mut discards = 0;
        for step in 0..6000u64 {
            match random.random_range(0..100) {
                0 => {
                    world.restart();
                    discards = 0;
                }
                1..=3 if !inserted.is_empty() => {
                    let number = inserted[random.random_range(0..inserted.len())];
                    world.cache.discard_stored(frame(number));
                    discarded.insert(number);
                    discards += 1;
                    assert_eq!(world.cache.read_stored(frame(number)), None);
                }
                4..=60 => {
                    let number = random.random_range(0..2 * step + 10);
                    // Who looked for it may add it at once, where nothing has to be written for that.
                    let is_there = world.cache.read_stored(frame(number)).is_some();
                    let at_once = !is_there && random.random_bool(0.5);
                    if !at_once || !world.cache.try_insert_stored(frame(number), &content(number)) {
                        world.cache.insert_stored(frame(number), &content(number));
                    }
                    discarded.remove(&number);
                    inserted.push(number);
                    // What is there is not written again, and may leave with what was written before it.
                    written.extend((!is_there).then_some(number));
                    assert_eq!(world.cache.read_stored(frame(number)).as_deref(), Some(&content(number)[..]));
                }
                _ => {
                    let number = random.random_range(0..2 * step + 10);
                    let found = world.cache.read_stored(frame(number));
                    assert_eq!(world.cache.contains(frame(number)), found.is_some());
                    if let Some(found) = found {
                        assert!(inserted.contains(&number));
                        assert_eq!(found, content(number));
                    }
                }
            }
        }
        // What was written last is there, whatever was kept besides.
        let mut newest = 0;
        for &number in written.iter().rev().filter(|number| !discarded.contains(number)) {
            newest += content(number).len() as u64;
            if newest > CHUNK_BYTES {
                break;
            }
            assert_eq!(world.cache.read_stored(frame(number)).as_deref(), Some(&content(number)[..]), "{number}");
        }
        let statistics = world.cache.statistics().disk;
        assert_eq!((statistics.off, statistics.failures), (None, 0));
        assert_eq!(statistics.damaged, discards, "nothing but what was discarded");
        assert!(world.file().length_now() <= world.settings.disk.0);
    }
}

#[test]
fn a_restart_finds_everything_that_was_there() {
    let mut world = World::new(8);
    for number in 0..300 {
        world.cache.insert_stored(frame(number), &content(number));
    }
    world.restart();
    for number in 0..300 {
        assert_eq!(world.cache.read_stored(frame(number)).as_deref(), Some(&content(number)[..]), "{number}");
    }
    assert_eq!(world.cache.statistics().disk.damaged, 0);
}

#[test]
fn a_frame_is_kept_once() {
    let world = World::new(4);
    for _ in 0..1000 {
        world.cache.insert_stored(frame(1), &content(1));
    }
    assert_eq!(world.cache.statistics().disk.inserted, 1);
}

#[test]
fn frames_of_every_length_come_back_and_longer_ones_are_refused() {
    use crate::format::cache::PAYLOAD_BYTES_MAX;
    let world = World::new(8);
    for (number, length) in [0, 1, 63, 64, 65, 4095, 32768, PAYLOAD_BYTES_MAX].into_iter().enumerate() {
        let bytes = vec![number as u8; length];
        world.cache.insert_stored(frame(number as u64), &bytes);
        assert_eq!(world.cache.read_stored(frame(number as u64)).as_deref(), Some(&bytes[..]));
        world.cache.flush();
        assert_eq!(world.cache.read_stored(frame(number as u64)).as_deref(), Some(&bytes[..]));
    }
    world.cache.insert_stored(frame(99), &vec![0; PAYLOAD_BYTES_MAX + 1]);
    assert!(!world.cache.contains(frame(99)));
    assert_eq!(world.cache.statistics().disk.refused, 1);
}

#[test]
fn another_size_makes_the_file_anew_and_forgets_the_slots() {
    let mut world = World::new(8);
    for number in 0..200 {
        world.cache.insert_stored(frame(number), &content(number));
    }
    world.cache.flush();
    assert!(!world.index.is_empty());
    for chunks in [4, 12] {
        world.settings.disk = World::budget(chunks);
        world.restart();
        assert!(world.index.is_empty());
        assert_eq!(world.file().length_now(), World::budget(chunks).0 - 100);
        assert_eq!(world.cache.read_stored(frame(7)), None);
        world.cache.insert_stored(frame(7), &content(7));
        world.cache.flush();
        assert_eq!(world.cache.read_stored(frame(7)).as_deref(), Some(&content(7)[..]));
    }
}

#[test]
fn many_threads_see_only_what_was_inserted() {
    let world = Arc::new(World::new(4));
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let world = Arc::clone(&world);
            scope.spawn(move || {
                let mut random = SmallRng::seed_from_u64(seed);
                for step in 0..2000u64 {
                    let number = random.random_range(step / 4..step / 4 + 200);
                    match world.cache.read_stored(frame(number)) {
                        Some(found) => assert_eq!(found, content(number)),
                        None => world.cache.insert_stored(frame(number), &content(number)),
                    }
                }
            });
        }
    });
    let statistics = world.cache.statistics().disk;
    assert_eq!((statistics.off, statistics.damaged), (None, 0));
    assert!(statistics.dropped > 0, "the ring came round");
}

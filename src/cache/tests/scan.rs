//! What is hot stays when much else passes through.

use super::world::{World, frame};

const CHUNKS: u64 = 16;
/// Bytes of a frame in these tests: with its header 16 KiB, so that 64 make a chunk.
const FRAME_BYTES: usize = 16_384 - 64;
const FRAMES_PER_RING: u64 = CHUNKS * 64;

fn insert(world: &World, number: u64) {
    world.cache.insert_stored(frame(number), &vec![number as u8; FRAME_BYTES]);
}

fn survivors(world: &World, hot: &[u64]) -> usize {
    hot.iter().filter(|&&number| world.cache.read_stored(frame(number)).is_some()).count()
}

/// Scans through four times the ring, with the hot frames read now and then.
fn scan(world: &World, hot: &[u64]) {
    for step in 0..4 * FRAMES_PER_RING {
        insert(world, 1_000_000 + step);
        if step % (FRAMES_PER_RING / 4) == 0 {
            survivors(world, hot);
        }
    }
}

#[test]
fn hot_frames_among_others_survive_a_scan_of_four_times_the_ring() {
    let world = World::new(CHUNKS);
    let mut hot = Vec::new();
    for number in 0..FRAMES_PER_RING / 2 {
        insert(&world, number);
        if number % 2 == 0 {
            hot.push(number);
        }
    }
    scan(&world, &hot);
    assert_eq!(survivors(&world, &hot), hot.len());
}

#[test]
fn a_dense_run_of_hot_frames_survives_nearly_whole() {
    let world = World::new(CHUNKS);
    let hot: Vec<u64> = (0..FRAMES_PER_RING * 3 / 10).collect();
    for &number in &hot {
        insert(&world, number);
    }
    scan(&world, &hot);
    let survived = survivors(&world, &hot);
    assert!(survived * 100 >= hot.len() * 80, "{survived} of {}", hot.len());
}

#[test]
fn frames_held_in_memory_are_kept_on_disk_too() {
    let world = World::new(CHUNKS);
    for number in 0..20 {
        insert(&world, number);
        world.cache.insert_plain(frame(number), vec![1; 100].into());
    }
    for step in 0..2 * FRAMES_PER_RING {
        insert(&world, 1_000_000 + step);
    }
    assert_eq!(survivors(&world, &(0..20).collect::<Vec<_>>()), 20);
}

#[test]
fn when_everything_is_hot_inserts_still_make_progress() {
    let world = World::new(CHUNKS);
    let numbers: Vec<u64> = (0..FRAMES_PER_RING).collect();
    for &number in &numbers {
        insert(&world, number);
    }
    for round in 0..20 {
        survivors(&world, &numbers);
        for step in 0..FRAMES_PER_RING / 4 {
            let number = 1_000_000 + round * FRAMES_PER_RING + step;
            insert(&world, number);
            assert!(world.cache.read_stored(frame(number)).is_some());
        }
    }
    let statistics = world.cache.statistics().disk;
    // Credit: at most half of what is written is kept, besides the quarter of the ring that credit begins with.
    assert!(statistics.kept <= statistics.inserted + FRAMES_PER_RING / 4, "{statistics:?}");
}

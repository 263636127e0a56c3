//! Damage, crashes and failing disks (C1 to C3 of the fault list).

use std::sync::atomic::Ordering;

use super::world::{World, content, frame};
use crate::format::cache::{CHUNK_BYTES, HEADER_BYTES, RING_START, SUPERBLOCK_BYTES, Slot};

/// Fills a ring of 8 chunks one and a half times, so that chunks of two rounds are in it.
fn filled() -> World {
    let world = World::new(8);
    for number in 0..1000 {
        world.cache.insert_stored(frame(number), &content(number));
    }
    world.cache.flush();
    world
}

/// Reads everything; whatever is found must be right. Returns how many frames were found.
fn assert_never_wrong(world: &World) -> usize {
    let found = (0..1000).filter_map(|number| Some((number, world.cache.read_stored(frame(number))?)));
    found.inspect(|(number, found)| assert_eq!(found, &content(*number))).count()
}

#[test]
fn a_flipped_bit_anywhere_in_an_entry_is_a_miss() {
    let mut world = World::new(4);
    world.cache.insert_stored(frame(0), &content(0));
    world.cache.insert_stored(frame(1), &content(1));
    world.cache.flush();
    let slot = Slot::unpacked(world.index.slots.lock()[&frame(0)]).unwrap();
    let slots = world.index.slots.lock().clone();
    let start = (RING_START + slot.position.0) as usize;
    for bit in 0..(HEADER_BYTES + content(0).len()) * 8 {
        world.file().bytes.lock()[start + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(world.cache.read_stored(frame(0)), None, "bit {bit}");
        assert!(!world.index.slots.lock().contains_key(&frame(0)), "the slot is forgotten");
        assert_eq!(world.cache.read_stored(frame(1)).as_deref(), Some(&content(1)[..]));
        world.file().bytes.lock()[start + bit / 8] ^= 1 << (bit % 8);
        *world.index.slots.lock() = slots.clone();
    }
    let statistics = world.cache.statistics().disk;
    assert_eq!(statistics.damaged, (HEADER_BYTES + content(0).len()) as u64 * 8);
    assert_eq!(statistics.off, None);
    assert!(world.cache.read_stored(frame(0)).is_some(), "and found again when whole");
    world.restart();
    assert!(world.cache.read_stored(frame(0)).is_some());
}

#[test]
fn the_index_may_point_anywhere() {
    let world = filled();
    let numbers: Vec<u64> = (0..1000).collect();
    for (at, &number) in numbers.iter().enumerate() {
        let wild = [0, 1, u64::MAX, 1 << 63, (number << 12) | 5, (((CHUNK_BYTES / 64) - 1) << 12) | 1];
        let mut slots = world.index.slots.lock();
        let other = slots.get(&frame((number * 7) % 1000)).copied().unwrap_or(4095);
        slots.insert(frame(number), if at % 7 == 6 { other } else { wild[at % 7] });
    }
    assert_never_wrong(&world);
    assert_eq!(world.cache.statistics().disk.off, None);
}

#[test]
fn an_index_that_is_older_or_newer_than_the_slots_never_gives_wrong_data() {
    let mut world = World::new(8);
    let mut moments = Vec::new();
    for number in 0..1000 {
        world.cache.insert_stored(frame(number), &content(number));
        if number % 97 == 0 {
            moments.push((world.file().bytes.lock().clone(), world.index.slots.lock().clone()));
        }
    }
    for (file_moment, (bytes, _)) in moments.iter().enumerate() {
        for (index_moment, (_, slots)) in moments.iter().enumerate() {
            *world.file().bytes.lock() = bytes.clone();
            *world.index.slots.lock() = slots.clone();
            world.crash();
            let found = assert_never_wrong(&world);
            if index_moment <= file_moment {
                let expected = world.index.slots.lock().len();
                assert_eq!(found, expected, "what was found missing has left the index");
                let same_age = moments[file_moment].1.len();
                assert!(found >= same_age, "an older index is brought up to date: {found} of {same_age}");
            }
            // And it works on from there.
            for number in 2000..2300 {
                world.cache.insert_stored(frame(number), &content(number));
            }
            assert_never_wrong(&world);
            assert!(world.cache.read_stored(frame(2299)).is_some());
            assert_eq!(world.cache.statistics().disk.off, None);
        }
    }
}

#[test]
fn a_torn_chunk_loses_only_what_was_torn() {
    let mut world = filled();
    let before = assert_never_wrong(&world);
    let file = world.file();
    let length = file.length_now() as usize;
    // Every other sector of one chunk reads as zero, as after power loss.
    for sector in
        (RING_START as usize + 2 * CHUNK_BYTES as usize..RING_START as usize + 3 * CHUNK_BYTES as usize).step_by(1024)
    {
        file.bytes.lock()[sector..sector + 512].fill(0);
    }
    world.crash();
    let after = assert_never_wrong(&world);
    assert!(after < before && after > before / 2, "{after} of {before}");
    assert_eq!(world.file().length_now() as usize, length);
}

#[test]
fn one_damaged_superblock_is_borne_two_make_the_file_anew() {
    let mut world = filled();
    let before = assert_never_wrong(&world);
    for copy in 0..2 {
        let at = (copy * SUPERBLOCK_BYTES) as usize + 20;
        world.file().bytes.lock()[at] ^= 1;
        world.crash();
        assert_eq!(assert_never_wrong(&world), before, "copy {copy}");
        world.file().bytes.lock()[at] ^= 1;
    }
    for copy in 0..2 {
        world.file().bytes.lock()[(copy * SUPERBLOCK_BYTES) as usize + 20] ^= 1;
    }
    world.crash();
    assert_eq!(assert_never_wrong(&world), 0);
    assert!(world.index.is_empty());
    assert_eq!(world.cache.statistics().disk.off, None);
}

#[test]
fn a_disk_that_fails_switches_the_disk_part_off_and_nothing_else() {
    type Fault = fn(&World);
    let faults: [Fault; 3] = [
        |world| world.file().fails_reads.store(true, Ordering::Relaxed),
        |world| world.file().fails_writes.store(true, Ordering::Relaxed),
        |world| world.index.fails.store(true, Ordering::Relaxed),
    ];
    for fault in faults {
        let world = filled();
        fault(&world);
        for number in 900..1400 {
            world.cache.insert_stored(frame(number), &content(number));
            if let Some(found) = world.cache.read_stored(frame(number)) {
                assert_eq!(found, content(number));
            }
        }
        let statistics = world.cache.statistics().disk;
        assert_eq!(statistics.failures, 1);
        let why = statistics.off.unwrap();
        assert!(why.contains("simulated"), "{why}");
        assert_eq!(world.cache.read_stored(frame(999)), None);
        assert!(!world.cache.contains(frame(999)));
        world.cache.insert_plain(frame(999), content(999).into());
        assert!(world.cache.get(frame(999)).is_some(), "memory goes on");
    }
}

#[test]
fn without_space_there_is_no_disk_part_and_nothing_is_left_behind() {
    let mut world = World::with_space(8, 3 << 20);
    let why = world.cache.statistics().disk.off.unwrap();
    assert!(why.contains("/state/cache") && why.contains("reserving"), "{why}");
    assert!(world.disk.files.lock().is_empty());
    world.cache.insert_stored(frame(1), &content(1));
    assert_eq!(world.cache.read_stored(frame(1)), None);
    world.disk.space.store(u64::MAX, Ordering::Relaxed);
    world.restart();
    world.cache.insert_stored(frame(1), &content(1));
    assert!(world.cache.read_stored(frame(1)).is_some(), "with space it works at the next start");
}

#[test]
fn a_budget_of_zero_is_off_and_one_too_small_says_so() {
    let mut world = World::new(4);
    world.settings.disk.0 = 0;
    world.restart();
    assert!(world.cache.statistics().disk.off.unwrap().contains("settings"));
    world.settings.disk.0 = 1 << 20;
    world.restart();
    assert!(world.cache.statistics().disk.off.unwrap().contains("too small"));
}

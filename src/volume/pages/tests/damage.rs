//! Damage of the checkpoint below: pages and directories of which a byte is not what it was.

use std::ops::Range;
use std::time::Duration;

use super::*;
use crate::checkpoint::testing::flip_a_bit;
use crate::format::map_object::PageRef;

const AT_ONCE: OnDamage = OnDamage::GiveUp(Duration::ZERO);

/// What is known of a volume of which a part of the checkpoint was damaged.
struct Damaged {
    /// The blocks that it described.
    blocks: Range<u64>,
    is_directory: bool,
    part: PageRef,
    /// What was written since the checkpoint.
    written: Vec<BlockRange>,
}

impl Damaged {
    fn note(&mut self, segment: &SegmentIndex) {
        self.written.extend(segment.entries.iter().map(|entry| entry.range));
    }

    fn may_lack(&self, lba: u64) -> bool {
        let is_in = |range: &BlockRange| (range.start.0..range.end().0).contains(&lba);
        self.blocks.contains(&lba) && !self.written.iter().any(is_in)
    }
}

impl World {
    /// Flips a bit of a page or a directory of the checkpoint, if there is one.
    async fn damage(&self, random: &mut SmallRng) -> Option<Damaged> {
        let checkpoint = Checkpoint::open(self.store.clone(), self.reference?).await.unwrap();
        let directories = &checkpoint.root().directories;
        if directories.is_empty() {
            return None;
        }
        let (which, directory) = directories[random.random_range(0..directories.len())];
        let start = u64::from(which) * DIRECTORY;
        let is_directory = random.random();
        if is_directory {
            flip_a_bit(&*self.store, directory).await;
            return Some(Damaged {
                blocks: start..start + DIRECTORY,
                is_directory,
                part: directory,
                written: Vec::new(),
            });
        }
        let pages = checkpoint.directory(which).await.unwrap();
        let (slot, page) = pages[random.random_range(0..pages.len())];
        flip_a_bit(&*self.store, page).await;
        let start = start + u64::from(slot) * PAGE_BLOCKS;
        Some(Damaged { blocks: start..start + PAGE_BLOCKS, is_directory, part: page, written: Vec::new() })
    }

    /// Looks at every block that holds something, and some that do not: each is what it should be, or is lost, if it may be. Returns how
    /// many are lost, and how many cannot be looked at.
    async fn verify_despite(&self, damaged: &Damaged, what: &str) -> (u64, u64) {
        let Range { start, end } = damaged.blocks;
        let around = [start, start + 7, end, end + 3].into_iter().chain(end.checked_sub(1)).chain(start.checked_sub(1));
        let (mut lost, mut unreadable) = (0, 0);
        for lba in self.model.keys().copied().chain(around.filter(|lba| *lba < BLOCKS)) {
            let mut places = Vec::new();
            let found = self.pages.lookup_to_read(BlockRange::new(Lba(lba), BlockCount(1)), &mut places).await;
            let place = places.first().and_then(|found| found.place);
            match found {
                Err(error) => {
                    assert!(error.is_damage(), "{what}: block {lba}: {error}");
                    assert!(damaged.may_lack(lba), "{what}: block {lba} cannot be read: {error}");
                    unreadable += 1;
                }
                Ok(()) if place.is_some_and(|place| place.segment.is_lost()) => {
                    assert!(damaged.may_lack(lba), "{what}: block {lba} is lost");
                    lost += 1;
                }
                Ok(()) => assert_eq!(place, self.model.get(&lba).copied(), "{what}: block {lba}"),
            }
        }
        (lost, unreadable)
    }
}

#[tokio::test]
async fn damage_for_good_costs_what_was_damaged_and_not_written_since() {
    // Whether a page or a directory was damaged, and what became of it.
    let mut seen = [[0; 3]; 2];
    for seed in 0..200 {
        let mut random = SmallRng::seed_from_u64(seed);
        let budget = [2_000, 20_000, 1 << 30][seed as usize % 3];
        let mut world = World::new(budget);
        for number in 0..8 {
            world.apply(random_segment(&mut random, number)).await;
        }
        world.checkpoint().await;
        let Some(mut damaged) = world.damage(&mut random).await else { continue };
        for number in 8..random.random_range(8..11) {
            world.apply(random_segment(&mut random, number)).await;
        }
        world.behind.iter().for_each(|segment| damaged.note(segment));
        let survives = random.random_bool(0.2).then(|| world.twin.unflushed());
        world.attach_again(budget, survives).await;
        for number in 11..random.random_range(11..16) {
            let segment = random_segment(&mut random, number);
            damaged.note(&segment);
            world.apply_despite(segment, AT_ONCE).await;
        }
        if random.random_bool(0.4) {
            let unflushed = world.twin.unflushed();
            if random.random_bool(0.4) {
                // What was given up before the crash is whole again, and no checkpoint says otherwise.
                flip_a_bit(&*world.store, damaged.part).await;
                damaged.blocks.end = damaged.blocks.start;
            }
            world.attach_again(budget, Some(random.random_range(0..=unflushed))).await;
        }
        let (lost, unreadable) = world.verify_despite(&damaged, &format!("seed {seed}")).await;
        let seen = &mut seen[usize::from(damaged.is_directory)];
        seen[0] += u64::from(lost > 0);
        seen[1] += u64::from(unreadable > 0);
        if let Err(error) = world.try_checkpoint(OnDamage::Fail).await {
            assert!(error.is_damage(), "seed {seed}: {error}");
            world.try_checkpoint(AT_ONCE).await.unwrap();
            seen[2] += 1;
        }
        world.verify_despite(&damaged, &format!("seed {seed}, behind a checkpoint")).await;
        world.attach_again(budget, None).await;
        world.verify_despite(&damaged, &format!("seed {seed}, from that checkpoint")).await;
        world.apply_despite(random_segment(&mut random, 16), AT_ONCE).await;
    }
    assert!(seen.as_flattened().iter().all(|count| *count > 0), "given up, left alone, met by a checkpoint: {seen:?}");
    println!("pages and directories given up, left alone, met by a checkpoint: {seen:?}");
}

#[tokio::test]
async fn what_a_volume_has_grown_by_is_no_part_of_what_is_damaged() {
    let budget = 1 << 30;
    let mut world = World::new(budget);
    world.size = ByteLen(4 * PAGE_BLOCKS * BLOCK_SIZE + 5 * BLOCK_SIZE);
    world.apply(segment(0, vec![data(PAGE_BLOCKS + 3, 2, 0)])).await;
    world.checkpoint().await;
    let grown = [4 * PAGE_BLOCKS + 9, 10 * PAGE_BLOCKS];
    world.apply(segment(1, vec![data(grown[0], 2, 0), data(grown[1], 1, 2)])).await;
    let checkpoint = Checkpoint::open(world.store.clone(), world.reference.unwrap()).await.unwrap();
    let part = checkpoint.root().directories[0].1;
    flip_a_bit(&*world.store, part).await;
    let mut damaged = Damaged { blocks: 0..4 * PAGE_BLOCKS + 5, is_directory: true, part, written: Vec::new() };
    world.attach_again(budget, None).await;
    let late = segment(2, vec![data(2 * PAGE_BLOCKS, 1, 0)]);
    damaged.note(&late);
    world.apply_despite(late, AT_ONCE).await;
    world.size = ByteLen(20 * PAGE_BLOCKS * BLOCK_SIZE);
    for what in ["given up", "in a checkpoint"] {
        let (lost, unreadable) = world.verify_despite(&damaged, what).await;
        assert!(lost > 0 && unreadable == 0, "{what}: {lost} lost, {unreadable} unreadable");
        world.checkpoint().await;
        world.attach_again(budget, None).await;
    }
}

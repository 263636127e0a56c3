//! The table of pages against a plain model: random segments, trims of any size, checkpoints, deaths.

use std::collections::BTreeMap;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::clear::Gone;
use super::*;
use crate::checkpoint;
use crate::checkpoint::{NewCheckpoint, Position};
use crate::format::segment::{IndexEntry, SegmentHeader};
use crate::index::Twin;
use crate::limits::{DIRECTORY_PAGES, PAGE_BLOCKS, VOLUME_BYTES_MAX};
use crate::map::SegmentPlace;
use crate::seal::test_key as key;
use crate::store::{MemoryStore, Store};
use crate::units::{
    BLOCK_SIZE, BlockCount, ByteLen, Epoch, Lba, SegmentId, SegmentNumber, Sequence, Token, UnixMillis,
};

mod damage;

const VOLUME: VolumeId = VolumeId(1);
/// Blocks of a directory.
const DIRECTORY: u64 = DIRECTORY_PAGES * PAGE_BLOCKS;
const BLOCKS: u64 = VOLUME_BYTES_MAX / BLOCK_SIZE;

fn segment(number: u64, entries: Vec<IndexEntry>) -> Arc<SegmentIndex> {
    let header = SegmentHeader {
        id: SegmentId { volume: VOLUME, epoch: Epoch(1), number: SegmentNumber(number) },
        token: Token(1),
        first: Sequence(number + 1),
        last: Sequence(number + 1),
        created_at: UnixMillis(0),
        seal: false,
        salt: None,
    };
    Arc::new(SegmentIndex { header, frames: Vec::new(), entries, object_length: 0 })
}

fn zero(start: u64, count: u64) -> IndexEntry {
    IndexEntry { range: BlockRange::new(Lba(start), BlockCount(count)), kind: EntryKind::Zero }
}

fn data(start: u64, count: u64, block: u32) -> IndexEntry {
    IndexEntry { range: BlockRange::new(Lba(start), BlockCount(count)), kind: EntryKind::Data { block } }
}

/// A volume's pages, the store and local index below, and what they must say: block by block, those that hold something.
struct World {
    store: Arc<dyn Store>,
    twin: Twin,
    pages: PageTable,
    /// What a host that attaches replays.
    behind: Vec<Arc<SegmentIndex>>,
    reference: Option<crate::format::map_object::CheckpointRef>,
    next_object: u64,
    size: ByteLen,
    model: BTreeMap<u64, SegmentPlace>,
}

impl World {
    fn new(budget: usize) -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let twin = Twin::default();
        let pages = Self::table(&twin, budget, Checkpoint::empty(store.clone()));
        let size = ByteLen(VOLUME_BYTES_MAX);
        World { store, twin, pages, behind: Vec::new(), reference: None, next_object: 0, size, model: BTreeMap::new() }
    }

    fn table(twin: &Twin, budget: usize, base: Checkpoint) -> PageTable {
        let index = Arc::new(Index::on_twin(twin, Path::new("/index")));
        PageTable::new(VOLUME, key(), index, Arc::new(PageBudget::new(budget)), Arc::new(base))
    }

    fn note(&mut self, segment: &SegmentIndex) {
        for entry in &segment.entries {
            let range = entry.range;
            let gone: Vec<u64> = self.model.range(range.start.0..range.end().0).map(|(lba, _)| *lba).collect();
            for lba in gone {
                self.model.remove(&lba);
            }
            if let EntryKind::Data { block } = entry.kind {
                let place = SegmentPlace { segment: segment.header.id, block };
                self.model.extend((0..range.count.0).map(|step| (range.start.0 + step, place.plus(step as u32))));
            }
        }
    }

    async fn apply(&mut self, segment: Arc<SegmentIndex>) {
        self.apply_despite(segment, OnDamage::Fail).await;
    }

    /// Damage is met only by those who are to give up what is damaged.
    async fn apply_despite(&mut self, segment: Arc<SegmentIndex>, on_damage: OnDamage) {
        match self.pages.apply(&segment, OnDamage::Fail).await {
            Err(error) if on_damage != OnDamage::Fail && error.is_damage() => {
                self.pages.apply(&segment, on_damage).await.unwrap();
            }
            applied => applied.unwrap(),
        }
        self.note(&segment);
        self.behind.push(segment);
    }

    async fn checkpoint(&mut self) {
        self.try_checkpoint(OnDamage::Fail).await.unwrap();
    }

    async fn try_checkpoint(&mut self, on_damage: OnDamage) -> Result<()> {
        if on_damage != OnDamage::Fail {
            self.pages.give_up_directories(on_damage).await?;
        }
        let position = Position { epoch: Epoch(1), number: SegmentNumber(0), sequence: Sequence(0) };
        let (changed, base) = (self.pages.changed(), self.pages.base());
        let new = NewCheckpoint {
            volume: VOLUME,
            epoch: Epoch(1),
            position,
            size: self.size,
            changed: &changed,
            source: &PagesToWrite { pages: &self.pages, on_damage },
            replaced: self.reference,
        };
        let number = &mut self.next_object;
        let written = checkpoint::write(&self.store, &base, number, new, &mut |_| Vec::new()).await?;
        self.pages.write_back().unwrap();
        self.pages.index.flush().unwrap();
        self.pages.rebase(Arc::new(written.checkpoint));
        self.reference = Some(written.reference);
        self.behind.clear();
        Ok(())
    }

    /// The process dies; `batches` of what the local index had not flushed survive. `None`: the host is lost.
    async fn attach_again(&mut self, budget: usize, batches: Option<usize>) {
        match batches {
            Some(batches) => self.twin.die(batches),
            None => self.twin = Twin::default(),
        }
        let base = match self.reference {
            Some(reference) => Checkpoint::open(self.store.clone(), reference).await.unwrap(),
            None => Checkpoint::empty(self.store.clone()),
        };
        self.pages = Self::table(&self.twin, budget, base);
        for segment in &self.behind {
            self.pages.replay(segment).unwrap();
        }
    }

    /// Looks at some ranges, and at every block that should hold something.
    async fn verify(&self, random: &mut SmallRng, what: &str) {
        let mut starts: Vec<u64> = self.model.keys().copied().filter(|_| random.random_bool(0.3)).collect();
        starts.extend((0..20).map(|_| random.random_range(0..BLOCKS)));
        for start in starts {
            let range = BlockRange::new(Lba(start), BlockCount(random.random_range(1..600).min(BLOCKS - start)));
            let mut places = Vec::new();
            self.pages.lookup(range, &mut places).await.unwrap();
            let mut at = start;
            for found in &places {
                assert_eq!(found.range.start.0, at, "{what}: no gaps");
                for step in 0..found.range.count.0 {
                    let expected = self.model.get(&(at + step)).copied();
                    assert_eq!(
                        found.place.map(|place| place.plus(step as u32)),
                        expected,
                        "{what}: block {}",
                        at + step
                    );
                }
                at = found.range.end().0;
            }
            assert_eq!(at, range.end().0);
        }
    }
}

/// A segment of random changes around the edges of a few directories, and of trims up to the whole volume.
fn random_segment(random: &mut SmallRng, number: u64) -> Arc<SegmentIndex> {
    let mut entries = Vec::new();
    let (mut at, mut block) = (0, 0);
    let near =
        [0, DIRECTORY / 2, DIRECTORY - 300, 3 * DIRECTORY - 40, 3 * DIRECTORY + PAGE_BLOCKS, 9 * DIRECTORY - 1000];
    if random.random_bool(0.1) {
        // Nothing but whole directories: no page at an edge is in doubt.
        let first = random.random_range(0..4);
        return segment(number, vec![zero(first * DIRECTORY, random.random_range(1..8) * DIRECTORY)]);
    }
    for start in near {
        let start = at.max(start + random.random_range(0..200));
        if random.random_bool(0.3) {
            let longest = [40, 700, 2 * DIRECTORY, 7 * DIRECTORY, BLOCKS][random.random_range(0..5)];
            let count = random.random_range(1..=longest).min(BLOCKS - start);
            entries.push(zero(start, count));
            at = start + count;
        } else if random.random_bool(0.7) {
            let count = random.random_range(1..300);
            entries.push(data(start, count, block));
            block += count as u32;
            at = start + count;
        }
        if at >= BLOCKS - 1000 {
            break;
        }
    }
    segment(number, entries)
}

#[tokio::test]
async fn equals_a_plain_map_under_changes_checkpoints_and_deaths() {
    for seed in 0..90 {
        let mut random = SmallRng::seed_from_u64(seed);
        let budget = [2_000, 20_000, 1 << 30][seed as usize % 3];
        let mut world = World::new(budget);
        for number in 0..40 {
            match random.random_range(0..10) {
                0 => world.checkpoint().await,
                1 => {
                    let unflushed = world.twin.unflushed();
                    world.attach_again(budget, Some(random.random_range(0..=unflushed))).await;
                }
                2 => world.attach_again(budget, None).await,
                3 => world.verify(&mut random, &format!("seed {seed}, step {number}")).await,
                _ => world.apply(random_segment(&mut random, number)).await,
            }
        }
        world.verify(&mut random, &format!("seed {seed}, at the end")).await;
        world.checkpoint().await;
        world.attach_again(budget, None).await;
        world.verify(&mut random, &format!("seed {seed}, from its checkpoint")).await;
    }
}

#[tokio::test]
async fn what_was_replayed_before_a_trim_of_its_directory_does_not_come_back() {
    let mut world = World::new(1 << 30);
    world.apply(segment(0, vec![data(PAGE_BLOCKS + 7, 2, 0)])).await;
    world.checkpoint().await;
    world.apply(segment(1, vec![data(5, 2, 0)])).await;
    world.apply(segment(2, vec![zero(0, DIRECTORY)])).await;
    world.apply(segment(3, vec![data(10, 1, 0)])).await;
    world.attach_again(1 << 30, None).await;
    world.verify(&mut SmallRng::seed_from_u64(3), "a host that has nothing local").await;
    let mut places = Vec::new();
    world.pages.lookup(BlockRange::new(Lba(5), BlockCount(1)), &mut places).await.unwrap();
    assert_eq!(places[0].place, None, "it was trimmed");
}

#[tokio::test]
async fn a_page_that_is_to_be_written_again_stays_trimmed() {
    let mut world = World::new(1 << 30);
    world.apply(segment(0, vec![data(5, 2, 0)])).await;
    world.checkpoint().await;
    world.apply(segment(1, vec![data(6, 2, 0)])).await;
    world.attach_again(1 << 30, None).await;
    world.apply(segment(2, vec![zero(0, DIRECTORY)])).await;
    world.pages.write_again([PageIndex(0)]);
    let mut places = Vec::new();
    world.pages.lookup(BlockRange::new(Lba(5), BlockCount(3)), &mut places).await.unwrap();
    assert!(places.iter().all(|found| found.place.is_none()), "it was trimmed: {places:?}");
    world.checkpoint().await;
    world.verify(&mut SmallRng::seed_from_u64(4), "after the checkpoint").await;
}

#[tokio::test]
async fn a_trim_of_everything_tells_of_each_page_at_hand_once_and_leaves_nothing() {
    let mut world = World::new(3_000);
    let places = [5, 300, DIRECTORY - 1, DIRECTORY, 40 * DIRECTORY + 77, BLOCKS - 1];
    for (number, start) in (0..).zip(places) {
        world.apply(segment(number, vec![data(start, 1, 0)])).await;
        if number == 2 {
            world.checkpoint().await;
        }
    }
    let mut gone: Vec<u64> = Vec::new();
    let mut unseen = 0;
    let everything = BlockRange::new(Lba(0), BlockCount(BLOCKS));
    let witness = &mut |what: Gone<'_>| match what {
        Gone::Blocks(index, part, page) => {
            assert_eq!(part, index.range());
            gone.extend(page.places().map(|(offset, ..)| index.range().start.0 + u64::from(offset)));
        }
        Gone::Unseen(_) => unseen += 1,
    };
    world.pages.clear(everything, OnDamage::Fail, witness).await.unwrap();
    gone.sort_unstable();
    assert_eq!((gone, unseen), (places.to_vec(), 0));
    world.model.clear();
    world.behind.push(segment(9, vec![zero(0, BLOCKS)]));
    world.checkpoint().await;
    assert!(world.pages.base().root().directories.is_empty(), "nothing is left of it in the store");
    world.verify(&mut SmallRng::seed_from_u64(1), "after the checkpoint").await;
}

#[tokio::test]
async fn what_only_the_store_knows_is_not_fetched_to_be_emptied() {
    let mut world = World::new(1 << 30);
    for number in 0..20 {
        world.apply(segment(number, vec![data(number * DIRECTORY + 5, 2, 0)])).await;
    }
    world.checkpoint().await;
    world.attach_again(1 << 30, None).await;
    let faults = crate::store::Faults::new();
    let reference = world.reference.unwrap();
    let base = Checkpoint::open(faults.wrap(world.store.clone()), reference).await.unwrap();
    world.pages = World::table(&world.twin, 1 << 30, base);
    faults.clear_log();
    let mut unseen = Vec::new();
    let range = BlockRange::new(Lba(0), BlockCount(BLOCKS));
    world
        .pages
        .clear(range, OnDamage::Fail, &mut |what| {
            if let Gone::Unseen(pages) = what {
                unseen.push(pages.start.0 / DIRECTORY_PAGES);
            }
        })
        .await
        .unwrap();
    assert_eq!(unseen, (0..20).collect::<Vec<u64>>());
    world.model.clear();
    world.verify(&mut SmallRng::seed_from_u64(2), "after a trim of everything").await;
    let gets = || faults.count(&crate::store::Matching::operation(crate::store::Operation::Get));
    assert_eq!(gets(), 0);
    world.checkpoint().await;
    assert_eq!(gets(), 20, "a checkpoint reads the directories that it lets go of, to count, and no page");
}

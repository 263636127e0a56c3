use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::testing::damage_object;
use super::*;
use crate::error::{Error, ErrorKind, Result};
use crate::format::census::{Counted, Making, ObjectAt, ObjectKind, Row, encode_rows};
use crate::format::map_object::CheckpointRef;
use crate::limits::{DIRECTORY_PAGES, PAGE_BLOCKS};
use crate::map::{ChangedPages, MapPage, PageIndex, SegmentPlace};
use crate::store::{
    ByteRange, Effect, Faults, Gate, Matching, MemoryStore, ObjectKey, Operation, Store, StoreErrorKind, wrap,
};
use crate::units::{ByteLen, Epoch, SegmentId, SegmentNumber, Sequence, VolumeId};

#[derive(Clone, Default)]
struct Model(BTreeMap<PageIndex, MapPage>);

#[async_trait]
impl PageSource for Model {
    async fn page(&self, index: PageIndex) -> Result<Arc<MapPage>> {
        Ok(Arc::new(self.0.get(&index).cloned().unwrap_or_default()))
    }
}

const POSITION: Position = Position { epoch: Epoch(1), number: SegmentNumber(2), sequence: Sequence(3) };

/// Writes a checkpoint of volume 1, of at most 1 GiB.
async fn write_one(
    store: &Arc<dyn Store>,
    number: &mut u64,
    base: &Checkpoint,
    changed: &ChangedPages,
    source: &Model,
) -> Result<Written> {
    let (volume, size) = (VolumeId(1), ByteLen(1 << 30));
    let new = NewCheckpoint { volume, epoch: Epoch(1), position: POSITION, size, changed, source, replaced: None };
    write(store, base, number, new, &mut |_| Vec::new()).await
}

async fn save(
    store: &Arc<dyn Store>,
    volume: u64,
    number: &mut u64,
    base: &Checkpoint,
    changed: &BTreeSet<PageIndex>,
    model: &Model,
) -> (Checkpoint, WrittenStats) {
    let changed: ChangedPages = changed.iter().copied().collect();
    let (volume, size) = (VolumeId(volume), ByteLen(1 << 40));
    let (changed, source) = (&changed, model);
    let new = NewCheckpoint { volume, epoch: Epoch(1), position: POSITION, size, changed, source, replaced: None };
    let written = write(store, base, number, new, &mut |_| Vec::new()).await;
    let Written { reference, stats, .. } = written.unwrap();
    (Checkpoint::open(store.clone(), reference).await.unwrap(), stats)
}

async fn assert_equals(checkpoint: &Checkpoint, model: &Model) {
    let mut walked = BTreeMap::new();
    checkpoint
        .walk(&mut |index, page| {
            assert!(walked.insert(index, page).is_none(), "a page is visited once");
            Ok(())
        })
        .await
        .unwrap();
    let expected: BTreeMap<_, _> =
        model.0.iter().filter(|(_, page)| !page.is_empty()).map(|(i, p)| (*i, p.clone())).collect();
    assert_eq!(walked, expected);
}

fn random_page(random: &mut SmallRng) -> MapPage {
    let mut page = MapPage::default();
    for _ in 0..random.random_range(0..4) {
        let segment =
            SegmentId { volume: VolumeId(1), epoch: Epoch(1), number: SegmentNumber(random.random_range(0..50)) };
        let offset = random.random_range(0..200);
        page.set(
            offset,
            random.random_range(1..50),
            Some(SegmentPlace { segment, block: random.random_range(0..5000) }),
        );
    }
    page
}

#[tokio::test]
async fn checkpoints_and_forks_equal_their_models() {
    for seed in 0..20 {
        let store = wrap(Arc::new(MemoryStore::new())).store;
        let mut random = SmallRng::seed_from_u64(seed);
        let mut family = vec![(Checkpoint::empty(store.clone()), Model::default(), 1u64, 0u64)];
        for step in 0..30u64 {
            let which = random.random_range(0..family.len());
            if random.random_range(0..6) == 0 {
                // A fork begins with the same checkpoint and writes under its own name.
                let (changed, number) = (BTreeSet::new(), &mut family[which].3.clone());
                let model = family[which].1.clone();
                let volume = 100 + step;
                let (copy, _) = save(&store, volume, number, &family[which].0, &changed, &model).await;
                family.push((copy, model, volume, *number));
                continue;
            }
            let (base, model, volume, number) = &mut family[which];
            let mut changed = BTreeSet::new();
            for _ in 0..random.random_range(1..60) {
                let index = PageIndex(random.random_range(0..5) * 1_000_003 + random.random_range(0..40));
                model.0.insert(index, random_page(&mut random));
                changed.insert(index);
            }
            let (written, _) = save(&store, *volume, number, base, &changed, model).await;
            *base = written;
        }
        for (checkpoint, model, ..) in &family {
            assert_equals(checkpoint, model).await;
            for index in model.0.keys() {
                let pages = checkpoint.pages(*index, 8).await.unwrap();
                assert_eq!(pages[0].0, *index);
                for (index, page) in pages {
                    assert_eq!(Some(&page), model.0.get(&index).or(Some(&MapPage::default())));
                }
            }
        }
    }
}

#[tokio::test]
async fn a_checkpoint_costs_what_changed() {
    let opened = wrap(Arc::new(MemoryStore::new()));
    let store = opened.store.clone();
    let mut random = SmallRng::seed_from_u64(1);
    let mut model = Model::default();
    let mut number = 0;
    for index in 0..10_000 {
        let mut page = random_page(&mut random);
        page.set(
            0,
            1,
            Some(SegmentPlace {
                segment: SegmentId { volume: VolumeId(1), epoch: Epoch(1), number: SegmentNumber(1) },
                block: 1,
            }),
        );
        model.0.insert(PageIndex(index), page);
    }
    let all = model.0.keys().copied().collect();
    let (first, whole) = save(&store, 1, &mut number, &Checkpoint::empty(store.clone()), &all, &model).await;
    let changed: BTreeSet<PageIndex> = (0..10).map(|step| PageIndex(step * 3)).collect();
    for index in &changed {
        model.0.insert(*index, random_page(&mut random));
    }
    let before = opened.counts.snapshot();
    let (second, little) = save(&store, 1, &mut number, &first, &changed, &model).await;
    let after = opened.counts.snapshot();
    assert_eq!((after.puts - before.puts, little.objects), (1, 1));
    // The directory is read before it is changed (`first` was opened anew), and the root to open the new checkpoint.
    assert_eq!(after.gets - before.gets, 2);
    assert!(little.bytes * 10 < whole.bytes, "{little:?} of {whole:?}");
    assert_equals(&second, &model).await;
}

#[tokio::test]
async fn damage_is_noticed() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut model = Model::default();
    let mut random = SmallRng::seed_from_u64(5);
    for index in 0..20 {
        model.0.insert(PageIndex(index), random_page(&mut random));
    }
    let changed: ChangedPages = model.0.keys().copied().collect();
    let empty = Checkpoint::empty(store.clone());
    let mut reference = write_one(&store, &mut 0, &empty, &changed, &model).await.unwrap().reference;
    reference.root.crc ^= 1;
    let error = Checkpoint::open(store.clone(), reference).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    reference.root.object.number = 7;
    assert_eq!(Checkpoint::open(store, reference).await.err().unwrap().kind(), ErrorKind::Damaged);
}

/// A page that does not compress: every block in a place of its own.
fn scattered_page(random: &mut SmallRng) -> MapPage {
    let mut page = MapPage::default();
    for offset in 0..PAGE_BLOCKS as u16 {
        let segment = SegmentId {
            volume: VolumeId(random.random()),
            epoch: Epoch(random.random()),
            number: SegmentNumber(random.random()),
        };
        page.set(offset, 1, Some(SegmentPlace { segment, block: random.random_range(0..1 << 30) }));
    }
    page
}

/// A store with faults, and in it a checkpoint of pages 0 to 19, none of them empty.
async fn twenty_pages() -> (Faults, Arc<dyn Store>, CheckpointRef, Model) {
    let faults = Faults::new();
    let store = faults.wrap(Arc::new(MemoryStore::new()));
    let mut random = SmallRng::seed_from_u64(5);
    let model = Model((0..20).map(|index| (PageIndex(index), scattered_page(&mut random))).collect());
    let changed: ChangedPages = model.0.keys().copied().collect();
    let empty = Checkpoint::empty(store.clone());
    let reference = write_one(&store, &mut 0, &empty, &changed, &model).await.unwrap().reference;
    faults.clear_log();
    (faults, store, reference, model)
}

fn gets() -> Matching {
    Matching::operation(Operation::Get)
}

#[tokio::test]
async fn attaching_reads_the_root_and_neighbours_come_together() {
    let (faults, store, reference, model) = twenty_pages().await;
    let checkpoint = Checkpoint::open(store, reference).await.unwrap();
    assert_eq!(faults.count(&Matching::any()), 1);
    let root = checkpoint.root();
    assert_eq!((root.epoch, root.number, root.sequence), (POSITION.epoch, POSITION.number, POSITION.sequence));
    let pages = checkpoint.pages(PageIndex(3), 100).await.unwrap();
    assert_eq!(faults.count(&Matching::any()), 3, "the directory, and all pages by one request");
    let expected: Vec<_> = model.0.range(PageIndex(3)..).map(|(index, page)| (*index, page.clone())).collect();
    assert_eq!(pages, expected);
    assert_eq!(checkpoint.pages(PageIndex(3), 1).await.unwrap(), expected[..2]);
    assert_eq!(checkpoint.pages(PageIndex(20), 9).await.unwrap(), [(PageIndex(20), MapPage::default())]);
    assert_eq!(checkpoint.pages(PageIndex(9 * DIRECTORY_PAGES), 9).await.unwrap().len(), 1);
    assert_eq!(faults.count(&Matching::any()), 4, "what is absent costs nothing");
}

#[tokio::test]
async fn a_directory_is_fetched_once_however_many_ask() {
    let (faults, store, reference, _) = twenty_pages().await;
    let checkpoint = Arc::new(Checkpoint::open(store, reference).await.unwrap());
    faults.clear_log();
    let gate = Gate::closed();
    faults.inject(gets(), Effect::HoldBefore(gate.clone()), 1);
    let asking: Vec<_> = (0..10)
        .map(|index| {
            let checkpoint = checkpoint.clone();
            tokio::spawn(async move { checkpoint.pages(PageIndex(index), 0).await })
        })
        .collect();
    gate.arrived(1).await;
    gate.open();
    for (index, task) in asking.into_iter().enumerate() {
        assert_eq!(task.await.unwrap().unwrap()[0].0, PageIndex(index as u64));
    }
    assert_eq!(faults.count(&gets()), 11);
}

#[tokio::test]
async fn the_next_checkpoint_need_not_fetch_what_the_last_one_wrote() {
    let (faults, store, reference, mut model) = twenty_pages().await;
    let opened = Checkpoint::open(store.clone(), reference).await.unwrap();
    let mut base = opened;
    let mut number = 10;
    for round in 0..3 {
        faults.clear_log();
        model.0.insert(PageIndex(round), MapPage::default());
        let changed = ChangedPages::from_iter([PageIndex(round)]);
        base = write_one(&store, &mut number, &base, &changed, &model).await.unwrap().checkpoint;
        assert_eq!(faults.count(&gets()), usize::from(round == 0));
    }
    assert_equals(&base, &model).await;
}

#[tokio::test]
async fn a_flipped_bit_on_the_way_is_healed_by_asking_again() {
    let (faults, store, reference, model) = twenty_pages().await;
    faults.inject(gets(), Effect::Flip(5), 1);
    let checkpoint = Checkpoint::open(store, reference).await.unwrap();
    faults.inject(gets(), Effect::Flip(5), 1);
    checkpoint.pages(PageIndex(0), 0).await.unwrap();
    faults.inject(gets(), Effect::Flip(5), 1);
    let pages = checkpoint.pages(PageIndex(0), 30).await.unwrap();
    assert_eq!(pages.len(), 20);
    assert_eq!(Some(&pages[0].1), model.0.get(&PageIndex(0)));
    faults.inject(gets(), Effect::Flip(5), 1);
    assert_equals(&checkpoint, &model).await;
}

#[tokio::test]
async fn a_damaged_page_harms_no_other() {
    let (_, store, reference, model) = twenty_pages().await;
    let checkpoint = Checkpoint::open(store.clone(), reference).await.unwrap();
    // Pages of 7 KiB follow the header: the third is hit.
    damage_object(&*store, reference.root.object, |body| body[16_500] ^= 1).await;
    let pages = checkpoint.pages(PageIndex(0), 30).await.unwrap();
    assert_eq!(pages.len(), 19);
    assert!(pages.iter().all(|(index, page)| *index != PageIndex(2) && Some(page) == model.0.get(index)));
    let error = checkpoint.pages(PageIndex(2), 30).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.message().contains("map object vol_0000000000001/1/0"), "{error}");
    assert_eq!(checkpoint.walk(&mut |_, _| Ok(())).await.unwrap_err().kind(), ErrorKind::Damaged);
    let (mut sound, mut damaged) = (0, Vec::new());
    let mut note = |index, pages, page: Result<MapPage>| {
        match page {
            Ok(_) => sound += 1,
            Err(error) => damaged.push((index, pages, error.kind())),
        }
        Ok(())
    };
    checkpoint.survey(&mut note).await.unwrap();
    assert_eq!((sound, damaged), (19, vec![(PageIndex(2), 1, ErrorKind::Damaged)]));
}

#[tokio::test]
async fn a_cut_or_missing_object_is_damage_and_an_outage_is_not() {
    let (faults, store, reference, _) = twenty_pages().await;
    let checkpoint = Checkpoint::open(store.clone(), reference).await.unwrap();
    checkpoint.pages(PageIndex(0), 0).await.unwrap();
    damage_object(&*store, reference.root.object, |body| body.truncate(30_000)).await;
    assert_eq!(checkpoint.pages(PageIndex(0), 19).await.unwrap().len(), 1, "the page that is still there");
    assert_eq!(checkpoint.pages(PageIndex(19), 0).await.unwrap_err().kind(), ErrorKind::Damaged);
    store.delete(&ObjectKey::map_object(VolumeId(1), Epoch(1), 0)).await.unwrap();
    let error = checkpoint.pages(PageIndex(1), 9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.message().contains("missing"), "{error}");
    let unknown = Checkpoint::empty(store.clone()).successor(store, checkpoint.root().clone());
    let mut concerned = Vec::new();
    let mut note = |index, pages, page: Result<MapPage>| {
        concerned.push((index, pages, page.is_err()));
        Ok(())
    };
    unknown.survey(&mut note).await.unwrap();
    assert_eq!(concerned, [(PageIndex(0), DIRECTORY_PAGES, true)]);
    faults.outage(Some(StoreErrorKind::Unavailable));
    assert_eq!(checkpoint.pages(PageIndex(1), 9).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(unknown.walk(&mut |_, _| Ok(())).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_long_checkpoint_is_cut_into_objects() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut random = SmallRng::seed_from_u64(8);
    let mut model = Model::default();
    for index in 0..5_000 {
        // Directories of 500 pages: some lie wholly within an object, some across two.
        let place = index / 500 * DIRECTORY_PAGES + index % 500;
        model.0.insert(PageIndex(place), scattered_page(&mut random));
    }
    let all = model.0.keys().copied().collect();
    let mut number = 0;
    let (checkpoint, stats) = save(&store, 1, &mut number, &Checkpoint::empty(store.clone()), &all, &model).await;
    assert_eq!((stats.objects, number), (3, 3));
    for number in 0..3 {
        let object = store.get(&ObjectKey::map_object(VolumeId(1), Epoch(1), number), ByteRange::Full).await.unwrap();
        assert!(object.object_length < 18 << 20, "{}", object.object_length);
        let id = crate::format::map_object::decode_header(&object.bytes).unwrap();
        assert_eq!((id.volume, id.epoch, id.number), (VolumeId(1), Epoch(1), number));
    }
    assert_equals(&checkpoint, &model).await;
    let objects: Vec<u64> = checkpoint.objects().await.unwrap().into_iter().map(|object| object.number).collect();
    assert_eq!(objects, [0, 1, 2]);
    // With every page gone nothing is referred to any more.
    let empty = Model::default();
    let (checkpoint, _) = save(&store, 1, &mut number, &checkpoint, &all, &empty).await;
    assert!(checkpoint.root().directories.is_empty() && checkpoint.objects().await.unwrap().is_empty());
}

#[tokio::test]
async fn after_a_failure_writing_goes_on_under_a_new_name() {
    let (faults, store, reference, mut model) = twenty_pages().await;
    let base = Checkpoint::open(store.clone(), reference).await.unwrap();
    model.0.insert(PageIndex(4), MapPage::default());
    let mut number = 1;
    faults.inject(Matching::operation(Operation::Put), Effect::FailAfter(StoreErrorKind::OutcomeUnknown), 1);
    let changed = ChangedPages::from_iter([PageIndex(4)]);
    let again = async |number: &mut u64| write_one(&store, number, &base, &changed, &model).await;
    let error: Error = again(&mut number).await.err().unwrap();
    assert_eq!((error.kind(), number), (ErrorKind::Unavailable, 2));
    assert!(error.message().contains("volumes/vol_0000000000001/map/"), "{error}");
    let Written { reference, checkpoint, .. } = again(&mut number).await.unwrap();
    assert_eq!((reference.root.object.number, number), (2, 3));
    assert_equals(&checkpoint, &model).await;
    let outside = ChangedPages::from_iter([PageIndex(1 << 24)]);
    let refused = write_one(&store, &mut number, &base, &outside, &model).await;
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::Invalid);
}

/// The doors run on many threads: what they wait for must be able to move among them.
#[test]
fn futures_can_move_between_threads() {
    fn movable<T: Send>(_: T) {}
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let checkpoint = Checkpoint::empty(store.clone());
    let (mut number, model, none) = (0, Model::default(), ChangedPages::default());
    movable(checkpoint.pages(PageIndex(0), 1));
    movable(checkpoint.objects());
    movable(checkpoint.walk(&mut |_, _| Ok(())));
    movable(write_one(&store, &mut number, &checkpoint, &none, &model));
}

#[tokio::test]
async fn what_a_checkpoint_lets_go_of_is_counted_and_its_census_is_read_back() {
    let (faults, store, reference, mut model) = twenty_pages().await;
    faults.clear_log();
    let base = Checkpoint::open(store.clone(), reference).await.unwrap();
    let row = Row {
        kind: ObjectKind::Segment,
        at: ObjectAt { epoch: Epoch(1), number: 4 },
        counted: Counted { bytes: 10, units: 2, live: 1, dead_at: None },
    };
    let mut held = BTreeMap::from([(reference.root.object.number, i64::from(u32::MAX))]);
    let mut replaced = reference;
    let (mut known, mut number) = (base, 1);
    for step in 0..4 {
        // Half of the pages at first; all of them in the end.
        let changed: ChangedPages = (0..20).filter(|index| step == 3 || index % 2 == step % 2).map(PageIndex).collect();
        model.0.get_mut(&PageIndex(0)).unwrap().set(step as u16, 1, None);
        let (volume, size) = (VolumeId(1), ByteLen(1 << 30));
        let changed = &changed;
        let replaced_now = Some(replaced);
        let source = &model;
        let new = NewCheckpoint {
            volume,
            epoch: Epoch(1),
            position: POSITION,
            size,
            changed,
            source,
            replaced: replaced_now,
        };
        let written =
            write(&store, &known, &mut number, new, &mut |_| encode_rows(&[row], Making::COUNTED)).await.unwrap();
        assert_eq!(read_census(&*store, &written.census).await.unwrap(), (vec![row], Making::COUNTED));
        for (at, bytes, live) in &written.changes.written {
            assert!(live < bytes);
            held.insert(at.number, i64::from(*live));
        }
        for (at, bytes) in &written.changes.released {
            *held.get_mut(&at.number).unwrap() -= *bytes as i64;
        }
        (replaced, known) = (written.reference, written.checkpoint);
        let mut referred: BTreeMap<u64, i64> = BTreeMap::from([(replaced.root.object.number, 0)]);
        for (which, directory) in &known.root().directories {
            *referred.entry(directory.object.number).or_default() += i64::from(directory.stored_length);
            for (_, page) in known.directory(*which).await.unwrap().iter() {
                *referred.entry(page.object.number).or_default() += i64::from(page.stored_length);
            }
        }
        *referred.get_mut(&replaced.root.object.number).unwrap() += i64::from(replaced.root.stored_length);
        // Of the first object only what it let go of is known.
        let of_others: BTreeMap<u64, i64> =
            held.iter().filter(|(at, live)| **at != 0 && **live != 0).map(|(at, live)| (*at, *live)).collect();
        referred.remove(&0);
        assert_eq!(of_others, referred);
    }
    assert_eq!(referred_to(&known).await, BTreeSet::from([replaced.root.object.number]));
}

async fn referred_to(checkpoint: &Checkpoint) -> BTreeSet<u64> {
    checkpoint.objects().await.unwrap().into_iter().map(|object| object.number).collect()
}

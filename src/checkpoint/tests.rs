use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::error::Result;
use crate::map::{MapPage, PageIndex, SegmentPlace};
use crate::store::{MemoryStore, Store, wrap};
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

async fn save(
    store: &Arc<dyn Store>,
    volume: u64,
    number: &mut u64,
    base: &Checkpoint,
    changed: &BTreeSet<PageIndex>,
    model: &Model,
) -> (Checkpoint, WrittenStats) {
    let changed: Vec<PageIndex> = changed.iter().copied().collect();
    let size = ByteLen(1 << 40);
    let volume = VolumeId(volume);
    let written = write(store.clone(), volume, Epoch(1), number, base, POSITION, size, &changed, model).await;
    let (reference, _, stats) = written.unwrap();
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
    let expected: BTreeMap<_, _> = model.0.iter().filter(|(_, page)| !page.is_empty()).map(|(i, p)| (*i, p.clone())).collect();
    assert_eq!(walked, expected);
}

fn random_page(random: &mut SmallRng) -> MapPage {
    let mut page = MapPage::default();
    for _ in 0..random.random_range(0..4) {
        let segment = SegmentId { volume: VolumeId(1), epoch: Epoch(1), number: SegmentNumber(random.random_range(0..50)) };
        let offset = random.random_range(0..200);
        page.set(offset, random.random_range(1..50), Some(SegmentPlace { segment, block: random.random_range(0..5000) }));
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
        page.set(0, 1, Some(SegmentPlace { segment: SegmentId { volume: VolumeId(1), epoch: Epoch(1), number: SegmentNumber(1) }, block: 1 }));
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
    // One directory read before it is changed, one root to open the new checkpoint.
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
    let changed: Vec<PageIndex> = model.0.keys().copied().collect();
    let empty = Checkpoint::empty(store.clone());
    let (volume, size) = (VolumeId(1), ByteLen(1 << 30));
    let (mut reference, ..) =
        write(store.clone(), volume, Epoch(1), &mut 0, &empty, POSITION, size, &changed, &model).await.unwrap();
    reference.root.crc ^= 1;
    let error = Checkpoint::open(store.clone(), reference).await.err().unwrap();
    assert_eq!(error.kind(), crate::error::ErrorKind::Damaged);
    reference.root.object.number = 7;
    assert_eq!(Checkpoint::open(store, reference).await.err().unwrap().kind(), crate::error::ErrorKind::Damaged);
}

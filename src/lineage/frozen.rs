//! The block map as of one moment, for reading. It never changes, so pages may be forgotten and loaded again at any time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::checkpoint::{Checkpoint, KnownDirectories};
use crate::error::Result;
use crate::format::lineage::Moment;
use crate::format::map_object::PageRef;
use crate::format::segment::{EntryKind, SegmentIndex};
use crate::limits::DIRECTORY_PAGES;
use crate::lineage::replay::replayed_indexes;
use crate::map::{MapPage, PageIndex, PagePlace};
use crate::segment::apply_entry;
use crate::store::Store;
use crate::units::{BlockCount, BlockRange, ByteLen};

/// Memory for the pages of all maps that share it, in bytes.
const PAGES_BYTES: u64 = 16 << 20;
/// An average page, in bytes, from which the cache guesses how many it will hold.
const PAGE_BYTES: u64 = 512;
/// What a page takes in the cache besides itself, in bytes.
const OVERHEAD_BYTES: u64 = 144;
/// Neighbours that a fetch from the checkpoint may bring along.
const READ_AHEAD_PAGES: usize = 64;

#[derive(Clone)]
struct PageWeight;

impl Weighter<(u64, PageIndex), Arc<MapPage>> for PageWeight {
    fn weight(&self, _: &(u64, PageIndex), page: &Arc<MapPage>) -> u64 {
        page.memory_bytes() as u64 + OVERHEAD_BYTES
    }
}

/// Memory for pages and directories that any number of maps share: 22 MiB. Clones are the same.
#[derive(Clone)]
pub struct FrozenPages {
    pages: Arc<Cache<(u64, PageIndex), Arc<MapPage>, PageWeight>>,
    /// Tells maps apart: the number of the next.
    next: Arc<AtomicU64>,
    directories: KnownDirectories,
}

impl Default for FrozenPages {
    fn default() -> Self {
        let pages = Cache::with_weighter((PAGES_BYTES / PAGE_BYTES) as usize, PAGES_BYTES, PageWeight);
        FrozenPages { pages: Arc::new(pages), next: Arc::default(), directories: KnownDirectories::default() }
    }
}

/// A page that may hold something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OccupiedPage {
    /// The page.
    pub index: PageIndex,
    /// Where the checkpoint has it, if it does.
    pub reference: Option<PageRef>,
    /// True if segments behind the checkpoint change it.
    pub is_replayed: bool,
}

/// The block map as of one moment.
pub struct FrozenMap {
    size: ByteLen,
    checkpoint: Checkpoint,
    replay: Vec<SegmentIndex>,
    pages: FrozenPages,
    /// Among those who share the pages.
    number: u64,
}

impl FrozenMap {
    /// Opens the map of a moment, with memory of its own: one round trip.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, and what the store says.
    pub async fn open(store: &Arc<dyn Store>, moment: &Moment) -> Result<Self> {
        FrozenMap::open_sharing(store, moment, &FrozenPages::default()).await
    }

    /// As [`FrozenMap::open`], with memory that others use too.
    ///
    /// # Errors
    /// As [`FrozenMap::open`].
    pub async fn open_sharing(store: &Arc<dyn Store>, moment: &Moment, pages: &FrozenPages) -> Result<Self> {
        let root = async {
            match moment.checkpoint {
                Some(reference) => Checkpoint::open(store.clone(), reference).await,
                None => Ok(Checkpoint::empty(store.clone())),
            }
        };
        let (checkpoint, mut replay) = tokio::try_join!(root, replayed_indexes(&**store, &moment.replay))?;
        for segment in &mut replay {
            segment.entries.sort_by_key(|entry| entry.range.start);
        }
        let number = pages.next.fetch_add(1, Ordering::Relaxed);
        let checkpoint = checkpoint.sharing(&pages.directories);
        Ok(FrozenMap { size: moment.size, checkpoint, replay, pages: pages.clone(), number })
    }

    /// Size of the volume, in bytes.
    pub fn size(&self) -> ByteLen {
        self.size
    }

    /// Pushes the places of `range` onto `places` if all its pages are in memory, and says whether they were.
    pub fn try_lookup(&self, range: BlockRange, places: &mut Vec<PagePlace>) -> bool {
        let before = places.len();
        for (index, part) in PageIndex::parts_of(range) {
            let Some(page) = self.pages.pages.get(&(self.number, index)) else {
                places.truncate(before);
                return false;
            };
            page.lookup(index, part, places);
        }
        true
    }

    /// Pushes the places of `range` onto `places`, in order and without gaps.
    ///
    /// # Errors
    /// `Damaged`, and what the store says.
    pub async fn lookup(&self, range: BlockRange, places: &mut Vec<PagePlace>) -> Result<()> {
        for (index, part) in PageIndex::parts_of(range) {
            self.page(index).await?.lookup(index, part, places);
        }
        Ok(())
    }

    /// A page.
    ///
    /// # Errors
    /// `Damaged`, and what the store says.
    pub async fn page(&self, index: PageIndex) -> Result<Arc<MapPage>> {
        if let Some(page) = self.pages.pages.get(&(self.number, index)) {
            return Ok(page);
        }
        let mut wanted = None;
        for (found, mut page) in self.checkpoint.pages(index, READ_AHEAD_PAGES).await? {
            self.replay_onto(found, &mut page);
            let page = Arc::new(page);
            if found == index {
                wanted = Some(page.clone());
            }
            self.pages.pages.insert((self.number, found), page);
        }
        Ok(wanted.unwrap_or_default())
    }

    fn replay_onto(&self, index: PageIndex, page: &mut MapPage) {
        let range = index.range();
        for segment in &self.replay {
            let first = segment.entries.partition_point(|entry| entry.range.end() <= range.start);
            for entry in segment.entries[first..].iter().take_while(|entry| entry.range.start < range.end()) {
                let start = entry.range.start.max(range.start);
                let count = BlockCount(entry.range.end().min(range.end()).0 - start.0);
                apply_entry(page, index, BlockRange::new(start, count), entry, segment.header.id);
            }
        }
    }

    /// The directories (each the pages of one GiB) that may hold something, in order.
    pub fn directories(&self) -> BTreeSet<u32> {
        let replayed = self.replayed_pages(0, u64::MAX).into_iter().map(|index| (index.0 / DIRECTORY_PAGES) as u32);
        self.checkpoint.root().directories.iter().map(|(which, _)| *which).chain(replayed).collect()
    }

    /// Where the checkpoint has a directory, and whether segments behind it change something in it.
    pub fn directory(&self, which: u32) -> (Option<PageRef>, bool) {
        let first = u64::from(which) * DIRECTORY_PAGES;
        (self.checkpoint.reference(which), self.is_changed_within(first, first + DIRECTORY_PAGES))
    }

    /// The pages of a directory that may hold something, in order.
    ///
    /// # Errors
    /// `Damaged`, and what the store says.
    pub async fn occupied(&self, which: u32) -> Result<Vec<OccupiedPage>> {
        let first = u64::from(which) * DIRECTORY_PAGES;
        let directory = self.checkpoint.directory(which).await?;
        let mut indexes: BTreeSet<PageIndex> = self.replayed_pages(first, first + DIRECTORY_PAGES);
        indexes.extend(directory.iter().map(|(slot, _)| PageIndex(first + u64::from(*slot))));
        let occupied = indexes.into_iter().map(|index| {
            let at = directory.partition_point(|(slot, _)| first + u64::from(*slot) < index.0);
            let reference = directory.get(at).filter(|(slot, _)| first + u64::from(*slot) == index.0);
            OccupiedPage {
                index,
                reference: reference.map(|(_, reference)| *reference),
                is_replayed: self.is_changed_within(index.0, index.0 + 1),
            }
        });
        Ok(occupied.collect())
    }

    /// True if a segment behind the checkpoint changes a page from `first` up to before `end`.
    fn is_changed_within(&self, first: u64, end: u64) -> bool {
        let (start, end) = (PageIndex(first).range().start, PageIndex(end).range().start);
        self.replay.iter().any(|segment| {
            let at = segment.entries.partition_point(|entry| entry.range.end() <= start);
            segment.entries.get(at).is_some_and(|entry| entry.range.start < end)
        })
    }

    /// The pages from `first` up to before `end` into which a segment behind the checkpoint puts data.
    fn replayed_pages(&self, first: u64, end: u64) -> BTreeSet<PageIndex> {
        let mut pages = BTreeSet::new();
        for entry in self.replay.iter().flat_map(|segment| &segment.entries) {
            if entry.kind == EntryKind::Zero {
                continue;
            }
            let parts = PageIndex::parts_of(entry.range).map(|(index, _)| index);
            pages.extend(parts.filter(|index| (first..end).contains(&index.0)));
        }
        pages
    }
}

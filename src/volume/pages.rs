//! The pages of one volume's block map: hot ones in memory within a budget, all that were ever touched in RocksDB, the rest
//! in the checkpoint.
//!
//! Invariants: a page that differs from the checkpoint is in memory (dirty) or in RocksDB, or is neither and has postponed
//! changes; memory is newer than RocksDB, RocksDB newer than the checkpoint. Pages change only by [`PageTable::replay`] and then
//! [`PageTable::apply`], which one task calls, in the order of the sequence.
//!
//! Attaching replays segments whose pages are all over the volume. To fetch these first would take a round trip for each, so
//! changes to a page that is not at hand are postponed until somebody needs the page: it is never seen without them.
//!
//! After a crash RocksDB may hold pages that are newer than the checkpoint: replaying the segments behind the checkpoint over
//! them ends in the same state, since the last write of every block comes last again.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};

use crate::checkpoint::{Checkpoint, PageSource};
use crate::error::{Error, ErrorKind, Result};
use crate::format::map_object::PageRef;
use crate::format::page::{open_page, seal_page};
use crate::format::segment::{EntryKind, SegmentIndex};
use crate::index::Index;
use crate::limits::{DIRECTORY_PAGES, PAGE_BLOCKS};
use crate::lineage::{MapView, OccupiedPage};
use crate::map::{MapPage, PageIndex, PagePlace};
use crate::segment::apply_entry;
use crate::units::{BlockCount, BlockRange, VolumeId};

/// Neighbours that a fetch from the checkpoint may bring along.
const READ_AHEAD_PAGES: usize = 64;
/// Dirty pages written to RocksDB at once.
const WRITE_BACK_PAGES: usize = 128;
/// An entry that changes more pages than this (the trim of a large part of a volume) is not postponed: bounds memory.
const POSTPONED_PAGES_MAX: u64 = 1024;

/// Memory that the pages of all volumes share.
#[derive(Debug)]
pub struct PageBudget {
    used: AtomicUsize,
    limit: usize,
}

impl PageBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        PageBudget { used: AtomicUsize::new(0), limit }
    }

    fn is_exceeded(&self) -> bool {
        self.used.load(Ordering::Relaxed) > self.limit
    }
}

struct Resident {
    page: Arc<MapPage>,
    bytes: usize,
    dirty: bool,
    touched: bool,
}

#[derive(Default)]
struct Residents {
    pages: HashMap<PageIndex, Resident>,
    clock: VecDeque<PageIndex>,
    changed: BTreeSet<PageIndex>,
    /// The attachment is over, and RocksDB the next one's.
    is_closed: bool,
    /// Changes to pages that are neither in memory nor in RocksDB, in the order of the sequence.
    postponed: HashMap<PageIndex, Vec<Postponed>>,
}

impl Residents {
    fn only_if_open(&self, volume: VolumeId) -> Result<()> {
        if self.is_closed {
            return Err(Error::new(ErrorKind::Stopping, format!("this attachment of volume {volume} is over")));
        }
        Ok(())
    }
}

/// An entry of a segment that a page lacks.
struct Postponed {
    segment: Arc<SegmentIndex>,
    entry: usize,
}

/// The pages of one volume.
pub struct PageTable {
    volume: VolumeId,
    index: Arc<Index>,
    budget: Arc<PageBudget>,
    base: RwLock<Arc<Checkpoint>>,
    residents: Mutex<Residents>,
}

impl PageTable {
    /// The pages of `volume` over the checkpoint `base`; what RocksDB holds of them must not be older.
    pub fn new(volume: VolumeId, index: Arc<Index>, budget: Arc<PageBudget>, base: Arc<Checkpoint>) -> Self {
        PageTable { volume, index, budget, base: RwLock::new(base), residents: Mutex::new(Residents::default()) }
    }

    /// Pushes the places of `range` onto `places` if all its pages are in memory, and says whether they were.
    pub fn try_lookup(&self, range: BlockRange, places: &mut Vec<PagePlace>) -> bool {
        let mut residents = self.residents.lock();
        let before = places.len();
        for (index, part) in PageIndex::parts_of(range) {
            let Some(resident) = residents.pages.get_mut(&index) else {
                places.truncate(before);
                return false;
            };
            resident.touched = true;
            resident.page.lookup(index, part, places);
        }
        true
    }

    /// Pushes the places of `range` onto `places`, loading the pages that are missing.
    ///
    /// # Errors
    /// What RocksDB or the store say.
    pub async fn lookup(&self, range: BlockRange, places: &mut Vec<PagePlace>) -> Result<()> {
        for (index, part) in PageIndex::parts_of(range) {
            self.load(index).await?.lookup(index, part, places);
        }
        Ok(())
    }

    /// Makes the changes that a segment says, in its order.
    ///
    /// # Errors
    /// What RocksDB or the store say; the table is then partly changed, and applying the same segment again completes it.
    pub async fn apply(&self, segment: &SegmentIndex) -> Result<()> {
        for entry in &segment.entries {
            for (index, part) in PageIndex::parts_of(entry.range) {
                let page = self.load(index).await?;
                if page.is_empty() && entry.kind == EntryKind::Zero {
                    continue;
                }
                self.change(index, page, |page| apply_entry(page, index, part, entry, segment.header.id));
            }
        }
        Ok(())
    }

    /// As [`PageTable::apply`], but asks the store for nothing: pages that are not at hand are changed when they are loaded. Only
    /// while attaching, before anybody else uses the table.
    ///
    /// # Errors
    /// As [`PageTable::apply`].
    pub async fn replay(&self, segment: &Arc<SegmentIndex>) -> Result<()> {
        for (number, entry) in segment.entries.iter().enumerate() {
            let is_wide = entry.range.count.0 / PAGE_BLOCKS > POSTPONED_PAGES_MAX;
            for (index, part) in PageIndex::parts_of(entry.range) {
                let page = match self.resident(index)? {
                    None if is_wide => self.load(index).await?,
                    None => {
                        let mut residents = self.residents.lock();
                        residents.changed.insert(index);
                        let postponed = Postponed { segment: segment.clone(), entry: number };
                        residents.postponed.entry(index).or_default().push(postponed);
                        continue;
                    }
                    Some(page) => {
                        // RocksDB may be newer than the checkpoint: a page that is empty here may still have to become so there.
                        self.residents.lock().changed.insert(index);
                        page
                    }
                };
                if !(page.is_empty() && entry.kind == EntryKind::Zero) {
                    self.change(index, page, |page| apply_entry(page, index, part, entry, segment.header.id));
                }
            }
        }
        Ok(())
    }

    /// The pages that differ from the checkpoint, in order.
    pub fn changed(&self) -> Vec<PageIndex> {
        self.residents.lock().changed.iter().copied().collect()
    }

    /// The checkpoint below.
    pub fn base(&self) -> Arc<Checkpoint> {
        self.base.read().clone()
    }

    /// Says that a new checkpoint holds all changes so far.
    pub fn rebase(&self, base: Arc<Checkpoint>) {
        *self.base.write() = base;
        self.residents.lock().changed.clear();
    }

    /// From now on nothing is written to RocksDB, which the next attachment may be using.
    pub fn close(&self) {
        self.residents.lock().is_closed = true;
    }

    /// Writes all dirty pages to RocksDB.
    ///
    /// # Errors
    /// What RocksDB says.
    pub fn write_back(&self) -> Result<()> {
        loop {
            let mut dirty: Vec<PageIndex> = {
                let residents = self.residents.lock();
                residents.pages.iter().filter(|(_, resident)| resident.dirty).map(|(&index, _)| index).collect()
            };
            if dirty.is_empty() {
                return Ok(());
            }
            // The same order in every process, so that a simulated history is the same.
            dirty.sort_unstable();
            for batch in dirty.chunks(WRITE_BACK_PAGES) {
                self.write_back_batch(&mut self.residents.lock(), batch)?;
            }
        }
    }

    fn write_back_batch(&self, residents: &mut Residents, batch: &[PageIndex]) -> Result<()> {
        residents.only_if_open(self.volume)?;
        let sealed = batch.iter().filter_map(|index| residents.pages.get(index).map(|r| (*index, seal_page(&r.page))));
        self.index.put_pages(self.volume, sealed)?;
        for index in batch {
            if let Some(resident) = residents.pages.get_mut(index) {
                resident.dirty = false;
            }
        }
        Ok(())
    }

    /// Brings a page into memory and returns it.
    async fn load(&self, index: PageIndex) -> Result<Arc<MapPage>> {
        loop {
            if let Some(page) = self.resident(index)? {
                return Ok(page);
            }
            let base = self.base();
            let fetched = base.pages(index, READ_AHEAD_PAGES).await?;
            if let Some(page) = self.adopt(&base, index, fetched)? {
                return Ok(page);
            }
        }
    }

    /// A page from memory, or else from RocksDB.
    fn resident(&self, index: PageIndex) -> Result<Option<Arc<MapPage>>> {
        let mut residents = self.residents.lock();
        if let Some(resident) = residents.pages.get_mut(&index) {
            resident.touched = true;
            return Ok(Some(resident.page.clone()));
        }
        let Some(bytes) = self.index.page(self.volume, index)? else {
            return Ok(None);
        };
        let page = Arc::new(open_page(&bytes)?);
        self.insert(&mut residents, index, page.clone(), false);
        self.evict(&mut residents)?;
        Ok(Some(page))
    }

    /// Takes in pages that came from the checkpoint, unless newer ones are known by now, and returns the one that was
    /// asked for if it was taken in.
    fn adopt(
        &self,
        base: &Arc<Checkpoint>,
        wanted: PageIndex,
        fetched: Vec<(PageIndex, MapPage)>,
    ) -> Result<Option<Arc<MapPage>>> {
        let mut residents = self.residents.lock();
        if !Arc::ptr_eq(base, &self.base.read()) {
            return Ok(None);
        }
        residents.only_if_open(self.volume)?;
        let (mut fresh, mut found) = (Vec::new(), None);
        for (index, mut page) in fetched {
            if residents.pages.contains_key(&index) || self.index.page(self.volume, index)?.is_some() {
                continue;
            }
            if !page.is_empty() {
                fresh.push((index, seal_page(&page)));
            }
            let postponed = residents.postponed.remove(&index).unwrap_or_default();
            for Postponed { segment, entry } in &postponed {
                apply_postponed(&mut page, index, segment, *entry);
            }
            let page = Arc::new(page);
            if index == wanted {
                found = Some(page.clone());
            }
            self.insert(&mut residents, index, page, !postponed.is_empty());
        }
        self.index.put_pages(self.volume, fresh)?;
        self.evict(&mut residents)?;
        Ok(found)
    }

    fn change(&self, index: PageIndex, mut page: Arc<MapPage>, edit: impl FnOnce(&mut MapPage)) {
        let mut residents = self.residents.lock();
        if let Some(resident) = residents.pages.remove(&index) {
            self.budget.used.fetch_sub(resident.bytes, Ordering::Relaxed);
            page = resident.page;
        } else {
            residents.clock.push_back(index);
        }
        edit(Arc::make_mut(&mut page));
        let bytes = page.memory_bytes();
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        residents.pages.insert(index, Resident { page, bytes, dirty: true, touched: true });
        residents.changed.insert(index);
    }

    fn insert(&self, residents: &mut Residents, index: PageIndex, page: Arc<MapPage>, dirty: bool) {
        let bytes = page.memory_bytes();
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        residents.pages.insert(index, Resident { page, bytes, dirty, touched: true });
        residents.clock.push_back(index);
    }

    /// Lets go of pages that were not used for the longest time until the budget is kept. At least one page stays.
    fn evict(&self, residents: &mut Residents) -> Result<()> {
        let mut turns = residents.clock.len() * 2;
        while self.budget.is_exceeded() && residents.clock.len() > 1 && turns > 0 {
            turns -= 1;
            let Some(index) = residents.clock.pop_front() else { break };
            let Some(resident) = residents.pages.get_mut(&index) else { continue };
            if resident.touched {
                resident.touched = false;
                residents.clock.push_back(index);
                continue;
            }
            if resident.dirty {
                let dirty = residents.clock.iter().filter(|index| residents.pages.get(index).is_some_and(|r| r.dirty));
                let mut batch: Vec<PageIndex> = dirty.take(WRITE_BACK_PAGES - 1).copied().collect();
                batch.push(index);
                self.write_back_batch(residents, &batch)?;
            }
            if let Some(gone) = residents.pages.remove(&index) {
                self.budget.used.fetch_sub(gone.bytes, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl Drop for PageTable {
    fn drop(&mut self) {
        let bytes: usize = self.residents.lock().pages.values().map(|resident| resident.bytes).sum();
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[async_trait]
impl PageSource for PageTable {
    async fn page(&self, index: PageIndex) -> Result<Arc<MapPage>> {
        self.load(index).await
    }
}

/// Makes the change that entry number `entry` says for the blocks of this page.
fn apply_postponed(page: &mut MapPage, index: PageIndex, segment: &SegmentIndex, entry: usize) {
    let Some(entry) = segment.entries.get(entry) else { return };
    let (blocks, range) = (index.range(), entry.range);
    let (start, end) = (range.start.max(blocks.start), range.end().min(blocks.end()));
    let part = BlockRange::new(start, BlockCount(end.0 - start.0));
    apply_entry(page, index, part, entry, segment.header.id);
}

impl PageTable {
    /// The checkpoint below, and the pages of a directory that differ from it. A page too many may be named while a checkpoint is written.
    fn state_of(&self, which: u32) -> (Arc<Checkpoint>, Vec<PageIndex>) {
        let first = u64::from(which) * DIRECTORY_PAGES;
        let residents = self.residents.lock();
        let changed = residents.changed.range(PageIndex(first)..PageIndex(first + DIRECTORY_PAGES)).copied().collect();
        (self.base(), changed)
    }
}

#[async_trait]
impl MapView for PageTable {
    fn directory(&self, which: u32) -> (Option<PageRef>, bool) {
        let (base, changed) = self.state_of(which);
        (base.reference(which), !changed.is_empty())
    }

    async fn occupied(&self, which: u32) -> Result<Vec<OccupiedPage>> {
        let (base, changed) = self.state_of(which);
        let first = u64::from(which) * DIRECTORY_PAGES;
        let directory = base.directory(which).await?;
        let mut pages: BTreeMap<PageIndex, OccupiedPage> = BTreeMap::new();
        for (slot, reference) in directory.iter() {
            let index = PageIndex(first + u64::from(*slot));
            pages.insert(index, OccupiedPage { index, reference: Some(*reference), is_replayed: false });
        }
        for index in changed {
            let page = pages.entry(index).or_insert(OccupiedPage { index, reference: None, is_replayed: true });
            page.is_replayed = true;
        }
        Ok(pages.into_values().collect())
    }

    async fn page(&self, index: PageIndex) -> Result<Arc<MapPage>> {
        self.load(index).await
    }
}

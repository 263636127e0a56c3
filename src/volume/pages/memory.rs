//! The pages of one volume in memory: brought in from RocksDB or the checkpoint, changed, written back, let go of.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::format::page::{open_page, seal_page};
use crate::format::segment::SegmentIndex;
use crate::map::{MapPage, PageIndex};
use crate::segment::apply_entry;
use crate::units::{BlockCount, BlockRange, VolumeId};
use crate::volume::pages::PageTable;
use crate::volume::pages::count::Shifts;

/// Neighbours that a fetch from the checkpoint may bring along.
const READ_AHEAD_PAGES: usize = 64;
/// Dirty pages written to RocksDB at once.
const WRITE_BACK_PAGES: usize = 128;

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

pub(super) struct Resident {
    pub page: Arc<MapPage>,
    pub bytes: usize,
    pub dirty: bool,
    pub touched: bool,
}

#[derive(Default)]
pub(super) struct Residents {
    pub pages: HashMap<PageIndex, Resident>,
    pub clock: VecDeque<PageIndex>,
    pub changed: BTreeSet<PageIndex>,
    /// The attachment is over, and RocksDB the next one's.
    pub is_closed: bool,
    /// Changes to pages that are neither in memory nor in RocksDB, in the order of the sequence.
    pub postponed: HashMap<PageIndex, Vec<Postponed>>,
    /// What [`PageTable::apply`] has changed for the census.
    pub shifts: Shifts,
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
pub(super) struct Postponed {
    pub segment: Arc<SegmentIndex>,
    pub entry: usize,
}

impl PageTable {
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
    pub(super) async fn load(&self, index: PageIndex) -> Result<Arc<MapPage>> {
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
    pub(super) fn resident(&self, index: PageIndex) -> Result<Option<Arc<MapPage>>> {
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

    pub(super) fn change(&self, index: PageIndex, mut page: Arc<MapPage>, edit: impl FnOnce(&mut MapPage)) {
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

/// Makes the change that entry number `entry` says for the blocks of this page.
fn apply_postponed(page: &mut MapPage, index: PageIndex, segment: &SegmentIndex, entry: usize) {
    let Some(entry) = segment.entries.get(entry) else { return };
    let (blocks, range) = (index.range(), entry.range);
    let (start, end) = (range.start.max(blocks.start), range.end().min(blocks.end()));
    let part = BlockRange::new(start, BlockCount(end.0 - start.0));
    apply_entry(page, index, part, entry, segment.header.id);
}

//! The pages of one volume in memory: brought in from RocksDB or the checkpoint, changed, written back, let go of.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::format::map_object::MapObjectId;
use crate::format::segment::SegmentIndex;
use crate::limits::DIRECTORY_PAGES;
use crate::map::{ChangedPages, MapPage, PageIndex};
use crate::segment::apply_entry;
use crate::units::{BlockCount, BlockRange, VolumeId};
use crate::volume::pages::PageTable;
use crate::volume::pages::count::Shifts;
use crate::volume::pages::damage::Met;
use crate::work::simulated::{self, Mutation};

/// Neighbours that a fetch from the checkpoint may bring along.
const READ_AHEAD_PAGES: usize = 64;
/// Dirty pages written to RocksDB at once.
const WRITE_BACK_PAGES: usize = 128;

/// What a page takes besides itself, in bytes: its `Arc`, its row in a hash table that is half full, its turn in the clock, and what the
/// allocator rounds up.
const RESIDENT_OVERHEAD_BYTES: usize = 144;

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
    pub changed: ChangedPages,
    /// The attachment is over, and RocksDB the next one's.
    pub is_closed: bool,
    /// What [`PageTable::apply`] has changed for the census.
    pub shifts: Shifts,
    /// The segments that pages of the checkpoint lack, in the order of the sequence, with their entries in that of the blocks.
    pub postponed: Vec<Arc<SegmentIndex>>,
    /// Directories that were cleared since, and how many of these segments came before that: they change nothing there any more.
    pub outlived: HashMap<u32, usize>,
    /// Entries replayed or applied since the checkpoint.
    pub entries_since: usize,
    /// The objects in which damage was met.
    pub damaged: BTreeMap<MapObjectId, Met>,
    /// Something was given up that the checkpoint still has.
    pub has_given_up: bool,
}

impl Residents {
    pub fn only_if_open(&self, volume: VolumeId) -> Result<()> {
        if self.is_closed {
            return Err(Error::new(ErrorKind::Stopping, format!("this attachment of volume {volume} is over")));
        }
        Ok(())
    }

    /// Nothing of what the checkpoint has in a directory counts any more, nor what its pages lack.
    pub fn clear_directory(&mut self, which: u32) {
        self.changed.clear_directory(which);
        if !self.postponed.is_empty() {
            self.outlived.insert(which, self.postponed.len());
        }
    }

    /// True if no page of a directory holds anything.
    pub fn is_void(&self, base: &Checkpoint, which: u32) -> bool {
        match self.changed.directory(which) {
            Some(directory) => directory.names_none() && (directory.is_cleared() || base.reference(which).is_none()),
            None => base.reference(which).is_none(),
        }
    }

    /// Changes a page of the checkpoint by what it lacks, and says whether that was anything.
    pub fn complete(&self, index: PageIndex, page: &mut MapPage) -> bool {
        if !self.changed.contains(index) {
            return false;
        }
        let outlived = match self.outlived.get(&directory_of(index)) {
            Some(&outlived) if !simulated::has(Mutation::ReviveTrimmed) => outlived,
            _ => 0,
        };
        // Each of them, also after the first that changes something.
        self.postponed[outlived..].iter().filter(|segment| apply_segment(page, index, segment)).count() > 0
    }
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
        let rows =
            batch.iter().filter_map(|index| residents.pages.get(index).map(|r| (*index, self.row_of(*index, &r.page))));
        self.index.put_pages(self.volume, rows)?;
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
            let which = directory_of(index);
            let (base, is_cleared) = {
                let residents = self.residents.lock();
                (self.base(), residents.changed.is_cleared(which))
            };
            let fetched = match is_cleared {
                true => vec![(index, MapPage::default())],
                false => match base.pages(index, READ_AHEAD_PAGES).await {
                    // A checkpoint has come meanwhile, and what only the one before it needed may be gone; or the page was given up.
                    Err(error) if error.is_damage() && self.has_moved_on(&base, index)? => continue,
                    fetched => fetched?,
                },
            };
            if let Some(page) = self.adopt(&base, is_cleared, index, fetched)? {
                return Ok(page);
            }
        }
    }

    /// Keeps a segment that pages of the checkpoint lack. It counts as much as pages do.
    pub(super) fn postpone(&self, segment: Arc<SegmentIndex>) {
        self.budget.used.fetch_add(segment.memory_bytes(), Ordering::Relaxed);
        self.residents.lock().postponed.push(segment);
    }

    pub(super) fn forget_postponed(&self, residents: &mut Residents) {
        let bytes: usize = residents.postponed.iter().map(|segment| segment.memory_bytes()).sum();
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        residents.postponed = Vec::new();
        residents.outlived = HashMap::new();
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
        let page = Arc::new(self.page_in(index, &bytes)?);
        if page.has_lost() && !residents.changed.contains(index) {
            // Given up before a crash, and no checkpoint says so: it may be whole. If one does, the page is fetched as it is.
            residents.only_if_open(self.volume)?;
            self.index.delete_pages(self.volume, index, PageIndex(index.0 + 1))?;
            return Ok(None);
        }
        self.insert(&mut residents, index, page.clone(), false);
        self.evict(&mut residents)?;
        Ok(Some(page))
    }

    /// Takes in pages that came from the checkpoint, unless newer ones are known by now, and returns the one that was
    /// asked for if it was taken in. They are all of one directory.
    pub(super) fn adopt(
        &self,
        base: &Arc<Checkpoint>,
        is_cleared: bool,
        wanted: PageIndex,
        fetched: Vec<(PageIndex, MapPage)>,
    ) -> Result<Option<Arc<MapPage>>> {
        let mut residents = self.residents.lock();
        if !Arc::ptr_eq(base, &self.base.read()) || residents.changed.is_cleared(directory_of(wanted)) != is_cleared {
            return Ok(None);
        }
        residents.only_if_open(self.volume)?;
        let (mut fresh, mut found) = (Vec::new(), None);
        for (index, mut page) in fetched {
            if self.is_kept(&residents, index)? {
                continue;
            }
            if !page.is_empty() {
                fresh.push((index, self.row_of(index, &page)));
            }
            let was_completed = residents.complete(index, &mut page);
            let page = Arc::new(page);
            if index == wanted {
                found = Some(page.clone());
            }
            self.insert(&mut residents, index, page, was_completed);
        }
        self.index.put_pages(self.volume, fresh)?;
        self.evict(&mut residents)?;
        Ok(found)
    }

    /// True if a page is in memory or in RocksDB: what is kept here is newer than the checkpoint's, even if it cannot be read.
    pub(super) fn is_kept(&self, residents: &Residents, index: PageIndex) -> Result<bool> {
        Ok(residents.pages.contains_key(&index) || self.index.page(self.volume, index)?.is_some())
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
        let bytes = page.memory_bytes() + RESIDENT_OVERHEAD_BYTES;
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        residents.pages.insert(index, Resident { page, bytes, dirty: true, touched: true });
        residents.changed.insert(index);
    }

    /// Puts an empty page in the place of one that is in memory, where RocksDB has none.
    pub(super) fn put_empty(&self, residents: &mut Residents, index: PageIndex, page: Arc<MapPage>) {
        let bytes = page.memory_bytes() + RESIDENT_OVERHEAD_BYTES;
        if let Some(resident) = residents.pages.get_mut(&index) {
            self.budget.used.fetch_add(bytes, Ordering::Relaxed);
            self.budget.used.fetch_sub(resident.bytes, Ordering::Relaxed);
            *resident = Resident { page, bytes, dirty: false, touched: false };
        }
    }

    pub(super) fn insert(&self, residents: &mut Residents, index: PageIndex, page: Arc<MapPage>, dirty: bool) {
        let bytes = page.memory_bytes() + RESIDENT_OVERHEAD_BYTES;
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        residents.pages.insert(index, Resident { page, bytes, dirty, touched: true });
        residents.clock.push_back(index);
    }

    /// Lets go of pages that were not used for the longest time until the budget is kept. At least one page stays.
    pub(super) fn evict(&self, residents: &mut Residents) -> Result<()> {
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
                if let Err(error) = self.write_back_batch(residents, &batch) {
                    // It is still here, and has its turn again.
                    residents.clock.push_front(index);
                    return Err(error);
                }
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
        let mut residents = self.residents.lock();
        self.forget_postponed(&mut residents);
        let bytes: usize = residents.pages.values().map(|resident| resident.bytes).sum();
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Makes the changes that a segment, whose entries are in the order of the blocks, says for this page. False if it says none.
fn apply_segment(page: &mut MapPage, index: PageIndex, segment: &SegmentIndex) -> bool {
    let blocks = index.range();
    let first = segment.entries.partition_point(|entry| entry.range.end() <= blocks.start);
    let mut changed = false;
    for entry in segment.entries[first..].iter().take_while(|entry| entry.range.start < blocks.end()) {
        let (start, end) = (entry.range.start.max(blocks.start), entry.range.end().min(blocks.end()));
        let part = BlockRange::new(start, BlockCount(end.0 - start.0));
        apply_entry(page, index, part, entry, segment.header.id);
        changed = true;
    }
    changed
}

/// The directory of a page.
pub(super) fn directory_of(index: PageIndex) -> u32 {
    u32::try_from(index.0 / DIRECTORY_PAGES).unwrap_or(u32::MAX)
}

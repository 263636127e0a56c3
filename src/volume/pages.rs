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

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::format::segment::{EntryKind, SegmentIndex};
use crate::index::Index;
use crate::limits::PAGE_BLOCKS;
use crate::map::{PageIndex, PagePlace};
use crate::segment::apply_entry;
use crate::units::{BlockRange, VolumeId};

mod count;
mod memory;
mod view;

pub use count::Shifts;
pub use memory::PageBudget;
use memory::{Postponed, Residents};

/// An entry that changes more pages than this (the trim of a large part of a volume) is not postponed: bounds memory.
const POSTPONED_PAGES_MAX: u64 = 1024;

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
                self.change_counted(index, page, part, |page| apply_entry(page, index, part, entry, segment.header.id));
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
}

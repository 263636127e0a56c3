//! The pages of one volume's block map: hot ones in memory within a budget, all that were ever touched in RocksDB, the rest
//! in the checkpoint.
//!
//! Invariants: a page that differs from the checkpoint is named by [`ChangedPages`], or lies in a directory that was cleared and is empty.
//! One that is named is in memory (dirty) or in RocksDB, or is neither and has postponed changes; memory is newer than RocksDB, RocksDB
//! newer than the checkpoint. What is neither named nor in a directory of the checkpoint is empty, and takes no memory. Pages change
//! only by [`PageTable::replay`] and then [`PageTable::apply`], which one task calls, in the order of the sequence.
//!
//! Attaching replays segments whose pages are all over the volume. To fetch these first would take a round trip for each, so
//! the segments are kept in memory, and a page that comes from the checkpoint is changed by all of them, in their order, before anybody sees it.
//! The next checkpoint holds these changes; there is one before they become many ([`PageTable::wants_checkpoint`]).
//!
//! After a crash RocksDB may hold pages that are newer than the checkpoint: replaying the segments behind the checkpoint over
//! them ends in the same state, since the last write of every block comes last again.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::checkpoint::Checkpoint;
use crate::clock;
use crate::error::Result;
use crate::format::page::{damaged_row, page_of_row, row_of_page};
use crate::format::segment::{EntryKind, SegmentIndex};
use crate::index::Index;
use crate::map::{ChangedPages, MapPage, PageIndex, PagePlace};
use crate::seal::{ItemPlace, Salt, VolumeKey};
use crate::segment::apply_entry;
use crate::units::{BlockRange, VolumeId};

mod clear;
mod count;
mod damage;
mod memory;
#[cfg(test)]
mod tests;
mod view;

use clear::Witness;
pub use count::Shifts;
pub use damage::{OnDamage, PagesToWrite};
pub use memory::PageBudget;
use memory::{Residents, directory_of};

/// Entries of segments behind a checkpoint that call for the next one: whoever attaches has all of them in memory, in 64 bytes each.
const REPLAYED_ENTRIES_MAX: usize = 1 << 18;

/// The pages of one volume.
pub struct PageTable {
    volume: VolumeId,
    key: Option<Arc<VolumeKey>>,
    index: Arc<Index>,
    budget: Arc<PageBudget>,
    base: RwLock<Arc<Checkpoint>>,
    residents: Mutex<Residents>,
}

impl PageTable {
    /// The pages of `volume`, whose key this is if it has one, over the checkpoint `base`; what RocksDB holds of them must not be older.
    pub fn new(
        volume: VolumeId,
        key: Option<Arc<VolumeKey>>,
        index: Arc<Index>,
        budget: Arc<PageBudget>,
        base: Arc<Checkpoint>,
    ) -> Self {
        PageTable { volume, key, index, budget, base: RwLock::new(base), residents: Mutex::new(Residents::default()) }
    }

    /// The key of the volume, if it has one.
    pub fn key(&self) -> Option<Arc<VolumeKey>> {
        self.key.clone()
    }

    /// A page as a row of RocksDB.
    fn row_of(&self, index: PageIndex, page: &MapPage) -> Vec<u8> {
        let row = row_of_page(page);
        match &self.key {
            Some(key) => key.seal_item(ItemPlace::LocalPage(self.volume, index.0), Salt(clock::random_token().0), &row),
            None => row,
        }
    }

    /// The page of a row of RocksDB.
    ///
    /// # Errors
    /// `Damaged`.
    fn page_in(&self, index: PageIndex, row: &[u8]) -> Result<MapPage> {
        match &self.key {
            Some(key) => {
                let opened = key.open_item(ItemPlace::LocalPage(self.volume, index.0), row);
                page_of_row(&opened.ok_or_else(damaged_row)?)
            }
            None => page_of_row(row),
        }
    }

    /// Pushes the places of `range` onto `places` if all its pages are in memory or hold nothing, and says whether they were.
    pub fn try_lookup(&self, range: BlockRange, places: &mut Vec<PagePlace>) -> bool {
        let mut residents = self.residents.lock();
        let before = places.len();
        for (index, part) in PageIndex::parts_of(range) {
            if let Some(resident) = residents.pages.get_mut(&index) {
                resident.touched = true;
                resident.page.lookup(index, part, places);
            } else if residents.is_void(&self.base.read(), directory_of(index)) {
                places.push(PagePlace { range: part, place: None });
            } else {
                places.truncate(before);
                return false;
            }
        }
        true
    }

    /// Pushes the places of `range` onto `places`, loading the pages that are missing.
    ///
    /// # Errors
    /// What RocksDB or the store say.
    pub async fn lookup(&self, range: BlockRange, places: &mut Vec<PagePlace>) -> Result<()> {
        for (index, part) in PageIndex::parts_of(range) {
            if !self.try_lookup(part, places) {
                self.load(index).await?.lookup(index, part, places);
            }
        }
        Ok(())
    }

    /// Makes the changes that a segment says, in its order.
    ///
    /// # Errors
    /// What RocksDB or the store say; the table is then partly changed, and applying the same segment again completes it.
    pub async fn apply(&self, segment: &SegmentIndex, on_damage: OnDamage) -> Result<()> {
        let mut gone = Shifts::default();
        let applied = self.apply_telling(segment, on_damage, &mut |lost| gone.take(&lost)).await;
        self.note_gone(gone);
        applied
    }

    async fn apply_telling(
        &self,
        segment: &SegmentIndex,
        on_damage: OnDamage,
        witness: &mut Witness<'_>,
    ) -> Result<()> {
        for entry in &segment.entries {
            if entry.kind == EntryKind::Zero {
                self.clear(entry.range, on_damage, witness).await?;
                continue;
            }
            for (index, part) in PageIndex::parts_of(entry.range) {
                let page = self.load_to_change(index, on_damage).await?;
                self.change_counted(index, page, part, |page| apply_entry(page, index, part, entry, segment.header.id));
            }
        }
        self.residents.lock().entries_since += segment.entries.len();
        Ok(())
    }

    /// As [`PageTable::apply`], but asks the store for nothing: pages that are not at hand are changed when they are loaded. Only
    /// while attaching, before anybody else uses the table.
    ///
    /// # Errors
    /// As [`PageTable::apply`].
    pub fn replay(&self, segment: &Arc<SegmentIndex>) -> Result<()> {
        let mut is_lacking = false;
        for entry in &segment.entries {
            if entry.kind == EntryKind::Zero {
                is_lacking |= self.replay_zero(entry.range)?;
                continue;
            }
            for (index, part) in PageIndex::parts_of(entry.range) {
                match self.resident(index)? {
                    None => {
                        is_lacking = true;
                        self.residents.lock().changed.insert(index);
                    }
                    Some(page) => {
                        self.change(index, page, |page| apply_entry(page, index, part, entry, segment.header.id));
                    }
                }
            }
        }
        self.residents.lock().entries_since += segment.entries.len();
        if !is_lacking {
            return Ok(());
        }
        let mut postponed = segment.clone();
        if !postponed.entries.is_sorted_by_key(|entry| entry.range.start) {
            Arc::make_mut(&mut postponed).entries.sort_by_key(|entry| entry.range.start);
        }
        self.postpone(postponed);
        Ok(())
    }

    /// True if so much has changed since the checkpoint that attaching should not have to replay more; or if something was given up, which
    /// whoever attaches should not have to find out again.
    pub fn wants_checkpoint(&self) -> bool {
        let residents = self.residents.lock();
        residents.entries_since > REPLAYED_ENTRIES_MAX || residents.has_given_up
    }

    /// The pages that differ from the checkpoint.
    pub fn changed(&self) -> ChangedPages {
        self.residents.lock().changed.clone()
    }

    /// The checkpoint below.
    pub fn base(&self) -> Arc<Checkpoint> {
        self.base.read().clone()
    }

    /// Says that a new checkpoint holds all changes so far.
    pub fn rebase(&self, base: Arc<Checkpoint>) {
        let mut residents = self.residents.lock();
        *self.base.write() = base;
        residents.changed = ChangedPages::default();
        self.forget_postponed(&mut residents);
        residents.entries_since = 0;
        residents.has_given_up = false;
    }

    /// From now on nothing is written to RocksDB, which the next attachment may be using.
    pub fn close(&self) {
        self.residents.lock().is_closed = true;
    }
}

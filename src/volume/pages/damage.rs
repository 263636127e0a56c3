//! Pages and directories of the checkpoint that are damaged for good.
//!
//! Whoever reads what such a page leads to is told of the damage, each time: nothing is changed by that, and who can repair the store has
//! everything back. But changes must go on: a segment that cannot be applied, or a checkpoint that cannot be written, would be the
//! end of the whole volume for one MiB of it. So whoever changes a page may **give it up**: where it led to is lost from then on
//! ([`MapPage::lost`]), what the volume wrote since, or writes later, is not. What of it is in memory or in RocksDB is
//! intact and stays.
//!
//! Whether damage is for good is not decided here (`volume/damage.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::checkpoint::{Checkpoint, PageSource};
use crate::clock;
use crate::error::{Error, Result};
use crate::format::map_object::{MapObjectId, References};
use crate::limits::{DIRECTORY_PAGES, PAGE_BLOCKS};
use crate::map::{MapPage, PageIndex, PagePlace};
use crate::units::{BLOCK_SIZE, BlockRange};
use crate::volume::pages::PageTable;
use crate::volume::pages::memory::{Residents, directory_of};

/// Damage that nobody has met for so long may have been another.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// What becomes of a change that meets damage of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDamage {
    /// It fails, and nothing is lost.
    Fail,
    /// Where damage in the same object was met for so long, what is damaged is given up; else the change fails.
    GiveUp(Duration),
}

/// When damage in an object was met.
#[derive(Clone, Copy, Debug)]
pub(super) struct Met {
    first: Duration,
    last: Duration,
}

/// The pages for a checkpoint that is written.
pub struct PagesToWrite<'a> {
    /// Whose.
    pub pages: &'a PageTable,
    /// What becomes of it if one is damaged. Directories must have been given up before ([`PageTable::give_up_directories`]).
    pub on_damage: OnDamage,
}

#[async_trait]
impl PageSource for PagesToWrite<'_> {
    async fn page(&self, index: PageIndex) -> Result<Arc<MapPage>> {
        match self.pages.load(index).await {
            Err(error) if error.is_damage() => {
                self.pages.base().directory(directory_of(index)).await?;
                self.pages.give_up_page(index, self.on_damage).await?;
                self.pages.load(index).await
            }
            loaded => loaded,
        }
    }
}

impl PageTable {
    /// As [`PageTable::lookup`], for whoever reads the blocks: of a damaged page that lacks what was replayed, it tells that, and the rest is
    /// lost as far as this answer goes. Nothing is given up. Who asks what leads to a segment must not ask so.
    ///
    /// # Errors
    /// As [`PageTable::lookup`].
    pub async fn lookup_to_read(&self, range: BlockRange, places: &mut Vec<PagePlace>) -> Result<()> {
        for (index, part) in PageIndex::parts_of(range) {
            let found = self.lookup(part, places).await;
            let Err(error) = found else { continue };
            match if error.is_damage() { self.replayed_only(index)? } else { None } {
                Some(page) => page.lookup(index, part, places),
                None => return Err(error),
            }
        }
        Ok(())
    }

    /// What the segments that were replayed say of a page of which nothing is known here but that.
    fn replayed_only(&self, index: PageIndex) -> Result<Option<MapPage>> {
        let residents = self.residents.lock();
        if self.is_kept(&residents, index)? || residents.changed.is_cleared(directory_of(index)) {
            return Ok(None);
        }
        let (mut page, _) = lost_page(&self.base(), index);
        Ok(residents.complete(index, &mut page).then_some(page))
    }

    /// True if a checkpoint has come since `base`, or the page was given up, or came into memory: then it can be asked for again.
    pub(super) fn has_moved_on(&self, base: &Arc<Checkpoint>, index: PageIndex) -> Result<bool> {
        let residents = self.residents.lock();
        let is_other = !Arc::ptr_eq(base, &self.base.read()) || residents.changed.is_cleared(directory_of(index));
        Ok(is_other || self.is_kept(&residents, index)?)
    }

    /// True if something was given up that the checkpoint still has.
    pub fn has_given_up(&self) -> bool {
        self.residents.lock().has_given_up
    }

    /// Brings a page into memory that is about to be changed.
    pub(super) async fn load_to_change(&self, index: PageIndex, on_damage: OnDamage) -> Result<Arc<MapPage>> {
        match self.load(index).await {
            Err(error) if error.is_damage() => {
                self.directory_to_change(directory_of(index), on_damage).await?;
                self.give_up_page(index, on_damage).await?;
                self.load(index).await
            }
            loaded => loaded,
        }
    }

    /// What counts of a directory of the checkpoint in which something is about to be changed.
    pub(super) async fn directory_to_change(&self, which: u32, on_damage: OnDamage) -> Result<Arc<References>> {
        let base = self.base();
        if self.residents.lock().changed.is_cleared(which) {
            return Ok(Arc::default());
        }
        match base.directory(which).await {
            Err(error) if error.is_damage() => {
                let object = base.reference(which).map(|directory| directory.object);
                if !self.may_give_up(on_damage, object) {
                    return Err(error);
                }
                self.give_up_directory(&base, which, &error)?;
                Ok(Arc::default())
            }
            found => found,
        }
    }

    /// Notes that damage was met in an object. True if it has lasted, so that what is damaged may be given up.
    fn may_give_up(&self, on_damage: OnDamage, object: Option<MapObjectId>) -> bool {
        let Some(object) = object else { return false };
        let now = clock::running();
        let mut residents = self.residents.lock();
        let met = residents.damaged.entry(object).or_insert(Met { first: now, last: now });
        if now.saturating_sub(met.last) > FORGOTTEN {
            met.first = now;
        }
        met.last = now;
        matches!(on_damage, OnDamage::GiveUp(patience) if now.saturating_sub(met.first) >= patience)
    }

    /// True if damage was met that has not lasted for so long yet.
    pub fn is_in_doubt(&self, patience: Duration) -> bool {
        let now = clock::running();
        let is_young = |met: &Met| now.saturating_sub(met.first) < patience && now.saturating_sub(met.last) < FORGOTTEN;
        self.residents.lock().damaged.values().any(is_young)
    }

    /// Gives up the damaged directories among those in which something has changed.
    ///
    /// # Errors
    /// `Damaged` if it has not lasted; what RocksDB or the store say.
    pub async fn give_up_directories(&self, on_damage: OnDamage) -> Result<()> {
        for (which, _) in self.changed().directories() {
            self.directory_to_change(which, on_damage).await?;
        }
        Ok(())
    }

    /// Gives up a page, if it is the checkpoint's that is damaged and not one that is kept locally.
    async fn give_up_page(&self, index: PageIndex, on_damage: OnDamage) -> Result<()> {
        let (base, which) = (self.base(), directory_of(index));
        if self.residents.lock().changed.is_cleared(which) {
            return Ok(());
        }
        let object = base.page_reference(index).await?.map(|page| page.object);
        match base.pages(index, 0).await {
            Err(error) if error.is_damage() => {
                if !self.may_give_up(on_damage, object) {
                    return Err(error);
                }
                let (page, blocks) = lost_page(&base, index);
                tracing::error!(
                    volume = %self.volume, first = %index.range().start, blocks, %error,
                    "a page of the block map is damaged for good: what it led to and was not written since is lost"
                );
                self.note_given_up(&mut self.residents.lock(), [index]);
                self.adopt(&base, false, index, vec![(index, page)]).map(drop)
            }
            found => found.map(drop),
        }
    }

    /// Notes what is given up. It is named, so that it stays given up until a checkpoint says so.
    fn note_given_up(&self, residents: &mut Residents, pages: impl IntoIterator<Item = PageIndex>) {
        pages.into_iter().for_each(|index| residents.changed.insert(index));
        residents.shifts.is_short = true;
        residents.has_given_up = true;
    }

    /// Gives up all pages of a directory that are neither in memory nor in RocksDB; nothing of what the checkpoint has there counts any more.
    fn give_up_directory(&self, base: &Arc<Checkpoint>, which: u32, error: &Error) -> Result<()> {
        let mut residents = self.residents.lock();
        if !Arc::ptr_eq(base, &self.base.read()) || residents.changed.is_cleared(which) {
            return Ok(());
        }
        residents.only_if_open(self.volume)?;
        let first = u64::from(which) * DIRECTORY_PAGES;
        let end = (first + DIRECTORY_PAGES).min(base.size().0.div_ceil(PAGE_BLOCKS * BLOCK_SIZE));
        // Those that the checkpoint may have, and those by which the volume has grown since.
        let mut pages: BTreeSet<PageIndex> = residents.changed.pages_of(which).collect();
        pages.extend((first..end).map(PageIndex));
        let (mut blocks, mut rest) = (0, Vec::new());
        for &index in &pages {
            if self.is_kept(&residents, index)? {
                continue;
            }
            let (mut page, count) = lost_page(base, index);
            residents.complete(index, &mut page);
            blocks += u64::from(count);
            rest.push((index, page));
        }
        tracing::error!(
            volume = %self.volume, first = first * PAGE_BLOCKS, blocks, %error,
            "a directory of the block map is damaged for good: what it led to and was not written since is lost"
        );
        residents.clear_directory(which);
        self.note_given_up(&mut residents, pages);
        for (index, page) in rest {
            self.insert(&mut residents, index, Arc::new(page), true);
        }
        self.evict(&mut residents)
    }
}

/// What stands for a page of a checkpoint that is given up, and how many blocks of the volume it describes.
fn lost_page(base: &Checkpoint, index: PageIndex) -> (MapPage, u16) {
    // What the volume has grown by since reads as zero.
    let behind = (base.size().0 / BLOCK_SIZE).saturating_sub(index.range().start.0);
    let count = behind.min(PAGE_BLOCKS) as u16;
    (MapPage::lost(count), count)
}

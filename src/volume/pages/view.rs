//! The pages of one volume as others see them: a checkpoint that is written from them, and a comparison with a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;

use crate::checkpoint::{Checkpoint, PageSource};
use crate::error::Result;
use crate::format::map_object::PageRef;
use crate::limits::DIRECTORY_PAGES;
use crate::lineage::{MapView, OccupiedPage};
use crate::map::{MapPage, PageIndex};
use crate::volume::pages::PageTable;

#[async_trait]
impl PageSource for PageTable {
    async fn page(&self, index: PageIndex) -> Result<Arc<MapPage>> {
        self.load(index).await
    }
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

impl PageTable {
    /// The directories (each the pages of one GiB) that may hold something, in order.
    pub fn directories(&self) -> BTreeSet<u32> {
        let residents = self.residents.lock();
        let changed = residents.changed.iter().map(|index| (index.0 / DIRECTORY_PAGES) as u32);
        self.base().root().directories.iter().map(|(which, _)| *which).chain(changed).collect()
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

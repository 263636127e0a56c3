//! The pages of one volume as others see them: a checkpoint that is written from them, and a comparison with a snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::format::map_object::PageRef;
use crate::limits::DIRECTORY_PAGES;
use crate::lineage::{MapView, OccupiedPage};
use crate::map::{MapPage, PageIndex};
use crate::volume::pages::PageTable;

impl PageTable {
    /// The checkpoint below, and the pages of a directory that differ from it. A page too many may be named while a checkpoint is written.
    /// No checkpoint if nothing of what it has there counts.
    fn state_of(&self, which: u32) -> (Option<Arc<Checkpoint>>, Vec<PageIndex>) {
        let residents = self.residents.lock();
        let base = (!residents.changed.is_cleared(which)).then(|| self.base());
        (base, residents.changed.pages_of(which).collect())
    }
}

impl PageTable {
    /// The directories (each the pages of one GiB) that may hold something, in order.
    pub fn directories(&self) -> BTreeSet<u32> {
        let residents = self.residents.lock();
        let changed = residents.changed.directories().map(|(which, _)| which);
        self.base().root().directories.iter().map(|(which, _)| *which).chain(changed).collect()
    }
}

#[async_trait]
impl MapView for PageTable {
    fn directory(&self, which: u32) -> (Option<PageRef>, bool) {
        let (base, changed) = self.state_of(which);
        (base.and_then(|base| base.reference(which)), !changed.is_empty())
    }

    async fn occupied(&self, which: u32) -> Result<Vec<OccupiedPage>> {
        let (directory, changed) = loop {
            let (base, changed) = self.state_of(which);
            let Some(base) = base else { break (Arc::default(), changed) };
            match base.directory(which).await {
                // A checkpoint has come meanwhile, and what only the one before it needed may be gone.
                Err(error) if error.is_damage() && !Arc::ptr_eq(&base, &self.base()) => {}
                directory => break (directory?, changed),
            }
        };
        let first = u64::from(which) * DIRECTORY_PAGES;
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

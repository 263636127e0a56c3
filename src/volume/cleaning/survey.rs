//! Looking for what a volume has in the store, where no census says so: one that was rolled back, or that an older varve wrote; and the
//! upkeep of map objects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use crate::error::Result;
use crate::format::census::ObjectAt;
use crate::format::map_object::PageRef;
use crate::limits::DIRECTORY_PAGES;
use crate::lineage::MapView;
use crate::map::PageIndex;
use crate::segment::fetch_index;
use crate::store::{ObjectKey, list_all};
use crate::units::{BLOCK_SIZE, Epoch, SegmentId};
use crate::volume::core::Volume;

/// Map objects may take so many times what of them is in use, and so many bytes more, before they are written anew.
const MAP_SPACE: u64 = 2;
const MAP_SLACK: u64 = 4 << 20;

impl Volume {
    /// Makes the books whole: lists the volume's objects, and walks its map.
    ///
    /// # Errors
    /// `Damaged`; what RocksDB and the store say. It may be tried again.
    pub(super) async fn survey(&self) -> Result<()> {
        let end = ObjectAt::from(self.newest.lock().position);
        let objects = list_all(&*self.shared.store, &ObjectKey::volume(self.id)).await?;
        let live = self.count_live_blocks().await?;
        // Not `end`: segments have taken effect while the map was walked, and moments between need what they put an end to.
        let dead_at = self.dead_from();
        let mut found = Vec::new();
        for object in &objects {
            let Some(at) = object.key.parse_segment().map(ObjectAt::from).filter(|at| *at < end) else { continue };
            if self.books.lock().census.segment(at).is_some() {
                continue;
            }
            let blocks = live.get(&self.own_segment(at)).copied().unwrap_or(0);
            found.push((at, object.length, blocks));
        }
        let listed: BTreeSet<ObjectAt> = found.iter().map(|(at, ..)| *at).collect();
        for (at, blocks) in live.iter().map(|(id, blocks)| (ObjectAt::from(*id), *blocks)) {
            // Missed by the listing. How long it is does not matter much. One that is just taking effect is not among them, for only a part of
            // what is live in it may show: it is noted when all of it does.
            if at < end && !listed.contains(&at) {
                found.push((at, blocks * BLOCK_SIZE, blocks));
            }
        }
        let (seals, unreadable) = self.look_at_the_dead(&found).await?;
        // No checkpoint changes which map objects are in use meanwhile. One that came before this has put its own into the census.
        let _still = self.checkpointing.lock().await;
        let referred = self.count_live_map_bytes().await?;
        let dead_at_map = ObjectAt { epoch: self.epoch, number: self.next_map_object.load(Ordering::Acquire) };
        let mut books = self.books.lock();
        for (at, bytes, blocks) in found {
            // What lies at a seal or behind it is no part of the history, and not for the cleaner; nor is what cannot be read.
            let is_behind = seals.get(&at.epoch).is_some_and(|seal| at.number >= *seal);
            if books.census.segment(at).is_some() || blocks == 0 && (is_behind || unreadable.contains(&at)) {
                continue;
            }
            books.census.add_segment(at, bytes, blocks.max(1), blocks);
            if blocks == 0 {
                books.census.bury(at, dead_at);
            }
        }
        for object in &objects {
            let Some((_, epoch, number)) = object.key.parse_map_object() else { continue };
            let at = ObjectAt { epoch, number };
            let bytes = referred.get(&at).copied().unwrap_or(0);
            books.census.add_map_object(at, object.length, bytes);
            if bytes == 0 {
                books.census.bury_map_object(at, dead_at_map);
            }
        }
        books.make_whole();
        books.begin_audit();
        tracing::info!(volume = %self.id, objects = objects.len(), "counted what the volume has in the store");
        Ok(())
    }

    /// Of the objects without live blocks, those that are seals, and those that cannot be read.
    async fn look_at_the_dead(
        &self,
        found: &[(ObjectAt, u64, u64)],
    ) -> Result<(BTreeMap<Epoch, u64>, BTreeSet<ObjectAt>)> {
        let (mut seals, mut unreadable) = (BTreeMap::new(), BTreeSet::new());
        for (at, ..) in found.iter().filter(|(_, _, blocks)| *blocks == 0) {
            match fetch_index(&*self.shared.store, self.own_segment(*at)).await {
                Ok(index) if index.header.seal => {
                    let seal = seals.entry(at.epoch).or_insert(at.number);
                    *seal = (*seal).min(at.number);
                }
                Ok(_) => {}
                Err(error) if error.is_damage() => {
                    self.confirm_ownership().await?;
                    tracing::warn!(volume = %self.id, %error, "an object without anything live cannot be read, and stays");
                    unreadable.insert(*at);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((seals, unreadable))
    }

    async fn count_live_blocks(&self) -> Result<BTreeMap<SegmentId, u64>> {
        let mut live: BTreeMap<SegmentId, u64> = BTreeMap::new();
        let own = |id: SegmentId, blocks| {
            if id.volume == self.id {
                *live.entry(id).or_default() += blocks;
            }
        };
        self.each_extent(own).await?;
        Ok(live)
    }

    /// Tells `visit` of each extent of the newest map: its segment, and its blocks.
    ///
    /// # Errors
    /// `Damaged`; what RocksDB and the store say.
    pub(super) async fn each_extent(&self, mut visit: impl FnMut(SegmentId, u64)) -> Result<()> {
        for which in self.pages.directories() {
            for occupied in MapView::occupied(&self.pages, which).await? {
                let page = MapView::page(&self.pages, occupied.index).await?;
                page.places().for_each(|(_, count, place)| visit(place.segment, u64::from(count)));
            }
        }
        Ok(())
    }

    /// Bytes of each own map object to which the newest checkpoint leads.
    async fn count_live_map_bytes(&self) -> Result<BTreeMap<ObjectAt, u64>> {
        let mut referred: BTreeMap<ObjectAt, u64> = BTreeMap::new();
        let mut count = |reference: &PageRef| {
            if reference.object.volume == self.id {
                *referred.entry(reference.object.into()).or_default() += u64::from(reference.stored_length);
            }
        };
        let base = self.pages.base();
        if let Some(checkpoint) = self.newest.lock().checkpoint {
            count(&checkpoint.root);
        }
        for (which, directory) in &base.root().directories {
            count(directory);
            base.directory(*which).await?.iter().for_each(|(_, page)| count(page));
        }
        Ok(referred)
    }

    /// Has the next checkpoint write anew what is left in map objects of which little is in use, once they take too much.
    ///
    /// # Errors
    /// `Damaged`, and what the store says.
    pub(super) async fn rewrite_maps(&self) -> Result<()> {
        let sparse: BTreeSet<ObjectAt> = {
            let books = self.books.lock();
            let (bytes, live) = books.census.map_totals();
            if bytes <= MAP_SPACE * live + MAP_SLACK {
                return Ok(());
            }
            let held = books.census.map_objects().filter(|(_, counted)| counted.dead_at.is_none());
            held.filter(|(_, counted)| u64::from(counted.live) * MAP_SPACE < u64::from(counted.bytes))
                .map(|(at, _)| at)
                .collect()
        };
        let is_sparse =
            |reference: &PageRef| reference.object.volume == self.id && sparse.contains(&reference.object.into());
        let sparse = match self.pages_in(is_sparse).await {
            Err(error) if error.is_damage() => {
                tracing::warn!(volume = %self.id, %error, "map objects of which little is in use stay as they are");
                return Ok(());
            }
            pages => pages?,
        };
        let mut intact = Vec::new();
        for index in sparse {
            match MapView::page(&self.pages, index).await {
                // It stays where it is until somebody writes there.
                Err(error) if error.is_damage() => {
                    tracing::warn!(volume = %self.id, %error, "a damaged page is not written anew")
                }
                page => intact.push(page.map(|_| index)?),
            }
        }
        self.pages.write_again(intact);
        Ok(())
    }

    /// The pages of the newest checkpoint that lie where `is_there` says, and one of each directory that does.
    ///
    /// # Errors
    /// `Damaged`, and what the store says.
    pub(super) async fn pages_in(&self, is_there: impl Fn(&PageRef) -> bool) -> Result<Vec<PageIndex>> {
        let base = self.pages.base();
        let mut found = Vec::new();
        for (which, place) in &base.root().directories {
            let first = u64::from(*which) * DIRECTORY_PAGES;
            let directory = base.directory(*which).await?;
            let before = found.len();
            let pages = directory.iter().filter(|(_, page)| is_there(page));
            found.extend(pages.map(|(slot, _)| PageIndex(first + u64::from(*slot))));
            // A directory is written with any of its pages.
            if before == found.len() && is_there(place) {
                found.extend(directory.first().map(|(slot, _)| PageIndex(first + u64::from(*slot))));
            }
        }
        Ok(found)
    }
}

//! What differs between two block maps. The cost follows what has changed: whatever both sides refer to by the same reference,
//! with nothing replayed over it, is passed over unread.
//!
//! A block differs if its place does. Equal bytes at two places count as different; that errs on the safe side.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::error::Result;
use crate::format::map_object::PageRef;
use crate::limits::DIRECTORY_PAGES;
use crate::lineage::frozen::{FrozenMap, OccupiedPage};
use crate::map::{MapPage, PageIndex, PagePlace};
use crate::units::{BlockCount, BlockRange, Lba};

/// Pages compared one after the other, since one fetch brings about as many.
const CHUNK_PAGES: usize = 64;
/// Such chunks compared at the same time.
const CHUNKS_AT_ONCE: usize = 4;
/// Directories (one GiB each) that one look at a range compares at most, so that it ends soon.
const DIRECTORIES_COMPARED: usize = 4;

/// A block map that can be compared with another.
#[async_trait]
pub trait MapView: Send + Sync {
    /// Where the checkpoint has a directory, and whether anything in it may have changed since.
    fn directory(&self, which: u32) -> (Option<PageRef>, bool);

    /// The pages of a directory that may hold something, in order.
    ///
    /// # Errors
    /// What loading says.
    async fn occupied(&self, which: u32) -> Result<Vec<OccupiedPage>>;

    /// A page.
    ///
    /// # Errors
    /// What loading says.
    async fn page(&self, index: PageIndex) -> Result<Arc<MapPage>>;
}

#[async_trait]
impl MapView for FrozenMap {
    fn directory(&self, which: u32) -> (Option<PageRef>, bool) {
        FrozenMap::directory(self, which)
    }

    async fn occupied(&self, which: u32) -> Result<Vec<OccupiedPage>> {
        FrozenMap::occupied(self, which).await
    }

    async fn page(&self, index: PageIndex) -> Result<Arc<MapPage>> {
        FrozenMap::page(self, index).await
    }
}

/// Blocks that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedExtent {
    /// The blocks.
    pub range: BlockRange,
    /// True if they read as zero on the newer side.
    pub zero: bool,
}

/// Calls `visit` for what differs from `from` to `to`, in order; neighbours of one kind are one extent. Blocks beyond the smaller side's
/// end differ only if the other holds data there. Memory does not grow with the size of either.
///
/// # Errors
/// `Damaged`, what the store says, and what `visit` says.
pub async fn diff(
    from: &FrozenMap,
    to: &FrozenMap,
    visit: &mut (dyn FnMut(ChangedExtent) -> Result<()> + Send),
) -> Result<()> {
    let directories: BTreeSet<u32> = from.directories().union(&to.directories()).copied().collect();
    let mut pending: Option<ChangedExtent> = None;
    for which in directories {
        compare_directory(from, to, which, &(0..u64::MAX), &mut |extent| match &mut pending {
            Some(last) if last.zero == extent.zero && last.range.end() == extent.range.start => {
                last.range.count.0 += extent.range.count.0;
                Ok(())
            }
            other => other.replace(extent).map_or(Ok(()), &mut *visit),
        })
        .await?;
    }
    pending.map_or(Ok(()), visit)
}

/// What differs within `range`, joined where it adjoins, and the block up to which was looked: `range`'s end, or less if there is much to
/// compare or if there are more than `extents_max`.
///
/// # Errors
/// `Damaged`, and what the store says.
pub async fn changes_within(
    from: &dyn MapView,
    to: &dyn MapView,
    range: BlockRange,
    extents_max: usize,
) -> Result<(Vec<BlockRange>, Lba)> {
    let mut changes: Vec<BlockRange> = Vec::new();
    let (mut at, mut compared) = (range.start, 0);
    while at < range.end() && compared < DIRECTORIES_COMPARED && changes.len() <= extents_max {
        let which = PageIndex::containing(at).0 / DIRECTORY_PAGES;
        let next = PageIndex((which + 1) * DIRECTORY_PAGES).range().start.min(range.end());
        let pages = PageIndex::containing(at).0..PageIndex::containing(Lba(next.0 - 1)).0 + 1;
        let looked = compare_directory(from, to, which as u32, &pages, &mut |extent| {
            let start = extent.range.start.max(range.start);
            let end = extent.range.end().min(range.end());
            match changes.last_mut() {
                _ if start >= end => {}
                Some(last) if last.end() == start => last.count.0 += end.0 - start.0,
                _ => changes.push(BlockRange::new(start, BlockCount(end.0 - start.0))),
            }
            Ok(())
        })
        .await?;
        compared += usize::from(looked);
        at = next;
    }
    Ok((changes, at))
}

/// Calls `visit` for what differs in those pages of a directory that are `within`, page by page, in order. False if a look at its references
/// was enough to see that nothing does.
async fn compare_directory(
    from: &dyn MapView,
    to: &dyn MapView,
    which: u32,
    within: &Range<u64>,
    visit: &mut (dyn FnMut(ChangedExtent) -> Result<()> + Send),
) -> Result<bool> {
    let ((old, old_changed), (new, new_changed)) = (from.directory(which), to.directory(which));
    if old == new && !old_changed && !new_changed {
        return Ok(false);
    }
    let pages: Vec<PageIndex> = suspects(from, to, which).await?;
    let pages: Vec<PageIndex> = pages.into_iter().filter(|index| within.contains(&index.0)).collect();
    let chunks: Vec<_> = pages.chunks(CHUNK_PAGES).map(|chunk| compare_pages(from, to, chunk)).collect();
    let mut compared = stream::iter(chunks).buffered(CHUNKS_AT_ONCE);
    while let Some(extents) = compared.try_next().await? {
        extents.into_iter().try_for_each(&mut *visit)?;
    }
    Ok(true)
}

/// The pages of a directory that are not known to be the same.
async fn suspects(from: &dyn MapView, to: &dyn MapView, which: u32) -> Result<Vec<PageIndex>> {
    let (old, new) = tokio::try_join!(from.occupied(which), to.occupied(which))?;
    let mut sides: BTreeMap<PageIndex, [Option<OccupiedPage>; 2]> = BTreeMap::new();
    for (side, pages) in [old, new].into_iter().enumerate() {
        for page in pages {
            sides.entry(page.index).or_default()[side] = Some(page);
        }
    }
    let is_same = |sides: &[Option<OccupiedPage>; 2]| match sides {
        [Some(old), Some(new)] => old.reference == new.reference && !old.is_replayed && !new.is_replayed,
        _ => false,
    };
    Ok(sides.into_iter().filter(|(_, sides)| !is_same(sides)).map(|(index, _)| index).collect())
}

async fn compare_pages(from: &dyn MapView, to: &dyn MapView, pages: &[PageIndex]) -> Result<Vec<ChangedExtent>> {
    let mut extents = Vec::new();
    for &index in pages {
        let (old, new) = tokio::try_join!(from.page(index), to.page(index))?;
        if !Arc::ptr_eq(&old, &new) && old != new {
            compare_page(index, &old, &new, &mut extents);
        }
    }
    Ok(extents)
}

fn compare_page(index: PageIndex, old: &MapPage, new: &MapPage, extents: &mut Vec<ChangedExtent>) {
    let (mut olds, mut news) = (Vec::new(), Vec::new());
    old.lookup(index, index.range(), &mut olds);
    new.lookup(index, index.range(), &mut news);
    let (mut olds, mut news) = (olds.into_iter().peekable(), news.into_iter().peekable());
    let mut at = index.range().start;
    while let (Some(old), Some(new)) = (olds.peek(), news.peek()) {
        let end = old.range.end().min(new.range.end());
        let zero = new.place.is_none();
        if place_at(old, at) != place_at(new, at) {
            match extents.last_mut() {
                Some(last) if last.zero == zero && last.range.end() == at => last.range.count.0 += end.0 - at.0,
                _ => extents.push(ChangedExtent { range: BlockRange::new(at, BlockCount(end.0 - at.0)), zero }),
            }
        }
        at = end;
        olds.next_if(|place| place.range.end() == end);
        news.next_if(|place| place.range.end() == end);
    }
}

fn place_at(place: &PagePlace, at: Lba) -> Option<crate::map::SegmentPlace> {
    place.place.map(|first| first.plus((at.0 - place.range.start.0) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::SegmentPlace;
    use crate::units::{Epoch, SegmentId, SegmentNumber, VolumeId};

    fn place(number: u64, block: u32) -> SegmentPlace {
        let segment = SegmentId { volume: VolumeId(1), epoch: Epoch(1), number: SegmentNumber(number) };
        SegmentPlace { segment, block }
    }

    fn extent(start: u64, count: u64, zero: bool) -> ChangedExtent {
        ChangedExtent { range: BlockRange::new(Lba(start), BlockCount(count)), zero }
    }

    #[test]
    fn pages_are_compared_block_by_block() {
        let (mut old, mut new) = (MapPage::default(), MapPage::default());
        old.set(0, 100, Some(place(0, 0)));
        // The same places, cut otherwise; a block in the middle from elsewhere; one gone; one new.
        new.set(0, 50, Some(place(0, 0)));
        new.set(50, 50, Some(place(0, 50)));
        new.set(20, 2, Some(place(7, 0)));
        new.set(22, 1, None);
        new.set(200, 56, Some(place(7, 2)));
        let mut extents = Vec::new();
        compare_page(PageIndex(1), &old, &new, &mut extents);
        assert_eq!(extents, [extent(256 + 20, 2, false), extent(256 + 22, 1, true), extent(256 + 200, 56, false)]);
        extents.clear();
        compare_page(PageIndex(1), &new, &new.clone(), &mut extents);
        assert!(extents.is_empty());
    }
}

//! Counting: by how many blocks more, or fewer, the map leads to each segment after a change. For the census of cleaning.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::map::{MapPage, PageIndex, PagePlace};
use crate::units::{BlockRange, SegmentId};
use crate::volume::pages::PageTable;
use crate::volume::pages::clear::Gone;

/// By how many blocks more, or fewer, the map leads to each segment.
#[derive(Default)]
pub struct Shifts {
    /// By segment.
    pub blocks: BTreeMap<SegmentId, i64>,
    /// True if something was emptied without a look at what it was.
    pub is_short: bool,
}

impl Shifts {
    /// Counts what was taken away.
    pub(super) fn take(&mut self, gone: &Gone<'_>) {
        match gone {
            Gone::Unseen(pages) => {
                tracing::debug!(from = pages.start.0, to = pages.end.0, "pages were emptied unseen");
                self.is_short = true;
            }
            Gone::Blocks(index, part, page) => {
                let mut places = Vec::new();
                page.lookup(*index, *part, &mut places);
                self.add(places, -1);
            }
        }
    }

    fn add(&mut self, places: impl IntoIterator<Item = PagePlace>, sign: i64) {
        for PagePlace { range, place } in places {
            if let Some(place) = place {
                *self.blocks.entry(place.segment).or_default() += sign * range.count.0 as i64;
            }
        }
    }
}

impl PageTable {
    /// What [`PageTable::apply`] has shifted since it was asked last.
    pub fn take_shifts(&self) -> Shifts {
        std::mem::take(&mut self.residents.lock().shifts)
    }

    /// Notes what was taken from segments where pages were emptied.
    pub(super) fn note_gone(&self, gone: Shifts) {
        let mut residents = self.residents.lock();
        residents.shifts.is_short |= gone.is_short;
        for (segment, blocks) in gone.blocks {
            *residents.shifts.blocks.entry(segment).or_default() += blocks;
        }
    }

    /// Has these pages written into the next checkpoint, as if they had changed.
    pub fn write_again(&self, pages: impl IntoIterator<Item = PageIndex>) {
        let mut residents = self.residents.lock();
        pages.into_iter().for_each(|page| residents.changed.insert(page));
    }

    /// Changes a page, and counts what that takes from each segment, and gives to it, in `part` of the page.
    pub(super) fn change_counted(
        &self,
        index: PageIndex,
        page: Arc<MapPage>,
        part: BlockRange,
        edit: impl FnOnce(&mut MapPage),
    ) {
        let mut places = Vec::new();
        let mut before = 0;
        self.change(index, page, |page| {
            page.lookup(index, part, &mut places);
            before = places.len();
            edit(page);
            page.lookup(index, part, &mut places);
        });
        let after = places.split_off(before);
        let mut residents = self.residents.lock();
        residents.shifts.add(places, -1);
        residents.shifts.add(after, 1);
    }
}

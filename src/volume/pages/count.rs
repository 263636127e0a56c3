//! Counting: by how many blocks more, or fewer, the map leads to each segment after a change. For the census of cleaning.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::map::{MapPage, PageIndex, PagePlace};
use crate::units::{BlockRange, SegmentId};
use crate::volume::pages::PageTable;

/// By how many blocks more, or fewer, the map leads to a segment.
pub type Shifts = BTreeMap<SegmentId, i64>;

impl PageTable {
    /// What [`PageTable::apply`] has shifted since it was asked last.
    pub fn take_shifts(&self) -> Shifts {
        std::mem::take(&mut self.residents.lock().shifts)
    }

    /// Has these pages written into the next checkpoint, as if they had changed.
    pub fn write_again(&self, pages: impl IntoIterator<Item = PageIndex>) {
        self.residents.lock().changed.extend(pages);
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
        let mut residents = self.residents.lock();
        for (at, PagePlace { range, place }) in places.into_iter().enumerate() {
            let blocks = range.count.0 as i64;
            if let Some(place) = place {
                *residents.shifts.entry(place.segment).or_default() += if at < before { -blocks } else { blocks };
            }
        }
    }
}

//! One page of the block map: the places of 256 consecutive blocks (1 MiB of volume), as extents.
//!
//! Invariants: extents are sorted, do not overlap, are not empty, lie within the page, and adjoining extents that
//! continue each other in the same segment are one. A block that no extent covers reads as zero. The
//! segment table holds exactly the segments that some extent names.

use crate::limits::PAGE_BLOCKS;
use crate::units::{BlockCount, BlockRange, Lba, SegmentId};

/// The number of a page: the page covers blocks `index * 256` up to `index * 256 + 255`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u64);

impl PageIndex {
    /// The page that covers a block.
    pub fn containing(lba: Lba) -> Self {
        PageIndex(lba.0 / PAGE_BLOCKS)
    }

    /// The blocks that this page covers.
    pub fn range(self) -> BlockRange {
        BlockRange::new(Lba(self.0 * PAGE_BLOCKS), BlockCount(PAGE_BLOCKS))
    }

    /// Cuts a range where pages meet: each page that it touches, and the part that lies in it.
    pub fn parts_of(range: BlockRange) -> impl Iterator<Item = (PageIndex, BlockRange)> {
        let end = range.end().0;
        let mut at = range.start.0;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let index = PageIndex(at / PAGE_BLOCKS);
                let part_end = ((index.0 + 1) * PAGE_BLOCKS).min(end);
                let part = BlockRange::new(Lba(at), BlockCount(part_end - at));
                at = part_end;
                (index, part)
            })
        })
    }
}

/// A block's place in a segment: the segment, and the block's number among the blocks stored there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentPlace {
    /// Which segment.
    pub segment: SegmentId,
    /// Which of its blocks, counted from 0 in the order of its frames.
    pub block: u32,
}

impl SegmentPlace {
    /// The place `count` blocks further on in the same segment.
    pub fn plus(self, count: u32) -> Self {
        SegmentPlace { segment: self.segment, block: self.block + count }
    }
}

/// A run of blocks of a page that lie together in a segment, in the page's own compact terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageExtent {
    /// First block, counted from the start of the page.
    pub offset: u16,
    /// Number of blocks, at least 1.
    pub count: u16,
    /// Index into the page's segment table.
    pub segment: u16,
    /// Block number of the first block within the segment.
    pub block: u32,
}

impl PageExtent {
    fn end(self) -> u16 {
        self.offset + self.count
    }
}

/// What a lookup finds for a run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePlace {
    /// The blocks.
    pub range: BlockRange,
    /// Where the first of them lies, the rest following; `None` if they read as zero.
    pub place: Option<SegmentPlace>,
}

/// Joins what a lookup found on both sides of a page's edge, where it lies together: neighbours are fetched by one request.
pub fn join_places(places: &mut Vec<PagePlace>) {
    places.dedup_by(|next, kept| {
        let continued = kept.place.map(|place| place.plus(kept.range.count.0 as u32));
        let joins = kept.range.end() == next.range.start && continued == next.place;
        if joins {
            kept.range.count.0 += next.range.count.0;
        }
        joins
    });
}

/// One page of the block map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapPage {
    segments: Vec<SegmentId>,
    extents: Vec<PageExtent>,
}

impl MapPage {
    /// A page from its parts, as a decoder found them; `None` if they break an invariant.
    pub fn from_parts(segments: Vec<SegmentId>, extents: Vec<PageExtent>) -> Option<Self> {
        let mut end = 0u32;
        let mut used = vec![false; segments.len()];
        for extent in &extents {
            let (offset, count) = (u32::from(extent.offset), u32::from(extent.count));
            if offset < end
                || count == 0
                || u64::from(offset + count) > PAGE_BLOCKS
                || extent.block.checked_add(count).is_none()
            {
                return None;
            }
            *used.get_mut(usize::from(extent.segment))? = true;
            end = offset + count;
        }
        used.iter().all(|&is_used| is_used).then_some(MapPage { segments, extents })
    }

    /// What stands for a page that was damaged for good: the first `count` blocks are lost.
    pub fn lost(count: u16) -> Self {
        let mut page = MapPage::default();
        if count > 0 {
            page.set(0, count, Some(SegmentPlace { segment: SegmentId::LOST, block: 0 }));
        }
        page
    }

    /// True if some of its blocks are lost.
    pub fn has_lost(&self) -> bool {
        self.segments.iter().any(|segment| segment.is_lost())
    }

    /// The segment table and the extents, for an encoder.
    pub fn parts(&self) -> (&[SegmentId], &[PageExtent]) {
        (&self.segments, &self.extents)
    }

    /// True if every block reads as zero.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Bytes of memory that the page takes, for a budget.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.segments.capacity() * size_of::<SegmentId>()
            + self.extents.capacity() * size_of::<PageExtent>()
    }

    /// Sets `count` blocks from `offset` to a place (the blocks that follow lie behind it), or to zero.
    pub fn set(&mut self, offset: u16, count: u16, place: Option<SegmentPlace>) {
        assert!(count > 0 && u64::from(offset) + u64::from(count) <= PAGE_BLOCKS, "a run must lie within its page");
        let first = self.extents.partition_point(|extent| extent.end() <= offset);
        let last = self.extents.partition_point(|extent| extent.offset < offset + count);
        let mut replacement: [Option<PageExtent>; 3] = [None; 3];
        if first < last {
            let (head, tail) = (self.extents[first], self.extents[last - 1]);
            if head.offset < offset {
                replacement[0] = Some(PageExtent { count: offset - head.offset, ..head });
            }
            if tail.end() > offset + count {
                let cut = offset + count - tail.offset;
                replacement[2] = Some(PageExtent {
                    offset: offset + count,
                    count: tail.end() - (offset + count),
                    block: tail.block + u32::from(cut),
                    ..tail
                });
            }
        }
        if let Some(place) = place {
            let segment = self.intern(place.segment);
            replacement[1] = Some(PageExtent { offset, count, segment, block: place.block });
        }
        self.extents.splice(first..last, replacement.into_iter().flatten());
        self.join_around(first);
        if first < last {
            self.drop_unused_segments();
        }
    }

    /// Sets those of the blocks to the new place that still lie at the old one, and returns how many did.
    pub fn move_if_at(&mut self, offset: u16, count: u16, old: SegmentPlace, new: SegmentPlace) -> u16 {
        let mut moved = 0;
        for step in 0..count {
            let still = self.block(offset + step) == Some(old.plus(u32::from(step)));
            if still {
                self.set(offset + step, 1, Some(new.plus(u32::from(step))));
                moved += 1;
            }
        }
        moved
    }

    /// The place of one block, counted from the start of the page; `None` if it reads as zero.
    pub fn block(&self, offset: u16) -> Option<SegmentPlace> {
        let at = self.extents.partition_point(|extent| extent.end() <= offset);
        let extent = self.extents.get(at).filter(|extent| extent.offset <= offset)?;
        Some(self.place_of(extent).plus(u32::from(offset - extent.offset)))
    }

    /// Pushes the places of the blocks of `range`, which must lie within page `index`, onto `places`, in order
    /// and without gaps.
    pub fn lookup(&self, index: PageIndex, range: BlockRange, places: &mut Vec<PagePlace>) {
        let base = index.range().start.0;
        let mut at = range.start.0;
        let end = range.end().0;
        let from = u16::try_from(at - base).unwrap_or(u16::MAX);
        let first = self.extents.partition_point(|extent| extent.end() <= from);
        let mut push = |start: u64, end: u64, place| {
            if end > start {
                places.push(PagePlace { range: BlockRange::new(Lba(start), BlockCount(end - start)), place });
            }
        };
        for extent in &self.extents[first..] {
            let start = base + u64::from(extent.offset);
            if start >= end {
                break;
            }
            let from = start.max(at);
            let to = (base + u64::from(extent.end())).min(end);
            push(at, from, None);
            let skipped = u32::try_from(from - start).unwrap_or(u32::MAX);
            push(from, to, Some(self.place_of(extent).plus(skipped)));
            at = to;
        }
        push(at, end, None);
    }

    /// The extents with their places, in order.
    pub fn places(&self) -> impl Iterator<Item = (u16, u16, SegmentPlace)> + '_ {
        self.extents.iter().map(|extent| (extent.offset, extent.count, self.place_of(extent)))
    }

    fn place_of(&self, extent: &PageExtent) -> SegmentPlace {
        SegmentPlace { segment: self.segments[usize::from(extent.segment)], block: extent.block }
    }

    fn intern(&mut self, segment: SegmentId) -> u16 {
        let known = self.segments.iter().position(|&known| known == segment);
        let index = known.unwrap_or_else(|| {
            self.segments.push(segment);
            self.segments.len() - 1
        });
        assert!(index <= usize::from(u16::MAX), "a page names at most as many segments as it has blocks");
        index as u16
    }

    /// Joins the extents next to position `at` where one continues the other.
    fn join_around(&mut self, at: usize) {
        let mut right = (at + 2).min(self.extents.len().saturating_sub(1));
        while right > 0 && right + 1 >= at {
            let (before, after) = (self.extents[right - 1], self.extents[right]);
            let continues = before.end() == after.offset
                && before.segment == after.segment
                && before.block + u32::from(before.count) == after.block;
            if continues {
                self.extents[right - 1].count += after.count;
                self.extents.remove(right);
            }
            right -= 1;
        }
    }

    fn drop_unused_segments(&mut self) {
        let mut used = vec![false; self.segments.len()];
        for extent in &self.extents {
            used[usize::from(extent.segment)] = true;
        }
        if used.iter().all(|&is_used| is_used) {
            return;
        }
        let mut renumbered = vec![0u16; used.len()];
        let kept = renumbered.iter_mut().zip(&used).filter(|(_, is_used)| **is_used);
        for (next, (place, _)) in (0u16..).zip(kept) {
            *place = next;
        }
        for extent in &mut self.extents {
            extent.segment = renumbered[usize::from(extent.segment)];
        }
        let mut index = 0;
        self.segments.retain(|_| {
            index += 1;
            used[index - 1]
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, SegmentNumber, VolumeId};
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    fn place(number: u64, block: u32) -> SegmentPlace {
        let segment = SegmentId { volume: VolumeId(1), epoch: Epoch(1), number: SegmentNumber(number) };
        SegmentPlace { segment, block }
    }

    #[test]
    fn neighbours_are_joined_and_others_are_not() {
        let run =
            |start: u64, count: u64, place| PagePlace { range: BlockRange::new(Lba(start), BlockCount(count)), place };
        let mut places = vec![
            run(0, 4, Some(place(1, 10))),
            run(4, 2, Some(place(1, 14))),
            run(6, 1, Some(place(1, 17))),
            run(7, 1, Some(place(2, 18))),
            run(8, 3, None),
            run(11, 1, None),
        ];
        join_places(&mut places);
        let wanted = [
            run(0, 6, Some(place(1, 10))),
            run(6, 1, Some(place(1, 17))),
            run(7, 1, Some(place(2, 18))),
            run(8, 4, None),
        ];
        assert_eq!(places, wanted);
    }

    fn assert_equals_model(page: &MapPage, model: &[Option<SegmentPlace>]) {
        for (offset, expected) in model.iter().enumerate() {
            assert_eq!(page.block(offset as u16), *expected, "block {offset}");
        }
        let (segments, extents) = page.parts();
        assert_eq!(MapPage::from_parts(segments.to_vec(), extents.to_vec()).as_ref(), Some(page));
        for pair in extents.windows(2) {
            let continues = pair[0].end() == pair[1].offset
                && pair[0].segment == pair[1].segment
                && pair[0].block + u32::from(pair[0].count) == pair[1].block;
            assert!(!continues, "extents that continue each other are one");
        }
    }

    #[test]
    fn equals_a_plain_array_under_random_changes() {
        for seed in 0..200 {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut page = MapPage::default();
            let mut model: Vec<Option<SegmentPlace>> = vec![None; PAGE_BLOCKS as usize];
            for _ in 0..60 {
                let offset = random.random_range(0..PAGE_BLOCKS as u16);
                let count = random.random_range(1..=(PAGE_BLOCKS as u16 - offset).min(40));
                let target = place(random.random_range(0..4), random.random_range(0..8) * 16 + u32::from(offset));
                match random.random_range(0..4) {
                    0 => page.set(offset, count, None),
                    1 => {
                        let old = place(random.random_range(0..4), u32::from(offset));
                        let expected = (0..count)
                            .filter(|&step| model[usize::from(offset + step)] == Some(old.plus(u32::from(step))));
                        let expected: Vec<u16> = expected.collect();
                        assert_eq!(usize::from(page.move_if_at(offset, count, old, target)), expected.len());
                        for step in expected {
                            model[usize::from(offset + step)] = Some(target.plus(u32::from(step)));
                        }
                        assert_equals_model(&page, &model);
                        continue;
                    }
                    _ => page.set(offset, count, Some(target)),
                }
                for step in 0..count {
                    let zero = page.block(offset + step).is_none();
                    model[usize::from(offset + step)] = (!zero).then(|| target.plus(u32::from(step)));
                }
                assert_equals_model(&page, &model);
            }
        }
    }

    #[test]
    fn a_lookup_covers_its_range_without_gaps() {
        let mut page = MapPage::default();
        page.set(10, 5, Some(place(1, 100)));
        page.set(20, 1, Some(place(2, 0)));
        let mut places = Vec::new();
        let start = PageIndex(3).range().start.0;
        page.lookup(PageIndex(3), BlockRange::new(Lba(start + 12), BlockCount(10)), &mut places);
        let found: Vec<_> = places.iter().map(|p| (p.range.start.0 - start, p.range.count.0, p.place)).collect();
        assert_eq!(found, [(12, 3, Some(place(1, 102))), (15, 5, None), (20, 1, Some(place(2, 0))), (21, 1, None)]);
    }
}

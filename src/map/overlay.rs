//! The overlay: blocks whose newest content lies in the write log, as extents in an ordered tree.
//!
//! Memory: one tree entry an extent, and at most one extent a block that the log holds, so the overlay is
//! bounded by the length of the ring. Zeroed ranges of any length are one extent.

use std::collections::BTreeMap;

use crate::units::{BlockCount, BlockRange, Lba, LogOffset};

/// A block's place in the log: the record, and the block's number within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPlace {
    /// Where the record begins.
    pub record: LogOffset,
    /// Which of its blocks.
    pub block: u32,
}

/// What the overlay knows of a run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverlayPlace {
    /// In the log; the blocks that follow lie behind.
    Log(LogPlace),
    /// Zeroed by this record.
    Zero(LogOffset),
    /// Not in the log: ask the pages.
    Below,
}

impl OverlayPlace {
    fn record(self) -> LogOffset {
        match self {
            OverlayPlace::Log(place) => place.record,
            OverlayPlace::Zero(record) => record,
            OverlayPlace::Below => LogOffset(0),
        }
    }

    fn plus(self, count: u64) -> Self {
        match self {
            OverlayPlace::Log(place) => {
                let block = place.block + u32::try_from(count).unwrap_or(u32::MAX);
                OverlayPlace::Log(LogPlace { block, ..place })
            }
            other => other,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Extent {
    count: u64,
    place: OverlayPlace,
}

/// Which blocks lie in the log, and where.
#[derive(Debug, Default)]
pub struct LogOverlay {
    extents: BTreeMap<u64, Extent>,
}

impl LogOverlay {
    /// Says that the newest content of `range` is at `place`.
    pub fn set(&mut self, range: BlockRange, place: OverlayPlace) {
        let (start, end) = (range.start.0, range.end().0);
        if start == end {
            return;
        }
        // The common case: the same range is written again, or nothing is there yet.
        if let Some(extent) = self.extents.get_mut(&start)
            && extent.count == range.count.0
        {
            extent.place = place;
            return;
        }
        self.cut_out(start, end, |_| true);
        self.extents.insert(start, Extent { count: range.count.0, place });
    }

    /// Forgets what lies in `range` and belongs to records that begin before `tail`: the log gives their space back,
    /// and the pages know a place for them by now.
    pub fn release(&mut self, range: BlockRange, tail: LogOffset) {
        self.cut_out(range.start.0, range.end().0, |place| place.record() < tail);
    }

    /// Calls `visit` for runs that together cover `range`, in order and without gaps.
    pub fn lookup(&self, range: BlockRange, mut visit: impl FnMut(BlockRange, OverlayPlace)) {
        let end = range.end().0;
        let mut at = range.start.0;
        let run = |start: u64, end: u64| BlockRange::new(Lba(start), BlockCount(end - start));
        if let Some((&start, extent)) = self.extents.range(..at).next_back() {
            let extent_end = start + extent.count;
            if extent_end > at {
                let to = extent_end.min(end);
                visit(run(at, to), extent.place.plus(at - start));
                at = to;
            }
        }
        if at >= end {
            return;
        }
        for (&start, extent) in self.extents.range(at..end) {
            if start > at {
                visit(run(at, start), OverlayPlace::Below);
            }
            let to = (start + extent.count).min(end);
            visit(run(start, to), extent.place);
            at = to;
        }
        if at < end {
            visit(run(at, end), OverlayPlace::Below);
        }
    }

    /// All extents in block order.
    pub fn extents(&self) -> impl Iterator<Item = (BlockRange, OverlayPlace)> + '_ {
        self.extents
            .iter()
            .map(|(&start, extent)| (BlockRange::new(Lba(start), BlockCount(extent.count)), extent.place))
    }

    /// The place of one block.
    pub fn block(&self, lba: Lba) -> OverlayPlace {
        let mut found = OverlayPlace::Below;
        self.lookup(BlockRange::new(lba, BlockCount(1)), |_, place| found = place);
        found
    }

    /// Number of extents held.
    pub fn extent_count(&self) -> usize {
        self.extents.len()
    }

    /// True if nothing lies in the log.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Removes the parts of extents within `start..end` whose place is `chosen`.
    fn cut_out(&mut self, start: u64, end: u64, chosen: impl Fn(OverlayPlace) -> bool) {
        if let Some((&before, &extent)) = self.extents.range(..start).next_back()
            && before + extent.count > start
            && chosen(extent.place)
        {
            self.extents.insert(before, Extent { count: start - before, place: extent.place });
            let extent_end = before + extent.count;
            if extent_end > end {
                let rest = Extent { count: extent_end - end, place: extent.place.plus(end - before) };
                self.extents.insert(end, rest);
                return;
            }
        }
        let mut from = start;
        while from < end {
            let Some((&at, &extent)) = self.extents.range(from..end).next() else { break };
            let extent_end = at + extent.count;
            if chosen(extent.place) {
                self.extents.remove(&at);
                if extent_end > end {
                    self.extents.insert(end, Extent { count: extent_end - end, place: extent.place.plus(end - at) });
                }
            }
            from = extent_end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    const BLOCKS: u64 = 200;

    #[test]
    fn equals_a_plain_array_under_random_changes() {
        for seed in 0..300 {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut overlay = LogOverlay::default();
            let mut model = vec![OverlayPlace::Below; BLOCKS as usize];
            for step in 1..80u64 {
                let start = random.random_range(0..BLOCKS);
                let count = random.random_range(1..=(BLOCKS - start).min(30));
                let range = BlockRange::new(Lba(start), BlockCount(count));
                let record = LogOffset(step * 64);
                match random.random_range(0..5) {
                    0 => {
                        let tail = LogOffset(random.random_range(0..=step) * 64);
                        overlay.release(range, tail);
                        for place in &mut model[start as usize..(start + count) as usize] {
                            if *place != OverlayPlace::Below && place.record() < tail {
                                *place = OverlayPlace::Below;
                            }
                        }
                    }
                    1 => {
                        overlay.set(range, OverlayPlace::Zero(record));
                        model[start as usize..(start + count) as usize].fill(OverlayPlace::Zero(record));
                    }
                    _ => {
                        let place = OverlayPlace::Log(LogPlace { record, block: 0 });
                        overlay.set(range, place);
                        for offset in 0..count {
                            model[(start + offset) as usize] = place.plus(offset);
                        }
                    }
                }
                for (lba, expected) in model.iter().enumerate() {
                    assert_eq!(overlay.block(Lba(lba as u64)), *expected, "seed {seed} step {step} block {lba}");
                }
                let mut at = 0;
                overlay.lookup(BlockRange::new(Lba(0), BlockCount(BLOCKS)), |run, _| {
                    assert_eq!(run.start.0, at);
                    at = run.end().0;
                });
                assert_eq!(at, BLOCKS);
            }
        }
    }
}

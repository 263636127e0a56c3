//! The overlay: blocks whose newest content lies in the write log, as extents in an ordered tree.
//!
//! Memory: one tree entry an extent, kept small ([`EXTENT_BYTES`]), for a log of 4 GiB can hold a million of them; zeroed ranges of any
//! length are one. Whoever owns the log bounds how many there are ([`LogOverlay::extent_count`]).

use std::collections::BTreeMap;

use crate::limits::{RECORD_BYTES_MAX, VOLUME_BYTES_MAX};
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange, Lba, LogOffset};

/// What an extent takes in memory, in bytes: key and value in a node that is two thirds full.
pub const EXTENT_BYTES: usize = 32;

// Blocks of a volume, and blocks of a record, fit into what an extent has for them.
const _: () = assert!(VOLUME_BYTES_MAX / BLOCK_SIZE - 1 <= u32::MAX as u64);
const _: () = assert!(RECORD_BYTES_MAX / BLOCK_SIZE <= u16::MAX as u64);
const _: () = assert!(3 * (size_of::<u32>() + size_of::<Extent>()) <= 2 * EXTENT_BYTES);

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

    /// True if no record from `head` on has to do with it.
    pub fn is_before(self, head: LogOffset) -> bool {
        self == OverlayPlace::Below || self.record() < head
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

/// A run of blocks in the fewest bytes.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Twice the record's offset, and one more if it zeroed the blocks.
    record: u64,
    /// Blocks behind the first.
    more: u32,
    /// The first block's number within the record.
    block: u16,
}

impl Extent {
    fn new(count: u64, place: OverlayPlace) -> Self {
        assert!(count > 0 && count <= 1 << 32, "an extent has at least one block, and at most all of a volume");
        let more = (count - 1) as u32;
        match place {
            OverlayPlace::Log(LogPlace { record, block }) => {
                assert!(block <= u32::from(u16::MAX), "no record has this many blocks");
                Extent { record: record.0 << 1, more, block: block as u16 }
            }
            OverlayPlace::Zero(record) => Extent { record: record.0 << 1 | 1, more, block: 0 },
            OverlayPlace::Below => Extent { record: 0, more, block: 0 },
        }
    }

    fn count(&self) -> u64 {
        u64::from(self.more) + 1
    }

    fn place(&self) -> OverlayPlace {
        let record = LogOffset(self.record >> 1);
        if self.record & 1 == 1 {
            return OverlayPlace::Zero(record);
        }
        OverlayPlace::Log(LogPlace { record, block: u32::from(self.block) })
    }
}

/// Which blocks lie in the log, and where.
#[derive(Debug, Default)]
pub struct LogOverlay {
    extents: BTreeMap<u32, Extent>,
}

impl LogOverlay {
    /// Says that the newest content of `range` is at `place`, which is in the log.
    pub fn set(&mut self, range: BlockRange, place: OverlayPlace) {
        let (start, end) = (range.start.0, range.end().0);
        if start == end {
            return;
        }
        assert!(place != OverlayPlace::Below, "the overlay holds places in the log");
        let extent = Extent::new(range.count.0, place);
        // The common case: the same range is written again, or nothing is there yet.
        if let Some(known) = self.extents.get_mut(&key(start))
            && known.more == extent.more
        {
            *known = extent;
            return;
        }
        self.cut_out(start, end, |_| true);
        self.extents.insert(key(start), extent);
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
        if let Some((start, extent)) = self.before(at) {
            let extent_end = start + extent.count();
            if extent_end > at {
                let to = extent_end.min(end);
                visit(run(at, to), extent.place().plus(at - start));
                at = to;
            }
        }
        if at >= end {
            return;
        }
        for (&start, extent) in self.extents.range(key(at)..=key(end - 1)) {
            let start = u64::from(start);
            if start > at {
                visit(run(at, start), OverlayPlace::Below);
            }
            let to = (start + extent.count()).min(end);
            visit(run(start, to), extent.place());
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
            .map(|(&start, extent)| (BlockRange::new(Lba(start.into()), BlockCount(extent.count())), extent.place()))
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

    /// The last extent that begins before block `at`.
    fn before(&self, at: u64) -> Option<(u64, Extent)> {
        let (&start, &extent) = self.extents.range(..key(at)).next_back()?;
        Some((start.into(), extent))
    }

    /// Removes the parts of extents within `start..end` whose place is `chosen`.
    fn cut_out(&mut self, start: u64, end: u64, chosen: impl Fn(OverlayPlace) -> bool) {
        if let Some((before, extent)) = self.before(start)
            && before + extent.count() > start
            && chosen(extent.place())
        {
            self.extents.insert(key(before), Extent::new(start - before, extent.place()));
            let extent_end = before + extent.count();
            if extent_end > end {
                self.extents.insert(key(end), Extent::new(extent_end - end, extent.place().plus(end - before)));
                return;
            }
        }
        let mut from = start;
        while from < end {
            let Some((&at, &extent)) = self.extents.range(key(from)..=key(end - 1)).next() else { break };
            let extent_end = u64::from(at) + extent.count();
            if chosen(extent.place()) {
                self.extents.remove(&at);
                if extent_end > end {
                    let rest = Extent::new(extent_end - end, extent.place().plus(end - u64::from(at)));
                    self.extents.insert(key(end), rest);
                }
            }
            from = extent_end;
        }
    }
}

/// A block's number as the tree has it.
fn key(block: u64) -> u32 {
    u32::try_from(block).unwrap_or(u32::MAX)
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

//! What is to be brought near, part by part: everything that a volume's map leads to, or what a trace names.

use std::collections::VecDeque;

use crate::error::Result;
use crate::format::trace::{Trace, TraceRun};
use crate::limits::{PAGE_BLOCKS, TRACE_UNIT_BYTES};
use crate::lineage::MapView;
use crate::map::{PageIndex, SegmentPlace, join_places};
use crate::service::WarmProgress;
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange, ByteLen};
use crate::volume::core::Volume;

/// How much of a volume is looked up at a time.
const PART_BYTES: u64 = 16 << 20;
/// Runs of a trace that are looked up at a time.
const PART_RUNS: usize = 256;

/// A way through a volume.
pub struct Walk {
    what: What,
    done: u64,
    total: u64,
}

enum What {
    Everything { directories: VecDeque<u32>, pages: VecDeque<PageIndex> },
    Trace { runs: VecDeque<TraceRun>, size: u64 },
}

impl Walk {
    /// Through everything that the map of `volume` leads to, in the order of the volume.
    pub fn everything(volume: &Volume) -> Self {
        let directories = volume.pages.directories().into_iter().collect();
        let what = What::Everything { directories, pages: VecDeque::new() };
        Walk { what, done: 0, total: volume.size_bytes() }
    }

    /// Along a trace, in a volume of `size` bytes: what lies behind its end is passed over.
    pub fn along(trace: Trace, size: u64) -> Self {
        let total = trace.runs.iter().map(|run| u64::from(run.count) * TRACE_UNIT_BYTES).sum();
        Walk { what: What::Trace { runs: trace.runs.into(), size }, done: 0, total }
    }

    /// How far it has come.
    pub fn progress(&self) -> WarmProgress {
        WarmProgress { done: ByteLen(self.done.min(self.total)), total: ByteLen(self.total) }
    }

    /// Where the next part lies in segments: places, and for each the blocks from there on. `None` at the end.
    ///
    /// # Errors
    /// What RocksDB or the store say.
    pub async fn next(&mut self, volume: &Volume) -> Result<Option<Vec<(SegmentPlace, u64)>>> {
        let Some(ranges) = self.next_ranges(volume).await? else { return Ok(None) };
        let mut places = Vec::new();
        for range in ranges {
            let mut found = Vec::new();
            volume.pages.lookup(range, &mut found).await?;
            join_places(&mut found);
            places.extend(found.into_iter().filter_map(|found| Some((found.place?, found.range.count.0))));
        }
        Ok(Some(places))
    }

    async fn next_ranges(&mut self, volume: &Volume) -> Result<Option<Vec<BlockRange>>> {
        let Walk { what, done, .. } = self;
        match what {
            What::Everything { directories, pages } => {
                while pages.is_empty() {
                    let Some(which) = directories.pop_front() else { return Ok(None) };
                    pages.extend(volume.pages.occupied(which).await?.into_iter().map(|page| page.index));
                }
                let count = pages.len().min((PART_BYTES / BLOCK_SIZE / PAGE_BLOCKS) as usize);
                let ranges: Vec<BlockRange> = pages.drain(..count).map(PageIndex::range).collect();
                *done = ranges.last().map_or(*done, |range| range.end().byte_offset());
                Ok(Some(ranges))
            }
            What::Trace { runs, size } => {
                let (mut ranges, mut bytes) = (Vec::new(), 0);
                while ranges.len() < PART_RUNS
                    && bytes < PART_BYTES
                    && let Some(run) = next_run(runs, PART_BYTES - bytes)
                {
                    bytes += u64::from(run.count) * TRACE_UNIT_BYTES;
                    ranges.extend(within(run.blocks(), *size / BLOCK_SIZE));
                }
                *done += bytes;
                Ok((bytes > 0).then_some(ranges))
            }
        }
    }
}

/// The next run, or the first `bytes` of it.
fn next_run(runs: &mut VecDeque<TraceRun>, bytes: u64) -> Option<TraceRun> {
    let mut run = runs.pop_front()?;
    let most = u32::try_from(bytes.div_ceil(TRACE_UNIT_BYTES)).unwrap_or(u32::MAX);
    if run.count > most {
        runs.push_front(TraceRun { first: run.first + most, count: run.count - most });
        run.count = most;
    }
    Some(run)
}

/// The part of a range that lies within a volume of `blocks` blocks.
fn within(range: BlockRange, blocks: u64) -> Option<BlockRange> {
    let count = range.end().0.min(blocks).checked_sub(range.start.0).filter(|count| *count > 0)?;
    Some(BlockRange::new(range.start, BlockCount(count)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Lba;

    #[test]
    fn long_runs_come_in_parts_and_what_lies_behind_the_end_is_left_out() {
        let mut runs = VecDeque::from([TraceRun { first: 10, count: 5 }, TraceRun { first: 1, count: 1 }]);
        let parts: Vec<(u32, u32)> = std::iter::from_fn(|| next_run(&mut runs, 2 * TRACE_UNIT_BYTES))
            .map(|run| (run.first, run.count))
            .collect();
        assert_eq!(parts, [(10, 2), (12, 2), (14, 1), (1, 1)]);
        let range = BlockRange::new(Lba(16), BlockCount(16));
        assert_eq!(within(range, 20), Some(BlockRange::new(Lba(16), BlockCount(4))));
        assert_eq!(within(range, 16), None);
        assert_eq!(within(range, 5), None);
    }
}

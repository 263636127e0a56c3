//! Emptying pages: what a trim, or zeros over a range, do to the block map. It costs what was there, not the length of the range.
//!
//! Whole directories (1 GiB) are emptied at once: RocksDB forgets their pages, memory too, and of the checkpoint nothing counts there any
//! more, which is noted in one bit. What only the checkpoint knows is not fetched for that. At the edges, pages that may
//! hold something are emptied one by one.
//!
//! After a crash RocksDB may lack pages that were emptied here, and the checkpoint below still has them: replaying the segments behind it empties
//! them again.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::limits::{DIRECTORY_PAGES, PAGE_BLOCKS};
use crate::map::{ChangedPages, MapPage, PageIndex};
use crate::units::{BlockCount, BlockRange, Lba};
use crate::volume::pages::memory::{Residents, directory_of};
use crate::volume::pages::{OnDamage, PageTable};

/// Rows of RocksDB looked at at a time.
const ROWS_AT_ONCE: usize = 256;

/// What is taken away.
#[derive(Debug)]
pub enum Gone<'a> {
    /// These blocks of a page; it was like this before.
    Blocks(PageIndex, BlockRange, &'a MapPage),
    /// What the checkpoint has in these pages, all of one directory, and was not told of: nobody looked.
    Unseen(Range<PageIndex>),
}

/// Told of what is taken away.
pub type Witness<'a> = dyn FnMut(Gone<'_>) + Send + 'a;

impl PageTable {
    /// Makes a range read as zero.
    ///
    /// # Errors
    /// What RocksDB or the store say; doing it again completes it.
    pub(super) async fn clear(&self, range: BlockRange, on_damage: OnDamage, gone: &mut Witness<'_>) -> Result<()> {
        let (before, whole, behind) = split_at_directories(range);
        if let Some(before) = before {
            self.clear_within(before, on_damage, gone).await?;
        }
        for run in self.runs_to_clear(whole) {
            self.clear_directories(run, gone).await?;
        }
        match behind {
            Some(behind) => self.clear_within(behind, on_damage, gone).await,
            None => Ok(()),
        }
    }

    /// As [`PageTable::clear`], while attaching: asks the store for nothing. True if pages of the checkpoint lack it.
    ///
    /// # Errors
    /// What RocksDB says.
    pub(super) fn replay_zero(&self, range: BlockRange) -> Result<bool> {
        let (before, whole, behind) = split_at_directories(range);
        let mut is_lacking = false;
        for edge in [before, behind].into_iter().flatten() {
            is_lacking |= self.replay_zero_within(edge)?;
        }
        for run in self.runs_to_clear(whole) {
            self.clear_at_hand(run, &ChangedPages::default(), &mut |_| {})?;
        }
        Ok(is_lacking)
    }

    /// Empties blocks of one directory, page by page.
    async fn clear_within(&self, range: BlockRange, on_damage: OnDamage, gone: &mut Witness<'_>) -> Result<()> {
        let which = directory_of(PageIndex::containing(range.start));
        let pages = pages_of(range);
        let first = u64::from(which) * DIRECTORY_PAGES;
        let known = self.directory_to_change(which, on_damage).await?;
        let mut suspects: Vec<PageIndex> = self.residents.lock().changed.pages_within(pages.clone()).collect();
        suspects.extend(known.iter().map(|(slot, _)| PageIndex(first + u64::from(*slot))));
        suspects.retain(|index| pages.contains(&index.0));
        suspects.sort_unstable();
        suspects.dedup();
        for index in suspects {
            let page = self.load_to_change(index, on_damage).await?;
            let part = part_of(range, index);
            if page.is_empty() {
                continue;
            }
            gone(Gone::Blocks(index, part, &page));
            self.change(index, page, |page| clear_part(page, index, part));
        }
        Ok(())
    }

    fn replay_zero_within(&self, range: BlockRange) -> Result<bool> {
        let which = directory_of(PageIndex::containing(range.start));
        let pages = pages_of(range);
        let suspects: Vec<PageIndex> = {
            let residents = self.residents.lock();
            let is_in_base = !residents.changed.is_cleared(which) && self.base.read().reference(which).is_some();
            match is_in_base {
                // Which of them the checkpoint has is not known: that would take a request.
                true => pages.map(PageIndex).collect(),
                false => residents.changed.pages_within(pages).collect(),
            }
        };
        let mut is_lacking = false;
        for index in suspects {
            match self.resident(index)? {
                None => {
                    is_lacking = true;
                    self.residents.lock().changed.insert(index);
                }
                // RocksDB may be newer than the checkpoint: a page that is empty here may still have to become so there.
                Some(page) => self.change(index, page, |page| clear_part(page, index, part_of(range, index))),
            }
        }
        Ok(is_lacking)
    }

    /// Of a run of directories those that hold something, as few runs as possible. What lies between them may be emptied too.
    fn runs_to_clear(&self, directories: Range<u32>) -> Vec<Range<u32>> {
        let residents = self.residents.lock();
        let base = self.base.read();
        let mut runs: Vec<Range<u32>> = Vec::new();
        for which in directories.filter(|which| !residents.is_void(&base, *which)) {
            match runs.last_mut() {
                Some(last) if last.end == which => last.end = which + 1,
                _ => runs.push(which..which + 1),
            }
        }
        runs
    }

    /// Empties whole directories, telling of every page that is in memory or in RocksDB once.
    async fn clear_directories(&self, run: Range<u32>, gone: &mut Witness<'_>) -> Result<()> {
        let pages = pages_in(&run);
        let mut seen = ChangedPages::default();
        witness_residents(&self.residents.lock(), &pages, &mut seen, gone);
        let mut from = pages.start;
        loop {
            let end = PageIndex(pages.end);
            let rows = self.index.pages_between(self.volume, PageIndex(from), end, ROWS_AT_ONCE)?;
            let Some((last, _)) = rows.last() else { break };
            from = last.0 + 1;
            // There may be millions, and others wait for this thread.
            tokio::task::yield_now().await;
            for (index, row) in &rows {
                if seen.contains(*index) {
                    continue;
                }
                // A damaged one counts as unseen: it is about to go.
                if let Ok(page) = self.page_in(*index, row) {
                    seen.insert(*index);
                    gone(Gone::Blocks(*index, index.range(), &page));
                }
            }
        }
        self.clear_at_hand(run, &seen, gone)
    }

    /// Empties whole directories in one step, telling of what was not `seen`.
    fn clear_at_hand(&self, run: Range<u32>, seen: &ChangedPages, gone: &mut Witness<'_>) -> Result<()> {
        let pages = pages_in(&run);
        let mut residents = self.residents.lock();
        residents.only_if_open(self.volume)?;
        // Pages that came into memory meanwhile: the content is the same, for only this task changes any.
        let mut seen = seen.clone();
        witness_residents(&residents, &pages, &mut seen, gone);
        self.index.delete_pages(self.volume, PageIndex(pages.start), PageIndex(pages.end))?;
        let empty = Arc::new(MapPage::default());
        let inside: Vec<PageIndex> = residents_in(&residents, &pages).collect();
        for index in inside {
            self.put_empty(&mut residents, index, empty.clone());
        }
        let base = self.base.read().clone();
        for which in run {
            let counts = !residents.changed.is_cleared(which) && base.reference(which).is_some();
            residents.clear_directory(which);
            if counts && !base.has_only(which, |index| seen.contains(index)) {
                let first = u64::from(which) * DIRECTORY_PAGES;
                gone(Gone::Unseen(PageIndex(first)..PageIndex(first + DIRECTORY_PAGES)));
            }
        }
        Ok(())
    }
}

/// Tells of the pages in memory that hold something and were not `seen`.
fn witness_residents(residents: &Residents, pages: &Range<u64>, seen: &mut ChangedPages, gone: &mut Witness<'_>) {
    let mut inside: Vec<PageIndex> = residents_in(residents, pages).filter(|index| !seen.contains(*index)).collect();
    // The same order in every process.
    inside.sort_unstable();
    for index in inside {
        seen.insert(index);
        if let Some(resident) = residents.pages.get(&index).filter(|resident| !resident.page.is_empty()) {
            gone(Gone::Blocks(index, index.range(), &resident.page));
        }
    }
}

/// The pages of a range that are in memory. Looks at the fewer of the two.
fn residents_in<'a>(residents: &'a Residents, pages: &Range<u64>) -> Box<dyn Iterator<Item = PageIndex> + 'a> {
    let pages = pages.clone();
    if (pages.end - pages.start) as usize > residents.pages.len() {
        return Box::new(residents.pages.keys().copied().filter(move |index| pages.contains(&index.0)));
    }
    Box::new(pages.map(PageIndex).filter(|index| residents.pages.contains_key(index)))
}

fn clear_part(page: &mut MapPage, index: PageIndex, part: BlockRange) {
    page.set((part.start.0 - index.range().start.0) as u16, part.count.0 as u16, None);
}

/// The part of a range that lies in a page.
fn part_of(range: BlockRange, index: PageIndex) -> BlockRange {
    let blocks = index.range();
    let start = range.start.max(blocks.start);
    BlockRange::new(start, BlockCount(range.end().min(blocks.end()).0 - start.0))
}

/// The pages that a range touches.
fn pages_of(range: BlockRange) -> Range<u64> {
    range.start.0 / PAGE_BLOCKS..range.end().0.div_ceil(PAGE_BLOCKS)
}

fn pages_in(run: &Range<u32>) -> Range<u64> {
    u64::from(run.start) * DIRECTORY_PAGES..u64::from(run.end) * DIRECTORY_PAGES
}

/// Cuts a range into whole directories, and what lies before and behind them, each within one directory.
fn split_at_directories(range: BlockRange) -> (Option<BlockRange>, Range<u32>, Option<BlockRange>) {
    const BLOCKS: u64 = DIRECTORY_PAGES * PAGE_BLOCKS;
    let (start, end) = (range.start.0, range.end().0);
    let part = |from: u64, to: u64| (from < to).then(|| BlockRange::new(Lba(from), BlockCount(to - from)));
    let (first, last) = (start.div_ceil(BLOCKS), end / BLOCKS);
    if first > last {
        return (part(start, end), 0..0, None);
    }
    (part(start, first * BLOCKS), first as u32..last as u32, part((last * BLOCKS).max(start), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_where_directories_meet() {
        const BLOCKS: u64 = DIRECTORY_PAGES * PAGE_BLOCKS;
        let mut ends: Vec<u64> =
            (0..4u64).flat_map(|at| [at * BLOCKS, at * BLOCKS + 1, at * BLOCKS + BLOCKS / 2]).collect();
        ends.extend([BLOCKS - 1, 3 * BLOCKS - 1]);
        for &start in &ends {
            for &end in ends.iter().filter(|end| **end > start) {
                let (before, whole, behind) =
                    split_at_directories(BlockRange::new(Lba(start), BlockCount(end - start)));
                let mut at = start;
                for part in [
                    before,
                    Some(BlockRange::new(
                        Lba(u64::from(whole.start) * BLOCKS),
                        BlockCount(whole.len() as u64 * BLOCKS),
                    )),
                    behind,
                ] {
                    let Some(part) = part.filter(|part| part.count.0 > 0) else { continue };
                    assert_eq!(part.start.0, at, "{start} to {end}");
                    at = part.end().0;
                }
                assert_eq!(at, end, "{start} to {end}");
                for edge in [before, behind].into_iter().flatten() {
                    assert_eq!(edge.start.0 / BLOCKS, (edge.end().0 - 1) / BLOCKS, "an edge lies in one directory");
                    assert!(edge.count.0 < BLOCKS);
                }
            }
        }
    }
}

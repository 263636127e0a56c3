//! Which pages of a block map differ from a checkpoint: a bit for each page of each directory in which any does, so at most some 3 MiB for the
//! largest volume, however it was written.
//!
//! A directory can be **cleared**: of what the checkpoint has in it nothing counts any more, and only the pages named here may hold
//! something. A trim of terabytes is said so without naming a single page.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::limits::DIRECTORY_PAGES;
use crate::map::PageIndex;

const WORD_PAGES: u64 = u64::BITS as u64;
const WORDS: usize = (DIRECTORY_PAGES / WORD_PAGES) as usize;

/// What differs in one directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedDirectory {
    is_cleared: bool,
    pages: [u64; WORDS],
}

impl ChangedDirectory {
    /// True if nothing counts that the checkpoint has here.
    pub fn is_cleared(&self) -> bool {
        self.is_cleared
    }

    /// True if no page is named.
    pub fn names_none(&self) -> bool {
        self.pages.iter().all(|word| *word == 0)
    }

    fn has(&self, slot: u64) -> bool {
        self.pages[(slot / WORD_PAGES) as usize] >> (slot % WORD_PAGES) & 1 == 1
    }

    /// The slots of the pages named, in order.
    fn slots(&self) -> impl Iterator<Item = u64> + '_ {
        (0u64..).zip(self.pages).flat_map(|(number, word)| {
            (0..WORD_PAGES).filter(move |bit| word >> bit & 1 == 1).map(move |bit| number * WORD_PAGES + bit)
        })
    }
}

/// Pages that differ from a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangedPages {
    directories: BTreeMap<u32, ChangedDirectory>,
}

impl ChangedPages {
    /// Names a page.
    pub fn insert(&mut self, page: PageIndex) {
        let (which, slot) = (page.0 / DIRECTORY_PAGES, page.0 % DIRECTORY_PAGES);
        let directory = self.directories.entry(directory_number(which)).or_default();
        directory.pages[(slot / WORD_PAGES) as usize] |= 1 << (slot % WORD_PAGES);
    }

    /// Clears a directory: none of its pages is named any more.
    pub fn clear_directory(&mut self, which: u32) {
        self.directories.insert(which, ChangedDirectory { is_cleared: true, pages: [0; WORDS] });
    }

    /// True if the page is named.
    pub fn contains(&self, page: PageIndex) -> bool {
        let (which, slot) = (page.0 / DIRECTORY_PAGES, page.0 % DIRECTORY_PAGES);
        self.directory(directory_number(which)).is_some_and(|directory| directory.has(slot))
    }

    /// What differs in a directory, if anything does.
    pub fn directory(&self, which: u32) -> Option<&ChangedDirectory> {
        self.directories.get(&which)
    }

    /// True if the directory was cleared.
    pub fn is_cleared(&self, which: u32) -> bool {
        self.directory(which).is_some_and(|directory| directory.is_cleared)
    }

    /// The directories in which something differs, in order.
    pub fn directories(&self) -> impl Iterator<Item = (u32, &ChangedDirectory)> + '_ {
        self.directories.iter().map(|(which, directory)| (*which, directory))
    }

    /// The pages of a directory that are named, in order.
    pub fn pages_of(&self, which: u32) -> impl Iterator<Item = PageIndex> + '_ {
        let first = u64::from(which) * DIRECTORY_PAGES;
        self.directory(which)
            .into_iter()
            .flat_map(|directory| directory.slots())
            .map(move |slot| PageIndex(first + slot))
    }

    /// The pages of a range within one directory that are named, in order.
    pub fn pages_within(&self, pages: Range<u64>) -> impl Iterator<Item = PageIndex> + '_ {
        self.pages_of(directory_number(pages.start / DIRECTORY_PAGES)).filter(move |page| pages.contains(&page.0))
    }

    /// True if nothing differs.
    pub fn is_empty(&self) -> bool {
        self.directories.is_empty()
    }

    /// The last page named.
    pub fn last(&self) -> Option<PageIndex> {
        self.directories.keys().rev().find_map(|which| self.pages_of(*which).last())
    }
}

impl FromIterator<PageIndex> for ChangedPages {
    fn from_iter<I: IntoIterator<Item = PageIndex>>(pages: I) -> Self {
        let mut changed = ChangedPages::default();
        pages.into_iter().for_each(|page| changed.insert(page));
        changed
    }
}

fn directory_number(which: u64) -> u32 {
    u32::try_from(which).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    #[test]
    fn equals_plain_sets_under_random_changes() {
        for seed in 0..100 {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut changed = ChangedPages::default();
            let mut model: BTreeMap<u32, (bool, BTreeSet<u64>)> = BTreeMap::new();
            for _ in 0..200 {
                let page = random.random_range(0..4 * DIRECTORY_PAGES);
                let which = (page / DIRECTORY_PAGES) as u32;
                if random.random_bool(0.03) {
                    changed.clear_directory(which);
                    model.insert(which, (true, BTreeSet::new()));
                } else {
                    changed.insert(PageIndex(page));
                    model.entry(which).or_default().1.insert(page);
                }
            }
            let found: BTreeMap<u32, (bool, BTreeSet<u64>)> = changed
                .directories()
                .map(|(which, directory)| {
                    (which, (directory.is_cleared(), changed.pages_of(which).map(|page| page.0).collect()))
                })
                .collect();
            assert_eq!(found, model);
            let all: BTreeSet<u64> = model.values().flat_map(|(_, pages)| pages).copied().collect();
            assert_eq!(changed.last().map(|page| page.0), all.last().copied());
            for page in 0..4 * DIRECTORY_PAGES {
                assert_eq!(changed.contains(PageIndex(page)), all.contains(&page));
            }
            let within: Vec<u64> = changed.pages_within(100..900).map(|page| page.0).collect();
            assert_eq!(within, all.range(100..900).copied().collect::<Vec<_>>());
        }
    }
}

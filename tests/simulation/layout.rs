//! Where the sectors of a simulated volume lie on its disk: one after the other, or, on a wide one, in two directories of the map.
//!
//! A wide volume is larger than what one directory maps (1 GiB), and yet read as a whole in no time: its first sectors lie at its
//! beginning, the others behind 1 GiB, and of what is in between nobody writes anything. Its size says that it is wide.

use std::ops::Range;

use varve::limits::{DIRECTORY_PAGES, PAGE_BLOCKS};
use varve::units::BLOCK_SIZE;

use super::record::{BLOCK, SECTOR, Step};

/// What one directory of the map leads to, in bytes.
const DIRECTORY: u64 = DIRECTORY_PAGES * PAGE_BLOCKS * BLOCK_SIZE;
/// Sectors of a wide volume that lie in its first directory: half of those that are written most.
const LOW: usize = 24 * BLOCK;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Narrow,
    Wide,
}

impl Layout {
    /// That of a volume of this many bytes.
    pub fn of(size: u64) -> Layout {
        if size > DIRECTORY { Layout::Wide } else { Layout::Narrow }
    }

    /// Bytes of a volume of this many sectors.
    pub fn size(self, sectors: usize) -> u64 {
        self.offset(sectors)
    }

    /// Sectors of a volume of this many bytes.
    pub fn sectors(self, size: u64) -> usize {
        match self {
            Layout::Narrow => size as usize / SECTOR,
            Layout::Wide => LOW + (size - DIRECTORY) as usize / SECTOR,
        }
    }

    /// Where a sector begins, in bytes.
    pub fn offset(self, sector: usize) -> u64 {
        match self {
            Layout::Wide if sector >= LOW => DIRECTORY + ((sector - LOW) * SECTOR) as u64,
            _ => (sector * SECTOR) as u64,
        }
    }

    /// Bytes that a step is about: the whole of the first directory, if it is about all that is ever written there.
    ///
    /// # Panics
    /// If the step is about both directories.
    pub fn range(self, step: &Step) -> Range<u64> {
        let start = self.offset(step.first);
        if self == Layout::Wide && (step.first, step.end()) == (0, LOW) {
            return 0..DIRECTORY;
        }
        let end = start + (step.count * SECTOR) as u64;
        assert!(self == Layout::Narrow || step.end() <= LOW || start >= DIRECTORY, "{step:?} is in two directories");
        start..end
    }

    /// The part of a step that lies in the directory in which it begins.
    pub fn within_directory(self, step: Step) -> Step {
        if self == Layout::Wide && step.first < LOW {
            return Step { count: step.count.min(LOW - step.first), ..step };
        }
        step
    }

    /// All that lies in the first directory, if there is another.
    pub fn first_directory(self) -> Option<Step> {
        (self == Layout::Wide).then_some(Step { first: 0, count: LOW, stamp: 0 })
    }

    /// Steps in each of which all sectors follow one another on the disk, which make up these sectors.
    pub fn parts(self, first: usize, count: usize) -> Vec<Step> {
        let whole = Step { first, count, stamp: 0 };
        let part = self.within_directory(whole);
        let rest = Step { first: part.end(), count: count - part.count, stamp: 0 };
        [part, rest].into_iter().filter(|part| part.count > 0).collect()
    }
}

mod self_tests {
    use super::*;

    const LAST: Range<u64> = ((LOW - 1) * SECTOR) as u64..(LOW * SECTOR) as u64;

    #[test]
    fn the_size_of_a_volume_says_where_its_sectors_lie() {
        for (layout, sectors) in [(Layout::Narrow, 4096), (Layout::Wide, 2048), (Layout::Wide, LOW + BLOCK)] {
            let size = layout.size(sectors);
            assert_eq!((Layout::of(size), layout.sectors(size)), (layout, sectors));
            let parts = layout.parts(0, sectors);
            assert_eq!(parts.last().map(|last| layout.range(last).end), Some(size));
        }
        let step = Step { first: LOW - 1, count: 4, stamp: 7 };
        assert_eq!(Layout::Wide.range(&Layout::Wide.within_directory(step)), LAST);
    }
}

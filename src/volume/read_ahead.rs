//! Telling sequential readers from others, and how far to read ahead for them. Pure.

use std::ops::Range;

/// A reader is sequential once this many requests went on from each other.
const STREAK: u32 = 2;
/// How far ahead of a sequential reader frames are brought into memory, in bytes, if memory has room for that: a few long requests are under way
/// at a time. Stores serve long ones with less work, and each connection to one has a bound of its own.
pub const WINDOW_MAX: u64 = 32 << 20;
/// The window is fetched in about so many parts.
const STEPS: u64 = 3;
/// How far ahead a reader is led that has only begun, in bytes.
const FIRST_WINDOW: u64 = 1 << 20;
/// A reader is led by so many times what it has read in order: most runs end soon.
const GROWTH: u64 = 4;
/// Requests in flight at the same time arrive in any order within this distance, in bytes.
const SLACK: u64 = 16 << 20;

/// What of a window is fetched at a time, in bytes: steps that end anywhere would make small requests at the next.
fn step_of(window: u64) -> u64 {
    1 << (window / STEPS).max(1).ilog2()
}

/// The newest stream of reads of one volume.
#[derive(Debug, Default)]
pub struct ReadAhead {
    /// What was read in order, in bytes.
    read: u64,
    expected: u64,
    ahead_to: u64,
    streak: u32,
}

impl ReadAhead {
    /// True if a read at `offset` goes on from a stream that something was read ahead for.
    pub fn leads(&self, offset: u64) -> bool {
        self.streak >= STREAK && offset.abs_diff(self.expected) <= SLACK
    }

    /// Notes a read of `length` bytes at `offset` of a disk of `size` bytes, and returns the byte range to bring near now, if any: up to
    /// `window` bytes ahead.
    pub fn note(&mut self, offset: u64, length: u64, size: u64, window: u64) -> Option<Range<u64>> {
        let end = offset + length;
        if offset.abs_diff(self.expected) <= SLACK && end > self.expected {
            self.streak = self.streak.saturating_add(1);
            self.read = self.read.saturating_add(length);
        } else if end + SLACK < self.expected || offset > self.expected + SLACK {
            *self = ReadAhead { read: length, expected: end, ahead_to: end, streak: 0 };
            return None;
        }
        self.expected = self.expected.max(end);
        self.ahead_to = self.ahead_to.max(self.expected);
        let earned = self.read.saturating_mul(GROWTH).max(FIRST_WINDOW);
        let window = window.min(earned);
        let step = step_of(window);
        let target = (self.expected + window) / step * step;
        let target = if target >= size { size } else { target };
        if self.streak < STREAK || target <= self.ahead_to || (target < size && target - self.ahead_to < step) {
            return None;
        }
        let range = self.ahead_to..target;
        self.ahead_to = target;
        Some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_is_led_by_a_window() {
        let mut reads = ReadAhead::default();
        let mut covered = 0;
        let mut started = None;
        for step in 0..64u64 {
            if let Some(range) = reads.note(step << 20, 1 << 20, 1 << 30, WINDOW_MAX) {
                assert!(range.start >= covered, "nothing is fetched twice");
                started.get_or_insert(range.start);
                covered = range.end;
            }
        }
        assert!(started.is_some_and(|start| start <= 4 << 20));
        assert!(covered >= (64 << 20) + WINDOW_MAX / 2);
    }

    #[test]
    fn who_has_read_little_is_led_a_little() {
        let mut reads = ReadAhead::default();
        let ranges: Vec<_> =
            (0..4096u64).filter_map(|step| reads.note(step << 12, 4096, 1 << 30, WINDOW_MAX)).collect();
        for range in &ranges {
            assert!(range.end <= (range.start * (1 + GROWTH)).max(2 * FIRST_WINDOW), "{range:?}");
        }
        let (last, step) = (ranges.last().unwrap(), step_of(WINDOW_MAX));
        assert_eq!((last.start % step, last.end - last.start), (0, step));
    }

    #[test]
    fn the_end_of_the_disk_is_brought_and_nothing_behind_it() {
        let (mut reads, size) = (ReadAhead::default(), (20 << 20) + 4096);
        let ranges: Vec<_> = (0..20u64).filter_map(|step| reads.note(step << 20, 1 << 20, size, WINDOW_MAX)).collect();
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(ranges.last().map(|range| range.end), Some(size));
    }

    #[test]
    fn random_reads_bring_nothing() {
        let mut reads = ReadAhead::default();
        for step in 0..1000u64 {
            let offset = (step * 7_919 % 997) << 26;
            assert_eq!(reads.note(offset, 4096, 1 << 40, WINDOW_MAX), None);
        }
    }
}

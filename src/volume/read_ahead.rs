//! Telling sequential readers from others, and how far to read ahead for them. Pure.

use crate::limits::NEAR_BYTES_MAX;

/// A reader is sequential once this many requests went on from each other.
const STREAK: u32 = 2;
/// How far ahead of a sequential reader frames are brought into memory, in bytes, if memory has room for that.
pub const WINDOW_MAX: u64 = NEAR_BYTES_MAX;
/// Requests in flight at the same time arrive in any order within this distance, in bytes.
const SLACK: u64 = 16 << 20;

/// The newest stream of reads of one volume.
#[derive(Debug, Default)]
pub struct ReadAhead {
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
    pub fn note(&mut self, offset: u64, length: u64, size: u64, window: u64) -> Option<std::ops::Range<u64>> {
        let end = offset + length;
        if offset.abs_diff(self.expected) <= SLACK && end > self.expected {
            self.streak = self.streak.saturating_add(1);
        } else if end + SLACK < self.expected || offset > self.expected + SLACK {
            *self = ReadAhead { expected: end, ahead_to: end, streak: 0 };
            return None;
        }
        self.expected = self.expected.max(end);
        self.ahead_to = self.ahead_to.max(self.expected);
        let target = (self.expected + window).min(size);
        // Small steps would make small requests: go on when half of the window is used up.
        if self.streak < STREAK || target < self.ahead_to + window / 4 {
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
    fn random_reads_bring_nothing() {
        let mut reads = ReadAhead::default();
        for step in 0..1000u64 {
            let offset = (step * 7_919 % 997) << 26;
            assert_eq!(reads.note(offset, 4096, 1 << 40, WINDOW_MAX), None);
        }
    }
}

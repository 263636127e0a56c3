//! Who enters the disk part. While what it holds is in use, a frame that was not asked for before stays outside, and enters when it is asked for
//! again: so what is read once (a scan, a backup) does not turn the ring, and what turns up again is kept. One of sixty-four enters unknown all the
//! same, so that the ring goes on turning, and finds out what is not in use any more; then everything enters.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use foldhash::quality::FixedState;

use crate::format::cache::CHUNK_BYTES;
use crate::units::FrameId;

/// Bytes of the ring for each frame that is remembered: 6.5 MiB for 100 GB.
const RING_BYTES_REMEMBERED: u64 = 32 << 10;
/// In use, in thousandths of what leaves its place, from which on the door is kept.
const KEPT_FROM: u32 = 125;
/// One of so many enters unknown.
const UNKNOWN_ENTER: u32 = 64;
/// The newest chunk counts for one of so many parts in what is in use.
const NEWEST_COUNTS: u32 = 16;

/// The door of the disk part.
pub struct Door {
    /// Fingerprints of frames that were asked for, by a hash of their name; the newer replaces the older.
    seen: Vec<AtomicU16>,
    hasher: FixedState,
    /// How much of the chunks that leave their place is in use, in thousandths; 0 until the ring comes round.
    in_use: AtomicU32,
    turned_away: AtomicU32,
}

impl Door {
    /// The door of a ring of so many chunks. Open.
    pub fn new(chunks: u64) -> Self {
        let remembered = (chunks * (CHUNK_BYTES / RING_BYTES_REMEMBERED)).max(1);
        Door {
            seen: (0..remembered).map(|_| AtomicU16::new(0)).collect(),
            hasher: FixedState::default(),
            in_use: AtomicU32::new(0),
            turned_away: AtomicU32::new(0),
        }
    }

    /// Notes that so many bytes of a chunk that leaves its place are in use.
    pub fn note_replaced(&self, bytes_in_use: u64) {
        let newest = u32::try_from(bytes_in_use * 1000 / CHUNK_BYTES).unwrap_or(1000).min(1000);
        let before = self.in_use.load(Ordering::Relaxed);
        self.in_use.store((before * (NEWEST_COUNTS - 1) + newest) / NEWEST_COUNTS, Ordering::Relaxed);
    }

    /// True if a frame that was asked for, and is not there, may enter.
    pub fn admits(&self, frame: FrameId) -> bool {
        let hash = self.hasher.hash_one(frame);
        let fingerprint = (hash >> 48) as u16 | 1;
        let is_known =
            self.seen[(hash % self.seen.len() as u64) as usize].swap(fingerprint, Ordering::Relaxed) == fingerprint;
        is_known
            || self.in_use.load(Ordering::Relaxed) < KEPT_FROM
            || self.turned_away.fetch_add(1, Ordering::Relaxed) % UNKNOWN_ENTER == UNKNOWN_ENTER - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, SegmentId, SegmentNumber, VolumeId};

    fn frame(number: u64) -> FrameId {
        let segment = SegmentId { volume: VolumeId(7), epoch: Epoch(1), number: SegmentNumber(number / 10) };
        FrameId { segment, frame: (number % 10) as u32 }
    }

    #[test]
    fn everything_enters_a_ring_that_nobody_uses() {
        let door = Door::new(8);
        assert!((0..1000).all(|number| door.admits(frame(number))));
        (0..100).for_each(|_| door.note_replaced(CHUNK_BYTES / 10));
        assert!((1000..2000).all(|number| door.admits(frame(number))));
    }

    #[test]
    fn what_is_in_use_keeps_strangers_out_until_they_come_again() {
        let door = Door::new(256);
        (0..100).for_each(|_| door.note_replaced(CHUNK_BYTES / 2));
        let entered = |from: u64| (from..from + 500).filter(|number| door.admits(frame(*number))).count();
        assert_eq!(entered(0), 500 / 64);
        assert!(entered(0) >= 450, "some are forgotten where two share a place");
        // They stay away for so long that they are forgotten.
        for number in 10_000..40_000 {
            door.admits(frame(number));
        }
        assert!(entered(0) < 60);
        (0..100).for_each(|_| door.note_replaced(0));
        assert_eq!(entered(100_000), 500);
    }
}

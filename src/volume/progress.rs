//! How far a volume's sequence has come: accepted, cut into segments, stored. Pure bookkeeping under the volume's
//! progress lock; it decides when the next segment is cut.

use std::collections::VecDeque;
use std::time::Duration;

use crate::block_device::CommitDone;
use crate::error::Error;
use crate::limits::{SEGMENT_BYTES_TARGET, SEGMENT_RECORDS_MAX};
use crate::service::Lag;
use crate::units::{ByteLen, LogOffset, Sequence};

/// The end of some part of the sequence: its last place, and where its last record ends in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Last place.
    pub sequence: Sequence,
    /// End of its record.
    pub end: LogOffset,
}

/// A run of the sequence that becomes one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// What lies before it.
    pub after: Mark,
    /// Its own end.
    pub end: Mark,
    /// Bytes of data that its records hold.
    pub bytes: u64,
}

struct Piece {
    end: Mark,
    bytes: u64,
    records: u64,
    since: Duration,
    /// True if a moment was asked for at its end: nothing is added any more.
    closed: bool,
}

/// The bookkeeping.
pub struct Progress {
    accepted: Mark,
    cut: Mark,
    stored: Mark,
    /// What is accepted and not cut, in pieces of about a segment.
    uncut: VecDeque<Piece>,
    /// What is cut and not stored: bytes and age of each run.
    cut_runs: VecDeque<(u64, Duration)>,
    wanted: Sequence,
    waiters: Vec<(Sequence, CommitDone)>,
}

impl Progress {
    /// Everything up to `mark` is stored, and nothing is accepted beyond it.
    pub fn new(mark: Mark) -> Self {
        Progress {
            accepted: mark,
            cut: mark,
            stored: mark,
            uncut: VecDeque::new(),
            cut_runs: VecDeque::new(),
            wanted: mark.sequence,
            waiters: Vec::new(),
        }
    }

    /// Notes an accepted record of `bytes` of data. True if a whole segment has gathered before it, so that one more can be cut.
    pub fn accept(&mut self, end: Mark, bytes: u64, now: Duration) -> bool {
        self.accepted = end;
        match self.uncut.back_mut() {
            Some(piece)
                if !piece.closed
                    && piece.bytes + bytes <= SEGMENT_BYTES_TARGET
                    && piece.records < SEGMENT_RECORDS_MAX =>
            {
                piece.end = end;
                piece.bytes += bytes;
                piece.records += 1;
                false
            }
            _ => {
                self.uncut.push_back(Piece { end, bytes, records: 1, since: now, closed: false });
                self.uncut.len() > 1
            }
        }
    }

    /// Notes where the log ends: behind the last record there may be a fence, which belongs to no run.
    pub fn note_end(&mut self, end: Mark) {
        self.accepted = end;
        if self.uncut.is_empty() {
            self.cut = end;
            self.stored = end;
        }
    }

    /// The next run to cut, if one is due: a whole segment has gathered, somebody waits for it, or it is older than `age`.
    pub fn next_run(&mut self, now: Duration, age: Duration) -> Option<Run> {
        let piece = self.uncut.front()?;
        let due = self.uncut.len() > 1 || self.wanted > self.cut.sequence || now.saturating_sub(piece.since) >= age;
        if !due {
            return None;
        }
        let piece = self.uncut.pop_front()?;
        let run = Run { after: self.cut, end: piece.end, bytes: piece.bytes };
        self.cut = piece.end;
        self.cut_runs.push_back((piece.bytes, piece.since));
        Some(run)
    }

    /// When the oldest uncut record will be `age` old.
    pub fn due_at(&self, age: Duration) -> Option<Duration> {
        self.uncut.front().map(|piece| piece.since + age)
    }

    /// When what is not stored becomes urgent, if there is any: at once if somebody waits for it, else when the oldest of it is `age` old.
    pub fn urgent_at(&self, age: Duration) -> Option<Duration> {
        if self.wanted > self.stored.sequence {
            return Some(Duration::ZERO);
        }
        self.oldest().map(|since| since + age)
    }

    fn oldest(&self) -> Option<Duration> {
        self.cut_runs.front().map(|run| run.1).or_else(|| self.uncut.front().map(|piece| piece.since))
    }

    /// Notes that the run up to `end` has taken effect in the store, and returns those who waited for it.
    pub fn store(&mut self, end: Mark) -> Vec<CommitDone> {
        self.stored = end;
        self.cut_runs.pop_front();
        let (done, waiting) =
            std::mem::take(&mut self.waiters).into_iter().partition(|(target, _)| *target <= end.sequence);
        self.waiters = waiting;
        Vec::into_iter(done).map(|(_, call)| call).collect()
    }

    /// Calls `done` once everything accepted so far is stored, and asks for it to be cut at once. Returns it if that is so already.
    pub fn wait_stored(&mut self, done: CommitDone) -> Option<CommitDone> {
        if self.stored.sequence >= self.accepted.sequence {
            return Some(done);
        }
        self.wanted = self.accepted.sequence;
        self.waiters.push((self.accepted.sequence, done));
        None
    }

    /// Sees to it that a run ends with what is accepted now, and is cut at once. Returns the last place of it.
    pub fn end_run(&mut self) -> Sequence {
        if let Some(piece) = self.uncut.back_mut() {
            piece.closed = true;
        }
        self.wanted = self.wanted.max(self.accepted.sequence);
        self.accepted.sequence
    }

    /// Those who wait, to be told of a failure.
    pub fn fail(&mut self, error: &Error) {
        for (_, done) in std::mem::take(&mut self.waiters) {
            done(Err(error.clone()));
        }
    }

    /// The end of what is accepted.
    pub fn accepted(&self) -> Mark {
        self.accepted
    }

    /// The end of what was cut into segments.
    pub fn cut(&self) -> Mark {
        self.cut
    }

    /// The end of what is in the store.
    pub fn stored(&self) -> Mark {
        self.stored
    }

    /// What is accepted and not in the store.
    pub fn lag(&self, now: Duration) -> Lag {
        let bytes =
            self.uncut.iter().map(|p| p.bytes).sum::<u64>() + self.cut_runs.iter().map(|run| run.0).sum::<u64>();
        let seconds = self.oldest().map_or(0.0, |since| now.saturating_sub(since).as_secs_f64());
        Lag { bytes: ByteLen(bytes), seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(sequence: u64) -> Mark {
        Mark { sequence: Sequence(sequence), end: LogOffset(sequence * 64) }
    }

    #[test]
    fn runs_are_cut_when_full_wanted_or_old() {
        let age = Duration::from_secs(3);
        let mut progress = Progress::new(mark(10));
        assert!(progress.next_run(age * 2, age).is_none(), "nothing written, nothing cut");
        assert!(!progress.accept(mark(11), SEGMENT_BYTES_TARGET / 2, Duration::ZERO));
        assert!(progress.next_run(Duration::from_secs(1), age).is_none());
        assert!(!progress.accept(mark(12), SEGMENT_BYTES_TARGET / 2, Duration::ZERO));
        assert!(progress.accept(mark(13), 4096, Duration::from_secs(1)), "a whole segment lies before it");
        assert!(!progress.accept(mark(14), 4096, Duration::from_secs(1)), "that was said once");
        let run = progress.next_run(Duration::from_secs(1), age).unwrap();
        assert_eq!((run.after, run.end, run.bytes), (mark(10), mark(12), SEGMENT_BYTES_TARGET));
        assert!(progress.next_run(Duration::from_secs(2), age).is_none());
        assert_eq!(progress.next_run(Duration::from_secs(4), age).unwrap().end, mark(14));
        assert_eq!(progress.lag(Duration::from_secs(5)).bytes, ByteLen(SEGMENT_BYTES_TARGET + 8192));
        progress.store(mark(12));
        assert_eq!(progress.lag(Duration::from_secs(5)), Lag { bytes: ByteLen(8192), seconds: 4.0 });
        assert_eq!(progress.urgent_at(age), Some(Duration::from_secs(1) + age), "cut, but not stored");
        progress.store(mark(14));
        assert_eq!(progress.lag(Duration::from_secs(5)), Lag::default());
        assert_eq!(progress.urgent_at(age), None);
    }

    #[test]
    fn trims_without_data_fill_a_segment_too() {
        let mut progress = Progress::new(mark(0));
        for sequence in 1..=SEGMENT_RECORDS_MAX {
            assert!(!progress.accept(mark(sequence), 0, Duration::ZERO));
        }
        assert!(progress.accept(mark(SEGMENT_RECORDS_MAX + 1), 0, Duration::ZERO));
        let run = progress.next_run(Duration::ZERO, Duration::MAX).unwrap();
        assert_eq!(run.end, mark(SEGMENT_RECORDS_MAX));
    }

    #[test]
    fn a_run_ends_where_a_moment_was_asked_for() {
        let mut progress = Progress::new(mark(0));
        assert_eq!(progress.end_run(), Sequence(0), "nothing is there to be cut");
        progress.accept(mark(1), 4096, Duration::ZERO);
        assert_eq!(progress.end_run(), Sequence(1));
        progress.accept(mark(2), 4096, Duration::ZERO);
        assert_eq!(progress.next_run(Duration::ZERO, Duration::MAX).unwrap().end, mark(1));
        assert!(progress.next_run(Duration::ZERO, Duration::MAX).is_none(), "what came later waits for its own time");
    }

    #[test]
    fn those_who_wait_are_told_once_it_is_stored() {
        let mut progress = Progress::new(mark(0));
        assert!(progress.wait_stored(Box::new(|_| ())).is_some(), "nothing to wait for");
        progress.accept(mark(1), 4096, Duration::ZERO);
        assert!(progress.wait_stored(Box::new(|_| ())).is_none());
        progress.accept(mark(2), 4096, Duration::ZERO);
        let run = progress.next_run(Duration::ZERO, Duration::MAX).unwrap();
        assert_eq!(run.end, mark(2), "a waiting flush takes along what came after it");
        assert_eq!(progress.urgent_at(Duration::MAX / 2), Some(Duration::ZERO));
        assert_eq!(progress.store(run.end).len(), 1);
        assert_eq!(progress.urgent_at(Duration::ZERO), None, "nobody waits any more");
    }
}

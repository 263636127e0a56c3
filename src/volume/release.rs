//! Giving back log space that is stored already.
//!
//! The overlay must forget what lies there, so the blocks must be known that were written. The segments say it that the runs of the log
//! became; for others (those before an attach, those that are too many, and those whose segment is not known here any more) the headers of the
//! log are read, which with short records means all of it.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use crate::error::{Context, Result};
use crate::limits::{LOG_BYTES_MIN, RECORD_BYTES_MAX};
use crate::log::RecordKind;
use crate::units::{BlockRange, ByteLen, LogOffset, SegmentId, Sequence};
use crate::volume::core::Volume;
use crate::volume::fetch::local_index;
use crate::volume::progress::{Mark, Run};

/// Bytes that the log releases at a time, so that no step takes long.
const RELEASE_STEP: u64 = 16 << 20;
/// So many runs are known: of full segments, a log of 8 GiB.
const RUNS_MAX: usize = 1024;

/// Runs that are stored, oldest first, and the segments that they became.
#[derive(Default)]
pub struct StoredRuns(VecDeque<(Run, SegmentId)>);

impl StoredRuns {
    /// Adds one that was stored behind the others, if there is room: the oldest are needed first.
    pub fn push(&mut self, run: Run, segment: SegmentId) {
        if self.0.len() < RUNS_MAX {
            self.0.push_back((run, segment));
        }
    }

    /// Takes out the one that begins at `from`, if it is known, and all before it.
    fn take(&mut self, from: LogOffset) -> Option<(Run, SegmentId)> {
        while self.0.front().is_some_and(|(run, _)| run.after.end < from) {
            self.0.pop_front();
        }
        let begins_there = self.start() == Some(from);
        if begins_there { self.0.pop_front() } else { None }
    }

    /// Where the first of them begins.
    fn start(&self) -> Option<LogOffset> {
        self.0.front().map(|(run, _)| run.after.end)
    }
}

impl Volume {
    /// Below this much free space the log gives back what is stored already; above it, keeps it for reads.
    pub(super) fn release_below(&self) -> ByteLen {
        let length = self.committer.length().0;
        // Tests have logs that are shorter than what settings allow: of these it is half.
        let longest = if length < LOG_BYTES_MIN { length / 2 } else { 2 * RECORD_BYTES_MAX };
        ByteLen((length / 8).max(longest))
    }

    /// Whether what is written is to be stored, and given back by the log, sooner than it would be for its age: the log or memory has little
    /// room, or somebody waits for more.
    pub(super) fn is_tight(&self) -> bool {
        self.committer.free() < self.release_below()
            || self.shared.places.is_pressed()
            || self.wants_room.load(Ordering::Acquire)
    }

    /// Gives back log space that is stored already, as long as little is free, its places take too much memory, or somebody waits for room.
    pub(super) fn release_log(&self) -> Result<()> {
        if self.gate.closed().is_some() {
            return Ok(());
        }
        loop {
            let stored = self.progress.lock().stored();
            let from = LogOffset(self.released.load(Ordering::Acquire));
            let free = self.committer.length().0 - (self.log_head().0 - from.0);
            if from >= stored.end {
                return Ok(());
            }
            let keeps = free >= self.release_below().0 && !self.shared.places.is_pressed();
            // For whoever waits for room a step is made in any case: a record that does not fit behind the newest, before the end of the
            // ring, may need more than what is kept free.
            if !self.wants_room.swap(false, Ordering::AcqRel) && keeps {
                return Ok(());
            }
            let (to, ranges) = match self.next_stored_run(from) {
                Some(of_a_run) => of_a_run,
                None => self.scan_stored(from, stored)?,
            };
            self.released.store(to.end.0, Ordering::Release);
            self.overlay.change(|overlay| ranges.into_iter().for_each(|range| overlay.release(range, to.end)));
            self.committer.release(to.end, to.sequence.next())?;
        }
    }

    /// What the run that begins at `from` has written, if it and its segment are known here: up to where, and the blocks.
    fn next_stored_run(&self, from: LogOffset) -> Option<(Mark, Vec<BlockRange>)> {
        let (run, segment) = self.stored_runs.lock().take(from)?;
        match local_index(&self.shared, segment) {
            Ok(index) => Some((run.end, index?.entries.iter().map(|entry| entry.range).collect())),
            Err(error) => {
                tracing::warn!(%segment, %error, "the local copy of a segment's index cannot be read; the log is read instead");
                None
            }
        }
    }

    /// The next step of what is stored from `from` on, at most to where a run begins that is known: up to where, and the blocks.
    fn scan_stored(&self, from: LogOffset, stored: Mark) -> Result<(Mark, Vec<BlockRange>)> {
        let limit = self.stored_runs.lock().start().map_or(stored.end, |start| start.min(stored.end));
        let mut to = Mark { sequence: stored.sequence, end: from };
        let mut ranges = Vec::new();
        for view in self.log.headers(from, limit) {
            let view = view.context(|| "releasing log space")?;
            let keeps_place = matches!(view.kind, RecordKind::Write | RecordKind::Zero);
            if keeps_place {
                ranges.push(view.range);
                to = Mark { sequence: view.place.sequence, end: view.place.end };
            } else {
                // A fence or pad carries the number of the record that comes next.
                let sequence = Sequence(view.place.sequence.0.saturating_sub(1));
                to = Mark { sequence, end: view.place.end };
            }
            if to.end.0 - from.0 >= RELEASE_STEP {
                break;
            }
        }
        Ok((to, ranges))
    }

    pub(super) fn log_head(&self) -> LogOffset {
        self.progress.lock().accepted().end
    }
}

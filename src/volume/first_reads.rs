//! The order in which the parts of a volume were first read since it was attached: what a trace is made of.
//!
//! Guarantees: bounded in count for each volume and for all of a daemon together; what comes after the bound is not noted. A read of what was
//! read just before costs a look at one word.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::format::trace::TraceRun;
use crate::limits::{TRACE_RUNS_ALL_MAX, TRACE_RUNS_MAX, TRACE_UNIT_BYTES};

/// Units of which it is known without a lock that they were noted; a power of two.
const RECENT: usize = 1024;
/// The newest runs, any of which a read may go on: several requests of one reader arrive in any order, and there may be several readers.
const OPEN_RUNS: usize = 8;

/// The runs that all volumes of a daemon may note together.
#[derive(Debug, Default)]
pub struct RunsNoted(AtomicUsize);

/// What was first read of one volume.
pub struct FirstReads {
    /// In each place one more than the number of a unit that was noted.
    recent: Box<[AtomicU32]>,
    is_full: AtomicBool,
    noted: Mutex<Noted>,
    of_all: Arc<RunsNoted>,
}

#[derive(Default)]
struct Noted {
    runs: Vec<TraceRun>,
    /// The same as intervals: first unit, unit behind the last. They neither overlap nor adjoin.
    seen: BTreeMap<u32, u32>,
}

impl FirstReads {
    /// Nothing was read. With `is_on` false nothing will be noted.
    pub fn new(of_all: Arc<RunsNoted>, is_on: bool) -> Self {
        let recent = (0..if is_on { RECENT } else { 0 }).map(|_| AtomicU32::new(0)).collect();
        FirstReads { recent, is_full: AtomicBool::new(!is_on), noted: Mutex::default(), of_all }
    }

    /// Notes a read of `length` bytes at `offset`.
    pub fn note(&self, offset: u64, length: u64) {
        if self.is_full.load(Ordering::Relaxed) || length == 0 {
            return;
        }
        let unit = |byte: u64| u32::try_from(byte / TRACE_UNIT_BYTES).unwrap_or(u32::MAX - 1);
        let (first, end) = (unit(offset), unit(offset.saturating_add(length - 1)) + 1);
        let recent = |unit: u32| &self.recent[unit as usize % RECENT];
        if (first..end).all(|unit| recent(unit).load(Ordering::Relaxed) == unit + 1) {
            return;
        }
        let mut noted = self.noted.lock();
        let before = noted.runs.len();
        noted.note(first, end);
        let added = noted.runs.len() - before;
        let all = self.of_all.0.fetch_add(added, Ordering::Relaxed) + added;
        if noted.runs.len() >= TRACE_RUNS_MAX || all >= TRACE_RUNS_ALL_MAX {
            self.is_full.store(true, Ordering::Relaxed);
        }
        drop(noted);
        (first..end).for_each(|unit| recent(unit).store(unit + 1, Ordering::Relaxed));
    }

    /// What was read, in the order of the first read of each.
    pub fn runs(&self) -> Vec<TraceRun> {
        let noted = self.noted.lock();
        noted.runs[..noted.runs.len().min(TRACE_RUNS_MAX)].to_vec()
    }
}

impl Drop for FirstReads {
    fn drop(&mut self) {
        self.of_all.0.fetch_sub(self.noted.get_mut().runs.len(), Ordering::Relaxed);
    }
}

impl Noted {
    /// Notes the units from `first` up to before `end`, of which some may be known.
    fn note(&mut self, first: u32, end: u32) {
        let mut at = first;
        while at < end {
            match self.seen.range(..=at).next_back() {
                Some((_, &known_end)) if known_end > at => at = known_end,
                _ => {
                    let next = self.seen.range(at..end).next().map_or(end, |(&start, _)| start);
                    self.push(TraceRun { first: at, count: next - at });
                    at = next;
                }
            }
        }
        let (mut start, mut stop) = (first, end);
        if let Some((&before, &before_end)) = self.seen.range(..=first).next_back()
            && before_end >= first
        {
            (start, stop) = (before, stop.max(before_end));
        }
        while let Some((&next, &next_end)) = self.seen.range(start..=stop).next() {
            self.seen.remove(&next);
            stop = stop.max(next_end);
        }
        self.seen.insert(start, stop);
    }

    fn push(&mut self, run: TraceRun) {
        let open = self.runs.len().saturating_sub(OPEN_RUNS);
        match self.runs[open..].iter_mut().rev().find(|known| known.end() == run.first) {
            Some(known) => known.count += run.count,
            None => self.runs.push(run),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn fresh() -> FirstReads {
        FirstReads::new(Arc::default(), true)
    }

    fn runs(reads: &FirstReads) -> Vec<(u32, u32)> {
        reads.runs().into_iter().map(|run| (run.first, run.count)).collect()
    }

    #[test]
    fn the_order_of_first_reads_is_kept_and_neighbours_are_joined() {
        let reads = fresh();
        for unit in [9, 5, 6, 9, 7, 5, 2] {
            reads.note(unit * TRACE_UNIT_BYTES + 100, 4096);
        }
        // Over what is known and what is not.
        reads.note(4 * TRACE_UNIT_BYTES, 7 * TRACE_UNIT_BYTES);
        assert_eq!(runs(&reads), [(9, 2), (5, 4), (2, 1), (4, 1)]);
    }

    #[test]
    fn every_unit_is_there_once_and_in_the_order_of_a_model() {
        let reads = fresh();
        let mut random = SmallRng::seed_from_u64(1);
        let (mut known, mut first_of_each) = (HashSet::new(), Vec::new());
        for _ in 0..3000 {
            // Far apart, so that nothing adjoins what came long before.
            let (first, count) = (random.random_range(0..700u32) * 3, random.random_range(1..=2));
            reads.note(u64::from(first) * TRACE_UNIT_BYTES, u64::from(count) * TRACE_UNIT_BYTES);
            first_of_each.extend((first..first + count).filter(|unit| known.insert(*unit)));
        }
        let told: Vec<u32> = reads.runs().into_iter().flat_map(|run| run.first..run.end()).collect();
        assert_eq!(told.len(), known.len());
        assert_eq!(told.iter().copied().collect::<HashSet<_>>(), known);
        // A unit may come earlier than it was read, with the run that it goes on, and never later by more than that.
        let starts: Vec<u32> = reads.runs().into_iter().map(|run| run.first).collect();
        let order: Vec<u32> = first_of_each.into_iter().filter(|unit| starts.contains(unit)).collect();
        assert_eq!(order, starts);
    }

    #[test]
    fn several_sequential_readers_make_a_few_long_runs() {
        let reads = fresh();
        for step in 0..1000 {
            for reader in 0..4u64 {
                reads.note((reader * 100_000 + step) * TRACE_UNIT_BYTES, TRACE_UNIT_BYTES);
            }
        }
        assert_eq!(runs(&reads), [(0, 1000), (100_000, 1000), (200_000, 1000), (300_000, 1000)]);
    }

    #[test]
    fn the_number_of_runs_is_bounded_for_one_and_for_all() {
        let of_all = Arc::new(RunsNoted::default());
        let all: Vec<FirstReads> = (0..6).map(|_| FirstReads::new(of_all.clone(), true)).collect();
        for reads in &all {
            (0..100_000u64).for_each(|step| reads.note(step * 2 * TRACE_UNIT_BYTES, 1));
        }
        let lengths: Vec<usize> = all.iter().map(|reads| reads.runs().len()).collect();
        assert_eq!(lengths[0], TRACE_RUNS_MAX);
        assert!(lengths.iter().sum::<usize>() <= TRACE_RUNS_ALL_MAX + all.len(), "{lengths:?}");
        drop(all);
        assert_eq!(of_all.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_switched_off_notes_nothing() {
        let reads = FirstReads::new(Arc::default(), false);
        reads.note(0, 4096);
        assert!(reads.runs().is_empty());
    }
}

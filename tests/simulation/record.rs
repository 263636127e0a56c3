//! What was done to one volume, in order, and what must therefore be on it.
//!
//! Content is known by stamps: every write has one of its own, and each of its sectors says which write it is of and where it belongs.
//! A disk is then a list of stamps, and a sector that holds anything else is wrong data.
//!
//! The engine appends a change and answers it without waiting in between, and the record learns of it in the same step: so the steps
//! are in the order of the sequence. What was under way when a host died has a place somewhere behind its beginning, or none.

use std::collections::BTreeMap;

pub const SECTOR: usize = 512;
/// Sectors of a block.
pub const BLOCK: usize = 8;

/// Names a write; 0 is zeros.
pub type Stamp = u64;

/// A change that takes effect as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub first: usize,
    pub count: usize,
    pub stamp: Stamp,
}

impl Step {
    pub fn end(&self) -> usize {
        self.first + self.count
    }

    fn apply(&self, disk: &mut [Stamp]) {
        disk[self.first..self.end()].fill(self.stamp);
    }

    fn covers(&self, sector: usize) -> bool {
        (self.first..self.end()).contains(&sector)
    }

    fn overlaps(&self, other: &Step) -> bool {
        self.first < other.end() && other.first < self.end()
    }
}

/// A step that took effect at some time behind the step number `since`, or not at all.
#[derive(Clone, Copy, Debug)]
struct Floating {
    step: Step,
    since: usize,
}

/// A disk as it must be: the stamps, and what may have taken effect besides.
#[derive(Clone, Debug)]
pub struct Expected {
    pub stamps: Vec<Stamp>,
    pub optional: Vec<Step>,
}

/// Fills a sector with what a write puts there.
pub fn fill(stamp: Stamp, sector: usize, bytes: &mut [u8]) {
    if stamp == 0 {
        return bytes.fill(0);
    }
    let mut mixed = stamp ^ (sector as u64).rotate_left(32);
    for (number, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match number {
            0 => stamp,
            1 => !(sector as u64),
            _ if number % 2 == 0 => stamp,
            _ => {
                mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
                mixed
            }
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// The stamps of bytes that begin at a sector; an error names a sector that holds what nobody wrote there.
pub fn stamps_of(bytes: &[u8], first: usize) -> Result<Vec<Stamp>, String> {
    let mut wanted = [0; SECTOR];
    let sectors = bytes.chunks_exact(SECTOR).enumerate();
    sectors
        .map(|(number, sector)| {
            let stamp = u64::from_le_bytes(*sector.first_chunk().expect("eight bytes"));
            fill(stamp, first + number, &mut wanted);
            if *sector == wanted[..] {
                return Ok(stamp);
            }
            Err(format!(
                "sector {} holds what nobody wrote there (it begins with {:x?})",
                first + number,
                &sector[..16]
            ))
        })
        .collect()
}

/// Explains the sectors in which a disk differs by optional steps, each of which has taken effect as a whole. Returns these.
fn explained(disk: &[Stamp], state: &[Stamp], optional: &[Floating]) -> Option<Vec<Floating>> {
    let mut taken: Vec<Floating> = Vec::new();
    for sector in (0..disk.len()).filter(|&sector| disk[sector] != state[sector]) {
        if taken.iter().any(|taken| taken.step.covers(sector) && taken.step.stamp == disk[sector]) {
            continue;
        }
        let by = optional.iter().find(|by| {
            let step = by.step;
            step.covers(sector) && disk[step.first..step.end()].iter().all(|&stamp| stamp == step.stamp)
        })?;
        taken.push(*by);
    }
    Some(taken)
}

impl Expected {
    /// Compares a disk with it.
    pub fn compare(&self, disk: &[Stamp]) -> Result<(), String> {
        let optional: Vec<Floating> = self.optional.iter().map(|&step| Floating { step, since: 0 }).collect();
        if disk.len() == self.stamps.len() && explained(disk, &self.stamps, &optional).is_some() {
            return Ok(());
        }
        let wrong = (0..disk.len().min(self.stamps.len())).filter(|&at| disk[at] != self.stamps[at]);
        let wrong: Vec<String> =
            wrong.take(8).map(|at| format!("sector {at} is {:x}, not {:x}", disk[at], self.stamps[at])).collect();
        Err(format!("{} sectors of {}: {}", disk.len(), self.stamps.len(), wrong.join("; ")))
    }
}

#[derive(Clone, Debug)]
pub struct Record {
    base: Vec<Stamp>,
    /// How many steps the base has.
    base_at: usize,
    steps: Vec<Floating>,
    /// All steps ever, also those of the base.
    all: Vec<Step>,
    current: Vec<Stamp>,
    under_way: BTreeMap<u64, Vec<Floating>>,
    /// Those of which nobody knows whether they took effect.
    unknown: Vec<Floating>,
    /// Those that a look at the disk did not find, each with the step after which that was: a read of before may have seen them.
    unfound: Vec<(usize, Step)>,
    flushed: usize,
    stored: usize,
    /// Another owner took over at this step: what is said to be stored or flushed to the store must lie before it.
    pub survived: Option<usize>,
}

impl Record {
    pub fn new(expected: Expected) -> Record {
        let Expected { stamps, optional } = expected;
        Record {
            base: stamps.clone(),
            base_at: 0,
            steps: Vec::new(),
            all: Vec::new(),
            current: stamps,
            under_way: BTreeMap::new(),
            unknown: optional.into_iter().map(|step| Floating { step, since: 0 }).collect(),
            unfound: Vec::new(),
            flushed: 0,
            stored: 0,
            survived: None,
        }
    }

    /// The same record, of a disk that somebody set to another moment; steps are counted on, for the sake of owners of before.
    pub fn set_to(&self, moment: Expected) -> Record {
        let now = self.now();
        let all = self.all.clone();
        Record { base_at: now, all, flushed: now, stored: now, ..Record::new(moment) }
    }

    pub fn sectors(&self) -> usize {
        self.current.len()
    }

    /// The disk has grown.
    pub fn grow(&mut self, sectors: usize) {
        if sectors > self.current.len() {
            self.base.resize(sectors, 0);
            self.current.resize(sectors, 0);
        }
    }

    /// The number of steps so far.
    pub fn now(&self) -> usize {
        self.base_at + self.steps.len()
    }

    fn floating(&self) -> impl Iterator<Item = &Floating> {
        self.under_way.values().flatten().chain(&self.unknown)
    }

    /// True if something that may take effect at any time overlaps.
    pub fn is_busy(&self, step: &Step) -> bool {
        self.floating().any(|floating| floating.step.overlaps(step))
    }

    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// A change sets out.
    pub fn begin(&mut self, change: u64, steps: &[Step]) {
        let since = self.now();
        self.under_way.insert(change, steps.iter().map(|&step| Floating { step, since }).collect());
    }

    /// It was acknowledged.
    pub fn acknowledged(&mut self, change: u64) {
        let floating = self.under_way.remove(&change).unwrap_or_default();
        let is_one = floating.len() == 1;
        for Floating { step, since } in floating {
            step.apply(&mut self.current);
            // Of several parts the first ones may have been appended long before the last.
            let since = if is_one { self.now() } else { since };
            self.steps.push(Floating { step, since });
            self.all.push(step);
        }
    }

    /// It failed, and may or may not have taken effect.
    pub fn failed(&mut self, change: u64) {
        self.unknown.extend(self.under_way.remove(&change).unwrap_or_default());
    }

    /// The process died with whatever was under way.
    pub fn died(&mut self) {
        let under_way = std::mem::take(&mut self.under_way);
        self.unknown.extend(under_way.into_values().flatten());
    }

    /// All steps before `to` survive power loss.
    pub fn flushed(&mut self, to: usize) {
        self.flushed = self.flushed.max(to);
    }

    /// All steps before `to` are in the store: never false, however late it is said.
    pub fn stored(&mut self, to: usize) -> Result<(), String> {
        if let Some(survived) = self.survived.filter(|&survived| survived < to) {
            return Err(format!("{to} steps were said to be stored, but the next owner found only {survived}"));
        }
        self.stored = self.stored.max(to);
        self.flushed(to);
        let whole = (self.stored - self.base_at).min(self.steps.len());
        for floating in self.steps.drain(..whole) {
            floating.step.apply(&mut self.base);
        }
        self.base_at += whole;
        Ok(())
    }

    /// The disk as it is now.
    pub fn moment(&self) -> Expected {
        Expected { stamps: self.current.clone(), optional: self.floating().map(|floating| floating.step).collect() }
    }

    /// Compares what was read of a range, beginning when it was as `before` and `since` steps had been made.
    pub fn check_read(&self, first: usize, before: &[Stamp], since: usize, read: &[Stamp]) -> Result<(), String> {
        let later = &self.all[since.min(self.all.len())..];
        for (at, (&stamp, &before)) in read.iter().zip(before).enumerate() {
            let sector = first + at;
            let may = |step: &Step| step.covers(sector) && step.stamp == stamp;
            let unfound = self.unfound.iter().filter(|(at, _)| since <= *at).map(|(_, step)| step);
            let mut floating = self.floating().map(|floating| &floating.step).chain(unfound);
            if stamp != before && !later.iter().any(may) && !floating.any(may) {
                return Err(format!("sector {sector} was read as {stamp:x}, but it was {before:x}"));
            }
        }
        Ok(())
    }

    pub fn range(&self, first: usize, count: usize) -> Vec<Stamp> {
        self.current[first..first + count].to_vec()
    }

    /// Finds the moment that the disk is at, no earlier than `floor`, and goes on from there. Returns its number.
    pub fn settle(&mut self, disk: &[Stamp], floor: Floor, why: &str) -> Result<usize, String> {
        self.died();
        let floor = match floor {
            Floor::Acknowledged => self.now(),
            Floor::Flushed => self.flushed,
            Floor::Stored => self.stored,
        }
        .max(self.base_at);
        if disk.len() != self.current.len() {
            return Err(format!("{why}: the disk has {} sectors, not {}", disk.len(), self.current.len()));
        }
        let mut state = self.base.clone();
        self.steps[..floor - self.base_at].iter().for_each(|floating| floating.step.apply(&mut state));
        let mut found = None;
        for at in floor..=self.now() {
            let behind = &self.steps[at - self.base_at..];
            let optional: Vec<Floating> =
                behind.iter().chain(&self.unknown).filter(|floating| floating.since <= at).copied().collect();
            // A step that has not waited for anybody is not optional at its own place.
            if let Some(taken) = explained(disk, &state, &optional[usize::from(is_next_alone(behind, at))..]) {
                found = Some((at, taken));
            }
            if let Some(next) = behind.first() {
                next.step.apply(&mut state);
            }
        }
        let Some((at, taken)) = found else { return Err(self.explain(disk, floor, why)) };
        self.steps.truncate(at - self.base_at);
        self.all.truncate(at);
        self.all.extend(taken.iter().map(|floating| floating.step));
        self.steps.extend(taken);
        self.unfound.extend(self.unknown.drain(..).map(|floating| (at, floating.step)));
        self.current.copy_from_slice(disk);
        let now = self.now();
        (self.flushed, self.stored) = (self.flushed.min(now), self.stored.min(now));
        Ok(at)
    }

    /// No read of before is under way any more: what was not found then must not be seen any more.
    pub fn forget_unfound(&mut self) {
        self.unfound.clear();
    }

    /// The process was started anew and made everything durable that it found.
    pub fn flushed_all(&mut self) {
        self.flushed = self.now();
    }

    /// The disk is what the store holds.
    pub fn stored_all(&mut self) {
        let now = self.now();
        // With no survivor noted it cannot be refused.
        let _ = self.stored(now);
    }

    fn explain(&self, disk: &[Stamp], floor: usize, why: &str) -> String {
        let mut text = format!(
            "{why}: the disk is as at no moment from step {floor} to {} (flushed {}, stored {})",
            self.now(),
            self.flushed,
            self.stored
        );
        let wrong = (0..disk.len()).filter(|&at| disk[at] != self.current[at]);
        for at in wrong.take(12) {
            let steps = self.steps.iter().enumerate().filter(|(_, floating)| floating.step.covers(at));
            let known: Vec<String> = steps
                .map(|(number, floating)| format!("{}:{:x}", self.base_at + number, floating.step.stamp))
                .collect();
            text.push_str(&format!(
                "\n  sector {at} is {:x}; at first {:x}, then {}",
                disk[at],
                self.base[at],
                known.join(", ")
            ));
        }
        text
    }
}

/// What a death leaves at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Floor {
    Stored,
    Flushed,
    Acknowledged,
}

fn is_next_alone(behind: &[Floating], at: usize) -> bool {
    behind.first().is_some_and(|next| next.since >= at)
}

mod self_tests {
    use super::*;

    fn step(number: usize) -> Step {
        Step { first: number * 4, count: 12, stamp: number as u64 }
    }

    fn written() -> (Record, Vec<Vec<Stamp>>) {
        let mut record = Record::new(Expected { stamps: vec![0; 128], optional: Vec::new() });
        let mut disks = vec![record.current.clone()];
        for number in 1..=8 {
            record.begin(number as u64, &[step(number)]);
            record.acknowledged(number as u64);
            match number {
                2 => record.stored(2).unwrap(),
                4 => record.flushed(4),
                _ => {}
            }
            disks.push(record.current.clone());
        }
        (record, disks)
    }

    #[test]
    fn each_death_allows_what_it_must_and_no_more() {
        for (moment, disk) in written().1.into_iter().enumerate() {
            for (floor, least) in [(Floor::Stored, 2), (Floor::Flushed, 4), (Floor::Acknowledged, 8)] {
                assert_eq!(written().0.settle(&disk, floor, "").is_ok(), moment >= least, "{floor:?}, moment {moment}");
            }
        }
    }

    #[test]
    fn a_mixture_of_moments_is_no_moment() {
        let (mut record, disks) = written();
        let mut mixture = disks[8].clone();
        mixture[16..18].copy_from_slice(&disks[3][16..18]);
        assert!(disks.iter().all(|disk| *disk != mixture));
        assert!(record.settle(&mixture, Floor::Stored, "").is_err());
    }

    #[test]
    fn what_was_under_way_is_there_as_a_whole_or_not_at_all() {
        let far = Step { first: 100, count: 4, stamp: 77 };
        for (present, is_right) in [(0, true), (4, true), (2, false)] {
            let (mut record, mut disks) = written();
            record.begin(9, &[far]);
            disks[8][100..100 + present].fill(77);
            assert_eq!(record.settle(&disks[8], Floor::Acknowledged, "").is_ok(), is_right, "{present} sectors");
            assert_eq!(record.now(), if present == 4 { 9 } else { 8 });
        }
    }

    #[test]
    fn a_sector_knows_where_it_belongs() {
        let mut bytes = vec![0; 2 * SECTOR];
        fill(5, 10, &mut bytes[..SECTOR]);
        assert_eq!(stamps_of(&bytes, 10), Ok(vec![5, 0]));
        assert!(stamps_of(&bytes, 11).is_err());
        bytes[400] ^= 1;
        assert!(stamps_of(&bytes, 10).is_err());
    }
}

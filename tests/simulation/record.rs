//! What was done to the disk, in order, and what must therefore be there after a death.

use std::ops::Range;

/// One change that takes effect as a whole.
#[derive(Clone, Debug)]
pub struct Step {
    pub range: Range<usize>,
    /// `None`: zeros.
    pub data: Option<Vec<u8>>,
}

impl Step {
    fn apply(&self, disk: &mut [u8]) {
        match &self.data {
            Some(data) => disk[self.range.clone()].copy_from_slice(data),
            None => disk[self.range.clone()].fill(0),
        }
    }
}

/// The record: the disk at some moment that it cannot fall behind any more, and every step since.
pub struct Record {
    base: Vec<u8>,
    steps: Vec<Step>,
    /// The disk after all steps.
    pub current: Vec<u8>,
    /// How many steps were acknowledged; those behind them were under way when the host died.
    acknowledged: usize,
    /// How many of the steps a flush has covered.
    flushed: usize,
}

impl Record {
    pub fn new(size: usize) -> Record {
        let zeros = vec![0; size];
        Record { base: zeros.clone(), steps: Vec::new(), current: zeros, acknowledged: 0, flushed: 0 }
    }

    /// Notes steps that were acknowledged.
    pub fn done(&mut self, steps: Vec<Step>) {
        self.perhaps(steps);
        self.acknowledged = self.steps.len();
    }

    /// Notes steps that are under way: they may or may not have happened.
    pub fn perhaps(&mut self, steps: Vec<Step>) {
        for step in steps {
            step.apply(&mut self.current);
            self.steps.push(step);
        }
    }

    /// A flush of durability `local` was acknowledged.
    pub fn flushed(&mut self) {
        self.flushed = self.acknowledged;
    }

    /// Everything so far is in the store.
    pub fn stored(&mut self) {
        assert_eq!(self.acknowledged, self.steps.len(), "nothing is under way");
        self.base.clone_from(&self.current);
        self.steps.clear();
        (self.acknowledged, self.flushed) = (0, 0);
    }

    /// After the death of the process: all that was acknowledged is there.
    pub fn survived_death(&mut self, disk: &[u8]) {
        self.settle(disk, self.acknowledged, "the process died");
    }

    /// After power loss: all that was flushed is there, and what is there is on the medium.
    pub fn survived_power_loss(&mut self, disk: &[u8]) {
        self.settle(disk, self.flushed, "the host lost power");
        self.flushed = self.acknowledged;
    }

    /// After the loss of the host: all that was in the store at a moment we know of, and what is there is from the store.
    pub fn survived_loss_of_the_host(&mut self, disk: &[u8]) {
        self.settle(disk, 0, "the host was lost");
        self.stored();
    }

    /// Finds the moment that the disk is at, which is no earlier than behind `floor` steps, and forgets what came later.
    #[track_caller]
    fn settle(&mut self, disk: &[u8], floor: usize, why: &str) {
        assert_eq!(disk.len(), self.base.len());
        let mut state = self.base.clone();
        self.steps[..floor].iter().for_each(|step| step.apply(&mut state));
        let mut moment = (state == disk).then_some(floor);
        for (number, step) in self.steps.iter().enumerate().skip(floor) {
            step.apply(&mut state);
            if state == disk {
                moment = Some(number + 1);
            }
        }
        let Some(moment) = moment else { panic!("{why}: {}", self.explain(disk, floor)) };
        self.steps.truncate(moment);
        self.acknowledged = moment;
        self.flushed = self.flushed.min(moment);
        self.current.copy_from_slice(disk);
    }

    /// For a disk that is at no moment: what its blocks show.
    fn explain(&self, disk: &[u8], floor: usize) -> String {
        let mut states = vec![self.base.clone()];
        for step in &self.steps {
            let mut next = states[states.len() - 1].clone();
            step.apply(&mut next);
            states.push(next);
        }
        let mut text = format!(
            "the disk is as at no moment behind step {floor} of {} ({} acknowledged, {} flushed)\n",
            self.steps.len(),
            self.acknowledged,
            self.flushed
        );
        for block in 0..disk.len() / 4096 {
            let range = block * 4096..(block + 1) * 4096;
            let fits: Vec<usize> =
                (0..states.len()).filter(|&at| states[at][range.clone()] == disk[range.clone()]).collect();
            let (first, last) = (fits.first(), fits.last());
            if last != Some(&self.steps.len()) {
                text.push_str(&format!("block {block}: as after steps {first:?} to {last:?}\n"));
            }
        }
        text
    }
}

mod self_tests {
    use super::*;

    fn written() -> (Record, Vec<Vec<u8>>) {
        let mut record = Record::new(64 << 10);
        let mut disks = vec![record.current.clone()];
        for number in 1..=8_usize {
            let range = number * 2048..number * 2048 + 6000;
            record.done(vec![Step { range, data: (number != 5).then(|| vec![number as u8; 6000]) }]);
            if number == 4 {
                record.flushed();
            }
            disks.push(record.current.clone());
        }
        (record, disks)
    }

    fn fails(check: impl FnOnce() + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(check).is_err()
    }

    #[test]
    fn each_death_allows_what_it_must_and_no_more() {
        for (moment, disk) in written().1.into_iter().enumerate() {
            let (mut killed, mut cut, mut lost) = (written().0, written().0, written().0);
            lost.survived_loss_of_the_host(&disk);
            let disks = (disk.clone(), disk);
            assert_eq!(fails(move || cut.survived_power_loss(&disks.0)), moment < 4, "power, moment {moment}");
            assert_eq!(fails(move || killed.survived_death(&disks.1)), moment < 8, "death, moment {moment}");
        }
    }

    #[test]
    fn a_mixture_of_moments_is_no_moment() {
        let (_, disks) = written();
        let mut mixture = disks[8].clone();
        mixture[8192..12288].copy_from_slice(&disks[3][8192..12288]);
        assert!(disks.iter().all(|disk| *disk != mixture));
        assert!(fails(move || written().0.survived_loss_of_the_host(&mixture)));
    }
}

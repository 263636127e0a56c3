//! Thousands of seeded histories on the simulated disk, against a model: the list of what was appended.
//!
//! A history is a few lives of the process. In a life records of many shapes are appended, committed, released and read back at
//! random; it ends by a kill, or by power loss that keeps a random part of what was not synced. After each: recovery holds a
//! prefix of what was appended in the history that was carried on with, with everything that a successful commit covered and nothing
//! else, byte for byte; the ending is never called damage.

use std::collections::VecDeque;
use std::sync::mpsc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::tests::{RING, commit, content, identity, key_of, new_log, path};
use super::*;
use crate::disk::simulated::SimulatedDisk;
use crate::units::{BlockCount, Lba};

#[derive(Clone, Copy, Debug)]
struct Expected {
    place: LogPlace,
    /// 0 for a zero record.
    blocks: u64,
    /// Makes the bytes differ from those of another history's record with the same sequence.
    salt: u64,
}

struct World {
    disk: SimulatedDisk,
    random: StdRng,
    seed: u64,
    epoch: u32,
    /// What the log must hold, from the durable or asked-for tail on.
    records: VecDeque<Expected>,
    /// The sequence up to which a commit has succeeded.
    committed: Sequence,
    /// Up to here records were given up; recovery may begin at any released place, but at no later one.
    released: Sequence,
    salt: u64,
}

fn salted(sequence: u64, salt: u64, blocks: u64) -> Vec<u8> {
    content(sequence ^ salt << 24, blocks)
}

impl World {
    fn new(seed: u64) -> (Self, WriteLog) {
        let disk = SimulatedDisk::new();
        let log = new_log(&disk);
        let world = World {
            disk,
            random: StdRng::seed_from_u64(seed),
            seed,
            epoch: 1,
            records: VecDeque::new(),
            committed: Sequence(0),
            released: Sequence(0),
            salt: 0,
        };
        (world, log)
    }

    fn append(&mut self, log: &mut WriteLog) {
        let first = log.appender.next_sequence().0;
        let count = self.random.random_range(1..6);
        let shapes: Vec<u64> = (0..count).map(|_| [0, 1, 1, 2, 3, 18][self.random.random_range(0..6)]).collect();
        let data: Vec<Vec<u8>> =
            shapes.iter().enumerate().map(|(index, &blocks)| salted(first + index as u64, self.salt, blocks)).collect();
        let records: Vec<NewRecord<'_>> = shapes
            .iter()
            .zip(&data)
            .map(|(&blocks, data)| match blocks {
                0 => NewRecord::Zero { lba: Lba(self.salt), blocks: BlockCount(7) },
                _ => NewRecord::Write { lba: Lba(self.salt), data },
            })
            .collect();
        let mut places = Vec::new();
        let done = log.appender.append(&records, &mut places).unwrap();
        assert_eq!(done, places.len());
        for (place, &blocks) in places.into_iter().zip(&shapes) {
            self.records.push_back(Expected { place, blocks, salt: self.salt });
        }
    }

    fn commit(&mut self, log: &WriteLog) {
        commit(log).unwrap();
        self.committed = log.appender.next_sequence();
        self.committed.0 -= 1;
    }

    /// Gives up a random part from the front; waits for it to be durable, or not.
    fn release(&mut self, log: &WriteLog) {
        let count = self.random.random_range(0..=self.records.len());
        let (to, next) = match self.records.get(count) {
            Some(first) => (first.place.record, first.place.sequence),
            None => (log.appender.head(), log.appender.next_sequence()),
        };
        log.committer.release(to, next).unwrap();
        self.released = self.released.max(Sequence(next.0 - 1));
        if self.random.random_bool(0.7) {
            commit(log).unwrap();
            self.committed = Sequence(log.appender.next_sequence().0 - 1);
            self.forget_released();
        }
    }

    fn forget_released(&mut self) {
        while self.records.front().is_some_and(|record| record.place.sequence <= self.released) {
            self.records.pop_front();
        }
    }

    fn read_some(&mut self, log: &WriteLog) {
        for _ in 0..3.min(self.records.len()) {
            let record = self.records[self.random.random_range(0..self.records.len())];
            self.check_content(log, record);
        }
    }

    fn check_content(&mut self, log: &WriteLog, record: Expected) {
        if record.blocks == 0 {
            return;
        }
        let first = self.random.random_range(0..record.blocks);
        let count = self.random.random_range(1..=record.blocks - first);
        let mut buffer = vec![0; (count * 4096) as usize];
        let place = record.place;
        let read = log.reader.read_blocks(place.record, first as u32, &mut buffer).unwrap();
        if read == LogRead::Gone {
            assert!(place.sequence <= self.released, "seed {}", self.seed);
            return;
        }
        let whole = salted(place.sequence.0, record.salt, record.blocks);
        assert!(buffer[..] == whole[(first * 4096) as usize..((first + count) * 4096) as usize], "seed {}", self.seed);
    }

    /// Ends the life of the process and begins the next one.
    fn crash(&mut self, log: WriteLog) -> WriteLog {
        let seed = self.seed;
        // With a sync under way: it may have happened or not.
        if self.random.random_bool(0.3) {
            let (sender, _) = mpsc::channel();
            log.committer.commit(Box::new(move |result| sender.send(result).unwrap_or(())));
        }
        let power = self.random.random_bool(0.7);
        match power {
            true => self.disk.power_loss(self.random.random_range(0..u64::MAX)),
            false => self.disk.kill(),
        }
        let head = log.appender.head();
        drop(log);
        let recovered = recover(&self.disk, &path(), &key_of).unwrap();
        assert!(!matches!(recovered.ending(), Ending::Damaged { .. }), "seed {seed}: {:?}", recovered.ending());
        let last = recovered.last_sequence();
        let appended = self.records.back().map_or(last, |record| record.place.sequence);
        assert!(
            last >= self.committed && last <= appended.max(self.released),
            "seed {seed}: {last} of {}",
            self.committed
        );
        if !power {
            assert_eq!(recovered.end(), head, "seed {seed}: a kill loses nothing");
        }
        assert!(recovered.tail_sequence().0 <= self.released.0 + 1, "seed {seed}");
        self.compare(&recovered);
        self.records.retain(|record| record.place.sequence <= last);
        self.epoch += u32::from(self.random.random_bool(0.5));
        let log = recovered.resume(identity(self.epoch), false).unwrap();
        assert_eq!(log.appender.next_sequence(), last.next());
        self.salt += 1;
        self.committed = last;
        for record in self.records.clone() {
            self.check_content(&log, record);
        }
        log
    }

    /// The log has exactly the records from its tail on.
    fn compare(&mut self, recovered: &Recovered) {
        let last = recovered.last_sequence();
        let held: Vec<RecordView> = recovered
            .records()
            .map(|view| view.unwrap())
            .filter(|view| matches!(view.kind, RecordKind::Write | RecordKind::Zero))
            .collect();
        assert_eq!(held.len() as u64, recovered.record_count());
        assert_eq!(held.len() as u64, last.0 + 1 - recovered.tail_sequence().0, "seed {}", self.seed);
        for record in
            self.records.iter().filter(|record| record.place.sequence <= last && record.place.sequence > self.released)
        {
            let view = held[(record.place.sequence.0 - recovered.tail_sequence().0) as usize];
            assert_eq!(view.place, record.place, "seed {}", self.seed);
            assert_eq!(view.range.start, Lba(record.salt), "seed {}: a record of another history", self.seed);
            assert_eq!(view.kind == RecordKind::Zero, record.blocks == 0);
        }
    }
}

fn history(seed: u64) {
    let (mut world, mut log) = World::new(seed);
    let lives = world.random.random_range(2..6);
    for _ in 0..lives {
        for _ in 0..world.random.random_range(1..25) {
            match world.random.random_range(0..10) {
                0..5 => world.append(&mut log),
                5 | 6 => world.commit(&log),
                7 | 8 => world.release(&log),
                _ => world.read_some(&log),
            }
        }
        log = world.crash(log);
    }
    assert!(log.committer.used() <= RING);
}

#[test]
fn l1_l2_l3_any_crash_leaves_a_prefix_with_all_that_was_committed() {
    for seed in 0..2000 {
        history(seed);
    }
}

/// Crashes within `resume` itself, at each of its syncs, by power loss.
#[test]
fn l3_a_crash_while_resuming_is_recovered_from() {
    use crate::disk::fault::{FaultDisk, Operation};
    for seed in 0..600 {
        let (mut world, mut log) = World::new(seed);
        for _ in 0..6 {
            if world.random.random_bool(0.4) {
                world.append(&mut log);
                world.commit(&log);
            }
            // Without an append the log ends in a fence.
            if world.random.random_bool(0.4) {
                world.append(&mut log);
                world.append(&mut log);
            }
            world.disk.power_loss(seed);
            drop(log);
            let faulty = FaultDisk::new(std::sync::Arc::new(world.disk.clone()));
            faulty.fail(Operation::Sync, 1 + seed % 2, std::io::ErrorKind::Other);
            let recovered = recover(&faulty, &path(), &key_of).unwrap();
            let last = recovered.last_sequence();
            world.records.retain(|record| record.place.sequence <= last);
            assert!(last >= world.committed);
            assert!(recovered.resume(identity(world.epoch + 1), false).is_err());
            world.disk.power_loss(seed + 1);
            let recovered = recover(&world.disk, &path(), &key_of).unwrap();
            assert!(!matches!(recovered.ending(), Ending::Damaged { .. }), "seed {seed}");
            let kept = recovered.last_sequence();
            assert!(kept >= world.committed && kept <= last, "seed {seed}");
            world.compare(&recovered);
            world.records.retain(|record| record.place.sequence <= kept);
            world.committed = kept;
            world.epoch += 1;
            world.salt += 1;
            log = recovered.resume(identity(world.epoch), false).unwrap();
            if world.random.random_bool(0.5) {
                let (head, next) = (log.appender.head(), log.appender.next_sequence());
                log.committer.release(head, next).unwrap();
                world.released = kept;
                world.commit(&log);
                world.records.clear();
            }
        }
    }
}

/// A fence that was written, and whose sync failed, can be read until the page leaves memory.
#[test]
fn whose_a_log_is_can_be_made_durable() {
    use crate::disk::fault::{FaultDisk, Operation};
    use crate::disk::simulated::Kept;
    for is_settled in [false, true] {
        let (mut world, mut log) = World::new(1);
        world.append(&mut log);
        world.commit(&log);
        drop(log);
        let faulty = FaultDisk::new(std::sync::Arc::new(world.disk.clone()));
        faulty.fail(Operation::Sync, 1, std::io::ErrorKind::Other);
        let recovered = recover(&faulty, &path(), &key_of).unwrap();
        assert!(recovered.resume(identity(2), false).is_err());
        world.disk.lose_unsynced(&path()).unwrap();
        let recovered = recover(&world.disk, &path(), &key_of).unwrap();
        assert_eq!(recovered.identity(), identity(2), "the fence is still in memory");
        if is_settled {
            recovered.settle().unwrap();
        }
        world.disk.power_loss_keeping(Kept::Nothing);
        let recovered = recover(&world.disk, &path(), &key_of).unwrap();
        assert_eq!(recovered.identity(), identity(if is_settled { 2 } else { 1 }));
        assert!(recovered.last_sequence() >= world.committed);
        world.compare(&recovered);
    }
}

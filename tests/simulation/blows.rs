//! What happens to hosts: deaths, loss of power, rot, pauses, partitions and clocks that jump.

use std::sync::atomic::Ordering;

use rand::RngExt;
use varve::disk::simulated::Kept;
use varve::work::simulated;

use super::host::log_path;
use super::record::Floor;
use super::world::World;

/// Deaths and other blows that hosts are dealt.
pub const BLOWS: &[&str] = &[
    "host: stopped",
    "host: killed",
    "host: power loss",
    "host: lost",
    "host: dies while it attaches",
    "host: paused",
    "host: cut off",
    "clock: jumped",
    "clock: stands still",
    "index: older",
    "index: gone",
    "rot: log",
    "rot: cache",
];

impl World {
    /// Kills a host's daemon.
    pub fn kill(&mut self, number: u32) {
        let host = self.host(number);
        let life = host.id;
        host.kill(None, usize::MAX);
        self.journal.note(format_args!("host {number} ({}) is killed", life.0));
        let left = Some(Floor::Acknowledged);
        self.subjects.iter_mut().for_each(|subject| subject.host_died(number, life, left));
    }

    /// Kills a host's daemon, or its power, or all of it.
    pub fn strike(&mut self, number: u32) {
        let power = self.random.random_range(0..u64::MAX);
        let batches = self.random.random_range(0..40);
        let kind = self.random.random_range(0..10);
        let host = self.host(number);
        let life = host.id;
        let left = match kind {
            0..=3 => {
                host.kill(None, batches);
                self.journal.hit("host: killed");
                Some(Floor::Acknowledged)
            }
            4..=7 => {
                let kept = match power % 5 {
                    0 => Kept::Nothing,
                    1 => Kept::First(power as usize / 5 % 12),
                    _ => Kept::Some(power),
                };
                host.kill(Some(kept), batches);
                self.journal.hit("host: power loss");
                Some(Floor::Flushed)
            }
            _ => {
                host.lose();
                self.journal.hit("host: lost");
                None
            }
        };
        self.journal.note(format_args!("host {number} ({}) dies: {left:?}", life.0));
        self.subjects.iter_mut().for_each(|subject| subject.host_died(number, life, left));
        let fate = self.random.random_range(0..8);
        let host = self.host(number);
        match fate {
            0 => {
                host.age_index();
                self.journal.hit("index: older");
            }
            1 => {
                host.drop_index();
                self.journal.hit("index: gone");
            }
            _ => {}
        }
    }

    /// Flips a bit of a log or of a cache on a host.
    pub fn rot(&mut self, number: u32) {
        let is_log = self.random.random_bool(0.5);
        self.rot_one(number, is_log);
    }

    pub fn rot_one(&mut self, number: u32, is_log: bool) {
        let (at, bit) = (self.random.random_range(0..u64::MAX), self.random.random_range(0..8));
        let path = match is_log {
            true => {
                let choice = self.random.random_range(0..self.subjects.len());
                log_path(self.subjects[choice].id)
            }
            false => super::host::state_path().join("cache"),
        };
        let host = self.host(number);
        if !host.exists(&path) {
            return;
        }
        // Mostly where something is.
        let length = host.disk.content(&path).map_or(1, |content| content.len() as u64);
        let reach = if is_log { length / [1, 8][at as usize / 7 % 2] } else { length.min(200 << 10) };
        let flipped = host.disk.flip_bit(&path, at % reach.max(1), bit);
        if flipped.is_err() {
            return;
        }
        self.journal.note(format_args!("a bit of {} on host {number} flips", path.display()));
        self.journal.hit(if is_log { "rot: log" } else { "rot: cache" });
        if !is_log {
            return;
        }
        for subject in self.subjects.iter_mut().filter(|subject| log_path(subject.id) == path) {
            if subject.home == Some(number) {
                subject.floor = Floor::Stored;
            }
            subject.rotted.insert(number);
            subject.excuses(number).for_each(|excuses| excuses.rot.store(true, Ordering::SeqCst));
        }
    }

    /// Pauses, resumes, cuts off or connects a host, or sets its clock.
    pub fn disturb(&mut self, number: u32) {
        let (kind, jump) = (self.random.random_range(0..8), self.random.random_range(-400..400_i64));
        let may_jump = self.window == 0;
        let host = self.host(number);
        match kind {
            0 | 1 if !host.is_paused => {
                host.pause();
                self.journal.hit("host: paused");
            }
            2 if !host.is_cut => {
                host.cut(true);
                self.journal.hit("host: cut off");
            }
            3 if may_jump => {
                simulated::set_wall_clock(host.id, jump * 86_400_000, false);
                self.journal.hit("clock: jumped");
            }
            4 if may_jump => {
                simulated::set_wall_clock(host.id, 0, true);
                self.journal.hit("clock: stands still");
            }
            _ => {
                host.cut(false);
                host.resume();
            }
        }
        self.journal.note(format_args!("host {number}: disturbance {kind}"));
        if self.host(number).is_cut {
            let all = self.subjects.iter().flat_map(|subject| subject.excuses(number));
            all.for_each(|excuses| excuses.store.store(true, Ordering::SeqCst));
        }
    }
}

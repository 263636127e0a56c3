//! Bounds what all connections together hold in memory.
//!
//! Owns: one number of bytes, and the order of those who wait for some of them: first come, first served, so that a long request is not
//! starved by short ones. Taking and giving back is one atomic operation each while nobody waits.
//!
//! Why nobody waits for ever: there is one budget for what is being received and one for what is in flight. Whoever holds some of the
//! first may wait for the second; who holds some of the second waits for nothing but the device and its own client ([`Flow`](super::flow)
//! sees to that). A client that does not take its replies can keep its share for as long as it stays; the others always have the part of
//! their own that is not counted here.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Condvar, FairMutex, Mutex};

/// See the module's description.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    free: AtomicU64,
    waiting: AtomicUsize,
    /// Held by the first of those who wait; the others queue for it.
    turn: FairMutex<()>,
    gate: Mutex<()>,
    freed: Condvar,
}

impl Budget {
    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Self {
        Budget {
            total,
            free: AtomicU64::new(total),
            waiting: AtomicUsize::new(0),
            turn: FairMutex::new(()),
            gate: Mutex::new(()),
            freed: Condvar::new(),
        }
    }

    /// What is counted for `bytes`: a request that is larger than the whole budget takes all of it.
    pub fn counted(&self, bytes: u64) -> u64 {
        bytes.min(self.total)
    }

    /// Takes `bytes`, which are at most the whole, if they are there and nobody waits.
    pub fn try_take(&self, bytes: u64) -> bool {
        bytes == 0 || (self.waiting.load(Ordering::SeqCst) == 0 && self.subtract(bytes))
    }

    /// Takes `bytes`, which are at most the whole, waiting for them behind all who came earlier.
    pub fn take(&self, bytes: u64) {
        if self.try_take(bytes) {
            return;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let turn = self.turn.lock();
        let mut gate = self.gate.lock();
        while !self.subtract(bytes) {
            self.freed.wait(&mut gate);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        drop((gate, turn));
    }

    /// Gives back what was taken.
    pub fn give(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.free.fetch_add(bytes, Ordering::SeqCst);
        self.wake();
    }

    fn subtract(&self, bytes: u64) -> bool {
        // Not subtracted first and given back if it was too much: one who looked in between would sleep with nobody to wake it.
        let enough = |free: u64| free.checked_sub(bytes);
        self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enough).is_ok()
    }

    fn wake(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            drop(self.gate.lock());
            self.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    fn waiting(budget: &Budget, count: usize) {
        while budget.waiting.load(Ordering::SeqCst) != count {
            thread::yield_now();
        }
    }

    #[test]
    fn who_comes_later_does_not_overtake() {
        let budget = Arc::new(Budget::new(100));
        budget.take(60);
        let large = thread::spawn({
            let budget = budget.clone();
            move || budget.take(80)
        });
        waiting(&budget, 1);
        assert!(!budget.try_take(10), "a short one slipped past a long one that waits");
        budget.give(30);
        assert!(!large.is_finished());
        budget.give(30);
        large.join().unwrap();
        assert!(budget.try_take(20) && !budget.try_take(1));
        assert_eq!(budget.counted(1 << 40), 100);
    }

    #[test]
    fn many_threads_share_without_a_standstill() {
        let budget = Arc::new(Budget::new(1000));
        let held = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (1..=8)
            .map(|number| {
                let (budget, held) = (budget.clone(), held.clone());
                thread::spawn(move || {
                    for round in 0..5000 {
                        let bytes = budget.counted((number * 7919 * round) % 1300);
                        budget.take(bytes);
                        assert!(held.fetch_add(bytes, Ordering::SeqCst) + bytes <= 1000);
                        held.fetch_sub(bytes, Ordering::SeqCst);
                        budget.give(bytes);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(budget.try_take(1000));
    }
}

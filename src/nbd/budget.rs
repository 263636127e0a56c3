//! Bounds what all connections together hold in memory.
//!
//! Owns: one number of bytes, and the order of those who wait for some of them: first come, first served, so that a long request is not
//! starved by short ones. Taking and giving back is one atomic operation each while nobody waits.
//!
//! Why nobody waits for ever: there is one budget for what is being received and one for what is in flight. Whoever holds some of the
//! first may wait for the second; who holds some of the second waits for nothing but the device and its own client ([`Flow`](super::flow)
//! sees to that). A client that does not take its replies can keep its share for as long as it stays; the others always have the part of
//! their own that is not counted here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

/// See the module's description.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    free: AtomicU64,
    /// How many wait, so that others need not take the lock to know.
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    /// Those who wait, in the order in which they came.
    waiting: VecDeque<u64>,
}

impl Budget {
    /// A budget of `total` bytes.
    pub fn new(total: u64) -> Self {
        let (waiting, queue) = (AtomicUsize::new(0), Mutex::default());
        Budget { total, free: AtomicU64::new(total), waiting, queue, changed: Condvar::new() }
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
        self.take_unless(bytes, || false);
    }

    /// The same, but gives up, and says false, once `needless` says true. It is asked anew at every change, and after [`Budget::wake`]; it is
    /// called with a lock held, and must not call the budget.
    pub fn take_unless(&self, bytes: u64, needless: impl Fn() -> bool) -> bool {
        if self.try_take(bytes) {
            return true;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut queue = self.queue.lock();
        let mine = queue.next;
        queue.next += 1;
        queue.waiting.push_back(mine);
        let taken = loop {
            if needless() {
                break false;
            }
            if queue.waiting.front() == Some(&mine) && self.subtract(bytes) {
                break true;
            }
            self.changed.wait(&mut queue);
        };
        queue.waiting.retain(|number| *number != mine);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        drop(queue);
        self.changed.notify_all();
        taken
    }

    /// Gives back what was taken.
    pub fn give(&self, bytes: u64) {
        self.free.fetch_add(bytes, Ordering::SeqCst);
        self.wake();
    }

    /// Makes those who wait look again.
    pub fn wake(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            // Whoever has looked and not yet begun to wait holds the lock.
            drop(self.queue.lock());
            self.changed.notify_all();
        }
    }

    fn subtract(&self, bytes: u64) -> bool {
        // Not subtracted first and given back if it was too much: one who looked in between would sleep with nobody to wake it.
        let enough = |free: u64| free.checked_sub(bytes);
        self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enough).is_ok()
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

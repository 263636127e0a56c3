//! Bounds what all connections together hold in memory.
//!
//! Owns: one number of bytes, and the order of those who wait for some of them: first come, first served, so that a long request is not
//! starved by short ones. Taking and giving back is one atomic operation each while nobody waits.
//!
//! Why nobody waits for ever: there is one budget for what is being received and one for what is in flight. Whoever holds some of the
//! first may wait for the second; who holds some of the second waits for nothing but the device and its own client ([`Flow`](super::flow)
//! sees to that). A client that does not send the rest of its request, or does not take its replies, keeps its share only until somebody has
//! waited for it for a while: who waits asks for [relief](Relief) now and then, which cuts such clients off ([`Pace`](super::pace::Pace)).

use std::collections::VecDeque;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// What is done for those who wait.
struct Relief {
    /// How often.
    every: Duration,
    cut_off: Box<dyn Fn() + Send + Sync>,
}

/// See the module's description.
pub struct Budget {
    total: u64,
    free: AtomicU64,
    /// How many wait, so that others need not take the lock to know.
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
    changed: Condvar,
    relief: OnceLock<Relief>,
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
        let (changed, relief) = (Condvar::new(), OnceLock::new());
        Budget { total, free: AtomicU64::new(total), waiting, queue, changed, relief }
    }

    /// Has `cut_off` called each time that somebody has waited for `every`. Only the first call counts.
    pub fn relieve(&self, every: Duration, cut_off: impl Fn() + Send + Sync + 'static) {
        let _ = self.relief.set(Relief { every, cut_off: Box::new(cut_off) });
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
            self.wait(&mut queue, mine);
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

    fn wait(&self, queue: &mut MutexGuard<'_, Queue>, mine: u64) {
        match self.relief.get() {
            // One is enough to look, and the first is always there.
            Some(relief) if queue.waiting.front() == Some(&mine) => {
                if self.changed.wait_for(queue, relief.every).timed_out() {
                    MutexGuard::unlocked(queue, || (relief.cut_off)());
                }
            }
            _ => self.changed.wait(queue),
        }
    }

    fn subtract(&self, bytes: u64) -> bool {
        // Not subtracted first and given back if it was too much: one who looked in between would sleep with nobody to wake it.
        let enough = |free: u64| free.checked_sub(bytes);
        self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enough).is_ok()
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Budget({} of {} free)", self.free.load(Ordering::Relaxed), self.total)
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
    fn who_waits_is_relieved() {
        let budget = Arc::new(Budget::new(100));
        assert!(budget.try_take(100));
        let held = budget.clone();
        let looks = AtomicUsize::new(0);
        budget.relieve(Duration::from_millis(1), move || {
            if looks.fetch_add(1, Ordering::SeqCst) == 2 {
                held.give(100);
            }
        });
        let later = budget.clone();
        let second = thread::spawn(move || {
            later.take(60);
            later.give(60);
        });
        budget.take(60);
        budget.give(60);
        second.join().unwrap();
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

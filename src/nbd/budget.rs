//! Bounds what all connections together hold in memory.
//!
//! Owns: one number of bytes, what each export has of it (its [`Account`]), and those who wait. Taking and giving back takes no lock while
//! nobody waits.
//!
//! Who is next: of those who wait, and whose export has less than its half, the one whose export was served longest ago; of one export, who came
//! first. Nobody overtakes that one, so that a long request is not starved by short ones. The other half is for the clients of other exports,
//! so that those of one cannot keep everything from them.
//!
//! Why nobody waits for ever: there is one budget for what is being received and one for what is in flight. Whoever holds some of the
//! first may wait for the second; who holds some of the second waits for nothing but the device and its own client ([`Flow`](super::flow)
//! sees to that). A client that does not send the rest of its request, or does not take its replies, keeps its share only until somebody has
//! waited for it for a while: who waits asks for [relief](Relief) now and then, which cuts such clients off ([`Pace`](super::pace::Pace)).

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

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

#[derive(Default)]
struct Queue {
    /// Counts those who came to wait, and those who were served after it.
    next: u64,
    /// Those who wait, in the order in which they came.
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    number: u64,
    bytes: u64,
    account: Arc<Account>,
}

/// What the clients of one export have of a budget.
#[derive(Debug, Default)]
pub struct Account {
    held: AtomicU64,
    /// When it was last served after waiting: a number of the queue.
    served: AtomicU64,
}

impl Account {
    /// Adds `bytes` if that is no more than `limit`, or all that it has.
    fn add(&self, bytes: u64, limit: u64) -> bool {
        let enough = |held: u64| (held == 0 || held + bytes <= limit).then_some(held + bytes);
        self.held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enough).is_ok()
    }

    fn has_room(&self, bytes: u64, limit: u64) -> bool {
        let held = self.held.load(Ordering::SeqCst);
        held == 0 || held + bytes <= limit
    }
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

    fn take(&self, bytes: u64, account: &Account) -> bool {
        if !account.add(bytes, self.total / 2) {
            return false;
        }
        // Not subtracted first and given back if it was too much: one who looked in between would sleep with nobody to wake it.
        let enough = |free: u64| free.checked_sub(bytes);
        let taken = self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enough).is_ok();
        if !taken {
            account.held.fetch_sub(bytes, Ordering::SeqCst);
        }
        taken
    }

    /// Makes those who wait look again.
    fn wake(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            // Whoever has looked and not yet begun to wait holds the lock.
            drop(self.queue.lock());
            self.changed.notify_all();
        }
    }
}

impl Queue {
    /// True if nobody who waits comes before `mine`.
    fn is_next(&self, mine: u64, limit: u64) -> bool {
        // Of each export only who came first: a long request that waits for others of its export to end is not overtaken by shorter ones.
        let mut seen = HashSet::new();
        let first = self.waiting.iter().filter(|waiter| seen.insert(Arc::as_ptr(&waiter.account)));
        let able = first.filter(|waiter| waiter.account.has_room(waiter.bytes, limit));
        let next = able.min_by_key(|waiter| (waiter.account.served.load(Ordering::SeqCst), waiter.number));
        next.is_some_and(|waiter| waiter.number == mine)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Budget({} of {} free)", self.free.load(Ordering::Relaxed), self.total)
    }
}

/// A budget, as the clients of one export take from it.
#[derive(Clone, Debug)]
pub struct Purse {
    budget: Arc<Budget>,
    account: Arc<Account>,
}

impl Purse {
    /// The part of `budget` that `account` counts.
    pub fn new(budget: Arc<Budget>, account: Arc<Account>) -> Self {
        Purse { budget, account }
    }

    /// What is counted for `bytes`: a request that is larger than the whole budget takes all of it.
    pub fn counted(&self, bytes: u64) -> u64 {
        bytes.min(self.budget.total)
    }

    /// Takes `bytes`, which are at most the whole, if they are there and nobody waits.
    pub fn try_take(&self, bytes: u64) -> bool {
        let budget = &self.budget;
        bytes == 0 || (budget.waiting.load(Ordering::SeqCst) == 0 && budget.take(bytes, &self.account))
    }

    /// Takes `bytes`, which are at most the whole, waiting for them if need be, but gives up, and says false, once `needless` says true. It is
    /// asked anew at every change, after [`Purse::give`], and after each [relief](Relief); it is called with a lock held, and must not call
    /// the budget.
    pub fn take_unless(&self, bytes: u64, needless: impl Fn() -> bool) -> bool {
        if self.try_take(bytes) {
            return true;
        }
        let Budget { total, waiting, queue, changed, relief, .. } = &*self.budget;
        waiting.fetch_add(1, Ordering::SeqCst);
        let mut queue = queue.lock();
        queue.next += 1;
        let mine = queue.next;
        queue.waiting.push_back(Waiter { number: mine, bytes, account: self.account.clone() });
        let taken = loop {
            if needless() {
                break false;
            }
            if queue.is_next(mine, total / 2) && self.budget.take(bytes, &self.account) {
                queue.next += 1;
                self.account.served.store(queue.next, Ordering::SeqCst);
                break true;
            }
            match relief.get() {
                Some(relief) => {
                    if changed.wait_for(&mut queue, relief.every).timed_out() {
                        parking_lot::MutexGuard::unlocked(&mut queue, || (relief.cut_off)());
                    }
                }
                None => changed.wait(&mut queue),
            }
        };
        queue.waiting.retain(|waiter| waiter.number != mine);
        waiting.fetch_sub(1, Ordering::SeqCst);
        drop(queue);
        changed.notify_all();
        taken
    }

    /// Gives back what was taken.
    pub fn give(&self, bytes: u64) {
        self.account.held.fetch_sub(bytes, Ordering::SeqCst);
        self.budget.free.fetch_add(bytes, Ordering::SeqCst);
        self.budget.wake();
    }
}

/// Memory in which a long request is received; dropping it gives it back.
pub struct Received {
    budget: Purse,
    bytes: u64,
}

impl Received {
    /// Waits for it, unless `is_over` says true.
    pub fn new(budget: &Purse, bytes: u64, is_over: impl Fn() -> bool) -> Option<Self> {
        let bytes = budget.counted(bytes);
        budget.take_unless(bytes, is_over).then(|| Received { budget: budget.clone(), bytes })
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    impl Purse {
        fn take(&self, bytes: u64) {
            assert!(self.take_unless(bytes, || false));
        }
    }

    fn purse(total: u64) -> Purse {
        Purse::new(Arc::new(Budget::new(total)), Arc::default())
    }

    /// The same budget, for the clients of another export.
    fn other(purse: &Purse) -> Purse {
        Purse::new(purse.budget.clone(), Arc::default())
    }

    fn waiting(purse: &Purse, count: usize) {
        while purse.budget.waiting.load(Ordering::SeqCst) != count {
            thread::yield_now();
        }
    }

    #[test]
    fn who_comes_later_does_not_overtake() {
        let (first, second) = (purse(100), purse(1));
        let second = Purse { budget: first.budget.clone(), ..second };
        first.take(50);
        let large = thread::spawn({
            let second = second.clone();
            move || second.take(80)
        });
        waiting(&first, 1);
        assert!(!other(&first).try_take(10), "a short one slipped past a long one that waits");
        first.give(20);
        assert!(!large.is_finished());
        first.give(30);
        large.join().unwrap();
        let third = other(&first);
        assert!(third.try_take(20) && !third.try_take(1));
        assert_eq!(first.counted(1 << 40), 100);
    }

    #[test]
    fn one_export_leaves_half_to_the_others_and_takes_turns_with_them() {
        let greedy = purse(100);
        assert!(greedy.try_take(40) && greedy.try_take(10) && !greedy.try_take(1), "half is for others");
        let modest = other(&greedy);
        assert!(modest.try_take(40));
        let order = Arc::new(Mutex::new(Vec::new()));
        let wait = |name, purse: &Purse, bytes| {
            let (purse, order) = (purse.clone(), order.clone());
            thread::spawn(move || {
                purse.take(bytes);
                order.lock().push(name);
                purse.give(bytes);
            })
        };
        let mut threads = Vec::new();
        for number in 1..=3 {
            threads.push(wait("greedy", &greedy, 45));
            waiting(&greedy, number);
        }
        // Whoever waits for what its own export keeps is in nobody's way.
        let third = other(&greedy);
        third.take(10);
        threads.push(wait("third", &third, 5));
        waiting(&greedy, 4);
        modest.give(40);
        while order.lock().is_empty() {
            thread::yield_now();
        }
        greedy.give(50);
        third.give(10);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*order.lock(), ["third", "greedy", "greedy", "greedy"]);
        assert!(modest.try_take(50) && third.try_take(50), "not all came back");
    }

    #[test]
    fn of_one_export_nobody_overtakes_a_long_request() {
        let purse = purse(100);
        assert!(purse.try_take(20));
        let take = |bytes| {
            let purse = purse.clone();
            thread::spawn(move || purse.take(bytes))
        };
        let long = take(80);
        waiting(&purse, 1);
        let short = take(10);
        waiting(&purse, 2);
        purse.give(10);
        assert!(!long.is_finished() && !short.is_finished(), "there is room for the short one, but it came later");
        purse.give(10);
        long.join().unwrap();
        assert!(!short.is_finished(), "the long one has all that the export may have");
        purse.give(80);
        short.join().unwrap();
    }

    #[test]
    fn what_is_larger_than_half_goes_alone() {
        let purse = purse(100);
        assert!(purse.try_take(90) && !purse.try_take(1));
        purse.give(90);
        assert!(purse.try_take(10) && !purse.try_take(60));
        purse.give(10);
        assert!(purse.try_take(100));
    }

    #[test]
    fn who_waits_is_relieved() {
        let purse = purse(100);
        assert!(purse.try_take(100));
        let held = purse.clone();
        let looks = AtomicUsize::new(0);
        purse.budget.relieve(Duration::from_millis(1), move || {
            if looks.fetch_add(1, Ordering::SeqCst) == 2 {
                held.give(100);
            }
        });
        let later = other(&purse);
        let second = thread::spawn(move || {
            later.take(60);
            later.give(60);
        });
        purse.take(60);
        purse.give(60);
        second.join().unwrap();
    }

    #[test]
    fn many_threads_share_without_a_standstill() {
        let purse = purse(1000);
        let held = Arc::new(AtomicU64::new(0));
        let exports = [purse.clone(), other(&purse), other(&purse)];
        let threads: Vec<_> = (1..=8)
            .map(|number| {
                let (purse, held) = (exports[number as usize % 3].clone(), held.clone());
                thread::spawn(move || {
                    for round in 0..5000 {
                        let bytes = purse.counted((number * 7919 * round) % 1300);
                        purse.take(bytes);
                        assert!(held.fetch_add(bytes, Ordering::SeqCst) + bytes <= 1000);
                        held.fetch_sub(bytes, Ordering::SeqCst);
                        purse.give(bytes);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(purse.try_take(1000));
    }
}

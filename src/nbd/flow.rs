//! Bounds what one connection has in flight: bytes of payloads and replies, and requests not yet answered.
//!
//! A [`Charge`] is taken before a request goes the slow way and dropped when the last byte of its reply has been
//! handed to the socket, or when the connection is gone. What it holds beyond a part of its own is taken from the budget of all
//! connections too.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::budget::Purse;

/// Least bytes charged for a request, so that requests without content are bounded as well: what is kept of one until it is answered
/// takes about as much.
const CHARGE_BYTES_MIN: u64 = 4096;
/// How often whoever waits looks whether it still has to.
pub const LOOK: Duration = Duration::from_millis(500);
/// What every connection may have in flight whatever the others do: 64 requests without content.
pub const OWN_BYTES: u64 = 256 << 10;

#[derive(Debug, Default)]
struct InFlight {
    bytes: u64,
    charges: usize,
}

/// What is in flight on one connection.
#[derive(Debug)]
pub struct Flow {
    bytes_max: u64,
    budget: Purse,
    state: Mutex<InFlight>,
    changed: Condvar,
}

/// A part of what is in flight; dropping it makes room.
#[derive(Debug)]
pub struct Charge {
    flow: Arc<Flow>,
    bytes: u64,
}

impl Flow {
    /// A flow of at most `bytes_max` bytes; a single request may exceed it when it is alone.
    pub fn new(bytes_max: u64, budget: Purse) -> Arc<Flow> {
        Arc::new(Flow { bytes_max, budget, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Takes `bytes` if there is room for them now.
    pub fn try_admit(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        let bytes = bytes.max(CHARGE_BYTES_MIN);
        let mut state = self.state.lock();
        if !self.has_room(&state, bytes) || !self.budget.try_take(self.missing(&state, bytes)) {
            return None;
        }
        Some(self.charge(&mut state, bytes))
    }

    /// Takes `bytes`, waiting until there is room, or `is_over` says true: it is asked now and then, with a lock held. Whoever calls this must
    /// have begun everything that its other charges are for.
    pub fn admit(self: &Arc<Self>, bytes: u64, is_over: impl Fn() -> bool) -> Option<Charge> {
        let bytes = bytes.max(CHARGE_BYTES_MIN);
        let mut taken = 0;
        loop {
            let mut state = self.state.lock();
            while !self.has_room(&state, bytes) {
                if self.changed.wait_for(&mut state, LOOK).timed_out() && is_over() {
                    drop(state);
                    self.budget.give(taken);
                    return None;
                }
            }
            let missing = self.missing(&state, bytes);
            if taken >= missing {
                let charge = self.charge(&mut state, bytes);
                drop(state);
                // Some of ours came back while we waited.
                self.budget.give(taken - missing);
                return Some(charge);
            }
            // Not under the lock: what is in flight must be able to end. What comes back of ours may be all that is missing.
            drop(state);
            // All at once: what is more than an export's half is given to nobody who has some of it already.
            self.budget.give(taken);
            taken = 0;
            if self.budget.take_unless(missing, || self.missing(&self.state.lock(), bytes) < missing || is_over()) {
                taken = missing;
            } else if is_over() {
                return None;
            }
        }
    }

    /// Waits until nothing is in flight.
    pub fn wait_until_idle(&self) {
        let mut state = self.state.lock();
        while state.charges > 0 {
            self.changed.wait(&mut state);
        }
    }

    /// True if nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.state.lock().charges == 0
    }

    /// True if it has more in flight than its own part.
    pub fn holds_of_others(&self) -> bool {
        self.shared(self.state.lock().bytes) > 0
    }

    fn has_room(&self, state: &InFlight, bytes: u64) -> bool {
        state.charges == 0 || state.bytes + bytes <= self.bytes_max
    }

    /// What a connection with so much in flight holds of the budget.
    fn shared(&self, bytes: u64) -> u64 {
        self.budget.counted(bytes.saturating_sub(OWN_BYTES))
    }

    /// What must be taken from the budget for `bytes` more.
    fn missing(&self, state: &InFlight, bytes: u64) -> u64 {
        self.shared(state.bytes + bytes) - self.shared(state.bytes)
    }

    fn charge(self: &Arc<Self>, state: &mut InFlight, bytes: u64) -> Charge {
        state.bytes += bytes;
        state.charges += 1;
        Charge { flow: self.clone(), bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let flow = &self.flow;
        let mut state = flow.state.lock();
        let before = flow.shared(state.bytes);
        state.bytes -= self.bytes;
        state.charges -= 1;
        let returned = before - flow.shared(state.bytes);
        drop(state);
        flow.changed.notify_all();
        // Also if nothing is returned: one of ours may wait there for more than it needs now.
        flow.budget.give(returned);
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::Budget;
    use super::*;

    fn purse(total: u64) -> Purse {
        Purse::new(Arc::new(Budget::new(total)), Arc::default())
    }

    #[test]
    fn room_comes_back_when_a_charge_is_dropped() {
        let flow = Flow::new(12_000, purse(1 << 20));
        let first = flow.try_admit(7_000).unwrap();
        assert!(flow.try_admit(7_000).is_none());
        let small = flow.try_admit(1).unwrap();
        assert!(flow.try_admit(1).is_none(), "a small one counts {CHARGE_BYTES_MIN} bytes");
        drop((first, small));
        let alone = flow.try_admit(1 << 30).unwrap();
        assert!(flow.try_admit(1).is_none());
        let waiter = std::thread::spawn({
            let flow = flow.clone();
            move || drop(flow.admit(5_000, || false))
        });
        drop(alone);
        waiter.join().unwrap();
        flow.wait_until_idle();
    }

    #[test]
    fn requests_of_which_each_takes_nearly_all_follow_each_other() {
        let flow = Flow::new(64 << 20, purse(8 << 20));
        let mut last = flow.admit(7 << 20, || false).unwrap();
        for _ in 0..3 {
            let waiter = std::thread::spawn({
                let flow = flow.clone();
                move || flow.admit(7 << 20, || false)
            });
            // Whether it waits already or not makes no difference to what must come of it.
            drop(last);
            last = waiter.join().unwrap().unwrap();
        }
    }

    #[test]
    fn connections_share_a_budget_beyond_a_part_of_their_own() {
        let budget = purse(1 << 20);
        let [first, second] = [(); 2].map(|()| Flow::new(64 << 20, budget.clone()));
        let stalled = first.admit(2 << 20, || false).unwrap();
        let own = second.try_admit(OWN_BYTES).unwrap();
        assert!(second.try_admit(1).is_none(), "the first has all of the budget");
        assert!(second.try_admit(0).is_none(), "requests without content count as well");
        let waiter = std::thread::spawn({
            let second = second.clone();
            move || drop(second.admit(1 << 20, || false))
        });
        drop(stalled);
        waiter.join().unwrap();
        let stalled = first.admit(2 << 20, || false).unwrap();
        let waiter = std::thread::spawn({
            let second = second.clone();
            move || drop(second.admit(OWN_BYTES, || false))
        });
        // Its own part is enough for the one that waits, though the budget has nothing.
        drop(own);
        waiter.join().unwrap();
        drop(stalled);
        assert!(budget.try_take(1 << 20), "not all came back");
    }
}

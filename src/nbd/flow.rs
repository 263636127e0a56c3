//! Bounds what one connection has in flight: bytes of payloads and replies, and requests not yet answered.
//!
//! A [`Charge`] is taken before a request goes the slow way and dropped when the last byte of its reply has been
//! handed to the socket, or when the connection is gone.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// Least bytes charged for a request, so that requests without content are bounded as well.
const CHARGE_BYTES_MIN: u64 = 4096;

#[derive(Debug, Default)]
struct InFlight {
    bytes: u64,
    charges: usize,
}

/// What is in flight on one connection.
#[derive(Debug)]
pub struct Flow {
    bytes_max: u64,
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
    pub fn new(bytes_max: u64) -> Arc<Flow> {
        Arc::new(Flow { bytes_max, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Takes `bytes` if there is room for them now.
    pub fn try_admit(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        let bytes = bytes.max(CHARGE_BYTES_MIN);
        let mut state = self.state.lock();
        self.has_room(&state, bytes).then(|| self.charge(&mut state, bytes))
    }

    /// Takes `bytes`, waiting until there is room.
    pub fn admit(self: &Arc<Self>, bytes: u64) -> Charge {
        let bytes = bytes.max(CHARGE_BYTES_MIN);
        let mut state = self.state.lock();
        while !self.has_room(&state, bytes) {
            self.changed.wait(&mut state);
        }
        self.charge(&mut state, bytes)
    }

    /// Waits until nothing is in flight.
    pub fn wait_until_idle(&self) {
        let mut state = self.state.lock();
        while state.charges > 0 {
            self.changed.wait(&mut state);
        }
    }

    fn has_room(&self, state: &InFlight, bytes: u64) -> bool {
        state.charges == 0 || state.bytes + bytes <= self.bytes_max
    }

    fn charge(self: &Arc<Self>, state: &mut InFlight, bytes: u64) -> Charge {
        state.bytes += bytes;
        state.charges += 1;
        Charge { flow: self.clone(), bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut state = self.flow.state.lock();
        state.bytes -= self.bytes;
        state.charges -= 1;
        drop(state);
        self.flow.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_comes_back_when_a_charge_is_dropped() {
        let flow = Flow::new(12_000);
        let first = flow.try_admit(7_000).unwrap();
        assert!(flow.try_admit(7_000).is_none());
        let small = flow.try_admit(1).unwrap();
        assert!(flow.try_admit(1).is_none(), "a small one counts {CHARGE_BYTES_MIN} bytes");
        drop((first, small));
        let alone = flow.try_admit(1 << 30).unwrap();
        assert!(flow.try_admit(1).is_none());
        let waiter = std::thread::spawn({
            let flow = flow.clone();
            move || drop(flow.admit(5_000))
        });
        drop(alone);
        waiter.join().unwrap();
        flow.wait_until_idle();
    }
}

//! Whether a connection's thread watches its socket for a moment before it sleeps.
//!
//! A client that sends one request at a time comes back within microseconds of its answer, while falling asleep and being woken
//! on another core takes several times as long as serving the request. So the thread watches, but only where it pays:
//! after a round of a single request that was answered at once; not again for a while when nothing came; and
//! on at most half of the cores at a time, so that watching never takes a core from work.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::transport::Transport;

/// How long a socket is watched: about what two wake-ups cost.
const WATCH: Duration = Duration::from_micros(50);
/// Most rounds that are let pass after watching in vain; doubles from one on.
const PASS_MAX: u32 = 256;

/// Threads of this process that watch just now.
static WATCHING: AtomicUsize = AtomicUsize::new(0);

/// What one connection's thread has learnt.
#[derive(Debug)]
pub struct Watch {
    /// Threads that may watch at the same time.
    threads_max: usize,
    /// Rounds to let pass before the next try.
    pass: u32,
    /// What `pass` becomes if that is in vain.
    penalty: u32,
}

impl Watch {
    /// For a machine of `cores` cores. With one core nobody watches: what is waited for could not run.
    pub fn new(cores: usize) -> Self {
        Watch { threads_max: cores / 2, pass: 0, penalty: 1 }
    }

    /// Watches the socket of `transport` for a moment, if it is likely to pay.
    pub fn before_sleep(&mut self, transport: &Transport) {
        if !self.may_try() {
            return;
        }
        if WATCHING.fetch_add(1, Ordering::Relaxed) < self.threads_max {
            self.learn(transport.watch(WATCH));
        }
        WATCHING.fetch_sub(1, Ordering::Relaxed);
    }

    fn may_try(&mut self) -> bool {
        if self.pass > 0 {
            self.pass -= 1;
            return false;
        }
        self.threads_max > 0
    }

    fn learn(&mut self, came: bool) {
        if came {
            self.penalty = 1;
        } else {
            self.pass = self.penalty;
            self.penalty = (self.penalty * 2).min(PASS_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watching_in_vain_becomes_rare_and_success_brings_it_back() {
        let mut watch = Watch::new(2);
        let mut tries = 0;
        for _ in 0..10_000 {
            if watch.may_try() {
                tries += 1;
                watch.learn(false);
            }
        }
        assert!((10..60).contains(&tries), "{tries}");
        while !watch.may_try() {}
        watch.learn(true);
        for _ in 0..100 {
            assert!(watch.may_try());
            watch.learn(true);
        }
    }

    #[test]
    fn a_single_core_is_left_to_the_client() {
        assert!(!Watch::new(1).may_try());
    }
}

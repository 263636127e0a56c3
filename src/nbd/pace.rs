//! Whether a client keeps memory from the others by its own fault: it has begun a long request and does not send the rest, or does not
//! take its replies.
//!
//! A client may be as slow as it likes as long as nobody waits for what it holds. While somebody does, it must move [`LEAST_BYTES`] in each
//! span of the server's patience, or its connection is cut off. What waits for the disk or for the store is nobody's fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::flow::Flow;

/// What a client that holds memory must send or take in one span of patience while others wait.
pub const LEAST_BYTES: u64 = 256 << 10;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Memory for requests that are being received.
    Incoming,
    /// Memory for what is in flight.
    Outgoing,
}

/// How the bytes of one connection move.
#[derive(Debug, Default)]
pub struct Pace {
    /// Bytes that came, and bytes that went.
    moved: [AtomicU64; 2],
    /// The connection waits for the rest of a request that has memory of the others.
    receiving: AtomicBool,
    /// The connection waits for its client to take a reply.
    sending: AtomicBool,
    marks: Mutex<[Option<Mark>; 2]>,
}

/// Where a client was when it was last seen to do enough.
#[derive(Clone, Copy, Debug)]
struct Mark {
    moved: u64,
    /// By the clock of the machine's uptime.
    at: Duration,
}

impl Pace {
    /// Counts bytes that have come, or gone.
    pub fn moved(&self, share: Share, bytes: usize) {
        self.moved[share as usize].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Says whether the connection waits for the rest of a long request.
    pub fn set_receiving(&self, waits: bool) {
        self.receiving.store(waits, Ordering::Relaxed);
    }

    /// Says that a reply waits for the client, until the guard is dropped.
    pub fn sending(&self) -> Sending<'_> {
        self.sending.store(true, Ordering::Relaxed);
        Sending(self)
    }

    /// Looks at the client at the time `now`, on behalf of somebody who waits for `share`: true if it holds some of that, is to blame for
    /// it, and has done too little for at least `patience`.
    pub fn is_stalled(&self, share: Share, flow: &Flow, now: Duration, patience: Duration) -> bool {
        let to_blame = match share {
            Share::Incoming => self.receiving.load(Ordering::Relaxed),
            Share::Outgoing => self.sending.load(Ordering::Relaxed) && flow.holds_of_others(),
        };
        let mark = &mut self.marks.lock()[share as usize];
        let moved = self.moved[share as usize].load(Ordering::Relaxed);
        match mark {
            _ if !to_blame => *mark = None,
            Some(before) if moved - before.moved < LEAST_BYTES => return now.saturating_sub(before.at) >= patience,
            _ => *mark = Some(Mark { moved, at: now }),
        }
        false
    }
}

/// While it lives a reply waits for the client.
#[derive(Debug)]
pub struct Sending<'a>(&'a Pace);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.sending.store(false, Ordering::Relaxed);
    }
}

/// A client of the transmission phase, as the server keeps an eye on it.
#[derive(Clone, Debug)]
pub struct Watched {
    /// How its bytes move.
    pub pace: Arc<Pace>,
    /// What it has in flight.
    pub flow: Arc<Flow>,
}

#[cfg(test)]
mod tests {
    use super::super::budget::{Budget, Purse};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn who_holds_and_does_not_move_is_stalled() {
        let flow = Flow::new(64 << 20, Purse::new(Arc::new(Budget::new(64 << 20)), Arc::default()));
        let pace = Pace::default();
        let at = |seconds| pace.is_stalled(Share::Incoming, &flow, Duration::from_secs(seconds), PATIENCE);
        assert!(!at(0) && !at(100), "nothing is held");
        pace.set_receiving(true);
        assert!(!at(200) && !at(229));
        assert!(at(230));
        pace.moved(Share::Outgoing, 1 << 20);
        pace.moved(Share::Incoming, LEAST_BYTES as usize - 1);
        assert!(at(231), "too little");
        pace.moved(Share::Incoming, 1);
        assert!(!at(232) && !at(261), "enough");
        pace.set_receiving(false);
        assert!(!at(300), "it waits for something else");
        pace.set_receiving(true);
        assert!(!at(301) && !at(330) && at(331), "patience begins anew");
    }

    #[test]
    fn replies_that_nobody_takes_count_only_if_they_hold_what_others_need() {
        let flow = Flow::new(64 << 20, Purse::new(Arc::new(Budget::new(64 << 20)), Arc::default()));
        let pace = Pace::default();
        let at = |seconds| pace.is_stalled(Share::Outgoing, &flow, Duration::from_secs(seconds), PATIENCE);
        let sending = pace.sending();
        let own = flow.try_admit(4096).unwrap();
        assert!(!at(0) && !at(100));
        let more = flow.try_admit(1 << 20).unwrap();
        assert!(!at(200) && at(230));
        drop(sending);
        assert!(!at(231), "the disk is slow, not the client");
        drop((own, more));
    }
}

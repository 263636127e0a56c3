//! The gate: may this volume take requests just now? Closed for good by a failure or the loss of ownership, closed while
//! detaching, and closed for a moment after the process was suspended.
//!
//! Why suspension matters: a host that was paused may have been replaced meanwhile. Nothing it does can harm the
//! history (its next segment meets a seal), but with durability `local` it would acknowledge writes that are no longer
//! part of it. So when time has jumped, the volume looks at the manifest before it acknowledges anything.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};

const OPEN: u8 = 0;
const DOUBTFUL: u8 = 1;
const CLOSED: u8 = 2;

/// How often the pulse is given.
pub const PULSE: Duration = Duration::from_millis(100);
/// A pulse that is this late means that the process was suspended, or starved as if it had been.
pub const SUSPENSION: Duration = Duration::from_millis(600);

/// What a request that is not let through must do.
#[derive(Debug)]
pub enum Refusal {
    /// Wait until ownership was confirmed.
    Doubtful,
    /// Fail.
    Closed(Error),
}

/// The gate of one volume.
pub struct Gate {
    state: AtomicU8,
    pulse_ms: AtomicU64,
    /// How often the process was found to have been suspended.
    suspensions: AtomicU64,
    /// Somebody is asking the store.
    is_asking: AtomicBool,
    /// Why it is closed. Held while doubt arises or ends, so that no suspension comes in between unseen.
    closed: Mutex<Option<Error>>,
}

impl Gate {
    /// An open gate of an attachment that was claimed at this time (of [`clock::uptime`]): if that is long ago, it is in doubt.
    pub fn new(claimed_at: Duration) -> Self {
        Gate {
            state: AtomicU8::new(OPEN),
            pulse_ms: AtomicU64::new(claimed_at.as_millis() as u64),
            suspensions: AtomicU64::new(0),
            is_asking: AtomicBool::new(false),
            closed: Mutex::new(None),
        }
    }

    /// Lets a request through, or says why not.
    ///
    /// # Errors
    /// The refusal.
    pub fn check(&self) -> std::result::Result<(), Refusal> {
        // The clock first: whoever is suspended behind that look finds the doubt.
        let is_late = self.is_late(uptime_ms());
        match self.state.load(Ordering::Acquire) {
            OPEN if !is_late => Ok(()),
            OPEN => {
                self.doubt();
                Err(Refusal::Doubtful)
            }
            DOUBTFUL => Err(Refusal::Doubtful),
            _ => Err(Refusal::Closed(self.reason())),
        }
    }

    /// Given every [`PULSE`] by a task of the process: shows that it runs. False if it came so late that ownership is in doubt.
    pub fn pulse(&self) -> bool {
        self.beat();
        self.state.load(Ordering::Acquire) != DOUBTFUL
    }

    /// Notes that the process runs. The clock is read once: a suspension behind that look is found by the next.
    fn beat(&self) {
        let now = uptime_ms();
        if self.is_late(now) {
            self.doubt();
        }
        self.pulse_ms.fetch_max(now, Ordering::AcqRel);
    }

    /// True for one at a time: who is to ask the store, until [`Gate::asked`].
    pub fn may_ask(&self) -> bool {
        !self.is_asking.swap(true, Ordering::AcqRel)
    }

    /// Lets the next one ask.
    pub fn asked(&self) {
        self.is_asking.store(false, Ordering::Release);
    }

    /// To be noted before the store is asked, for [`Gate::confirm`].
    pub fn suspensions(&self) -> u64 {
        self.suspensions.load(Ordering::Acquire)
    }

    /// Opens a doubtful gate: the store has confirmed ownership, and was asked when there had been so many suspensions. False if there has been
    /// another since: then the answer may be from before it, and says nothing.
    pub fn confirm(&self, suspensions: u64) -> bool {
        self.beat();
        let _still = self.closed.lock();
        if self.suspensions() != suspensions {
            return false;
        }
        let _ = self.state.compare_exchange(DOUBTFUL, OPEN, Ordering::AcqRel, Ordering::Acquire);
        true
    }

    /// Only an open gate becomes doubtful: a closed one must stay closed.
    fn doubt(&self) {
        let _still = self.closed.lock();
        self.suspensions.fetch_add(1, Ordering::AcqRel);
        let _ = self.state.compare_exchange(OPEN, DOUBTFUL, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Closes the gate for good; the first reason stays.
    pub fn close(&self, error: Error) {
        let mut closed = self.closed.lock();
        if closed.is_none() {
            *closed = Some(error);
        }
        self.state.store(CLOSED, Ordering::Release);
    }

    /// Why the gate is closed, if it is.
    pub fn closed(&self) -> Option<Error> {
        self.closed.lock().clone()
    }

    /// An error for a request, if the gate is closed for good.
    ///
    /// # Errors
    /// The reason.
    pub fn ensure_not_closed(&self) -> Result<()> {
        if self.state.load(Ordering::Acquire) == CLOSED { Err(self.reason()) } else { Ok(()) }
    }

    fn reason(&self) -> Error {
        self.closed().unwrap_or_else(|| Error::new(ErrorKind::Stopping, "the volume is closed"))
    }

    fn is_late(&self, now: u64) -> bool {
        let since = now.saturating_sub(self.pulse_ms.load(Ordering::Acquire));
        since > SUSPENSION.as_millis() as u64
    }
}

fn uptime_ms() -> u64 {
    clock::uptime().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_that_took_long_begins_in_doubt() {
        let now = clock::uptime();
        assert!(Gate::new(now).check().is_ok());
        let gate = Gate::new(now.saturating_sub(2 * SUSPENSION));
        assert!(matches!(gate.check(), Err(Refusal::Doubtful)));
        assert!(!gate.pulse(), "the store is to be asked");
        assert!(gate.confirm(gate.suspensions()) && gate.check().is_ok());
    }
}

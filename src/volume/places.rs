//! Bounds what the places of blocks in the write logs take in memory ([`LogOverlay`](crate::map::LogOverlay)), of all volumes together.
//!
//! A log of 4 GiB holds a million writes of 4 KiB, or sixty million trims; how long it is says little about how many places it has. So
//! they are counted. From three quarters of the limit on, each volume gives back what its log keeps for reads alone; at the limit,
//! writers wait as they do for a full log, until segments have taken effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::map::EXTENT_BYTES;

/// See the module's description.
#[derive(Debug)]
pub struct PlacesBudget {
    used: AtomicUsize,
    limit: usize,
    /// Tells uploaders that log space should be given back.
    pressed: Notify,
    /// Tells writers that there is room again.
    eased: Notify,
}

impl PlacesBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        let limit = (bytes / EXTENT_BYTES).max(1);
        PlacesBudget { used: AtomicUsize::new(0), limit, pressed: Notify::new(), eased: Notify::new() }
    }

    /// True if logs should keep nothing that is stored.
    pub fn is_pressed(&self) -> bool {
        self.presses(self.used.load(Ordering::Acquire))
    }

    fn presses(&self, used: usize) -> bool {
        used > self.limit / 4 * 3
    }

    /// True if writers must wait.
    pub fn is_full(&self) -> bool {
        self.fills(self.used.load(Ordering::Acquire))
    }

    fn fills(&self, used: usize) -> bool {
        used >= self.limit
    }

    /// Wakes when [`PlacesBudget::is_pressed`] may have become true.
    pub fn pressed(&self) -> Notified<'_> {
        self.pressed.notified()
    }

    /// Wakes when [`PlacesBudget::is_full`] may have become false.
    pub fn eased(&self) -> Notified<'_> {
        self.eased.notified()
    }
}

/// The places of one volume.
#[derive(Debug)]
pub struct PlacesShare {
    budget: Arc<PlacesBudget>,
    held: AtomicUsize,
}

impl PlacesShare {
    /// None yet.
    pub fn new(budget: Arc<PlacesBudget>) -> Self {
        PlacesShare { budget, held: AtomicUsize::new(0) }
    }

    /// Says how many there are now. Called with the overlay locked.
    pub fn set(&self, count: usize) {
        let held = self.held.swap(count, Ordering::AcqRel);
        // What this very change did, whatever other volumes do at the same time: of all changes one crosses each limit.
        let (before, after) = if count > held {
            let before = self.budget.used.fetch_add(count - held, Ordering::AcqRel);
            (before, before + (count - held))
        } else {
            let before = self.budget.used.fetch_sub(held - count, Ordering::AcqRel);
            (before, before - (held - count))
        };
        if !self.budget.presses(before) && self.budget.presses(after) {
            self.budget.pressed.notify_waiters();
        }
        if self.budget.fills(before) && !self.budget.fills(after) {
            self.budget.eased.notify_waiters();
        }
    }
}

impl Drop for PlacesShare {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_share_one_limit_and_give_back_what_they_held() {
        let budget = Arc::new(PlacesBudget::new(100 * EXTENT_BYTES));
        let (one, other) = (PlacesShare::new(budget.clone()), PlacesShare::new(budget.clone()));
        one.set(70);
        assert!(!budget.is_pressed());
        other.set(20);
        assert!(budget.is_pressed() && !budget.is_full());
        one.set(80);
        assert!(budget.is_full());
        drop(other);
        assert!(budget.is_pressed() && !budget.is_full());
        one.set(0);
        assert!(!budget.is_pressed() && budget.used.load(Ordering::Acquire) == 0);
    }
}

//! Bounds what the places of blocks in the write logs take in memory ([`LogOverlay`](crate::map::LogOverlay)), of all volumes together.
//!
//! A log of 4 GiB holds a million writes of 4 KiB, or sixty million trims; how long it is says little about how many places it has. So
//! they are counted. From three quarters of the limit on, each volume gives back what its log keeps for reads alone; at the limit,
//! writers wait as they do for a full log, until segments have taken effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::map::{EXTENT_BYTES, LogOverlay};

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

    /// Notes that a volume which had `before` places has `after` now. What counts is what this very change did, whatever other volumes do at the
    /// same time: of all changes one crosses each limit.
    fn count(&self, before: usize, after: usize) {
        let (used_before, used_after) = if after > before {
            let used = self.used.fetch_add(after - before, Ordering::AcqRel);
            (used, used + (after - before))
        } else {
            let used = self.used.fetch_sub(before - after, Ordering::AcqRel);
            (used, used - (before - after))
        };
        if !self.presses(used_before) && self.presses(used_after) {
            self.pressed.notify_waiters();
        }
        if self.fills(used_before) && !self.fills(used_after) {
            self.eased.notify_waiters();
        }
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

/// The overlay of one volume, with its places counted. It is there until the attachment is over: then whoever still holds the volume (a
/// client that does not go) holds no memory that others wait for.
#[derive(Debug)]
pub struct CountedOverlay {
    budget: Arc<PlacesBudget>,
    /// `None` once it was given up.
    overlay: RwLock<Option<LogOverlay>>,
}

impl CountedOverlay {
    /// Counts what is in `overlay`.
    pub fn new(budget: Arc<PlacesBudget>, overlay: LogOverlay) -> Self {
        budget.count(0, overlay.extent_count());
        CountedOverlay { budget, overlay: RwLock::new(Some(overlay)) }
    }

    /// The overlay; `None` once it was given up.
    pub fn read(&self) -> Option<MappedRwLockReadGuard<'_, LogOverlay>> {
        RwLockReadGuard::try_map(self.overlay.read(), Option::as_ref).ok()
    }

    /// Changes the overlay, if it is still there.
    pub fn change(&self, change: impl FnOnce(&mut LogOverlay)) {
        if let Some(overlay) = self.overlay.write().as_mut() {
            let before = overlay.extent_count();
            change(overlay);
            self.budget.count(before, overlay.extent_count());
        }
    }

    /// Drops the overlay, for good.
    pub fn give_up(&self) {
        let overlay = self.overlay.write().take();
        if let Some(overlay) = overlay {
            self.budget.count(overlay.extent_count(), 0);
        }
    }
}

impl Drop for CountedOverlay {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use crate::map::OverlayPlace;
    use crate::units::{BlockCount, BlockRange, Lba, LogOffset};

    use super::*;

    /// An overlay with so many places.
    fn overlay(places: usize) -> LogOverlay {
        let mut overlay = LogOverlay::default();
        fill(&mut overlay, places);
        overlay
    }

    /// Adds places, until there are `to`.
    fn fill(overlay: &mut LogOverlay, to: usize) {
        for number in overlay.extent_count()..to {
            let range = BlockRange::new(Lba(2 * number as u64), BlockCount(1));
            overlay.set(range, OverlayPlace::Zero(LogOffset(number as u64)));
        }
    }

    #[test]
    fn volumes_share_one_limit_and_give_back_what_they_held() {
        let budget = Arc::new(PlacesBudget::new(100 * EXTENT_BYTES));
        let one = CountedOverlay::new(budget.clone(), overlay(70));
        assert!(!budget.is_pressed());
        let other = CountedOverlay::new(budget.clone(), overlay(20));
        assert!(budget.is_pressed() && !budget.is_full());
        one.change(|overlay| fill(overlay, 80));
        assert!(budget.is_full());
        drop(other);
        assert!(budget.is_pressed() && !budget.is_full());
        one.change(|overlay| overlay.release(BlockRange::new(Lba(0), BlockCount(200)), LogOffset(80)));
        assert!(!budget.is_pressed() && budget.used.load(Ordering::Acquire) == 0);
    }

    #[test]
    fn what_was_given_up_stays_so() {
        let budget = Arc::new(PlacesBudget::new(100 * EXTENT_BYTES));
        let counted = CountedOverlay::new(budget.clone(), overlay(100));
        assert!(budget.is_full() && counted.read().is_some());
        counted.give_up();
        assert!(!budget.is_full() && counted.read().is_none());
        counted.change(|overlay| fill(overlay, 100));
        assert!(counted.read().is_none() && budget.used.load(Ordering::Acquire) == 0);
        drop(counted);
        assert_eq!(budget.used.load(Ordering::Acquire), 0);
    }
}

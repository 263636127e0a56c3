//! The end of an attachment, seen from the volume.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::volume::core::Volume;

impl Volume {
    /// Takes no more requests, and lets the uploader finish what is accepted.
    pub(super) fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // Whoever was let through before has appended by now, and the uploader will see it.
        let writer = self.writer.lock();
        self.gate.close(Error::new(ErrorKind::Stopping, format!("volume {} is being detached", self.id)));
        drop(writer);
        self.gate_wake.notify_waiters();
        self.space_wake.notify_waiters();
        self.upload_wake.notify_one();
    }

    /// Waits until nobody else holds this volume, so that its log is no longer written when the caller lets go of it.
    /// Requests of connected clients end at once, since the gate is closed.
    pub(super) async fn log_is_closed(self: &Arc<Self>) {
        self.upload_wake.notify_one();
        // A client that never goes away keeps the volume in memory; its log takes nothing any more.
        for _ in 0..100 {
            if Arc::strong_count(self) <= 1 {
                return;
            }
            crate::clock::sleep(Duration::from_millis(10)).await;
        }
    }
}

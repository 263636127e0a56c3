//! The end of an attachment, seen from the volume.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, ErrorKind};
use crate::volume::core::Volume;

impl Volume {
    /// Takes no more requests, and lets the uploader finish what is accepted.
    pub(crate) fn begin_stop(&self) {
        // Whoever was let through before has appended by now, and the uploader sees it: it ends when it is to stop and nothing is left, so
        // nobody may append in between.
        let writer = self.writer.lock();
        self.stopping.store(true, Ordering::Release);
        self.gate.close(Error::new(ErrorKind::Stopping, format!("volume {} is being detached", self.id)));
        drop(writer);
        self.gate_wake.notify_waiters();
        self.space_wake.notify_waiters();
        self.upload_wake.notify_one();
    }

    /// Sees to it that this volume, whose gate is closed, changes nothing any more: clients and commands that are under way may hold it
    /// for as long as they like, while the next attachment carries on with the same log and the same pages.
    pub(crate) async fn let_go(self: &Arc<Self>) {
        self.upload_wake.notify_one();
        self.pages.close();
        self.overlay.give_up();
        // Whoever was let through before has appended by now.
        drop(self.writer.lock());
        let volume = self.clone();
        let closing = self.shared.runtime.spawn_blocking(move || volume.committer.close());
        if closing.await.is_err() {
            tracing::debug!(volume = %self.id, "the daemon ends before the log is closed");
        }
    }
}

//! Snapshots that are taken by themselves, and those that go by themselves.
//!
//! Decided from what the owner has in memory: a volume to which nothing is written costs no request. Wall clocks decide when; what
//! a clock that jumps can do is take a snapshot too early or too late, or let one go early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock;
use crate::error::Result;
use crate::format::manifest::Manifest;
use crate::lineage;
use crate::units::{Sequence, SnapshotId, UnixMillis};
use crate::volume::core::Volume;

/// How often schedules are looked at.
pub const LOOK: Duration = Duration::from_secs(1);
/// How long a look is put off after a failure.
const PAUSE: Duration = Duration::from_secs(60);

/// The state of one volume's schedule.
#[derive(Default)]
pub struct ScheduleState {
    busy: AtomicBool,
    not_before: Mutex<Duration>,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    /// Seconds that a snapshot taken now is to be kept.
    retention_seconds: Option<u64>,
    expired: Vec<SnapshotId>,
}

impl Volume {
    /// Takes the snapshot that is due, and lets go of those whose time is over. Does nothing while an earlier call is under way.
    pub(crate) async fn keep_schedule(self: Arc<Self>) {
        let state = &self.schedule;
        if clock::uptime() < *state.not_before.lock() || state.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = self.keep_schedule_now().await {
            tracing::warn!(volume = %self.id, %error, "scheduled snapshots are put off");
            *state.not_before.lock() = clock::uptime() + PAUSE;
        }
        state.busy.store(false, Ordering::Release);
    }

    async fn keep_schedule_now(&self) -> Result<()> {
        if self.gate.closed().is_some() {
            return Ok(());
        }
        let accepted = self.progress.lock().accepted().sequence;
        let due = due(&self.manifest.lock().await.manifest, accepted, clock::now());
        if due.retention_seconds.is_some() {
            self.take_snapshot(lineage::record(None, due.retention_seconds, true)).await?;
        }
        if !due.expired.is_empty() {
            self.change_manifest(|manifest| {
                lineage::unpin_snapshots(manifest, &due.expired);
                Ok(())
            })
            .await?;
            tracing::info!(volume = %self.id, count = due.expired.len(), "expired snapshots are gone");
            lineage::delete_objects(&*self.shared.store, &due.expired).await;
        }
        Ok(())
    }
}

fn due(manifest: &Manifest, accepted: Sequence, now: UnixMillis) -> Due {
    let expired = lineage::expired(manifest, now);
    let is_written = accepted > manifest.snapshotted;
    let latest = manifest.scheduled_at.unwrap_or(manifest.created_at);
    let retention_seconds = manifest.schedule.filter(|schedule| {
        let interval = schedule.interval_seconds.saturating_mul(1000);
        is_written && now.0 >= latest.0.saturating_add(interval)
    });
    Due { retention_seconds: retention_seconds.map(|schedule| schedule.retention_seconds), expired }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::lineage::PinHolder;
    use crate::service::SnapshotSchedule;
    use crate::units::{ByteLen, Token, VolumeId};

    const HOUR: u64 = 3_600_000;

    fn scheduled() -> Manifest {
        let schedule = Some(SnapshotSchedule { interval_seconds: 3600, retention_seconds: 7200 });
        let mut manifest = Manifest::first(VolumeId(1), "v".into(), ByteLen(8 << 20), UnixMillis(HOUR), Token(1));
        lineage::note_present(&mut manifest, UnixMillis(HOUR));
        Manifest { schedule, ..manifest }
    }

    #[test]
    fn a_snapshot_is_due_when_time_has_passed_and_something_was_written() {
        let mut manifest = scheduled();
        let at = |manifest: &Manifest, sequence, hours| due(manifest, Sequence(sequence), UnixMillis(hours * HOUR));
        assert_eq!(at(&manifest, 5, 1).retention_seconds, None, "too early");
        assert_eq!(at(&manifest, 0, 9).retention_seconds, None, "nothing was written");
        assert_eq!(at(&manifest, 5, 2).retention_seconds, Some(7200));
        let mut record = lineage::record(None, None, true);
        record.created_at = UnixMillis(2 * HOUR);
        record.expires_at = Some(UnixMillis(4 * HOUR));
        let mut moment = manifest.moment();
        moment.sequence = Sequence(5);
        lineage::pin(&mut manifest, &moment, PinHolder::Snapshot(record.clone()));
        assert_eq!(at(&manifest, 5, 3), Due { retention_seconds: None, expired: vec![] }, "nothing new was written");
        assert_eq!(at(&manifest, 6, 3).retention_seconds, Some(7200));
        assert_eq!(at(&manifest, 5, 4).expired, [record.id]);
        manifest.schedule = None;
        assert_eq!(at(&manifest, 6, 9).retention_seconds, None, "switched off");
    }
}

//! A daemon as the control socket knows it.

use async_trait::async_trait;
use varve::error::{Error, ErrorKind, Result};
use varve::service::{
    AttachReport, AttachedStatus, CleanReport, DaemonStatus, Durability, HydrationStatus, Lag, NewForks, NewSnapshot,
    RescuedLog, Service, SnapshotStatus, SnapshotSummary, StoreCounts, VolumeChange, VolumeState, VolumeSummary,
    WarmReport, WarmRequest,
};
use varve::units::{ByteLen, Epoch, Sequence, SnapshotId, UnixMillis, VolumeId};

use super::NOW;

/// A daemon that has volume 7 attached.
pub struct Daemon;

fn status() -> AttachedStatus {
    AttachedStatus {
        volume: VolumeId(7),
        name: "demo".into(),
        size: ByteLen(20 << 30),
        epoch: Epoch(5),
        durability: Durability::Store,
        clients: 2,
        lag: Lag { bytes: ByteLen(8192), seconds: 1.25 },
        accepted: Sequence(20),
        stored: Sequence(18),
        stored_bytes: ByteLen(2 << 30),
        live_bytes: ByteLen(1 << 19),
        hydration: None,
        log_used: ByteLen(64 << 20),
        log_length: ByteLen(2 << 30),
        warming: None,
        failed: None,
    }
}

fn known(volume: VolumeId) -> Result<AttachedStatus> {
    if volume == VolumeId(7) { Ok(status()) } else { Err(Error::not_found(format!("{volume} is not attached here"))) }
}

#[async_trait]
impl Service for Daemon {
    fn daemon(&self) -> DaemonStatus {
        let store_counts =
            StoreCounts { gets: 3, get_bytes: 1 << 20, puts: 2, put_bytes: 3 << 20, deletes: 1, lists: 0, retries: 4 };
        let nbd = vec!["nbd://127.0.0.1:10809".into()];
        DaemonStatus {
            version: "1.2.3".into(),
            pid: 42,
            host: "hector".into(),
            control: "/c".into(),
            store: "file:///store".into(),
            nbd,
            control_tcp: None,
            store_counts,
        }
    }
    fn attached(&self) -> Vec<AttachedStatus> {
        vec![status()]
    }
    async fn attach(&self, volume: VolumeId, takeover: bool) -> Result<AttachReport> {
        if !takeover {
            return Err(Error::new(ErrorKind::Busy, format!("{volume} is attached by hector")));
        }
        let rescued = RescuedLog {
            path: "/state/rescued/1".into(),
            records: 12,
            bytes: ByteLen(48 << 10),
            since: UnixMillis(NOW.0),
        };
        Ok(AttachReport {
            status: status(),
            resumed: Sequence(18),
            replayed_records: 0,
            taken_over: true,
            previous_owner: Some("hector".into()),
            rescued_log: Some(rescued),
        })
    }
    async fn detach(&self, volume: VolumeId, force: bool) -> Result<()> {
        let status = known(volume)?;
        if force {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Busy, format!("{volume} has {} clients", status.clients)))
        }
    }
    async fn sync(&self, volume: VolumeId) -> Result<AttachedStatus> {
        known(volume).map(|status| AttachedStatus { lag: Lag::default(), stored: status.accepted, ..status })
    }
    async fn update(&self, volume: VolumeId, change: VolumeChange) -> Result<AttachedStatus> {
        known(volume).map(|status| AttachedStatus {
            durability: change.durability.unwrap_or(status.durability),
            size: change.size.unwrap_or(status.size),
            ..status
        })
    }
    async fn hydrate(&self, volume: VolumeId) -> Result<AttachedStatus> {
        let (done, total) = (ByteLen(3 << 20), ByteLen(12 << 20));
        let hydration = HydrationStatus { done, total, seconds_left: Some(90.5), ..HydrationStatus::default() };
        known(volume).map(|status| AttachedStatus { hydration: Some(hydration), ..status })
    }
    async fn clean(&self, volume: VolumeId) -> Result<CleanReport> {
        known(volume).map(|status| CleanReport {
            freed: ByteLen(5),
            stored: status.stored_bytes,
            ..CleanReport::default()
        })
    }
    async fn warm(&self, volume: VolumeId, request: WarmRequest) -> Result<WarmReport> {
        known(volume).map(|status| WarmReport {
            fetched: status.live_bytes,
            present: ByteLen(4096),
            complete: request.from.is_some(),
        })
    }
    async fn snapshot(&self, volume: VolumeId, new: NewSnapshot) -> Result<SnapshotSummary> {
        known(volume).map(|status| SnapshotSummary {
            id: SnapshotId(1),
            name: new.name,
            volume,
            status: SnapshotStatus::Ready,
            size: status.size,
            stored_bytes: status.stored_bytes,
            created_at: NOW,
            expires_at: new.retention_seconds.map(|seconds| UnixMillis(NOW.0 + seconds * 1000)),
            scheduled: false,
        })
    }
    async fn fork(&self, volume: VolumeId, new: NewForks) -> Result<Vec<VolumeSummary>> {
        let status = known(volume)?;
        let fork = |number: u32| VolumeSummary {
            id: VolumeId(u64::from(number) + 100),
            name: new.name.clone().unwrap_or_else(|| status.name.clone()),
            region: "default".into(),
            encryption: None,
            state: VolumeState::Detached,
            size: status.size,
            stored_bytes: ByteLen(0),
            epoch: Epoch(0),
            durability: status.durability,
            schedule: None,
            history_seconds: 0,
            history_since: None,
            is_hydrating: false,
            origin: Some(volume),
            snapshots: 0,
            created_at: NOW,
            owner: None,
            destroyed_at: None,
            purge_after: None,
        };
        Ok((0..new.count).map(fork).collect())
    }
}

//! The fleet as the doors see it: exports for NBD, a service for the control socket.

use std::sync::Arc;

use async_trait::async_trait;

use crate::block_device::{ExportEntry, Exports, Geometry, OpenDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::ownership;
use crate::service::{
    AttachReport, AttachedStatus, DaemonStatus, NewForks, NewSnapshot, Service, SnapshotSummary, VolumeChange,
    VolumeSummary,
};
use crate::store::Counts;
use crate::units::{BLOCK_SIZE, VolumeId};
use crate::volume::admin::summary;
use crate::volume::catalog::Known;
use crate::volume::core::Volume;
use crate::volume::device::VolumeDevice;
use crate::volume::fleet::Fleet;

/// The fleet behind the NBD server.
pub struct FleetExports(pub Arc<Fleet>);

#[async_trait]
impl Exports for FleetExports {
    async fn list(&self) -> Result<Vec<ExportEntry>> {
        let known = self.0.catalog.list().await?;
        let entry = |known: Known| ExportEntry {
            name: known.id.to_string(),
            description: format!("{} ({} bytes)", known.name, known.size),
        };
        Ok(known.into_iter().map(entry).collect())
    }

    async fn inspect(&self, name: &str) -> Result<Geometry> {
        let id = self.0.resolve(name).await?;
        let size = match self.0.find(id) {
            Some(volume) => volume.status().size,
            None => {
                let manifest = ownership::load(&*self.0.shared.store, id).await?.manifest;
                if manifest.destroyed_at.is_some() {
                    return Err(Error::not_found(format!("volume {id} is destroyed")));
                }
                manifest.size
            }
        };
        Ok(Geometry { size: size.0, read_only: false, preferred_block: BLOCK_SIZE as u32 })
    }

    async fn open(&self, name: &str) -> Result<OpenDevice> {
        let id = self.0.resolve(name).await?;
        let (volume, _) = self.0.attach(id, false, true).await?;
        let session = Session { fleet: self.0.clone(), volume: volume.clone() };
        Ok(OpenDevice { device: Arc::new(VolumeDevice(volume)), session: Box::new(session) })
    }
}

/// One client's use of a volume.
struct Session {
    fleet: Arc<Fleet>,
    volume: Arc<Volume>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.fleet.client_gone(&self.volume);
    }
}

/// The fleet behind the control socket.
pub struct FleetService {
    /// The volumes.
    pub fleet: Arc<Fleet>,
    /// What was asked of the store.
    pub counts: Arc<Counts>,
    /// Where NBD clients connect.
    pub nbd: Vec<String>,
}

impl FleetService {
    fn attached_here(&self, id: VolumeId) -> Result<Arc<Volume>> {
        let volume =
            self.fleet.find(id).ok_or_else(|| Error::not_found(format!("volume {id} is not attached here")))?;
        match volume.gate.closed() {
            Some(error) if error.kind() != ErrorKind::Stopping => Err(error),
            _ => Ok(volume),
        }
    }
}

#[async_trait]
impl Service for FleetService {
    fn daemon(&self) -> DaemonStatus {
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            store: self.fleet.shared.store.address().to_owned(),
            nbd: self.nbd.clone(),
            store_counts: self.counts.snapshot(),
        }
    }

    fn attached(&self) -> Vec<AttachedStatus> {
        let mut attached: Vec<AttachedStatus> = self.fleet.volumes().iter().map(|volume| volume.status()).collect();
        attached.sort_by_key(|status| status.volume);
        attached
    }

    async fn attach(&self, volume: VolumeId, takeover: bool) -> Result<AttachReport> {
        self.fleet.attach(volume, takeover, false).await.map(|(_, report)| report)
    }

    async fn detach(&self, volume: VolumeId, force: bool) -> Result<()> {
        self.fleet.detach(volume, force).await
    }

    async fn sync(&self, volume: VolumeId) -> Result<AttachedStatus> {
        let volume = self.attached_here(volume)?;
        volume.sync().await?;
        Ok(volume.status())
    }

    async fn update(&self, volume: VolumeId, change: VolumeChange) -> Result<AttachedStatus> {
        let volume = self.attached_here(volume)?;
        volume.update(&change).await?;
        Ok(volume.status())
    }

    async fn snapshot(&self, volume: VolumeId, new: NewSnapshot) -> Result<SnapshotSummary> {
        self.attached_here(volume)?.snapshot(new).await
    }

    async fn fork(&self, volume: VolumeId, new: NewForks) -> Result<Vec<VolumeSummary>> {
        let forks = self.attached_here(volume)?.fork(&new).await?;
        Ok(forks.iter().map(summary).collect())
    }
}

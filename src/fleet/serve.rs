//! The fleet as the doors see it: exports for NBD, a service for the control socket.

use std::sync::Arc;

use async_trait::async_trait;

use crate::admin::summary;
use crate::block_device::{ExportEntry, Exports, Geometry, OpenDevice};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::fleet::volumes::Fleet;
use crate::lineage;
use crate::ownership;
use crate::service::{
    AttachReport, AttachedStatus, CleanReport, DaemonStatus, NewForks, NewSnapshot, Service, SnapshotSummary,
    VolumeChange, VolumeSummary, WarmReport, WarmRequest,
};
use crate::store::Counts;
use crate::units::{BLOCK_SIZE, SnapshotId, VolumeId};
use crate::volume::{FrozenDevice, Volume, VolumeDevice, frozen_geometry};
use crate::work;

/// The fleet behind the NBD server.
pub struct FleetExports(pub Arc<Fleet>);

#[async_trait]
impl Exports for FleetExports {
    async fn list(&self) -> Result<Vec<ExportEntry>> {
        let now = clock::now();
        let mut entries = Vec::new();
        for known in self.0.catalog.list().await? {
            let description = format!("{} ({} bytes)", known.name, known.size);
            let other_names = vec![known.name.clone()];
            entries.push(ExportEntry { name: known.id.to_string(), other_names, description });
            for snapshot in known.snapshots.iter().filter(|snapshot| !snapshot.record.is_expired(now)) {
                let name = snapshot.record.name.as_ref().map(|name| format!(" '{name}'")).unwrap_or_default();
                let description = format!("snapshot{name} of {} ({} bytes)", known.name, snapshot.size);
                let other_names = vec![known.id.to_string(), known.name.clone()];
                entries.push(ExportEntry { name: snapshot.record.id.to_string(), other_names, description });
            }
        }
        Ok(entries)
    }

    async fn identify(&self, name: &str) -> Result<ExportEntry> {
        let store = &*self.0.shared.store;
        Ok(match self.export(name).await? {
            Export::Volume(id) => {
                let volume = ownership::load(store, id).await?.manifest.name;
                ExportEntry { name: id.to_string(), description: volume.clone(), other_names: vec![volume] }
            }
            Export::Snapshot(id) => {
                let volume = lineage::find(store, id).await?.volume.manifest;
                let description = format!("snapshot of {}", volume.name);
                ExportEntry {
                    name: id.to_string(),
                    description,
                    other_names: vec![volume.volume.to_string(), volume.name],
                }
            }
        })
    }

    async fn inspect(&self, name: &str) -> Result<Geometry> {
        let store = &*self.0.shared.store;
        let id = match self.export(name).await? {
            Export::Volume(id) => id,
            Export::Snapshot(id) => return Ok(frozen_geometry(lineage::find(store, id).await?.moment.size.0)),
        };
        let size = match self.0.find(id) {
            Some(volume) => volume.status().size,
            None => {
                let manifest = ownership::load(store, id).await?.manifest;
                lineage::only_if_usable(&manifest)?;
                manifest.size
            }
        };
        Ok(Geometry { size: size.0, read_only: false, preferred_block: BLOCK_SIZE as u32 })
    }

    async fn open(&self, name: &str) -> Result<OpenDevice> {
        match self.export(name).await? {
            Export::Snapshot(id) => {
                let device = FrozenDevice::open(&self.0.shared, id).await?;
                Ok(OpenDevice { id: id.to_string(), device: Arc::new(device), session: Box::new(()) })
            }
            Export::Volume(id) => {
                let (volume, _) = self.0.attach(id, false, true).await?;
                let session = Session { fleet: self.0.clone(), volume: volume.clone() };
                let device = Arc::new(VolumeDevice::new(volume));
                Ok(OpenDevice { id: id.to_string(), device, session: Box::new(session) })
            }
        }
    }

    async fn bitmaps(&self, name: &str, asked: Option<Vec<SnapshotId>>) -> Result<Vec<SnapshotId>> {
        let store = &*self.0.shared.store;
        let Some(asked) = asked else {
            let manifest = match self.export(name).await? {
                Export::Volume(id) => ownership::load(store, id).await?.manifest,
                Export::Snapshot(id) => lineage::find(store, id).await?.volume.manifest,
            };
            let now = clock::now();
            let own = lineage::snapshots(&manifest).into_iter().filter(|(record, _)| !record.is_expired(now));
            return Ok(own.map(|(record, _)| record.id).collect());
        };
        let mut known = Vec::new();
        for id in asked {
            match lineage::find(store, id).await {
                Ok(_) => known.push(id),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(known)
    }
}

/// What an export's name means.
enum Export {
    Volume(VolumeId),
    Snapshot(SnapshotId),
}

impl FleetExports {
    async fn export(&self, name: &str) -> Result<Export> {
        if name.starts_with("vs_") {
            return name.parse().map(Export::Snapshot);
        }
        self.0.resolve(name).await.map(Export::Volume)
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
    /// Where the daemon can be asked over TCP, if it can.
    pub control_tcp: Option<String>,
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
            host: work::host_name(),
            control: self.fleet.shared.settings.control.clone(),
            store: self.fleet.shared.store.address().to_owned(),
            nbd: self.nbd.clone(),
            control_tcp: self.control_tcp.clone(),
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

    async fn hydrate(&self, volume: VolumeId) -> Result<AttachedStatus> {
        let volume = self.attached_here(volume)?;
        volume.hydrate().await?;
        Ok(volume.status())
    }

    async fn clean(&self, volume: VolumeId) -> Result<CleanReport> {
        self.attached_here(volume)?.clean_now().await
    }

    async fn warm(&self, volume: VolumeId, request: WarmRequest) -> Result<WarmReport> {
        self.attached_here(volume)?.warm_now(request.from).await
    }

    async fn snapshot(&self, volume: VolumeId, new: NewSnapshot) -> Result<SnapshotSummary> {
        self.attached_here(volume)?.snapshot(new).await
    }

    async fn fork(&self, volume: VolumeId, new: NewForks) -> Result<Vec<VolumeSummary>> {
        let forks = self.attached_here(volume)?.fork(&new).await?;
        Ok(forks.iter().map(summary).collect())
    }
}

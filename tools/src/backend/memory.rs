//! A backend in memory, for tests of commands.

use std::cell::RefCell;

use varve::error::{Error, ErrorKind, Result};
use varve::service::{
    CheckProblem, CheckProgress, CheckReport, DumpTarget, Durability, NewVolume, OwnerSummary, Swept, VolumeState,
    VolumeSummary,
};
use varve::units::{ByteLen, Epoch, UnixMillis, VolumeId};

use super::Backend;

/// When everything happens: 2026-11-21T04:23:58Z.
pub const NOW: UnixMillis = UnixMillis(1_795_235_038_000);
const DAY: u64 = 86_400_000;

/// Volumes, numbered from 1.
#[derive(Default)]
pub struct Memory {
    /// All volumes.
    pub volumes: RefCell<Vec<VolumeSummary>>,
    /// What `check` finds.
    pub problems: Vec<CheckProblem>,
    /// How many volumes fit in.
    pub capacity: Option<usize>,
}

impl Memory {
    /// With these volumes.
    pub fn holding(volumes: Vec<VolumeSummary>) -> Self {
        Memory { volumes: RefCell::new(volumes), ..Memory::default() }
    }

    fn change(&self, id: VolumeId, change: impl FnOnce(&mut VolumeSummary) -> Result<()>) -> Result<VolumeSummary> {
        let mut volumes = self.volumes.borrow_mut();
        let volume = volumes.iter_mut().find(|volume| volume.id == id);
        let volume = volume.ok_or_else(|| Error::not_found(format!("there is no volume {id}")))?;
        change(volume)?;
        Ok(volume.clone())
    }
}

/// A detached volume of 10 GB, a day old.
pub fn detached(id: u64, name: &str) -> VolumeSummary {
    VolumeSummary {
        id: VolumeId(id),
        name: name.to_owned(),
        region: "default".to_owned(),
        state: VolumeState::Detached,
        size: ByteLen(10 << 30),
        stored_bytes: ByteLen(3 << 29),
        epoch: Epoch(4),
        durability: Durability::Local,
        created_at: UnixMillis(NOW.0 - DAY),
        owner: None,
        destroyed_at: None,
        purge_after: None,
    }
}

/// The same, attached by a daemon on `host` with this control socket.
pub fn attached(id: u64, name: &str, host: &str, control: &str) -> VolumeSummary {
    let owner =
        OwnerSummary { host: host.into(), pid: 42, control: control.into(), attached_at: UnixMillis(NOW.0 - 90_000) };
    VolumeSummary { state: VolumeState::Attached, owner: Some(owner), ..detached(id, name) }
}

impl Backend for Memory {
    async fn open(store_url: &str, _create: bool) -> Result<Self> {
        Err(Error::not_found(format!("there is no store at {store_url}")))
    }

    async fn create_volume(&self, new: NewVolume) -> Result<VolumeSummary> {
        let mut volumes = self.volumes.borrow_mut();
        if self.capacity == Some(volumes.len()) {
            return Err(Error::new(ErrorKind::Full, "the store is full"));
        }
        let NewVolume { name, size, region, durability } = new;
        let fresh = detached(volumes.len() as u64 + 1, &name);
        let volume = VolumeSummary {
            size,
            region,
            durability,
            stored_bytes: ByteLen(0),
            epoch: Epoch(0),
            created_at: NOW,
            ..fresh
        };
        volumes.push(volume.clone());
        Ok(volume)
    }

    async fn list_volumes(&self, include_destroyed: bool) -> Result<Vec<VolumeSummary>> {
        let volumes = self.volumes.borrow();
        Ok(volumes
            .iter()
            .filter(|volume| include_destroyed || volume.state != VolumeState::Destroyed)
            .cloned()
            .collect())
    }

    async fn resolve(&self, id_or_name: &str) -> Result<VolumeId> {
        let volumes = self.volumes.borrow();
        let matching =
            volumes.iter().filter(|volume| volume.name == id_or_name && volume.state != VolumeState::Destroyed);
        match matching.map(|volume| volume.id).collect::<Vec<_>>()[..] {
            [id] => Ok(id),
            [] => Err(Error::not_found(format!("there is no volume '{id_or_name}'"))),
            _ => Err(Error::invalid(format!("several volumes are named '{id_or_name}'"))),
        }
    }

    async fn volume(&self, id: VolumeId) -> Result<VolumeSummary> {
        self.change(id, |_| Ok(()))
    }

    async fn destroy_volume(&self, id: VolumeId) -> Result<VolumeSummary> {
        self.change(id, |volume| {
            volume.state = VolumeState::Destroyed;
            volume.destroyed_at = Some(NOW);
            volume.purge_after = Some(UnixMillis(NOW.0 + DAY));
            Ok(())
        })
    }

    async fn undelete_volume(&self, id: VolumeId) -> Result<VolumeSummary> {
        self.change(id, |volume| {
            volume.state = VolumeState::Detached;
            (volume.destroyed_at, volume.purge_after) = (None, None);
            Ok(())
        })
    }

    async fn purge(&self) -> Result<Swept> {
        let (mut swept, mut volumes) = (Swept::default(), self.volumes.borrow_mut());
        volumes.retain(|volume| match volume.purge_after {
            Some(after) if after < NOW => {
                swept.purged.push(volume.id);
                false
            }
            after => {
                swept.next_due = swept.next_due.max(after);
                true
            }
        });
        Ok(Swept { objects: swept.purged.len() as u64, ..swept })
    }

    async fn set_durability(&self, id: VolumeId, durability: Durability) -> Result<VolumeSummary> {
        self.change(id, |volume| match volume.state {
            VolumeState::Detached => {
                volume.durability = durability;
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::Busy, format!("{id} is not detached"))),
        })
    }

    async fn check(&self, id: VolumeId, progress: &mut (dyn FnMut(CheckProgress) + Send)) -> Result<CheckReport> {
        self.volume(id).await?;
        progress(CheckProgress { done: 0, total: 0 });
        progress(CheckProgress { done: 3, total: 3 });
        Ok(CheckReport { segments: 3, bytes: ByteLen(25 << 20), problems: self.problems.clone() })
    }

    async fn dump(&self, what: DumpTarget) -> Result<String> {
        Ok(format!("{what:?}"))
    }
}

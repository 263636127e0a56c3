//! What `varve` does straight on the store, without an owner: creating, listing, destroying and bringing back volumes.

use std::path::Path;
use std::sync::Arc;

use crate::admin::purge::{self, UNDELETE_MILLIS};
use crate::admin::{dump, root};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::lineage::PinHolder;
use crate::format::manifest::Manifest;
use crate::keys::KeySource;
use crate::lineage;
use crate::log::Recovered;
use crate::ownership::{self, Loaded};
use crate::seal::{Cipher, Encryption, Wrapping};
use crate::service::{DumpTarget, EncryptionSummary, NewVolume, OwnerSummary, Swept, VolumeState, VolumeSummary};
use crate::settings::SharedSettings;
use crate::store::{self, Store};
use crate::units::{UnixMillis, VolumeId};

/// An opened store.
pub struct Admin {
    pub(crate) store: Arc<dyn Store>,
}

impl Admin {
    /// Opens the store that the settings name. With `create`, a place that is empty becomes a store.
    ///
    /// # Errors
    /// `Invalid`, `NotFound`, `Denied`, `Unsupported`, and what the store says.
    pub async fn open(settings: &SharedSettings, create: bool) -> Result<Self> {
        let opened = store::open_with_regions(settings, create).await?;
        if create {
            root::read_or_create(&*opened.store).await?;
        } else {
            root::read(&*opened.store).await?;
        }
        Ok(Admin::new(opened.store))
    }

    /// What can be done on a store that is open already.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Admin { store }
    }

    /// Creates a volume: one request, and one more where it is to be in another region.
    ///
    /// # Errors
    /// `Invalid` for a region that is not known; what the store says.
    pub async fn create_volume(&self, new: NewVolume) -> Result<VolumeSummary> {
        let elsewhere = lineage::region_to_make_in(&*self.store, self.named_region(&new)).await?;
        let encrypted = new.encrypted;
        let mut manifest = new_manifest(new);
        ownership::prepare_new(&*self.store, &mut manifest, encrypted).await?;
        if let Some(region) = elsewhere {
            self.store.place(manifest.volume, &region);
        }
        ownership::create(&*self.store, manifest).await.map(|loaded| summary(&loaded.manifest))
    }

    /// Lists volumes, sorted by name; also the destroyed ones that can still be brought back, if asked to. Those that are only
    /// being made are not shown.
    ///
    /// # Errors
    /// What the store says; a manifest that cannot be read is an error too, since a list that lacks a volume would mislead.
    pub async fn list_volumes(&self, include_destroyed: bool) -> Result<Vec<VolumeSummary>> {
        let mut volumes = Vec::new();
        for (_, loaded) in ownership::list(&*self.store).await? {
            let manifest = loaded?.manifest;
            if manifest.being_made {
                continue;
            }
            let volume = summary(&manifest);
            let gone = volume.purge_after.is_some_and(|purge| purge < clock::now());
            if !gone && (include_destroyed || volume.destroyed_at.is_none()) {
                volumes.push(volume);
            }
        }
        volumes.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(volumes)
    }

    /// The volume that an id, or a name that only one has, means.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, and what the store says.
    pub async fn resolve(&self, id_or_name: &str) -> Result<VolumeId> {
        if let Ok(id) = id_or_name.parse() {
            return Ok(id);
        }
        if id_or_name.starts_with("vol_") || id_or_name.starts_with("vs_") {
            return id_or_name.parse();
        }
        ownership::resolve_name(&*self.store, id_or_name).await
    }

    /// Looks at a volume.
    ///
    /// # Errors
    /// `NotFound`, and what the store says.
    pub async fn volume(&self, id: VolumeId) -> Result<VolumeSummary> {
        self.load(id).await.map(|loaded| summary(&loaded.manifest))
    }

    /// Destroys a volume that nobody owns. It can be brought back for a day, unless its keys are `shredded`: then what it held is lost at once, also
    /// if it was destroyed before.
    ///
    /// # Errors
    /// `Busy` if somebody owns it, naming the owner; `Invalid` if it is destroyed already, or is to be shredded and is not encrypted.
    pub async fn destroy_volume(&self, id: VolumeId, shredded: bool) -> Result<VolumeSummary> {
        self.change(id, |manifest| {
            if let Some(owner) = &manifest.owner {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "volume {id} is attached by {} (process {}) and is not destroyed: detach it first with 'varve volumes detach {id}'",
                        owner.host, owner.pid
                    ),
                ));
            }
            if shredded {
                shred(manifest)?;
            } else if manifest.destroyed_at.is_some() {
                return Err(Error::invalid(format!("volume {id} is destroyed already")));
            }
            manifest.destroyed_at.get_or_insert_with(clock::now);
            Ok(())
        })
        .await
    }

    /// Brings a destroyed volume back.
    ///
    /// # Errors
    /// `Invalid` if it is not destroyed, or was too long ago.
    pub async fn undelete_volume(&self, id: VolumeId) -> Result<VolumeSummary> {
        self.change(id, |manifest| {
            if manifest.being_made {
                return Err(Error::invalid(format!(
                    "volume {id} is still being made, or its import never ended: there is nothing to bring back"
                )));
            }
            let Some(destroyed_at) = manifest.destroyed_at else {
                return Err(Error::invalid(format!("volume {id} is not destroyed")));
            };
            if destroyed_at.0.saturating_add(UNDELETE_MILLIS) < clock::now().0 {
                return Err(Error::invalid(format!(
                    "volume {id} was destroyed more than 24 hours ago and cannot be brought back"
                )));
            }
            if is_shredded(manifest) {
                return Err(Error::invalid(format!(
                    "the keys of volume {id} were destroyed: nothing can bring back what it held"
                )));
            }
            manifest.destroyed_at = None;
            Ok(())
        })
        .await
    }

    /// Removes for good what was destroyed more than a day ago and nothing refers to, and what crashes left behind.
    ///
    /// # Errors
    /// What the store says to a listing; what could not be removed is in the answer.
    pub async fn purge(&self) -> Result<Swept> {
        purge::sweep(&*self.store, clock::now()).await
    }

    /// Wraps the keys of a volume, which may be in use, with another source. Its data stays as it is.
    ///
    /// # Errors
    /// `Invalid` if it is not encrypted; `Denied` without the key that it is encrypted with; what the source and the store say.
    pub async fn rotate_keys(&self, id: VolumeId, to: &KeySource) -> Result<VolumeSummary> {
        ownership::rotate(&*self.store, id, to).await.map(|loaded| summary(&loaded.manifest))
    }

    /// Opens a write log, wherever it lies, with the key of its volume if that is encrypted.
    ///
    /// # Errors
    /// What the log and the store say.
    pub async fn open_log(&self, path: &Path) -> Result<Recovered> {
        dump::recover_anywhere(&self.store, path).await
    }

    /// Prints an object as a person can read it.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, and what the store says.
    pub async fn dump(&self, target: DumpTarget) -> Result<String> {
        dump::dump(&self.store, target).await
    }

    /// The region that a new volume is to be in. Where the settings do not name that of the store, it is a word for people.
    pub(super) fn named_region<'a>(&self, new: &'a NewVolume) -> Option<&'a str> {
        self.store.region().is_some().then_some(&*new.region)
    }

    async fn load(&self, id: VolumeId) -> Result<Loaded> {
        ownership::load(&*self.store, id).await
    }

    async fn change(
        &self,
        id: VolumeId,
        change: impl Fn(&mut Manifest) -> Result<()> + Send + Sync,
    ) -> Result<VolumeSummary> {
        ownership::change(&*self.store, id, change).await.map(|loaded| summary(&loaded.manifest))
    }
}

/// The manifest of a volume that was never attached: empty, and complete.
pub(super) fn new_manifest(new: NewVolume) -> Manifest {
    let NewVolume { name, size, region, durability, schedule, history_seconds, encrypted: _ } = new;
    let now = clock::now();
    let first = Manifest::first(VolumeId(clock::random_u64()), name, size, now, clock::random_token());
    let mut manifest = Manifest { region, durability, schedule, history_seconds, ..first };
    lineage::note_present(&mut manifest, now);
    manifest
}

/// Destroys the keys of a volume.
fn shred(manifest: &mut Manifest) -> Result<()> {
    let id = manifest.volume;
    let forks = manifest.pins.iter().flat_map(|pin| &pin.holders).filter_map(|holder| match holder {
        PinHolder::Fork { volume, .. } => Some(volume.to_string()),
        PinHolder::Snapshot(_) => None,
    });
    let forks: Vec<String> = forks.collect();
    if !forks.is_empty() {
        return Err(Error::new(
            ErrorKind::Busy,
            format!(
                "the keys of volume {id} are not destroyed: they are also with {}, which were forked from it. Hydrate or shred these first",
                forks.join(", ")
            ),
        ));
    }
    let Some(encryption) = &mut manifest.encryption else {
        return Err(Error::invalid(format!(
            "volume {id} is not encrypted, so there is no key to destroy: without --shred it is destroyed, and its objects are deleted a day later"
        )));
    };
    if encryption.keys.take().is_none() {
        return Err(Error::invalid(format!("the keys of volume {id} are destroyed already")));
    }
    Ok(())
}

/// True if the keys of a volume were destroyed.
pub(super) fn is_shredded(manifest: &Manifest) -> bool {
    manifest.encryption.as_ref().is_some_and(|encryption| encryption.keys.is_none())
}

/// What is said of a volume's encryption: how, and what opens it.
fn describe(encryption: &Encryption) -> EncryptionSummary {
    let (wrapping, key) = match &encryption.wrapping {
        Wrapping::Key { id } => ("key", Some(id.clone())),
        Wrapping::Passphrase { id, .. } => ("passphrase", Some(id.clone())),
        Wrapping::Command => ("command", None),
    };
    let Cipher::Aes256Gcm = encryption.cipher;
    let cipher = "AES-256-GCM".to_owned();
    EncryptionSummary { cipher, wrapping: wrapping.to_owned(), key, shredded: encryption.keys.is_none() }
}

/// A volume as people see it.
pub(crate) fn summary(manifest: &Manifest) -> VolumeSummary {
    let now = clock::now();
    let state = match (manifest.destroyed_at, &manifest.owner) {
        (Some(_), _) => VolumeState::Destroyed,
        (None, Some(_)) => VolumeState::Attached,
        (None, None) => VolumeState::Detached,
    };
    VolumeSummary {
        id: manifest.volume,
        name: manifest.name.clone(),
        region: manifest.region.clone(),
        encryption: manifest.encryption.as_ref().map(describe),
        state,
        size: manifest.size,
        stored_bytes: manifest.stored_bytes,
        epoch: manifest.epoch,
        durability: manifest.durability,
        schedule: manifest.schedule,
        history_seconds: manifest.history_seconds,
        is_hydrating: manifest.hydration.is_some(),
        history_since: lineage::reaches_back_to(manifest, now),
        origin: manifest.origins.first().map(|origin| origin.volume),
        snapshots: lineage::snapshots(manifest).iter().filter(|(record, _)| !record.is_expired(now)).count() as u64,
        created_at: manifest.created_at,
        owner: manifest.owner.as_ref().map(|owner| OwnerSummary {
            host: owner.host.clone(),
            pid: owner.pid,
            control: owner.control.clone(),
            attached_at: owner.attached_at,
        }),
        destroyed_at: manifest.destroyed_at,
        purge_after: manifest.destroyed_at.map(|at| UnixMillis(at.0.saturating_add(UNDELETE_MILLIS))),
    }
}

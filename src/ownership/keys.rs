//! The keys of a volume: opened by what its manifest says, made for new volumes and forks, wrapped anew.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::Manifest;
use crate::keys::{KeySource, Keyring};
use crate::ownership::manifests::{Loaded, load, update};
use crate::ownership::seals;
use crate::seal::{Encryption, Wrapping};
use crate::store::Store;
use crate::units::VolumeId;

/// Opens the keys of a volume, so that its objects, and those of its origins, can be read. No request to the store.
///
/// # Errors
/// `Denied` without the right key; `Damaged` if the manifest names volumes whose keys it does not have, or says what one without
/// the key made up; `NotFound` if its keys were destroyed.
pub async fn unlock(store: &dyn Store, manifest: &Manifest) -> Result<()> {
    let volume = manifest.volume;
    let Some(keyring) = store.keyring().cloned() else {
        return match manifest.encryption {
            None => Ok(()),
            Some(_) => {
                Err(Error::new(ErrorKind::Denied, format!("volume {volume} is encrypted, and there are no keys here")))
            }
        };
    };
    let (encryption, volumes) = (manifest.encryption.clone(), manifest.volumes_read());
    let is_long = encryption.as_ref().is_some_and(|encryption| !keyring.is_open(volume, encryption));
    at_leisure(keyring, is_long, move |keyring| keyring.unlock(volume, encryption.as_ref(), &volumes)).await?;
    match store.key_of(volume)? {
        Some(key) => seals::verify(manifest, &key),
        None => Ok(()),
    }
}

/// Reads the manifest of a volume and opens its keys.
///
/// # Errors
/// As [`load`] and [`unlock`].
pub async fn load_unlocked(store: &dyn Store, volume: VolumeId) -> Result<Loaded> {
    let loaded = load(store, volume).await?;
    unlock(store, &loaded.manifest).await?;
    Ok(loaded)
}

/// As [`change`](super::change), and opens the keys of the volume before anything is changed.
///
/// # Errors
/// As [`change`](super::change) and [`unlock`].
pub async fn change_unlocked(
    store: &dyn Store,
    volume: VolumeId,
    change: impl Fn(&mut Manifest) -> Result<()> + Send + Sync,
) -> Result<Loaded> {
    loop {
        let loaded = load_unlocked(store, volume).await?;
        match super::change_loaded(store, &loaded, &change).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            other => return other,
        }
    }
}

/// Readies the manifest of a volume that is about to be created empty: it gets a key of its own, or is plain.
///
/// # Errors
/// `Invalid` without a source of keys; what the source says.
pub async fn prepare_new(store: &dyn Store, manifest: &mut Manifest, encrypted: bool) -> Result<()> {
    if !encrypted {
        return unlock(store, manifest).await;
    }
    let volume = manifest.volume;
    let keyring = keyring_of(store, volume)?;
    manifest.encryption = Some(at_leisure(keyring, true, move |keyring| keyring.create(volume)).await?);
    Ok(())
}

/// Gives a volume that is about to be created, and whose history begins in `parent`, a key of its own beside those of its origins, if the parent has
/// one.
///
/// # Errors
/// `Denied` if the parent was not unlocked; what a key command says.
pub async fn encrypt_fork(store: &dyn Store, parent: &Manifest, fork: &mut Manifest) -> Result<()> {
    let Some(encryption) = parent.encryption.clone() else { return Ok(()) };
    let (volume, origin) = (fork.volume, parent.volume);
    let keyring = keyring_of(store, volume)?;
    // Else only a command takes long.
    let is_long = encryption.wrapping == Wrapping::Command || !keyring.is_open(origin, &encryption);
    fork.encryption =
        Some(at_leisure(keyring, is_long, move |keyring| keyring.create_fork(volume, origin, &encryption)).await?);
    Ok(())
}

/// The keys of an unlocked volume as they are to be wrapped when it no longer reads any but those that `manifest` names.
///
/// # Errors
/// `Denied` if it was not unlocked; what a key command says.
pub async fn without_origins(store: &dyn Store, manifest: &Manifest) -> Result<Option<Encryption>> {
    let Some(encryption) = manifest.encryption.clone() else { return Ok(None) };
    let (volume, kept) = (manifest.volume, manifest.volumes_read());
    let keyring = keyring_of(store, volume)?;
    let rewrap = move |keyring: &Keyring| keyring.rewrap(volume, &encryption, None, |id| kept.contains(&id));
    let wrapped = at_leisure(keyring, true, rewrap);
    wrapped.await.map(Some)
}

/// Wraps the keys of a volume with another source. Data stays as it is, and the volume may be in use.
///
/// # Errors
/// `Invalid` if the volume is not encrypted; `Denied` without the key that it is encrypted with; what the source and the store say.
pub async fn rotate(store: &dyn Store, volume: VolumeId, to: &KeySource) -> Result<Loaded> {
    loop {
        let loaded = load_unlocked(store, volume).await?;
        let Some(encryption) = loaded.manifest.encryption.clone() else {
            return Err(Error::invalid(format!("volume {volume} is not encrypted: there is no key to wrap anew")));
        };
        let keyring = keyring_of(store, volume)?;
        let (to, kept) = (to.clone(), loaded.manifest.volumes_read());
        let wrapped = at_leisure(keyring, true, move |keyring| {
            keyring.rewrap(volume, &encryption, Some(&to), |id| kept.contains(&id))
        });
        let wrapped = wrapped.await?;
        match update(store, &loaded, |manifest| manifest.encryption = Some(wrapped)).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            other => return other,
        }
    }
}

fn keyring_of(store: &dyn Store, volume: VolumeId) -> Result<Arc<Keyring>> {
    let none = || Error::invalid(format!("volume {volume} cannot be encrypted: there are no keys here"));
    store.keyring().cloned().ok_or_else(none)
}

/// Uses the keyring, on a thread that may wait if that can take long.
async fn at_leisure<T: Send + 'static>(
    keyring: Arc<Keyring>,
    is_long: bool,
    act: impl FnOnce(&Keyring) -> Result<T> + Send + 'static,
) -> Result<T> {
    if !is_long || crate::work::simulated::is_here() {
        return act(&keyring);
    }
    let done = tokio::task::spawn_blocking(move || act(&keyring)).await;
    done.unwrap_or_else(|_| Err(Error::new(ErrorKind::Stopping, "the daemon is stopping")))
}

//! Loading, creating and changing manifests. Nothing else writes one.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::manifest::Manifest;
use crate::limits::PINNED_MANIFEST_BYTES_MAX;
use crate::ownership::seals;
use crate::seal::VolumeKey;
use crate::store::{ByteRange, Condition, ETag, ObjectKey, Store};
use crate::units::VolumeId;

/// Manifests fetched at the same time when all are listed.
const FETCHES_AT_ONCE: usize = 16;

/// A manifest as it was read, and the version to compare with when it is changed.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The manifest.
    pub manifest: Manifest,
    /// Its version in the store.
    pub etag: ETag,
}

/// Reads the manifest of a volume.
///
/// # Errors
/// `NotFound` if there is no such volume; `Damaged`, `Unsupported`, and what the store says.
pub async fn load(store: &dyn Store, volume: VolumeId) -> Result<Loaded> {
    let fetched = match store.get(&ObjectKey::manifest(volume), ByteRange::Full).await {
        Ok(fetched) => fetched,
        Err(error) => {
            let error = Error::from(error);
            return Err(match error.kind() {
                ErrorKind::NotFound => Error::not_found(format!("there is no volume {volume} in {}", store.address())),
                _ => Error::new(error.kind(), format!("cannot read the manifest of {volume}: {error}")),
            });
        }
    };
    let manifest = Manifest::decode(volume, &fetched.bytes)?;
    manifest.elsewhere().for_each(|(other, region)| store.place(other, region));
    Ok(Loaded { manifest, etag: fetched.etag })
}

/// Refuses what only processes of a volume's own region may do: names of regions in a manifest mean what they mean there.
///
/// # Errors
/// `Invalid` if the volume is known to be in another region.
pub fn ensure_here(store: &dyn Store, volume: VolumeId) -> Result<()> {
    store.elsewhere(volume).map_or(Ok(()), |region| {
        let home = store.address();
        Err(Error::invalid(format!(
            "volume {volume} is in the region '{region}', and this is done by a daemon or a 'varve' of that region; the store of this one is {home}"
        )))
    })
}

/// Creates a volume by writing its first manifest.
///
/// # Errors
/// `Conflict` if the id is taken, and what the store says.
pub async fn create(store: &dyn Store, mut manifest: Manifest) -> Result<Loaded> {
    if let Some(key) = key_at_hand(store, &manifest) {
        seals::renew(&mut manifest, &key)?;
    }
    let key = ObjectKey::manifest(manifest.volume);
    let body = Bytes::from(manifest.encode()?);
    let etag = store
        .put(&key, body, Condition::IfAbsent)
        .await
        .map_err(Error::from)
        .context(|| format!("cannot create volume {}", manifest.volume))?;
    Ok(Loaded { manifest, etag })
}

/// The key of an encrypted volume, if this process has opened it.
fn key_at_hand(store: &dyn Store, manifest: &Manifest) -> Option<Arc<VolumeKey>> {
    manifest.encryption.as_ref()?;
    store.key_of(manifest.volume).ok().flatten()
}

/// Swaps in a changed manifest if nobody else changed it since it was loaded.
///
/// # Errors
/// `Conflict` if somebody did; `Invalid` if nobody could read it again, or it has too many snapshots and forks; `Denied` for a change of what an encrypted volume holds or keeps, without its key; what the store says. After an error other than `Conflict` the change may have had effect.
pub async fn update(store: &dyn Store, loaded: &Loaded, change: impl FnOnce(&mut Manifest)) -> Result<Loaded> {
    let mut manifest = loaded.manifest.clone();
    change(&mut manifest);
    match key_at_hand(store, &loaded.manifest) {
        Some(key) => {
            // What somebody made up must not get our seal.
            seals::verify(&loaded.manifest, &key)?;
            seals::renew(&mut manifest, &key)?;
        }
        None if manifest.encryption.is_some() => seals::only_without_content(&loaded.manifest, &manifest)?,
        None => {}
    }
    manifest.generation += 1;
    manifest.nonce = clock::random_token();
    let key = ObjectKey::manifest(manifest.volume);
    let body = Bytes::from(manifest.encode()?);
    let (pinned, before) = (manifest.holder_count(), loaded.manifest.holder_count());
    if pinned > before && body.len() as u64 > PINNED_MANIFEST_BYTES_MAX {
        return Err(Error::invalid(format!(
            "volume {} has {before} snapshots and forks, and its manifest has no room for more: delete some first, or let them expire",
            manifest.volume
        )));
    }
    let etag = store
        .put(&key, body, Condition::IfMatch(loaded.etag.clone()))
        .await
        .map_err(Error::from)
        .context(|| format!("cannot change the manifest of {}", manifest.volume))?;
    Ok(Loaded { manifest, etag })
}

/// Changes a manifest by compare-and-swap, looking again and deciding anew if somebody else was faster.
///
/// # Errors
/// What `change` says; `NotFound`, and what the store says. After an error of the store the change may have had effect.
pub async fn change(
    store: &dyn Store,
    volume: VolumeId,
    change: impl Fn(&mut Manifest) -> Result<()> + Send + Sync,
) -> Result<Loaded> {
    loop {
        let loaded = load(store, volume).await?;
        match change_loaded(store, &loaded, &change).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            other => return other,
        }
    }
}

/// As [`change`], but begins with a manifest that is known already, and does not look again.
///
/// # Errors
/// `Conflict` if somebody else changed it; else as [`change`].
pub async fn change_loaded(
    store: &dyn Store,
    loaded: &Loaded,
    change: impl FnOnce(&mut Manifest) -> Result<()> + Send,
) -> Result<Loaded> {
    let mut changed = loaded.manifest.clone();
    change(&mut changed)?;
    update(store, loaded, |manifest| *manifest = changed).await
}

/// The volumes of which the store has objects, but no manifest.
///
/// # Errors
/// What the store says.
pub async fn leftovers(store: &dyn Store) -> Result<Vec<VolumeId>> {
    let found = volumes_found(store).await?;
    Ok(found.into_iter().filter(|found| !found.has_manifest).map(|found| found.volume).collect())
}

/// A volume that a listing showed objects of.
struct Found {
    volume: VolumeId,
    has_manifest: bool,
}

/// Finds all volumes. A volume with many objects is left after one page: its manifest comes first among its names.
async fn volumes_found(store: &dyn Store) -> Result<Vec<Found>> {
    let mut volumes: Vec<Found> = Vec::new();
    let mut after = None;
    loop {
        let page = store.list(&ObjectKey::volumes(), after.as_ref()).await?;
        for object in &page.objects {
            let Some(volume) = object.key.parse_volume() else { continue };
            if volumes.last().is_none_or(|last| last.volume != volume) {
                volumes.push(Found { volume, has_manifest: object.key.parse_manifest().is_some() });
            }
        }
        match page.next {
            Some(next) => after = Some(next.parse_volume().map_or(next, ObjectKey::behind_volume)),
            None => return Ok(volumes),
        }
    }
}

/// Reads all manifests of a store. One that cannot be read is returned as its error.
///
/// # Errors
/// What the store says to the listing.
pub async fn list(store: &dyn Store) -> Result<Vec<(VolumeId, Result<Loaded>)>> {
    let found = volumes_found(store).await?.into_iter().filter(|found| found.has_manifest).map(|found| found.volume);
    let fetches = found.into_iter().map(|volume| async move { Ok::<_, Error>((volume, load(store, volume).await)) });
    stream::iter(fetches).buffered(FETCHES_AT_ONCE).try_collect().await
}

/// The volume that a name means, if only one that is not destroyed has it.
///
/// # Errors
/// `NotFound`; `Invalid` if several have it, naming them; what the store says.
pub async fn resolve_name(store: &dyn Store, name: &str) -> Result<VolumeId> {
    let mut found = Vec::new();
    for (id, loaded) in list(store).await? {
        match loaded {
            Ok(loaded) if loaded.manifest.name == name && loaded.manifest.is_shown() => found.push(id),
            Ok(_) => {}
            Err(error) => tracing::warn!(volume = %id, %error, "passed over while looking for a name"),
        }
    }
    only_named(store, name, found)
}

/// The one volume of those that have a name.
///
/// # Errors
/// `NotFound`; `Invalid` if there are several, naming them.
pub fn only_named(store: &dyn Store, name: &str, named: Vec<VolumeId>) -> Result<VolumeId> {
    let shown = name.escape_default();
    match named[..] {
        [] => Err(Error::not_found(format!("there is no volume '{shown}' in {}", store.address()))),
        [id] => Ok(id),
        _ => {
            let ids: Vec<String> = named.iter().map(ToString::to_string).collect();
            Err(Error::invalid(format!("several volumes are named '{shown}': use the id of one: {}", ids.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::lineage::{Moment, Pin, PinHolder, SegmentRun};
    use crate::store::MemoryStore;
    use crate::units::{ByteLen, Epoch, SegmentNumber, Token, UnixMillis};

    const VOLUME: VolumeId = VolumeId(7);

    /// A pin of so many forks, of a moment that replays so many segments.
    fn pin(manifest: &Manifest, forks: u64, segments: u64) -> Pin {
        let run = SegmentRun { volume: VOLUME, epoch: Epoch(1), first: SegmentNumber(0), count: segments };
        let moment = Moment { replay: vec![run], ..manifest.moment() };
        let fork = |number| PinHolder::Fork {
            volume: VolumeId(number),
            region: None,
            created_at: UnixMillis(1_700_000_000_000),
        };
        Pin { moment, holders: (0..forks).map(fork).collect(), seal: None }
    }

    async fn created() -> (MemoryStore, Loaded) {
        let store = MemoryStore::new();
        let manifest = Manifest::first(VOLUME, "disk".into(), ByteLen(1 << 30), UnixMillis(0), Token(1));
        let loaded = create(&store, manifest).await.unwrap();
        (store, loaded)
    }

    #[tokio::test]
    async fn a_manifest_that_nobody_could_read_is_not_written() {
        let (store, loaded) = created().await;
        let refused = update(&store, &loaded, |manifest| manifest.pins.push(pin(manifest, 1, (1 << 16) + 1))).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
        let refused = update(&store, &loaded, |manifest| manifest.name = "n".repeat(17 << 20)).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(load(&store, VOLUME).await.unwrap().manifest, loaded.manifest);
    }

    #[tokio::test]
    async fn snapshots_and_forks_leave_room_for_the_owner() {
        let first = Manifest::first(VOLUME, "disk".into(), ByteLen(1 << 30), UnixMillis(0), Token(1));
        let with = |forks| Manifest { pins: vec![pin(&first, forks, 1)], ..first.clone() };
        let length = |forks| with(forks).encode().unwrap().len() as u64;
        let each = (length(2000) - length(1000)) / 1000;
        let store = MemoryStore::new();
        let loaded = create(&store, with(PINNED_MANIFEST_BYTES_MAX / each + 2000)).await.unwrap();
        let more = |manifest: &mut Manifest| manifest.pins.push(pin(&first, 1, 2));
        let refused = update(&store, &loaded, more).await.unwrap_err();
        assert!(refused.kind() == ErrorKind::Invalid && refused.message().contains("no room for more"), "{refused}");
        let loaded = update(&store, &loaded, |manifest| manifest.sequence.0 += 1).await.unwrap();
        let loaded = update(&store, &loaded, |manifest| manifest.pins[0].holders.truncate(1000)).await.unwrap();
        update(&store, &loaded, more).await.unwrap();
    }
}

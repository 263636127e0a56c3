//! The objects of snapshots, and the pins that make them count.

use bytes::Bytes;
use futures_util::future::join_all;

use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::lineage::{Moment, SnapshotObject, SnapshotRecord};
use crate::lineage::pins;
use crate::ownership::{self, Loaded};
use crate::store::{ByteRange, Condition, ObjectKey, Store, StoreErrorKind};
use crate::units::{SnapshotId, UnixMillis};

/// A snapshot that exists, and its volume.
#[derive(Clone, Debug)]
pub struct FoundSnapshot {
    /// What it says of itself.
    pub record: SnapshotRecord,
    /// Its content.
    pub moment: Moment,
    /// The volume.
    pub volume: Loaded,
}

/// A new snapshot's record.
pub fn record(name: Option<String>, retention_seconds: Option<u64>, scheduled: bool) -> SnapshotRecord {
    let created_at = clock::now();
    let expires_at =
        retention_seconds.map(|seconds| UnixMillis(created_at.0.saturating_add(seconds.saturating_mul(1000))));
    SnapshotRecord { id: SnapshotId(clock::random_u64()), name, created_at, expires_at, scheduled }
}

/// Writes the object of a snapshot that is about to be pinned: one request.
///
/// # Errors
/// What the store says.
pub async fn put_object(store: &dyn Store, object: &SnapshotObject) -> Result<()> {
    let key = ObjectKey::snapshot(object.snapshot.id);
    let put = store.put(&key, Bytes::from(object.encode()?), Condition::IfAbsent).await.map_err(Error::from);
    put.map(drop).context(|| format!("cannot write snapshot {}", object.snapshot.id))
}

/// Finds a snapshot by its id: two requests.
///
/// # Errors
/// `NotFound` if there is none, or none any more; `Damaged`, `Unsupported`, and what the store says.
pub async fn find(store: &dyn Store, id: SnapshotId) -> Result<FoundSnapshot> {
    let missing = || Error::not_found(format!("there is no snapshot {id} in {}", store.address()));
    let object = match store.get(&ObjectKey::snapshot(id), ByteRange::Full).await {
        Ok(fetched) => SnapshotObject::decode(id, &fetched.bytes)?,
        Err(error) if error.kind == StoreErrorKind::NotFound => return Err(missing()),
        Err(error) => return Err(error.into()),
    };
    let volume = match ownership::load(store, object.volume).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(missing()),
        other => other?,
    };
    let found = pins::find_snapshot(&volume.manifest, id, clock::now());
    let (record, moment) = found.map(|(record, moment)| (record.clone(), moment.clone())).ok_or_else(missing)?;
    Ok(FoundSnapshot { record, moment, volume })
}

/// Destroys a snapshot. Volumes that were made from it keep what they need.
///
/// # Errors
/// `NotFound`, and what the store says.
pub async fn destroy(store: &dyn Store, id: SnapshotId) -> Result<FoundSnapshot> {
    let found = find(store, id).await?;
    let volume = found.volume.manifest.volume;
    ownership::change(store, volume, |manifest| {
        // Somebody else may have destroyed it meanwhile, which is as good.
        pins::unpin_snapshots(manifest, &[id]);
        Ok(())
    })
    .await?;
    delete_objects(store, &[id]).await;
    Ok(found)
}

/// Lets go of the snapshots whose time is over, and returns the manifest without them. No request if there is none.
///
/// # Errors
/// `Conflict` if somebody else changed the manifest; what the store says.
pub async fn forget_expired(store: &dyn Store, loaded: Loaded, now: UnixMillis) -> Result<Loaded> {
    let expired = pins::expired(&loaded.manifest, now);
    if expired.is_empty() {
        return Ok(loaded);
    }
    let updated = ownership::update(store, &loaded, |manifest| pins::unpin_snapshots(manifest, &expired)).await?;
    tracing::info!(volume = %updated.manifest.volume, count = expired.len(), "expired snapshots are gone");
    delete_objects(store, &expired).await;
    Ok(updated)
}

/// Deletes the objects of snapshots that nothing pins any more, and their traces. What cannot be deleted is left for `check` to name.
pub async fn delete_objects(store: &dyn Store, ids: &[SnapshotId]) {
    let keys = ids.iter().flat_map(|id| [ObjectKey::snapshot(*id), ObjectKey::trace(*id)]);
    let deletions = keys.map(|key| async move { (store.delete(&key).await, key) });
    for (deleted, object) in join_all(deletions).await {
        if let Err(error) = deleted {
            tracing::warn!(%object, %error, "an object of a destroyed snapshot could not be deleted");
        }
    }
}

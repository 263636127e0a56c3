//! Traces beside snapshots: what was read first of a volume before each was taken. Hints: whoever cannot have one goes without.

use bytes::Bytes;

use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::manifest::Manifest;
use crate::format::trace::{TRACE_BYTES_MAX, Trace};
use crate::lineage::pins;
use crate::ownership;
use crate::seal::Salt;
use crate::store::{ByteRange, Condition, ObjectKey, Store, StoreErrorKind};
use crate::units::{Sequence, SnapshotId, VolumeId};

/// Snapshots of a volume that are asked for their trace, at most: those that were taken while nobody had the volume have none.
const TRIES: usize = 4;

/// Writes the trace beside a snapshot that is about to be pinned: one request.
///
/// # Errors
/// What the store says.
pub async fn put_trace(store: &dyn Store, trace: &Trace) -> Result<()> {
    let key = ObjectKey::trace(trace.snapshot);
    let body = match store.key_of(trace.volume)? {
        Some(sealed_with) => trace.encode_sealed(&sealed_with, Salt(clock::random_token().0))?,
        None => trace.encode()?,
    };
    let put = store.put(&key, Bytes::from(body), Condition::IfAbsent).await.map_err(Error::from);
    put.map(drop).context(|| format!("cannot write the trace of {}", trace.snapshot))
}

/// The trace beside a snapshot: one request.
///
/// # Errors
/// `NotFound` if there is none; `Damaged`, `Unsupported`, and what the store says.
pub async fn trace(store: &dyn Store, id: SnapshotId) -> Result<Trace> {
    trace_of(store, id, None).await
}

/// As [`trace`]; if it is known which volume the snapshot is of, it must be that one's.
async fn trace_of(store: &dyn Store, id: SnapshotId, of: Option<VolumeId>) -> Result<Trace> {
    // What is longer than any trace does not begin as one then.
    match store.get(&ObjectKey::trace(id), ByteRange::Suffix(TRACE_BYTES_MAX)).await {
        Ok(fetched) => open(store, id, of, &fetched.bytes).await,
        Err(error) if error.kind == StoreErrorKind::NotFound => Err(Error::not_found(format!(
            "there is no trace of {id} in {}: one is kept when a snapshot is taken of a volume that was read since it was attached",
            store.address()
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Reads a trace, which may be that of any volume: its keys are looked for.
async fn open(store: &dyn Store, id: SnapshotId, of: Option<VolumeId>, bytes: &[u8]) -> Result<Trace> {
    let (volume, sealed) = Trace::peek(id, bytes)?;
    if of.is_some_and(|of| of != volume) {
        return Err(Error::damaged(format!("the trace of {id} is damaged: it is of another volume, {volume}")));
    }
    if store.key_of(volume).is_err() {
        ownership::unlock(store, &ownership::load(store, volume).await?.manifest).await?;
    }
    match (sealed, store.key_of(volume)?) {
        (None, None) => Trace::decode(id, bytes),
        (Some(item), Some(key)) => Trace::decode_sealed(id, item, &key),
        (sealed, _) => {
            let (trace, volume) = if sealed.is_some() { ("sealed", "is not") } else { ("not sealed", "is") };
            Err(Error::damaged(format!("the trace of {id} is damaged: it is {trace}, and its volume {volume}")))
        }
    }
}

/// What will probably be read first of a volume: the trace of its newest snapshot, or of the newest one of its origin that its history
/// includes. No further up, so that depth costs nothing. No request for a volume that has neither.
///
/// # Errors
/// What the store says.
pub async fn trace_for(store: &dyn Store, manifest: &Manifest) -> Result<Option<Trace>> {
    if let Some(found) = newest_trace(store, manifest, Sequence(u64::MAX)).await? {
        return Ok(Some(found));
    }
    let Some(origin) = manifest.origins.first() else { return Ok(None) };
    match ownership::load(store, origin.volume).await {
        Ok(parent) => newest_trace(store, &parent.manifest, origin.sequence).await,
        // It may be somewhere else, or damaged, which is for others to say.
        Err(error) if error.is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The newest trace of a volume's snapshots up to a place of its sequence.
async fn newest_trace(store: &dyn Store, manifest: &Manifest, up_to: Sequence) -> Result<Option<Trace>> {
    let snapshots = pins::snapshots(manifest).into_iter().rev();
    for (record, _) in snapshots.filter(|(_, moment)| moment.sequence <= up_to).take(TRIES) {
        match trace_of(store, record.id, Some(manifest.volume)).await {
            Ok(trace) => return Ok(Some(trace)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported) => {
                tracing::warn!(%error, "a trace is of no use");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

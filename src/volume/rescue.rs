//! Write logs that are not part of a volume's history any more: another owner took the volume over while this host
//! still held records that were not in the store. They are never replayed and never dropped: the log is kept aside under
//! another name and reported. So is a log of which nothing can be read any more, once nobody can need it or somebody gives it up.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::log::{RecordKind, Recovered};
use crate::ownership::Attachment;
use crate::segment::fetch_index;
use crate::service::RescuedLog;
use crate::store::ObjectKey;
use crate::units::{ByteLen, Sequence, VolumeId};
use crate::volume::open::log_path;
use crate::volume::shared::Shared;

/// Puts a foreign log out of the way. Returns what only it holds; `None` if that is nothing, and then it is removed.
///
/// # Errors
/// What the store or the local disk say.
pub async fn keep_aside(shared: &Arc<Shared>, volume: VolumeId, log: Recovered) -> Result<Option<RescuedLog>> {
    let identity = log.identity();
    let stored = stored_by(shared, volume, identity.epoch).await?;
    let (mut records, mut bytes) = (0, 0);
    for view in log.records() {
        let view = view?;
        if view.place.sequence > stored && matches!(view.kind, RecordKind::Write | RecordKind::Zero) {
            records += 1;
            if view.kind == RecordKind::Write {
                bytes += view.range.count.bytes().0;
            }
        }
    }
    let path = log_path(shared, volume);
    drop(log);
    if records == 0 {
        shared.disk.remove(&path).context(|| format!("cannot remove the old log {}", path.display()))?;
        return Ok(None);
    }
    let aside = move_aside(shared, &path, &format!("rescued-{:010}-{}.log", identity.epoch.0, identity.token))?;
    tracing::warn!(
        %volume, records, bytes, path = %aside.display(),
        "another owner took this volume over; what only this host's log holds is kept aside and is not part of the volume"
    );
    Ok(Some(RescuedLog {
        path: aside.display().to_string(),
        records,
        bytes: ByteLen(bytes),
        since: identity.attached_at,
    }))
}

/// Puts a log out of the way that cannot be read, because of `why`, when `attachment` begins.
///
/// # Errors
/// What the local disk says.
pub fn keep_unread_aside(shared: &Shared, volume: VolumeId, attachment: &Attachment, why: &Error) -> Result<()> {
    let name = format!("unreadable-{:010}-{}.log", attachment.epoch.0, attachment.token);
    let aside = move_aside(shared, &log_path(shared, volume), &name)?;
    tracing::error!(
        %volume, error = %why, path = %aside.display(),
        "an old write log cannot be read and is kept aside; the volume goes on from what the store holds"
    );
    Ok(())
}

fn move_aside(shared: &Shared, path: &Path, name: &str) -> Result<PathBuf> {
    let directory = path.parent().unwrap_or(path);
    let aside = directory.join(name);
    shared.disk.rename(path, &aside).context(|| format!("cannot rename {} to {}", path.display(), aside.display()))?;
    shared.disk.sync_directory(directory).context(|| format!("cannot sync {}", directory.display()))?;
    Ok(aside)
}

/// The last place of the sequence that an epoch which is over has in the store.
async fn stored_by(shared: &Arc<Shared>, volume: VolumeId, epoch: crate::units::Epoch) -> Result<Sequence> {
    let prefix = ObjectKey::epoch_segments(volume, epoch);
    let (mut after, mut newest) = (None, None);
    loop {
        let page = shared.store.list(&prefix, after.as_ref()).await?;
        newest = page.objects.last().and_then(|object| object.key.parse_segment()).or(newest);
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let Some(id) = newest else { return Ok(Sequence(0)) };
    // The newest is the seal, which says where its epoch ended; a listing may lack it, and then it is the last segment.
    match fetch_index(&*shared.store, id).await {
        Ok(index) => Ok(index.header.last),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Sequence(0)),
        Err(error) => Err(error),
    }
}

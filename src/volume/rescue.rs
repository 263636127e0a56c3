//! Write logs that are not part of a volume's history any more: another owner took the volume over while this host
//! still held records that were not in the store. They are never replayed and never dropped: the log is kept aside under
//! another name and reported. So is a log of which nothing can be read any more, once nobody can need it or somebody gives it up.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Context, Error, Result};
use crate::limits::UPLOADS_AT_ONCE;
use crate::log::{Ending, RecordKind, Recovered};
use crate::ownership::Attachment;
use crate::segment::fetch_index;
use crate::service::RescuedLog;
use crate::store::ObjectKey;
use crate::units::{ByteLen, Epoch, SegmentId, Sequence, VolumeId};
use crate::volume::open::log_path;
use crate::volume::shared::Shared;

/// Puts a foreign log out of the way, whose epoch is sealed by now. Returns what only it holds; `None` if that is nothing, and then it is removed.
/// One that is damaged may hold more than can be read, and is kept in any case.
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
    let damaged = match log.ending() {
        Ending::Damaged { records_beyond, .. } => Some(records_beyond),
        Ending::Clean | Ending::Torn { .. } => None,
    };
    records += damaged.unwrap_or(0);
    let path = log_path(shared, volume);
    drop(log);
    if records == 0 && damaged.is_none() {
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

/// The last place of the sequence that an epoch which is over has in the store: its seal says it. What lies behind the seal was under way when
/// that was put there, and is no part of the history.
async fn stored_by(shared: &Arc<Shared>, volume: VolumeId, epoch: Epoch) -> Result<Sequence> {
    let newest = newest_of(shared, volume, epoch).await?;
    let Some(last) = newest.back().map(|id| id.number.0) else { return Ok(Sequence(0)) };
    for id in newest.into_iter().rev() {
        let index = match fetch_index(&*shared.store, id).await {
            Ok(index) => index,
            Err(error) if error.is_damage() => continue,
            Err(error) => return Err(error),
        };
        // A listing may lack the seal. What is so far from the newest had taken effect before that was begun.
        if index.header.seal || id.number.0 + UPLOADS_AT_ONCE as u64 <= last {
            return Ok(index.header.last);
        }
    }
    // Less than is there, so that more is kept than must be.
    Ok(Sequence(0))
}

/// The newest objects of an epoch, the last of them last: so many that the seal is among them, unless the listing lacks it.
async fn newest_of(shared: &Arc<Shared>, volume: VolumeId, epoch: Epoch) -> Result<VecDeque<SegmentId>> {
    let prefix = ObjectKey::epoch_segments(volume, epoch);
    let (mut after, mut newest) = (None, VecDeque::new());
    loop {
        let page = shared.store.list(&prefix, after.as_ref()).await?;
        newest.extend(page.objects.iter().filter_map(|object| object.key.parse_segment()));
        newest.drain(..newest.len().saturating_sub(UPLOADS_AT_ONCE + 1));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(newest),
        }
    }
}

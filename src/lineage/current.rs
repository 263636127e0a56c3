//! The newest moment of a volume as the store shows it, whether or not somebody owns the volume. Reads only; nothing is sealed, so while
//! the volume is in use it is one moment of the near past.

use std::collections::BTreeMap;

use futures_util::stream::{self, StreamExt};

use crate::error::Result;
use crate::format::lineage::{Moment, push_segment};
use crate::format::manifest::{Manifest, Position};
use crate::format::segment::SegmentHeader;
use crate::segment::fetch_index;
use crate::store::{ObjectKey, Store, list_all};
use crate::units::{Epoch, SegmentId, SegmentNumber, VolumeId};

/// Indexes fetched at the same time.
const FETCHES_AT_ONCE: usize = 32;

/// The newest moment that the store holds of a volume. No request if it was detached in good order; else a listing of what follows
/// its checkpoint, and one request for each segment there.
///
/// # Errors
/// `Damaged`, and what the store says.
pub async fn current_moment(store: &dyn Store, manifest: &Manifest) -> Result<Moment> {
    let mut moment = manifest.moment();
    if manifest.complete {
        return Ok(moment);
    }
    for (epoch, ids) in segments_from(store, manifest.volume, manifest.replay_from).await? {
        let fetches = ids.into_iter().map(|id| fetch_index(store, id));
        let mut indexes = stream::iter(fetches).buffered(FETCHES_AT_ONCE);
        while let Some(index) = indexes.next().await {
            let SegmentHeader { id, seal, last, .. } = index?.header;
            moment.sequence = moment.sequence.max(last);
            moment.position = Position { epoch, number: if seal { id.number } else { id.number.next() } };
            // What lies behind a seal was put by an owner that had been put out, and is not part of the history.
            if seal {
                break;
            }
            push_segment(&mut moment.replay, id);
        }
    }
    Ok(moment)
}

/// By epoch, the segments of a volume from a position on that follow each other without a hole: what lies behind a hole is not part of the
/// history yet.
pub(super) async fn segments_from(
    store: &dyn Store,
    volume: VolumeId,
    from: Position,
) -> Result<BTreeMap<Epoch, Vec<SegmentId>>> {
    let mut epochs: BTreeMap<Epoch, Vec<SegmentId>> = BTreeMap::new();
    for object in list_all(store, &ObjectKey::segments(volume)).await? {
        let Some(id) = object.key.parse_segment().filter(|id| (id.epoch, id.number) >= (from.epoch, from.number))
        else {
            continue;
        };
        let ids = epochs.entry(id.epoch).or_default();
        let first = if id.epoch == from.epoch { from.number } else { SegmentNumber(0) };
        let expected = ids.last().map_or(first, |last| last.number.next());
        if id.number == expected {
            ids.push(id);
        }
    }
    Ok(epochs)
}

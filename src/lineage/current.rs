//! The newest moment of a volume as the store shows it, whether or not somebody owns the volume. Reads only; nothing is sealed, so while
//! the volume is in use it is one moment of the near past.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::format::lineage::{Moment, push_segment};
use crate::format::manifest::{Manifest, Position};
use crate::segment::fetch_index;
use crate::store::{Listed, ObjectKey, Store};
use crate::units::{Epoch, SegmentId, SegmentNumber};

/// The objects of a store whose names begin with `prefix`.
///
/// # Errors
/// What the store says.
pub async fn list_all(store: &dyn Store, prefix: &ObjectKey) -> Result<Vec<Listed>> {
    let mut objects = Vec::new();
    let mut after = None;
    loop {
        let page = store.list(prefix, after.as_ref()).await?;
        objects.extend(page.objects);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(objects),
        }
    }
}

/// The newest moment that the store holds of a volume. No request if it was detached in good order; else a listing of what follows
/// its checkpoint, and one request for each epoch in it.
///
/// # Errors
/// `Damaged`, and what the store says.
pub async fn current_moment(store: &dyn Store, manifest: &Manifest) -> Result<Moment> {
    let mut moment = manifest.moment();
    if manifest.complete {
        return Ok(moment);
    }
    for (epoch, ids) in segments_behind_checkpoint(store, manifest).await? {
        let Some(last) = ids.last() else { continue };
        // The last object of an epoch that is over is its seal; both say how far the epoch came.
        let index = fetch_index(store, *last).await?;
        let data = if index.header.seal { &ids[..ids.len() - 1] } else { &ids[..] };
        data.iter().for_each(|id| push_segment(&mut moment.replay, *id));
        moment.sequence = moment.sequence.max(index.header.last);
        moment.position = Position { epoch, number: data.last().map_or(last.number, |id| id.number.next()) };
    }
    Ok(moment)
}

/// By epoch, the segments behind the checkpoint that follow each other without a hole: what lies behind a hole is not part of the
/// history yet.
async fn segments_behind_checkpoint(store: &dyn Store, manifest: &Manifest) -> Result<BTreeMap<Epoch, Vec<SegmentId>>> {
    let from = manifest.replay_from;
    let mut epochs: BTreeMap<Epoch, Vec<SegmentId>> = BTreeMap::new();
    for object in list_all(store, &ObjectKey::segments(manifest.volume)).await? {
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

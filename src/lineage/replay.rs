//! Fetching what is to be replayed over a checkpoint.

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::error::{Error, ErrorKind, Result};
use crate::format::lineage::SegmentRun;
use crate::format::segment::SegmentIndex;
use crate::segment::fetch_index;
use crate::store::Store;
use crate::units::SegmentId;

/// Indexes fetched at the same time: all of an ordinary moment, so that it costs one round trip.
const FETCHES_AT_ONCE: usize = 128;

/// The indexes of the segments of `runs`, in order: one round trip, however many.
///
/// # Errors
/// `Damaged` if one is missing or is a seal, and what the store says.
pub async fn replayed_indexes(store: &dyn Store, runs: &[SegmentRun]) -> Result<Vec<SegmentIndex>> {
    let ids: Vec<SegmentId> = runs.iter().flat_map(|run| run.ids()).collect();
    let fetches = ids.into_iter().map(|id| replayed_index(store, id));
    stream::iter(fetches).buffered(FETCHES_AT_ONCE).try_collect().await
}

async fn replayed_index(store: &dyn Store, id: SegmentId) -> Result<SegmentIndex> {
    match fetch_index(store, id).await {
        Ok(index) if index.header.seal => Err(Error::damaged(format!("segment {id} is a seal where data should be"))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Error::damaged(format!("segment {id}, which a snapshot or fork needs, is missing in the store")))
        }
        other => other,
    }
}

//! Reading frames for those who copy them elsewhere: through the cache, and without a trace in it, so that copying never pushes out
//! what somebody reads.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

use crate::error::{Context, Result};
use crate::format::segment::{FrameEntry, SegmentIndex};
use crate::segment::fetch_frames;
use crate::units::FrameId;
use crate::volume::fetch::{group_frames, open_fetched};
use crate::volume::shared::Shared;

/// So much that nobody needs is read rather than asking the store twice.
const GAP_BYTES_MAX: u64 = 512 << 10;
/// Longest request, in bytes as stored: some of them are in memory as a whole.
const FETCH_BYTES_MAX: u64 = 4 << 20;
/// Requests at the same time.
const FETCHES_AT_ONCE: usize = 4;

/// A frame that was read aside.
pub struct AsideFrame {
    /// Its number in the segment.
    pub number: u32,
    /// Its blocks.
    pub plain: Bytes,
    /// True if the cache had it: somebody reads it.
    pub was_cached: bool,
}

/// The frames of a segment with these numbers, which are in order, each once.
///
/// # Errors
/// `Damaged`, and what the store says.
pub async fn frames_aside(shared: &Arc<Shared>, index: &SegmentIndex, numbers: &[u32]) -> Result<Vec<AsideFrame>> {
    let (mut found, mut missing) = (Vec::with_capacity(numbers.len()), Vec::new());
    for &number in numbers {
        let Some(entry) = index.frames.get(number as usize).copied() else { continue };
        match cached(shared, index, number, &entry) {
            Some(plain) => found.push(AsideFrame { number, plain, was_cached: true }),
            None => missing.push((number, entry)),
        }
    }
    let groups = group_frames(missing, |(_, entry)| *entry, GAP_BYTES_MAX, FETCH_BYTES_MAX);
    let fetches = groups.into_iter().map(|group| fetched(shared, index, group));
    let mut fetches = stream::iter(fetches).buffer_unordered(FETCHES_AT_ONCE);
    while let Some(frames) = fetches.next().await {
        found.extend(frames?);
    }
    found.sort_unstable_by_key(|frame| frame.number);
    Ok(found)
}

fn cached(shared: &Shared, index: &SegmentIndex, number: u32, entry: &FrameEntry) -> Option<Bytes> {
    let segment = index.header.id;
    let id = FrameId { segment, frame: number };
    if !shared.cache.contains(id) {
        return None;
    }
    shared.cache.get(id).or_else(|| shared.open_frame(segment, number, entry, &shared.cache.read_stored(id)?).ok())
}

async fn fetched(shared: &Shared, index: &SegmentIndex, group: Vec<(u32, FrameEntry)>) -> Result<Vec<AsideFrame>> {
    let segment = index.header.id;
    let entries: Vec<FrameEntry> = group.iter().map(|(_, entry)| *entry).collect();
    let fetching = fetch_frames(&*shared.store, segment, &entries).await;
    let stored = fetching.context(|| format!("cannot read segment {segment}"))?;
    let mut frames = Vec::with_capacity(group.len());
    for ((number, entry), stored) in group.into_iter().zip(stored) {
        let (plain, _) = open_fetched(shared, segment, number, &entry, stored).await?;
        frames.push(AsideFrame { number, plain, was_cached: false });
    }
    Ok(frames)
}

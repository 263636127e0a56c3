//! Reading frames for those who copy them elsewhere: through the cache, and without a trace in it, so that copying never pushes out
//! what somebody reads.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Context, Result};
use crate::format::segment::{FrameEntry, SegmentIndex};
use crate::segment::{fetch_frames, open_frame};
use crate::units::FrameId;
use crate::volume::shared::Shared;

/// Longest range request, in bytes as stored.
const FETCH_BYTES_MAX: u64 = 4 << 20;

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
    for group in missing.chunk_by(|a, b| a.0 + 1 == b.0) {
        let mut rest = group;
        while let Some((_, first)) = rest.first() {
            let fits = |(_, entry): &&(u32, FrameEntry)| {
                u64::from(entry.offset) + u64::from(entry.stored_length) - u64::from(first.offset) <= FETCH_BYTES_MAX
            };
            let count = rest.iter().take_while(fits).count().max(1);
            found.extend(fetched(shared, index, &rest[..count]).await?);
            rest = &rest[count..];
        }
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
    shared.cache.get(id).or_else(|| open_frame(segment, number, entry, &shared.cache.read_stored(id)?).ok())
}

async fn fetched(shared: &Shared, index: &SegmentIndex, group: &[(u32, FrameEntry)]) -> Result<Vec<AsideFrame>> {
    let segment = index.header.id;
    let entries: Vec<FrameEntry> = group.iter().map(|(_, entry)| *entry).collect();
    let fetching = fetch_frames(&*shared.store, segment, &entries).await;
    let stored = fetching.context(|| format!("cannot read segment {segment}"))?;
    let mut frames = Vec::with_capacity(group.len());
    for ((number, entry), stored) in group.iter().zip(stored) {
        let plain = match open_frame(segment, *number, entry, &stored) {
            Ok(plain) => plain,
            Err(_) => {
                tracing::warn!(%segment, frame = number, "fetching a damaged frame again");
                let again = fetch_frames(&*shared.store, segment, &[*entry]).await?.pop().unwrap_or_default();
                open_frame(segment, *number, entry, &again)?
            }
        };
        frames.push(AsideFrame { number: *number, plain, was_cached: false });
    }
    Ok(frames)
}

//! From places in segments to blocks: through the memory and disk parts of the cache, or from the store.
//!
//! One fetch per missing frame however many ask (the cache's claims); missing neighbours become one range request. Every
//! frame is verified before it is handed out. A frame that is damaged is fetched once more, then it is an error for just
//! those who need it.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::quality::FixedState;
use futures_util::future::join_all;
use quick_cache::sync::DefaultLifecycle;

use crate::cache::{Claim, Lead};
use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::segment::{FrameEntry, IndexSeal, SegmentIndex, announced_length, encode_tail};
use crate::limits::FRAME_BLOCKS;
use crate::map::SegmentPlace;
use crate::seal::{ItemPlace, Salt};
use crate::segment::{fetch_frames, fetch_index, parse_object_tail};
use crate::units::{BLOCK_SIZE, ByteLen, FrameId, SegmentId};
use crate::volume::shared::{IndexWeight, Shared};

/// Longest range request for frames of one segment, in bytes as stored.
pub const FETCH_BYTES_MAX: u64 = 4 << 20;

/// Indexes of segments in memory, weighed by their size.
pub type SegmentIndexCache = quick_cache::sync::Cache<SegmentId, Arc<SegmentIndex>, IndexWeight, FixedState>;

/// An empty one that keeps to `budget`. Its hashes are the same in every process: what is pushed out depends on what was asked for alone.
pub fn new_segment_index_cache(budget: ByteLen) -> SegmentIndexCache {
    SegmentIndexCache::with(1024, budget.0, IndexWeight, FixedState::default(), DefaultLifecycle::default())
}

/// A run of blocks in a segment and where they go.
pub struct Piece<'a> {
    /// Where they lie.
    pub place: SegmentPlace,
    /// Where their bytes go: a whole number of blocks.
    pub buffer: &'a mut [u8],
}

/// Copies the blocks of `piece` from frames that are at hand without waiting, if all of them are.
pub fn try_copy(shared: &Shared, place: SegmentPlace, buffer: &mut [u8]) -> bool {
    let mut block = u64::from(place.block);
    let mut rest = buffer;
    while !rest.is_empty() {
        let id = FrameId { segment: place.segment, frame: (block / FRAME_BLOCKS) as u32 };
        let Some(frame) = shared.cache.get(id).or_else(|| bring_at_once(shared, id)) else { return false };
        let Some(copied) = copy_from_frame(&frame, block, rest) else { return false };
        block += (copied as u64) / BLOCK_SIZE;
        rest = &mut rest[copied..];
    }
    true
}

/// Brings a frame from the disk part of the cache into memory, if nobody has to wait for that: neither for the disk nor for another who
/// fetches it. Handing the request to a task costs more than reading and decoding a frame.
fn bring_at_once(shared: &Shared, id: FrameId) -> Option<Bytes> {
    let entry = *shared.segment_indexes.get(&id.segment)?.frames.get(id.frame as usize)?;
    let Claim::Lead(lead) = shared.cache.claim(id) else { return None };
    let stored = shared.cache.try_read_stored(id)?;
    let plain = shared.open_frame(id.segment, id.frame, &entry, &stored).ok()?;
    lead.fill(plain.clone());
    Some(plain)
}

/// Copies what of the blocks from `block` on lies in this frame, and returns how many bytes that were.
fn copy_from_frame(frame: &Bytes, block: u64, buffer: &mut [u8]) -> Option<usize> {
    let start = (block % FRAME_BLOCKS * BLOCK_SIZE) as usize;
    let available = frame.get(start..).filter(|bytes| !bytes.is_empty())?;
    let count = available.len().min(buffer.len());
    buffer[..count].copy_from_slice(&available[..count]);
    Some(count)
}

/// Fills the buffers of all pieces, fetching what is missing.
///
/// # Errors
/// `Damaged`, naming the segment, and what the store says.
pub async fn fetch(shared: &Arc<Shared>, pieces: Vec<Piece<'_>>) -> Result<()> {
    let fetches = pieces.into_iter().map(|piece| async move {
        let count = piece.buffer.len() as u64 / BLOCK_SIZE;
        let frames = load_frames(shared, piece.place, count).await?;
        let mut block = u64::from(piece.place.block);
        let mut rest = piece.buffer;
        for frame in frames {
            let copied = copy_from_frame(&frame, block, rest)
                .ok_or_else(|| Error::damaged(format!("segment {} lacks block {block}", piece.place.segment)))?;
            block += copied as u64 / BLOCK_SIZE;
            rest = &mut rest[copied..];
        }
        Ok(())
    });
    join_all(fetches).await.into_iter().collect()
}

/// Brings the frames that hold `count` blocks from `place` on into memory, and returns them in order.
///
/// # Errors
/// As [`fetch`].
pub async fn load_frames(shared: &Arc<Shared>, place: SegmentPlace, count: u64) -> Result<Vec<Bytes>> {
    let first = u64::from(place.block) / FRAME_BLOCKS;
    let last = (u64::from(place.block) + count.max(1) - 1) / FRAME_BLOCKS;
    let ids: Vec<FrameId> =
        (first..=last).map(|frame| FrameId { segment: place.segment, frame: frame as u32 }).collect();
    let mut found: Vec<Option<Bytes>> = vec![None; ids.len()];
    while found.iter().any(Option::is_none) {
        let (mut leads, mut waits) = (Vec::new(), Vec::new());
        for (slot, id) in ids.iter().enumerate() {
            if found[slot].is_some() {
                continue;
            }
            match shared.cache.claim(*id) {
                Claim::Ready(bytes) => found[slot] = Some(bytes),
                Claim::Lead(lead) => leads.push((slot, lead)),
                Claim::Wait(wait) => waits.push((slot, wait)),
            }
        }
        // What this request leads must be filled before it waits for others, or two requests could wait for each other.
        for (slot, bytes) in fill_leads(shared, place.segment, first, leads).await? {
            found[slot] = Some(bytes);
        }
        for (slot, wait) in waits {
            if let Some(bytes) = wait.await {
                found[slot] = Some(bytes);
            }
        }
    }
    Ok(found.into_iter().flatten().collect())
}

/// Gets the frames that this request leads: from the disk part of the cache, or from the store.
async fn fill_leads(
    shared: &Arc<Shared>,
    segment: SegmentId,
    first: u64,
    leads: Vec<(usize, Lead)>,
) -> Result<Vec<(usize, Bytes)>> {
    if leads.is_empty() {
        return Ok(Vec::new());
    }
    let index = segment_index(shared, segment).await?;
    let mut missing = Vec::new();
    let mut filled = Vec::new();
    for (slot, lead) in leads {
        let number = (first + slot as u64) as u32;
        let entry = index.frames.get(number as usize).copied();
        let entry = entry.ok_or_else(|| Error::damaged(format!("segment {segment} has no frame {number}")))?;
        let id = FrameId { segment, frame: number };
        match shared.cache.read_stored(id) {
            Some(stored) if let Ok(plain) = shared.open_frame(segment, number, &entry, &stored) => {
                lead.fill(plain.clone());
                filled.push((slot, plain));
            }
            _ => missing.push(Missing { slot, number, entry, lead }),
        }
    }
    let batches = group_frames(missing, |frame| frame.entry, 0, FETCH_BYTES_MAX);
    let batches = batches.into_iter().map(|batch| fetch_batch(shared, segment, batch));
    for batch in join_all(batches).await {
        filled.extend(batch?);
    }
    Ok(filled)
}

struct Missing {
    slot: usize,
    number: u32,
    entry: FrameEntry,
    lead: Lead,
}

/// Cuts frames of a segment, which are in order, into groups that one request each fetches: of at most `length_max` bytes as stored unless
/// one frame alone has more, and with no more than `gap_max` bytes between one frame and the next that nobody has asked for.
pub fn group_frames<T>(
    frames: Vec<T>,
    entry_of: impl Fn(&T) -> FrameEntry,
    gap_max: u64,
    length_max: u64,
) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    for frame in frames {
        let joins = groups.last().is_some_and(|group| {
            let (first, last, next) = (entry_of(&group[0]), entry_of(&group[group.len() - 1]), entry_of(&frame));
            let gap = u64::from(next.offset) - u64::from(last.offset) - u64::from(last.stored_length);
            let length = u64::from(next.offset - first.offset) + u64::from(next.stored_length);
            gap <= gap_max && length <= length_max
        });
        match groups.last_mut() {
            Some(group) if joins => group.push(frame),
            _ => groups.push(vec![frame]),
        }
    }
    groups
}

/// The blocks of a frame that was fetched, and the bytes it is stored as. A damaged one is fetched once more.
///
/// # Errors
/// `Damaged`, and what the store says.
pub async fn open_fetched(
    shared: &Shared,
    segment: SegmentId,
    number: u32,
    entry: &FrameEntry,
    stored: Bytes,
) -> Result<(Bytes, Bytes)> {
    if let Ok(plain) = shared.open_frame(segment, number, entry, &stored) {
        return Ok((plain, stored));
    }
    tracing::warn!(%segment, frame = number, "fetching a damaged frame again");
    let stored = fetch_frames(&*shared.store, segment, &[*entry]).await?.pop().unwrap_or_default();
    let plain = shared.open_frame(segment, number, entry, &stored);
    let plain = plain.inspect_err(|error| tracing::error!(%segment, %error, "a segment is damaged in the store"))?;
    Ok((plain, stored))
}

async fn fetch_batch(shared: &Arc<Shared>, segment: SegmentId, batch: Vec<Missing>) -> Result<Vec<(usize, Bytes)>> {
    let entries: Vec<FrameEntry> = batch.iter().map(|missing| missing.entry).collect();
    let _waiting = shared.warming.client_waits();
    let stored =
        fetch_frames(&*shared.store, segment, &entries).await.context(|| format!("cannot read segment {segment}"))?;
    let mut filled = Vec::with_capacity(batch.len());
    let mut kept = Vec::with_capacity(batch.len());
    for (missing, stored) in batch.into_iter().zip(stored) {
        let (plain, stored) = open_fetched(shared, segment, missing.number, &missing.entry, stored).await?;
        let id = FrameId { segment, frame: missing.number };
        if shared.cache.admits(id) {
            kept.push((id, stored));
        }
        missing.lead.fill(plain.clone());
        filled.push((missing.slot, plain));
    }
    let answer = entries.iter().map(|entry| entry.stored_length as usize).sum();
    keep_on_disk(shared, kept, answer);
    Ok(filled)
}

/// Fills the disk part of the cache behind the reader's back: nobody waits for it. What comes faster than the disk takes it is not kept, so that
/// what waits for the disk is bounded. The frames are parts of `whole` bytes: if there is more of these than of the frames, the frames are copied, since they
/// would keep all of it in memory until the disk has taken them.
pub fn keep_on_disk(shared: &Arc<Shared>, mut kept: Vec<(FrameId, Bytes)>, whole: usize) {
    let kib: usize = kept.iter().map(|(_, stored)| stored.len().div_ceil(1024)).sum();
    let Ok(room) = shared.insertions.clone().try_acquire_many_owned(u32::try_from(kib).unwrap_or(u32::MAX)) else {
        return;
    };
    if kept.iter().map(|(_, stored)| stored.len()).sum::<usize>() < whole {
        kept.iter_mut().for_each(|(_, stored)| *stored = Bytes::copy_from_slice(stored));
    }
    let cache = shared.cache.clone();
    drop(shared.runtime.spawn_blocking(move || {
        for (id, stored) in kept {
            cache.insert_stored(id, &stored);
        }
        drop(room);
    }));
}

/// The index of a segment, from memory, RocksDB or the store.
///
/// # Errors
/// `Damaged`, `NotFound` turned into `Damaged` (a segment that the map names must exist), and what the store says.
pub async fn segment_index(shared: &Arc<Shared>, id: SegmentId) -> Result<Arc<SegmentIndex>> {
    let load = async {
        if let Some(index) = local_index(shared, id)? {
            return Ok(Arc::new(index));
        }
        let index = match fetch_index(&*shared.store, id).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tracing::error!(segment = %id, "a segment that the block map names is missing in the store");
                return Err(Error::damaged(format!("segment {id} is missing in the store: {error}")));
            }
            other => other?,
        };
        keep_index(shared, &index);
        Ok(Arc::new(index))
    };
    shared.segment_indexes.get_or_insert_async(&id, load).await
}

/// Keeps the index of a segment in RocksDB, in the form of the object's tail; if its volume has a key, as an item that is sealed with it.
/// It is a copy: where it cannot be kept, it comes from the store again.
pub fn keep_index(shared: &Shared, index: &SegmentIndex) {
    if let Err(error) = try_keep_index(shared, index) {
        tracing::warn!(segment = %index.header.id, %error, "the index of a segment could not be kept here");
    }
}

fn try_keep_index(shared: &Shared, index: &SegmentIndex) -> Result<()> {
    let frames_end = index.frames.last().map_or(0, |last| u64::from(last.offset) + u64::from(last.stored_length));
    let frames_end = frames_end.max(crate::format::segment::HEADER_BYTES as u64);
    let id = index.header.id;
    let mut row = encode_tail(&index.header, &index.frames, &index.entries, frames_end, IndexSeal::Around)?;
    if let Some(key) = shared.store.key_of(id.volume)? {
        row = key.seal_item(ItemPlace::LocalIndex(id), Salt(clock::random_token().0), &row);
    }
    shared.index.put_segment_index(id, &row)
}

/// The index of a segment, if RocksDB has it, undamaged.
///
/// # Errors
/// What RocksDB says; `Denied` for a volume that was not unlocked.
pub fn local_index(shared: &Shared, id: SegmentId) -> Result<Option<SegmentIndex>> {
    let row = shared.index.segment_index(id)?;
    row.map_or(Ok(None), |row| open_local_index(shared, id, &row))
}

fn open_local_index(shared: &Shared, id: SegmentId, row: &[u8]) -> Result<Option<SegmentIndex>> {
    let tail = match shared.store.key_of(id.volume)? {
        Some(key) => key.open_item(ItemPlace::LocalIndex(id), row).map(Cow::Owned),
        None => Some(Cow::Borrowed(row)),
    };
    let parsed = tail.and_then(|tail| {
        let length = announced_length(&tail)?;
        parse_object_tail(id, &tail, length, IndexSeal::Around).ok()
    });
    if parsed.is_none() {
        tracing::warn!(segment = %id, "the local copy of a segment's index is damaged, and not used");
    }
    Ok(parsed)
}

//! From places in segments to blocks: through the memory and disk parts of the cache, or from the store.
//!
//! One fetch per missing frame however many ask (the cache's claims); missing neighbours become one range request. Every
//! frame is verified before it is handed out. A frame that is damaged is fetched once more, then it is an error for just
//! those who need it.

use std::borrow::Cow;
use std::ops::Range;
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
use crate::segment::{FrameOpener, fetch_each, fetch_frames, fetch_index, parse_object_tail};
use crate::units::{BLOCK_SIZE, ByteLen, FrameId, SegmentId};
use crate::volume::keep::keep_on_disk;
use crate::volume::shared::{IndexWeight, Shared};

/// Longest range request for frames of one segment, in bytes as stored.
pub const FETCH_BYTES_MAX: u64 = 8 << 20;

/// Indexes of segments in memory, weighed by their size.
pub type SegmentIndexCache = quick_cache::sync::Cache<SegmentId, Arc<SegmentIndex>, IndexWeight, FixedState>;

/// An empty one that keeps to `budget`. Its hashes are the same in every process: what is pushed out depends on what was asked for alone.
pub fn new_segment_index_cache(budget: ByteLen) -> SegmentIndexCache {
    SegmentIndexCache::with(1024, budget.0, IndexWeight, FixedState::default(), DefaultLifecycle::default())
}

/// Copies the blocks from `place` on from frames that are at hand without waiting, if all of them are.
pub fn try_copy(shared: &Shared, place: SegmentPlace, buffer: &mut [u8]) -> bool {
    let mut block = u64::from(place.block);
    let mut rest = buffer;
    while !rest.is_empty() {
        let Some(frame) = at_hand(shared, place.segment, block) else { return false };
        let Some(blocks) = blocks_of_frame(&frame, block, rest.len()) else { return false };
        let (part, behind) = rest.split_at_mut(blocks.len());
        part.copy_from_slice(&frame[blocks]);
        block += (part.len() as u64) / BLOCK_SIZE;
        rest = behind;
    }
    true
}

/// Adds `count` blocks from `place` on to `parts`, if the frames that hold them are at hand.
pub fn try_share(shared: &Shared, place: SegmentPlace, count: u64, parts: &mut Vec<Bytes>) -> bool {
    let mut block = u64::from(place.block);
    let end = block + count;
    while block < end {
        let Some(frame) = at_hand(shared, place.segment, block) else { return false };
        let Some(part) = part_of_frame(&frame, block, end - block) else { return false };
        block += part.len() as u64 / BLOCK_SIZE;
        parts.push(part);
    }
    true
}

/// The frame that holds a block, if nobody has to wait for it.
fn at_hand(shared: &Shared, segment: SegmentId, block: u64) -> Option<Bytes> {
    let id = FrameId { segment, frame: (block / FRAME_BLOCKS) as u32 };
    shared.cache.get(id).or_else(|| bring_at_once(shared, id))
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

/// Where in this frame the blocks from `block` on lie, of which `length` bytes are wanted at most.
fn blocks_of_frame(frame: &Bytes, block: u64, length: usize) -> Option<Range<usize>> {
    let start = (block % FRAME_BLOCKS * BLOCK_SIZE) as usize;
    let available = frame.len().checked_sub(start).filter(|available| *available > 0)?;
    Some(start..start + available.min(length))
}

/// What of `count` blocks from `block` on lies in this frame. A small part is a copy: it would keep all of the frame in memory.
fn part_of_frame(frame: &Bytes, block: u64, count: u64) -> Option<Bytes> {
    let blocks = blocks_of_frame(frame, block, (count.min(FRAME_BLOCKS) * BLOCK_SIZE) as usize)?;
    let is_most = 2 * blocks.len() >= frame.len();
    Some(if is_most { frame.slice(blocks) } else { Bytes::copy_from_slice(&frame[blocks]) })
}

/// Gets `count` blocks from `place` on, fetching the frames that are missing.
///
/// # Errors
/// `Damaged`, `Unavailable`, `Denied`.
pub async fn share(shared: &Arc<Shared>, place: SegmentPlace, count: u64) -> Result<Vec<Bytes>> {
    let frames = load_frames(shared, place, count).await?;
    let mut block = u64::from(place.block);
    let end = block + count;
    let mut parts = Vec::with_capacity(frames.len());
    for frame in frames {
        let part = part_of_frame(&frame, block, end - block)
            .ok_or_else(|| Error::damaged(format!("segment {} lacks block {block}", place.segment)))?;
        block += part.len() as u64 / BLOCK_SIZE;
        parts.push(part);
    }
    if block == end {
        return Ok(parts);
    }
    Err(Error::damaged(format!("segment {} lacks block {block}", place.segment)))
}

/// Brings the frames that hold `count` blocks from `place` on into memory, and returns them in order.
///
/// # Errors
/// As [`share`].
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
        // The last one first: they come in order, and so whoever waits is woken once and not for each of them.
        for (slot, wait) in waits.into_iter().rev() {
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
    match shared.open_frame(segment, number, entry, &stored) {
        Ok(plain) => Ok((plain, stored)),
        Err(_) => fetch_again(shared, segment, number, entry).await,
    }
}

/// A frame that arrived damaged, once more: its blocks, and the bytes it is stored as.
async fn fetch_again(shared: &Shared, segment: SegmentId, number: u32, entry: &FrameEntry) -> Result<(Bytes, Bytes)> {
    tracing::warn!(%segment, frame = number, "fetching a damaged frame again");
    let stored = fetch_frames(&*shared.store, segment, &[*entry]).await?.pop().unwrap_or_default();
    let plain = shared.open_frame(segment, number, entry, &stored);
    let plain = plain.inspect_err(|error| tracing::error!(%segment, %error, "a segment is damaged in the store"))?;
    Ok((plain, stored))
}

/// Fetches frames that lie close to each other with one request. Each is there for whoever waits for it as soon as it has arrived.
async fn fetch_batch(shared: &Arc<Shared>, segment: SegmentId, batch: Vec<Missing>) -> Result<Vec<(usize, Bytes)>> {
    let entries: Vec<FrameEntry> = batch.iter().map(|missing| missing.entry).collect();
    let key = shared.store.key_of(segment.volume)?;
    let opener = FrameOpener::new(segment, key.as_deref());
    let mut rest = batch.into_iter();
    let (mut filled, mut damaged) = (Vec::with_capacity(entries.len()), Vec::new());
    let each = |_: usize, stored: Bytes| {
        // As many as there are entries, in their order.
        let Some(missing) = rest.next() else { return };
        match opener.open(missing.number, &missing.entry, &stored) {
            Ok(plain) => filled.push(missing.fill(shared, plain, &stored)),
            Err(_) => damaged.push(missing),
        }
    };
    let _waiting = shared.warming.client_waits();
    let fetched = fetch_each(&*shared.store, segment, &entries, each).await;
    fetched.context(|| format!("cannot read segment {segment}"))?;
    for missing in damaged {
        let (plain, stored) = fetch_again(shared, segment, missing.number, &missing.entry).await?;
        filled.push(missing.fill(shared, plain, &stored));
    }
    Ok(filled)
}

impl Missing {
    /// Gives the frame to whoever waits for it, and returns its place among those asked for.
    fn fill(self, shared: &Arc<Shared>, plain: Bytes, stored: &[u8]) -> (usize, Bytes) {
        let frame = self.lead.frame();
        self.lead.fill(plain.clone());
        if shared.cache.admits(frame) {
            keep_on_disk(shared, frame, stored);
        }
        (self.slot, plain)
    }
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

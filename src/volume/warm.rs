//! Warming: bringing what will be read into the cache before somebody waits for it. By hand (`varve volumes warm`), and in the background by
//! the trace beside a snapshot, when a fork is attached for the first time or the cache is empty.
//!
//! Goes behind what clients read: few requests at once, fewer while a client waits for the store; and it takes the room that is free, or
//! half of the cache, in which what was read stays. Frames go into the disk part as they are stored; without one into memory.
//!
//! Guarantees: a frame is fetched once, also if a client asks for it meanwhile (the cache's claims); only what is intact is kept. Nothing
//! depends on it: what fails costs the warm start. After it has ended nothing is asked of the store.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::cache::{Claim, Lead};
use crate::error::{Error, ErrorKind, Result};
use crate::format::segment::{FrameEntry, SegmentIndex};
use crate::limits::FRAME_BLOCKS;
use crate::lineage;
use crate::map::SegmentPlace;
use crate::segment::{fetch_frames, is_intact};
use crate::service::{WarmProgress, WarmReport};
use crate::units::{Epoch, FrameId, SegmentId, SnapshotId};
use crate::volume::core::Volume;
use crate::volume::fetch::{group_frames, segment_index};
use crate::volume::shared::Shared;
use crate::volume::warm_walk::Walk;
use crate::work::Task;

/// Requests of all volumes of a daemon together.
const FETCHES: usize = 16;
/// What each counts for while a client waits for the store: half of them are left.
const WEIGHT_BESIDE_CLIENTS: u32 = 2;
/// Longest range request, in bytes as stored: short, since a client may wait for a frame of it.
const FETCH_BYTES_MAX: u64 = 1 << 20;
/// Requests of a volume that are made ready ahead.
const AHEAD: usize = FETCHES;
/// Indexes of segments loaded at once.
const INDEXES_AT_ONCE: usize = 8;

/// What the warming of all volumes of a daemon shares.
pub struct Warming {
    fetches: Semaphore,
    clients: AtomicUsize,
}

impl Default for Warming {
    fn default() -> Self {
        Warming { fetches: Semaphore::new(FETCHES), clients: AtomicUsize::new(0) }
    }
}

impl Warming {
    /// Says that a client waits for the store, until what is returned is dropped.
    pub fn client_waits(&self) -> ClientWaits<'_> {
        self.clients.fetch_add(1, Ordering::Relaxed);
        ClientWaits(self)
    }

    fn weight(&self) -> u32 {
        if self.clients.load(Ordering::Relaxed) > 0 { WEIGHT_BESIDE_CLIENTS } else { 1 }
    }
}

/// A client waits for the store.
pub struct ClientWaits<'a>(&'a Warming);

impl Drop for ClientWaits<'_> {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The warming of one volume.
#[derive(Default)]
pub struct VolumeWarming {
    /// Held while it is under way.
    turn: tokio::sync::Mutex<()>,
    progress: Mutex<Option<WarmProgress>>,
}

impl VolumeWarming {
    /// How far it has come, while it is under way.
    pub fn progress(&self) -> Option<WarmProgress> {
        *self.progress.lock()
    }
}

/// Shows that a volume is being warmed for as long as it exists.
struct Shown<'a>(&'a VolumeWarming);

impl Shown<'_> {
    fn set(&self, progress: WarmProgress) {
        *self.0.progress.lock() = Some(progress);
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        *self.0.progress.lock() = None;
    }
}

/// Neighbouring frames of one segment that one request brings.
struct Batch {
    segment: SegmentId,
    frames: Vec<(u32, FrameEntry)>,
}

impl Batch {
    fn stored_bytes(&self) -> u64 {
        self.frames.iter().map(|(_, entry)| u64::from(entry.stored_length)).sum()
    }
}

/// What there is to be brought of a part of a volume.
#[derive(Default)]
struct Plan {
    batches: Vec<Batch>,
    present_bytes: u64,
}

impl Volume {
    /// Brings what the map leads to into the cache, in the order of the volume, or with `from` what the trace of that snapshot names, in
    /// its order; as far as the cache has room for it.
    ///
    /// # Errors
    /// `Invalid` or `Damaged` if there is no such trace; what the store says.
    pub(crate) async fn warm_now(&self, from: Option<SnapshotId>) -> Result<WarmReport> {
        self.pass_gate().await?;
        let walk = match from {
            Some(id) => match lineage::trace(&*self.shared.store, id).await {
                // That something is not found says that a volume is not attached, to those who ask a daemon.
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(Error::invalid(error.message())),
                found => Walk::along(found?, self.size_bytes()),
            },
            None => Walk::everything(self),
        };
        self.warm(walk).await
    }

    /// Runs once after an attachment: brings what was read first of the volume, or of what it is a fork of, unless the cache has something
    /// already and this is not the fork's first attachment.
    pub(crate) async fn replay_trace(self: Arc<Self>) {
        if self.epoch != Epoch(1) && !self.shared.cache.is_empty() {
            return;
        }
        let manifest = self.manifest.lock().await.manifest.clone();
        let replayed = async {
            let Some(trace) = lineage::trace_for(&*self.shared.store, &manifest).await? else { return Ok(()) };
            let snapshot = trace.snapshot;
            let report = self.warm(Walk::along(trace, self.size_bytes())).await?;
            tracing::info!(volume = %self.id, %snapshot, fetched = %report.fetched, "brought what is read first");
            Ok::<(), Error>(())
        };
        if let Err(error) = replayed.await {
            tracing::info!(volume = %self.id, %error, "a warm start is given up");
        }
    }

    async fn warm(&self, mut walk: Walk) -> Result<WarmReport> {
        let _turn = self.warming.turn.lock().await;
        let shown = Shown(&self.warming);
        let mut room = self.shared.cache.room_to_warm().0;
        let mut report = WarmReport { complete: true, ..WarmReport::default() };
        let mut fetching: VecDeque<Task<Result<u64>>> = VecDeque::new();
        shown.set(walk.progress());
        'all: while let Some(places) = walk.next(self).await? {
            if let Some(error) = self.gate.closed() {
                return Err(error);
            }
            let plan = self.plan(&places).await?;
            report.present.0 += plan.present_bytes;
            for batch in plan.batches {
                if batch.stored_bytes() > room {
                    report.complete = false;
                    break 'all;
                }
                room -= batch.stored_bytes();
                fetching.push_back(self.shared.runtime.spawn(bring(self.shared.clone(), batch)));
                if fetching.len() > AHEAD {
                    report.fetched.0 += finish_one(&mut fetching).await?;
                }
            }
            shown.set(walk.progress());
        }
        while !fetching.is_empty() {
            report.fetched.0 += finish_one(&mut fetching).await?;
        }
        Ok(report)
    }

    /// Which requests bring what lies at `places` and is not in the cache, about in their order.
    async fn plan(&self, places: &[(SegmentPlace, u64)]) -> Result<Plan> {
        let indexes = self.indexes_of(places).await?;
        let mut plan = Plan::default();
        let mut known = HashSet::new();
        // Of a segment that comes first in the order all frames are asked for together: what is neighboured there is one request.
        let mut wanted: Vec<(SegmentId, Vec<u32>)> = Vec::new();
        let mut order: BTreeMap<SegmentId, usize> = BTreeMap::new();
        for (place, count) in places {
            let first = u64::from(place.block) / FRAME_BLOCKS;
            let last = (u64::from(place.block) + count.max(&1) - 1) / FRAME_BLOCKS;
            let at = *order.entry(place.segment).or_insert_with(|| {
                wanted.push((place.segment, Vec::new()));
                wanted.len() - 1
            });
            let numbers = (first..=last).map(|number| number as u32);
            wanted[at].1.extend(numbers.filter(|number| known.insert((place.segment, *number))));
        }
        for (segment, mut numbers) in wanted {
            let Some(index) = indexes.get(&segment) else { continue };
            numbers.sort_unstable();
            let mut missing = Vec::new();
            for number in numbers {
                // Whoever reads it is told if the map names a frame that is not there.
                let Some(&entry) = index.frames.get(number as usize) else { continue };
                if self.shared.cache.contains(FrameId { segment, frame: number }) {
                    plan.present_bytes += u64::from(entry.stored_length);
                } else {
                    missing.push((number, entry));
                }
            }
            let groups = group_frames(missing, |(_, entry)| *entry, 0, FETCH_BYTES_MAX);
            plan.batches.extend(groups.into_iter().map(|frames| Batch { segment, frames }));
        }
        Ok(plan)
    }

    /// The indexes of the segments that are named. One that is missing or damaged is left out: it may have been emptied and deleted since.
    async fn indexes_of(&self, places: &[(SegmentPlace, u64)]) -> Result<BTreeMap<SegmentId, Arc<SegmentIndex>>> {
        let segments: BTreeSet<SegmentId> = places.iter().map(|(place, _)| place.segment).collect();
        let loads = segments.into_iter().map(|id| async move {
            match segment_index(&self.shared, id).await {
                Ok(index) => Ok(Some((id, index))),
                Err(error) if error.kind() == ErrorKind::Damaged => Ok(None),
                Err(error) => Err(error),
            }
        });
        stream::iter(loads)
            .buffer_unordered(INDEXES_AT_ONCE)
            .try_filter_map(async |found| Ok(found))
            .try_collect()
            .await
    }
}

async fn finish_one(fetching: &mut VecDeque<Task<Result<u64>>>) -> Result<u64> {
    match fetching.pop_front() {
        Some(oldest) => oldest.await.map_err(|_| Error::new(ErrorKind::Stopping, "the daemon is stopping"))?,
        None => Ok(0),
    }
}

/// Brings the frames of a batch into the cache, but for those that somebody else is fetching, and returns their bytes.
async fn bring(shared: Arc<Shared>, batch: Batch) -> Result<u64> {
    let stopping = || Error::new(ErrorKind::Stopping, "the daemon is stopping");
    let _permit = shared.warming.fetches.acquire_many(shared.warming.weight()).await.map_err(|_| stopping())?;
    let segment = batch.segment;
    let mut led: Vec<(u32, FrameEntry, Lead)> = Vec::new();
    for (number, entry) in batch.frames {
        if let Claim::Lead(lead) = shared.cache.claim(FrameId { segment, frame: number }) {
            led.push((number, entry, lead));
        }
    }
    let mut fetched = 0;
    for run in group_frames(led, |(_, entry, _)| *entry, 0, FETCH_BYTES_MAX) {
        let entries: Vec<FrameEntry> = run.iter().map(|(_, entry, _)| *entry).collect();
        let stored = match fetch_frames(&*shared.store, segment, &entries).await {
            Ok(stored) => stored,
            // Whoever reads it is told.
            Err(error) if error.is_damage() => continue,
            Err(error) => return Err(error),
        };
        let whole = run.into_iter().zip(stored).filter(|((_, entry, _), stored)| is_intact(entry, stored));
        let whole: Vec<Fetched> =
            whole.map(|((number, entry, lead), stored)| Fetched { number, entry, lead, stored }).collect();
        fetched += whole.iter().map(|frame| frame.stored.len() as u64).sum::<u64>();
        keep(&shared, segment, whole).await;
    }
    Ok(fetched)
}

/// A frame that was fetched, as it is stored.
struct Fetched {
    number: u32,
    entry: FrameEntry,
    lead: Lead,
    stored: Bytes,
}

/// Keeps frames in the disk part, or else in memory. Whoever waits for one finds it there.
async fn keep(shared: &Arc<Shared>, segment: SegmentId, frames: Vec<Fetched>) {
    if !shared.cache.keeps_on_disk() {
        for frame in frames {
            if let Ok(plain) = shared.open_frame(segment, frame.number, &frame.entry, &frame.stored) {
                frame.lead.fill(plain);
            }
        }
        return;
    }
    let cache = shared.cache.clone();
    let kept = shared.runtime.spawn_blocking(move || {
        for frame in frames {
            cache.insert_stored(frame.lead.frame(), &frame.stored);
            drop(frame.lead);
        }
    });
    // A job that is gone was stopped with the daemon.
    let _ = kept.await;
}

//! The memory part: plain frames within a budget, and the rule that a missing frame is fetched once.
//!
//! Frames that are new have a part of the budget for themselves ([`Newcomers`]), so that what is read ahead is there when the reader comes, and what is
//! read once pushes out nothing else. A frame that is asked for again after it left is in use, and belongs to the rest, where what is used
//! least goes first. As long as there is room, newcomers move there instead of leaving.
//!
//! Invariant: while a [`Lead`] for a frame is alive, its flight is in the table; whoever claims the frame meanwhile
//! waits in that flight. The flight ends when the lead is filled (waiters get the bytes) or dropped (they get `None`).
//! The table and the cache are changed in an order that leaves no gap: filled bytes enter the cache before their
//! flight leaves the table, and a claim looks into the cache again while it holds the table.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::hash::BuildHasher;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use foldhash::quality::FixedState;
use parking_lot::Mutex;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use tokio::sync::oneshot;

use crate::cache::newcomers::{self, Newcomers};
use crate::limits::FRAME_BLOCKS;
use crate::units::{BLOCK_SIZE, ByteLen, FrameId};

/// Bytes of a frame of the usual kind.
const FRAME_BYTES: u64 = FRAME_BLOCKS * BLOCK_SIZE;
/// A shard must have room for this many frames, or frames that hash together would push each other out.
const SHARD_FRAMES_MIN: u64 = 32;
/// The part of the budget that new frames have: one in so many. It must hold what is read ahead until the reader comes.
const NEW_SHARE: u64 = 4;
/// The same for new frames: more, since chance gives one shard more of what is read ahead than another.
const NEW_SHARD_FRAMES_MIN: u64 = 128;
const NEW_SHARDS_MAX: u64 = 16;
/// The part of those in use that the library keeps for frames which were used while they were there: with its own 97 % what comes back to memory would
/// leave it before it can be used again. Its own memory of what left is not used: what it let in by that took all the room, also of newer frames.
const HOT_SHARE: f64 = 0.8;
/// Shards of the table of flights: a claim that misses locks one.
const FLIGHT_SHARDS: usize = 16;

/// The flights under way whose frames hash to one shard: for each, those who wait.
type FlightShard = Mutex<HashMap<FrameId, Vec<oneshot::Sender<Bytes>>>>;
type Frames = Cache<FrameId, Bytes, FrameWeight, FixedState, DefaultLifecycle<FrameId, Bytes>>;

#[derive(Clone)]
struct FrameWeight;

impl Weighter<FrameId, Bytes> for FrameWeight {
    fn weight(&self, _frame: &FrameId, bytes: &Bytes) -> u64 {
        newcomers::weight(bytes)
    }
}

/// What the memory part did since it was opened, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStatistics {
    /// Claims and gets that were answered at once.
    pub hits: u64,
    /// Claims and gets that were not.
    pub misses: u64,
    /// Of the misses: claims that waited for somebody else's fetch.
    pub waits: u64,
    /// Frames held.
    pub frames: u64,
    /// Bytes held, with overhead.
    pub used: ByteLen,
    /// The budget.
    pub budget: ByteLen,
}

/// The answer to a claim.
pub enum Claim {
    /// The frame's plain bytes.
    Ready(Bytes),
    /// The caller is to fetch the frame.
    Lead(Lead),
    /// Somebody else is fetching it.
    Wait(Wait),
}

/// The duty to fetch a frame. Fill it; dropping it tells those who wait to claim again.
#[must_use = "others wait for the frame until the lead is filled or dropped"]
pub struct Lead {
    cache: Arc<MemoryCache>,
    frame: FrameId,
    is_filled: bool,
}

impl Lead {
    /// The frame to fetch.
    pub fn frame(&self) -> FrameId {
        self.frame
    }

    /// Keeps the plain bytes and gives them to all who wait. `bytes` should own its memory: a slice of a longer
    /// buffer keeps all of that alive, which the budget does not see.
    pub fn fill(mut self, bytes: Bytes) {
        self.cache.insert(self.frame, bytes.clone());
        self.is_filled = true;
        for waiter in self.cache.end_flight(self.frame) {
            // One who no longer waits needs no answer.
            let _ = waiter.send(bytes.clone());
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if !self.is_filled {
            // Dropping the senders wakes those who wait with nothing.
            drop(self.cache.end_flight(self.frame));
        }
    }
}

/// The wait for somebody else's fetch: gives the plain bytes, or `None` if that fetch was given up; then claim again.
#[must_use = "a future does nothing unless polled"]
pub struct Wait(oneshot::Receiver<Bytes>);

impl Future for Wait {
    type Output = Option<Bytes>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(Result::ok)
    }
}

/// The memory part.
pub struct MemoryCache {
    /// Those in use.
    frames: Frames,
    /// What they weigh when there is no room left in every shard.
    full: u64,
    /// Those that are new, by shard.
    newcomers: Vec<Mutex<Newcomers>>,
    flights: Vec<FlightShard>,
    /// The same in every process: what is pushed out depends on what was asked for alone.
    hasher: FixedState,
    budget: ByteLen,
    hits: AtomicU64,
    misses: AtomicU64,
    waits: AtomicU64,
}

impl MemoryCache {
    /// An empty one that never holds more than `budget`.
    pub fn new(budget: ByteLen) -> Self {
        let for_new = budget.0 / NEW_SHARE;
        let new_shards = (for_new / FRAME_BYTES / NEW_SHARD_FRAMES_MIN).clamp(1, NEW_SHARDS_MAX);
        // A power of two, and the budget divided without rounding up, so that the shards together keep to it.
        let mut shards = 16;
        while shards > 1 && budget.0 / FRAME_BYTES / shards < SHARD_FRAMES_MIN {
            shards /= 2;
        }
        let frames_budget = (budget.0 - for_new) / shards * shards;
        let items = (frames_budget / FRAME_BYTES).max(1);
        let options = OptionsBuilder::new()
            .shards(shards as usize)
            .estimated_items_capacity(usize::try_from(items).unwrap_or(usize::MAX))
            .weight_capacity(frames_budget)
            .hot_allocation(HOT_SHARE)
            .ghost_allocation(0.0)
            .build();
        let frames = match options {
            Ok(options) => {
                Cache::with_options(options, FrameWeight, FixedState::default(), DefaultLifecycle::default())
            }
            // Only options left out are refused, and none is.
            Err(_) => {
                let hasher = FixedState::default();
                Cache::with(items as usize, frames_budget, FrameWeight, hasher, DefaultLifecycle::default())
            }
        };
        let remembered = usize::try_from(items / new_shards).unwrap_or(usize::MAX);
        let newcomers = || Mutex::new(Newcomers::new(for_new / new_shards, remembered));
        MemoryCache {
            frames,
            full: frames_budget.saturating_sub(shards * FRAME_BYTES),
            newcomers: (0..new_shards).map(|_| newcomers()).collect(),
            flights: (0..FLIGHT_SHARDS).map(|_| FlightShard::default()).collect(),
            hasher: FixedState::default(),
            budget,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            waits: AtomicU64::new(0),
        }
    }

    /// The frame, if it is here.
    pub fn get(&self, frame: FrameId) -> Option<Bytes> {
        let found = self.find(frame);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// The frame, or the duty to fetch it, or the wait for it.
    pub fn claim(self: &Arc<Self>, frame: FrameId) -> Claim {
        if let Some(bytes) = self.get(frame) {
            return Claim::Ready(bytes);
        }
        let mut flights = self.flight_shard(frame).lock();
        match flights.entry(frame) {
            Entry::Occupied(mut flight) => {
                let (sender, receiver) = oneshot::channel();
                flight.get_mut().push(sender);
                self.waits.fetch_add(1, Ordering::Relaxed);
                Claim::Wait(Wait(receiver))
            }
            Entry::Vacant(vacant) => {
                // A lead may have been filled between the look above and the lock.
                if let Some(bytes) = self.find(frame) {
                    return Claim::Ready(bytes);
                }
                vacant.insert(Vec::new());
                Claim::Lead(Lead { cache: Arc::clone(self), frame, is_filled: false })
            }
        }
    }

    fn find(&self, frame: FrameId) -> Option<Bytes> {
        self.frames.get(&frame).or_else(|| self.newcomer_shard(frame).lock().get(&frame).cloned())
    }

    /// Keeps a frame.
    pub fn insert(&self, frame: FrameId, bytes: Bytes) {
        if self.frames.contains_key(&frame) {
            return;
        }
        let mut left = Vec::new();
        let mut newcomers = self.newcomer_shard(frame).lock();
        let in_use = newcomers.insert(frame, bytes, &mut left);
        for (frame, bytes) in left {
            if self.frames.weight() < self.full {
                self.frames.insert(frame, bytes);
            } else {
                newcomers.remember(frame);
            }
        }
        if let Some(bytes) = in_use {
            self.frames.insert(frame, bytes);
        }
    }

    /// True if the frame is here; does not count as a use.
    pub fn contains(&self, frame: FrameId) -> bool {
        self.frames.contains_key(&frame) || self.newcomer_shard(frame).lock().get(&frame).is_some()
    }

    /// How much of what is new stays at least, before newer frames push it out.
    pub fn room_for_the_new(&self) -> ByteLen {
        ByteLen(self.budget.0 / NEW_SHARE)
    }

    /// What it did and what it holds.
    pub fn statistics(&self) -> MemoryStatistics {
        let new = self.newcomers.iter().map(|shard| shard.lock().held());
        let (new_frames, new_bytes) = new.fold((0, 0), |sum, held| (sum.0 + held.0, sum.1 + held.1));
        MemoryStatistics {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            waits: self.waits.load(Ordering::Relaxed),
            frames: self.frames.len() as u64 + new_frames,
            used: ByteLen(self.frames.weight() + new_bytes),
            budget: self.budget,
        }
    }

    fn newcomer_shard(&self, frame: FrameId) -> &Mutex<Newcomers> {
        // Not the bits by which the flights are told apart.
        &self.newcomers[(self.hasher.hash_one(frame) >> 32) as usize % self.newcomers.len()]
    }

    fn flight_shard(&self, frame: FrameId) -> &FlightShard {
        &self.flights[self.hasher.hash_one(frame) as usize % FLIGHT_SHARDS]
    }

    fn end_flight(&self, frame: FrameId) -> Vec<oneshot::Sender<Bytes>> {
        self.flight_shard(frame).lock().remove(&frame).unwrap_or_default()
    }
}

//! The memory part: plain frames within a budget, and the rule that a missing frame is fetched once.
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

use crate::limits::FRAME_BLOCKS;
use crate::units::{BLOCK_SIZE, ByteLen, FrameId};

/// What a cached frame takes besides its bytes: key, [`Held`], links, hash table, ghosts and the allocator's rounding.
const ENTRY_OVERHEAD_BYTES: u64 = 200;
/// Bytes of a frame of the usual kind.
const FRAME_BYTES: u64 = FRAME_BLOCKS * BLOCK_SIZE;
/// A shard must have room for this many frames, or frames that hash together would push each other out.
const SHARD_FRAMES_MIN: u64 = 32;
/// The part of the budget that frames have which were read more than once. The rest is for new ones: it must hold what is read ahead until the reader
/// comes, and with the library's own 97 % a sequential reader found nothing of it any more.
const HOT_SHARE: f64 = 0.75;
/// The part of the room for new frames for which a frame counts as young. Uses of a young one do not make it hot: a sequential reader asks for
/// each frame several times in a row, and once more for what was read ahead of it. More than what is read ahead; one that is used again later is hot.
const YOUNG_SHARE: f64 = 0.75;
/// Shards of the table of flights: a claim that misses locks one.
const FLIGHT_SHARDS: usize = 16;

/// The flights under way whose frames hash to one shard: for each, those who wait.
type FlightShard = Mutex<HashMap<FrameId, Vec<oneshot::Sender<Bytes>>>>;
type Frames = Cache<FrameId, Held, FrameWeight, FixedState, DefaultLifecycle<FrameId, Held>>;

/// A frame in memory.
#[derive(Clone)]
struct Held {
    bytes: Bytes,
    /// What had been inserted before it, in bytes.
    born: u64,
}

#[derive(Clone)]
struct FrameWeight;

impl Weighter<FrameId, Held> for FrameWeight {
    fn weight(&self, _frame: &FrameId, held: &Held) -> u64 {
        held.bytes.len() as u64 + ENTRY_OVERHEAD_BYTES
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
    frames: Frames,
    flights: Vec<FlightShard>,
    /// The same in every process: what is pushed out depends on what was asked for alone.
    hasher: FixedState,
    budget: ByteLen,
    /// Bytes inserted so far: the clock by which frames grow older.
    inserted: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    waits: AtomicU64,
}

impl MemoryCache {
    /// An empty one that never holds more than `budget`.
    pub fn new(budget: ByteLen) -> Self {
        let items = (budget.0 / FRAME_BYTES).max(1);
        // A power of two that divides the budget without rounding up, so that the shards together keep to it.
        let mut shards = 16;
        while shards > 1 && items / shards < SHARD_FRAMES_MIN {
            shards /= 2;
        }
        let options = OptionsBuilder::new()
            .shards(shards as usize)
            .estimated_items_capacity(usize::try_from(items).unwrap_or(usize::MAX))
            .weight_capacity(budget.0 / shards * shards)
            .hot_allocation(HOT_SHARE)
            .build();
        let frames = match options {
            Ok(options) => {
                Cache::with_options(options, FrameWeight, FixedState::default(), DefaultLifecycle::default())
            }
            // Only options left out are refused, and none is.
            Err(_) => {
                let hasher = FixedState::default();
                Cache::with(items as usize, budget.0, FrameWeight, hasher, DefaultLifecycle::default())
            }
        };
        MemoryCache {
            frames,
            flights: (0..FLIGHT_SHARDS).map(|_| FlightShard::default()).collect(),
            hasher: FixedState::default(),
            budget,
            inserted: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            waits: AtomicU64::new(0),
        }
    }

    /// The frame, if it is here.
    pub fn get(&self, frame: FrameId) -> Option<Bytes> {
        let found = self.frames.peek(&frame);
        let now = self.inserted.load(Ordering::Relaxed);
        if found.as_ref().is_some_and(|held| now.saturating_sub(held.born) >= self.youth()) {
            // Only this counts as a use.
            drop(self.frames.get(&frame));
        }
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found.map(|held| held.bytes)
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
                if let Some(held) = self.frames.peek(&frame) {
                    return Claim::Ready(held.bytes);
                }
                vacant.insert(Vec::new());
                Claim::Lead(Lead { cache: Arc::clone(self), frame, is_filled: false })
            }
        }
    }

    /// Keeps a frame that nobody claimed.
    pub fn insert(&self, frame: FrameId, bytes: Bytes) {
        let born = self.inserted.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.frames.insert(frame, Held { bytes, born });
    }

    /// True if the frame is here; does not count as a use.
    pub fn contains(&self, frame: FrameId) -> bool {
        self.frames.contains_key(&frame)
    }

    /// How much of what is new stays at least, before newer frames push it out.
    pub fn room_for_the_new(&self) -> ByteLen {
        ByteLen((self.budget.0 as f64 * (1.0 - HOT_SHARE)) as u64)
    }

    /// Bytes inserted behind a frame until its uses count.
    fn youth(&self) -> u64 {
        (self.room_for_the_new().0 as f64 * YOUNG_SHARE) as u64
    }

    /// What it did and what it holds.
    pub fn statistics(&self) -> MemoryStatistics {
        MemoryStatistics {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            waits: self.waits.load(Ordering::Relaxed),
            frames: self.frames.len() as u64,
            used: ByteLen(self.frames.weight()),
            budget: self.budget,
        }
    }

    fn flight_shard(&self, frame: FrameId) -> &FlightShard {
        &self.flights[self.hasher.hash_one(frame) as usize % FLIGHT_SHARDS]
    }

    fn end_flight(&self, frame: FrameId) -> Vec<oneshot::Sender<Bytes>> {
        self.flight_shard(frame).lock().remove(&frame).unwrap_or_default()
    }
}

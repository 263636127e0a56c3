//! Frames that are new to memory: first in, first out. How often they are used does not matter while they are here, since a sequential reader
//! asks for each frame several times in a row. What leaves is remembered by name for a while: a frame that is asked for again then has
//! proved that it is in use.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use foldhash::quality::FixedState;

use crate::units::FrameId;

/// What one shard has of them.
pub struct Newcomers {
    frames: HashMap<FrameId, Bytes, FixedState>,
    order: VecDeque<FrameId>,
    weight: u64,
    budget: u64,
    /// Those that left, and the number that each had when it did.
    gone: HashMap<FrameId, u64, FixedState>,
    gone_order: VecDeque<(FrameId, u64)>,
    gone_count: u64,
    gone_max: usize,
}

impl Newcomers {
    /// None, with room for `budget` bytes as [`weight`] counts them, and for the names of `gone_max` that left.
    pub fn new(budget: u64, gone_max: usize) -> Self {
        Newcomers {
            frames: HashMap::default(),
            order: VecDeque::new(),
            weight: 0,
            budget,
            gone: HashMap::default(),
            gone_order: VecDeque::new(),
            gone_count: 0,
            gone_max,
        }
    }

    /// A frame, if it is here.
    pub fn get(&self, frame: &FrameId) -> Option<&Bytes> {
        self.frames.get(frame)
    }

    /// Takes a frame in, unless it left not long ago: then it is given back, since it belongs among those in use. What has to leave for it is
    /// pushed onto `left`.
    pub fn insert(&mut self, frame: FrameId, bytes: Bytes, left: &mut Vec<(FrameId, Bytes)>) -> Option<Bytes> {
        if self.gone.remove(&frame).is_some() {
            return Some(bytes);
        }
        self.weight += weight(&bytes);
        match self.frames.insert(frame, bytes) {
            Some(before) => self.weight -= weight(&before),
            None => self.order.push_back(frame),
        }
        while self.weight > self.budget
            && let Some(oldest) = self.order.pop_front()
        {
            if let Some(bytes) = self.frames.remove(&oldest) {
                self.weight -= weight(&bytes);
                left.push((oldest, bytes));
            }
        }
        None
    }

    /// Remembers a frame that left and was not kept elsewhere.
    pub fn remember(&mut self, frame: FrameId) {
        self.gone_count += 1;
        self.gone.insert(frame, self.gone_count);
        self.gone_order.push_back((frame, self.gone_count));
        while self.gone_order.len() > self.gone_max
            && let Some((oldest, number)) = self.gone_order.pop_front()
        {
            // It may have come back and left again since.
            if self.gone.get(&oldest) == Some(&number) {
                self.gone.remove(&oldest);
            }
        }
    }

    /// Frames here, and their weight.
    pub fn held(&self) -> (u64, u64) {
        (self.frames.len() as u64, self.weight)
    }
}

/// What a cached frame takes besides its bytes: key, `Bytes`, links, hash table, the names of those that left, and the allocator's rounding.
const ENTRY_OVERHEAD_BYTES: u64 = 192;

/// What a frame takes in memory.
pub fn weight(bytes: &Bytes) -> u64 {
    bytes.len() as u64 + ENTRY_OVERHEAD_BYTES
}

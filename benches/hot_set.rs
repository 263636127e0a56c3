//! What a sequential scan takes from the hit ratio of a hot set: the real cache, memory and disk part, driven as the read path drives it, beside
//! a plain LRU and a plain FIFO of the same size. The same numbers in every run: chance has a seed, and nothing is timed.
//!
//! `hot_set DIRECTORY`: the disk part's file is made there. Goal: the scan takes less than 5 points.
//!
//! The hot set is read at random, 4 KiB at a time, places by Zipf's law; the scan reads four times the disk part in order, through read-ahead, in requests
//! of 4 or 128 KiB. Requests that share a frame ask the cache for it once each.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use varve::cache::{CacheSettings, Claim, ReadCache, SlotIndex};
use varve::disk::host::HostDisk;
use varve::error::{Error, Result};
use varve::units::{ByteLen, Epoch, FrameId, SegmentId, SegmentNumber, VolumeId};

/// Bytes of a frame, and of one that is stored: what compresses two to one.
const FRAME_BYTES: usize = 32 << 10;
const STORED_BYTES: usize = 16 << 10;
const FRAMES_PER_SEGMENT: u64 = 768;
const MEMORY: u64 = 64 << 20;
const DISK: u64 = 256 << 20;
/// Frames that fit.
const MEMORY_FRAMES: usize = MEMORY as usize / FRAME_BYTES;
const DISK_FRAMES: usize = DISK as usize / (STORED_BYTES + 64);
/// Frames of which the hot set is made: they do not all fit, as in life.
const HOT_FRAMES: usize = 2 * DISK_FRAMES;
const SCAN_FRAMES: u64 = 4 * DISK_FRAMES as u64;
/// Where the scan's frames begin.
const SCAN_START: u64 = 1 << 30;
/// Requests for one frame of a scan in blocks of 4 KiB.
const SMALL_REQUESTS: usize = FRAME_BYTES / 4096;

/// The index of slots as a table in memory.
#[derive(Default)]
struct Slots(Mutex<HashMap<FrameId, u64>>);

impl SlotIndex for Slots {
    fn get(&self, frame: FrameId) -> Result<Option<u64>> {
        Ok(self.0.lock().get(&frame).copied())
    }

    fn get_many(&self, frames: &[FrameId]) -> Result<Vec<Option<u64>>> {
        let slots = self.0.lock();
        Ok(frames.iter().map(|frame| slots.get(frame).copied()).collect())
    }

    fn apply(&self, puts: &[(FrameId, u64)], deletes: &[FrameId]) -> Result<()> {
        let mut slots = self.0.lock();
        for frame in deletes {
            slots.remove(frame);
        }
        slots.extend(puts.iter().copied());
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        self.0.lock().clear();
        Ok(())
    }
}

fn frame(number: u64) -> FrameId {
    let number_of_segment = SegmentNumber(number / FRAMES_PER_SEGMENT);
    let segment = SegmentId { volume: VolumeId(7), epoch: Epoch(1), number: number_of_segment };
    FrameId { segment, frame: (number % FRAMES_PER_SEGMENT) as u32 }
}

/// Where a frame was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Memory,
    Disk,
    Nowhere,
}

/// Something that frames are read through.
trait Reads {
    /// A request that reads one frame, or a part of it.
    fn read(&mut self, number: u64) -> Found;

    /// Frames that are read ahead.
    fn bring(&mut self, number: u64) {
        self.read(number);
    }

    /// How far ahead a sequential reader is led, in frames.
    fn window(&self) -> u64 {
        0
    }
}

/// The cache of varve, used as `src/volume/fetch.rs` uses it.
struct Real {
    cache: ReadCache,
    plain: Vec<u8>,
    stored: Vec<u8>,
}

impl Reads for Real {
    fn read(&mut self, number: u64) -> Found {
        let id = frame(number);
        let Claim::Lead(lead) = self.cache.claim(id) else { return Found::Memory };
        let found = self.cache.read_stored(id).is_some();
        lead.fill(Bytes::copy_from_slice(&self.plain));
        if !found && self.cache.admits(id) {
            self.cache.insert_stored(id, &self.stored);
        }
        if found { Found::Disk } else { Found::Nowhere }
    }

    fn window(&self) -> u64 {
        // As `near.rs` does it.
        self.cache.room_for_the_new().0 / 2 / FRAME_BYTES as u64
    }
}

/// A plain LRU.
struct Lru {
    room: usize,
    clock: u64,
    used_at: HashMap<u64, u64>,
    by_use: BTreeMap<u64, u64>,
}

impl Reads for Lru {
    fn read(&mut self, number: u64) -> Found {
        self.clock += 1;
        let before = self.used_at.insert(number, self.clock);
        if let Some(before) = before {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.clock, number);
        if self.used_at.len() > self.room
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.used_at.remove(&oldest);
        }
        if before.is_some() { Found::Memory } else { Found::Nowhere }
    }
}

/// A plain FIFO.
#[derive(Default)]
struct Fifo {
    room: usize,
    known: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Reads for Fifo {
    fn read(&mut self, number: u64) -> Found {
        if !self.known.insert(number) {
            return Found::Memory;
        }
        self.order.push_back(number);
        if self.order.len() > self.room
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        Found::Nowhere
    }
}

/// Reads of a hot set by Zipf's law.
struct HotSet {
    /// Which frame comes how often: the most read first.
    frames: Vec<u64>,
    sums: Vec<f64>,
    random: SmallRng,
}

impl HotSet {
    fn new(exponent: f64, seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut frames: Vec<u64> = (0..HOT_FRAMES as u64).collect();
        frames.shuffle(&mut random);
        let mut sum = 0.0;
        let weights = (1..=HOT_FRAMES).map(|rank| (rank as f64).powf(-exponent));
        let sums = weights.map(|weight| {
            sum += weight;
            sum
        });
        HotSet { frames, sums: sums.collect(), random }
    }

    fn next(&mut self) -> u64 {
        let total = self.sums[self.sums.len() - 1];
        let chosen = self.random.random_range(0.0..total);
        let rank = self.sums.partition_point(|sum| *sum <= chosen);
        self.frames[rank.min(self.frames.len() - 1)]
    }
}

/// How a scan goes.
#[derive(Clone, Copy)]
struct Scan {
    /// Requests for each frame.
    requests: usize,
    /// Frames of it for each hot read.
    frames_per_read: usize,
}

/// Hits of hot reads, in percent: in memory, and in either part.
#[derive(Clone, Copy, Default)]
struct Ratios {
    memory: f64,
    both: f64,
}

#[derive(Default)]
struct Count {
    reads: u64,
    memory: u64,
    both: u64,
}

impl Count {
    fn note(&mut self, found: Found) {
        self.reads += 1;
        self.memory += u64::from(found == Found::Memory);
        self.both += u64::from(found != Found::Nowhere);
    }

    fn ratios(&self) -> Ratios {
        let percent = |hits: u64| hits as f64 * 100.0 / self.reads as f64;
        Ratios { memory: percent(self.memory), both: percent(self.both) }
    }
}

/// Reads the hot set alone, then beside a scan, as often as there are frames of the scan for it.
fn measure(cache: &mut dyn Reads, exponent: f64, scan: Scan) -> (Ratios, Ratios) {
    let mut hot = HotSet::new(exponent, 1);
    for _ in 0..8 * HOT_FRAMES {
        cache.read(hot.next());
    }
    let reads = SCAN_FRAMES as usize / scan.frames_per_read;
    let (mut alone, mut beside) = (Count::default(), Count::default());
    (0..reads).for_each(|_| alone.note(cache.read(hot.next())));
    let window = cache.window();
    let (mut at, mut ahead) = (0, 0);
    for _ in 0..reads {
        beside.note(cache.read(hot.next()));
        for _ in 0..scan.frames_per_read {
            // A new window is fetched when three quarters of the last one are left, as `read_ahead.rs` does it.
            if window > 0 && ahead < at + window * 3 / 4 {
                (ahead..at + window).for_each(|number| cache.bring(SCAN_START + number));
                ahead = at + window;
            }
            for _ in 0..scan.requests {
                cache.read(SCAN_START + at);
            }
            at += 1;
        }
    }
    (alone.ratios(), beside.ratios())
}

fn real(directory: &Path) -> Real {
    let path = directory.join("cache");
    // The one before it is gone: a file that is there would be carried on with.
    let _ = std::fs::remove_file(&path);
    let settings = CacheSettings { memory: ByteLen(MEMORY), disk: ByteLen(DISK + (1 << 20)), path };
    let cache = ReadCache::open(&settings, &HostDisk, Arc::new(Slots::default()));
    let mut stored = vec![0; STORED_BYTES];
    SmallRng::seed_from_u64(3).fill_bytes(&mut stored);
    Real { cache, plain: vec![1; FRAME_BYTES], stored }
}

fn lru(room: usize) -> Lru {
    Lru { room, clock: 0, used_at: HashMap::new(), by_use: BTreeMap::new() }
}

fn fifo(room: usize) -> Fifo {
    Fifo { room, ..Fifo::default() }
}

fn line(what: &str, (alone, beside): (f64, f64)) {
    println!("  {what:<22} {alone:6.1} {beside:6.1} {:6.1}", alone - beside);
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [directory] = &arguments[..] else {
        return Err(Error::invalid("usage: hot_set DIRECTORY"));
    };
    println!(
        "memory {MEMORY_FRAMES} frames, disk {DISK_FRAMES}, hot set {HOT_FRAMES}, scan {SCAN_FRAMES}; hits of the hot set in percent: alone, beside \
         the scan, lost"
    );
    let mut worst = 0.0_f64;
    for exponent in [0.8, 1.0, 1.2] {
        for (name, requests, frames_per_read) in [("128 KiB", 1, 1), ("4 KiB", SMALL_REQUESTS, 4)] {
            let scan = Scan { requests, frames_per_read };
            println!("exponent {exponent:.1}, scan in requests of {name}, {frames_per_read} frames for each hot read");
            let (alone, beside) = measure(&mut real(Path::new(directory)), exponent, scan);
            line("varve, memory", (alone.memory, beside.memory));
            line("varve, memory or disk", (alone.both, beside.both));
            worst = worst.max(alone.both - beside.both);
            for (what, room) in [("memory", MEMORY_FRAMES), ("disk", DISK_FRAMES)] {
                let (alone, beside) = measure(&mut lru(room), exponent, scan);
                line(&format!("LRU as large as {what}"), (alone.both, beside.both));
                let (alone, beside) = measure(&mut fifo(room), exponent, scan);
                line(&format!("FIFO as large as {what}"), (alone.both, beside.both));
            }
        }
    }
    println!("worst loss, memory or disk: {worst:.1} points < 5.0{}", if worst < 5.0 { "" } else { "!" });
    Ok(())
}

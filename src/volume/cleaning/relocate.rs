//! Moving what is live out of segments: gathered here, packed into a segment of its own, which the uploader puts in its place in the
//! sequence. Its entries take effect only where the map still leads to the old place, so a write that comes between is never undone.
//!
//! After a crash: what was uploaded takes effect by recovery as by the owner; what was not is still where it was.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::format::census::ObjectAt;
use crate::format::segment::{EntryKind, SegmentHeader, SegmentIndex};
use crate::limits::FRAME_BLOCKS;
use crate::map::SegmentPlace;
use crate::seal::VolumeKey;
use crate::segment::{BuiltSegment, SegmentBuilder};
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange, FrameId, Lba, SegmentId, SegmentNumber};
use crate::volume::cleaning::aside::frames_aside;
use crate::volume::core::Volume;
use crate::volume::fetch::segment_index;
use crate::volume::keep::keep_on_disk;
use crate::volume::packers::Pace;

/// Frames of which the blocks are copied at a time: bounds memory.
const FRAMES_AT_ONCE: usize = 128;

/// A run of blocks that lie together in a segment, and their content.
struct LiveRun {
    range: BlockRange,
    place: SegmentPlace,
    /// Where in the gathered bytes they begin.
    at: usize,
    was_cached: bool,
}

/// Blocks on their way into another segment.
#[derive(Default)]
pub struct Relocation {
    runs: Vec<LiveRun>,
    data: Vec<u8>,
}

impl Relocation {
    /// Blocks in it.
    pub fn blocks(&self) -> u64 {
        self.data.len() as u64 / BLOCK_SIZE
    }

    /// Packs it as the segment of this name: in the order of the volume, so that neighbours come to lie side by side.
    ///
    /// # Errors
    /// What the compressor and the pace say.
    pub fn pack(
        &self,
        header: SegmentHeader,
        key: Option<Arc<VolumeKey>>,
        pace: &Pace,
    ) -> Result<(BuiltSegment, BTreeSet<u32>)> {
        let mut runs: Vec<&LiveRun> = self.runs.iter().collect();
        runs.sort_unstable_by_key(|run| run.range.start);
        let mut builder = SegmentBuilder::new(header, BlockCount(self.blocks()), key);
        let (mut read, mut block) = (BTreeSet::new(), 0);
        for run in runs {
            let bytes = &self.data[run.at..][..run.range.count.bytes().0 as usize];
            builder.push_moved(run.range, run.place, |from, buffer| {
                pace.go_on()?;
                let start = (from * BLOCK_SIZE) as usize;
                buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
                Ok(())
            })?;
            let end = block + run.range.count.0;
            if run.was_cached {
                read.extend((block / FRAME_BLOCKS..=(end - 1) / FRAME_BLOCKS).map(|frame| frame as u32));
            }
            block = end;
        }
        Ok((builder.finish()?, read))
    }
}

impl Volume {
    pub(in crate::volume) fn own_segment(&self, at: ObjectAt) -> SegmentId {
        SegmentId { volume: self.id, epoch: at.epoch, number: SegmentNumber(at.number) }
    }

    /// The blocks of a segment to which the map leads, by its places.
    ///
    /// # Errors
    /// `Damaged`; what RocksDB and the store say.
    pub(super) async fn live_places(&self, index: &SegmentIndex) -> Result<Vec<(BlockRange, SegmentPlace)>> {
        let (mut live, mut places) = (Vec::new(), Vec::new());
        for entry in index.entries.iter().filter(|entry| entry.kind != EntryKind::Zero) {
            self.pages.lookup(entry.range, &mut places).await?;
            let here = places.drain(..).filter_map(|found| Some((found.range, found.place?)));
            live.extend(here.filter(|(_, place)| place.segment == index.header.id));
        }
        live.sort_unstable_by_key(|(_, place)| place.block);
        Ok(live)
    }

    /// Copies what is live of a segment.
    ///
    /// # Errors
    /// `Damaged` if something live cannot be read: nothing of the segment is in the relocation then. What RocksDB and the store say.
    pub(super) async fn gather_live(&self, at: ObjectAt, relocation: &mut Relocation) -> Result<()> {
        let index = segment_index(&self.shared, self.own_segment(at)).await?;
        let live = self.live_places(&index).await?;
        self.gather_places(&index, &live, relocation).await
    }

    /// Copies these blocks of a segment, which are in its order.
    ///
    /// # Errors
    /// As [`Volume::gather_live`].
    pub(super) async fn gather_places(
        &self,
        index: &Arc<SegmentIndex>,
        live: &[(BlockRange, SegmentPlace)],
        relocation: &mut Relocation,
    ) -> Result<()> {
        let before = (relocation.runs.len(), relocation.data.len());
        let copied = self.copy(index, live, relocation).await;
        if copied.is_err() {
            relocation.runs.truncate(before.0);
            relocation.data.truncate(before.1);
        }
        copied
    }

    async fn copy(
        &self,
        index: &Arc<SegmentIndex>,
        live: &[(BlockRange, SegmentPlace)],
        relocation: &mut Relocation,
    ) -> Result<()> {
        // Cut where frames end, so that each piece comes from one.
        let pieces: Vec<(u32, BlockRange, SegmentPlace)> =
            live.iter().flat_map(|(range, place)| cut_at_frames(*range, *place)).collect();
        let mut rest = &pieces[..];
        while !rest.is_empty() {
            let numbers: BTreeSet<u32> = rest.iter().map(|(frame, ..)| *frame).collect();
            let numbers: Vec<u32> = numbers.into_iter().take(FRAMES_AT_ONCE).collect();
            let last = numbers.last().copied().unwrap_or(0);
            let (now, later) = rest.split_at(rest.partition_point(|(frame, ..)| *frame <= last));
            rest = later;
            let frames = frames_aside(&self.shared, index, &numbers).await?;
            for (number, range, place) in now {
                let found = frames.binary_search_by_key(number, |frame| frame.number).ok().map(|at| &frames[at]);
                let within = (u64::from(place.block) % FRAME_BLOCKS * BLOCK_SIZE) as usize;
                let bytes = range.count.bytes().0 as usize;
                let source = found.and_then(|frame| frame.plain.get(within..within + bytes));
                let (Some(frame), Some(source)) = (found, source) else {
                    let id = index.header.id;
                    return Err(Error::damaged(format!("segment {id} lacks block {}", place.block)));
                };
                relocation.push(*range, *place, source, frame.was_cached);
            }
        }
        Ok(())
    }

    /// Has a relocation uploaded, and waits until it has taken effect.
    ///
    /// # Errors
    /// `Stopping` if the attachment ends first.
    pub(super) async fn relocate(&self, relocation: Relocation) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        *self.relocation.lock() = Some((relocation, sender));
        self.upload_wake.notify_one();
        self.answered(receiver).await
    }

    /// Keeps frames of a new segment in the cache, since what they hold was there before it was moved.
    pub(in crate::volume) fn keep_moved(&self, built: &BuiltSegment, frames: &BTreeSet<u32>) {
        let id = built.index.header.id;
        for &number in frames {
            if let Some(frame) = built.index.frames.get(number as usize) {
                let start = frame.offset as usize;
                let stored = &built.bytes[start..start + frame.stored_length as usize];
                keep_on_disk(&self.shared, FrameId { segment: id, frame: number }, stored);
            }
        }
    }
}

impl Relocation {
    fn push(&mut self, range: BlockRange, place: SegmentPlace, bytes: &[u8], was_cached: bool) {
        let at = self.data.len();
        self.data.extend_from_slice(bytes);
        if let Some(last) = self.runs.last_mut() {
            let continues = last.range.end() == range.start
                && last.place.plus(last.range.count.0 as u32) == place
                && last.at + last.range.count.bytes().0 as usize == at;
            if continues {
                last.range.count.0 += range.count.0;
                last.was_cached |= was_cached;
                return;
            }
        }
        self.runs.push(LiveRun { range, place, at, was_cached });
    }
}

fn cut_at_frames(range: BlockRange, place: SegmentPlace) -> Vec<(u32, BlockRange, SegmentPlace)> {
    let mut pieces = Vec::new();
    let mut done = 0;
    while done < range.count.0 {
        let block = u64::from(place.block) + done;
        let count = (FRAME_BLOCKS - block % FRAME_BLOCKS).min(range.count.0 - done);
        let part = BlockRange::new(Lba(range.start.0 + done), BlockCount(count));
        pieces.push(((block / FRAME_BLOCKS) as u32, part, place.plus(done as u32)));
        done += count;
    }
    pieces
}

//! The read path: overlay first, then pages; log, zeros, or segments through the cache.
//!
//! A place in the log may be given back between the look-up and the read. The log notices (the record is no longer the one
//! that was looked up), and the look-up is done again: by then the pages know the block.

use std::sync::Arc;

use crate::block_device::{Attempt, Residence, ResidenceExtent};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::REQUEST_BYTES_MAX;
use crate::log::LogRead;
use crate::map::{LogPlace, OverlayPlace, PagePlace, SegmentPlace};
use crate::units::{BLOCK_SIZE, BlockRange, FrameId};
use crate::volume::core::Volume;
use crate::volume::fetch::{self, Piece};
use crate::volume::gate::Refusal;

/// How often a read looks up again because the log gave a place back, before it is called damaged.
const LOOKUPS_MAX: usize = 100;

/// How much of a volume one query looks at, so that it ends soon on a large and empty one.
const RESIDENCE_SCAN_BYTES: u64 = 4 << 30;

/// Where a run of blocks is.
#[derive(Clone, Copy, Debug)]
enum Source {
    Log(LogPlace),
    Zero,
    Segment(SegmentPlace),
}

type Runs = Vec<(BlockRange, Source)>;

impl Volume {
    /// Checks a range of bytes.
    pub(super) fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        let size = self.size_bytes();
        if length == 0 || offset.checked_add(length).is_none_or(|end| end > size) {
            let message = format!("{length} bytes at {offset} do not lie within volume {} ({size} bytes)", self.id);
            return Err(Error::invalid(message));
        }
        Ok(())
    }

    pub(super) fn try_read_bytes(self: &Arc<Self>, offset: u64, buffer: &mut [u8]) -> Attempt {
        let checked = match self.gate.check() {
            Ok(()) => self.check_range(offset, buffer.len() as u64),
            Err(Refusal::Doubtful) => return Attempt::WouldBlock,
            Err(Refusal::Closed(error)) => Err(error),
        };
        if let Err(error) = checked {
            return Attempt::Failed(error);
        }
        let range = BlockRange::covering(offset, buffer.len() as u64);
        if is_whole(offset, buffer.len()) {
            return self.try_read_blocks(range, buffer);
        }
        let mut blocks = vec![0; range.count.bytes().0 as usize];
        let outcome = self.try_read_blocks(range, &mut blocks);
        let start = (offset - range.start.byte_offset()) as usize;
        buffer.copy_from_slice(&blocks[start..start + buffer.len()]);
        outcome
    }

    pub(super) async fn read_bytes(self: &Arc<Self>, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.pass_gate().await?;
        self.check_range(offset, buffer.len() as u64)?;
        if buffer.len() as u64 > REQUEST_BYTES_MAX {
            return Err(Error::invalid(format!("a read of {} bytes is longer than {REQUEST_BYTES_MAX}", buffer.len())));
        }
        self.note_stream(offset, buffer.len() as u64);
        let range = BlockRange::covering(offset, buffer.len() as u64);
        if is_whole(offset, buffer.len()) {
            return self.read_blocks(range, buffer).await;
        }
        let mut blocks = vec![0; range.count.bytes().0 as usize];
        self.read_blocks(range, &mut blocks).await?;
        let start = (offset - range.start.byte_offset()) as usize;
        buffer.copy_from_slice(&blocks[start..start + buffer.len()]);
        Ok(())
    }

    /// Fills `buffer` with the blocks of `range` if all of them are at hand.
    pub(super) fn try_read_blocks(&self, range: BlockRange, buffer: &mut [u8]) -> Attempt {
        let mut runs = Runs::new();
        let mut places = Vec::new();
        if !self.gather(range, &mut runs, &mut places) {
            return Attempt::WouldBlock;
        }
        for (run, source) in runs {
            let part = slice_of(range, run, buffer);
            match source {
                Source::Zero => part.fill(0),
                Source::Segment(place) => {
                    if !fetch::try_copy(&self.shared, place, part) {
                        return Attempt::WouldBlock;
                    }
                }
                Source::Log(place) => match self.log.read_blocks(place.record, place.block, part) {
                    Ok(LogRead::Done) => {}
                    Ok(LogRead::Gone) => return Attempt::WouldBlock,
                    Err(error) => return Attempt::Failed(self.log_damage(run, error)),
                },
            }
        }
        Attempt::Done
    }

    /// Pushes what the overlay knows of a range onto `runs`, and returns the parts that only the pages know.
    fn gather_overlay(&self, range: BlockRange, runs: &mut Runs) -> Vec<BlockRange> {
        let mut below = Vec::new();
        self.overlay.read().lookup(range, |run, place| match place {
            OverlayPlace::Log(place) => runs.push((run, Source::Log(place))),
            OverlayPlace::Zero(_) => runs.push((run, Source::Zero)),
            OverlayPlace::Below => below.push(run),
        });
        below
    }

    /// Looks up a range if its pages are in memory: the overlay's answer, and the pages' where the overlay has none.
    fn gather(&self, range: BlockRange, runs: &mut Runs, places: &mut Vec<PagePlace>) -> bool {
        for run in self.gather_overlay(range, runs) {
            if !self.pages.try_lookup(run, places) {
                return false;
            }
        }
        runs.extend(places.drain(..).map(from_page));
        true
    }

    /// Looks up a range, loading pages as needed.
    async fn gather_waiting(&self, range: BlockRange) -> Result<Runs> {
        let mut runs = Runs::new();
        let below = self.gather_overlay(range, &mut runs);
        let mut places = Vec::new();
        for run in below {
            self.pages.lookup(run, &mut places).await?;
        }
        runs.extend(places.into_iter().map(from_page));
        runs.sort_by_key(|(run, _)| run.start);
        Ok(runs)
    }

    /// Fills `buffer` with the blocks of `range`, fetching what is missing.
    pub(super) async fn read_blocks(&self, range: BlockRange, buffer: &mut [u8]) -> Result<()> {
        for _ in 0..LOOKUPS_MAX {
            let runs = self.gather_waiting(range).await?;
            if self.read_runs(runs, buffer).await? {
                return Ok(());
            }
        }
        Err(Error::damaged(format!("blocks from {} of volume {} cannot be found in the log", range.start, self.id)))
    }

    /// Reads runs that adjoin each other and together fill `buffer`. False if a place in the log was given back meanwhile.
    async fn read_runs(&self, runs: Runs, buffer: &mut [u8]) -> Result<bool> {
        let mut pieces = Vec::new();
        let mut rest = buffer;
        for (run, source) in runs {
            let (part, behind) = rest.split_at_mut(run.count.bytes().0 as usize);
            rest = behind;
            match source {
                Source::Zero => part.fill(0),
                Source::Segment(place) => pieces.push(Piece { place, buffer: part }),
                Source::Log(place) => match self.log.read_blocks(place.record, place.block, part) {
                    Ok(LogRead::Done) => {}
                    Ok(LogRead::Gone) => return Ok(false),
                    Err(error) => return Err(self.log_damage(run, error)),
                },
            }
        }
        fetch::fetch(&self.shared, pieces).await?;
        Ok(true)
    }

    fn log_damage(&self, run: BlockRange, error: Error) -> Error {
        let kind = error.kind();
        let error = Error::new(kind, format!("blocks {} to {} of volume {}: {error}", run.start, run.end(), self.id));
        if kind == ErrorKind::Damaged {
            tracing::error!(volume = %self.id, %error, "the write log is damaged");
        }
        error
    }

    /// Notes a read that goes to segments, and reads ahead of it in the background if it is one of a sequence.
    pub(super) fn note_stream(self: &Arc<Self>, offset: u64, length: u64) {
        let range = self.read_ahead.lock().note(offset, length, self.size_bytes());
        if let Some(range) = range {
            let volume = self.clone();
            self.shared.runtime.spawn(async move {
                if let Err(error) = volume.bring_near(range.start, range.end - range.start).await {
                    tracing::debug!(volume = %volume.id, %error, "reading ahead failed");
                }
            });
        }
    }

    /// Brings a range into the memory part of the cache.
    pub(super) async fn bring_near(&self, offset: u64, length: u64) -> Result<()> {
        let step = 4 << 20;
        let mut at = offset;
        let mut fetches = Vec::new();
        while at < offset + length {
            let part = step.min(offset + length - at);
            let runs = self.gather_waiting(BlockRange::covering(at, part)).await?;
            for (run, source) in runs {
                if let Source::Segment(place) = source {
                    let shared = self.shared.clone();
                    let load = async move { fetch::load_frames(&shared, place, run.count.0).await.map(drop) };
                    fetches.push(self.shared.runtime.spawn(load));
                }
            }
            at += part;
        }
        for fetch in fetches {
            fetch.await.map_err(|_| Error::new(ErrorKind::Stopping, "the daemon is stopping"))??;
        }
        Ok(())
    }

    /// Says where the bytes of a range are.
    pub(super) async fn residence_of(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<ResidenceExtent>> {
        self.pass_gate().await?;
        self.check_range(offset, length)?;
        let mut extents: Vec<ResidenceExtent> = Vec::new();
        let end = offset + length;
        let mut at = offset;
        let scan_end = end.min(offset + RESIDENCE_SCAN_BYTES);
        while at < scan_end && extents.len() <= extents_max {
            let part = (scan_end - at).min(64 << 20);
            for (run, source) in self.gather_waiting(BlockRange::covering(at, part)).await? {
                let from = run.start.byte_offset().max(at);
                let to = run.end().byte_offset().min(end);
                for (length, residence) in self.residences(source, to - from) {
                    match extents.last_mut() {
                        Some(last) if last.residence == residence => last.length += length,
                        _ => extents.push(ResidenceExtent { length, residence }),
                    }
                }
            }
            at += part;
        }
        extents.truncate(extents_max.max(1));
        Ok(extents)
    }

    /// The residence of a run, frame by frame where it lies in a segment.
    fn residences(&self, source: Source, length: u64) -> Vec<(u64, Residence)> {
        let place = match source {
            Source::Zero => return vec![(length, Residence::Hole)],
            Source::Log(_) => return vec![(length, Residence::Log)],
            Source::Segment(place) => place,
        };
        let frame_blocks = crate::limits::FRAME_BLOCKS;
        let (mut block, mut left) = (u64::from(place.block), length);
        let mut residences = Vec::new();
        while left > 0 {
            let id = FrameId { segment: place.segment, frame: (block / frame_blocks) as u32 };
            let in_frame = (frame_blocks - block % frame_blocks) * BLOCK_SIZE;
            let cached = self.shared.cache.contains(id);
            let part = in_frame.min(left);
            residences.push((part, if cached { Residence::Cache } else { Residence::Store }));
            block += in_frame / BLOCK_SIZE;
            left -= part;
        }
        residences
    }
}

fn from_page(place: PagePlace) -> (BlockRange, Source) {
    (place.range, place.place.map_or(Source::Zero, Source::Segment))
}

fn is_whole(offset: u64, length: usize) -> bool {
    offset.is_multiple_of(BLOCK_SIZE) && (length as u64).is_multiple_of(BLOCK_SIZE)
}

/// The part of `buffer`, which holds `range`, that holds `run`.
fn slice_of(range: BlockRange, run: BlockRange, buffer: &mut [u8]) -> &mut [u8] {
    let start = ((run.start.0 - range.start.0) * BLOCK_SIZE) as usize;
    &mut buffer[start..start + run.count.bytes().0 as usize]
}

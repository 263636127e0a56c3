//! The read path: overlay first, then pages; log, zeros, or segments through the cache.
//!
//! A place in the log may be given back between the look-up and the read. The log notices (the record is no longer the one
//! that was looked up), and the look-up is done again: by then the pages know the block.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::block_device::{Attempt, ChangeExtent, Residence, ResidenceExtent, Sharing};
use crate::error::{Error, ErrorKind, Result};
use crate::lineage::{self, FrozenMap};
use crate::log::LogRead;
use crate::map::{LogPlace, OverlayPlace, PagePlace, SegmentPlace, join_places};
use crate::units::{BlockCount, BlockRange};
use crate::volume::core::Volume;
use crate::volume::fetch;
use crate::volume::gate::Refusal;
use crate::volume::near::{self, Content, Loads, ReadsAhead, Residences, WholeBlocks};
use crate::volume::read_ahead::ReadAhead;
use crate::volume::shared::Shared;

/// How often a read looks up again because the log gave a place back, before it is called damaged.
const LOOKUPS_MAX: usize = 100;

/// Where a run of blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Log(LogPlace),
    Zero,
    Segment(SegmentPlace),
}

type Runs = Vec<(BlockRange, Source)>;

impl Source {
    /// So many blocks from here, unless they are in the log.
    fn frozen(self, count: BlockCount) -> Option<Content> {
        match self {
            Source::Log(_) => None,
            Source::Zero => Some(Content::Zeros(count)),
            Source::Segment(place) => Some(Content::Segment(place, count)),
        }
    }
}

impl Volume {
    /// Checks a range of bytes.
    pub(super) fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        near::check_range(format_args!("volume {}", self.id), self.size_bytes(), offset, length)
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
        let length = buffer.len() as u64;
        let mut blocks = WholeBlocks::around(offset, buffer);
        let outcome = self.try_read_blocks(blocks.range, blocks.bytes());
        blocks.finish();
        if matches!(outcome, Attempt::Done) {
            self.first_reads.note(offset, length);
            self.note_hit(offset, length);
        }
        outcome
    }

    /// The bytes of a range in parts, if all of them are zeros or in frames at hand.
    pub(super) fn try_share_bytes(self: &Arc<Self>, offset: u64, length: u64) -> Sharing {
        if self.gate.check().is_err() || self.check_range(offset, length).is_err() {
            return Sharing::Copy;
        }
        let range = BlockRange::covering(offset, length);
        let mut runs = Runs::new();
        match self.gather(range, &mut runs, &mut Vec::new()) {
            Ok(true) => {}
            Ok(false) => return Sharing::WouldBlock,
            Err(_) => return Sharing::Copy,
        }
        runs.sort_by_key(|(run, _)| run.start);
        let contents: Option<Vec<Content>> = runs.into_iter().map(|(run, source)| source.frozen(run.count)).collect();
        let Some(contents) = contents else { return Sharing::Copy };
        let Some(parts) = near::try_share(&self.shared, contents) else { return Sharing::WouldBlock };
        self.first_reads.note(offset, length);
        self.note_hit(offset, length);
        Sharing::Parts(near::cut(parts, range.start, offset, length))
    }

    /// The bytes of a range in parts, fetching what is missing.
    pub(super) async fn share_bytes(self: &Arc<Self>, offset: u64, length: u64) -> Result<Vec<Bytes>> {
        self.pass_gate().await?;
        self.check_range(offset, length)?;
        near::check_read_length(length)?;
        self.first_reads.note(offset, length);
        self.note_stream(offset, length);
        let range = BlockRange::covering(offset, length);
        let parts = self.share_blocks(range).await?;
        self.stand_by().await?;
        Ok(near::cut(parts, range.start, offset, length))
    }

    /// Fills `buffer` with the blocks of `range` if all of them are at hand.
    pub(super) fn try_read_blocks(&self, range: BlockRange, buffer: &mut [u8]) -> Attempt {
        let mut runs = Runs::new();
        let mut places = Vec::new();
        match self.gather(range, &mut runs, &mut places) {
            Ok(true) => {}
            Ok(false) => return Attempt::WouldBlock,
            Err(error) => return Attempt::Failed(error),
        }
        for (run, source) in runs {
            let part = near::slice_of(range, run, buffer);
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
    fn gather_overlay(&self, range: BlockRange, runs: &mut Runs) -> Result<Vec<BlockRange>> {
        let mut below = Vec::new();
        self.overlay()?.lookup(range, |run, place| match place {
            OverlayPlace::Log(place) => runs.push((run, Source::Log(place))),
            OverlayPlace::Zero(_) => runs.push((run, Source::Zero)),
            OverlayPlace::Below => below.push(run),
        });
        Ok(below)
    }

    /// Looks up a range if its pages are in memory: the overlay's answer, and the pages' where the overlay has none. False if they are not.
    fn gather(&self, range: BlockRange, runs: &mut Runs, places: &mut Vec<PagePlace>) -> Result<bool> {
        for run in self.gather_overlay(range, runs)? {
            if !self.pages.try_lookup(run, places) {
                return Ok(false);
            }
        }
        join_places(places);
        runs.extend(places.drain(..).map(from_page));
        Ok(true)
    }

    /// Looks up a range, loading pages as needed.
    async fn gather_waiting(&self, range: BlockRange) -> Result<Runs> {
        let mut runs = Runs::new();
        let below = self.gather_overlay(range, &mut runs)?;
        let mut places = Vec::new();
        for run in below {
            let found = self.pages.lookup_to_read(run, &mut places).await;
            self.unless_put_out(found).await?;
        }
        join_places(&mut places);
        runs.extend(places.into_iter().map(from_page));
        runs.sort_by_key(|(run, _)| run.start);
        Ok(runs)
    }

    /// Fills `buffer` with the blocks of `range`, fetching what is missing.
    pub(super) async fn read_blocks(&self, range: BlockRange, buffer: &mut [u8]) -> Result<()> {
        near::copy_parts(&self.share_blocks(range).await?, buffer);
        Ok(())
    }

    /// The blocks of `range`, fetching what is missing.
    async fn share_blocks(&self, range: BlockRange) -> Result<Vec<Bytes>> {
        for _ in 0..LOOKUPS_MAX {
            let runs = self.gather_waiting(range).await?;
            match self.share_runs(&runs).await {
                Ok(Some(parts)) => return Ok(parts),
                Ok(None) => {}
                Err(error) => self.only_if_moved(range, &runs, error).await?,
            }
        }
        Err(Error::damaged(format!("blocks from {} of volume {} cannot be found in the log", range.start, self.id)))
    }

    /// A segment that cannot be read may have been emptied and deleted since it was looked up: then its blocks are elsewhere by now. It may
    /// also be another owner who did that.
    ///
    /// # Errors
    /// `error`, if nothing has moved; `Fenced`, if this attachment turns out to be over; what the store says, if it cannot tell.
    async fn only_if_moved(&self, range: BlockRange, runs: &Runs, error: Error) -> Result<()> {
        if !error.is_damage() {
            return Err(error);
        }
        if self.gather_waiting(range).await? != *runs {
            return Ok(());
        }
        self.unless_put_out(Err(error)).await
    }

    /// Begins to bring a range into the memory part of the cache; returns where it lies.
    async fn begin_near(&self, range: BlockRange, loads: &mut Loads) -> Result<Runs> {
        let runs = self.gather_waiting(range).await?;
        for (run, source) in &runs {
            if let Source::Segment(place) = source {
                loads.begin(&self.shared, *place, run.count.0);
            }
        }
        Ok(runs)
    }

    /// Brings a range near although some of it may move meanwhile.
    async fn follow_near(&self, range: BlockRange) -> Result<()> {
        for _ in 0..LOOKUPS_MAX {
            let mut loads = Loads::default();
            let runs = self.begin_near(range, &mut loads).await?;
            match loads.finish().await {
                Ok(()) => return Ok(()),
                Err(error) => self.only_if_moved(range, &runs, error).await?,
            }
        }
        // A hint that cannot be followed as fast as its blocks move does no harm.
        Ok(())
    }

    /// Reads runs that adjoin each other. `None` if a place in the log was given back meanwhile.
    async fn share_runs(&self, runs: &Runs) -> Result<Option<Vec<Bytes>>> {
        let mut contents = Vec::with_capacity(runs.len());
        for &(run, source) in runs {
            let content = match source {
                Source::Log(place) => {
                    let mut bytes = vec![0; run.count.bytes().0 as usize];
                    match self.log.read_blocks(place.record, place.block, &mut bytes) {
                        Ok(LogRead::Done) => Content::Bytes(bytes.into()),
                        Ok(LogRead::Gone) => return Ok(None),
                        Err(error) => return Err(self.log_damage(run, error)),
                    }
                }
                Source::Zero => Content::Zeros(run.count),
                Source::Segment(place) => Content::Segment(place, run.count),
            };
            contents.push(content);
        }
        near::share(&self.shared, contents).await.map(Some)
    }

    fn log_damage(&self, run: BlockRange, error: Error) -> Error {
        let kind = error.kind();
        let error = Error::new(kind, format!("blocks {} to {} of volume {}: {error}", run.start, run.end(), self.id));
        if kind == ErrorKind::Damaged {
            tracing::error!(volume = %self.id, %error, "the write log is damaged");
        }
        error
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
        let mut residences = Residences::default();
        for part in near::residence_steps(offset, length) {
            if residences.len() > extents_max {
                break;
            }
            for (run, source) in self.gather_waiting(BlockRange::covering(part.start, part.end - part.start)).await? {
                let length = near::length_within(run, &part);
                match source {
                    Source::Zero => residences.push(length, Residence::Hole),
                    Source::Log(_) => residences.push(length, Residence::Log),
                    Source::Segment(place) => residences.push_segment(&self.shared, place, length),
                }
            }
        }
        Ok(residences.finish(extents_max))
    }

    /// Says where a range may differ from a snapshot. What is not stored yet was written after every snapshot that there is.
    pub(super) async fn changed_since(
        &self,
        snapshot: &FrozenMap,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<ChangeExtent>> {
        self.pass_gate().await?;
        self.check_range(offset, length)?;
        // Looked at first: what is stored by now has reached the pages, which are compared afterwards.
        let stored = self.progress.lock().stored().end;
        let range = BlockRange::covering(offset, length);
        let mut changed = Vec::new();
        self.overlay()?.lookup(range, |run, place| match place {
            OverlayPlace::Log(LogPlace { record, .. }) | OverlayPlace::Zero(record) if record >= stored => {
                changed.push(run);
            }
            _ => {}
        });
        let (compared, looked) = lineage::changes_within(snapshot, &self.pages, range, extents_max).await?;
        changed.extend(compared);
        changed.sort_by_key(|run| run.start);
        Ok(near::change_extents(offset, offset + length, looked, &changed, extents_max))
    }
}

impl ReadsAhead for Volume {
    fn name(&self) -> String {
        self.id.to_string()
    }

    fn size(&self) -> u64 {
        self.size_bytes()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn reads(&self) -> &Mutex<ReadAhead> {
        &self.read_ahead
    }

    async fn bring_near(&self, offset: u64, length: u64) -> Result<()> {
        let mut loads = Loads::default();
        for range in near::steps(offset, length) {
            self.begin_near(range, &mut loads).await?;
        }
        match loads.finish().await {
            Err(error) if error.is_damage() => {
                for range in near::steps(offset, length) {
                    self.follow_near(range).await?;
                }
                Ok(())
            }
            done => done,
        }
    }
}

fn from_page(place: PagePlace) -> (BlockRange, Source) {
    (place.range, place.place.map_or(Source::Zero, Source::Segment))
}

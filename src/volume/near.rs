//! What every disk over segments does alike, whether it changes or not: reads that begin or end within a block, bringing segments near, and
//! telling where they are.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::future::join_all;
use parking_lot::Mutex;

use crate::block_device::{ChangeExtent, Residence, ResidenceExtent};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{FRAME_BLOCKS, NEAR_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::map::SegmentPlace;
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange, FrameId, Lba};
use crate::volume::fetch;
use crate::volume::read_ahead::{self, ReadAhead};
use crate::volume::shared::Shared;
use crate::work::Task;

/// How much of a disk one query looks at, so that it ends soon on a large and empty one.
const RESIDENCE_SCAN_BYTES: u64 = 4 << 30;
/// How much of it is looked up at a time.
const RESIDENCE_STEP_BYTES: u64 = 64 << 20;
/// How much is looked up at a time to be brought near.
const NEAR_STEP_BYTES: u64 = fetch::FETCH_BYTES_MAX;

/// The blocks of `length` bytes from `offset` on, in parts that are looked up at a time to be brought near.
pub fn steps(offset: u64, length: u64) -> impl Iterator<Item = BlockRange> {
    parts(offset, length, NEAR_STEP_BYTES).map(|part| BlockRange::covering(part.start, part.end - part.start))
}

/// The bytes that one query looks at, in parts that are looked up at a time.
pub fn residence_steps(offset: u64, length: u64) -> impl Iterator<Item = Range<u64>> {
    parts(offset, length.min(RESIDENCE_SCAN_BYTES), RESIDENCE_STEP_BYTES)
}

/// How many bytes of these blocks lie within a part.
pub fn length_within(run: BlockRange, part: &Range<u64>) -> u64 {
    run.end().byte_offset().min(part.end) - run.start.byte_offset().max(part.start)
}

/// The bytes from `offset` on, cut into parts of `longest`.
fn parts(offset: u64, length: u64, longest: u64) -> impl Iterator<Item = Range<u64>> {
    let end = offset + length;
    (offset..end).step_by(longest as usize).map(move |at| at..end.min(at + longest))
}

/// Checks that a range of bytes lies within a disk of `size` bytes, which is called `name`.
///
/// # Errors
/// `Invalid`.
pub fn check_range(name: impl std::fmt::Display, size: u64, offset: u64, length: u64) -> Result<()> {
    if length == 0 || offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(Error::invalid(format!("{length} bytes at {offset} do not lie within {name} ({size} bytes)")));
    }
    Ok(())
}

/// Checks the length of a read.
///
/// # Errors
/// `Invalid`.
pub fn check_read_length(length: u64) -> Result<()> {
    if length > REQUEST_BYTES_MAX {
        return Err(Error::invalid(format!("a read of {length} bytes is longer than {REQUEST_BYTES_MAX}")));
    }
    Ok(())
}

/// The whole blocks around the bytes that a read asks for: its own buffer, if these are whole blocks.
pub struct WholeBlocks<'a> {
    /// The blocks.
    pub range: BlockRange,
    offset: u64,
    buffer: &'a mut [u8],
    own: Option<Vec<u8>>,
}

impl<'a> WholeBlocks<'a> {
    /// Room for the blocks around the bytes from `offset` on that `buffer` is for.
    pub fn around(offset: u64, buffer: &'a mut [u8]) -> Self {
        let length = buffer.len() as u64;
        let range = BlockRange::covering(offset, length);
        let is_whole = offset.is_multiple_of(BLOCK_SIZE) && length.is_multiple_of(BLOCK_SIZE);
        let own = (!is_whole).then(|| vec![0; range.count.bytes().0 as usize]);
        WholeBlocks { range, offset, buffer, own }
    }

    /// Where the blocks go.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.own.as_deref_mut().unwrap_or(self.buffer)
    }

    /// Puts what was asked for into the read's buffer.
    pub fn finish(self) {
        if let Some(own) = self.own {
            let start = (self.offset - self.range.start.byte_offset()) as usize;
            self.buffer.copy_from_slice(&own[start..start + self.buffer.len()]);
        }
    }
}

/// What a run of blocks holds.
pub enum Content {
    /// So many blocks of zeros.
    Zeros(BlockCount),
    /// These bytes.
    Bytes(Bytes),
    /// So many blocks of a segment.
    Segment(SegmentPlace, BlockCount),
}

/// The content of runs that adjoin each other, in parts, if all of it is at hand.
pub fn try_share(shared: &Shared, contents: impl IntoIterator<Item = Content>) -> Option<Vec<Bytes>> {
    let mut parts = Vec::new();
    for content in contents {
        match content {
            Content::Zeros(count) => parts.extend(zeros(count)),
            Content::Bytes(bytes) => parts.push(bytes),
            Content::Segment(place, count) if fetch::try_share(shared, place, count.0, &mut parts) => {}
            Content::Segment(..) => return None,
        }
    }
    Some(parts)
}

/// The content of runs that adjoin each other, in parts; what is missing is fetched.
///
/// # Errors
/// As [`fetch::share`].
pub async fn share(shared: &Arc<Shared>, contents: impl IntoIterator<Item = Content>) -> Result<Vec<Bytes>> {
    let runs = contents.into_iter().map(|content| async {
        match content {
            Content::Zeros(count) => Ok(zeros(count).collect()),
            Content::Bytes(bytes) => Ok(vec![bytes]),
            Content::Segment(place, count) => fetch::share(shared, place, count.0).await,
        }
    });
    let parts: Result<Vec<Vec<Bytes>>> = join_all(runs).await.into_iter().collect();
    Ok(parts?.into_iter().flatten().collect())
}

fn zeros(count: BlockCount) -> impl Iterator<Item = Bytes> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let length = count.bytes().0;
    (0..length).step_by(ZEROS.len()).map(move |at| {
        let part = (length - at).min(ZEROS.len() as u64);
        Bytes::from_static(&ZEROS[..part as usize])
    })
}

/// Of parts that begin with block `start`, the bytes from `offset` on, `length` of them.
pub fn cut(parts: Vec<Bytes>, start: Lba, offset: u64, length: u64) -> Vec<Bytes> {
    let (mut before, mut left) = (offset - start.byte_offset(), length);
    let mut cut = Vec::with_capacity(parts.len());
    for mut part in parts {
        let skipped = before.min(part.len() as u64);
        part.advance(skipped as usize);
        before -= skipped;
        part.truncate(left.min(part.len() as u64) as usize);
        left -= part.len() as u64;
        if !part.is_empty() {
            cut.push(part);
        }
    }
    cut
}

/// Copies parts, one after the other. They fill the buffer.
pub fn copy_parts(parts: &[Bytes], buffer: &mut [u8]) {
    let mut rest = buffer;
    for part in parts {
        let (front, behind) = rest.split_at_mut(part.len());
        front.copy_from_slice(part);
        rest = behind;
    }
}

/// A disk that reads ahead of those who read in order.
pub trait ReadsAhead: Send + Sync + Sized + 'static {
    /// What it is called.
    fn name(&self) -> String;

    /// Its size, in bytes.
    fn size(&self) -> u64;

    /// What it shares with the other disks of the daemon.
    fn shared(&self) -> &Arc<Shared>;

    /// Its newest stream of reads.
    fn reads(&self) -> &Mutex<ReadAhead>;

    /// Brings a range of at most [`NEAR_BYTES_MAX`] or [`read_ahead::WINDOW_MAX`] into the memory part of the cache.
    fn bring_near(&self, offset: u64, length: u64) -> impl Future<Output = Result<()>> + Send;

    /// As [`ReadsAhead::bring_near`], for a range of any length: a part of it after the other, since all of it together could take any amount of memory.
    fn bring_all_near(&self, offset: u64, length: u64) -> impl Future<Output = Result<()>> + Send {
        async move {
            for part in parts(offset, length, NEAR_BYTES_MAX) {
                self.bring_near(part.start, part.end - part.start).await?;
            }
            Ok(())
        }
    }

    /// Notes a read that goes to segments, and reads ahead of it in the background if it is one of a sequence.
    fn note_stream(self: &Arc<Self>, offset: u64, length: u64) {
        let size = self.size();
        // What is brought near must still be there when the reader comes.
        let window = read_ahead::WINDOW_MAX.min(self.shared().cache.room_for_the_new().0 / 2);
        let Some(range) = self.reads().lock().note(offset, length, size, window) else { return };
        let disk = self.clone();
        drop(self.shared().runtime.spawn(async move {
            if let Err(error) = disk.bring_near(range.start, range.end - range.start).await {
                tracing::debug!(disk = %disk.name(), %error, "reading ahead failed");
            }
        }));
    }

    /// Tells read-ahead of a read that found everything at hand: a stream that it leads must not run to the end of its window before
    /// more is fetched. Reads elsewhere are none of its business, and nobody waits for anybody here.
    fn note_hit(self: &Arc<Self>, offset: u64, length: u64) {
        let is_led = self.reads().try_lock().is_some_and(|reads| reads.leads(offset));
        if is_led {
            self.note_stream(offset, length);
        }
    }
}

/// The part of `buffer`, which holds `range`, that holds `run`.
pub fn slice_of(range: BlockRange, run: BlockRange, buffer: &mut [u8]) -> &mut [u8] {
    let start = ((run.start.0 - range.start.0) * BLOCK_SIZE) as usize;
    &mut buffer[start..start + run.count.bytes().0 as usize]
}

/// Frames on their way into the memory part of the cache.
#[derive(Default)]
pub struct Loads(Vec<Task<Result<()>>>);

impl Loads {
    /// Sets out for the frames of `count` blocks from `place` on.
    pub fn begin(&mut self, shared: &Arc<Shared>, place: SegmentPlace, count: u64) {
        let sharing = shared.clone();
        let load = async move { fetch::load_frames(&sharing, place, count).await.map(drop) };
        self.0.push(shared.runtime.spawn(load));
    }

    /// Waits until all are there.
    ///
    /// # Errors
    /// The first that could not be had.
    pub async fn finish(self) -> Result<()> {
        for load in self.0 {
            load.await.map_err(|_| Error::new(ErrorKind::Stopping, "the daemon is stopping"))??;
        }
        Ok(())
    }
}

/// Residences in order, joined where they are alike.
#[derive(Default)]
pub struct Residences(Vec<ResidenceExtent>);

impl Residences {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds the next `length` bytes.
    pub fn push(&mut self, length: u64, residence: Residence) {
        match self.0.last_mut() {
            Some(last) if last.residence == residence => last.length += length,
            _ => self.0.push(ResidenceExtent { length, residence }),
        }
    }

    /// Adds the next `length` bytes, which lie in a segment, frame by frame.
    pub fn push_segment(&mut self, shared: &Shared, place: SegmentPlace, length: u64) {
        let (mut block, mut left) = (u64::from(place.block), length);
        while left > 0 {
            let id = FrameId { segment: place.segment, frame: (block / FRAME_BLOCKS) as u32 };
            let in_frame = (FRAME_BLOCKS - block % FRAME_BLOCKS) * BLOCK_SIZE;
            let part = in_frame.min(left);
            self.push(part, if shared.cache.contains(id) { Residence::Cache } else { Residence::Store });
            block += in_frame / BLOCK_SIZE;
            left -= part;
        }
    }

    /// At most so many of them, and at least one.
    pub fn finish(mut self, extents_max: usize) -> Vec<ResidenceExtent> {
        self.0.truncate(extents_max.max(1));
        self.0
    }
}

/// Tells of the bytes from `offset` up to `end`, or up to block `looked` if that comes first, which of them are `changed` (sorted; may overlap).
pub fn change_extents(
    offset: u64,
    end: u64,
    looked: Lba,
    changed: &[BlockRange],
    extents_max: usize,
) -> Vec<ChangeExtent> {
    let end = end.min(looked.byte_offset());
    let mut extents: Vec<ChangeExtent> = Vec::new();
    let mut at = offset;
    let mut push = |to: u64, changed: bool| {
        let to = to.min(end);
        match extents.last_mut() {
            _ if to <= at => return,
            Some(last) if last.changed == changed => last.length += to - at,
            _ => extents.push(ChangeExtent { length: to - at, changed }),
        }
        at = to;
    };
    for range in changed {
        push(range.start.byte_offset(), false);
        push(range.end().byte_offset(), true);
    }
    push(end, false);
    extents.truncate(extents_max.max(1));
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_to_what_was_asked_for() {
        let parts: Vec<Bytes> = [1, 2, 3].map(|byte| Bytes::from(vec![byte; 4096])).to_vec();
        let whole = parts.concat();
        for (offset, length) in [(8192, 12288), (8192, 1), (9000, 100), (12287, 2), (12288, 8192), (16384, 4096)] {
            let cut = cut(parts.clone(), Lba(2), offset, length);
            let start = (offset - 8192) as usize;
            assert_eq!(cut.concat(), whole[start..start + length as usize], "{length} bytes at {offset}");
            assert!(cut.iter().all(|part| !part.is_empty()));
            let mut buffer = vec![0; length as usize];
            copy_parts(&cut, &mut buffer);
            assert_eq!(buffer, cut.concat());
        }
    }

    #[test]
    fn zeros_are_as_many_as_asked_for() {
        for count in [1, 16, 17, 40] {
            let parts: Vec<Bytes> = zeros(BlockCount(count)).collect();
            assert_eq!(parts.concat(), vec![0; (count * BLOCK_SIZE) as usize]);
        }
    }

    #[test]
    fn changes_become_extents_without_gaps() {
        let range = |start: u64, count: u64| BlockRange::new(Lba(start), BlockCount(count));
        let changed = [range(0, 2), range(1, 2), range(3, 1), range(8, 4)];
        let told: Vec<(u64, bool)> = change_extents(100, 40_000, Lba(9), &changed, 10)
            .into_iter()
            .map(|extent| (extent.length, extent.changed))
            .collect();
        assert_eq!(told, [(4 * 4096 - 100, true), (4 * 4096, false), (4096, true)]);
        assert_eq!(change_extents(0, 4096, Lba(1), &[], 10), [ChangeExtent { length: 4096, changed: false }]);
    }
}

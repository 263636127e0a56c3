//! Verifying everything that a volume refers to: its checkpoint, page by page, and every segment, frame by frame.
//!
//! Reads only; safe while the volume is attached elsewhere, since nothing that a position names ever changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::format::lineage::Moment;
use crate::format::manifest::Manifest;
use crate::format::segment::IndexSeal;
use crate::format::segment::{EntryKind, SegmentIndex};
use crate::limits::PAGE_BLOCKS;
use crate::map::{LogOverlay, LogPlace, MapPage, OverlayPlace, PageIndex, SegmentPlace};
use crate::segment::{FrameOpener, fetch_index, lost, parse_object_tail};
use crate::service::{CheckProblem, CheckProgress, CheckReport};
use crate::store::{ByteRange, ObjectKey, Store, list_all};
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange, ByteLen, Lba, LogOffset, SegmentId, SegmentNumber, VolumeId};

/// At most this many block ranges are named for one object.
const RANGES_NAMED: usize = 16;
/// At most this many damaged pages and directories of a checkpoint are named.
const PAGES_NAMED: usize = 64;
/// At most this many segments are named that a moment replays and that cannot be read.
const REPLAYED_NAMED: usize = 64;

/// Which blocks of a segment cannot be had.
#[derive(PartialEq, Eq)]
enum Damage {
    All,
    Frames(BTreeSet<u32>),
}

/// Verifies a moment, called `name`: its checkpoint, and the segments to be replayed over it; and what follows it if it is the beginning
/// of an attached volume's newest history.
///
/// # Errors
/// What the store says, when it cannot be reached at all; damage is in the report.
pub async fn check(
    store: &Arc<dyn Store>,
    name: &str,
    moment: &Moment,
    followed_by: Option<&Manifest>,
    progress: &mut (dyn FnMut(CheckProgress) + Send),
) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let mut segments = BTreeSet::new();
    let checkpoint = match &moment.checkpoint {
        None => Some(Checkpoint::empty(store.clone())),
        Some(reference) => match Checkpoint::open(store.clone(), *reference).await {
            Ok(checkpoint) => Some(checkpoint),
            Err(error) => {
                note(&mut report, format!("{}", reference.root.object), tolerate(error)?, Some("all".to_owned()));
                None
            }
        },
    };
    if let Some(checkpoint) = &checkpoint {
        survey(checkpoint, name, moment.size, &mut segments, &mut report).await?;
    }
    let mut tail = replayed(store, moment, &mut report).await?;
    if let Some(manifest) = followed_by {
        tail.extend(follow(store, manifest, &mut report).await?);
    }
    segments.extend(tail.iter().map(|index| index.header.id));
    let mut damages = BTreeMap::new();
    let total = segments.len() as u64;
    for (done, id) in segments.into_iter().enumerate() {
        progress(CheckProgress { done: done as u64, total });
        if let Some((damage, what)) = verify_segment(store, id, &mut report).await? {
            damages.insert(id, (damage, what));
        }
    }
    progress(CheckProgress { done: total, total });
    name_blocks(checkpoint.as_ref(), &tail, damages, &mut report).await?;
    Ok(report)
}

/// Gathers the segments that the map names. Damage to a page ends with that page: all of it is found.
async fn survey(
    checkpoint: &Checkpoint,
    name: &str,
    size: ByteLen,
    segments: &mut BTreeSet<SegmentId>,
    report: &mut CheckReport,
) -> Result<()> {
    let object = format!("the checkpoint of {name}");
    let mut damaged = 0_usize;
    let mut visit = |first: PageIndex, count: u64, page: Result<MapPage>| {
        match page {
            Ok(page) => segments.extend(page.places().map(|(_, _, place)| place.segment)),
            Err(error) => {
                damaged += 1;
                let start = first.range().start;
                // A lost directory stands for more pages than the volume may have.
                let end = (start.0 + count * PAGE_BLOCKS).min(size.0.div_ceil(BLOCK_SIZE));
                if damaged <= PAGES_NAMED {
                    let blocks = format!("{start}-{}", end.saturating_sub(1));
                    note(report, object.clone(), tolerate(error)?, Some(blocks));
                }
            }
        }
        Ok(())
    };
    checkpoint.survey(&mut visit).await?;
    if damaged > PAGES_NAMED {
        let what = format!("{} more of its pages or directories cannot be read", damaged - PAGES_NAMED);
        note(report, object, what, None);
    }
    Ok(())
}

/// Names what is left of a volume whose purge has begun: each object is a problem, which the next purge solves.
///
/// # Errors
/// What the store says.
pub async fn remains(store: &dyn Store, volume: VolumeId) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    for object in list_all(store, &ObjectKey::volume(volume)).await? {
        let what = "is left of a volume that was removed: 'varve volumes purge' removes it once it is a day old";
        note(&mut report, object.key.to_string(), what.to_owned(), None);
    }
    Ok(report)
}

/// An error that belongs into the report; one that means that nothing can be said stays an error.
fn tolerate(error: Error) -> Result<String> {
    match error.kind() {
        ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Unsupported => Ok(error.to_string()),
        _ => Err(error),
    }
}

fn note(report: &mut CheckReport, object: String, what: String, blocks: Option<String>) {
    report.problems.push(CheckProblem { object, what, blocks });
}

/// The segments that a moment replays over its checkpoint: each of them must be there.
async fn replayed(store: &Arc<dyn Store>, moment: &Moment, report: &mut CheckReport) -> Result<Vec<SegmentIndex>> {
    let (mut found, mut unnamed) = (Vec::new(), 0_usize);
    let room = report.problems.len() + REPLAYED_NAMED;
    for id in moment.replayed() {
        match fetch_index(&**store, id).await {
            Ok(index) => found.push(index),
            Err(error) => {
                let what = tolerate(error)?;
                match report.problems.len() < room {
                    true => note(report, ObjectKey::segment(id).to_string(), what, None),
                    false => unnamed += 1,
                }
            }
        }
    }
    if unnamed > 0 {
        let what = format!("{unnamed} more segments that are replayed over the checkpoint cannot be read");
        note(report, "segments".to_owned(), what, None);
    }
    Ok(found)
}

/// The segments behind the checkpoint, epoch by epoch, up to where the history ends.
async fn follow(store: &Arc<dyn Store>, manifest: &Manifest, report: &mut CheckReport) -> Result<Vec<SegmentIndex>> {
    let mut tail = Vec::new();
    let (mut epoch, mut number) = (manifest.replay_from.epoch, manifest.replay_from.number);
    while epoch <= manifest.epoch {
        let id = SegmentId { volume: manifest.volume, epoch, number };
        let index = match fetch_index(&**store, id).await {
            Ok(index) => Some(index),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                note(report, ObjectKey::segment(id).to_string(), tolerate(error)?, None);
                number = number.next();
                continue;
            }
        };
        match index {
            Some(index) if !index.header.seal => {
                tail.push(index);
                number = number.next();
            }
            _ => {
                epoch = epoch.next();
                number = SegmentNumber(0);
            }
        }
    }
    Ok(tail)
}

async fn verify_segment(
    store: &Arc<dyn Store>,
    id: SegmentId,
    report: &mut CheckReport,
) -> Result<Option<(Damage, String)>> {
    if id.is_lost() {
        return Ok(Some((Damage::All, lost().to_string())));
    }
    report.segments += 1;
    let fetched = match store.get(&ObjectKey::segment(id), ByteRange::Full).await {
        Ok(fetched) => fetched,
        Err(error) => return Ok(Some((Damage::All, tolerate_store(error)?))),
    };
    report.bytes = ByteLen(report.bytes.0 + fetched.bytes.len() as u64);
    let key = store.key_of(id.volume)?;
    let index = match parse_object_tail(id, &fetched.bytes, fetched.object_length, IndexSeal::of(key.as_deref())) {
        Ok(index) => index,
        Err(error) => return Ok(Some((Damage::All, error.to_string()))),
    };
    if let Err(error) = crate::format::segment::decode_header(id, &fetched.bytes) {
        return Ok(Some((Damage::Frames(BTreeSet::new()), error.to_string())));
    }
    let opener = FrameOpener::new(id, key.as_deref());
    let (mut frames, mut first) = (BTreeSet::new(), None);
    for (number, frame) in index.frames.iter().enumerate() {
        let number = number as u32;
        let stored = fetched.bytes.slice(frame.offset as usize..(frame.offset + frame.stored_length) as usize);
        if let Err(error) = opener.open(number, frame, &stored) {
            frames.insert(number);
            first.get_or_insert(error.to_string());
        }
    }
    Ok(first.map(|what| (Damage::Frames(frames), what)))
}

/// A missing or unreadable object is the report's; a store that cannot be reached is not.
fn tolerate_store(error: crate::store::StoreError) -> Result<String> {
    match error.kind {
        crate::store::StoreErrorKind::Malformed => Ok(error.to_string()),
        _ => tolerate(Error::from(error)),
    }
}

/// Names the blocks that the damaged segments hold the newest content of.
async fn name_blocks(
    checkpoint: Option<&Checkpoint>,
    tail: &[SegmentIndex],
    damages: BTreeMap<SegmentId, (Damage, String)>,
    report: &mut CheckReport,
) -> Result<()> {
    if damages.is_empty() {
        return Ok(());
    }
    let newest = newest_of(tail);
    let moved = moved_from(tail, &damages);
    let mut blocks: BTreeMap<SegmentId, Vec<BlockRange>> = BTreeMap::new();
    let mut hit = |id: SegmentId, range: BlockRange, block: u32| {
        let Some((damage, _)) = damages.get(&id) else { return };
        for step in 0..range.count.0 {
            let frame = ((u64::from(block) + step) / crate::limits::FRAME_BLOCKS) as u32;
            let is_hit = match damage {
                Damage::All => true,
                Damage::Frames(frames) => frames.contains(&frame),
            };
            if is_hit {
                add_block(blocks.entry(id).or_default(), range.start.0 + step);
            }
        }
    };
    if let Some(checkpoint) = checkpoint {
        let mut visit = |index: PageIndex, _: u64, page: Result<MapPage>| {
            // A damaged page is in the report already.
            for (offset, count, place) in page.iter().flat_map(|page| page.places()) {
                let start = crate::units::Lba(index.range().start.0 + u64::from(offset));
                let range = BlockRange::new(start, crate::units::BlockCount(u64::from(count)));
                newest.lookup(range, |part, above| {
                    let first = place.plus((part.start.0 - start.0) as u32);
                    let steps = if above == OverlayPlace::Below { part.count.0 } else { 0 };
                    for step in 0..steps {
                        let (lba, place) = (Lba(part.start.0 + step), first.plus(step as u32));
                        if !moved.iter().any(|(range, old)| is_moved(*range, *old, lba, place)) {
                            hit(place.segment, BlockRange::new(lba, BlockCount(1)), place.block);
                        }
                    }
                });
            }
            Ok(())
        };
        checkpoint.survey(&mut visit).await?;
    }
    for (range, place) in newest.extents() {
        if let OverlayPlace::Log(place) = place
            && let Some(index) = usize::try_from(place.record.0).ok().and_then(|number| tail.get(number))
        {
            hit(index.header.id, range, place.block);
        }
    }
    for index in tail {
        for entry in &index.entries {
            // It may have had no effect: rather a block too many.
            if let EntryKind::Moved { block, .. } = entry.kind {
                hit(index.header.id, entry.range, block);
            }
        }
    }
    let replayed: BTreeSet<SegmentId> = tail.iter().map(|index| index.header.id).collect();
    for (id, (damage, what)) in damages {
        let named = blocks.get(&id).map(|ranges| describe(ranges));
        // The checkpoint names it, but what is replayed over that leads elsewhere: cleaning may have deleted it.
        if named.is_none() && damage == Damage::All && !replayed.contains(&id) {
            continue;
        }
        let object = if id.is_lost() { "the block map".to_owned() } else { ObjectKey::segment(id).to_string() };
        note(report, object, what, named);
    }
    Ok(())
}

/// What was moved out of damaged segments: the blocks, and where the first of them was.
fn moved_from(
    tail: &[SegmentIndex],
    damages: &BTreeMap<SegmentId, (Damage, String)>,
) -> Vec<(BlockRange, SegmentPlace)> {
    let entries = tail.iter().flat_map(|index| &index.entries);
    let moved = entries.filter_map(|entry| match entry.kind {
        EntryKind::Moved { old, .. } => Some((entry.range, old)),
        _ => None,
    });
    moved.filter(|(_, old)| damages.contains_key(&old.segment)).collect()
}

fn is_moved(range: BlockRange, old: SegmentPlace, lba: Lba, place: SegmentPlace) -> bool {
    range.start <= lba && lba < range.end() && old.plus((lba.0 - range.start.0) as u32) == place
}

/// What the segments behind the checkpoint have the newest content of. Where a log would have a record, stands the number of the segment.
fn newest_of(tail: &[SegmentIndex]) -> LogOverlay {
    let mut newest = LogOverlay::default();
    for (number, index) in tail.iter().enumerate() {
        let record = LogOffset(number as u64);
        for entry in &index.entries {
            match entry.kind {
                EntryKind::Data { block } => newest.set(entry.range, OverlayPlace::Log(LogPlace { record, block })),
                EntryKind::Zero => newest.set(entry.range, OverlayPlace::Zero(record)),
                // It may have had no effect: that is looked at where it is asked.
                EntryKind::Moved { .. } => {}
            }
        }
    }
    newest
}

fn add_block(ranges: &mut Vec<BlockRange>, block: u64) {
    match ranges.last_mut() {
        Some(last) if last.end().0 == block => last.count.0 += 1,
        _ => ranges.push(BlockRange::new(crate::units::Lba(block), crate::units::BlockCount(1))),
    }
}

fn describe(ranges: &[BlockRange]) -> String {
    let mut named: Vec<String> =
        ranges.iter().take(RANGES_NAMED).map(|range| format!("{}-{}", range.start, range.end().0 - 1)).collect();
    if ranges.len() > RANGES_NAMED {
        named.push(format!("and {} ranges more", ranges.len() - RANGES_NAMED));
    }
    named.join(", ")
}

//! What volumes and snapshots take in the store, and what of it they share with their family.
//!
//! Counted by block: for each block of each segment, which disk of the family refers to it, if one only does. The bytes of a
//! segment object are divided evenly among the blocks that anybody refers to; a segment to which nobody refers any more belongs to its
//! volume as `dead`. Takes two bytes of memory for each 4 KiB stored in the family.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::Result;
use crate::format::lineage::Moment;
use crate::limits::SEGMENT_OBJECT_BYTES_MAX;
use crate::lineage::FrozenMap;
use crate::map::SegmentPlace;
use crate::store::Store;
use crate::units::{BLOCK_SIZE, ByteLen, SegmentId};

const NOBODY: u16 = 0;
const SEVERAL: u16 = u16::MAX;
/// Blocks that no segment can have more of.
const BLOCKS_MAX: usize = (SEGMENT_OBJECT_BYTES_MAX / BLOCK_SIZE * 16) as usize;

/// What one disk of a family takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes that do not read as zero for being unwritten: blocks that the map leads somewhere, times 4 KiB.
    pub written: ByteLen,
    /// Bytes in the store that only this disk refers to: what destroying it would free.
    pub unique: ByteLen,
    /// Bytes in the store that others of the family refer to as well.
    pub shared: ByteLen,
}

/// What one disk was found to refer to.
#[derive(Default)]
struct Disk {
    written: u64,
    /// Blocks of each segment.
    referred: HashMap<SegmentId, u64>,
}

/// Counts the disks of one family.
#[derive(Default)]
pub struct UsageCounter {
    blocks: HashMap<SegmentId, Vec<u16>>,
    disks: Vec<Disk>,
}

impl UsageCounter {
    /// Adds a disk of the family. Of more than 65,534 disks the later ones are told to share all they have.
    ///
    /// # Errors
    /// `Damaged`, and what the store says.
    pub async fn add(&mut self, store: &Arc<dyn Store>, moment: &Moment) -> Result<()> {
        let mark = u16::try_from(self.disks.len() + 1).unwrap_or(SEVERAL);
        let mut disk = Disk::default();
        let map = FrozenMap::open(store, moment).await?;
        for which in map.directories() {
            for occupied in map.occupied(which).await? {
                for (_, count, place) in map.page(occupied.index).await?.places() {
                    self.mark(place, count, mark);
                    disk.written += u64::from(count) * BLOCK_SIZE;
                    *disk.referred.entry(place.segment).or_default() += u64::from(count);
                }
            }
        }
        self.disks.push(disk);
        Ok(())
    }

    fn mark(&mut self, place: SegmentPlace, count: u16, mark: u16) {
        let (from, to) = (place.block as usize, place.block as usize + usize::from(count));
        if to > BLOCKS_MAX {
            return;
        }
        let blocks = self.blocks.entry(place.segment).or_default();
        if blocks.len() < to {
            blocks.resize(to, NOBODY);
        }
        for block in &mut blocks[from..to] {
            *block = if *block == NOBODY || *block == mark { mark } else { SEVERAL };
        }
    }

    /// What each disk takes, in the order in which they were added, given the length of each segment object of the family; and the bytes
    /// of the segments to which no disk refers.
    pub fn finish(&self, objects: &HashMap<SegmentId, u64>) -> (Vec<DiskUsage>, ByteLen) {
        let mut unique = vec![0.0f64; self.disks.len()];
        let mut shares: HashMap<SegmentId, f64> = HashMap::new();
        let mut dead = 0;
        for (id, length) in objects {
            let blocks = self.blocks.get(id).map_or(&[][..], Vec::as_slice);
            let referred = blocks.iter().filter(|mark| **mark != NOBODY).count();
            if referred == 0 {
                dead += length;
                continue;
            }
            let share = *length as f64 / referred as f64;
            shares.insert(*id, share);
            for mark in blocks.iter().filter(|mark| !matches!(**mark, NOBODY | SEVERAL)) {
                unique[usize::from(*mark) - 1] += share;
            }
        }
        let usages = self.disks.iter().zip(unique).map(|(disk, unique)| {
            let all = disk.referred.iter().filter_map(|(id, blocks)| Some(shares.get(id)? * *blocks as f64));
            let shared = all.sum::<f64>() - unique;
            DiskUsage {
                written: ByteLen(disk.written),
                unique: ByteLen(unique.round() as u64),
                shared: ByteLen(shared.round() as u64),
            }
        });
        (usages.collect(), ByteLen(dead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, SegmentNumber, VolumeId};

    #[test]
    fn what_several_refer_to_is_shared() {
        let id = |number| SegmentId { volume: VolumeId(1), epoch: Epoch(1), number: SegmentNumber(number) };
        let mut counter = UsageCounter::default();
        // The first disk refers to blocks 0..8, the second to 4..6 of the same segment and to one of another.
        for (mark, segment, from, count) in [(1, 0, 0, 8), (2, 0, 4, 2), (2, 1, 0, 1)] {
            counter.mark(SegmentPlace { segment: id(segment), block: from }, count, mark);
            counter.disks.resize_with(usize::from(mark), Disk::default);
            let disk = &mut counter.disks[usize::from(mark) - 1];
            *disk.referred.entry(id(segment)).or_default() += u64::from(count);
        }
        let (usages, dead) = counter.finish(&HashMap::from([(id(0), 800), (id(1), 50), (id(2), 7)]));
        let found: Vec<_> = usages.iter().map(|usage| (usage.unique.0, usage.shared.0)).collect();
        assert_eq!(found, [(600, 200), (50, 200)]);
        assert_eq!(dead, ByteLen(7));
    }
}

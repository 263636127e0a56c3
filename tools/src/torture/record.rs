//! The record of what was written and what was acknowledged, and the judgement whether a disk is one that could have been.
//!
//! Each write has a stamp, and each of its blocks holds the stamp and bytes that follow from stamp and place, so that a block tells which
//! write it shows. Time is a counter of events. Writes in flight together never overlap.

use std::collections::HashSet;
use std::ops::Range;

use varve::clock;
use varve::error::{Error, Result};

/// Length of a block, in bytes.
pub const BLOCK: u64 = 4096;
const BLOCK_BYTES: usize = BLOCK as usize;
/// Longest write.
const WRITE_BLOCKS_MAX: u64 = 16;
/// Faults that are named one by one.
const SHOWN: usize = 5;

struct Entry {
    blocks: Range<u64>,
    sent: u64,
    acknowledged: Option<u64>,
}

/// The record of one disk.
pub struct Record {
    /// What each block held when the record was last [rebased](Record::rebase): a stamp, 0 for zeroes.
    base: Vec<u64>,
    /// Writes since then; the first has the stamp `first`.
    entries: Vec<Entry>,
    first: u64,
    now: u64,
    busy: HashSet<u64>,
}

/// Sound bytes: what the stamp and the place make.
fn content(stamp: u64, block: u64) -> Vec<u8> {
    if stamp == 0 {
        return vec![0; BLOCK_BYTES];
    }
    let seed = (stamp ^ block.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    bytes.extend(stamp.to_le_bytes());
    for word in 1..BLOCK / 8 {
        // Half of it compresses.
        let value = if word % 2 == 0 { stamp } else { (seed ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9) };
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

/// The stamp of a block, if its bytes are sound.
fn stamp_of(bytes: &[u8], block: u64) -> Option<u64> {
    let stamp = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes == content(stamp, block)).then_some(stamp)
}

impl Record {
    /// Of an empty disk of this many bytes.
    pub fn new(size: u64) -> Record {
        let base = (0..size / BLOCK).map(|_| 0).collect();
        Record { base, entries: Vec::new(), first: 1, now: 0, busy: HashSet::new() }
    }

    /// Everything acknowledged so far was acknowledged before this moment.
    pub fn moment(&self) -> u64 {
        self.now + 1
    }

    /// Chooses a write that overlaps none in flight: its number, offset in bytes, and content.
    pub fn next_write(&mut self) -> (usize, u64, Vec<u8>) {
        let blocks = self.base.len() as u64;
        loop {
            let count = 1 + clock::random_u64() % WRITE_BLOCKS_MAX;
            let start = clock::random_u64() % (blocks - count + 1);
            if (start..start + count).any(|block| self.busy.contains(&block)) {
                continue;
            }
            self.busy.extend(start..start + count);
            self.now += 1;
            let number = self.entries.len();
            self.entries.push(Entry { blocks: start..start + count, sent: self.now, acknowledged: None });
            let stamp = self.first + number as u64;
            let data = (start..start + count).flat_map(|block| content(stamp, block)).collect();
            return (number, start * BLOCK, data);
        }
    }

    /// Notes an acknowledgement; returns the length of the write in bytes.
    pub fn acknowledge(&mut self, number: usize) -> u64 {
        self.now += 1;
        let Some(entry) = self.entries.get_mut(number) else { return 0 };
        entry.acknowledged = Some(self.now);
        for block in entry.blocks.clone() {
            self.busy.remove(&block);
        }
        (entry.blocks.end - entry.blocks.start) * BLOCK
    }

    /// Judges a disk: no block has what nobody wrote there; every write that was acknowledged before `floor` is there, or what was written
    /// over it; if a write is there, so are all that were acknowledged before it was sent; and each write is there as a whole or not at all.
    ///
    /// # Errors
    /// `Damaged`: which block misses what.
    pub fn judge(&self, disk: &[u8], floor: u64) -> Result<()> {
        let ranks = self.ranks(disk)?;
        let seen = ranks.iter().filter_map(|rank| self.entries.get(rank.checked_sub(1)?));
        let moment = seen.map(|entry| entry.sent).max().unwrap_or(0).max(floor);
        let mut wanted = vec![0; self.base.len()];
        for (number, entry) in self.entries.iter().enumerate() {
            if entry.acknowledged.is_some_and(|acknowledged| acknowledged < moment) {
                self.each_block(entry, &mut wanted, |place| *place = number + 1);
            }
        }
        let missing = ranks.iter().zip(&wanted).enumerate().filter(|(_, (rank, wanted))| rank < wanted);
        let faults: Vec<String> =
            missing.map(|(block, (rank, wanted))| format!("block {block} shows write {rank}, not {wanted}")).collect();
        verdict("acknowledged writes are missing", &faults)?;
        let shown: HashSet<usize> = ranks.iter().copied().collect();
        let mut torn = Vec::new();
        for (number, entry) in self.entries.iter().enumerate().filter(|(number, _)| shown.contains(&(number + 1))) {
            let parts = ranks.iter().enumerate().skip(usize::try_from(entry.blocks.start).unwrap_or(usize::MAX));
            let parts = parts.take_while(|(block, _)| (*block as u64) < entry.blocks.end);
            torn.extend(
                parts
                    .filter(|(_, rank)| **rank <= number)
                    .map(|(block, _)| format!("write {}: block {block}", number + 1)),
            );
        }
        verdict("writes are there in part", &torn)
    }

    /// Which write each block shows: 0 for the base, else the number plus 1.
    fn ranks(&self, disk: &[u8]) -> Result<Vec<usize>> {
        if disk.len() as u64 != self.base.len() as u64 * BLOCK {
            return Err(Error::damaged(format!("the disk has {} bytes", disk.len())));
        }
        let mut strange = Vec::new();
        let mut ranks = Vec::with_capacity(self.base.len());
        for ((bytes, base), block) in disk.chunks_exact(BLOCK_BYTES).zip(&self.base).zip(0_u64..) {
            let rank = stamp_of(bytes, block).and_then(|stamp| {
                if stamp == *base {
                    return Some(0);
                }
                let number = usize::try_from(stamp.checked_sub(self.first)?).ok()?;
                self.entries.get(number).filter(|entry| entry.blocks.contains(&block)).map(|_| number + 1)
            });
            if rank.is_none() {
                strange.push(format!("block {block}"));
            }
            ranks.push(rank.unwrap_or(0));
        }
        verdict("bytes that nobody wrote there", &strange)?;
        Ok(ranks)
    }

    fn each_block<T>(&self, entry: &Entry, places: &mut [T], mut change: impl FnMut(&mut T)) {
        for block in entry.blocks.clone() {
            if let Some(place) = usize::try_from(block).ok().and_then(|block| places.get_mut(block)) {
                change(place);
            }
        }
    }

    /// Goes on from a disk that was judged sound: it is the new base, and what it does not show never was. Returns how many acknowledged
    /// writes it is later than; the rest were lost with the host that had them.
    pub fn rebase(&mut self, disk: &[u8]) -> Result<u64> {
        let ranks = self.ranks(disk)?;
        let last = ranks.iter().filter_map(|rank| self.entries.get(rank.checked_sub(1)?)).map(|entry| entry.sent).max();
        let later = self.entries.iter().filter(|entry| entry.acknowledged.is_some() && Some(entry.sent) > last);
        let lost = later.map(|_| 1).sum();
        for (base, rank) in self.base.iter_mut().zip(ranks) {
            if rank > 0 {
                *base = self.first + rank as u64 - 1;
            }
        }
        self.first += self.entries.len() as u64;
        self.entries.clear();
        self.busy.clear();
        Ok(lost)
    }
}

fn verdict(what: &str, faults: &[String]) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    let shown = faults.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    let more = if faults.len() > SHOWN { "; ..." } else { "" };
    Err(Error::damaged(format!("{what}: {} faults ({shown}{more})", faults.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 * BLOCK;

    /// A record of so many acknowledged writes, and the disk after each.
    fn written(writes: usize) -> (Record, Vec<Vec<u8>>) {
        let mut record = Record::new(SIZE);
        let mut disks = vec![vec![0; SIZE as usize]];
        for _ in 0..writes {
            let (number, offset, data) = record.next_write();
            let mut disk = disks.last().unwrap().clone();
            disk[offset as usize..][..data.len()].copy_from_slice(&data);
            record.acknowledge(number);
            disks.push(disk);
        }
        (record, disks)
    }

    #[test]
    fn accepts_earlier_moments_down_to_the_floor() {
        let (mut record, disks) = written(30);
        for disk in &disks {
            record.judge(disk, 0).unwrap();
        }
        record.judge(&disks[30], record.moment()).unwrap();
        assert!(record.judge(&disks[29], record.moment()).is_err());
        assert_eq!(record.rebase(&disks[20]).unwrap(), 10);
        record.judge(&disks[20], record.moment()).unwrap();
        assert!(record.judge(&disks[30], 0).is_err(), "what was lost came back");
    }

    #[test]
    fn finds_strange_bytes_mixtures_and_torn_writes() {
        let (record, disks) = written(30);
        let mut strange = disks[30].clone();
        strange[BLOCK_BYTES + 9] ^= 1;
        assert!(record.judge(&strange, 0).is_err());
        // A block that later writes changed, but not the last: the mixture shows the last, and so must show those before it.
        let stamp = |moment: usize, block: usize| disks[moment][block * BLOCK_BYTES..][..8].to_vec();
        let is_older = |block: &usize| stamp(10, *block) != stamp(29, *block) && stamp(29, *block) == stamp(30, *block);
        let block = (0..64).find(is_older).unwrap();
        let mut mixture = disks[30].clone();
        mixture[block * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&disks[10][block * BLOCK_BYTES..][..BLOCK_BYTES]);
        assert!(record.judge(&mixture, 0).is_err());
    }

    #[test]
    fn finds_a_torn_write_that_was_not_acknowledged() {
        let (mut record, disks) = written(10);
        let (offset, data) = loop {
            let (_, offset, data) = record.next_write();
            if data.len() > BLOCK_BYTES {
                break (offset as usize, data);
            }
        };
        let mut torn = disks[10].clone();
        torn[offset..][..BLOCK_BYTES].copy_from_slice(&data[..BLOCK_BYTES]);
        assert!(record.judge(&torn, 0).is_err());
        torn[offset..][..data.len()].copy_from_slice(&data);
        record.judge(&torn, 0).unwrap();
    }
}

//! Writes, zeros and trims: to a disk and to its model alike.

use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;
use varve::block_device::{Attempt, BlockDevice, Change};
use varve::error::Result;
use varve::volume::{Volume, VolumeDevice};

const BLOCK: usize = 4096;

/// A change, and what it is called.
pub struct Made {
    pub change: Change<Vec<u8>>,
    pub name: &'static str,
}

/// Makes up a change of a disk of `size` bytes: mostly of the same few blocks, and often of odd places and lengths.
pub fn make_up(random: &mut StdRng, stamp: &mut u64, size: usize) -> Made {
    let blocks = size / BLOCK;
    let reach = if random.random_bool(0.5) { 40 } else { blocks };
    let first = random.random_range(0..reach);
    let longest = if random.random_bool(0.1) { 64 } else { 8 };
    let count = random.random_range(1..=longest).min(blocks - first);
    let (mut offset, mut length) = (first * BLOCK, count * BLOCK);
    if random.random_bool(0.4) {
        let skipped = random.random_range(0..BLOCK);
        offset += skipped;
        length = random.random_range(1..=length - skipped);
    }
    let (offset, long) = (offset as u64, length as u64);
    let (change, name) = match random.random_range(0..10) {
        0 => (Change::Trim { offset, length: long }, "trim"),
        1 => (Change::Zero { offset, length: long }, "zero"),
        _ => {
            *stamp += 1;
            let data = content(*stamp).take(length).collect();
            (Change::Write { offset, data }, "write")
        }
    };
    Made { change, name }
}

/// Bytes of which half compress and which no other stamp has.
pub fn content(stamp: u64) -> impl Iterator<Item = u8> {
    (0_u64..).flat_map(move |word| {
        let mixed =
            if word % 2 == 0 { (stamp + word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) } else { stamp };
        mixed.to_le_bytes()
    })
}

impl Made {
    pub fn describe(&self) -> String {
        let (offset, length) = match &self.change {
            Change::Write { offset, data } => (*offset, data.len() as u64),
            Change::Zero { offset, length } | Change::Trim { offset, length } => (*offset, *length),
        };
        format!("{} {length} at {offset}", self.name)
    }

    /// What it makes of a disk.
    pub fn apply(&self, model: &mut [u8]) {
        match &self.change {
            Change::Write { offset, data } => model[*offset as usize..][..data.len()].copy_from_slice(data),
            Change::Zero { offset, length } => model[*offset as usize..][..*length as usize].fill(0),
            Change::Trim { offset, length } => {
                let first = (*offset as usize).next_multiple_of(BLOCK);
                let end = (offset + length) as usize / BLOCK * BLOCK;
                if first < end {
                    model[first..end].fill(0);
                }
            }
        }
    }

    /// Makes it, as a door would: at once if that works, else by waiting.
    pub async fn make(&self, volume: &Arc<Volume>) {
        let device = VolumeDevice::new(volume.clone());
        let mut outcomes = Vec::new();
        let borrowed = match &self.change {
            Change::Write { offset, data } => Change::Write { offset: *offset, data: &data[..] },
            Change::Zero { offset, length } => Change::Zero { offset: *offset, length: *length },
            Change::Trim { offset, length } => Change::Trim { offset: *offset, length: *length },
        };
        device.try_change(&[borrowed], &mut outcomes);
        match outcomes.pop() {
            Some(Attempt::Done) => {}
            Some(Attempt::WouldBlock) => self.make_waiting(&device).await.unwrap(),
            other => panic!("a change that makes sense was answered with {other:?}"),
        }
    }

    async fn make_waiting(&self, device: &VolumeDevice) -> Result<()> {
        let change = match &self.change {
            Change::Write { offset, data } => Change::Write { offset: *offset, data: data.clone().into() },
            Change::Zero { offset, length } => Change::Zero { offset: *offset, length: *length },
            Change::Trim { offset, length } => Change::Trim { offset: *offset, length: *length },
        };
        device.change(change).await
    }
}

/// FLUSH.
pub async fn commit(volume: &Arc<Volume>) -> Result<()> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    VolumeDevice::new(volume.clone()).commit(Box::new(move |result| drop(sender.send(result))));
    receiver.await.unwrap()
}

//! One life of the daemon: what a client does to the disk, and how the record learns of it.

use std::sync::Arc;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::StdRng;
use varve::block_device::{Attempt, BlockDevice, Change};
use varve::error::Result;
use varve::service::Durability;
use varve::volume::{Fleet, Volume, VolumeDevice};

use super::late_store::LateStore;
use super::record::{Record, Step};

const BLOCK: usize = 4096;

/// An attached volume and the client that uses it.
pub struct Life<'a> {
    pub fleet: Arc<Fleet>,
    pub volume: Arc<Volume>,
    pub store: &'a LateStore,
    pub record: &'a mut Record,
    pub random: &'a mut StdRng,
    /// Makes the bytes of every write unlike those of any other.
    pub stamp: &'a mut u64,
}

impl Life<'_> {
    fn device(&self) -> VolumeDevice {
        VolumeDevice::new(self.volume.clone())
    }

    async fn patiently<T>(&self, work: impl Future<Output = T>) -> T {
        patiently(self.store, work).await
    }

    pub async fn read_all(&self) -> Vec<u8> {
        let mut disk = vec![0xa5; self.record.current.len()];
        self.device().read(0, &mut disk).await.unwrap();
        disk
    }

    /// Does one thing, whichever.
    pub async fn act(&mut self) {
        match self.random.random_range(0..20) {
            0..=10 => self.change().await,
            11..=13 => self.read().await,
            14..=15 => self.flush().await,
            16..=17 => self.store.deliver_one().await,
            18 => {
                let device = self.device();
                let offset = self.random.random_range(0..self.record.current.len() - BLOCK);
                device.prefetch(offset as u64, BLOCK as u64).await.unwrap();
            }
            _ => self.sync().await,
        }
    }

    async fn read(&mut self) {
        let size = self.record.current.len();
        let offset = self.random.random_range(0..size);
        let mut buffer = vec![0xa5; self.random.random_range(1..=(size - offset).min(100_000))];
        self.device().read(offset as u64, &mut buffer).await.unwrap();
        let wanted = &self.record.current[offset..offset + buffer.len()];
        assert!(buffer == wanted, "{} bytes read at {offset} are not what was written", buffer.len());
    }

    async fn change(&mut self) {
        let (change, steps) = self.next_change();
        let mut outcomes = Vec::new();
        let borrowed = match &change {
            Change::Write { offset, data } => Change::Write { offset: *offset, data: &data[..] },
            Change::Zero { offset, length } => Change::Zero { offset: *offset, length: *length },
            Change::Trim { offset, length } => Change::Trim { offset: *offset, length: *length },
        };
        self.device().try_change(&[borrowed], &mut outcomes);
        match outcomes.pop() {
            Some(Attempt::Done) => {}
            Some(Attempt::WouldBlock) => self.patiently(self.device().change(change)).await.unwrap(),
            other => panic!("a change that makes sense was answered with {other:?}"),
        }
        self.record.done(steps);
    }

    async fn flush(&mut self) {
        let committed = commit(self.device());
        match self.volume.durability() {
            Durability::Local => {
                committed.await.unwrap();
                self.record.flushed();
            }
            Durability::Store => {
                self.patiently(committed).await.unwrap();
                self.record.stored();
            }
        }
    }

    async fn sync(&mut self) {
        self.patiently(self.volume.sync()).await.unwrap();
        self.record.stored();
    }

    /// Hands the volume back, without a client that still holds it.
    pub async fn detach(self) {
        let Life { fleet, volume, store, record, .. } = self;
        let id = volume.id;
        drop(volume);
        patiently(store, fleet.detach(id, true)).await.unwrap();
        record.stored();
    }

    /// Leaves requests under way, for the host to die with.
    pub fn leave_under_way(&mut self) {
        if self.random.random_bool(0.5) {
            drop(tokio::spawn(commit(self.device())));
        }
        if self.random.random_bool(0.6) {
            let (change, steps) = self.next_change();
            let device = self.device();
            self.record.perhaps(steps);
            drop(tokio::spawn(async move { device.change(change).await }));
        }
        if self.random.random_bool(0.2) {
            let (fleet, id) = (self.fleet.clone(), self.volume.id);
            drop(tokio::spawn(async move { fleet.detach(id, true).await }));
        }
    }

    /// A change of many kinds, and the steps that it consists of: parts that take effect one after the other.
    fn next_change(&mut self) -> (Change<Bytes>, Vec<Step>) {
        let random = &mut *self.random;
        let blocks = self.record.current.len() / BLOCK;
        // Mostly the same few blocks, so that much is overwritten, and read back from everywhere.
        let reach = if random.random_bool(0.6) { 48 } else { blocks };
        let first = random.random_range(0..reach);
        let count = random.random_range(1..=8).min(blocks - first);
        let (mut offset, mut length) = (first * BLOCK, count * BLOCK);
        if random.random_bool(0.3) {
            offset += random.random_range(0..BLOCK);
            length = random.random_range(1..=length - (offset - first * BLOCK));
        }
        let end = offset + length;
        let (inner, inner_end) = (offset.next_multiple_of(BLOCK), end / BLOCK * BLOCK);
        let zeros = |range: std::ops::Range<usize>| Step { range, data: None };
        let (at, long) = (offset as u64, length as u64);
        match random.random_range(0..10) {
            0 => {
                let steps = if inner < inner_end { vec![zeros(inner..inner_end)] } else { Vec::new() };
                (Change::Trim { offset: at, length: long }, steps)
            }
            1 => {
                // The blocks at the edges are written as data, then those between are made zero.
                let parts = if inner < inner_end {
                    vec![zeros(offset..inner), zeros(inner_end..end), zeros(inner..inner_end)]
                } else {
                    vec![zeros(offset..inner.min(end)), zeros(inner.min(end)..end)]
                };
                (Change::Zero { offset: at, length: long }, parts)
            }
            _ => {
                *self.stamp += 1;
                let data: Vec<u8> = content(*self.stamp).take(length).collect();
                let step = Step { range: offset..end, data: Some(data.clone()) };
                (Change::Write { offset: at, data: data.into() }, vec![step])
            }
        }
    }
}

/// Bytes of which half compress and which no other stamp has.
fn content(stamp: u64) -> impl Iterator<Item = u8> {
    (0_u64..).flat_map(move |word| {
        let mixed =
            if word % 2 == 0 { (stamp + word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) } else { stamp };
        mixed.to_le_bytes()
    })
}

/// Waits for what may need the store to go on, and lets the store go on.
async fn patiently<T>(store: &LateStore, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = store.arrived() => store.deliver_one().await,
        }
    }
}

async fn commit(device: VolumeDevice) -> Result<()> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    device.commit(Box::new(move |result| {
        // The one who waits may be gone: the host may have died.
        let _ = sender.send(result);
    }));
    drop(device);
    receiver.await.unwrap_or(Ok(()))
}

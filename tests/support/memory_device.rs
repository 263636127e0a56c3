//! A disk in memory behind the seam of the doors, with switches for what real disks do on bad days.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use varve::block_device::{
    Attempt, BlockDevice, Change, CommitDone, ExportEntry, Exports, Geometry, OpenDevice, Residence, ResidenceExtent,
};
use varve::error::{Error, ErrorKind, Result};

const BLOCK: u64 = 4096;

struct Content {
    bytes: Vec<u8>,
    /// For each block, whether it was written since it was last a hole.
    written: Vec<bool>,
}

/// What a disk was told, if it is recorded.
#[allow(dead_code, reason = "few of those who have such a disk look at it")]
pub enum Told {
    /// These bytes at this place; zeros, too.
    Write(u64, Vec<u8>),
    /// All before it survives the loss of power.
    Flush,
}

/// A flat vector under a lock.
pub struct MemoryDevice {
    content: RwLock<Content>,
    size: u64,
    read_only: bool,
    /// Everything goes the slow way.
    pub slow: AtomicBool,
    /// Everything fails like this.
    pub failure: Mutex<Option<ErrorKind>>,
    /// Commits asked for.
    pub commits: AtomicUsize,
    /// Prefetches asked for.
    pub prefetches: AtomicUsize,
    /// While held for writing, the slow way waits.
    pub gate: tokio::sync::RwLock<()>,
    /// Everything it is told from the moment on at which this is set.
    pub told: Mutex<Option<Vec<Told>>>,
}

impl MemoryDevice {
    /// All zero.
    pub fn new(size: u64, read_only: bool) -> Arc<Self> {
        let blocks = size.div_ceil(BLOCK);
        Arc::new(MemoryDevice {
            content: RwLock::new(Content { bytes: vec![0; size as usize], written: vec![false; blocks as usize] }),
            size,
            read_only,
            slow: AtomicBool::new(false),
            failure: Mutex::new(None),
            commits: AtomicUsize::new(0),
            prefetches: AtomicUsize::new(0),
            gate: tokio::sync::RwLock::new(()),
            told: Mutex::new(None),
        })
    }

    /// A copy of the content.
    pub fn snapshot(&self) -> Vec<u8> {
        self.content.read().bytes.clone()
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        if let Some(kind) = *self.failure.lock() {
            return Err(Error::new(kind, "the disk was told to fail"));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Error::new(ErrorKind::Full, "past the end")),
        }
    }

    fn apply<D: AsRef<[u8]>>(&self, content: &mut Content, change: &Change<D>) -> Result<()> {
        let (offset, length) = match change {
            Change::Write { offset, data } => (*offset, data.as_ref().len() as u64),
            Change::Zero { offset, length } | Change::Trim { offset, length } => (*offset, *length),
        };
        self.check(offset, length)?;
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "this disk is read-only"));
        }
        let end = offset + length;
        let inner = (offset.div_ceil(BLOCK), end / BLOCK);
        match change {
            Change::Write { data, .. } => {
                content.bytes[offset as usize..end as usize].copy_from_slice(data.as_ref());
                content.written[(offset / BLOCK) as usize..end.div_ceil(BLOCK) as usize].fill(true);
            }
            Change::Zero { .. } => content.bytes[offset as usize..end as usize].fill(0),
            Change::Trim { .. } if inner.0 < inner.1 => {
                content.bytes[(inner.0 * BLOCK) as usize..(inner.1 * BLOCK) as usize].fill(0);
            }
            Change::Trim { .. } => {}
        }
        if !matches!(change, Change::Write { .. }) && inner.0 < inner.1 {
            content.written[inner.0 as usize..inner.1 as usize].fill(false);
        }
        if let Some(told) = &mut *self.told.lock() {
            told.push(Told::Write(offset, content.bytes[offset as usize..end as usize].to_vec()));
        }
        Ok(())
    }
}

#[async_trait]
impl BlockDevice for MemoryDevice {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.size, read_only: self.read_only, preferred_block: 4096 }
    }

    fn try_change(&self, changes: &[Change<&[u8]>], outcomes: &mut Vec<Attempt>) {
        if self.slow.load(Ordering::Relaxed) {
            return outcomes.extend(changes.iter().map(|_| Attempt::WouldBlock));
        }
        let mut content = self.content.write();
        outcomes.extend(changes.iter().map(|change| match self.apply(&mut content, change) {
            Ok(()) => Attempt::Done,
            Err(error) => Attempt::Failed(error),
        }));
    }

    async fn change(&self, change: Change<Bytes>) -> Result<()> {
        let _open = self.gate.read().await;
        self.apply(&mut self.content.write(), &change)
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Attempt {
        if self.slow.load(Ordering::Relaxed) {
            return Attempt::WouldBlock;
        }
        if let Err(error) = self.check(offset, buffer.len() as u64) {
            return Attempt::Failed(error);
        }
        let start = offset as usize;
        buffer.copy_from_slice(&self.content.read().bytes[start..start + buffer.len()]);
        Attempt::Done
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let _open = self.gate.read().await;
        self.check(offset, buffer.len() as u64)?;
        let start = offset as usize;
        buffer.copy_from_slice(&self.content.read().bytes[start..start + buffer.len()]);
        Ok(())
    }

    fn commit(&self, done: CommitDone) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        if let Some(told) = &mut *self.told.lock() {
            told.push(Told::Flush);
        }
        done(self.check(0, 0));
    }

    async fn prefetch(&self, offset: u64, length: u64) -> Result<()> {
        let _open = self.gate.read().await;
        self.prefetches.fetch_add(1, Ordering::Relaxed);
        self.check(offset, length)
    }

    async fn residence(&self, offset: u64, length: u64, extents_max: usize) -> Result<Vec<ResidenceExtent>> {
        self.check(offset, length)?;
        let content = self.content.read();
        let mut extents: Vec<ResidenceExtent> = Vec::new();
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let next = ((at / BLOCK + 1) * BLOCK).min(end);
            let residence = if content.written[(at / BLOCK) as usize] { Residence::Log } else { Residence::Hole };
            let full = extents.len() == extents_max;
            match extents.last_mut() {
                Some(last) if last.residence == residence => last.length += next - at,
                _ if full => break,
                _ => extents.push(ResidenceExtent { length: next - at, residence }),
            }
            at = next;
        }
        Ok(extents)
    }
}

/// A few disks by name; `secret` is not listed.
#[derive(Default)]
pub struct MemoryExports {
    /// The disks.
    pub devices: BTreeMap<String, Arc<MemoryDevice>>,
    /// Clients that have an export open.
    pub clients: Arc<AtomicUsize>,
}

struct Client(Arc<AtomicUsize>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn entry(name: &str) -> ExportEntry {
    ExportEntry {
        name: name.to_owned(),
        other_names: vec![format!("alias of {name}")],
        description: format!("{name} in memory"),
    }
}

#[async_trait]
impl Exports for MemoryExports {
    async fn list(&self) -> Result<Vec<ExportEntry>> {
        let listed = self.devices.keys().filter(|name| *name != "secret");
        Ok(listed.map(|name| entry(name)).collect())
    }

    async fn identify(&self, name: &str) -> Result<ExportEntry> {
        self.inspect(name).await?;
        Ok(entry(name))
    }

    async fn inspect(&self, name: &str) -> Result<Geometry> {
        let unknown = || Error::not_found(format!("there is no disk named '{}'", name.escape_default()));
        self.devices.get(name).map(|device| device.geometry()).ok_or_else(unknown)
    }

    async fn open(&self, name: &str) -> Result<OpenDevice> {
        if name == "busy" {
            return Err(Error::new(ErrorKind::Busy, "'busy' is owned by another host"));
        }
        self.inspect(name).await?;
        self.clients.fetch_add(1, Ordering::SeqCst);
        let (id, device) = (name.to_owned(), self.devices[name].clone());
        Ok(OpenDevice { id, device, session: Box::new(Client(self.clients.clone())) })
    }
}

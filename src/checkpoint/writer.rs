//! Writing a checkpoint over an older one.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::checkpoint::reader::{Checkpoint, split};
use crate::error::{Context, Error, Result};
use crate::format::map_object::{self, CheckpointRef, MapObjectId, PageRef, References, Root};
use crate::format::page::encode_page;
use crate::map::{MapPage, PageIndex};
use crate::store::{Condition, ObjectKey, Store};
use crate::units::{ByteLen, Epoch, SegmentNumber, Sequence, VolumeId};

/// An object is ended when it has grown to this length, in bytes: bounds the memory of writing.
const OBJECT_BYTES_TARGET: usize = 16 << 20;

/// The position that a checkpoint holds the map of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Epoch of the first segment that it does not include.
    pub epoch: Epoch,
    /// Number of that segment.
    pub number: SegmentNumber,
    /// Last place of the sequence that it includes.
    pub sequence: Sequence,
}

/// What writing a checkpoint cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrittenStats {
    /// Objects written.
    pub objects: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// Where changed pages come from.
#[async_trait]
pub trait PageSource: Send + Sync {
    /// A page as it is now.
    ///
    /// # Errors
    /// What loading it says.
    async fn page(&self, index: PageIndex) -> Result<Arc<MapPage>>;
}

/// Where a checkpoint is written: names of objects count up from `next_number`, which is moved on for each that may have been used.
pub struct Target<'a> {
    store: Arc<dyn Store>,
    volume: VolumeId,
    epoch: Epoch,
    next_number: &'a mut u64,
    object: Vec<u8>,
    stats: WrittenStats,
}

impl Target<'_> {
    fn id(&self) -> MapObjectId {
        MapObjectId { volume: self.volume, epoch: self.epoch, number: *self.next_number }
    }

    /// Adds a page, directory or root, and returns where it lies.
    async fn add(&mut self, raw: Vec<u8>) -> Result<PageRef> {
        if self.object.len() >= OBJECT_BYTES_TARGET {
            self.put().await?;
        }
        if self.object.is_empty() {
            self.object = map_object::encode_header(self.id());
        }
        // Pages are far below these bounds: `RAW_BYTES_MAX` and twice `OBJECT_BYTES_TARGET`.
        let (offset, raw_length) = (self.object.len() as u32, raw.len() as u32);
        let stored = map_object::compress(raw);
        self.object.extend_from_slice(&stored);
        let crc = crc32c::crc32c(&stored);
        Ok(PageRef { object: self.id(), offset, stored_length: stored.len() as u32, raw_length, crc })
    }

    async fn put(&mut self) -> Result<()> {
        let body = Bytes::from(std::mem::take(&mut self.object));
        let key = ObjectKey::map_object(self.volume, self.epoch, *self.next_number);
        *self.next_number += 1;
        self.stats.objects += 1;
        self.stats.bytes += body.len() as u64;
        let put = self.store.put(&key, body, Condition::IfAbsent).await.map_err(Error::from);
        put.map(drop).context(|| format!("cannot write the checkpoint of {}", self.volume))
    }
}

/// Writes a checkpoint: `base` with the `changed` pages (sorted) replaced by what `source` says of them.
///
/// # Errors
/// What `source` and the store say; the checkpoint is then not written, and trying again uses new names.
#[expect(clippy::too_many_arguments, reason = "each is one plain fact, and one place calls it")]
pub async fn write(
    store: Arc<dyn Store>,
    volume: VolumeId,
    epoch: Epoch,
    next_number: &mut u64,
    base: &Checkpoint,
    position: Position,
    size: ByteLen,
    changed: &[PageIndex],
    source: &dyn PageSource,
) -> Result<(CheckpointRef, Checkpoint, WrittenStats)> {
    let stats = WrittenStats::default();
    let mut target = Target { store: store.clone(), volume, epoch, next_number, object: Vec::new(), stats };
    let mut fresh: Vec<(u32, References)> = Vec::new();
    for group in changed.chunk_by(|a, b| split(*a).0 == split(*b).0) {
        let Some(first) = group.first() else { continue };
        let which = split(*first).0;
        let mut directory = base.directory(which).await?.map(|known| (*known).clone()).unwrap_or_default();
        for index in group {
            let page = source.page(*index).await?;
            let reference = if page.is_empty() { None } else { Some(target.add(encode_page(&page)).await?) };
            replace(&mut directory, split(*index).1, reference);
        }
        fresh.push((which, directory));
    }
    let mut directories = base.root().directories.clone();
    for (which, directory) in fresh {
        let reference = match directory.is_empty() {
            true => None,
            false => Some(target.add(map_object::encode_directory(&directory)).await?),
        };
        replace(&mut directories, which, reference);
    }
    let Position { epoch, number, sequence } = position;
    let root = Root { epoch, number, sequence, size, directories };
    let reference = CheckpointRef { root: target.add(map_object::encode_root(&root)).await? };
    target.put().await?;
    Ok((reference, Checkpoint::with_root(store, root), target.stats))
}

fn replace(references: &mut References, slot: u32, reference: Option<PageRef>) {
    let at = references.partition_point(|(known, _)| *known < slot);
    let is_there = references.get(at).is_some_and(|(known, _)| *known == slot);
    match reference {
        Some(reference) if is_there => references[at].1 = reference,
        Some(reference) => references.insert(at, (slot, reference)),
        None if is_there => drop(references.remove(at)),
        None => {}
    }
}

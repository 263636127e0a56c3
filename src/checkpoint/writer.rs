//! Writing a checkpoint over an older one.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::try_join_all;

use crate::checkpoint::reader::{Checkpoint, DIRECTORIES_KEPT, PARALLEL_FETCHES, split};
use crate::error::{Context, Error, Result};
use crate::format::map_object::{
    self, CheckpointRef, Compressor, MapObjectId, PageRef, RAW_BYTES_MAX, References, Root,
};
use crate::format::page::encode_page;
use crate::limits::{PAGE_BLOCKS, VOLUME_BYTES_MAX};
use crate::map::{ChangedPages, MapPage, PageIndex};
use crate::store::{Condition, ObjectKey, Store};
use crate::units::{BLOCK_SIZE, ByteLen, Epoch, SegmentNumber, Sequence, VolumeId};

/// An object is ended when it has grown to this length, in bytes: bounds the memory of writing.
const OBJECT_BYTES_TARGET: usize = 16 << 20;

const _: () = assert!(OBJECT_BYTES_TARGET + 2 * (RAW_BYTES_MAX as usize) < u32::MAX as usize);

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

/// A page, directory or root, ready to be stored.
struct Packed {
    stored: Vec<u8>,
    raw_length: u32,
    crc: u32,
}

impl Packed {
    fn new(raw: Vec<u8>, compressor: &mut Compressor) -> Self {
        assert!(
            raw.len() <= RAW_BYTES_MAX as usize,
            "pages, directories and roots are far shorter than a reader accepts"
        );
        let raw_length = raw.len() as u32;
        let stored = compressor.compress(raw);
        let crc = crc32c::crc32c(&stored);
        Packed { stored, raw_length, crc }
    }
}

/// A directory whose pages have been added, and which follows them in the same object.
struct Waiting {
    which: u32,
    packed: Packed,
    /// The same decoded, for the first few, so that the next checkpoint finds them in memory.
    directory: Option<Arc<References>>,
}

/// A checkpoint being written: one object in memory, and the directories of the root as they come to be known.
struct Writing<'a> {
    store: Arc<dyn Store>,
    volume: VolumeId,
    epoch: Epoch,
    next_number: &'a mut u64,
    base: &'a Checkpoint,
    object: Vec<u8>,
    waiting: Vec<Waiting>,
    waiting_bytes: usize,
    directories: References,
    stats: WrittenStats,
    compressor: Compressor,
}

impl Writing<'_> {
    fn id(&self) -> MapObjectId {
        MapObjectId { volume: self.volume, epoch: self.epoch, number: *self.next_number }
    }

    fn append(&mut self, packed: &Packed) -> PageRef {
        if self.object.is_empty() {
            self.object = map_object::encode_header(self.id());
        }
        // Both fit: an object is not much longer than its target, as asserted above.
        let (offset, stored_length) = (self.object.len() as u32, packed.stored.len() as u32);
        self.object.extend_from_slice(&packed.stored);
        PageRef { object: self.id(), offset, stored_length, raw_length: packed.raw_length, crc: packed.crc }
    }

    async fn add_page(&mut self, page: &MapPage) -> Result<PageRef> {
        self.put_if_long().await?;
        let packed = Packed::new(encode_page(page), &mut self.compressor);
        Ok(self.append(&packed))
    }

    /// Takes a directory whose pages are all added. It waits for the end of the object, so that pages lie next to pages.
    async fn add_directory(&mut self, which: u32, directory: References) -> Result<()> {
        if directory.is_empty() {
            replace(&mut self.directories, which, None);
            return Ok(());
        }
        let packed = Packed::new(map_object::encode_directory(&directory), &mut self.compressor);
        self.waiting_bytes += packed.stored.len();
        let directory = (self.waiting.len() < DIRECTORIES_KEPT).then(|| Arc::new(directory));
        self.waiting.push(Waiting { which, packed, directory });
        self.put_if_long().await
    }

    async fn put_if_long(&mut self) -> Result<()> {
        if self.object.len() + self.waiting_bytes < OBJECT_BYTES_TARGET {
            return Ok(());
        }
        self.place_directories();
        self.put().await
    }

    fn place_directories(&mut self) {
        self.waiting_bytes = 0;
        for Waiting { which, packed, directory } in std::mem::take(&mut self.waiting) {
            let reference = self.append(&packed);
            replace(&mut self.directories, which, Some(reference));
            if let Some(directory) = directory {
                self.base.keep((reference.object, reference.offset), directory);
            }
        }
    }

    async fn put(&mut self) -> Result<()> {
        let body = Bytes::from(std::mem::take(&mut self.object));
        let key = ObjectKey::map_object(self.volume, self.epoch, *self.next_number);
        *self.next_number += 1;
        self.stats.objects += 1;
        self.stats.bytes += body.len() as u64;
        let put = self.store.put(&key, body, Condition::IfAbsent).await.map_err(Error::from);
        put.map(drop).context(|| format!("cannot write a part of a checkpoint, {key}"))
    }
}

/// Writes a checkpoint: `base` with the `changed` pages replaced by what `source` says of them, and without what was cleared. Takes the memory
/// of one object (16 MiB) and a few directories, however much has changed; what was cleared is not read.
///
/// # Errors
/// `Invalid` if a page lies outside the volume; what `source` and the store say. The checkpoint is then not written, and
/// trying again uses new names.
#[expect(clippy::too_many_arguments, reason = "each is one plain fact, and one place calls it")]
pub async fn write(
    store: Arc<dyn Store>,
    volume: VolumeId,
    epoch: Epoch,
    next_number: &mut u64,
    base: &Checkpoint,
    position: Position,
    size: ByteLen,
    changed: &ChangedPages,
    source: &dyn PageSource,
) -> Result<(CheckpointRef, Checkpoint, WrittenStats)> {
    let pages = VOLUME_BYTES_MAX / BLOCK_SIZE / PAGE_BLOCKS;
    if let Some(last) = changed.last().filter(|last| last.0 >= pages) {
        return Err(Error::invalid(format!("page {} of the block map lies outside any volume", last.0)));
    }
    let mut writing = Writing {
        store: store.clone(),
        volume,
        epoch,
        next_number,
        base,
        object: Vec::new(),
        waiting: Vec::new(),
        waiting_bytes: 0,
        directories: kept_directories(base, changed),
        stats: WrittenStats::default(),
        compressor: Compressor::default(),
    };
    let groups: Vec<u32> =
        changed.directories().filter(|(_, directory)| !directory.names_none()).map(|(which, _)| which).collect();
    for batch in groups.chunks(PARALLEL_FETCHES) {
        let known = try_join_all(batch.iter().map(|which| what_counts(base, changed, *which))).await?;
        for (which, known) in batch.iter().zip(known) {
            let mut directory = (*known).clone();
            for index in changed.pages_of(*which) {
                let page = source.page(index).await?;
                let reference = if page.is_empty() { None } else { Some(writing.add_page(&page).await?) };
                replace(&mut directory, split(index).1, reference);
            }
            writing.add_directory(*which, directory).await?;
        }
    }
    writing.place_directories();
    let Position { epoch, number, sequence } = position;
    let directories = std::mem::take(&mut writing.directories);
    let root = Root { epoch, number, sequence, size, directories };
    let packed = Packed::new(map_object::encode_root(&root), &mut writing.compressor);
    let reference = CheckpointRef { root: writing.append(&packed) };
    writing.put().await?;
    Ok((reference, base.successor(store, root), writing.stats))
}

/// The directories of the base without those of which nothing is left.
fn kept_directories(base: &Checkpoint, changed: &ChangedPages) -> References {
    let is_gone =
        |which| changed.directory(which).is_some_and(|directory| directory.is_cleared() && directory.names_none());
    base.root().directories.iter().filter(|(which, _)| !is_gone(*which)).copied().collect()
}

/// What counts of a directory of the base.
async fn what_counts(base: &Checkpoint, changed: &ChangedPages, which: u32) -> Result<Arc<References>> {
    if changed.is_cleared(which) { Ok(Arc::default()) } else { base.directory(which).await }
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

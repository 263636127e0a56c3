//! Writing a checkpoint over an older one.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};

use crate::checkpoint::reader::{Checkpoint, DIRECTORIES_KEPT, PARALLEL_FETCHES, split};
use crate::clock;
use crate::error::{Context, Error, Result};
use crate::format::census::{MapChanges, ObjectAt};
use crate::format::map_object::{self, CheckpointRef, MapObjectId, PageRef, RAW_BYTES_MAX, References, Root};
use crate::format::page::encode_page;
use crate::limits::{PAGE_BLOCKS, VOLUME_BYTES_MAX};
use crate::map::{ChangedDirectory, ChangedPages, MapPage, PageIndex};
use crate::seal::{Salt, VolumeKey};
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

/// A checkpoint that is to be written over another.
pub struct NewCheckpoint<'a> {
    /// The volume.
    pub volume: VolumeId,
    /// The attachment that writes.
    pub epoch: Epoch,
    /// What it is a checkpoint of.
    pub position: Position,
    /// Size of the volume.
    pub size: ByteLen,
    /// Pages that may differ from those of the checkpoint before.
    pub changed: &'a ChangedPages,
    /// Where they come from.
    pub source: &'a dyn PageSource,
    /// How a manifest names the checkpoint before, if there is one.
    pub replaced: Option<CheckpointRef>,
}

/// What names the objects of a census, given what the checkpoint changes among them: parts to be kept with it.
pub type TakeCensus<'a> = &'a mut (dyn FnMut(&MapChanges) -> Vec<Vec<u8>> + Send);

/// A checkpoint that was written.
pub struct Written {
    /// How a manifest names it.
    pub reference: CheckpointRef,
    /// The same, open for reading.
    pub checkpoint: Checkpoint,
    /// What it cost.
    pub stats: WrittenStats,
    /// What it changes among the volume's own map objects.
    pub changes: MapChanges,
    /// Where the parts of the census are.
    pub census: Vec<PageRef>,
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

/// A page, directory or root, ready to be stored, but for its seal.
struct Packed {
    bytes: Vec<u8>,
    raw_length: u32,
}

impl Packed {
    fn new(raw: Vec<u8>) -> Self {
        assert!(
            raw.len() <= RAW_BYTES_MAX as usize,
            "pages, directories and roots are far shorter than a reader accepts"
        );
        let raw_length = raw.len() as u32;
        Packed { bytes: map_object::compress(raw), raw_length }
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
    key: Option<Arc<VolumeKey>>,
    volume: VolumeId,
    epoch: Epoch,
    next_number: &'a mut u64,
    base: &'a Checkpoint,
    object: Vec<u8>,
    waiting: Vec<Waiting>,
    waiting_bytes: usize,
    directories: References,
    stats: WrittenStats,
    changes: MapChanges,
    /// Bytes of the object in memory that the checkpoint will lead to.
    live: usize,
}

impl Writing<'_> {
    fn id(&self) -> MapObjectId {
        MapObjectId { volume: self.volume, epoch: self.epoch, number: *self.next_number }
    }

    fn append(&mut self, packed: &Packed) -> PageRef {
        if self.object.is_empty() {
            self.object = map_object::encode_header(self.id(), self.key.is_some());
        }
        // Both fit: an object is not much longer than its target, as asserted above.
        let (offset, stored_length) = (self.object.len() as u32, packed.bytes.len() as u32);
        let (object, raw_length) = (self.id(), packed.raw_length);
        let mut reference = PageRef { object, offset, stored_length, raw_length, crc: 0 };
        match &self.key {
            Some(key) => {
                let salt = Salt(clock::random_token().0);
                self.object.extend_from_slice(&key.seal_item(reference.item_place(), salt, &packed.bytes));
            }
            None => self.object.extend_from_slice(&packed.bytes),
        }
        let stored = &self.object[offset as usize..];
        reference.stored_length = stored.len() as u32;
        reference.crc = crc32c::crc32c(stored);
        self.live += stored.len();
        reference
    }

    async fn add_page(&mut self, page: &MapPage) -> Result<PageRef> {
        self.put_if_long().await?;
        let packed = Packed::new(encode_page(page));
        Ok(self.append(&packed))
    }

    /// Takes a directory whose pages are all added. It waits for the end of the object, so that pages lie next to pages.
    async fn add_directory(&mut self, which: u32, directory: References) -> Result<()> {
        if directory.is_empty() {
            let old = replace(&mut self.directories, which, None);
            self.release(old);
            return Ok(());
        }
        let packed = Packed::new(map_object::encode_directory(&directory));
        self.waiting_bytes += packed.bytes.len();
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
            let old = replace(&mut self.directories, which, Some(reference));
            self.release(old);
            if let Some(directory) = directory {
                self.base.keep((reference.object, reference.offset), directory);
            }
        }
    }

    /// Notes that the new checkpoint does without something to which the one before led.
    fn release(&mut self, old: Option<PageRef>) {
        if let Some(old) = old.filter(|old| old.object.volume == self.volume) {
            *self.changes.released.entry(old.object.into()).or_default() += u64::from(old.stored_length);
        }
    }

    /// What the checkpoint changes, the object that is still in memory included.
    fn note_object(&mut self) {
        let at = ObjectAt::from(self.id());
        // An object is far shorter than 4 GiB, as asserted above.
        self.changes.written.push((at, self.object.len() as u32, self.live as u32));
        self.live = 0;
    }

    async fn put(&mut self) -> Result<()> {
        self.note_object();
        self.put_object().await
    }

    async fn put_object(&mut self) -> Result<()> {
        let body = Bytes::from(std::mem::take(&mut self.object));
        let key = ObjectKey::map_object(self.volume, self.epoch, *self.next_number);
        *self.next_number += 1;
        self.stats.objects += 1;
        self.stats.bytes += body.len() as u64;
        let put = self.store.put(&key, body, Condition::IfAbsent).await.map_err(Error::from);
        put.map(drop).context(|| format!("cannot write a part of a checkpoint, {key}"))
    }
}

/// Writes a checkpoint: `base` with the changed pages replaced by what their source says of them, and without what was cleared. Takes the
/// memory of one object (16 MiB) and a few directories, however much has changed. `take_census` is called once all else is known.
///
/// # Errors
/// `Invalid` if a page lies outside the volume; what the source and the store say. The checkpoint is then not written, and
/// trying again uses new names.
pub async fn write(
    store: &Arc<dyn Store>,
    base: &Checkpoint,
    next_number: &mut u64,
    new: NewCheckpoint<'_>,
    take_census: TakeCensus<'_>,
) -> Result<Written> {
    let changed = new.changed;
    let pages = VOLUME_BYTES_MAX / BLOCK_SIZE / PAGE_BLOCKS;
    if let Some(last) = changed.last().filter(|last| last.0 >= pages) {
        return Err(Error::invalid(format!("page {} of the block map lies outside any volume", last.0)));
    }
    let mut writing = Writing {
        store: store.clone(),
        key: store.key_of(new.volume)?,
        volume: new.volume,
        epoch: new.epoch,
        next_number,
        base,
        object: Vec::new(),
        waiting: Vec::new(),
        waiting_bytes: 0,
        directories: kept_directories(base, changed),
        stats: WrittenStats::default(),
        changes: MapChanges::default(),
        live: 0,
    };
    writing.release_cleared(changed).await?;
    let groups: Vec<u32> =
        changed.directories().filter(|(_, directory)| !directory.names_none()).map(|(which, _)| which).collect();
    for batch in groups.chunks(PARALLEL_FETCHES) {
        let known = try_join_all(batch.iter().map(|which| what_counts(base, changed, *which))).await?;
        for (which, known) in batch.iter().zip(known) {
            let mut directory = (*known).clone();
            for index in changed.pages_of(*which) {
                let page = new.source.page(index).await?;
                let reference = if page.is_empty() { None } else { Some(writing.add_page(&page).await?) };
                let old = replace(&mut directory, split(index).1, reference);
                writing.release(old);
            }
            writing.add_directory(*which, directory).await?;
        }
    }
    writing.finish(&new, take_census).await
}

impl Writing<'_> {
    /// Ends the checkpoint: directories, root, census.
    async fn finish(mut self, new: &NewCheckpoint<'_>, take_census: TakeCensus<'_>) -> Result<Written> {
        self.place_directories();
        let Position { epoch, number, sequence } = new.position;
        let directories = std::mem::take(&mut self.directories);
        let root = Root { epoch, number, sequence, size: new.size, directories };
        let packed = Packed::new(map_object::encode_root(&root));
        let reference = CheckpointRef { root: self.append(&packed) };
        self.release(new.replaced.map(|replaced| replaced.root));
        self.note_object();
        let parts = take_census(&self.changes);
        let parts: Vec<Packed> = parts.into_iter().map(Packed::new).collect();
        let census = parts.iter().map(|part| self.append(part)).collect();
        self.put_object().await?;
        let checkpoint = self.base.successor(self.store.clone(), root);
        Ok(Written { reference, checkpoint, stats: self.stats, changes: self.changes, census })
    }

    /// Notes that of directories that were cleared nothing is in use any more.
    async fn release_cleared(&mut self, changed: &ChangedPages) -> Result<()> {
        let is_cleared = |(which, _): &&(u32, PageRef)| changed.is_cleared(*which);
        let cleared: Vec<(u32, PageRef)> = self.base.root().directories.iter().filter(is_cleared).copied().collect();
        for batch in cleared.chunks(PARALLEL_FETCHES) {
            let known = join_all(batch.iter().map(|(which, _)| self.base.directory(*which))).await;
            for ((which, directory), known) in batch.iter().zip(known) {
                match known {
                    Ok(known) => known.iter().for_each(|(_, page)| self.release(Some(*page))),
                    // Nothing of it counts any more. What it led to stays where it is.
                    Err(error) if error.is_damage() => {
                        tracing::warn!(volume = %self.volume, %error, "a damaged directory of the block map is left behind");
                    }
                    Err(error) => return Err(error),
                }
                // One that gets pages again lets go of the old one when it is put in its place.
                if changed.directory(*which).is_some_and(ChangedDirectory::names_none) {
                    self.release(Some(*directory));
                }
            }
        }
        Ok(())
    }
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

/// Puts a reference in its slot, and returns the one that was there.
fn replace(references: &mut References, slot: u32, reference: Option<PageRef>) -> Option<PageRef> {
    match (references.binary_search_by_key(&slot, |(known, _)| *known), reference) {
        (Ok(at), Some(reference)) => Some(std::mem::replace(&mut references[at].1, reference)),
        (Ok(at), None) => Some(references.remove(at).1),
        (Err(at), Some(reference)) => {
            references.insert(at, (slot, reference));
            None
        }
        (Err(_), None) => None,
    }
}

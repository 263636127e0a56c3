//! Reading a checkpoint.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::map_object::{self, CheckpointRef, MapObjectId, PageRef, References, Root};
use crate::format::page::decode_page;
use crate::limits::DIRECTORY_PAGES;
use crate::map::{MapPage, PageIndex};
use crate::store::{ByteRange, ObjectKey, Store};
use crate::units::ByteLen;

/// Directories kept decoded in memory, of at most 40 KiB each.
const DIRECTORIES_KEPT: usize = 64;
/// Longest range request for neighbouring pages, in bytes.
const FETCH_BYTES_MAX: u32 = 256 << 10;

/// A checkpoint, open for reading.
pub struct Checkpoint {
    store: Arc<dyn Store>,
    pub(super) root: Root,
    directories: quick_cache::sync::Cache<u32, Arc<References>>,
}

impl Checkpoint {
    /// The checkpoint of a volume that has none: all zero.
    pub fn empty(store: Arc<dyn Store>) -> Self {
        Checkpoint::with_root(store, Root::default())
    }

    /// Opens a checkpoint: one request.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, and what the store says.
    pub async fn open(store: Arc<dyn Store>, reference: CheckpointRef) -> Result<Self> {
        let raw = fetch(&*store, &reference.root).await.context(|| "cannot read the root of the checkpoint")?;
        let root = map_object::decode_root(&raw)?;
        Ok(Checkpoint::with_root(store, root))
    }

    pub(super) fn with_root(store: Arc<dyn Store>, root: Root) -> Self {
        Checkpoint { store, root, directories: quick_cache::sync::Cache::new(DIRECTORIES_KEPT) }
    }

    /// The top of the checkpoint.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// A page, and up to `read_ahead` pages right behind it that lie behind it in the object too.
    ///
    /// # Errors
    /// `Damaged`, and what the store says.
    pub async fn pages(&self, index: PageIndex, read_ahead: usize) -> Result<Vec<(PageIndex, MapPage)>> {
        let (which, slot) = split(index);
        let Some(directory) = self.directory(which).await? else {
            return Ok(vec![(index, MapPage::default())]);
        };
        let at = directory.partition_point(|(known, _)| *known < slot);
        let Some((_, first)) = directory.get(at).filter(|(known, _)| *known == slot) else {
            return Ok(vec![(index, MapPage::default())]);
        };
        let mut end = first.offset;
        let neighbours = directory[at..].iter().take(read_ahead + 1).take_while(|(_, reference)| {
            let joins = reference.object == first.object && reference.offset == end;
            end = reference.offset.saturating_add(reference.stored_length);
            joins && (end - first.offset <= FETCH_BYTES_MAX || reference.offset == first.offset)
        });
        let group: Vec<(PageIndex, PageRef)> = neighbours.map(|(slot, reference)| (join(which, *slot), *reference)).collect();
        self.fetch_pages(&group).await
    }

    /// Calls `visit` for every page that is not empty, in order.
    ///
    /// # Errors
    /// As [`Checkpoint::pages`], and what `visit` says.
    pub async fn walk(&self, visit: &mut (dyn FnMut(PageIndex, MapPage) -> Result<()> + Send)) -> Result<()> {
        for (which, _) in &self.root.directories {
            let Some(directory) = self.directory(*which).await? else { continue };
            let mut at = 0;
            while let Some((slot, _)) = directory.get(at) {
                let pages = self.pages(join(*which, *slot), DIRECTORY_PAGES as usize).await?;
                at += pages.len();
                for (index, page) in pages {
                    visit(index, page)?;
                }
            }
        }
        Ok(())
    }

    /// The objects that the checkpoint refers to, besides the one with its root.
    ///
    /// # Errors
    /// As [`Checkpoint::pages`].
    pub async fn objects(&self) -> Result<BTreeSet<MapObjectId>> {
        let mut objects = BTreeSet::new();
        for (which, reference) in &self.root.directories {
            objects.insert(reference.object);
            if let Some(directory) = self.directory(*which).await? {
                objects.extend(directory.iter().map(|(_, reference)| reference.object));
            }
        }
        Ok(objects)
    }

    /// Size of the volume when it was written.
    pub fn size(&self) -> ByteLen {
        self.root.size
    }

    pub(super) async fn directory(&self, which: u32) -> Result<Option<Arc<References>>> {
        let at = self.root.directories.partition_point(|(known, _)| *known < which);
        let Some((_, reference)) = self.root.directories.get(at).filter(|(known, _)| *known == which) else {
            return Ok(None);
        };
        let load = async {
            let raw = fetch(&*self.store, reference).await.context(|| "cannot read a directory of the checkpoint")?;
            map_object::decode_directory(&raw).map(Arc::new)
        };
        self.directories.get_or_insert_async(&which, load).await.map(Some)
    }

    async fn fetch_pages(&self, group: &[(PageIndex, PageRef)]) -> Result<Vec<(PageIndex, MapPage)>> {
        let (Some((_, first)), Some((_, last))) = (group.first(), group.last()) else {
            return Ok(Vec::new());
        };
        let length = u64::from(last.offset - first.offset) + u64::from(last.stored_length);
        let range = ByteRange::Part { offset: u64::from(first.offset), length };
        let fetched = self.store.get(&key(first.object), range).await.map_err(Error::from);
        let bytes = fetched.context(|| "cannot read pages of the checkpoint")?.bytes;
        let mut pages = Vec::with_capacity(group.len());
        for (index, reference) in group {
            let start = (reference.offset - first.offset) as usize;
            let stored = bytes.get(start..start + reference.stored_length as usize).unwrap_or_default();
            let raw = match map_object::open(reference, stored) {
                Ok(raw) => raw,
                Err(error) => {
                    tracing::warn!(%error, "fetching a damaged page again");
                    fetch(&*self.store, reference).await?
                }
            };
            pages.push((*index, decode_page(&raw)?));
        }
        Ok(pages)
    }
}

/// Fetches and opens what a reference names, a second time if it is damaged.
async fn fetch(store: &dyn Store, reference: &PageRef) -> Result<Vec<u8>> {
    let range = ByteRange::Part { offset: u64::from(reference.offset), length: u64::from(reference.stored_length) };
    let mut attempts = 0;
    loop {
        attempts += 1;
        let stored = match store.get(&key(reference.object), range).await.map_err(Error::from) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::damaged(format!("{} is missing in the store", reference.object)));
            }
            other => other?.bytes,
        };
        match map_object::open(reference, &stored) {
            Err(error) if attempts < 2 => tracing::warn!(%error, "fetching it again"),
            other => return other,
        }
    }
}

fn key(object: MapObjectId) -> ObjectKey {
    ObjectKey::map_object(object.volume, object.epoch, object.number)
}

/// The directory of a page, and its slot there.
pub(super) fn split(index: PageIndex) -> (u32, u32) {
    ((index.0 / DIRECTORY_PAGES) as u32, (index.0 % DIRECTORY_PAGES) as u32)
}

fn join(which: u32, slot: u32) -> PageIndex {
    PageIndex(u64::from(which) * DIRECTORY_PAGES + u64::from(slot))
}

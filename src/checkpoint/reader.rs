//! Reading a checkpoint.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::census::{Making, Row, decode_rows};
use crate::format::map_object::{self, CheckpointRef, MapObjectId, PageRef, References, Root};
use crate::format::page::decode_page;
use crate::limits::DIRECTORY_PAGES;
use crate::map::{MapPage, PageIndex};
use crate::store::{ByteRange, ObjectKey, Store, StoreErrorKind};
use crate::units::ByteLen;

/// Directories that a checkpoint by itself keeps decoded in memory, of at most 48 KiB each.
pub(super) const DIRECTORIES_KEPT: usize = 64;
/// Longest range request for neighbouring pages, in bytes.
const FETCH_BYTES_MAX: u32 = 256 << 10;
/// Requests that one caller has under way at a time.
pub(super) const PARALLEL_FETCHES: usize = 8;

/// The place of a directory in the store. What lies there never changes, so that checkpoints can share what they know.
pub(super) type Place = (MapObjectId, u32);
type Directories = quick_cache::sync::Cache<Place, Arc<References>>;
/// Directories kept in memory, which any number of checkpoints share: at most 6 MiB. Clones are the same.
#[derive(Clone)]
pub struct KnownDirectories(Arc<Directories>);

impl Default for KnownDirectories {
    fn default() -> Self {
        KnownDirectories(Arc::new(Directories::new(2 * DIRECTORIES_KEPT)))
    }
}

/// Pages to be fetched by one request: references that lie back to back in one object.
type Group = Vec<(PageIndex, PageRef)>;

/// A checkpoint, open for reading.
pub struct Checkpoint {
    store: Arc<dyn Store>,
    root: Root,
    directories: Arc<Directories>,
}

impl Checkpoint {
    /// The checkpoint of a volume that has none: all zero.
    pub fn empty(store: Arc<dyn Store>) -> Self {
        Checkpoint { store, root: Root::default(), directories: Arc::new(Directories::new(DIRECTORIES_KEPT)) }
    }

    /// Opens a checkpoint: one request.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, and what the store says.
    pub async fn open(store: Arc<dyn Store>, reference: CheckpointRef) -> Result<Self> {
        let root = reference.root;
        let name = || format!("cannot read the root of the checkpoint at byte {} of {}", root.offset, root.object);
        let raw = fetch(&*store, &root).await.context(name)?;
        let root = map_object::decode_root(&raw).context(name)?;
        Ok(Checkpoint { root, ..Checkpoint::empty(store) })
    }

    /// The same, with memory for directories that others use too.
    #[must_use]
    pub fn sharing(self, known: &KnownDirectories) -> Self {
        Checkpoint { directories: known.0.clone(), ..self }
    }

    /// The checkpoint that follows this one; it shares the directories kept in memory.
    pub(super) fn successor(&self, store: Arc<dyn Store>, root: Root) -> Self {
        Checkpoint { store, root, directories: self.directories.clone() }
    }

    /// Keeps a directory that was just written, so that the next checkpoint need not fetch it.
    pub(super) fn keep(&self, place: Place, directory: Arc<References>) {
        self.directories.insert(place, directory);
    }

    /// The top of the checkpoint.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Where a directory is, if there is one.
    pub fn reference(&self, which: u32) -> Option<PageRef> {
        position(&self.root.directories, which).map(|at| self.root.directories[at].1)
    }

    /// Where a page is, if there is one.
    ///
    /// # Errors
    /// As [`Checkpoint::directory`].
    pub async fn page_reference(&self, index: PageIndex) -> Result<Option<PageRef>> {
        let (which, slot) = split(index);
        let directory = self.directory(which).await?;
        Ok(position(&directory, slot).map(|at| directory[at].1))
    }

    /// True if the directory is in memory, and all its pages are `known`. Asks the store for nothing.
    pub fn has_only(&self, which: u32, known: impl Fn(PageIndex) -> bool) -> bool {
        let Some(reference) = self.reference(which) else { return true };
        let directory = self.directories.get(&(reference.object, reference.offset));
        directory.is_some_and(|directory| directory.iter().all(|(slot, _)| known(join(which, *slot))))
    }

    /// Size of the volume when it was written.
    pub fn size(&self) -> ByteLen {
        self.root.size
    }

    /// A page, and up to `read_ahead` pages right behind it that lie behind it in the object too: one request, or two
    /// if its directory is not known yet. A neighbour that is damaged is left out: whoever asks for it is told.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, and what the store says.
    pub async fn pages(&self, index: PageIndex, read_ahead: usize) -> Result<Vec<(PageIndex, MapPage)>> {
        let (which, slot) = split(index);
        let directory = self.directory(which).await?;
        let Some(at) = position(&directory, slot) else {
            return Ok(vec![(index, MapPage::default())]);
        };
        let group = group_at(which, &directory[at..], read_ahead.saturating_add(1));
        let mut fetched = self.fetch_group(&group, 1).await?.into_iter();
        let mut pages = Vec::with_capacity(group.len());
        for (index, page) in fetched.by_ref().take(1) {
            pages.push((index, page?));
        }
        pages.extend(fetched.filter_map(|(index, page)| Some((index, page.ok()?))));
        Ok(pages)
    }

    /// Calls `visit` for every page that is not empty, in order.
    ///
    /// # Errors
    /// As [`Checkpoint::pages`], for the first page or directory that is damaged, and what `visit` says.
    pub async fn walk(&self, visit: &mut (dyn FnMut(PageIndex, MapPage) -> Result<()> + Send)) -> Result<()> {
        self.survey(&mut |index, _, page| visit(index, page?)).await
    }

    /// As [`Checkpoint::walk`], but goes on behind damage: `visit` gets a first page, how many pages from there on are
    /// concerned, and the page or why it cannot be had. That is one page, or all those of a directory.
    ///
    /// # Errors
    /// What `visit` says, and what the store says when it cannot be reached.
    pub async fn survey(
        &self,
        visit: &mut (dyn FnMut(PageIndex, u64, Result<MapPage>) -> Result<()> + Send),
    ) -> Result<()> {
        for (which, _) in &self.root.directories {
            let directory = match self.directory(*which).await {
                Ok(directory) => directory,
                Err(error) if is_lasting(&error) => {
                    visit(join(*which, 0), DIRECTORY_PAGES, Err(error))?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            for batch in groups(*which, &directory).chunks(PARALLEL_FETCHES) {
                for pages in join_all(batch.iter().map(|group| self.fetch_group(group, group.len()))).await {
                    for (index, page) in pages? {
                        visit(index, 1, page)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The objects that the checkpoint refers to, besides the one with its root. Reads directories, no pages.
    ///
    /// # Errors
    /// As [`Checkpoint::pages`].
    pub async fn objects(&self) -> Result<BTreeSet<MapObjectId>> {
        let mut objects = BTreeSet::new();
        for batch in self.root.directories.chunks(PARALLEL_FETCHES) {
            objects.extend(batch.iter().map(|(_, reference)| reference.object));
            for directory in try_join_all(batch.iter().map(|(which, _)| self.directory(*which))).await? {
                objects.extend(directory.iter().map(|(_, reference)| reference.object));
            }
        }
        Ok(objects)
    }

    /// A directory (the pages of one GiB, by slot), empty if there is none. However many ask for one at a time, it is fetched once.
    ///
    /// # Errors
    /// As [`Checkpoint::pages`].
    pub async fn directory(&self, which: u32) -> Result<Arc<References>> {
        let Some(reference) = self.reference(which) else {
            return Ok(Arc::default());
        };
        let load = async {
            let name = || format!("cannot read the directory at byte {} of {}", reference.offset, reference.object);
            let raw = fetch(&*self.store, &reference).await.context(name)?;
            map_object::decode_directory(&raw).map(Arc::new).context(name)
        };
        self.directories.get_or_insert_async(&(reference.object, reference.offset), load).await
    }

    /// Fetches pages by one request. Of those whose bytes are wrong, the first `wanted` are fetched once more.
    async fn fetch_group(
        &self,
        group: &[(PageIndex, PageRef)],
        wanted: usize,
    ) -> Result<Vec<(PageIndex, Result<MapPage>)>> {
        let (Some((_, first)), Some((_, last))) = (group.first(), group.last()) else {
            return Ok(Vec::new());
        };
        let length = u64::from(last.offset - first.offset) + u64::from(last.stored_length);
        let bytes = match get(&*self.store, first.object, first.offset, length).await {
            Ok(bytes) => bytes,
            // A missing or cut object: what of it can be had is found page by page.
            Err(error) if is_lasting(&error) => Bytes::new(),
            Err(error) => return Err(error),
        };
        let key = self.store.key_of(first.object.volume)?;
        let mut pages = Vec::with_capacity(group.len());
        for (nth, (index, reference)) in group.iter().enumerate() {
            let start = (reference.offset - first.offset) as usize;
            let stored = bytes.get(start..start + reference.stored_length as usize).unwrap_or_default();
            let raw = match map_object::open(reference, stored, key.as_deref()) {
                Err(error) if nth < wanted => {
                    tracing::warn!(%error, "fetching a page of a checkpoint again");
                    fetch_once(&*self.store, reference).await
                }
                opened => opened,
            };
            let name = || format!("cannot read the page at byte {} of {}", reference.offset, reference.object);
            let page = raw.and_then(|raw| decode_page(&raw)).context(name);
            match page {
                Err(error) if !is_lasting(&error) => return Err(error),
                page => pages.push((*index, page)),
            }
        }
        Ok(pages)
    }
}

/// Reads the parts of a census; and how it was made.
///
/// # Errors
/// `Damaged`, `Unsupported`, and what the store says.
pub async fn read_census(store: &dyn Store, parts: &[PageRef]) -> Result<(Vec<Row>, Making)> {
    let (mut rows, mut making) = (Vec::new(), Making::COUNTED);
    for part in parts {
        let name = || format!("cannot read the census at byte {} of {}", part.offset, part.object);
        let raw = fetch(store, part).await.context(name)?;
        let (more, of_part) = decode_rows(&raw).context(name)?;
        rows.extend(more);
        making = making.with(of_part);
    }
    Ok((rows, making))
}

/// True if asking again later would not help: what is in the store is not what the reference names.
fn is_lasting(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported)
}

/// The first of `references` and those behind it, at most `count`, that one request can fetch.
fn group_at(which: u32, references: &[(u32, PageRef)], count: usize) -> Group {
    let mut group = Group::new();
    for (slot, reference) in references.iter().take(count) {
        let joins = match (group.first(), group.last()) {
            (Some((_, first)), Some((_, last))) => {
                let (end, next) = (last.end(), u64::from(reference.offset));
                reference.object == first.object
                    && end == next
                    && reference.end() - u64::from(first.offset) <= u64::from(FETCH_BYTES_MAX)
            }
            _ => true,
        };
        if !joins {
            break;
        }
        group.push((join(which, *slot), *reference));
    }
    group
}

fn groups(which: u32, directory: &References) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut rest = &directory[..];
    while !rest.is_empty() {
        let group = group_at(which, rest, rest.len());
        rest = &rest[group.len()..];
        groups.push(group);
    }
    groups
}

/// Fetches and opens what a reference names, a second time if it is damaged.
async fn fetch(store: &dyn Store, reference: &PageRef) -> Result<Vec<u8>> {
    match fetch_once(store, reference).await {
        Err(error) if error.kind() == ErrorKind::Damaged => {
            tracing::warn!(%error, "fetching a part of a checkpoint again");
            fetch_once(store, reference).await
        }
        other => other,
    }
}

async fn fetch_once(store: &dyn Store, reference: &PageRef) -> Result<Vec<u8>> {
    map_object::check_reference(reference)?;
    let stored = get(store, reference.object, reference.offset, u64::from(reference.stored_length)).await?;
    map_object::open(reference, &stored, store.key_of(reference.object.volume)?.as_deref())
}

async fn get(store: &dyn Store, object: MapObjectId, offset: u32, length: u64) -> Result<Bytes> {
    let key = ObjectKey::map_object(object.volume, object.epoch, object.number);
    let fetched = store.get(&key, ByteRange::Part { offset: u64::from(offset), length }).await;
    fetched.map(|fetched| fetched.bytes).map_err(|error| match error.kind {
        // Something refers to it, so this is loss; and it can only be cut if it was damaged.
        StoreErrorKind::NotFound => Error::damaged(format!("{key} is missing in the store")),
        StoreErrorKind::Malformed => Error::damaged(error.message),
        _ => error.into(),
    })
}

/// Where in `references` the one of a directory or a slot is.
fn position(references: &References, wanted: u32) -> Option<usize> {
    references.binary_search_by_key(&wanted, |(known, _)| *known).ok()
}

/// The directory of a page, and its slot there.
pub(super) fn split(index: PageIndex) -> (u32, u32) {
    ((index.0 / DIRECTORY_PAGES) as u32, (index.0 % DIRECTORY_PAGES) as u32)
}

fn join(which: u32, slot: u32) -> PageIndex {
    PageIndex(u64::from(which) * DIRECTORY_PAGES + u64::from(slot))
}

//! Writing the content of a snapshot or of a detached volume into a raw disk image, straight from the store.
//!
//! The map is walked in order; a few windows of data are fetched, verified and unpacked ahead of the one that is written. Holes are passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::admin::family::only_if_free;
use crate::admin::volumes::Admin;
use crate::disk::image::ImageWriter;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::segment::FrameEntry;
use crate::limits::FRAME_BLOCKS;
use crate::lineage::{self, FrozenMap};
use crate::map::{PagePlace, SegmentPlace};
use crate::ownership;
use crate::segment::{FrameOpener, fetch_frames, fetch_index};
use crate::service::ImageProgress;
use crate::store::Store;
use crate::units::{BLOCK_SIZE, ByteLen, SegmentId, SnapshotId, VolumeId};
use crate::volume::{SegmentIndexCache, new_segment_index_cache};

/// Pages (1 MiB of volume each) that are fetched together.
const WINDOW_PAGES: usize = 4;
/// Windows fetched at the same time: with what waits to be written, the memory of an export.
const WINDOWS_AT_ONCE: usize = 6;
/// Windows that wait to be written.
const WINDOWS_WAITING: usize = 2;
/// Longest range request for neighbouring frames, in bytes as stored.
const FETCH_BYTES_MAX: u64 = 4 << 20;
/// Memory for indexes of segments, in bytes.
const INDEXES_BYTES: u64 = 32 << 20;

/// Data of one window: byte offsets and bytes, in order.
type Window = Vec<(u64, Vec<u8>)>;

impl Admin {
    /// The content of a snapshot, to be exported or compared.
    ///
    /// # Errors
    /// `NotFound`; `Damaged`, and what the store says.
    pub async fn frozen_snapshot(&self, id: SnapshotId) -> Result<FrozenMap> {
        let found = lineage::find(&*self.store, id).await?;
        ownership::unlock(&*self.store, &found.volume.manifest).await?;
        FrozenMap::open(&self.store, &found.moment).await
    }

    /// The content of a volume that nobody owns, as of now.
    ///
    /// # Errors
    /// `Busy` if somebody owns it; `Invalid` if it is destroyed; `Damaged`, and what the store says.
    pub async fn frozen_volume(&self, id: VolumeId) -> Result<FrozenMap> {
        let manifest = ownership::load(&*self.store, id).await?.manifest;
        only_if_free(&manifest, "take a snapshot of")?;
        ownership::unlock(&*self.store, &manifest).await?;
        FrozenMap::open(&self.store, &manifest.moment()).await
    }

    /// Writes the content behind `map` into an image. Ends early, without one, when `stop` does.
    ///
    /// # Errors
    /// `Damaged`, what the store says, and what the writer says.
    pub async fn export(
        &self,
        map: &FrozenMap,
        image: ImageWriter,
        progress: &mut (dyn FnMut(ImageProgress) + Send),
        stop: impl Future<Output = ()> + Send,
    ) -> Result<()> {
        let (size, is_stream) = (map.size(), image.is_stream());
        let (sender, receiver) = mpsc::channel(WINDOWS_WAITING);
        let (answer, mut answered) = oneshot::channel();
        // A thread of its own: it may wait for a pipe for ever, and must not keep the process from ending.
        std::thread::Builder::new()
            .name("varve-export".to_owned())
            .spawn(move || {
                // Whoever does not wait for it does not need it.
                let _ = answer.send(write_windows(image, receiver, size.0));
            })
            .map_err(|error| Error::io("cannot start a thread", &error))?;
        let mut progress = |done| progress(ImageProgress { done: ByteLen(done), total: Some(size) });
        let outcome = tokio::select! {
            outcome = self.send_windows(map, sender, &mut progress) => outcome,
            () = stop => Err(Error::new(ErrorKind::Stopping, "the export was interrupted")),
        };
        if outcome.is_err() && is_stream {
            // The writer may be the cause, and knows better then; or it waits for somebody who does not read.
            return answered.try_recv().unwrap_or(outcome.map(|_| ()));
        }
        let written =
            answered.await.map_err(|_| Error::new(ErrorKind::Io, "the thread that writes the image has ended"))?;
        match (outcome, written) {
            (_, Err(error)) if error.kind() != ErrorKind::Stopping => Err(error),
            (Err(error), _) => Err(error),
            (Ok(()), written) => written.inspect(|()| progress(size.0)),
        }
    }

    /// Fetches what `map` leads to, window by window, and sends it to the writer; at the end an empty window.
    async fn send_windows(
        &self,
        map: &FrozenMap,
        sender: mpsc::Sender<Window>,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<()> {
        let indexes = new_segment_index_cache(ByteLen(INDEXES_BYTES));
        let reader = Arc::new(Reader { store: self.store.clone(), indexes });
        let mut windows: FuturesOrdered<JoinHandle<Result<Window>>> = FuturesOrdered::new();
        let mut deliver = async |window: Option<Result<Result<Window>, tokio::task::JoinError>>| {
            let stopped = || Error::new(ErrorKind::Stopping, "the export was stopped");
            let Some(window) = window else { return Ok::<(), Error>(()) };
            let window = window.map_err(|_| stopped())??;
            if let Some((offset, data)) = window.last() {
                progress(offset + data.len() as u64);
                sender.send(window).await.map_err(|_| stopped())?;
            }
            Ok(())
        };
        for which in map.directories() {
            for pages in map.occupied(which).await?.chunks(WINDOW_PAGES) {
                let mut places = Vec::new();
                for page in pages {
                    map.lookup(page.index.range(), &mut places).await?;
                }
                if windows.len() >= WINDOWS_AT_ONCE {
                    deliver(windows.next().await).await?;
                }
                let reader = reader.clone();
                windows.push_back(tokio::spawn(async move { reader.window(&places).await }));
            }
        }
        while !windows.is_empty() {
            deliver(windows.next().await).await?;
        }
        // Without it the writer knows that the image is not whole.
        sender.send(Window::new()).await.map_err(|_| Error::new(ErrorKind::Stopping, "the export was stopped"))
    }
}

/// Writes windows until an empty one says that this was all.
fn write_windows(mut image: ImageWriter, mut windows: mpsc::Receiver<Window>, size: u64) -> Result<()> {
    while let Some(window) = windows.blocking_recv() {
        if window.is_empty() {
            return image.finish(size);
        }
        for (offset, data) in window {
            image.write(offset, &data)?;
        }
    }
    Err(Error::new(ErrorKind::Stopping, "the export was stopped"))
}

/// Reads blocks of segments without a daemon's caches.
struct Reader {
    store: Arc<dyn Store>,
    indexes: SegmentIndexCache,
}

impl Reader {
    /// The data at these places.
    async fn window(&self, places: &[PagePlace]) -> Result<Window> {
        let mut wanted: BTreeMap<SegmentId, BTreeSet<u32>> = BTreeMap::new();
        for (place, blocks) in data(places) {
            let first = u64::from(place.block) / FRAME_BLOCKS;
            let last = (u64::from(place.block) + blocks - 1) / FRAME_BLOCKS;
            wanted.entry(place.segment).or_default().extend((first..=last).map(|frame| frame as u32));
        }
        let fetches = wanted.iter().map(|(segment, frames)| self.frames(*segment, frames));
        let frames: BTreeMap<(SegmentId, u32), Bytes> = try_join_all(fetches).await?.into_iter().flatten().collect();
        let mut window = Window::new();
        for found in places {
            let Some(place) = found.place else { continue };
            let mut bytes = Vec::with_capacity(found.range.count.bytes().0 as usize);
            for block in (0..found.range.count.0).map(|step| u64::from(place.block) + step) {
                let frame = frames.get(&(place.segment, (block / FRAME_BLOCKS) as u32));
                let start = (block % FRAME_BLOCKS * BLOCK_SIZE) as usize;
                let content = frame.and_then(|frame| frame.get(start..start + BLOCK_SIZE as usize));
                let lacks = || Error::damaged(format!("segment {} lacks block {block}", place.segment));
                bytes.extend_from_slice(content.ok_or_else(lacks)?);
            }
            window.push((found.range.start.byte_offset(), bytes));
        }
        Ok(window)
    }

    async fn frames(&self, segment: SegmentId, wanted: &BTreeSet<u32>) -> Result<Vec<((SegmentId, u32), Bytes)>> {
        let load = async {
            match fetch_index(&*self.store, segment).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    Err(Error::damaged(format!("segment {segment} is missing in the store: {error}")))
                }
                other => other.map(Arc::new),
            }
        };
        let index = self.indexes.get_or_insert_async(&segment, load).await?;
        let mut groups: Vec<Vec<(u32, FrameEntry)>> = Vec::new();
        for &number in wanted {
            let lacks = || Error::damaged(format!("segment {segment} has no frame {number}"));
            let entry = *index.frames.get(number as usize).ok_or_else(lacks)?;
            match groups.last_mut() {
                Some(group) if joins(group, number, &entry) => group.push((number, entry)),
                _ => groups.push(vec![(number, entry)]),
            }
        }
        let fetches = groups.iter().map(|group| self.neighbours(segment, group));
        Ok(try_join_all(fetches).await?.into_iter().flatten().collect())
    }

    async fn neighbours(
        &self,
        segment: SegmentId,
        group: &[(u32, FrameEntry)],
    ) -> Result<Vec<((SegmentId, u32), Bytes)>> {
        let entries: Vec<FrameEntry> = group.iter().map(|(_, entry)| *entry).collect();
        let name = || format!("cannot read segment {segment}");
        let fetched = fetch_frames(&*self.store, segment, &entries).await.context(name)?;
        let key = self.store.key_of(segment.volume)?;
        let opener = FrameOpener::new(segment, key.as_deref());
        let mut frames = Vec::with_capacity(group.len());
        for ((number, entry), stored) in group.iter().zip(fetched) {
            let plain = match opener.open(*number, entry, &stored) {
                Err(error) if error.kind() == ErrorKind::Damaged => {
                    tracing::warn!(%segment, frame = number, "fetching a damaged frame again");
                    let again = fetch_frames(&*self.store, segment, &[*entry]).await.context(name)?;
                    opener.open(*number, entry, &again.into_iter().next().unwrap_or_default())
                }
                other => other,
            };
            frames.push(((segment, *number), plain?));
        }
        Ok(frames)
    }
}

/// The places of data, and how many blocks lie there.
fn data(places: &[PagePlace]) -> impl Iterator<Item = (SegmentPlace, u64)> + '_ {
    places.iter().filter_map(|found| found.place.map(|place| (place, found.range.count.0)))
}

fn joins(group: &[(u32, FrameEntry)], number: u32, entry: &FrameEntry) -> bool {
    match (group.first(), group.last()) {
        (Some((_, first)), Some((last, _))) => {
            let length = u64::from(entry.offset - first.offset) + u64::from(entry.stored_length);
            last + 1 == number && length <= FETCH_BYTES_MAX
        }
        _ => true,
    }
}

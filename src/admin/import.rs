//! Making a volume of a raw disk image, straight on the store: no daemon, no write log.
//!
//! Order of effects: the manifest, marked as being made and as destroyed (so nobody sees it, attaches it or brings it back); segments, and now and
//! then a checkpoint, which bounds memory, with a sign of life in the manifest; the seal of the epoch; one swap that takes the marks away.
//!
//! Errors: what was made is deleted again, the manifest last. After a crash, or if that fails, a hidden volume is left, which is purged like a
//! destroyed one.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::admin::purge;
use crate::admin::volumes::{Admin, new_manifest, summary};
use crate::checkpoint::{self, Checkpoint, NewCheckpoint, PageSource};
use crate::clean::Census;
use crate::clock;
use crate::disk::image::{ImageReader, is_zero};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::census::{Making, MapChanges, encode_rows};
use crate::format::manifest::Position;
use crate::format::map_object::{CheckpointRef, PageRef};
use crate::format::segment::{SegmentHeader, SegmentIndex};
use crate::limits::{SEGMENT_BYTES_TARGET, UPLOADS_AT_ONCE, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN};
use crate::lineage;
use crate::map::{ChangedPages, MapPage, PageIndex};
use crate::ownership::{self, Loaded, seal_epoch};
use crate::segment::{SegmentBuilder, apply_entry};
use crate::service::{ImageProgress, NewVolume, VolumeSummary};
use crate::store::{Condition, ObjectKey, Store};
use crate::units::{
    BLOCK_SIZE, BlockCount, BlockRange, ByteLen, Epoch, Lba, SegmentId, SegmentNumber, Sequence, Token,
};

/// Pages (1 MiB of volume each) that may gather before they go into a checkpoint.
const PAGES_KEPT: usize = 16 << 10;
/// Objects deleted at the same time.
const EPOCH: Epoch = Epoch(1);

/// Blocks for one segment, in order, and how far the image was read for them.
#[derive(Default)]
struct Batch {
    runs: Vec<BlockRange>,
    data: Vec<u8>,
    position: u64,
}

impl Batch {
    fn push(&mut self, lba: Lba, block: &[u8]) {
        match self.runs.last_mut() {
            Some(run) if run.end() == lba => run.count.0 += 1,
            _ => self.runs.push(BlockRange::new(lba, BlockCount(1))),
        }
        self.data.extend_from_slice(block);
        // Only the last block of an image may be shorter.
        self.data.resize(self.data.len().next_multiple_of(BLOCK_SIZE as usize), 0);
    }
}

enum Cut {
    Batch(Batch),
    /// The image ended at this byte.
    End(u64),
}

type Uploads = FuturesOrdered<JoinHandle<Result<(SegmentIndex, u64)>>>;

struct Import {
    store: Arc<dyn Store>,
    loaded: Loaded,
    token: Token,
    uploads: Uploads,
    next_segment: u64,
    next_map_object: u64,
    pages: BTreeMap<PageIndex, Arc<MapPage>>,
    base: Checkpoint,
    checkpoint: Option<CheckpointRef>,
    /// Segments that have taken effect; each is one place of the sequence.
    effective: u64,
    stored_bytes: u64,
    census: Census,
    /// Where the newest checkpoint has it.
    census_parts: Vec<PageRef>,
}

impl Admin {
    /// Makes a volume of an image. A size of zero means the image's own, rounded up to whole blocks. Ends early when `stop` does.
    ///
    /// # Errors
    /// `Invalid` if the image is larger than the size asked for, or empty; what the image and the store say. Nothing is left then, or the message
    /// says what.
    pub async fn import(
        &self,
        new: NewVolume,
        image: ImageReader,
        progress: &mut (dyn FnMut(ImageProgress) + Send),
        stop: impl Future<Output = ()> + Send,
    ) -> Result<VolumeSummary> {
        let (name, total) = (image.name().to_owned(), image.length());
        let limit = if new.size.0 == 0 { VOLUME_BYTES_MAX } else { new.size.0 };
        if let Some(length) = total {
            only_if_it_fits(&name, length, limit)?;
            if length == 0 && new.size.0 == 0 {
                return Err(Error::invalid(format!("{name} is empty: nothing to import")));
            }
        }
        let encrypted = new.encrypted;
        let mut manifest = new_manifest(new);
        ownership::prepare_new(&*self.store, &mut manifest, encrypted).await?;
        let wanted = (manifest.size.0 != 0).then_some(manifest.size);
        manifest.size = wanted.unwrap_or_else(|| size_of(total.unwrap_or(0)));
        manifest.epoch = EPOCH;
        // Its past begins when it is made.
        manifest.history.clear();
        manifest.complete = false;
        manifest.being_made = true;
        manifest.destroyed_at = Some(manifest.created_at);
        let loaded = ownership::create(&*self.store, manifest).await?;
        let mut import = Import {
            store: self.store.clone(),
            token: loaded.manifest.nonce,
            loaded,
            uploads: Uploads::new(),
            next_segment: 0,
            next_map_object: 0,
            pages: BTreeMap::new(),
            base: Checkpoint::empty(self.store.clone()),
            checkpoint: None,
            effective: 0,
            stored_bytes: 0,
            census: Census::default(),
            census_parts: Vec::new(),
        };
        let mut progress = |done| progress(ImageProgress { done: ByteLen(done), total: total.map(ByteLen) });
        let made = async {
            let end = import.upload(image, limit, &mut progress, stop).await?;
            import.complete(wanted.unwrap_or_else(|| size_of(end))).await
        };
        match made.await {
            Ok(summary) => Ok(summary),
            Err(error) => import.undo(error).await,
        }
    }
}

/// The size of a volume that holds so many bytes.
fn size_of(length: u64) -> ByteLen {
    ByteLen(length.next_multiple_of(BLOCK_SIZE).max(VOLUME_BYTES_MIN))
}

fn only_if_it_fits(name: &str, length: u64, limit: u64) -> Result<()> {
    if length > limit {
        return Err(Error::invalid(format!(
            "{name} holds more than the {limit} bytes that the volume may have: nothing was imported; give a larger --size"
        )));
    }
    Ok(())
}

/// Cuts an image into segments' worth of blocks that are not zero, and sends them until nobody wants more.
fn cut(mut image: ImageReader, limit: u64, sender: &mpsc::Sender<Result<Cut>>) -> Result<()> {
    let name = image.name().to_owned();
    let send = |cut| sender.blocking_send(Ok(cut)).map_err(|_| Error::new(ErrorKind::Stopping, "the import has ended"));
    let (mut batch, mut buffer) = (Batch::default(), Vec::new());
    while let Some(offset) = image.next(&mut buffer)? {
        only_if_it_fits(&name, offset + buffer.len() as u64, limit)?;
        for (lba, block) in (offset / BLOCK_SIZE..).zip(buffer.chunks(BLOCK_SIZE as usize)) {
            if !is_zero(block) {
                batch.push(Lba(lba), block);
            }
        }
        batch.position = image.position();
        if batch.data.len() as u64 >= SEGMENT_BYTES_TARGET {
            send(Cut::Batch(std::mem::take(&mut batch)))?;
        }
    }
    if !batch.runs.is_empty() {
        send(Cut::Batch(batch))?;
    }
    send(Cut::End(image.position()))
}

async fn pack_and_put(store: Arc<dyn Store>, header: SegmentHeader, batch: Batch) -> Result<(SegmentIndex, u64)> {
    let position = batch.position;
    let key = store.key_of(header.id.volume)?;
    let packing = tokio::task::spawn_blocking(move || {
        let mut builder = SegmentBuilder::new(header, BlockCount(batch.data.len() as u64 / BLOCK_SIZE), key);
        let mut rest = &batch.data[..];
        for &run in &batch.runs {
            let (data, behind) = rest.split_at(run.count.bytes().0 as usize);
            rest = behind;
            builder.push_data(run, |from, buffer| {
                let start = (from * BLOCK_SIZE) as usize;
                buffer.copy_from_slice(&data[start..start + buffer.len()]);
                Ok(())
            })?;
        }
        builder.finish()
    });
    let built = packing.await.map_err(|_| Error::new(ErrorKind::Stopping, "the import was stopped"))??;
    put(&*store, header.id, built.bytes).await?;
    Ok((built.index, position))
}

async fn put(store: &dyn Store, id: SegmentId, body: Bytes) -> Result<()> {
    let put = store.put(&ObjectKey::segment(id), body, Condition::IfAbsent).await.map_err(Error::from);
    put.map(drop).context(|| format!("cannot write segment {id}"))
}

impl Import {
    fn segment(&self, number: u64) -> SegmentId {
        SegmentId { volume: self.loaded.manifest.volume, epoch: EPOCH, number: SegmentNumber(number) }
    }

    /// Brings the whole image into the store, and returns its length.
    async fn upload(
        &mut self,
        image: ImageReader,
        limit: u64,
        progress: &mut (dyn FnMut(u64) + Send),
        stop: impl Future<Output = ()> + Send,
    ) -> Result<u64> {
        let (sender, mut cuts) = mpsc::channel(1);
        // A thread of its own: it may wait for a pipe for ever, and must not keep the process from ending.
        std::thread::Builder::new()
            .name("varve-import".to_owned())
            .spawn(move || {
                if let Err(error) = cut(image, limit, &sender) {
                    // If nobody listens any more, nobody needs to know.
                    let _ = sender.blocking_send(Err(error));
                }
            })
            .map_err(|error| Error::io("cannot start a thread", &error))?;
        let mut stop = pin!(stop);
        let mut end = None;
        while end.is_none() || !self.uploads.is_empty() {
            tokio::select! {
                biased;
                () = &mut stop => return Err(Error::new(ErrorKind::Stopping, "the import was interrupted")),
                Some(done) = self.uploads.next(), if !self.uploads.is_empty() => {
                    let (index, position) = done.map_err(|_| Error::new(ErrorKind::Stopping, "the import was stopped"))??;
                    self.take_effect(&index).await?;
                    progress(position);
                }
                cut = cuts.recv(), if end.is_none() && self.uploads.len() < UPLOADS_AT_ONCE => match cut {
                    Some(Ok(Cut::Batch(batch))) => self.begin_upload(batch),
                    Some(Ok(Cut::End(length))) => end = Some(length),
                    Some(Err(error)) => return Err(error),
                    None => return Err(Error::new(ErrorKind::Io, "the thread that reads the image has ended")),
                },
            }
        }
        let end = end.unwrap_or(0);
        progress(end);
        Ok(end)
    }

    fn begin_upload(&mut self, batch: Batch) {
        let place = Sequence(self.next_segment + 1);
        let header = SegmentHeader {
            id: self.segment(self.next_segment),
            token: self.token,
            first: place,
            last: place,
            created_at: clock::now(),
            seal: false,
            salt: None,
        };
        self.next_segment += 1;
        self.uploads.push_back(tokio::spawn(pack_and_put(self.store.clone(), header, batch)));
    }

    async fn take_effect(&mut self, index: &SegmentIndex) -> Result<()> {
        for entry in &index.entries {
            for (page, part) in PageIndex::parts_of(entry.range) {
                let known = Arc::make_mut(self.pages.entry(page).or_default());
                apply_entry(known, page, part, entry, index.header.id);
            }
        }
        self.effective += 1;
        self.stored_bytes += index.object_length;
        let blocks = index.block_count();
        self.census.add_segment(index.header.id.into(), index.object_length, blocks, blocks);
        if self.pages.len() >= PAGES_KEPT {
            self.write_checkpoint(self.loaded.manifest.size).await?;
            // A sign of life, so that nobody takes it for dead.
            self.loaded =
                ownership::update(&*self.store, &self.loaded, |manifest| manifest.destroyed_at = Some(clock::now()))
                    .await?;
        }
        Ok(())
    }

    async fn write_checkpoint(&mut self, size: ByteLen) -> Result<()> {
        let changed: ChangedPages = self.pages.keys().copied().collect();
        let Some(last) = changed.last() else { return Ok(()) };
        let position = checkpoint::Position {
            epoch: EPOCH,
            number: SegmentNumber(self.effective),
            sequence: Sequence(self.effective),
        };
        let new = NewCheckpoint {
            volume: self.loaded.manifest.volume,
            epoch: EPOCH,
            position,
            size,
            changed: &changed,
            source: &Pages(&self.pages),
            replaced: self.checkpoint,
        };
        let census = &self.census;
        let mut take_census = |changes: &MapChanges| {
            let mut census = census.clone();
            census.note_checkpoint(changes);
            encode_rows(&census.rows(), Making::COUNTED)
        };
        let number = &mut self.next_map_object;
        let written = checkpoint::write(&self.store, &self.base, number, new, &mut take_census).await?;
        self.census.note_checkpoint(&written.changes);
        (self.checkpoint, self.base, self.census_parts) = (Some(written.reference), written.checkpoint, written.census);
        // The next segment may go on within the last page.
        self.pages.retain(|index, _| *index == last);
        Ok(())
    }

    /// Makes a whole volume of what is in the store.
    async fn complete(&mut self, size: ByteLen) -> Result<VolumeSummary> {
        self.write_checkpoint(size).await?;
        let sequence = Sequence(self.effective);
        seal_epoch(&*self.store, self.segment(self.next_segment), self.token, sequence).await?;
        let (checkpoint, stored_bytes) = (self.checkpoint, ByteLen(self.stored_bytes));
        let census = std::mem::take(&mut self.census_parts);
        let loaded = ownership::update(&*self.store, &self.loaded, |manifest| {
            manifest.size = size;
            manifest.checkpoint = checkpoint;
            manifest.replay_from = Position { epoch: EPOCH.next(), number: SegmentNumber(0) };
            manifest.sequence = sequence;
            manifest.stored_bytes = stored_bytes;
            manifest.census = Some(census);
            manifest.complete = true;
            manifest.being_made = false;
            manifest.destroyed_at = None;
            manifest.history.clear();
            lineage::note_present(manifest, clock::now());
        })
        .await?;
        Ok(summary(&loaded.manifest))
    }

    /// Removes what was made, unless the volume turns out to be complete although an error was heard last.
    async fn undo(mut self, error: Error) -> Result<VolumeSummary> {
        while self.uploads.next().await.is_some() {}
        let volume = self.loaded.manifest.volume;
        let removed = match ownership::load(&*self.store, volume).await {
            Ok(loaded) if !loaded.manifest.being_made => return Ok(summary(&loaded.manifest)),
            // It marks the manifest first: from then on, no swap that is still under way can complete it.
            Ok(loaded) => purge::purge(&*self.store, loaded).await.map(drop),
            Err(missing) if missing.kind() == ErrorKind::NotFound => Ok(()),
            Err(why) => Err(why),
        };
        Err(match removed {
            Ok(()) => error,
            Err(why) => {
                let what = "it stays hidden and goes by itself, unless it turns out to be complete";
                let left = format!("what was made of it, {volume}, could not be removed: {why}; {what}");
                Error::new(error.kind(), format!("{error} ({left})"))
            }
        })
    }
}

/// Pages in memory.
struct Pages<'a>(&'a BTreeMap<PageIndex, Arc<MapPage>>);

#[async_trait]
impl PageSource for Pages<'_> {
    async fn page(&self, index: PageIndex) -> Result<Arc<MapPage>> {
        Ok(self.0.get(&index).cloned().unwrap_or_default())
    }
}

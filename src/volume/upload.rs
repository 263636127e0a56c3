//! The uploader of one volume: cuts runs of the sequence, has them packed and uploaded in parallel, and lets them take effect in
//! order; then the log may give their space back (`release`), and now and then a checkpoint is written.
//!
//! Order of effects for each segment, and why:
//! 1. the object is in the store, and so are all before it: from here on it is part of the history;
//! 2. its entries are in the map's pages: a read that no longer finds a block in the overlay finds it there;
//! 3. those who wait for durability `store` are answered;
//! 4. only then may the log release its records.
//!
//! Errors: a store that is away, full or forbids is asked again for ever, with growing pauses; the log fills and
//! writers wait. A place that is taken by somebody else's object means that the epoch is over: fenced.
//!
//! After a crash: segments in the store are found by name, the rest is still in the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio::sync::OwnedSemaphorePermit;

use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::lineage::count_segments;
use crate::format::manifest::Position;
use crate::format::segment::{SegmentHeader, SegmentIndex};
use crate::limits::UPLOADS_AT_ONCE;
use crate::log::{LogRead, LogReader, RecordKind};
use crate::map::{LogOverlay, LogPlace, OverlayPlace};
use crate::seal::VolumeKey;
use crate::segment::{SegmentBuilder, fetch_index};
use crate::store::{Condition, ObjectKey, StoreErrorKind};
use crate::units::{BLOCK_SIZE, BlockCount, SegmentId, SegmentNumber};
use crate::volume::cleaning::Relocation;
use crate::volume::core::Volume;
use crate::volume::fetch::keep_index;
use crate::volume::packers::Pace;
use crate::volume::progress::Run;
use crate::volume::shared::UPLOADS_KIB_MAX;
use crate::work::Task;
use crate::work::simulated::{self, Mutation};

/// First and longest pause between attempts at a store that refuses.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// What is not stored this long after it could have been cut is urgent.
const OVERDUE: Duration = Duration::from_secs(10);

struct Uploaded {
    index: SegmentIndex,
    what: What,
}

/// What a segment was made of.
enum What {
    /// A run of the sequence.
    Run(Run),
    /// What cleaning has moved.
    Relocation,
}

type Uploads = FuturesOrdered<Task<Result<Uploaded>>>;

impl Volume {
    /// Runs until the volume fails or stops.
    ///
    /// # Errors
    /// Why it failed. While it stops nobody else learns of that: the gate is closed already, for another reason.
    pub(crate) async fn run_uploader(self: Arc<Self>) -> Result<()> {
        let ended = match self.upload().await {
            Err(error) if error.is_damage() => Err(self.put_out_or(error).await),
            ended => ended,
        };
        match &ended {
            Ok(()) => self.end_uploads(),
            Err(error) => self.fail(error),
        }
        ended
    }

    /// Why the uploads have met damage, or miss an object: this owner was put out, and the next one has deleted what it needs no more; or
    /// else `damage`. Waits until the store says which.
    async fn put_out_or(&self, damage: Error) -> Error {
        match self.retry_while_unavailable("asking who the owner is", || self.confirm_ownership()).await {
            Err(fenced) if fenced.kind() == ErrorKind::Fenced => fenced,
            _ => damage,
        }
    }

    async fn upload(self: &Arc<Self>) -> Result<()> {
        let mut uploads = Uploads::new();
        let mut runs_since_move = 0;
        let mut urgency = self.shared.packers.urgency();
        while self.gate.closed().is_none() || self.is_draining() {
            self.serve_moment_waiters();
            let eased = self.shared.places.eased();
            tokio::pin!(eased);
            eased.as_mut().enable();
            let urgent_at = self.urgent_at();
            let is_urgent = urgent_at.is_some_and(|at| at <= clock::uptime());
            urgency.set(is_urgent);
            // The cleaner asks for one at a time and takes breath in between, so what it asks for need not wait.
            if uploads.len() < UPLOADS_AT_ONCE
                && let Some((relocation, done)) = self.relocation.lock().take()
            {
                let header = self.next_header();
                self.relocating.lock().push((header.id, done));
                runs_since_move = 0;
                uploads.push_back(self.shared.runtime.spawn(self.clone().pack_and_move(relocation, header)));
                continue;
            }
            let waits_for_cleaning = runs_since_move > 0 && self.is_cleaning_pressing.load(Ordering::Acquire);
            let may_cut =
                uploads.len() < UPLOADS_AT_ONCE && (!waits_for_cleaning || self.stopping.load(Ordering::Acquire));
            if may_cut && let Some(run) = self.next_run() {
                runs_since_move += 1;
                uploads.push_back(self.shared.runtime.spawn(self.clone().pack_and_upload(run, self.next_header())));
                continue;
            }
            let pressed = self.shared.places.pressed();
            tokio::pin!(pressed);
            pressed.as_mut().enable();
            self.release_log()?;
            self.write_asked_checkpoint().await?;
            let due = self.progress.lock().due_at(self.shared.settings.segment_age);
            tokio::select! {
                biased;
                Some(done) = uploads.next(), if !uploads.is_empty() => {
                    let uploaded = done.unwrap_or_else(|_| Err(Error::new(ErrorKind::Stopping, "the uploader was stopped")));
                    self.take_effect(uploaded).await?;
                }
                () = self.upload_wake.notified() => {}
                () = pressed => {}
                () = sleep_until(due), if due.is_some() && may_cut => {}
                () = eased, if is_urgent => {}
                () = sleep_until(urgent_at), if urgent_at.is_some() && !is_urgent => {}
            }
            if self.stopping.load(Ordering::Acquire) && uploads.is_empty() && !self.has_uncut() {
                return Ok(());
            }
        }
        self.gate.closed().map_or(Ok(()), Err)
    }

    /// When what is not stored becomes urgent, if there is any: somebody waits for it or for its room, or it is much, or late. (A log or memory
    /// that is merely tight is full of what is stored and is given back as it is needed.)
    fn urgent_at(&self) -> Option<Duration> {
        let progress = self.progress.lock();
        let unstored = progress.accepted().end.0 - progress.stored().end.0;
        if self.stopping.load(Ordering::Acquire)
            || unstored > self.committer.length().0 / 2
            || self.shared.places.is_full()
            || self.is_cleaning_pressing.load(Ordering::Acquire)
        {
            return Some(Duration::ZERO);
        }
        progress.urgent_at(self.shared.settings.segment_age + OVERDUE)
    }

    /// The header of the next segment, with no place of the sequence in it yet.
    fn next_header(&self) -> SegmentHeader {
        let number = SegmentNumber(self.next_segment.fetch_add(1, Ordering::AcqRel));
        let cut = self.progress.lock().cut().sequence;
        SegmentHeader {
            id: SegmentId { volume: self.id, epoch: self.epoch, number },
            token: self.token,
            first: cut.next(),
            last: cut,
            created_at: clock::now(),
            seal: false,
            salt: None,
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.stopping.load(Ordering::Acquire) && self.gate.closed().is_some_and(|e| e.kind() == ErrorKind::Stopping)
    }

    fn has_uncut(&self) -> bool {
        self.progress.lock().due_at(Duration::ZERO).is_some()
    }

    fn next_run(&self) -> Option<Run> {
        let stopping = self.stopping.load(Ordering::Acquire);
        let age = if stopping || self.is_tight() { Duration::ZERO } else { self.shared.settings.segment_age };
        self.progress.lock().next_run(clock::uptime(), age)
    }

    async fn pack_and_upload(self: Arc<Self>, run: Run, header: SegmentHeader) -> Result<Uploaded> {
        let header = SegmentHeader { first: run.after.sequence.next(), last: run.end.sequence, ..header };
        let log = self.log.clone();
        // Whoever has room waits for the store alone, so that it comes free again in any order.
        let mut room = self.room_to_upload(run.bytes).await?;
        let key = self.key.clone();
        let built = self.shared.packers.run(move |pace| pack(&log, header, run, key.clone(), pace)).await?;
        drop(room.split(room.num_permits().saturating_sub(built.bytes.len().div_ceil(1024))));
        self.put_segment(header.id, built.bytes).await?;
        drop(room);
        Ok(Uploaded { index: built.index, what: What::Run(run) })
    }

    async fn pack_and_move(self: Arc<Self>, relocation: Relocation, header: SegmentHeader) -> Result<Uploaded> {
        let room = self.room_to_upload(relocation.blocks() * BLOCK_SIZE).await?;
        let key = self.key.clone();
        let (built, frames) = self.shared.packers.run(move |pace| relocation.pack(header, key.clone(), pace)).await?;
        self.put_segment(header.id, built.bytes.clone()).await?;
        drop(room);
        self.keep_moved(&built, &frames);
        Ok(Uploaded { index: built.index, what: What::Relocation })
    }

    /// Room in memory for a segment of `bytes` of data. Volumes take turns.
    async fn room_to_upload(&self, bytes: u64) -> Result<OwnedSemaphorePermit> {
        let kib = usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX).clamp(1, UPLOADS_KIB_MAX);
        let room = self.shared.uploads.clone().acquire_many_owned(u32::try_from(kib).unwrap_or(u32::MAX)).await;
        room.map_err(|_| Error::new(ErrorKind::Stopping, "the daemon is stopping"))
    }

    /// Puts a segment into the store, however long that takes.
    async fn put_segment(&self, id: SegmentId, body: Bytes) -> Result<()> {
        let key = ObjectKey::segment(id);
        let mut pause = RETRY_FIRST;
        loop {
            if let Some(error) = self.gate.closed().filter(|_| !self.is_draining()) {
                return Err(error);
            }
            match self.shared.store.put(&key, body.clone(), Condition::IfAbsent).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind == StoreErrorKind::PreconditionFailed => {
                    match self.settle_taken_place(id).await {
                        Err(error) if error.kind() == ErrorKind::Unavailable => {}
                        other => return other,
                    }
                }
                Err(error) => {
                    tracing::warn!(volume = %self.id, segment = %id, %error, "an upload failed; writes go on until the log is full, and it is tried again");
                }
            }
            clock::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Something has the name of our next segment: an earlier try of ours, or the seal of a newer owner.
    async fn settle_taken_place(&self, id: SegmentId) -> Result<()> {
        let found = fetch_index(&*self.shared.store, id).await?;
        let is_ours = found.header.token == self.token && !found.header.seal;
        if is_ours || simulated::has(Mutation::DropSealCheck) {
            return Ok(());
        }
        Err(self
            .fenced(&format!("segment {id} is a {}", if found.header.seal { "seal" } else { "segment of another" })))
    }

    async fn take_effect(self: &Arc<Self>, uploaded: Result<Uploaded>) -> Result<()> {
        let Uploaded { index, what } = uploaded?;
        // Those who want what was stored before this.
        self.serve_moment_waiters();
        let SegmentId { epoch, number, .. } = index.header.id;
        *self.shown_to.lock() = Position { epoch, number: number.next() };
        let apply = |on_damage| self.pages.apply(&index, on_damage);
        self.retry_while_unavailable("applying a segment to the map", || self.despite_damage(apply)).await?;
        keep_index(&self.shared, &index);
        self.note_in_books(&index).await;
        self.note_stored(&index);
        match what {
            What::Run(run) => {
                self.stored_runs.lock().push(run, index.header.id);
                let waiting = self.progress.lock().store(run.end);
                for done in waiting {
                    done(Ok(()));
                }
                self.serve_moment_waiters();
                self.clean_wake.notify_one();
            }
            What::Relocation => {
                let told = self.relocating.lock().extract_if(.., |(id, _)| *id == index.header.id).collect::<Vec<_>>();
                for (_, done) in told {
                    // The cleaner may have been stopped; then nobody needs to know.
                    let _ = done.send(());
                }
            }
        }
        let newest = self.newest.lock().clone();
        let is_due = count_segments(&newest.replay) >= self.shared.settings.segments_per_checkpoint;
        if is_due || self.pages.wants_checkpoint() {
            let (next, sequence) = (newest.position, newest.sequence);
            self.retry_while_unavailable("writing a checkpoint", || self.write_checkpoint(next, sequence, false))
                .await?;
        }
        Ok(())
    }

    /// Tries again, with pauses, as long as it is the store that cannot be had.
    pub(super) async fn retry_while_unavailable<F, T>(&self, what: &str, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut pause = RETRY_FIRST;
        loop {
            match attempt().await {
                Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Denied | ErrorKind::Full) => {
                    if let Some(closed) = self.gate.closed().filter(|_| !self.is_draining()) {
                        return Err(closed);
                    }
                    tracing::warn!(volume = %self.id, %error, "{what} failed; it is tried again");
                }
                other => return other,
            }
            clock::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }
}

async fn sleep_until(due: Option<Duration>) {
    let now = clock::uptime();
    clock::sleep(due.map_or(Duration::MAX, |due| due.saturating_sub(now))).await;
}

/// Packs a run: the last content of every block that it changes, in block order.
fn pack(
    log: &LogReader,
    header: SegmentHeader,
    run: Run,
    key: Option<Arc<VolumeKey>>,
    pace: &Pace,
) -> Result<crate::segment::BuiltSegment> {
    let mut last = LogOverlay::default();
    for view in log.headers(run.after.end, run.end.end) {
        pace.go_on()?;
        let view = view.context(|| format!("packing segment {}", header.id))?;
        match view.kind {
            RecordKind::Write => {
                last.set(view.range, OverlayPlace::Log(LogPlace { record: view.place.record, block: 0 }));
            }
            RecordKind::Zero => last.set(view.range, OverlayPlace::Zero(view.place.record)),
            RecordKind::Fence | RecordKind::Pad => {}
        }
    }
    let mut builder = SegmentBuilder::new(header, BlockCount(run.bytes / BLOCK_SIZE), key);
    for (range, place) in last.extents() {
        match place {
            OverlayPlace::Zero(_) if simulated::has(Mutation::ForgetTrim) => {}
            OverlayPlace::Zero(_) => builder.push_zero(range),
            OverlayPlace::Log(place) => builder.push_data(range, |from, buffer| {
                pace.go_on()?;
                let block = place.block + from as u32;
                match log.read_blocks(place.record, block, buffer)? {
                    LogRead::Done => Ok(()),
                    LogRead::Gone => {
                        Err(Error::damaged(format!("the log gave back {} before it was stored", place.record)))
                    }
                }
            })?,
            OverlayPlace::Below => {}
        }
    }
    builder.finish()
}

//! One attached volume: its parts, and what they agree on.
//!
//! Locks, in the order in which they may be taken: `writer` (append and overlay update, so that the overlay changes in the
//! order of the sequence), `overlay`, the pages' own, `progress`, `books`. None is held across a wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use parking_lot::{MappedRwLockReadGuard, Mutex};
use tokio::sync::{Notify, oneshot};

use crate::block_device::CommitDone;
use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::lineage::Moment;
use crate::format::manifest::{Manifest, Position};
use crate::limits::PAGE_BLOCKS;
use crate::log::{Appender, Committer, LogReader};
use crate::map::LogOverlay;
use crate::ownership::{self, Loaded};
use crate::seal::VolumeKey;
use crate::service::{AttachedStatus, Durability};
use crate::units::{BLOCK_SIZE, ByteLen, Epoch, SegmentId, Sequence, Token, VolumeId};
use crate::volume::cleaning::{Books, Hydrating, Relocation};
use crate::volume::first_reads::FirstReads;
use crate::volume::gate::Gate;
use crate::volume::pages::PageTable;
use crate::volume::places::CountedOverlay;
use crate::volume::progress::Progress;
use crate::volume::read_ahead::ReadAhead;
use crate::volume::release::StoredRuns;
use crate::volume::schedule::ScheduleState;
use crate::volume::shared::Shared;
use crate::volume::warm::VolumeWarming;

const _: () = assert!(PAGE_BLOCKS * BLOCK_SIZE == 1 << 20);

/// An attached volume.
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// The attachment.
    pub epoch: Epoch,
    /// Names the attachment.
    pub token: Token,
    pub(super) name: Mutex<String>,
    pub(super) size: AtomicU64,
    pub(crate) shared: Arc<Shared>,
    /// By which its objects are sealed, if they are.
    pub(super) key: Option<Arc<VolumeKey>>,
    pub(crate) gate: Gate,
    pub(super) writer: Mutex<Appender>,
    pub(super) log: LogReader,
    pub(super) committer: Committer,
    pub(super) overlay: CountedOverlay,
    /// What is stored and still in the log.
    pub(super) stored_runs: Mutex<StoredRuns>,
    /// Everything before this offset of the log is given back: the overlay names nothing there.
    pub(super) released: AtomicU64,
    pub(super) pages: PageTable,
    pub(super) progress: Mutex<Progress>,
    /// What the store holds. Changed only by the uploader, and when it has ended.
    pub(super) newest: Mutex<Moment>,
    /// Behind the newest segment whose effect may show in the map. It shows there before it is in `newest`.
    pub(super) shown_to: Mutex<Position>,
    /// Those who wait for the moment at which the store holds exactly up to a place.
    pub(super) moment_waiters: Mutex<Vec<(Sequence, oneshot::Sender<Arc<Moment>>)>>,
    /// Nobody is there any more to give moments, relocations and checkpoints.
    pub(super) is_uploader_gone: AtomicBool,
    pub(super) read_ahead: Mutex<ReadAhead>,
    pub(super) first_reads: FirstReads,
    pub(super) warming: VolumeWarming,
    /// Tells the uploader that a run may be due.
    pub(super) upload_wake: Notify,
    /// Tells writers that log space came free.
    pub(super) space_wake: Arc<Notify>,
    /// Those who wait for log space take turns.
    pub(super) space_turn: tokio::sync::Mutex<()>,
    pub(super) space_waiters: AtomicU64,
    /// An append found no room: the log gives back more than it would by itself.
    pub(super) wants_room: AtomicBool,
    /// Tells those who wait on a doubtful gate that it was decided.
    pub(crate) gate_wake: Notify,
    pub(super) manifest: tokio::sync::Mutex<Loaded>,
    pub(super) books: Mutex<Books>,
    /// How far copying from the origins has come.
    pub(super) hydrating: Mutex<Hydrating>,
    /// It is asked for.
    pub(super) is_hydrating: AtomicBool,
    /// Held while a step of cleaning is under way.
    pub(super) cleaning: tokio::sync::Mutex<()>,
    /// Held while a checkpoint is written.
    pub(super) checkpointing: tokio::sync::Mutex<()>,
    /// What is to be uploaded next for the cleaner, and whom to tell once it has taken effect.
    pub(crate) relocation: Mutex<Option<(Relocation, oneshot::Sender<()>)>>,
    /// What is being uploaded for the cleaner, and whom to tell once it has taken effect. By name: whoever waited for an earlier one may
    /// have gone away, and must not make a later one be taken for done.
    pub(super) relocating: Mutex<Vec<(SegmentId, oneshot::Sender<()>)>>,
    /// New writes are to wait for cleaning: no two segments of them without one of moved blocks in between.
    pub(super) is_cleaning_pressing: AtomicBool,
    /// Those who wait for a checkpoint.
    pub(crate) checkpoint_asked: Mutex<Vec<oneshot::Sender<()>>>,
    /// Tells the cleaner that there may be something to do.
    pub(super) clean_wake: Notify,
    pub(super) schedule: ScheduleState,
    pub(super) durability: AtomicU8,
    pub(super) next_segment: AtomicU64,
    pub(super) next_map_object: AtomicU64,
    pub(crate) clients: AtomicU64,
    pub(super) stopping: AtomicBool,
}

impl Volume {
    /// What FLUSH promises just now.
    pub fn durability(&self) -> Durability {
        if self.durability.load(Ordering::Acquire) == Durability::Store as u8 {
            Durability::Store
        } else {
            Durability::Local
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The volume as its owner sees it.
    pub fn status(&self) -> AttachedStatus {
        let (used, length) = (self.committer.used(), self.committer.length());
        let progress = self.progress.lock();
        AttachedStatus {
            volume: self.id,
            name: self.name.lock().clone(),
            size: ByteLen(self.size_bytes()),
            epoch: self.epoch,
            durability: self.durability(),
            clients: self.clients.load(Ordering::Relaxed),
            lag: progress.lag(clock::uptime()),
            accepted: progress.accepted().sequence,
            stored: progress.stored().sequence,
            stored_bytes: self.newest.lock().stored_bytes,
            hydration: self.hydration(),
            live_bytes: ByteLen(self.books.lock().census.totals().live),
            log_used: used,
            log_length: length,
            warming: self.warming.progress(),
            failed: self.gate.closed().map(|error| error.to_string()),
        }
    }

    /// Stops the volume for good: every request, waiting or to come, is answered with `error`.
    pub(crate) fn fail(&self, error: &Error) {
        if self.gate.closed().is_none() {
            tracing::error!(volume = %self.id, epoch = %self.epoch, %error, "the volume takes no more requests");
        }
        self.gate.close(error.clone());
        self.progress.lock().fail(error);
        self.gate_wake.notify_waiters();
        self.space_wake.notify_waiters();
        self.upload_wake.notify_one();
        self.end_uploads();
    }

    /// What the log holds.
    ///
    /// # Errors
    /// Why the attachment is over.
    pub(super) fn overlay(&self) -> Result<MappedRwLockReadGuard<'_, LogOverlay>> {
        self.overlay.read().ok_or_else(|| self.why_closed())
    }

    /// Why nothing comes of what was asked for any more.
    fn why_closed(&self) -> Error {
        let stopping = || Error::new(ErrorKind::Stopping, format!("volume {} is stopping", self.id));
        self.gate.closed().unwrap_or_else(stopping)
    }

    /// Tells those who wait for the uploader that nothing comes of it any more. Without it the log takes nothing more, either, and what is
    /// known of it is let go of: other volumes may wait for that memory.
    pub(super) fn end_uploads(&self) {
        self.is_uploader_gone.store(true, Ordering::Release);
        self.moment_waiters.lock().clear();
        self.relocation.lock().take();
        self.relocating.lock().clear();
        self.checkpoint_asked.lock().clear();
        self.clean_wake.notify_one();
        self.overlay.give_up();
    }

    /// Waits for what the uploader was asked for.
    ///
    /// # Errors
    /// Why nothing will come of it.
    pub(super) async fn answered<T>(&self, receiver: oneshot::Receiver<T>) -> Result<T> {
        // An uploader that stops answers what it is asked until it is gone.
        let is_over = self.is_uploader_gone.load(Ordering::Acquire);
        if let Some(error) = self.gate.closed().filter(|error| is_over || error.kind() != ErrorKind::Stopping) {
            return Err(error);
        }
        receiver.await.map_err(|_| self.why_closed())
    }

    /// The error of an owner that was put out.
    pub(crate) fn fenced(&self, by: &str) -> Error {
        Error::new(
            ErrorKind::Fenced,
            format!(
                "volume {} was taken over by another owner ({by}); this attachment (epoch {}) is over",
                self.id, self.epoch
            ),
        )
    }

    /// Calls `done` once everything accepted so far is in the store.
    pub(super) fn commit_to_store(&self, done: CommitDone) {
        if let Some(error) = self.gate.closed() {
            return done(Err(error));
        }
        let stored_already = self.progress.lock().wait_stored(done);
        match stored_already {
            Some(done) => done(Ok(())),
            None => self.upload_wake.notify_one(),
        }
        // The volume may have failed between the look at the gate and the wait.
        if let Some(error) = self.gate.closed() {
            self.progress.lock().fail(&error);
        }
    }

    /// Waits until everything accepted so far is in the store.
    ///
    /// # Errors
    /// Why it cannot be.
    pub async fn sync(&self) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.commit_to_store(Box::new(move |result| {
            // The one who asked may have gone away; then nobody needs the answer.
            let _ = sender.send(result);
        }));
        receiver.await.map_err(|_| self.why_closed())?
    }

    /// Looks at the manifest: opens a doubtful gate if the volume is still ours, and closes it for good if not.
    ///
    /// # Errors
    /// `Fenced`, or what the store says; then the doubt remains.
    pub(crate) async fn confirm_ownership(&self) -> Result<()> {
        loop {
            let suspensions = self.gate.suspensions();
            let loaded = ownership::load(&*self.shared.store, self.id).await?;
            if !self.owns(&loaded.manifest) {
                let owner = loaded.manifest.owner.as_ref();
                let error = self.fenced(owner.map_or("nobody", |owner| owner.host.as_str()));
                self.fail(&error);
                return Err(error);
            }
            if self.gate.confirm(suspensions) {
                self.gate_wake.notify_waiters();
                return Ok(());
            }
        }
    }

    /// True if a manifest of this volume says that it is attached by this very attachment.
    pub(super) fn owns(&self, manifest: &Manifest) -> bool {
        manifest.epoch == self.epoch && manifest.owner.as_ref().is_some_and(|owner| owner.token == self.token)
    }

    /// Whoever meets damage, or misses an object, may be an owner that was put out and has not noticed: the next one has deleted what it
    /// needs no more. Then that is the failure, and the attachment ends.
    pub(super) async fn unless_put_out<T>(&self, done: Result<T>) -> Result<T> {
        match done {
            Err(error) if error.is_damage() => {
                self.confirm_ownership().await.context(|| &error)?;
                Err(error)
            }
            done => done,
        }
    }
}

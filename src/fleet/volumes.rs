//! The fleet: all the volumes that this daemon has attached, and how they come and go.
//!
//! Connecting is attaching: the first client of a volume attaches it, and some minutes after the last has gone it is detached. Each
//! volume has a slot with a lock of its own, so that attaching one never waits for another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::admin::purge::PurgeTimer;
use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fleet::catalog::Catalog;
use crate::service::{AttachReport, AttachedStatus};
use crate::units::VolumeId;
use crate::volume::{self, LOOK, Opened, PULSE, Shared, Volume};
use crate::work::Task;

/// Clients that end may be seen to leave a moment later; whoever detaches waits so long for them, and looks so often.
const LEAVING_MAX: Duration = Duration::from_secs(5);
/// An attachment that begins in doubt waits so long for the store's word.
const CONFIRM_MAX: Duration = Duration::from_secs(5);
const LEAVING_LOOK: Duration = Duration::from_millis(10);

/// An attached volume and the task that uploads for it.
struct Attached {
    volume: Arc<Volume>,
    uploader: Task<Result<()>>,
    cleaner: Task<()>,
    /// Brings what is read first.
    warmer: Option<Task<()>>,
}

#[derive(Default)]
struct Slot {
    attached: tokio::sync::Mutex<Option<Attached>>,
    /// The same volume, to be looked at without waiting.
    shown: Mutex<Option<Arc<Volume>>>,
}

/// The volumes of a daemon.
pub struct Fleet {
    pub(super) shared: Arc<Shared>,
    pub(super) detach_after: Duration,
    pub(super) catalog: Catalog,
    slots: Mutex<BTreeMap<VolumeId, Arc<Slot>>>,
    /// All are being handed back, and none comes any more.
    is_stopping: AtomicBool,
}

impl Fleet {
    /// An empty fleet; its pulse is given as long as it lives. What it sees of destroyed volumes is told to `timer`.
    pub fn start(shared: Arc<Shared>, detach_after: Duration, timer: PurgeTimer) -> Arc<Self> {
        let catalog = Catalog::new(shared.store.clone(), timer);
        let fleet = Arc::new(Fleet {
            shared,
            detach_after,
            catalog,
            slots: Mutex::default(),
            is_stopping: AtomicBool::new(false),
        });
        fleet.with_each_every(LOOK, |fleet, volume| drop(fleet.shared.runtime.spawn(volume.keep_schedule())));
        fleet.with_each_every(PULSE, |fleet, volume| {
            if !volume.gate.pulse() && volume.gate.may_ask() {
                drop(fleet.shared.runtime.spawn(resolve_doubt(volume)));
            }
        });
        fleet
    }

    /// Does something with each attached volume every so often, as long as the fleet lives.
    fn with_each_every(self: &Arc<Self>, time: Duration, act: impl Fn(&Fleet, Arc<Volume>) + Send + 'static) {
        let fleet = Arc::downgrade(self);
        drop(self.shared.runtime.spawn(async move {
            loop {
                clock::sleep(time).await;
                let Some(fleet) = fleet.upgrade() else { return };
                fleet.volumes().into_iter().for_each(|volume| act(&fleet, volume));
            }
        }));
    }

    /// The attached volumes.
    pub fn volumes(&self) -> Vec<Arc<Volume>> {
        let slots: Vec<Arc<Slot>> = self.slots.lock().values().cloned().collect();
        slots.iter().filter_map(|slot| slot.shown.lock().clone()).collect()
    }

    /// An attached volume.
    pub fn find(&self, id: VolumeId) -> Option<Arc<Volume>> {
        self.slots.lock().get(&id).and_then(|slot| slot.shown.lock().clone())
    }

    fn slot(&self, id: VolumeId) -> Arc<Slot> {
        self.slots.lock().entry(id).or_default().clone()
    }

    /// Attaches a volume unless it is attached here already, and counts a client if `client` says so.
    ///
    /// # Errors
    /// What attaching says; what the store says, if it cannot confirm to one who is no client that a volume which is attached here is still ours.
    pub async fn attach(&self, id: VolumeId, takeover: bool, client: bool) -> Result<(Arc<Volume>, AttachReport)> {
        let slot = self.slot(id);
        let mut attached = slot.attached.lock().await;
        // Looked at under the lock under which volumes are handed back.
        if self.is_stopping.load(Ordering::Acquire) {
            return Err(Error::new(
                ErrorKind::Stopping,
                format!("{id} is not attached any more: the daemon is stopping"),
            ));
        }
        if let Some(current) = &*attached {
            if !client {
                // Who asks for an attachment by name is told how things are, also by an owner that was put out and does not know it yet. If
                // the store does not say, the attachment stands, but is not vouched for.
                let confirmed = current.volume.confirm_ownership().await;
                if current.volume.gate.closed().is_none() {
                    confirmed.context(|| {
                        format!(
                            "volume {id} is attached here and its clients go on, but whether it is still ours cannot be confirmed"
                        )
                    })?;
                }
            }
            match current.volume.gate.closed() {
                None => {
                    if client {
                        current.volume.clients.fetch_add(1, Ordering::AcqRel);
                    }
                    return Ok((current.volume.clone(), report_again(current.volume.status())));
                }
                // The owner was put out, or its disk failed: it takes a new attachment to go on.
                Some(reason) => {
                    tracing::info!(volume = %id, %reason, "attaching anew");
                    self.forget(&slot, attached.take()).await;
                }
            }
        }
        let Opened { volume, report } = volume::attach(&self.shared, id, takeover).await?;
        if client {
            volume.clients.fetch_add(1, Ordering::AcqRel);
        }
        let uploader = self.shared.runtime.spawn(volume.clone().run_uploader());
        let cleaner = self.shared.runtime.spawn(volume.clone().run_cleaner());
        let warmer = self.shared.settings.prefetch.then(|| self.shared.runtime.spawn(volume.clone().replay_trace()));
        *slot.shown.lock() = Some(volume.clone());
        *attached = Some(Attached { volume: volume.clone(), uploader, cleaner, warmer });
        // If attaching took long, somebody else may have the volume by now. The pulses see to it that the store is asked; if it does not say
        // soon, requests wait.
        if let Ok(Err(error)) = clock::timeout(CONFIRM_MAX, volume.pass_gate()).await {
            self.forget(&slot, attached.take()).await;
            return Err(error);
        }
        Ok((volume, report))
    }

    async fn forget(&self, slot: &Slot, gone: Option<Attached>) {
        *slot.shown.lock() = None;
        if let Some(gone) = gone {
            end_warming(gone.warmer).await;
            gone.cleaner.abort();
            gone.uploader.abort();
            // An aborted task ends with an error, which is what is wanted here.
            let _ = gone.cleaner.await;
            let _ = gone.uploader.await;
            gone.volume.let_go().await;
        }
    }

    /// Uploads what is left of a volume and hands it back. Unless `force`, it stays if a client is there and does not leave in
    /// [`LEAVING_MAX`]. One that was put out is let go of:
    /// it is not ours to hand back.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, and what the store says; why the volume had failed, if it was let go of without being handed back.
    pub async fn detach(&self, id: VolumeId, force: bool) -> Result<()> {
        let slot = self.slots.lock().get(&id).cloned();
        let was_attached = match slot {
            Some(slot) => self.detach_from(&slot, id, force).await?,
            None => false,
        };
        if was_attached { Ok(()) } else { Err(Error::not_found(format!("volume {id} is not attached here"))) }
    }

    /// As [`Fleet::detach`]; false if it is not attached, or somebody else was quicker.
    async fn detach_from(&self, slot: &Slot, id: VolumeId, force: bool) -> Result<bool> {
        // What takes long is done before the lock is taken and while clients are still served.
        let Some(volume) = slot.shown.lock().clone() else { return Ok(false) };
        if !force {
            wait_until_unused(&volume).await?;
        }
        if volume.gate.closed().is_none() {
            volume.sync().await?;
        }
        let mut attached = slot.attached.lock().await;
        let Some(current) = attached.take() else { return Ok(false) };
        if !force && let Err(error) = refuse_if_used(&current.volume) {
            *attached = Some(current);
            return Err(error);
        }
        if let Some(error) = current.volume.gate.closed() {
            self.forget(slot, Some(current)).await;
            tracing::warn!(volume = %id, %error, "let go of a volume that had failed");
            return if error.kind() == ErrorKind::Fenced {
                Ok(true)
            } else {
                Err(error).context(|| not_handed_back(id))
            };
        }
        let Attached { volume, uploader, cleaner, warmer } = current;
        volume.begin_stop();
        end_warming(warmer).await;
        cleaner.abort();
        // As above: it was wanted.
        let _ = cleaner.await;
        let uploaded = uploader.await;
        *slot.shown.lock() = None;
        let handed_back = match uploaded {
            Ok(Ok(())) => volume.hand_back().await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(ErrorKind::Stopping, "its uploader was stopped")),
        };
        volume.let_go().await;
        handed_back
            .context(|| format!("volume {id} was not handed back, and what is not in the store is in its log here"))?;
        drop(volume);
        let path = volume::log_path(&self.shared, id);
        if let Err(error) = self.shared.disk.remove(&path) {
            tracing::warn!(volume = %id, %error, path = %path.display(), "the log of a detached volume could not be removed");
        }
        tracing::info!(volume = %id, "detached");
        Ok(true)
    }

    /// Detaches every volume for good, and gives up waiting after `patience`: what is not uploaded by then stays in the local logs.
    /// Returns the volumes that could not be handed back.
    pub async fn detach_all(self: &Arc<Self>, patience: Duration) -> Vec<VolumeId> {
        self.is_stopping.store(true, Ordering::Release);
        let mut detaching = Vec::new();
        let slots: Vec<(VolumeId, Arc<Slot>)> =
            self.slots.lock().iter().map(|(id, slot)| (*id, slot.clone())).collect();
        for (id, slot) in slots {
            let fleet = self.clone();
            let detaching_one = async move {
                // Whoever is attaching it, or detaching it already, has the lock: it is waited for.
                drop(slot.attached.lock().await);
                fleet.detach_from(&slot, id, true).await
            };
            detaching.push((id, self.shared.runtime.spawn(detaching_one)));
        }
        let deadline = clock::uptime() + patience;
        let mut left = Vec::new();
        for (id, task) in detaching {
            let patience = deadline.saturating_sub(clock::uptime());
            match clock::timeout(patience, task).await {
                Ok(Ok(Ok(_))) => {}
                Ok(Ok(Err(error))) => {
                    tracing::error!(volume = %id, %error, "could not be detached; its log stays here");
                    left.push(id);
                }
                Ok(Err(_)) | Err(_) => {
                    tracing::error!(volume = %id, "could not be detached in time; its log stays here");
                    left.push(id);
                }
            }
        }
        left
    }

    /// A client has gone: if it was the last, the volume is detached some time later, unless another comes.
    pub(super) fn client_gone(self: &Arc<Self>, volume: &Arc<Volume>) {
        if volume.clients.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let (fleet, id, epoch) = (self.clone(), volume.id, volume.epoch);
        drop(self.shared.runtime.spawn(async move {
            clock::sleep(fleet.detach_after).await;
            let idle = fleet
                .find(id)
                .is_some_and(|volume| volume.epoch == epoch && volume.clients.load(Ordering::Acquire) == 0);
            if idle && let Err(error) = fleet.detach(id, false).await {
                tracing::info!(volume = %id, %error, "not detached");
            }
        }));
    }

    /// The volume that an id, or a name that only one has, means.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` if several volumes have the name.
    pub async fn resolve(&self, name: &str) -> Result<VolumeId> {
        if let Ok(id) = name.parse() {
            return Ok(id);
        }
        self.catalog.resolve(name).await
    }
}

async fn end_warming(warmer: Option<Task<()>>) {
    if let Some(warmer) = warmer {
        warmer.abort();
        // An aborted task ends with an error, which is what is wanted here.
        let _ = warmer.await;
    }
}

fn not_handed_back(id: VolumeId) -> String {
    format!("volume {id} was not handed back, and what is not in the store is in its log here")
}

/// Gives clients that are leaving the time for it.
async fn wait_until_unused(volume: &Volume) -> Result<()> {
    let deadline = clock::uptime() + LEAVING_MAX;
    loop {
        match refuse_if_used(volume) {
            Err(_) if clock::uptime() < deadline => clock::sleep(LEAVING_LOOK).await,
            decided => return decided,
        }
    }
}

fn refuse_if_used(volume: &Volume) -> Result<()> {
    match volume.clients.load(Ordering::Acquire) {
        0 => Ok(()),
        clients => Err(Error::new(
            ErrorKind::Busy,
            format!("volume {} is in use by {clients} NBD clients: disconnect them, or detach with --force", volume.id),
        )),
    }
}

fn report_again(status: AttachedStatus) -> AttachReport {
    AttachReport {
        resumed: status.accepted,
        status,
        replayed_records: 0,
        taken_over: false,
        previous_owner: None,
        rescued_log: None,
    }
}

/// Asks the store until it says whether the volume is still ours.
async fn resolve_doubt(volume: Arc<Volume>) {
    tracing::warn!(volume = %volume.id, "this process was suspended, or took long to attach; looking whether the volume is still ours");
    while volume.gate.closed().is_none() {
        match volume.confirm_ownership().await {
            Ok(()) => break,
            Err(error) => tracing::warn!(volume = %volume.id, %error, "ownership is not confirmed"),
        }
        clock::sleep(PULSE).await;
    }
    // If doubt has come back, the next pulse has somebody ask again.
    volume.gate.asked();
}

//! Attaching: from a manifest and what this host's log holds to a volume that takes requests.
//!
//! Order, and why: the claim is noted on the local disk ([`claims`]), then the epoch is claimed (nobody else can now), then older epochs are
//! sealed while their segments are found (no older owner can add to the history any more), then the local log is carried on with, if it is
//! the late owner's; only then are requests taken. Dependent round trips with nothing local: manifest, claim, indexes with the checkpoint's
//! root beside them, seal.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::checkpoint::Checkpoint;
use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::lineage::{Moment, push_segment};
use crate::format::manifest::{Manifest, Owner, Position};
use crate::format::segment::SegmentIndex;
use crate::lineage;
use crate::log::{self, Ending, LogIdentity, RecordKind, Recovered, WriteLog};
use crate::map::{LogOverlay, LogPlace, OverlayPlace};
use crate::ownership::{self, Attachment, History, Permit};
use crate::service::AttachReport;
use crate::units::{LogOffset, SegmentNumber, Sequence, Token, VolumeId};
use crate::volume::claims;
use crate::volume::cleaning::Books;
use crate::volume::core::Volume;
use crate::volume::fetch::keep_index;
use crate::volume::first_reads::FirstReads;
use crate::volume::gate::Gate;
use crate::volume::local_state::LocalState;
use crate::volume::pages::PageTable;
use crate::volume::places::CountedOverlay;
use crate::volume::progress::{Mark, Progress};
use crate::volume::read_ahead::ReadAhead;
use crate::volume::rescue;
use crate::volume::schedule::ScheduleState;
use crate::volume::shared::Shared;
use crate::volume::warm::VolumeWarming;
use crate::work;

/// A volume that was just attached, and how that went.
pub struct Opened {
    /// The volume.
    pub volume: Arc<Volume>,
    /// For people.
    pub report: AttachReport,
}

/// The path of a volume's write log.
pub fn log_path(shared: &Shared, volume: VolumeId) -> PathBuf {
    shared.volumes_directory.join(volume.to_string()).join("log")
}

/// Attaches a volume.
///
/// # Errors
/// `NotFound`, `Busy`, `Damaged`, and what the store or the local disk say.
pub async fn attach(shared: &Arc<Shared>, id: VolumeId, takeover: bool) -> Result<Opened> {
    ownership::ensure_here(&*shared.store, id)?;
    let loaded = ownership::load_unlocked(&*shared.store, id).await?;
    let found = find(shared, id, &loaded.manifest, takeover)?;
    if let Some(own) = &found.own {
        own.settle().context(|| format!("volume {id} cannot be attached here with its write log"))?;
    }
    let resumes = found.own.as_ref().map(|recovered| recovered.identity().token);
    let permit = match resumes.or(found.claimed) {
        _ if takeover => Permit::TakeOver,
        Some(token) => Permit::OwnLate(token),
        None => Permit::IfFree,
    };
    ownership::may_claim(&loaded.manifest, permit)?;
    let owner = new_owner(shared, resumes);
    if resumes.is_none() {
        claims::note(shared, id, owner.token)?;
    }
    let attachment = ownership::claim(&*shared.store, &loaded, owner, permit).await?;
    let claimed = attachment.loaded.clone();
    // An owner that was to be put out stays it, if nothing comes of that: its log may hold what the store does not.
    let is_own_claim = found.claimed.is_some();
    let stays = attachment.previous.clone().filter(|_| permit == Permit::TakeOver && !is_own_claim);
    let opened = complete(shared, id, loaded, attachment, found).await;
    if opened.is_err() && resumes.is_none() {
        // Nothing was accepted under this claim: the next attempt, here or elsewhere, needs no takeover because of it.
        if let Err(error) = ownership::update(&*shared.store, &claimed, |manifest| manifest.owner = stays).await {
            tracing::warn!(volume = %id, %error, "a failed attachment could not be given up");
        }
    }
    opened
}

/// Everything that follows a claim.
async fn complete(
    shared: &Arc<Shared>,
    id: VolumeId,
    loaded: ownership::Loaded,
    attachment: Attachment,
    found: Found,
) -> Result<Opened> {
    let late_owner = loaded.manifest.owner.clone();
    let manifest = attachment.loaded.manifest.clone();
    let root = async {
        match &loaded.manifest.checkpoint {
            Some(reference) => Checkpoint::open(shared.store.clone(), *reference).await,
            None => Ok(Checkpoint::empty(shared.store.clone())),
        }
    };
    let history = ownership::discover(
        &*shared.store,
        id,
        manifest.replay_from,
        attachment.epoch,
        attachment.token,
        manifest.sequence,
    );
    let inherited = lineage::replayed_indexes(&*shared.store, &manifest.inherited);
    let unused = ownership::only_unused(&*shared.store, id, attachment.epoch);
    let (base, inherited, history, ()) = tokio::try_join!(root, inherited, history, unused)?;
    // Now that the epochs before are sealed, it is known what of an old log they have.
    let rescued_log = match found.foreign {
        Some(foreign) => rescue::keep_aside(shared, id, foreign).await?,
        None => None,
    };
    if let Some(error) = &found.unreadable {
        rescue::keep_unread_aside(shared, id, &attachment, error)?;
    }
    let newest = newest_moment(&attachment, &history);
    let behind_checkpoint: Vec<Arc<SegmentIndex>> =
        inherited.into_iter().map(Arc::new).chain(history.segments.iter().cloned()).collect();
    let pages = replay_pages(shared, id, &manifest, base, &behind_checkpoint).await?;
    let taken_over = late_owner.is_some() && found.own.is_none() && found.claimed.is_none();
    let (log, replay) = carry_on(shared, id, &attachment, found.own, history.last)?;
    let replayed_records = replay.records;
    let resumed = replay.last.max(history.last);
    let books = Books::open(&attachment.loaded.manifest, &history);
    let volume = assemble(shared, attachment, pages, books, log, replay, newest);
    if taken_over {
        tracing::warn!(volume = %id, epoch = %volume.epoch, %resumed, "took the volume over from another owner");
    }
    tracing::info!(volume = %id, epoch = %volume.epoch, %resumed, replayed_records, "attached");
    let report = AttachReport {
        status: volume.status(),
        resumed,
        replayed_records,
        taken_over,
        previous_owner: late_owner.map(|owner| format!("{} (process {})", owner.host, owner.pid)),
        rescued_log,
    };
    Ok(Opened { volume, report })
}

fn new_owner(shared: &Shared, resumes: Option<Token>) -> Owner {
    Owner {
        token: clock::random_token(),
        resumes,
        host: work::host_name(),
        pid: work::process_id(),
        control: shared.settings.control.clone(),
        attached_at: clock::now(),
    }
}

/// What this host has of a volume's write log.
struct Found {
    /// The late owner's, to be carried on with.
    own: Option<Recovered>,
    /// One that is not part of the history any more.
    foreign: Option<Recovered>,
    /// Why one cannot be read at all that nobody needs, or that the caller gives up.
    unreadable: Option<Error>,
    /// The owner's token, if it is a claim of this host under which nothing can be lost.
    claimed: Option<Token>,
}

impl Found {
    fn new(own: Option<Recovered>, foreign: Option<Recovered>) -> Self {
        Found { own, foreign, unreadable: None, claimed: None }
    }
}

fn find(shared: &Shared, id: VolumeId, manifest: &Manifest, takeover: bool) -> Result<Found> {
    let mut found = find_log(shared, id, manifest, takeover)?;
    if let (None, Some(owner)) = (&found.own, &manifest.owner)
        && claims::is_noted(shared, id, owner.token)?
    {
        tracing::info!(volume = %id, "this host died while it attached the volume: nothing is lost");
        found.claimed = Some(owner.token);
    }
    Ok(found)
}

fn find_log(shared: &Shared, id: VolumeId, manifest: &Manifest, takeover: bool) -> Result<Found> {
    let path = log_path(shared, id);
    let recovered = match log::recover(&*shared.disk, &path, &|volume| shared.store.key_of(volume)) {
        Ok(recovered) => recovered,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::new(None, None)),
        Err(error) if error.kind() == ErrorKind::Damaged => {
            // Of a volume that was handed back every write is in the store.
            if takeover || manifest.owner.is_none() {
                return Ok(Found { unreadable: Some(error), ..Found::new(None, None) });
            }
            return Err(damaged_log(id, &path, error.message()));
        }
        Err(error) => {
            let path = path.display();
            return Err(error).context(|| {
                format!(
                    "volume {id} cannot be attached here: its write log {path} cannot be read. If that does not pass, move the \
                     file away: 'varve volumes attach {id} --takeover' then goes on from what the store holds"
                )
            });
        }
    };
    if let Ending::Torn { records_beyond } = recovered.ending() {
        tracing::info!(volume = %id, end = %recovered.end(), records_beyond, "the write log ends in a torn write, which was never durable and is cut");
    }
    let identity = recovered.identity();
    if identity.volume != id || identity.store != shared.store_id {
        return Err(Error::invalid(format!(
            "the write log {} belongs to volume {} of {}: this state directory was used with another store; give each store its own",
            path.display(),
            identity.volume,
            identity.store
        )));
    }
    let is_own = manifest.owner.as_ref().is_some_and(|owner| {
        owner.token == identity.token || owner.resumes.is_some_and(|token| token == identity.token)
    });
    if is_own {
        if let Ending::Damaged { at, blocks, records_beyond } = recovered.ending() {
            if takeover {
                return Ok(Found::new(None, Some(recovered)));
            }
            let blocks =
                blocks.map_or_else(String::new, |range| format!(" (blocks {} to {})", range.start, range.end()));
            let what = format!(
                "it is damaged at {at}{blocks}, where it had been durable; {records_beyond} whole records follow"
            );
            return Err(damaged_log(id, &path, &what));
        }
        return Ok(Found::new(Some(recovered), None));
    }
    Ok(Found::new(None, Some(recovered)))
}

/// Why a volume whose write log is damaged is not attached, and what can be done about it.
fn damaged_log(id: VolumeId, path: &Path, what: &str) -> Error {
    let path = path.display();
    Error::damaged(format!(
        "volume {id} cannot be attached here with its write log {path}: {what}. Nothing was changed. \
         'varve volumes attach {id} --takeover' goes on from what the store holds and keeps the log aside"
    ))
}

/// The pages as of the end of the history in the store.
async fn replay_pages(
    shared: &Arc<Shared>,
    id: VolumeId,
    manifest: &Manifest,
    base: Checkpoint,
    behind_checkpoint: &[Arc<SegmentIndex>],
) -> Result<PageTable> {
    let local = shared.index.volume_state(id)?.and_then(|bytes| LocalState::decode(&bytes));
    let is_current =
        local.is_some_and(|local| local.sequence >= manifest.sequence && local.position >= manifest.replay_from);
    if !is_current && local.is_some() {
        tracing::info!(volume = %id, "the local pages are older than the checkpoint and are dropped");
    }
    if !is_current {
        shared.index.drop_volume(id)?;
        let state = LocalState { position: manifest.replay_from, sequence: manifest.sequence };
        shared.index.put_volume_state(id, &state.encode())?;
    }
    let base = Arc::new(base.sharing(&shared.directories));
    let pages = PageTable::new(id, shared.store.key_of(id)?, shared.index.clone(), shared.page_budget.clone(), base);
    for segment in behind_checkpoint {
        keep_index(shared, segment);
        pages.replay(segment)?;
    }
    Ok(pages)
}

/// What the store holds of the volume at the beginning of an attachment.
fn newest_moment(attachment: &Attachment, history: &History) -> Moment {
    let manifest = &attachment.loaded.manifest;
    let mut moment = manifest.moment();
    history.segments.iter().for_each(|segment| push_segment(&mut moment.replay, segment.header.id));
    moment.position = Position { epoch: attachment.epoch, number: SegmentNumber(0) };
    moment.sequence = history.last;
    moment.stored_bytes.0 += history.segments.iter().map(|segment| segment.object_length).sum::<u64>();
    moment
}

/// What the log brings.
struct Replay {
    overlay: LogOverlay,
    released: LogOffset,
    /// What is stored already, and what is not yet.
    progress: Progress,
    /// Records that are not in the store yet.
    records: u64,
    last: Sequence,
}

/// Carries on with the late owner's log, or begins a new one.
fn carry_on(
    shared: &Shared,
    id: VolumeId,
    attachment: &Attachment,
    own: Option<Recovered>,
    stored: Sequence,
) -> Result<(WriteLog, Replay)> {
    let identity = LogIdentity {
        store: shared.store_id,
        volume: id,
        epoch: attachment.epoch,
        token: attachment.token,
        attached_at: clock::now(),
    };
    let (log, replay) = match own {
        Some(recovered) if recovered.last_sequence() >= stored => {
            if recovered.tail_sequence() > stored.next() {
                return Err(Error::damaged(format!(
                    "the write log of {id} begins with record {}, but the store holds only up to {stored}: records between are lost",
                    recovered.tail_sequence()
                )));
            }
            let replay = replay_log(&recovered, stored)?;
            (recovered.resume(identity, false)?, replay)
        }
        late => begin_log(shared, identity, late, stored)?,
    };
    claims::clear(shared, id)?;
    Ok((log, replay))
}

/// Begins a new log. The late owner's, if there is one, holds nothing that the store does not: its newest records were stored, and then
/// lost with power.
fn begin_log(
    shared: &Shared,
    identity: LogIdentity,
    late: Option<Recovered>,
    stored: Sequence,
) -> Result<(WriteLog, Replay)> {
    let path = log_path(shared, identity.volume);
    let directory = path.parent().map(PathBuf::from).unwrap_or_default();
    shared.disk.create_directory(&directory).context(|| format!("cannot create {}", directory.display()))?;
    if let Some(late) = late {
        drop(late);
        claims::note(shared, identity.volume, identity.token)?;
        shared.disk.remove(&path).context(|| format!("cannot remove the old log {}", path.display()))?;
    }
    let key = shared.store.key_of(identity.volume)?;
    let log = log::create(&*shared.disk, &path, shared.settings.log_length, identity, stored.next(), key)?;
    let head = log.appender.head();
    let stored = Mark { sequence: stored, end: head };
    let overlay = LogOverlay::default();
    let progress = Progress::new(stored);
    Ok((log, Replay { overlay, released: head, progress, records: 0, last: stored.sequence }))
}

fn replay_log(recovered: &Recovered, stored: Sequence) -> Result<Replay> {
    let (tail, now) = (recovered.tail(), clock::uptime());
    let mut replay = Replay {
        overlay: LogOverlay::default(),
        released: tail,
        progress: Progress::new(Mark { sequence: Sequence(recovered.tail_sequence().0.saturating_sub(1)), end: tail }),
        records: 0,
        last: recovered.last_sequence(),
    };
    for view in recovered.records() {
        let view = view?;
        let bytes = match view.kind {
            RecordKind::Write => {
                replay.overlay.set(view.range, OverlayPlace::Log(LogPlace { record: view.place.record, block: 0 }));
                view.range.count.bytes().0
            }
            RecordKind::Zero => {
                replay.overlay.set(view.range, OverlayPlace::Zero(view.place.record));
                0
            }
            RecordKind::Fence | RecordKind::Pad => continue,
        };
        let mark = Mark { sequence: view.place.sequence, end: view.place.end };
        if mark.sequence <= stored {
            replay.progress = Progress::new(mark);
        } else {
            replay.progress.accept(mark, bytes, now);
            replay.records += 1;
        }
    }
    Ok(replay)
}

fn assemble(
    shared: &Arc<Shared>,
    attachment: Attachment,
    pages: PageTable,
    books: Books,
    log: WriteLog,
    replay: Replay,
    newest: Moment,
) -> Arc<Volume> {
    let mut progress = replay.progress;
    let head = Mark { sequence: replay.last, end: log.appender.head() };
    progress.note_end(head);
    let space_wake = Arc::new(Notify::new());
    let wake = space_wake.clone();
    log.committer.on_space_freed(Arc::new(move || wake.notify_waiters()));
    let manifest = &attachment.loaded.manifest;
    Arc::new(Volume {
        id: manifest.volume,
        epoch: attachment.epoch,
        token: attachment.token,
        name: Mutex::new(manifest.name.clone()),
        size: AtomicU64::new(manifest.size.0),
        shared: shared.clone(),
        key: pages.key(),
        gate: Gate::new(attachment.claimed_at),
        writer: Mutex::new(log.appender),
        log: log.reader,
        committer: log.committer,
        overlay: CountedOverlay::new(shared.places.clone(), replay.overlay),
        stored_runs: Mutex::default(),
        released: AtomicU64::new(replay.released.0),
        pages,
        progress: Mutex::new(progress),
        shown_to: Mutex::new(newest.position),
        newest: Mutex::new(newest),
        moment_waiters: Mutex::default(),
        is_uploader_gone: AtomicBool::new(false),
        hydrating: Mutex::default(),
        is_hydrating: AtomicBool::new(manifest.hydration.is_some() || manifest.letting_go.is_some()),
        is_cleaning_pressing: AtomicBool::new(false),
        schedule: ScheduleState::default(),
        read_ahead: Mutex::new(ReadAhead::default()),
        first_reads: FirstReads::new(shared.runs_noted.clone(), shared.settings.prefetch),
        warming: VolumeWarming::default(),
        upload_wake: Notify::new(),
        space_wake,
        space_turn: tokio::sync::Mutex::new(()),
        space_waiters: AtomicU64::new(0),
        wants_room: AtomicBool::new(false),
        gate_wake: Notify::new(),
        durability: AtomicU8::new(manifest.durability as u8),
        next_segment: AtomicU64::new(0),
        next_map_object: AtomicU64::new(0),
        clients: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        books: Mutex::new(books),
        cleaning: tokio::sync::Mutex::default(),
        checkpointing: tokio::sync::Mutex::default(),
        relocation: Mutex::default(),
        relocating: Mutex::default(),
        checkpoint_asked: Mutex::default(),
        clean_wake: Notify::new(),
        manifest: tokio::sync::Mutex::new(attachment.loaded),
    })
}

//! The seam between the control socket and the fleet: what a person, through `varve`, can ask of a running daemon.
//! The types are also the JSON that travels over the socket, so `varve` uses them as they are. Below them stand the
//! words for what `varve` does straight on the store, without an owner.

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::units::{ByteLen, Epoch, SegmentId, Sequence, UnixMillis, VolumeId};

mod family;
mod warm;

pub use family::{
    DiskUsageSummary, HydrationStatus, Leftover, NewForks, NewSnapshot, ScheduleChange, SnapshotSchedule,
    SnapshotStatus, SnapshotSummary, UsageReport, VolumeChange,
};
pub use warm::{WarmProgress, WarmReport, WarmRequest};

/// What FLUSH promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Flushed writes survive power loss of the host.
    Local,
    /// Flushed writes survive loss of the host: FLUSH waits for the upload.
    Store,
}

/// What of a volume's writes is not in the store yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Accepted bytes.
    pub bytes: ByteLen,
    /// Seconds since the oldest of them was accepted.
    pub seconds: f64,
}

/// An attached volume as its owner sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttachedStatus {
    /// Id.
    pub volume: VolumeId,
    /// Name.
    pub name: String,
    /// Size in bytes.
    pub size: ByteLen,
    /// The attachment.
    pub epoch: Epoch,
    /// What FLUSH promises.
    pub durability: Durability,
    /// NBD clients connected now.
    pub clients: u64,
    /// What is not in the store yet.
    pub lag: Lag,
    /// Newest accepted position.
    pub accepted: Sequence,
    /// Newest position in the store.
    pub stored: Sequence,
    /// Bytes of segment objects in the store.
    pub stored_bytes: ByteLen,
    /// The part of them that its newest content is in; an estimate.
    #[serde(default)]
    pub live_bytes: ByteLen,
    /// How far it has come with copying what it has of its origins, if it does that.
    #[serde(default)]
    pub hydration: Option<HydrationStatus>,
    /// Bytes of the write log in use, and its length.
    pub log_used: ByteLen,
    /// Length of the ring.
    pub log_length: ByteLen,
    /// How far it is warmed, while that is under way.
    #[serde(default)]
    pub warming: Option<WarmProgress>,
    /// Why the volume no longer takes requests, if so.
    pub failed: Option<String>,
}

/// How an attach went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttachReport {
    /// The volume as it is now.
    pub status: AttachedStatus,
    /// The position from which it resumed: everything up to here is there.
    pub resumed: Sequence,
    /// Records found in this host's own log and carried on with.
    pub replayed_records: u64,
    /// True if another owner was put out.
    pub taken_over: bool,
    /// Who owned it before, for people.
    pub previous_owner: Option<String>,
    /// A log of this host that is no longer part of the history, kept aside: its path, and what only it holds.
    pub rescued_log: Option<RescuedLog>,
}

/// A write log that holds records which are not part of a volume's history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RescuedLog {
    /// Where it is kept.
    pub path: String,
    /// Records that only it holds.
    pub records: u64,
    /// Their bytes.
    pub bytes: ByteLen,
    /// When the attachment that wrote them began.
    pub since: UnixMillis,
}

/// What cleaning a volume came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanReport {
    /// Bytes of segments that the volume has fewer in the store than before.
    pub freed: ByteLen,
    /// Bytes of segments that it has now.
    pub stored: ByteLen,
    /// The part of them that its newest content is in.
    pub live: ByteLen,
    /// Bytes of segments that only snapshots, forks and the history need.
    pub pinned: ByteLen,
}

/// Requests and bytes to the store since the daemon started, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreCounts {
    /// GET requests.
    pub gets: u64,
    /// Bytes received.
    pub get_bytes: u64,
    /// PUT requests.
    pub puts: u64,
    /// Bytes sent.
    pub put_bytes: u64,
    /// DELETE requests.
    pub deletes: u64,
    /// LIST requests.
    pub lists: u64,
    /// Requests that failed and were tried again.
    pub retries: u64,
}

/// The daemon as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Version of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Its host, as the owner of a volume names it; empty of daemons that do not say.
    #[serde(default)]
    pub host: String,
    /// Its control socket there.
    #[serde(default)]
    pub control: String,
    /// The store it serves.
    pub store: String,
    /// Where NBD clients connect, as URIs without an export name.
    pub nbd: Vec<String>,
    /// Where it can be asked over TCP, if it can.
    #[serde(default)]
    pub control_tcp: Option<String>,
    /// Store requests so far.
    pub store_counts: StoreCounts,
}

/// What a running daemon does for those who ask.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// The daemon.
    fn daemon(&self) -> DaemonStatus;

    /// The volumes attached here.
    fn attached(&self) -> Vec<AttachedStatus>;

    /// Attaches a volume. With `takeover` also when another host owns it: what only that host's log holds is lost.
    ///
    /// # Errors
    /// `NotFound`; `Busy`, saying by whom; what the store says.
    async fn attach(&self, volume: VolumeId, takeover: bool) -> Result<AttachReport>;

    /// Uploads what is left and hands the volume back. Refused while clients are connected, unless `force`: what
    /// they ask from then on is answered with ESHUTDOWN.
    ///
    /// # Errors
    /// `NotFound` if it is not attached here; `Busy`; what the store says.
    async fn detach(&self, volume: VolumeId, force: bool) -> Result<()>;

    /// Waits until everything accepted before the call is in the store.
    ///
    /// # Errors
    /// `NotFound` if it is not attached here; what the store says.
    async fn sync(&self, volume: VolumeId) -> Result<AttachedStatus>;

    /// Changes what can be changed of a volume in use, and keeps it in the manifest.
    ///
    /// # Errors
    /// `NotFound` if it is not attached here; `Invalid` for a smaller size; what the store says.
    async fn update(&self, volume: VolumeId, change: VolumeChange) -> Result<AttachedStatus>;

    /// Cleans a volume now: empties all segments of which it is worth it, and deletes what nobody needs any more.
    ///
    /// # Errors
    /// `NotFound` if it is not attached here; what the store says.
    async fn clean(&self, volume: VolumeId) -> Result<CleanReport>;

    /// Brings a volume's content into the cache, as far as there is room for it.
    ///
    /// # Errors
    /// `NotFound` if it is not attached here; `Invalid` if there is no such trace; what the store says.
    async fn warm(&self, volume: VolumeId, request: WarmRequest) -> Result<WarmReport>;

    /// Has a volume copy, in the background, what it has of its origins, and then let go of them.
    ///
    /// # Errors
    /// `NotFound` if it is not attached here; `Invalid` if it has no origin; what the store says.
    async fn hydrate(&self, volume: VolumeId) -> Result<AttachedStatus>;

    /// Takes a snapshot of exactly what was acknowledged before the call, while I/O goes on.
    ///
    /// # Errors
    /// `NotFound` if it is not attached here; what the store says.
    async fn snapshot(&self, volume: VolumeId, new: NewSnapshot) -> Result<SnapshotSummary>;

    /// Makes volumes whose history begins with exactly what was acknowledged before the call, while I/O goes on.
    ///
    /// # Errors
    /// `NotFound` if it is not attached here; what the store says.
    async fn fork(&self, volume: VolumeId, new: NewForks) -> Result<Vec<VolumeSummary>>;
}

/// Whether a volume is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// Nobody owns it.
    Detached,
    /// Somebody owns it, or died owning it.
    Attached,
    /// It was destroyed, and can be brought back until it is purged.
    Destroyed,
}

/// Who owns a volume, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerSummary {
    /// Name of the host.
    pub host: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Path of its control socket on that host.
    pub control: String,
    /// When it attached the volume.
    pub attached_at: UnixMillis,
}

/// A volume as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSummary {
    /// Id.
    pub id: VolumeId,
    /// Name; need not be unique.
    pub name: String,
    /// Region it was created in.
    pub region: String,
    /// How it is encrypted, if it is.
    pub encryption: Option<EncryptionSummary>,
    /// Whether it is in use.
    pub state: VolumeState,
    /// Size in bytes.
    pub size: ByteLen,
    /// Bytes of segment objects in the store.
    pub stored_bytes: ByteLen,
    /// The newest attachment.
    pub epoch: Epoch,
    /// What FLUSH promises.
    pub durability: Durability,
    /// When snapshots are taken by themselves.
    pub schedule: Option<SnapshotSchedule>,
    /// How many seconds of its past it can go back to; none of them, if zero.
    #[serde(default)]
    pub history_seconds: u64,
    /// What it has of its origins is being copied.
    #[serde(default)]
    pub is_hydrating: bool,
    /// The oldest time that it can go back to, if any.
    #[serde(default)]
    pub history_since: Option<UnixMillis>,
    /// The volume that it was forked from.
    pub origin: Option<VolumeId>,
    /// Snapshots of it that can be used.
    pub snapshots: u64,
    /// When it was created.
    pub created_at: UnixMillis,
    /// Who owns it, while it is attached.
    pub owner: Option<OwnerSummary>,
    /// When it was destroyed.
    pub destroyed_at: Option<UnixMillis>,
    /// From when on it cannot be brought back.
    pub purge_after: Option<UnixMillis>,
}

/// How a volume is encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionSummary {
    /// What seals its data.
    pub cipher: String,
    /// What its keys are wrapped with: `key`, `passphrase` or `command`.
    pub wrapping: String,
    /// Fingerprint of that key, if it has one.
    pub key: Option<String>,
    /// True if its keys were destroyed, and its content with them.
    pub shredded: bool,
}

/// What a volume is created from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVolume {
    /// Name, as [`parse_name`](crate::settings::parse_name) allows it.
    pub name: String,
    /// Size in bytes.
    pub size: ByteLen,
    /// Region.
    pub region: String,
    /// What FLUSH promises.
    pub durability: Durability,
    /// When snapshots are taken by themselves.
    pub schedule: Option<SnapshotSchedule>,
    /// How many seconds of its past it can go back to; none of them, if zero.
    pub history_seconds: u64,
    /// True if it gets a key of its own. One that begins with the content of another is encrypted if that is, whatever this says.
    pub encrypted: bool,
}

impl NewVolume {
    /// A volume in the region `default`, with durability `local`, no snapshots by themselves, no history, and not encrypted.
    pub fn named(name: impl Into<String>, size: ByteLen) -> Self {
        let (region, durability) = ("default".to_owned(), Durability::Local);
        NewVolume { name: name.into(), size, region, durability, schedule: None, history_seconds: 0, encrypted: false }
    }
}

/// How far an import or export has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageProgress {
    /// Bytes of the image done, holes included.
    pub done: ByteLen,
    /// Bytes of the whole image, if that is known.
    pub total: Option<ByteLen>,
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckProgress {
    /// Objects verified.
    pub done: u64,
    /// Objects to verify.
    pub total: u64,
}

/// Something a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckProblem {
    /// The object's name in the store.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// The blocks that cannot be read for it, if known.
    pub blocks: Option<String>,
}

/// What a check has verified and found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Segments verified.
    pub segments: u64,
    /// Bytes read for it.
    pub bytes: ByteLen,
    /// What is wrong; empty if all is well.
    pub problems: Vec<CheckProblem>,
    /// What interrupted commands left in the store. It does no harm.
    pub leftovers: Vec<Leftover>,
}

/// A run of blocks that a write log holds the newest content of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogExtent {
    /// Byte offset in the volume.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// True if it reads as zero.
    pub zero: bool,
}

/// What a write log holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogContent {
    /// Volume whose log it is.
    pub volume: VolumeId,
    /// The attachment that wrote its newest records.
    pub epoch: Epoch,
    /// When that attachment began.
    pub since: UnixMillis,
    /// The sequence of its first and its last record; the last is less than the first if there is none.
    pub records: (Sequence, Sequence),
    /// Where its newest content lies, in order; runs that adjoin are one.
    pub extents: Vec<LogExtent>,
}

/// What was removed for good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    /// Volumes that were destroyed more than a day ago.
    pub purged: Vec<VolumeId>,
    /// Volumes of which only leftovers without a manifest were there.
    pub leftovers: Vec<VolumeId>,
    /// Objects deleted.
    pub objects: u64,
    /// When the next destroyed volume will be due.
    pub next_due: Option<UnixMillis>,
    /// What could not be removed, and why.
    pub failures: Vec<String>,
}

/// An object that a sweep found to be left over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweptObject {
    /// Its name in the store.
    pub key: String,
    /// Its length.
    pub bytes: ByteLen,
    /// Why nobody needs it.
    pub why: String,
}

/// What a sweep of the store has removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepReport {
    /// The objects.
    pub objects: Vec<SweptObject>,
    /// Their bytes.
    pub bytes: ByteLen,
    /// What could not be looked at or removed, and why.
    pub failures: Vec<String>,
}

/// What `varve dump` can print as a person can read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpTarget {
    /// The manifest of a volume.
    Manifest(VolumeId),
    /// The newest checkpoint of a volume.
    Checkpoint(VolumeId),
    /// A segment, or the seal in its place.
    Segment(SegmentId),
    /// A manifest in a local file.
    ManifestFile(PathBuf),
    /// An object with checkpoint pages in a local file.
    CheckpointFile(PathBuf),
    /// A segment or seal in a local file.
    SegmentFile(PathBuf),
    /// The file of a write log.
    LogFile(PathBuf),
}

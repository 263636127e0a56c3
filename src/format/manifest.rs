//! The manifest of a volume and the header of a store: JSON bodies in the common envelope.
//!
//! The manifest is the root of a volume: what it names, directly or through the checkpoint, or what
//! follows its checkpoint in the sequence, belongs to the volume, and nothing else does.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format::census::Condemned;
use crate::format::envelope;
use crate::format::lineage::{
    Moment, PastMoment, Pin, PinHolder, SegmentRun, check_moment, check_runs, is_size_of_a_volume,
};
use crate::format::map_object::{CheckpointRef, PageRef};
use crate::limits::{COUNT_MAX, EPOCHS_REPLAYED_MAX};
use crate::seal::Encryption;
use crate::service::{Durability, SnapshotSchedule};
use crate::units::{ByteLen, Epoch, SegmentNumber, Sequence, StoreId, Token, UnixMillis, VolumeId};

const KIND: &str = "manifest";
/// No volume is attached so often.
const EPOCH_MAX: Epoch = Epoch(u32::MAX / 2);
const STORE_KIND: &str = "store";
/// Incompatible feature: the volume's objects are sealed.
const FEATURE_ENCRYPTED: u32 = 1;

/// A place in a volume's history as the store counts it: the next segment that would follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Epoch of the next segment.
    pub epoch: Epoch,
    /// Its number.
    pub number: SegmentNumber,
}

/// Who holds the newest epoch. For people, but for the token, by which an owner knows itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Names the attachment.
    pub token: Token,
    /// The late attachment of the same host whose write log this one carries on with. If the host dies before its log says
    /// so too, the log is still known as the owner's.
    pub resumes: Option<Token>,
    /// Host name.
    pub host: String,
    /// Process id on that host.
    pub pid: u32,
    /// Path of the daemon's control socket on that host.
    pub control: String,
    /// When it attached.
    pub attached_at: UnixMillis,
}

/// A volume that this one's history goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The volume.
    pub volume: VolumeId,
    /// Its position from which on the histories differ.
    pub position: Position,
    /// The same as a place in its sequence.
    pub sequence: Sequence,
    /// The region that it is in, if it is not in the store of the volume that names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// Copying what a volume has of its origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hydration {
    /// When it was asked for.
    pub since: UnixMillis,
}

/// The root of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The volume.
    pub volume: VolumeId,
    /// Its name, for people; not unique.
    pub name: String,
    /// How its data is encrypted; `None` if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// Made with the key of the volume, if it has one: what is said here of its content is not made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<String>,
    /// Its region.
    pub region: String,
    /// Its size in bytes; a multiple of the block size.
    pub size: ByteLen,
    /// When it was created.
    pub created_at: UnixMillis,
    /// What FLUSH promises.
    pub durability: Durability,
    /// Counts the changes of this manifest.
    pub generation: u64,
    /// Random: names this very write of the manifest, so that a writer can tell whether its own put had effect.
    pub nonce: Token,
    /// The newest epoch that was claimed.
    pub epoch: Epoch,
    /// Who claimed it; `None` once detached.
    pub owner: Option<Owner>,
    /// The block map as of some position; `None` while everything is still to be replayed from the start.
    pub checkpoint: Option<CheckpointRef>,
    /// The first segment that the checkpoint does not include: replay starts here.
    pub replay_from: Position,
    /// The place in the sequence that the checkpoint includes.
    pub sequence: Sequence,
    /// Segments of origins, to be applied over the checkpoint before what follows `replay_from`; none once this volume has written a
    /// checkpoint of its own.
    #[serde(default)]
    pub inherited: Vec<SegmentRun>,
    /// True after an orderly detach: nothing follows the checkpoint, and the epoch is sealed.
    pub complete: bool,
    /// Bytes of this volume's own segment objects, as of the checkpoint.
    pub stored_bytes: ByteLen,
    /// When it was destroyed, if it was.
    pub destroyed_at: Option<UnixMillis>,
    /// True while it is being made (an import): not shown, cannot be attached, and purged as if it were destroyed if that never ends.
    #[serde(default)]
    pub being_made: bool,
    /// How often snapshots are taken by themselves, and how long they stay; `None` for never.
    #[serde(default)]
    pub schedule: Option<SnapshotSchedule>,
    /// The last place of the sequence that any snapshot ever held, also of those that are gone; a fork's begins with its history.
    #[serde(default)]
    pub snapshotted: Sequence,
    /// When the newest snapshot by schedule was taken, also if it is gone.
    #[serde(default)]
    pub scheduled_at: Option<UnixMillis>,
    /// The volumes that its history goes on from, nearest first.
    pub origins: Vec<Origin>,
    /// What must stay readable.
    pub pins: Vec<Pin>,
    /// Where the checkpoint's census is, which says what objects the volume has and how much of each is in use; `None` if that must be found
    /// out by looking.
    #[serde(default)]
    pub census: Option<Vec<PageRef>>,
    /// Objects that nothing needs any more. They may be gone already.
    #[serde(default)]
    pub condemned: Condemned,
    /// How many seconds of its past the volume can go back to; none of them, if zero.
    #[serde(default)]
    pub history_seconds: u64,
    /// What it has of its origins is being copied, so that they can be let go of.
    #[serde(default)]
    pub hydration: Option<Hydration>,
    /// The late origin, in which there may still be a pin for this volume.
    #[serde(default)]
    pub letting_go: Option<Origin>,
    /// Moments of that past, oldest first. What follows one of them in the sequence leads to all moments up to the next.
    #[serde(default)]
    pub history: Vec<PastMoment>,
}

impl Manifest {
    /// True if people see it without asking for what is gone: neither destroyed nor still being made.
    pub fn is_shown(&self) -> bool {
        self.destroyed_at.is_none() && !self.being_made
    }

    /// The first manifest of an empty volume: detached, in the region `default`, and without snapshots by themselves or a history.
    pub fn first(volume: VolumeId, name: String, size: ByteLen, created_at: UnixMillis, nonce: Token) -> Self {
        Manifest {
            volume,
            name,
            encryption: None,
            seal: None,
            region: "default".to_owned(),
            size,
            created_at,
            durability: Durability::Local,
            generation: 1,
            nonce,
            epoch: Epoch(0),
            owner: None,
            checkpoint: None,
            replay_from: Position { epoch: Epoch(1), number: SegmentNumber(0) },
            sequence: Sequence(0),
            inherited: Vec::new(),
            complete: true,
            stored_bytes: ByteLen(0),
            destroyed_at: None,
            being_made: false,
            schedule: None,
            snapshotted: Sequence(0),
            scheduled_at: None,
            origins: Vec::new(),
            pins: Vec::new(),
            census: Some(Vec::new()),
            condemned: Condemned::default(),
            history_seconds: 0,
            hydration: None,
            letting_go: None,
            history: Vec::new(),
        }
    }

    /// Volumes in other regions, with the names of these: the origins, and forks.
    pub fn elsewhere(&self) -> impl Iterator<Item = (VolumeId, &str)> {
        let origins = self.origins.iter().chain(&self.letting_go);
        let origins = origins.filter_map(|origin| Some((origin.volume, origin.region.as_deref()?)));
        let forks = self.pins.iter().flat_map(|pin| &pin.holders).filter_map(|holder| match holder {
            PinHolder::Fork { volume, region, .. } => Some((*volume, region.as_deref()?)),
            PinHolder::Snapshot(_) => None,
        });
        origins.chain(forks)
    }

    /// The volumes whose objects it needs: its own, and those of its origins.
    pub fn volumes_read(&self) -> Vec<VolumeId> {
        let moments = self.pins.iter().map(|pin| &pin.moment).chain(self.history.iter().map(|past| &past.moment));
        let named = moments.flat_map(|moment| {
            let root = moment.checkpoint.map(|checkpoint| checkpoint.root.object.volume);
            root.into_iter().chain(moment.replay.iter().map(|run| run.volume))
        });
        let mut volumes: Vec<VolumeId> = std::iter::once(self.volume)
            .chain(self.origins.iter().map(|origin| origin.volume))
            .chain(self.checkpoint.map(|checkpoint| checkpoint.root.object.volume))
            .chain(self.inherited.iter().map(|run| run.volume))
            .chain(named)
            .collect();
        volumes.sort_unstable();
        volumes.dedup();
        volumes
    }

    /// The content of a volume that is detached in good order.
    pub fn moment(&self) -> Moment {
        Moment {
            position: self.replay_from,
            sequence: self.sequence,
            size: self.size,
            stored_bytes: self.stored_bytes,
            checkpoint: self.checkpoint,
            replay: self.inherited.clone(),
        }
    }

    /// How many snapshots and forks need moments of the volume.
    pub fn holder_count(&self) -> usize {
        self.pins.iter().map(|pin| pin.holders.len()).sum()
    }

    /// The manifest as an object.
    ///
    /// # Errors
    /// `Invalid` if nobody could read it again.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let what = format!("the manifest of {}", self.volume);
        self.check(&what)
            .map_err(|error| Error::invalid(format!("not written, for nobody could read it again: {error}")))?;
        let features = if self.encryption.is_some() { FEATURE_ENCRYPTED } else { 0 };
        envelope::encode_with(KIND, features, self)
    }

    /// Reads the manifest of `volume`.
    ///
    /// # Errors
    /// `Damaged` or `Unsupported`.
    pub fn decode(volume: VolumeId, bytes: &[u8]) -> Result<Self> {
        let what = format!("the manifest of {volume}");
        let (manifest, features): (Manifest, u32) = envelope::decode_with(KIND, &what, FEATURE_ENCRYPTED, bytes)?;
        if (features & FEATURE_ENCRYPTED != 0) != manifest.encryption.is_some() {
            return Err(Error::damaged(format!(
                "{what} is damaged: it contradicts itself on whether the volume is encrypted"
            )));
        }
        if manifest.volume != volume {
            return Err(Error::damaged(format!("{what} is damaged: it belongs to {}", manifest.volume)));
        }
        manifest.check(&what)?;
        Ok(manifest)
    }

    /// Refuses what makes no sense.
    fn check(&self, what: &str) -> Result<()> {
        let size = self.size;
        if !is_size_of_a_volume(size) {
            return Err(Error::damaged(format!("{what} is damaged: a size of {size} bytes makes no sense")));
        }
        if self.epoch > EPOCH_MAX {
            return Err(Error::damaged(format!("{what} is damaged: epoch {} makes no sense", self.epoch)));
        }
        if self.replay_from.epoch > self.epoch.next() {
            return Err(Error::damaged(format!("{what} is damaged: its checkpoint is newer than its epoch")));
        }
        if self.epoch.0.saturating_sub(self.replay_from.epoch.0) > EPOCHS_REPLAYED_MAX {
            let from = self.replay_from.epoch;
            return Err(Error::damaged(format!("{what} is damaged: no epoch since {from} has written a checkpoint")));
        }
        self.check_counts(what)?;
        check_runs(what, &self.inherited)?;
        self.condemned.check(what)?;
        let moments = self.pins.iter().map(|pin| &pin.moment);
        let mut moments = moments.chain(self.history.iter().map(|past| &past.moment));
        moments.try_for_each(|moment| check_moment(what, moment))
    }

    /// Refuses counts that nothing counts up to, before anybody adds to them.
    fn check_counts(&self, what: &str) -> Result<()> {
        let counts = [
            ("version", self.generation),
            ("segment", self.replay_from.number.0),
            ("sequence", self.sequence.0),
            ("sequence of snapshots", self.snapshotted.0),
            ("count of stored bytes", self.stored_bytes.0),
        ];
        match counts.into_iter().find(|(_, count)| *count > COUNT_MAX) {
            Some((name, count)) => {
                Err(Error::damaged(format!("{what} is damaged: a {name} of {count} makes no sense")))
            }
            None => Ok(()),
        }
    }
}

/// The header of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreRoot {
    /// Tells this store from any other.
    pub store: StoreId,
    /// When it was created.
    pub created_at: UnixMillis,
}

impl StoreRoot {
    /// The header as an object.
    ///
    /// # Errors
    /// See [`envelope::encode`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        envelope::encode(STORE_KIND, self)
    }

    /// Reads the header of the store at `address`.
    ///
    /// # Errors
    /// `Damaged` or `Unsupported`.
    pub fn decode(address: &str, bytes: &[u8]) -> Result<Self> {
        envelope::decode(STORE_KIND, &format!("varve.json of {address}"), bytes)
    }
}

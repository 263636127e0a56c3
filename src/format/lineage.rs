//! Moments, pins and snapshots: how volumes of one family refer to each other. JSON, in manifests and in objects of their
//! own; meaning and rules in `design/lineage.md`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format::envelope;
use crate::format::manifest::Position;
use crate::format::map_object::CheckpointRef;
use crate::limits::{COUNT_MAX, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN};
use crate::units::{BLOCK_SIZE, ByteLen, Epoch, SegmentId, SegmentNumber, Sequence, SnapshotId, UnixMillis, VolumeId};

const SNAPSHOT_KIND: &str = "snapshot";
/// More segments than this are never replayed over one checkpoint.
pub const REPLAY_SEGMENTS_MAX: u64 = 1 << 16;

/// Segments of one epoch that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRun {
    /// The volume that wrote them.
    pub volume: VolumeId,
    /// The epoch.
    pub epoch: Epoch,
    /// Number of the first.
    pub first: SegmentNumber,
    /// How many; at least 1.
    pub count: u64,
}

impl SegmentRun {
    /// The segments in order.
    pub fn ids(self) -> impl Iterator<Item = SegmentId> {
        (0..self.count).map(move |step| SegmentId {
            volume: self.volume,
            epoch: self.epoch,
            number: SegmentNumber(self.first.0.saturating_add(step)),
        })
    }
}

/// Adds a segment behind the runs.
pub fn push_segment(runs: &mut Vec<SegmentRun>, id: SegmentId) {
    match runs.last_mut() {
        Some(last) if (last.volume, last.epoch, last.first.0 + last.count) == (id.volume, id.epoch, id.number.0) => {
            last.count += 1;
        }
        _ => runs.push(SegmentRun { volume: id.volume, epoch: id.epoch, first: id.number, count: 1 }),
    }
}

/// Segments in all the runs.
pub fn count_segments(runs: &[SegmentRun]) -> u64 {
    runs.iter().fold(0, |sum, run| sum.saturating_add(run.count))
}

/// The content of a volume at one position, and all that is needed to read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The segment that would come next.
    pub position: Position,
    /// The last place of the sequence that is included.
    pub sequence: Sequence,
    /// Size of the volume then.
    pub size: ByteLen,
    /// Bytes of the volume's own segment objects then.
    pub stored_bytes: ByteLen,
    /// The block map as of some earlier position; `None` for an empty one.
    pub checkpoint: Option<CheckpointRef>,
    /// What is to be applied over it, in order.
    pub replay: Vec<SegmentRun>,
}

impl Moment {
    /// The segments to be applied over the checkpoint, in order.
    pub fn replayed(&self) -> impl Iterator<Item = SegmentId> + '_ {
        self.replay.iter().flat_map(|run| run.ids())
    }
}

/// A moment of a volume's past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastMoment {
    /// When it was the present.
    pub at: UnixMillis,
    /// The content.
    pub moment: Moment,
    /// True if it does not follow from the one before it: the volume was rolled back to it.
    #[serde(default)]
    pub is_jump: bool,
    /// Made with the key of the volume, if it has one: the moment is not made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<String>,
}

/// What a snapshot says of itself, besides its moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Id.
    pub id: SnapshotId,
    /// Name, if it was given one; need not be unique.
    pub name: Option<String>,
    /// When it was asked for.
    pub created_at: UnixMillis,
    /// When it goes by itself; never, if not said.
    pub expires_at: Option<UnixMillis>,
    /// True if the daemon took it by the volume's schedule.
    pub scheduled: bool,
}

impl SnapshotRecord {
    /// True if its time is over.
    pub fn is_expired(&self, now: UnixMillis) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// Who needs a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PinHolder {
    /// A snapshot.
    Snapshot(SnapshotRecord),
    /// A volume whose history begins there.
    Fork {
        /// The volume.
        volume: VolumeId,
        /// When it was forked.
        created_at: UnixMillis,
        /// The region that it is in, if it is another than its origin's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<String>,
    },
}

/// A moment that must stay readable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The moment.
    pub moment: Moment,
    /// Who needs it; at least one.
    pub holders: Vec<PinHolder>,
    /// Made with the key of the volume, if it has one: the moment is not made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<String>,
}

/// The object of a snapshot: by its id alone it leads to everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotObject {
    /// The volume.
    pub volume: VolumeId,
    /// What it says of itself.
    pub snapshot: SnapshotRecord,
    /// The content.
    pub moment: Moment,
}

impl SnapshotObject {
    /// The object's bytes.
    ///
    /// # Errors
    /// See [`envelope::encode`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        envelope::encode(SNAPSHOT_KIND, self)
    }

    /// Reads the object of snapshot `id`.
    ///
    /// # Errors
    /// `Damaged` or `Unsupported`.
    pub fn decode(id: SnapshotId, bytes: &[u8]) -> Result<Self> {
        let what = format!("snapshot {id}");
        let object: SnapshotObject = envelope::decode(SNAPSHOT_KIND, &what, bytes)?;
        if object.snapshot.id != id {
            return Err(Error::damaged(format!("{what} is damaged: it is {}", object.snapshot.id)));
        }
        check_moment(&what, &object.moment)?;
        Ok(object)
    }
}

/// True if a volume can have this size.
pub fn is_size_of_a_volume(size: ByteLen) -> bool {
    (VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&size.0) && size.0.is_multiple_of(BLOCK_SIZE)
}

/// Refuses a moment that no volume had.
///
/// # Errors
/// `Damaged`, naming `what` holds it.
pub fn check_moment(what: &str, moment: &Moment) -> Result<()> {
    let counts = [moment.position.number.0, moment.sequence.0, moment.stored_bytes.0];
    if !is_size_of_a_volume(moment.size) || counts.into_iter().any(|count| count > COUNT_MAX) {
        return Err(Error::damaged(format!("{what} is damaged: a moment that it names makes no sense")));
    }
    check_runs(what, &moment.replay)
}

/// Refuses runs that no writer makes, before anybody counts up to them.
///
/// # Errors
/// `Damaged`, naming `what` holds them.
pub fn check_runs(what: &str, runs: &[SegmentRun]) -> Result<()> {
    let is_senseless = runs.iter().any(|run| run.count == 0 || run.first.0.saturating_add(run.count) > COUNT_MAX);
    if is_senseless || count_segments(runs) > REPLAY_SEGMENTS_MAX {
        return Err(Error::damaged(format!("{what} is damaged: the segments that it replays make no sense")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(epoch: u32, number: u64) -> SegmentId {
        SegmentId { volume: VolumeId(7), epoch: Epoch(epoch), number: SegmentNumber(number) }
    }

    #[test]
    fn segments_that_follow_each_other_are_one_run() {
        let ids = [segment(1, 4), segment(1, 5), segment(3, 0), segment(3, 1), segment(3, 3)];
        let mut runs = Vec::new();
        ids.iter().for_each(|id| push_segment(&mut runs, *id));
        assert_eq!(runs.iter().map(|run| run.count).collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!(runs.iter().flat_map(|run| run.ids()).collect::<Vec<_>>(), ids);
        assert_eq!(count_segments(&runs), 5);
    }

    #[test]
    fn a_snapshot_object_is_read_back_and_refused_under_another_id() {
        let object = SnapshotObject {
            volume: VolumeId(7),
            snapshot: SnapshotRecord {
                id: SnapshotId(9),
                name: Some("nightly".into()),
                created_at: UnixMillis(5),
                expires_at: Some(UnixMillis(10)),
                scheduled: true,
            },
            moment: Moment {
                position: Position { epoch: Epoch(2), number: SegmentNumber(3) },
                sequence: Sequence(44),
                size: ByteLen(1 << 30),
                stored_bytes: ByteLen(123),
                checkpoint: None,
                replay: vec![SegmentRun { volume: VolumeId(7), epoch: Epoch(2), first: SegmentNumber(0), count: 3 }],
            },
        };
        let bytes = object.encode().unwrap();
        assert_eq!(SnapshotObject::decode(SnapshotId(9), &bytes).unwrap(), object);
        assert!(SnapshotObject::decode(SnapshotId(8), &bytes).unwrap_err().message().contains("it is vs_"));
        assert!(object.snapshot.is_expired(UnixMillis(10)) && !object.snapshot.is_expired(UnixMillis(9)));
        let mut senseless = object.clone();
        senseless.moment.replay[0].count = u64::MAX;
        assert!(SnapshotObject::decode(SnapshotId(9), &senseless.encode().unwrap()).is_err());
    }
}

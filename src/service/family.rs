//! The volume family: what can be asked for and told about snapshots, forks and changes of a volume.

use serde::{Deserialize, Serialize};

use crate::service::Durability;
use crate::units::{ByteLen, SnapshotId, UnixMillis, VolumeId};

/// What may be changed of a volume; what is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VolumeChange {
    /// What FLUSH promises from now on.
    pub durability: Option<Durability>,
    /// The new size, not smaller than the old one, in bytes.
    pub size: Option<ByteLen>,
    /// When snapshots are taken by themselves.
    pub schedule: Option<ScheduleChange>,
    /// How many seconds of its past it can go back to from now on; none of them, if zero.
    pub history_seconds: Option<u64>,
}

/// A change of the schedule; what is left out stays, or is the default if there was no schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleChange {
    /// No snapshots by themselves any more.
    pub off: bool,
    /// Seconds from one to the next.
    pub interval_seconds: Option<u64>,
    /// Seconds that each is kept.
    pub retention_seconds: Option<u64>,
}

impl ScheduleChange {
    /// The schedule that it makes of another.
    pub fn apply(self, old: Option<SnapshotSchedule>) -> Option<SnapshotSchedule> {
        if self.off {
            return None;
        }
        let old = old.unwrap_or_default();
        Some(SnapshotSchedule {
            interval_seconds: self.interval_seconds.unwrap_or(old.interval_seconds),
            retention_seconds: self.retention_seconds.unwrap_or(old.retention_seconds),
        })
    }
}

/// How often the daemon takes snapshots of an attached volume, and how long it keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSchedule {
    /// Seconds from one to the next, at least 1.
    pub interval_seconds: u64,
    /// Seconds that each is kept, at least 1.
    pub retention_seconds: u64,
}

impl Default for SnapshotSchedule {
    /// Daily, for five days, as flyctl does.
    fn default() -> Self {
        SnapshotSchedule { interval_seconds: 24 * 60 * 60, retention_seconds: 5 * 24 * 60 * 60 }
    }
}

/// A snapshot to be taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NewSnapshot {
    /// Its name, if it shall have one.
    pub name: Option<String>,
    /// Seconds that it is kept; for ever, if not said.
    pub retention_seconds: Option<u64>,
}

/// Forks to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewForks {
    /// Their name; the origin's with '-fork' behind it, if not said.
    pub name: Option<String>,
    /// How many.
    pub count: u32,
    /// The region that they are to be in; the origin's, if not said.
    #[serde(default)]
    pub region: Option<String>,
}

/// How far a volume has come with copying what it has of its origins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HydrationStatus {
    /// Bytes that it has copied, or need not copy any more.
    pub done: ByteLen,
    /// Bytes that it began with; zero before they are counted.
    pub total: ByteLen,
    /// Of those done, bytes that could not be read. The origin is not let go of.
    pub damaged: ByteLen,
    /// How long the rest may take.
    pub seconds_left: Option<f64>,
    /// All is copied, but snapshots or forks of the time before need the origin.
    pub waits_for_pins: bool,
}

/// Whether a snapshot can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotStatus {
    /// It can.
    Ready,
    /// Its time is over; it goes at the next occasion.
    Expired,
}

/// A snapshot as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSummary {
    /// Id.
    pub id: SnapshotId,
    /// Name, if it has one.
    pub name: Option<String>,
    /// The volume.
    pub volume: VolumeId,
    /// Whether it can be used.
    pub status: SnapshotStatus,
    /// Size of the volume then.
    pub size: ByteLen,
    /// Bytes of the volume's segment objects then.
    pub stored_bytes: ByteLen,
    /// When it was taken.
    pub created_at: UnixMillis,
    /// When it goes by itself.
    pub expires_at: Option<UnixMillis>,
    /// True if the schedule took it.
    pub scheduled: bool,
}

/// What a volume, or a snapshot of it, takes in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsageSummary {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot, if it is one.
    pub snapshot: Option<SnapshotId>,
    /// Name, if it has one.
    pub name: Option<String>,
    /// True for a destroyed volume that can still be brought back, or that others of its family look through.
    pub destroyed: bool,
    /// Size, in bytes.
    pub provisioned: ByteLen,
    /// Bytes that were written and not trimmed.
    pub written: ByteLen,
    /// Bytes in the store that it refers to: `unique` and `shared`.
    pub stored: ByteLen,
    /// Of these, bytes to which nobody else refers: what destroying it would free.
    pub unique: ByteLen,
    /// Of these, bytes to which others of its family refer too.
    pub shared: ByteLen,
}

/// What everything takes in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// Volumes, each followed by its snapshots.
    pub disks: Vec<DiskUsageSummary>,
    /// Sum of the volumes' sizes, in bytes.
    pub provisioned: ByteLen,
    /// Sum of what the volumes say is written.
    pub written: ByteLen,
    /// Bytes of all objects of the families looked at.
    pub stored: ByteLen,
    /// Of these, bytes to which one volume or snapshot alone refers.
    pub unique: ByteLen,
    /// Of these, bytes to which several of a family refer, each counted once.
    pub shared: ByteLen,
    /// Of these, segments that only moments of the past need, to which a volume can go back.
    #[serde(default)]
    pub history: ByteLen,
    /// Of these, segments to which nobody refers any more: what cleaning would free.
    pub dead: ByteLen,
    /// Of these, block maps and manifests.
    pub metadata: ByteLen,
}

/// Something that a crash left in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// The object or entry.
    pub what: String,
    /// Why it is there.
    pub why: String,
    /// How old it is, in seconds.
    pub age_seconds: u64,
    /// True if it was removed.
    pub removed: bool,
}

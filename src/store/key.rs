//! Names of objects in the store. This is the only file that makes one, so the layout of the store is
//! what stands here:
//!
//! ```text
//! varve.json                            the store's own header: format version and id
//! probe/<random>                        short-lived objects of the conditional-write probe
//! volumes/<vol>/manifest                root of a volume
//! volumes/<vol>/segments/<epoch>/<n>    segments and the seal of each epoch
//! volumes/<vol>/map/<epoch>/<n>         pages of checkpoints
//! snapshots/<vs>                        a snapshot's own object
//! snapshots/<vs>.trace                  what was read first, before it was taken
//! ```
//!
//! Numbers are written with leading zeros (10 digits for an epoch, 20 for a number), so that a listing
//! sorts as the sequence does.

use std::fmt;

use crate::units::{Epoch, SegmentId, SegmentNumber, SnapshotId, VolumeId};

/// The name of an object, relative to the store's prefix. Made only of ids and numbers: never of text
/// that a client sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// The store's own header.
    pub fn store_root() -> Self {
        ObjectKey("varve.json".into())
    }

    /// An object for the probe to try conditional writes on.
    pub fn probe(random: u64) -> Self {
        ObjectKey(format!("probe/{random:016x}"))
    }

    /// The manifest of a volume.
    pub fn manifest(volume: VolumeId) -> Self {
        ObjectKey(format!("volumes/{volume}/manifest"))
    }

    /// A segment, or the seal that takes the place of one.
    pub fn segment(id: SegmentId) -> Self {
        ObjectKey(format!("volumes/{}/segments/{:010}/{:020}", id.volume, id.epoch.0, id.number.0))
    }

    /// An object with pages of checkpoints.
    pub fn map_object(volume: VolumeId, epoch: Epoch, number: u64) -> Self {
        ObjectKey(format!("volumes/{volume}/map/{:010}/{number:020}", epoch.0))
    }

    /// A snapshot.
    pub fn snapshot(id: SnapshotId) -> Self {
        ObjectKey(format!("snapshots/{id}"))
    }

    /// What was read first of a volume before this snapshot of it was taken.
    pub fn trace(id: SnapshotId) -> Self {
        ObjectKey(format!("snapshots/{id}.trace"))
    }

    /// The prefix of all volumes.
    pub fn volumes() -> Self {
        ObjectKey("volumes/".into())
    }

    /// The prefix of everything that belongs to a volume.
    pub fn volume(id: VolumeId) -> Self {
        ObjectKey(format!("volumes/{id}/"))
    }

    /// No object's name, but where one would stand that came behind all objects of a volume.
    pub fn behind_volume(id: VolumeId) -> Self {
        ObjectKey(format!("volumes/{id}/~"))
    }

    /// The prefix of a volume's segments.
    pub fn segments(id: VolumeId) -> Self {
        ObjectKey(format!("volumes/{id}/segments/"))
    }

    /// The prefix of the segments of one epoch.
    pub fn epoch_segments(id: VolumeId, epoch: Epoch) -> Self {
        ObjectKey(format!("volumes/{id}/segments/{:010}/", epoch.0))
    }

    /// The prefix of a volume's map objects.
    pub fn map_objects(id: VolumeId) -> Self {
        ObjectKey(format!("volumes/{id}/map/"))
    }

    /// The prefix of all snapshots.
    pub fn snapshots() -> Self {
        ObjectKey("snapshots/".into())
    }

    /// The prefix of everything.
    pub fn everything() -> Self {
        ObjectKey(String::new())
    }

    /// A name that a store returned in a listing, already relative to its prefix.
    pub fn from_listing(name: String) -> Self {
        ObjectKey(name)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The volume whose object this is, if it is one.
    pub fn parse_volume(&self) -> Option<VolumeId> {
        self.0.strip_prefix("volumes/")?.split('/').next()?.parse().ok()
    }

    /// The volume whose manifest this is, if it is one.
    pub fn parse_manifest(&self) -> Option<VolumeId> {
        self.0.strip_prefix("volumes/")?.strip_suffix("/manifest")?.parse().ok()
    }

    /// The snapshot that this is, if it is one.
    pub fn parse_snapshot(&self) -> Option<SnapshotId> {
        self.0.strip_prefix("snapshots/")?.parse().ok()
    }

    /// The snapshot whose trace this is, if it is one.
    pub fn parse_trace(&self) -> Option<SnapshotId> {
        self.0.strip_prefix("snapshots/")?.strip_suffix(".trace")?.parse().ok()
    }

    /// The segment that this is, if it is one.
    pub fn parse_segment(&self) -> Option<SegmentId> {
        let volume = self.parse_volume()?;
        let mut parts = self.0.split('/').skip(2);
        if parts.next()? != "segments" {
            return None;
        }
        let epoch = Epoch(parts.next()?.parse().ok()?);
        let number = SegmentNumber(parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(SegmentId { volume, epoch, number })
    }

    /// The volume, epoch and number of the map object that this is, if it is one.
    pub fn parse_map_object(&self) -> Option<(VolumeId, Epoch, u64)> {
        let volume = self.parse_volume()?;
        let mut parts = self.0.split('/').skip(2);
        if parts.next()? != "map" {
            return None;
        }
        let epoch = Epoch(parts.next()?.parse().ok()?);
        let number = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some((volume, epoch, number))
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_back() {
        let id = SegmentId { volume: VolumeId(7), epoch: Epoch(3), number: SegmentNumber(12) };
        let key = ObjectKey::segment(id);
        assert_eq!(key.as_str(), "volumes/vol_0000000000007/segments/0000000003/00000000000000000012");
        assert_eq!(key.parse_segment(), Some(id));
        assert_eq!(key.parse_manifest(), None);
        assert!(ObjectKey::manifest(VolumeId(7)) < key && key < ObjectKey::behind_volume(VolumeId(7)));
        assert!(ObjectKey::manifest(VolumeId(7)) < ObjectKey::map_objects(VolumeId(7)));
        assert_eq!(ObjectKey::manifest(VolumeId(7)).parse_manifest(), Some(VolumeId(7)));
        assert_eq!(
            ObjectKey::map_object(VolumeId(7), Epoch(1), 2).parse_map_object(),
            Some((VolumeId(7), Epoch(1), 2))
        );
        let (snapshot, trace) = (ObjectKey::snapshot(SnapshotId(5)), ObjectKey::trace(SnapshotId(5)));
        assert_eq!((snapshot.parse_snapshot(), snapshot.parse_trace()), (Some(SnapshotId(5)), None));
        assert_eq!((trace.parse_snapshot(), trace.parse_trace()), (None, Some(SnapshotId(5))));
    }
}

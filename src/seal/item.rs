//! Items: bytes that are sealed alone, under a key of their own. `salt (16 bytes) | sealed bytes | tag (16 bytes)`.

use super::key::{Salt, TAG_BYTES, VolumeKey, nonce, open, seal, split_tag};
use crate::units::{Epoch, SegmentId, SnapshotId, VolumeId};

const SALT_BYTES: usize = 16;
/// How much longer an item is than what it holds.
pub const ITEM_OVERHEAD_BYTES: usize = SALT_BYTES + TAG_BYTES;

/// What an item is, and where it belongs: it opens only there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemPlace {
    /// A page, directory, root or census, at this byte of an object with pages.
    Map {
        /// The volume that wrote the object.
        volume: VolumeId,
        /// The attachment that wrote it.
        epoch: Epoch,
        /// The object's number.
        number: u64,
        /// Byte offset in it.
        offset: u32,
    },
    /// A page of the block map on a local disk.
    LocalPage(VolumeId, u64),
    /// The index of a segment on a local disk, kept for this volume.
    LocalIndex(SegmentId),
    /// The trace beside a snapshot.
    Trace(SnapshotId),
    /// The keys that a volume needs, in its manifest.
    Keys(VolumeId),
}

impl ItemPlace {
    fn encoded(self) -> Vec<u8> {
        let mut place = Vec::with_capacity(32);
        match self {
            ItemPlace::Map { volume, epoch, number, offset } => {
                place.extend_from_slice(b"m");
                place.extend_from_slice(&volume.0.to_le_bytes());
                place.extend_from_slice(&epoch.0.to_le_bytes());
                place.extend_from_slice(&number.to_le_bytes());
                place.extend_from_slice(&offset.to_le_bytes());
            }
            ItemPlace::LocalPage(volume, page) => {
                place.extend_from_slice(b"p");
                place.extend_from_slice(&volume.0.to_le_bytes());
                place.extend_from_slice(&page.to_le_bytes());
            }
            ItemPlace::LocalIndex(segment) => {
                place.extend_from_slice(b"i");
                place.extend_from_slice(&segment.volume.0.to_le_bytes());
                place.extend_from_slice(&segment.epoch.0.to_le_bytes());
                place.extend_from_slice(&segment.number.0.to_le_bytes());
            }
            ItemPlace::Trace(snapshot) => {
                place.extend_from_slice(b"t");
                place.extend_from_slice(&snapshot.0.to_le_bytes());
            }
            ItemPlace::Keys(volume) => {
                place.extend_from_slice(b"k");
                place.extend_from_slice(&volume.0.to_le_bytes());
            }
        }
        place
    }
}

impl VolumeKey {
    /// Seals `bytes` as what belongs at `place`. `salt` is fresh random bits.
    pub fn seal_item(&self, place: ItemPlace, salt: Salt, bytes: &[u8]) -> Vec<u8> {
        let (place, salt) = (place.encoded(), salt.0.to_le_bytes());
        let mut item = Vec::with_capacity(bytes.len() + ITEM_OVERHEAD_BYTES);
        item.extend_from_slice(&salt);
        item.extend_from_slice(bytes);
        // The key is new, so the one thing it ever seals can have the first nonce.
        let tag = seal(&self.derive(b"item", &place, &salt), nonce(0, 0), &place, &mut item[SALT_BYTES..]);
        item.extend_from_slice(&tag.to_le_bytes());
        item
    }

    /// What was sealed as belonging at `place`; `None` if this is not that, or was changed.
    pub fn open_item(&self, place: ItemPlace, item: &[u8]) -> Option<Vec<u8>> {
        let place = place.encoded();
        let (salt, sealed) = item.split_first_chunk::<SALT_BYTES>()?;
        let (bytes, tag) = split_tag(sealed)?;
        let mut bytes = bytes.to_vec();
        open(&self.derive(b"item", &place, salt), nonce(0, 0), &place, tag, &mut bytes).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::KEY_BYTES;
    use super::*;
    use crate::units::SegmentNumber;

    fn places() -> Vec<ItemPlace> {
        let segment = SegmentId { volume: VolumeId(1), epoch: Epoch(2), number: SegmentNumber(3) };
        let map = |number, offset| ItemPlace::Map { volume: VolumeId(1), epoch: Epoch(2), number, offset };
        vec![
            map(3, 4),
            map(3, 5),
            map(4, 4),
            ItemPlace::LocalPage(VolumeId(1), 2),
            ItemPlace::LocalPage(VolumeId(2), 1),
            ItemPlace::LocalIndex(segment),
            ItemPlace::Trace(SnapshotId(1)),
            ItemPlace::Keys(VolumeId(1)),
        ]
    }

    #[test]
    fn an_item_opens_at_its_place_alone() {
        let key = VolumeKey::new([1; KEY_BYTES]);
        for place in places() {
            let item = key.seal_item(place, Salt(5), b"what it holds");
            assert_eq!(item.len(), 13 + ITEM_OVERHEAD_BYTES);
            for other in places() {
                let opened = key.open_item(other, &item);
                assert_eq!(opened.as_deref(), (other == place).then_some(&b"what it holds"[..]), "{place:?} {other:?}");
            }
            assert_eq!(VolumeKey::new([2; KEY_BYTES]).open_item(place, &item), None);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let key = VolumeKey::new([1; KEY_BYTES]);
        let place = ItemPlace::Trace(SnapshotId(1));
        let item = key.seal_item(place, Salt(5), &[9; 40]);
        for at in 0..item.len() {
            for bit in 0..8 {
                let mut flipped = item.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(key.open_item(place, &flipped), None, "byte {at}");
            }
            assert_eq!(key.open_item(place, &item[..at]), None);
        }
        assert_ne!(key.seal_item(place, Salt(6), &[9; 40])[16..], item[16..], "another salt is another key");
    }
}

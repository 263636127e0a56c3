//! The keys of the local index (RocksDB). Big-endian, so that the order of keys is the order of what they name and
//! everything of one volume lies in one range. Pure: it converts and bounds. The table is in `design/read-cache.md`.

use crate::units::{FrameId, SegmentId, VolumeId};

/// The key of a volume's state.
pub fn volume_key(volume: VolumeId) -> [u8; 8] {
    volume.0.to_be_bytes()
}

/// The key of a page of a volume's block map, by the page's number.
pub fn page_key(volume: VolumeId, page: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&volume_key(volume));
    key[8..].copy_from_slice(&page.to_be_bytes());
    key
}

/// The number of the page that has this key; `None` if none has.
pub fn page_of_key(key: &[u8]) -> Option<u64> {
    key.get(8..)?.try_into().ok().map(u64::from_be_bytes)
}

/// The range that holds the keys of all pages of a volume: from the first on, up to but without the second.
pub fn page_keys(volume: VolumeId) -> (Vec<u8>, Vec<u8>) {
    let first = volume_key(volume).to_vec();
    let mut end = first.clone();
    end.extend_from_slice(&[0xff; 9]);
    (first, end)
}

/// The key of a segment's index.
pub fn segment_key(segment: SegmentId) -> [u8; 20] {
    let mut key = [0; 20];
    key[..8].copy_from_slice(&volume_key(segment.volume));
    key[8..12].copy_from_slice(&segment.epoch.0.to_be_bytes());
    key[12..].copy_from_slice(&segment.number.0.to_be_bytes());
    key
}

/// The key of a frame's slot in the read cache.
pub fn slot_key(frame: FrameId) -> [u8; 24] {
    let mut key = [0; 24];
    key[..20].copy_from_slice(&segment_key(frame.segment));
    key[20..].copy_from_slice(&frame.frame.to_be_bytes());
    key
}

/// The range that holds every slot key: from the first on, up to but without the second.
pub fn slot_keys() -> ([u8; 24], [u8; 25]) {
    ([0; 24], [0xff; 25])
}

/// The value that stands for a slot.
pub fn slot_value(slot: u64) -> [u8; 8] {
    slot.to_be_bytes()
}

/// The slot that a value stands for; `None` if it is not one.
pub fn slot_of_value(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, SegmentNumber};

    #[test]
    fn keys_are_ordered_like_what_they_name() {
        let segment = |volume, epoch, number| SegmentId {
            volume: VolumeId(volume),
            epoch: Epoch(epoch),
            number: SegmentNumber(number),
        };
        let mut segments = Vec::new();
        for volume in [0, 1, 255, 256, u64::MAX] {
            for epoch in [0, 255, 256, u32::MAX] {
                segments.extend([0, 255, 256, u64::MAX].map(|number| segment(volume, epoch, number)));
            }
        }
        for pair in segments.windows(2) {
            assert!(segment_key(pair[0]) < segment_key(pair[1]), "{pair:?}");
            let last = FrameId { segment: pair[0], frame: u32::MAX };
            let first = FrameId { segment: pair[1], frame: 0 };
            assert!(slot_key(last) < slot_key(first), "{pair:?}");
            let (from, to) = slot_keys();
            assert!(from.as_slice() <= slot_key(last).as_slice() && slot_key(first).as_slice() < to.as_slice());
        }
    }

    #[test]
    fn the_range_of_a_volume_holds_its_pages_and_no_others() {
        for volume in [0, 1, 0xff, u64::MAX - 1, u64::MAX] {
            let (first, end) = page_keys(VolumeId(volume));
            let inside = |id: u64, page: u64| {
                let key = page_key(VolumeId(id), page);
                first.as_slice() <= key.as_slice() && key.as_slice() < end.as_slice()
            };
            assert_eq!(page_of_key(&page_key(VolumeId(volume), 77)), Some(77));
            assert!(inside(volume, 0) && inside(volume, 77) && inside(volume, u64::MAX));
            assert!(volume == 0 || !inside(volume - 1, u64::MAX));
            assert!(volume == u64::MAX || !inside(volume + 1, 0));
        }
    }

    #[test]
    fn golden_bytes_of_a_slot() {
        let segment = SegmentId { volume: VolumeId(0x0102), epoch: Epoch(3), number: SegmentNumber(4) };
        let key = slot_key(FrameId { segment, frame: 5 });
        assert_eq!(key, [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 5]);
        assert_eq!(slot_value(0x0102), [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(slot_of_value(&slot_value(77)), Some(77));
        assert_eq!(slot_of_value(&[0; 7]), None);
    }
}

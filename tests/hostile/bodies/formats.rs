//! Decoders of bytes that are at hand as a whole. What is accepted must have one canonical form: encoding it again and reading that
//! gives the same.

use std::path::Path;

use bytes::Bytes;
use varve::format::cache::{CHUNK_BYTES, Slot, Superblock, entries_of_chunk};
use varve::format::index::slot_of_value;
use varve::format::lineage::SnapshotObject;
use varve::format::manifest::{Manifest, StoreRoot};
use varve::format::map_object::{self, MapObjectId, PageRef};
use varve::format::page::{decode_page, encode_page, page_of_row, row_of_page};
use varve::format::segment::{self as segments, HEADER_BYTES, IndexSeal, SegmentIndex};
use varve::format::trace::Trace;
use varve::keys::KeySource;
use varve::map::{MapPage, PageIndex};
use varve::seal::{Bundle, KEY_BYTES, VolumeKey};
use varve::segment::{apply_entry, open_frame, parse_object_tail};
use varve::settings::{FileSettings, parse_log_size, parse_name, parse_size, parse_transfer_size, parse_volume_size};
use varve::units::{Epoch, SegmentId, SegmentNumber, SnapshotId, VolumeId};
use varve::volume::LocalState;

/// The volume of all examples.
pub const VOLUME: VolumeId = VolumeId(7);
/// The segment of all examples.
pub const SEGMENT: SegmentId = SegmentId { volume: VOLUME, epoch: Epoch(2), number: SegmentNumber(5) };
/// The snapshot of all examples.
pub const SNAPSHOT: SnapshotId = SnapshotId(9);
/// Pages of an entry that it is applied to.
const PAGES_APPLIED: usize = 4;

/// A whole segment object.
pub fn segment(bytes: &[u8]) {
    let _ = segments::peek_id(bytes);
    let _ = segments::decode_header(SEGMENT, bytes);
    let Ok(index) = parse_object_tail(SEGMENT, bytes, bytes.len() as u64, IndexSeal::Plain) else { return };
    for (number, frame) in index.frames.iter().enumerate() {
        let end = frame.offset as usize + frame.stored_length as usize;
        let stored = bytes.get(frame.offset as usize..end).expect("frames lie before the index");
        let opened = open_frame(SEGMENT, number as u32, frame, &Bytes::copy_from_slice(stored), None);
        assert!(opened.is_err() || opened.is_ok_and(|plain| plain.len() == usize::from(frame.blocks) * 4096));
    }
    use_index(&index);
}

/// The copy of a segment's index that is kept in the local index.
pub fn local_segment_index(bytes: &[u8]) {
    let Some(length) = segments::announced_length(bytes) else { return };
    if let Ok(index) = parse_object_tail(SEGMENT, bytes, length, IndexSeal::Plain) {
        use_index(&index);
    }
}

fn use_index(index: &SegmentIndex) {
    let frames_end = index.frames.last().map_or(HEADER_BYTES as u32, |frame| frame.offset + frame.stored_length);
    let tail = segments::encode_tail(&index.header, &index.frames, &index.entries, frames_end.into(), IndexSeal::Plain)
        .unwrap();
    let length = u64::from(frames_end) + tail.len() as u64;
    let again =
        parse_object_tail(SEGMENT, &tail, length, IndexSeal::Plain).expect("what was accepted is accepted again");
    assert_eq!((&again.frames, &again.entries), (&index.frames, &index.entries));
    let mut page = MapPage::default();
    for entry in &index.entries {
        for (number, part) in PageIndex::parts_of(entry.range).take(PAGES_APPLIED) {
            apply_entry(&mut page, number, part, entry, SEGMENT);
        }
    }
    assert_eq!(decode_page(&encode_page(&page)).unwrap(), page);
    let _ = (index.frame_of(0), index.frame_of(u32::MAX), index.block_count(), index.memory_bytes());
}

/// The header of an object with pages.
pub fn map_header(bytes: &[u8]) {
    if let Ok(id) = map_object::decode_header(bytes) {
        assert_eq!(map_object::decode_header(&map_object::encode_header(id, false)).unwrap(), id);
    }
}

/// A directory of a checkpoint.
pub fn map_directory(bytes: &[u8]) {
    if let Ok(references) = map_object::decode_directory(bytes) {
        assert_eq!(map_object::decode_directory(&map_object::encode_directory(&references)).unwrap(), references);
    }
}

/// The root of a checkpoint.
pub fn map_root(bytes: &[u8]) {
    if let Ok(root) = map_object::decode_root(bytes) {
        assert_eq!(map_object::decode_root(&map_object::encode_root(&root)).unwrap(), root);
    }
}

/// A page of the block map.
pub fn map_page(bytes: &[u8]) {
    if let Ok(page) = decode_page(bytes) {
        assert_eq!(decode_page(&encode_page(&page)).unwrap(), page);
        let mut places = Vec::new();
        page.lookup(PageIndex(3), PageIndex(3).range(), &mut places);
        assert_eq!(places.iter().map(|place| place.range.count.0).sum::<u64>(), PageIndex(3).range().count.0);
    }
}

/// A page as the local index has it.
pub fn local_page(bytes: &[u8]) {
    if let Ok(page) = page_of_row(bytes) {
        assert_eq!(page_of_row(&row_of_page(&page)).unwrap(), page);
    }
}

/// The other values of the local index.
pub fn local_state(bytes: &[u8]) {
    let _ = slot_of_value(bytes).and_then(Slot::unpacked).map(|slot| (slot.bytes(), slot.position.chunk()));
    if let Some(state) = LocalState::decode(bytes) {
        assert_eq!(LocalState::decode(&state.encode()), Some(state));
    }
}

/// What a reference names: the reference's fields (20 bytes), then what is stored there.
pub fn map_stored(bytes: &[u8]) {
    let Some((fields, stored)) = bytes.split_first_chunk::<20>() else { return };
    let field = |at: usize| u32::from_le_bytes([fields[at], fields[at + 1], fields[at + 2], fields[at + 3]]);
    let object = MapObjectId { volume: VOLUME, epoch: Epoch(field(0)), number: 1 };
    let reference =
        PageRef { object, offset: field(4), stored_length: field(8), raw_length: field(12), crc: field(16) };
    if let Ok(raw) = map_object::open(&reference, stored, None) {
        assert_eq!(raw.len(), reference.raw_length as usize);
        map_page(&raw);
    }
}

/// The manifest of a volume.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(VOLUME, bytes) {
        assert_eq!(Manifest::decode(VOLUME, &manifest.encode().unwrap()).unwrap(), manifest);
        let _ = (manifest.is_shown(), manifest.moment().replayed().take(1000).count());
    }
}

/// The object of a snapshot.
pub fn snapshot_object(bytes: &[u8]) {
    if let Ok(object) = SnapshotObject::decode(SNAPSHOT, bytes) {
        assert_eq!(SnapshotObject::decode(SNAPSHOT, &object.encode().unwrap()).unwrap(), object);
        let _ = object.moment.replayed().take(1000).count();
    }
}

/// The trace beside a snapshot.
pub fn trace(bytes: &[u8]) {
    if let Ok(trace) = Trace::decode(SNAPSHOT, bytes) {
        assert_eq!(Trace::decode(SNAPSHOT, &trace.encode().unwrap()).unwrap(), trace);
        let _ = trace.runs.iter().map(|run| run.blocks().end().0).max();
    }
}

/// The key of [`sealed`] objects.
pub fn key() -> VolumeKey {
    VolumeKey::new([0x33; KEY_BYTES])
}

/// What is sealed: a segment, a trace, and the keys in a manifest, unwrapped already or not.
pub fn sealed(bytes: &[u8]) {
    let key = key();
    if let Ok(index) = parse_object_tail(SEGMENT, bytes, bytes.len() as u64, IndexSeal::With(&key)) {
        for (number, frame) in index.frames.iter().enumerate().take(4) {
            let stored = bytes.get(frame.offset as usize..).and_then(|rest| rest.get(..frame.stored_length as usize));
            let stored = Bytes::copy_from_slice(stored.unwrap_or_default());
            let _ = open_frame(SEGMENT, number as u32, frame, &stored, Some(&key));
        }
    }
    if let Ok((_, Some(item))) = Trace::peek(SNAPSHOT, bytes) {
        let _ = Trace::decode_sealed(SNAPSHOT, item, &key);
    }
    let _ = Bundle::unwrap(VOLUME, &key, bytes);
    if let Ok(bundle) = Bundle::decode(VOLUME, bytes) {
        assert_eq!(Bundle::decode(VOLUME, &bundle.encode(VOLUME)).unwrap(), bundle);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<KeySource>().map(|source| source.to_string());
    }
}

/// The header of a store.
pub fn store_root(bytes: &[u8]) {
    if let Ok(root) = StoreRoot::decode("memory:", bytes) {
        assert_eq!(StoreRoot::decode("memory:", &root.encode().unwrap()).unwrap(), root);
    }
}

/// A superblock of the read cache.
pub fn cache_superblock(bytes: &[u8]) {
    if let Some(superblock) = Superblock::decode(bytes) {
        assert_eq!(Superblock::decode(&superblock.encode()), Some(superblock));
    }
}

/// A chunk of the read cache.
pub fn cache_chunk(bytes: &[u8]) {
    let mut end = 0;
    for (offset, entry) in entries_of_chunk(5, 3, bytes) {
        assert!(offset >= end && offset + entry.payload.end <= bytes.len());
        end = offset + entry.payload.end;
        assert_eq!(entry.slot.position.0, 3 * CHUNK_BYTES + offset as u64);
        if bytes.len() as u64 <= CHUNK_BYTES {
            assert_eq!(Slot::unpacked(entry.slot.packed()), Some(entry.slot));
        }
    }
}

/// The settings file, and sizes and names as people write them.
pub fn settings_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = FileSettings::parse(&text, Path::new("varve.toml"));
    for line in text.lines() {
        let value = line.split('=').next_back().unwrap_or_default().trim().trim_matches('"');
        let _ = (parse_size(value), parse_volume_size(value), parse_log_size(value), parse_transfer_size(value));
        let _ = parse_name(value);
    }
}

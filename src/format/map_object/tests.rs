use super::*;
use crate::compression;
use crate::error::ErrorKind;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

fn reference(volume: u64, number: u64, offset: u32) -> PageRef {
    let object = MapObjectId { volume: VolumeId(volume), epoch: Epoch(2), number };
    PageRef { object, offset, stored_length: 10, raw_length: 30, crc: 99 }
}

fn root() -> Root {
    let directories = vec![(0, reference(1, 5, 40)), (7, reference(1, 4, 50)), (16_383, reference(9, 4, 60))];
    Root { epoch: Epoch(3), number: SegmentNumber(4), sequence: Sequence(500), size: ByteLen(1 << 40), directories }
}

#[test]
fn survive_the_way_through_bytes() {
    assert_eq!(decode_root(&encode_root(&root())).unwrap(), root());
    let directory = vec![(0, reference(1, 1, 40)), (1023, reference(1, 1, 50))];
    assert_eq!(decode_directory(&encode_directory(&directory)).unwrap(), directory);
    let id = MapObjectId { volume: VolumeId(7), epoch: Epoch(8), number: 9 };
    assert_eq!(decode_header(&encode_header(id, false)).unwrap(), id);
    let out_of_range = vec![(1024, reference(1, 1, 40))];
    assert!(decode_directory(&encode_directory(&out_of_range)).is_err());
}

#[test]
fn golden_bytes() {
    let id = MapObjectId { volume: VolumeId(7), epoch: Epoch(8), number: 9 };
    let header = encode_header(id, false);
    let expected: Vec<u8> = [
        &b"VRVM"[..],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0],
    ]
    .concat();
    assert_eq!(header[..36], expected);
    assert_eq!(header[36..], crc32c::crc32c(&expected).to_le_bytes());

    let table: Vec<u8> = [
        &[2, 0, 0, 0, 2, 0, 0, 0][..],
        &[1, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0],
        &[3, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0, 10, 0, 0, 0, 30, 0, 0, 0, 99, 0, 0, 0],
        &[0, 2, 0, 0, 0, 0, 0, 0, 50, 0, 0, 0, 10, 0, 0, 0, 30, 0, 0, 0, 99, 0, 0, 0],
    ]
    .concat();
    let directory = vec![(3, reference(5, 4, 40)), (512, reference(1, 6, 50))];
    assert_eq!(encode_directory(&directory), [&[1, 0, 0, 0, 0, 0, 0, 0][..], &table].concat());

    let root = Root {
        epoch: Epoch(3),
        number: SegmentNumber(4),
        sequence: Sequence(5),
        size: ByteLen(6),
        directories: directory,
    };
    let expected = [
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0][..],
        &[4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0],
        &table,
    ]
    .concat();
    assert_eq!(encode_root(&root), expected);
}

#[test]
fn references_in_a_manifest_are_readable() {
    let text = serde_json::to_string(&CheckpointRef { root: reference(7, 9, 40) }).unwrap();
    let expected = r#"{"root":{"object":{"volume":"vol_0000000000007","epoch":2,"number":9},"offset":40,"stored_length":10,"raw_length":30,"crc":99}}"#;
    assert_eq!(text, expected);
    assert_eq!(serde_json::from_str::<CheckpointRef>(&text).unwrap().root, reference(7, 9, 40));
}

/// The largest root there can be: all directories, each in an object of its own, and nothing regular about them.
fn scattered_root() -> Root {
    let mut random = SmallRng::seed_from_u64(9);
    let mut directories = References::new();
    for slot in 0..16_384u32 {
        let (stored_length, raw_length) = (random.random_range(2_000..20_000), random.random_range(20_000..45_000));
        let (offset, crc) = (random.random_range(40..16 << 20), random.random());
        let number = random.random_range(0..100_000);
        directories.push((slot, PageRef { offset, stored_length, raw_length, crc, ..reference(1, number, 40) }));
    }
    Root { directories, ..root() }
}

#[test]
fn a_root_of_the_largest_volume_stays_small_in_the_store_even_if_scattered() {
    let raw = encode_root(&scattered_root());
    assert!(raw.len() < RAW_BYTES_MAX as usize / 4);
    let stored = compress(raw.clone());
    assert!(stored.len() < 512 << 10, "{}", stored.len());
    let crc = crc32c::crc32c(&stored);
    let reference =
        PageRef { stored_length: stored.len() as u32, raw_length: raw.len() as u32, crc, ..reference(1, 1, 40) };
    assert_eq!(decode_root(&open(&reference, &stored, None).unwrap()).unwrap(), scattered_root());
}

#[test]
fn what_a_newer_version_wrote_is_refused_as_such() {
    let kind = |error: Error| error.kind();
    for (at, value) in [(0, 2), (4, 1)] {
        let mut bytes = encode_directory(&Vec::new());
        bytes[at] = value;
        assert_eq!(decode_directory(&bytes).map_err(kind), Err(ErrorKind::Unsupported));
        let mut bytes = encode_root(&root());
        bytes[at] = value;
        assert_eq!(decode_root(&bytes).map_err(kind), Err(ErrorKind::Unsupported));
    }
    // Compatible features are passed over.
    let mut bytes = encode_root(&root());
    bytes[8] = 0xff;
    assert_eq!(decode_root(&bytes).unwrap(), root());
}

#[test]
fn references_that_make_no_sense_are_refused() {
    let sound = reference(1, 1, 40);
    assert!(check_reference(&sound).is_ok());
    for unsound in [
        PageRef { offset: 39, ..sound },
        PageRef { offset: u32::MAX, ..sound },
        PageRef { stored_length: 0, ..sound },
        PageRef { stored_length: sound.raw_length + 33, ..sound },
        PageRef { raw_length: RAW_BYTES_MAX + 1, ..sound },
    ] {
        assert_eq!(check_reference(&unsound).unwrap_err().kind(), ErrorKind::Damaged, "{unsound:?}");
        assert!(decode_directory(&encode_directory(&vec![(0, unsound)])).is_err(), "{unsound:?}");
        assert!(open(&unsound, &[0; 10], None).is_err(), "{unsound:?}");
    }
    let large = Root { size: ByteLen(VOLUME_BYTES_MAX + 1), ..root() };
    assert!(decode_root(&encode_root(&large)).is_err());
}

#[test]
fn counts_are_checked_before_memory_is_set_aside() {
    for at in [8, 12] {
        let mut bytes = encode_directory(&vec![(0, reference(1, 1, 40))]);
        bytes[at..at + 4].fill(0xff);
        assert_eq!(decode_directory(&bytes).unwrap_err().kind(), ErrorKind::Damaged);
    }
}

#[test]
fn a_bomb_is_not_unpacked_beyond_what_is_announced() {
    let stored = compression::compress(&vec![0; 64 << 20]).unwrap();
    let crc = crc32c::crc32c(&stored);
    let bomb = PageRef { stored_length: stored.len() as u32, raw_length: 100_000, crc, ..reference(1, 1, 40) };
    assert_eq!(open(&bomb, &stored, None).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn a_changed_byte_of_a_header_is_noticed() {
    let intact = encode_header(MapObjectId { volume: VolumeId(7), epoch: Epoch(8), number: 9 }, false);
    for at in 0..intact.len() {
        let mut bytes = intact.clone();
        bytes[at] ^= 4;
        assert!(decode_header(&bytes).is_err(), "byte {at}");
        assert!(decode_header(&intact[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn hostile_bytes_are_refused() {
    let mut random = SmallRng::seed_from_u64(3);
    let intact = encode_root(&root());
    for _ in 0..20_000 {
        let mut bytes = intact.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        bytes.truncate(random.random_range(0..=bytes.len()));
        if let Ok(decoded) = decode_root(&bytes) {
            assert!(decoded.directories.len() <= 3);
        }
        assert!(decode_header(&bytes).is_err());
        assert!(decode_directory(&bytes).map_or(true, |references| references.len() <= 3));
    }
    let bomb = PageRef { raw_length: RAW_BYTES_MAX, ..reference(1, 1, 0) };
    assert!(open(&bomb, &[0; 10], None).is_err());
}

use super::*;

fn frame() -> FrameId {
    let segment =
        SegmentId { volume: VolumeId(0x1112_1314_1516_1718), epoch: Epoch(0x2122_2324), number: SegmentNumber(0x31) };
    FrameId { segment, frame: 0x41 }
}

const RING: u64 = 0x5152_5354_5556_5758;

#[test]
fn golden_bytes_of_an_entry() {
    let mut bytes = Vec::new();
    let slot = encode_entry(RING, RingPosition(0x40), frame(), b"payload", &mut bytes);
    assert_eq!(slot, Slot { position: RingPosition(0x40), granules: 2 });
    let hex: String = bytes[..72].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "76736c74010000004000000000000000585756555453525118171615141312113100000000000000\
         2423222141000000070000000000000000000000450292da7061796c6f616400"
    );
    assert_eq!(bytes.len(), 128);
    assert!(bytes[71..].iter().all(|&byte| byte == 0));
}

#[test]
fn golden_bytes_of_a_superblock() {
    let superblock = Superblock { number: 3, ring: RING, chunks: 100, next_chunk: 0x0203 };
    let bytes = superblock.encode();
    let hex: String = bytes[..64].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "766172766563616301000000000010000300000000000000585756555453525164000000000000000\
         3020000000000000000000000000000\
         00000000205d5510"
    );
    assert_eq!(bytes.len() as u64, SUPERBLOCK_BYTES);
    assert_eq!(Superblock::decode(&bytes), Some(superblock));
}

#[test]
fn every_flipped_bit_of_an_entry_is_found() {
    let mut bytes = Vec::new();
    encode_entry(RING, RingPosition(128), frame(), &[7; 100], &mut bytes);
    assert!(decode_entry(RING, RingPosition(128), &bytes).is_some_and(|entry| entry.frame == frame()));
    for bit in 0..(HEADER_BYTES + 100) * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_entry(RING, RingPosition(128), &flipped), None, "bit {bit}");
    }
    for length in 0..HEADER_BYTES + 100 {
        assert_eq!(decode_entry(RING, RingPosition(128), &bytes[..length]), None, "cut to {length}");
    }
    assert_eq!(decode_entry(RING, RingPosition(192), &bytes), None, "another position");
    assert_eq!(decode_entry(RING + 1, RingPosition(128), &bytes), None, "another ring");
}

#[test]
fn every_flipped_bit_of_a_superblock_is_found() {
    let bytes = Superblock { number: 3, ring: RING, chunks: 100, next_chunk: 7 }.encode();
    for bit in 0..64 * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Superblock::decode(&flipped), None, "bit {bit}");
    }
    assert_eq!(Superblock::decode(&bytes[..63]), None);
}

#[test]
fn a_slot_survives_the_way_through_an_integer() {
    let last = RingPosition(RingPosition::of_chunk(CHUNKS_MAX).0 - GRANULE_BYTES);
    for (position, granules) in [(RingPosition(0), 1), (RingPosition(64), ENTRY_GRANULES_MAX), (last, 1)] {
        let slot = Slot { position, granules };
        assert_eq!(Slot::unpacked(slot.packed()), Some(slot));
    }
    assert_eq!(Slot::unpacked(0), None, "no granules");
    let crossing = Slot { position: RingPosition(CHUNK_BYTES - 64), granules: 2 };
    assert_eq!(Slot::unpacked(crossing.packed()), None, "crosses the end of a chunk");
}

#[test]
fn a_chunk_gives_its_entries_and_passes_over_damage() {
    let chunk = 5;
    let mut bytes = Vec::new();
    let mut slots = Vec::new();
    for length in [0, 1, 64, 5000, 64] {
        let position = RingPosition(RingPosition::of_chunk(chunk).0 + bytes.len() as u64);
        slots.push(encode_entry(RING, position, frame(), &vec![length as u8; length], &mut bytes));
    }
    bytes.resize(CHUNK_BYTES as usize, 0);
    let found = |bytes: &[u8]| entries_of_chunk(RING, chunk, bytes).map(|(_, entry)| entry.slot).collect::<Vec<_>>();
    assert_eq!(found(&bytes), slots);
    assert_eq!(entries_of_chunk(RING, chunk + 1, &bytes).count(), 0, "another round");
    let damaged = (slots[2].position.0 - RingPosition::of_chunk(chunk).0) as usize + 48;
    bytes[damaged] ^= 1;
    assert_eq!(found(&bytes), [&slots[..2], &slots[3..]].concat());
}

#[test]
fn payloads_have_a_bound() {
    assert_eq!(entry_bytes(0), Some(64));
    assert_eq!(entry_bytes(1), Some(128));
    assert_eq!(entry_bytes(PAYLOAD_BYTES_MAX), Some(ENTRY_GRANULES_MAX * GRANULE_BYTES));
    assert_eq!(entry_bytes(PAYLOAD_BYTES_MAX + 1), None);
}

//! Golden bytes were made by a program of its own (Python, from the tables in `design/write-log.md`), not by this code.

use super::*;

const RING: ByteLen = ByteLen(128 << 10);

fn identity() -> LogIdentity {
    LogIdentity {
        store: StoreId(0x0102_0304_0506_0708),
        volume: VolumeId(0x1112_1314_1516_1718),
        epoch: Epoch(7),
        token: Token(0x2122_2324_2526_2728_292a_2b2c_2d2e_2f30),
        attached_at: UnixMillis(1_700_000_000_000),
    }
}

fn superblock() -> Superblock {
    Superblock {
        generation: 5,
        identity: identity(),
        created_at: UnixMillis(1_600_000_000_000),
        ring_length: RING,
        tail: LogOffset(0x2_0040),
        tail_sequence: Sequence(42),
        tail_incarnation: 0xaaaa_bbbb_cccc_dddd,
        incarnation: 0x1111_2222_3333_4444,
        durable_to: LogOffset(0x2_1000),
        sealed: false,
    }
}

fn header(kind: RecordKind, start: u64, count: u64) -> RecordHeader {
    RecordHeader {
        kind,
        epoch: Epoch(7),
        sequence: Sequence(42),
        incarnation: 0x1111_2222_3333_4444,
        range: BlockRange::new(Lba(start), BlockCount(count)),
        offset: LogOffset(0x2_0040),
        first_crc: 0,
        mark: Some(LogOffset(0x2_0000)),
        sealed: false,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_superblock() {
    let bytes = encode_superblock(&superblock());
    assert_eq!(
        hex(&bytes[..136]),
        "76617276656c6f672ecb82240100000000000000000000000500000000000000080706050403020118171615141312110700\
         000000000000302f2e2d2c2b2a29282726252423222100806e87740100000068e5cf8b010000000002000000000040000200\
         000000002a00000000000000ddddccccbbbbaaaa44443333222211110010020000000000"
    );
    assert!(bytes[136..].iter().all(|&byte| byte == 0));
    assert_eq!(decode_superblock(&bytes).unwrap(), superblock());
}

#[test]
fn golden_records() {
    let mut data = vec![0x5a; 4096];
    data.extend_from_slice(&[0xa5; 4096]);
    let mut out = Vec::new();
    encode_write(&header(RecordKind::Write, 9, 2), &data, None, &mut out);
    assert_eq!(out.len(), 128);
    assert_eq!(
        hex(&out[..72]),
        "76726563ac25c52201000000070000002a000000000000004444333322221111090000000000000002000000000000004000\
         020000000000498cf13701000000d333c98a00000000"
    );
    assert!(out[68..].iter().all(|&byte| byte == 0));
    let back = peek_header(out.first_chunk().unwrap(), LogOffset(0x2_0040), RING).unwrap();
    assert_eq!(back, RecordHeader { first_crc: block_crc(&data[..4096]), ..header(RecordKind::Write, 9, 2) });
    assert!(header_verifies(&out));
    assert_eq!(expected_crc(&out, 1), Some(block_crc(&data[4096..])));
    assert_eq!(expected_crc(&out, 1 << 60), None);

    let mut zero = Vec::new();
    encode_zero(&header(RecordKind::Zero, 9, 1 << 30), None, &mut zero);
    assert_eq!(
        hex(&zero),
        "767265637b299a2102000000070000002a000000000000004444333322221111090000000000000000000040000000004000\
         0200000000000000000001000000"
    );

    let fence = encode_fence(&header(RecordKind::Fence, 0, 0), &FenceBody { previous: 3, identity: identity() });
    assert_eq!(
        hex(&fence[..112]),
        "76726563a4cf421e03000000070000002a000000000000004444333322221111000000000000000000000000000000004000\
         02000000000000000000010000000300000000000000302f2e2d2c2b2a292827262524232221080706050403020118171615\
         141312110068e5cf8b010000"
    );
    assert!(fence[112..].iter().all(|&byte| byte == 0));
    assert_eq!(decode_fence(&fence), FenceBody { previous: 3, identity: identity() });
}

#[test]
fn spans_are_aligned_and_bounded() {
    assert_eq!(write_span(1, false), 64 + 4096);
    assert_eq!(write_span(2, false), 128 + 8192);
    assert_eq!(write_span(17, false), 128 + 17 * 4096);
    assert_eq!(write_span(18, false), 192 + 18 * 4096);
    for blocks in 1..200 {
        assert!(write_span(blocks, false).is_multiple_of(RECORD_ALIGN));
    }
    let pad = header(RecordKind::Pad, 0, 0);
    assert_eq!(pad.end(RING).0 % RING.0, 0);
}

/// Any bytes decode to nothing or to something bounded; no flipped bit goes unnoticed.
#[test]
fn l6_every_flipped_bit_of_a_header_or_superblock_is_noticed() {
    let whole = encode_superblock(&superblock());
    for bit in 0..SUPERBLOCK_BYTES * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_superblock(&bytes).is_err(), "bit {bit}");
    }
    let mut record = Vec::new();
    encode_write(&header(RecordKind::Write, 9, 2), &[1; 8192], None, &mut record);
    for bit in 0..record.len() * 8 {
        let mut bytes = record.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let claim = peek_header(bytes.first_chunk().unwrap(), LogOffset(0x2_0040), RING);
        let verified = claim.is_some_and(|claim| {
            let known = HEADER_BYTES + claim.extension_bytes();
            bytes.get(..known).is_some_and(header_verifies)
        });
        assert!(!verified, "bit {bit}");
    }
}

#[test]
fn hostile_headers_are_bounded() {
    use rand::{Rng, SeedableRng};
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    for _ in 0..200_000 {
        let mut bytes = [0; HEADER_BYTES];
        random.fill_bytes(&mut bytes);
        bytes[..4].copy_from_slice(b"vrec");
        bytes[8] %= 6;
        bytes[9..12].fill(0);
        let offset = LogOffset(u64::from(bytes[60]) * 64);
        put(&mut bytes, 48, offset.0.to_le_bytes());
        if bytes[13] < 128 {
            bytes[34..48].fill(0);
            bytes[42..48].fill(0);
        }
        if let Some(header) = peek_header(&bytes, offset, RING) {
            assert!(header.span(RING) <= RING.0);
            assert!(header.mark.is_none_or(|mark| mark <= offset));
            assert!(header.range.count.0 == 0 || header.range.end().byte_offset() > 0);
        }
    }
}

#[test]
fn s7_a_newer_version_is_refused_with_a_message() {
    let mut bytes = encode_superblock(&superblock());
    bytes[12] = 2;
    let crc = crc32c::crc32c(&bytes[12..]);
    put(bytes.as_mut_slice(), 8, crc.to_le_bytes());
    let error = decode_superblock(&bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("version 2"), "{error}");
}

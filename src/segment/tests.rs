use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

use super::*;
use crate::error::Result;
use crate::format::segment::{Codec, EntryKind, IndexSeal, SegmentHeader, SegmentIndex};
use crate::map::SegmentPlace;
use crate::seal::test_key as key;
use crate::units::*;

fn header(seal: bool) -> SegmentHeader {
    SegmentHeader {
        id: SegmentId { volume: VolumeId(9), epoch: Epoch(2), number: SegmentNumber(5) },
        token: Token(77),
        first: Sequence(100),
        last: Sequence(180),
        created_at: UnixMillis(1_700_000_000_000),
        seal,
        salt: None,
    }
}

fn content(lba: u64, random: bool) -> Vec<u8> {
    let mut block = vec![0; BLOCK_SIZE as usize];
    if random {
        SmallRng::seed_from_u64(lba).fill_bytes(&mut block);
    } else {
        block.fill(lba as u8);
    }
    block
}

/// Reads the index of an object with the key that these tests seal with.
fn parse(id: SegmentId, object: &[u8]) -> Result<SegmentIndex> {
    parse_object_tail(id, object, object.len() as u64, IndexSeal::of(key().as_deref()))
}

fn build(runs: &[(u64, u64, bool)]) -> BuiltSegment {
    let mut builder = SegmentBuilder::new(header(false), BlockCount(64), key());
    for &(start, count, random) in runs {
        builder
            .push_data(BlockRange::new(Lba(start), BlockCount(count)), |from, buffer| {
                for (step, block) in buffer.chunks_mut(BLOCK_SIZE as usize).enumerate() {
                    block.copy_from_slice(&content(start + from + step as u64, random));
                }
                Ok(())
            })
            .unwrap();
    }
    builder.push_zero(BlockRange::new(Lba(1 << 30), BlockCount(1 << 20)));
    builder.finish().unwrap()
}

fn read_block(segment: &BuiltSegment, lba: u64) -> Option<Vec<u8>> {
    let id = segment.index.header.id;
    for entry in &segment.index.entries {
        let (start, end) = (entry.range.start.0, entry.range.end().0);
        if let EntryKind::Data { block } = entry.kind
            && (start..end).contains(&lba)
        {
            let (number, frame, within) = segment.index.frame_of(block + (lba - start) as u32)?;
            let stored = segment.bytes.slice(frame.offset as usize..(frame.offset + frame.stored_length) as usize);
            let plain = open_frame(id, number, frame, &stored, key().as_deref()).unwrap();
            return Some(plain[within * BLOCK_SIZE as usize..][..BLOCK_SIZE as usize].to_vec());
        }
    }
    None
}

#[test]
fn what_was_packed_is_read_back() {
    let runs = [(3, 1, false), (10, 37, true), (100, 80, false), (4000, 9, true)];
    let segment = build(&runs);
    let parsed = parse(header(false).id, &segment.bytes).unwrap();
    assert_eq!(parsed, segment.index);
    for (start, count, random) in runs {
        for lba in start..start + count {
            assert_eq!(read_block(&segment, lba), Some(content(lba, random)), "block {lba}");
        }
    }
    let codecs: Vec<Codec> = parsed.frames.iter().map(|frame| frame.codec).collect();
    assert!(codecs.contains(&Codec::Raw) && codecs.contains(&Codec::Zstd), "{codecs:?}");
}

#[test]
fn a_seal_is_an_empty_segment() {
    let bytes = build_seal(header(true), key().as_deref()).unwrap();
    let index = parse(header(true).id, &bytes).unwrap();
    assert!(index.header.seal && index.frames.is_empty() && index.entries.is_empty());
    assert_eq!(index.header.last, Sequence(180));
}

#[test]
fn moved_entries_keep_the_old_place() {
    let old = SegmentPlace { segment: SegmentId { volume: VolumeId(4), ..header(false).id }, block: 12 };
    let mut builder = SegmentBuilder::new(header(false), BlockCount(1), key());
    builder
        .push_moved(BlockRange::new(Lba(5), BlockCount(2)), old, |_, buffer| {
            buffer.fill(1);
            Ok(())
        })
        .unwrap();
    let segment = builder.finish().unwrap();
    let parsed = parse(header(false).id, &segment.bytes).unwrap();
    assert_eq!(parsed.entries[0].kind, EntryKind::Moved { block: 0, old });
}

#[test]
fn every_flipped_bit_is_noticed_or_harmless() {
    let segment = build(&[(3, 12, true)]);
    let id = header(false).id;
    let mut random = SmallRng::seed_from_u64(1);
    for position in 0..segment.bytes.len() {
        let mut bytes = segment.bytes.to_vec();
        bytes[position] ^= 1 << random.random_range(0..8);
        let damaged = Bytes::from(bytes);
        let frames_end = segment.index.frames.last().map(|f| (f.offset + f.stored_length) as usize).unwrap();
        match parse(id, &damaged) {
            Err(_) => assert!(position >= frames_end),
            Ok(index) => {
                assert!(position < frames_end);
                let hurt = index
                    .frames
                    .iter()
                    .enumerate()
                    .find(|(_, f)| (f.offset as usize..(f.offset + f.stored_length) as usize).contains(&position));
                if let Some((number, frame)) = hurt {
                    let stored = damaged.slice(frame.offset as usize..(frame.offset + frame.stored_length) as usize);
                    assert!(
                        open_frame(id, number as u32, frame, &stored, key().as_deref()).is_err(),
                        "byte {position}"
                    );
                }
            }
        }
    }
}

#[test]
fn hostile_bytes_are_refused_without_great_allocations() {
    let segment = build(&[(3, 12, false)]);
    let id = header(false).id;
    let mut random = SmallRng::seed_from_u64(7);
    for _ in 0..2000 {
        let mut bytes = segment.bytes.to_vec();
        bytes.truncate(random.random_range(0..=bytes.len()));
        for _ in 0..random.random_range(0..4) {
            if !bytes.is_empty() {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random_range(0..=255);
            }
        }
        let changed = bytes != segment.bytes;
        let parsed = parse(id, &bytes);
        assert!(!changed || parsed.is_err() || parsed.is_ok_and(|index| index == segment.index));
    }
    let other = SegmentId { number: SegmentNumber(6), ..id };
    assert!(parse(other, &segment.bytes).is_err());
}

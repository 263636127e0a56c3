//! A page of the block map as bytes: in checkpoints as it is, in RocksDB with a checksum in front.
//!
//! ```text
//! version u8 (1), reserved u8, segments u16, extents u16, reserved u16
//! segments x { volume u64, number u64, epoch u32 }
//! extents  x { offset u16, count u16, segment u16, reserved u16, block u32 }
//! ```

use crate::error::{Error, Result};
use crate::format::codec::{Reader, Writer};
use crate::map::{MapPage, PageExtent};
use crate::units::{Epoch, SegmentId, SegmentNumber, VolumeId};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 8;
const SEGMENT_BYTES: usize = 20;
const EXTENT_BYTES: usize = 12;

/// The page as bytes.
pub fn encode_page(page: &MapPage) -> Vec<u8> {
    let (segments, extents) = page.parts();
    let mut out = Writer::with_capacity(HEADER_BYTES + segments.len() * SEGMENT_BYTES + extents.len() * EXTENT_BYTES);
    // A page has at most 256 extents, and no more segments than extents.
    out.u8(VERSION).u8(0).u16(segments.len() as u16).u16(extents.len() as u16).u16(0);
    for segment in segments {
        out.u64(segment.volume.0).u64(segment.number.0).u32(segment.epoch.0);
    }
    for extent in extents {
        out.u16(extent.offset).u16(extent.count).u16(extent.segment).u16(0).u32(extent.block);
    }
    out.bytes
}

/// Reads a page from its bytes.
///
/// # Errors
/// `Damaged`.
pub fn decode_page(bytes: &[u8]) -> Result<MapPage> {
    let mut input = Reader::new("a page of the block map", bytes);
    let version = input.u8()?;
    input.check_version(u16::from(version), u16::from(VERSION), 0)?;
    input.u8()?;
    let (segment_count, extent_count) = (usize::from(input.u16()?), usize::from(input.u16()?));
    input.u16()?;
    input.expect_items(segment_count, SEGMENT_BYTES)?;
    let mut segments = Vec::with_capacity(segment_count);
    for _ in 0..segment_count {
        let (volume, number) = (VolumeId(input.u64()?), SegmentNumber(input.u64()?));
        segments.push(SegmentId { volume, number, epoch: Epoch(input.u32()?) });
    }
    input.expect_items(extent_count, EXTENT_BYTES)?;
    let mut extents = Vec::with_capacity(extent_count);
    for _ in 0..extent_count {
        let (offset, count, segment) = (input.u16()?, input.u16()?, input.u16()?);
        input.u16()?;
        extents.push(PageExtent { offset, count, segment, block: input.u32()? });
    }
    if input.remaining() > 0 {
        return Err(input.damaged("more follows than it announces"));
    }
    MapPage::from_parts(segments, extents).ok_or_else(|| input.damaged("its extents contradict each other"))
}

/// The page as bytes with their CRC32C in front, to be kept locally.
pub fn row_of_page(page: &MapPage) -> Vec<u8> {
    let bytes = encode_page(page);
    let mut out = Writer::with_capacity(4 + bytes.len());
    out.u32(crc32c::crc32c(&bytes)).put(&bytes);
    out.bytes
}

/// Reads a page that was kept locally.
///
/// # Errors
/// `Damaged`.
pub fn page_of_row(bytes: &[u8]) -> Result<MapPage> {
    let mut input = Reader::new("a local page of the block map", bytes);
    let crc = input.u32()?;
    let page = input.take(input.remaining())?;
    if crc32c::crc32c(page) != crc {
        return Err(damaged_row());
    }
    decode_page(page)
}

/// What is said of a page that was kept locally and is not what was kept.
pub fn damaged_row() -> Error {
    Error::damaged(
        "a local page of the block map is damaged: detach the volume if it is attached, remove the index directory, and attach again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::SegmentPlace;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    fn page() -> MapPage {
        let mut page = MapPage::default();
        for (offset, count, number, block) in [(0, 10, 5, 100), (20, 1, 6, 0), (200, 56, 5, 7)] {
            let segment = SegmentId { volume: VolumeId(1), epoch: Epoch(2), number: SegmentNumber(number) };
            page.set(offset, count, Some(SegmentPlace { segment, block }));
        }
        page
    }

    #[test]
    fn golden_bytes() {
        let mut page = MapPage::default();
        let segment = SegmentId { volume: VolumeId(1), epoch: Epoch(2), number: SegmentNumber(3) };
        page.set(4, 5, Some(SegmentPlace { segment, block: 6 }));
        let expected: Vec<u8> = [
            &[1, 0, 1, 0, 1, 0, 0, 0][..],
            &[1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0],
            &[4, 0, 5, 0, 0, 0, 0, 0, 6, 0, 0, 0],
        ]
        .concat();
        assert_eq!(encode_page(&page), expected);
    }

    #[test]
    fn survives_the_way_through_bytes_and_notices_damage() {
        let page = page();
        assert_eq!(decode_page(&encode_page(&page)).unwrap(), page);
        let sealed = row_of_page(&page);
        assert_eq!(page_of_row(&sealed).unwrap(), page);
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 16;
            assert!(page_of_row(&damaged).is_err(), "byte {at}");
            assert!(page_of_row(&sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn hostile_bytes_are_refused_or_make_a_page_with_its_own_encoding() {
        let mut random = SmallRng::seed_from_u64(4);
        let intact = encode_page(&page());
        for _ in 0..50_000 {
            let mut bytes = intact.clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = if random.random() { random.random() } else { bytes[at] ^ 1 };
            }
            if random.random_range(0..4) == 0 {
                bytes.truncate(random.random_range(0..=bytes.len()));
            }
            if let Ok(decoded) = decode_page(&bytes) {
                assert_eq!(decode_page(&encode_page(&decoded)).unwrap(), decoded);
                assert!(encode_page(&decoded).len() == bytes.len());
            }
        }
        assert_eq!(decode_page(&[2; 40]).unwrap_err().kind(), crate::error::ErrorKind::Unsupported);
    }
}

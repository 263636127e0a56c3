//! The quantities and names of varve, one type each, so that a block number can never stand where a
//! byte length is meant.
//!
//! Floor 0: everything above speaks in these words, and this file knows nothing of what is above it.
//! Types carry their unit in the name or in the doc comment; arithmetic that could leave the type is
//! checked by the caller (release builds keep overflow checks on).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Bytes in one block, the unit of mapping.
pub const BLOCK_SIZE: u64 = 4096;
/// Binary logarithm of [`BLOCK_SIZE`].
pub const BLOCK_SHIFT: u32 = 12;

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

quantity!(
    /// A logical block address: the number of a 4 KiB block of a volume, counted from 0.
    Lba,
    u64
);
quantity!(
    /// A number of 4 KiB blocks.
    BlockCount,
    u64
);
quantity!(
    /// A number of bytes.
    ByteLen,
    u64
);
quantity!(
    /// A place in the sequence of a volume: the number of a record, counted from 1. 0 means "before
    /// the first record".
    Sequence,
    u64
);
quantity!(
    /// The number of an attachment. The holder of the newest one is the owner. 0 means "never attached".
    Epoch,
    u32
);
quantity!(
    /// The number of a segment within its epoch, counted from 0 without holes.
    SegmentNumber,
    u64
);
quantity!(
    /// A byte position in the endless stream that a log ring holds the newest part of. It only grows;
    /// its place in the file is the remainder by the ring's length.
    LogOffset,
    u64
);
quantity!(
    /// Milliseconds since 1970-01-01 UTC, for people to read; nothing is decided by it.
    UnixMillis,
    u64
);

/// 9999-12-31T23:59:59Z, beyond which a date has no usual form.
const DATES_END_MILLIS: u64 = 253_402_300_799_000;

impl UnixMillis {
    /// The second as a date: `2026-11-21T04:23:58Z`. What lies beyond the year 9999, which only damage can bring about, is
    /// told as a number.
    pub fn date(self) -> String {
        if self.0 > DATES_END_MILLIS {
            return format!("{} ms after 1970", self.0);
        }
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(self.0);
        humantime::format_rfc3339_seconds(at).to_string()
    }
}

impl Lba {
    /// The block that contains the byte at `offset` of the volume.
    pub fn containing(offset: u64) -> Self {
        Lba(offset >> BLOCK_SHIFT)
    }

    /// The byte offset at which this block begins.
    pub fn byte_offset(self) -> u64 {
        self.0 << BLOCK_SHIFT
    }

    /// The block `count` blocks further on.
    pub fn plus(self, count: BlockCount) -> Self {
        Lba(self.0 + count.0)
    }
}

impl BlockCount {
    /// The bytes in this many blocks.
    pub fn bytes(self) -> ByteLen {
        ByteLen(self.0 << BLOCK_SHIFT)
    }
}

impl ByteLen {
    /// The number of blocks needed to hold this many bytes.
    pub fn blocks_rounded_up(self) -> BlockCount {
        BlockCount(self.0.div_ceil(BLOCK_SIZE))
    }
}

impl Sequence {
    /// The place right after this one.
    pub fn next(self) -> Self {
        Sequence(self.0 + 1)
    }
}

impl Epoch {
    /// The epoch of the next attachment.
    pub fn next(self) -> Self {
        Epoch(self.0 + 1)
    }
}

impl SegmentNumber {
    /// The number of the next segment of the same epoch.
    pub fn next(self) -> Self {
        SegmentNumber(self.0 + 1)
    }
}

/// A run of consecutive blocks of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRange {
    /// First block.
    pub start: Lba,
    /// Number of blocks.
    pub count: BlockCount,
}

impl BlockRange {
    /// The range of `count` blocks from `start`.
    pub fn new(start: Lba, count: BlockCount) -> Self {
        BlockRange { start, count }
    }

    /// The block after the last one.
    pub fn end(self) -> Lba {
        self.start.plus(self.count)
    }

    /// The smallest range of whole blocks that covers `length` bytes at byte `offset`.
    pub fn covering(offset: u64, length: u64) -> Self {
        let start = offset >> BLOCK_SHIFT;
        let end = (offset + length).div_ceil(BLOCK_SIZE);
        BlockRange::new(Lba(start), BlockCount(end - start))
    }
}

/// The name of one segment: who wrote it, as which attachment, and its place there. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    /// The volume whose sequence the segment is a part of.
    pub volume: VolumeId,
    /// The attachment that wrote it.
    pub epoch: Epoch,
    /// Its place among the segments of that epoch.
    pub number: SegmentNumber,
}

impl SegmentId {
    /// Where blocks lie of which nobody knows any more where they are: the page of the block map that knew it was damaged for good.
    /// No volume has the id 0.
    pub const LOST: SegmentId = SegmentId { volume: VolumeId(0), epoch: Epoch(0), number: SegmentNumber(0) };

    /// True of the place of lost blocks.
    pub fn is_lost(self) -> bool {
        self == SegmentId::LOST
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.volume, self.epoch, self.number)
    }
}

/// The name of one frame of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId {
    /// The segment.
    pub segment: SegmentId,
    /// Which of its frames, counted from 0.
    pub frame: u32,
}

/// The letters of an id: Crockford's base 32, lower case (no i, l, o, u).
const ID_ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Letters of an id after its prefix: 13 times 5 bits hold 64.
const ID_LETTERS: usize = 13;

fn write_id(f: &mut fmt::Formatter<'_>, prefix: &str, value: u64) -> fmt::Result {
    f.write_str(prefix)?;
    for position in (0..ID_LETTERS).rev() {
        let digit = (value >> (5 * position)) & 31;
        write!(f, "{}", char::from(ID_ALPHABET[digit as usize]))?;
    }
    Ok(())
}

fn parse_id(what: &str, prefix: &str, text: &str) -> Result<u64> {
    let malformed = || {
        Error::invalid(format!(
            "'{}' is not the id of a {what}: it has the form {prefix}<{ID_LETTERS} letters or digits>",
            text.escape_default()
        ))
    };
    let letters = text.strip_prefix(prefix).ok_or_else(malformed)?;
    if letters.len() != ID_LETTERS {
        return Err(malformed());
    }
    let mut value: u64 = 0;
    for letter in letters.bytes() {
        let digit = ID_ALPHABET.iter().position(|&known| known == letter).ok_or_else(malformed)?;
        if value >> 59 != 0 {
            return Err(malformed());
        }
        value = (value << 5) | digit as u64;
    }
    Ok(value)
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_id(f, $prefix, self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                parse_id($what, $prefix, text).map($name)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

identifier!(
    /// The id of a volume, `vol_` and 13 letters. Drawn at random and never reused: the manifest is
    /// created only if absent.
    VolumeId,
    "volume",
    "vol_"
);
identifier!(
    /// The id of a snapshot, `vs_` and 13 letters.
    SnapshotId,
    "snapshot",
    "vs_"
);
identifier!(
    /// The id of a store, `store_` and 13 letters: tells one store from another that is mounted at the
    /// same address.
    StoreId,
    "store",
    "store_"
);

/// 128 random bits that name one attachment (or one manifest write), so that its work can be told
/// from any other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u128);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Token {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        u128::from_str_radix(text, 16)
            .ok()
            .filter(|_| text.len() == 32)
            .map(Token)
            .ok_or_else(|| Error::invalid("a token has 32 hexadecimal digits"))
    }
}

impl Serialize for Token {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_the_way_through_text() {
        for value in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX] {
            let id = VolumeId(value);
            assert_eq!(id.to_string().len(), 17);
            assert_eq!(id.to_string().parse::<VolumeId>().ok(), Some(id));
        }
    }

    #[test]
    fn malformed_ids_are_refused() {
        for text in [
            "",
            "vol_",
            "vs_0000000000000",
            "vol_000000000000",
            "vol_000000000000i",
            "vol_zzzzzzzzzzzzz",
            "vol_../../etc/pas",
        ] {
            assert!(text.parse::<VolumeId>().is_err(), "{text}");
        }
    }

    #[test]
    fn any_moment_can_be_told() {
        assert_eq!(UnixMillis(1_763_699_038_999).date(), "2025-11-21T04:23:58Z");
        assert_eq!(UnixMillis(DATES_END_MILLIS).date(), "9999-12-31T23:59:59Z");
        assert_eq!(UnixMillis(u64::MAX).date(), "18446744073709551615 ms after 1970");
    }

    #[test]
    fn a_covering_range_holds_every_byte() {
        let range = BlockRange::covering(4095, 2);
        assert_eq!(range, BlockRange::new(Lba(0), BlockCount(2)));
        assert_eq!(BlockRange::covering(4096, 0).count, BlockCount(0));
        assert_eq!(BlockRange::covering(8192, 4096), BlockRange::new(Lba(2), BlockCount(1)));
    }
}

//! The census of a volume's own objects, as bytes: a part of the last object of each checkpoint. Meaning and rules in
//! `design/cleaning.md`.
//!
//! ```text
//! version u16 (1), flags u16 (1: hints may be wrong; 2: made by listing), incompatible features u32, rows u32, reserved u32
//! rows x { kind u8 (1 segment, 2 map object), dead u8, reserved u16, epoch u32, number u64,
//!          bytes u32, units u32, live u32, dead epoch u32, dead number u64 }
//! ```

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::format::codec::{Reader, Writer};
use crate::format::manifest::Position;
use crate::format::map_object::{MapObjectId, RAW_BYTES_MAX};
use crate::limits::{CONDEMNED_MAX, COUNT_MAX};
use crate::units::{Epoch, SegmentId};

const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const ROW_BYTES: usize = 40;
/// Rows of one part: as many as the longest part of a map object holds.
const ROWS_MAX: usize = (RAW_BYTES_MAX as usize - HEADER_BYTES) / ROW_BYTES;

/// Where an object stands in the order in which a volume's objects of its kind were named. Epochs only grow, and numbers grow within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectAt {
    /// The attachment that wrote it.
    pub epoch: Epoch,
    /// Its number within that epoch.
    pub number: u64,
}

impl From<SegmentId> for ObjectAt {
    fn from(id: SegmentId) -> Self {
        ObjectAt { epoch: id.epoch, number: id.number.0 }
    }
}

impl From<MapObjectId> for ObjectAt {
    fn from(id: MapObjectId) -> Self {
        ObjectAt { epoch: id.epoch, number: id.number }
    }
}

impl From<Position> for ObjectAt {
    fn from(position: Position) -> Self {
        ObjectAt { epoch: position.epoch, number: position.number.0 }
    }
}

/// Objects of one kind and epoch that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ObjectRun {
    /// The epoch.
    pub epoch: Epoch,
    /// Number of the first.
    pub first: u64,
    /// How many; at least 1.
    pub count: u64,
}

impl ObjectRun {
    /// The objects in order.
    pub fn objects(self) -> impl Iterator<Item = ObjectAt> {
        (0..self.count).map(move |step| ObjectAt { epoch: self.epoch, number: self.first.saturating_add(step) })
    }
}

/// Objects of a volume that nothing needs any more. A manifest names them before the first of them is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Condemned {
    /// Segments.
    pub segments: Vec<ObjectRun>,
    /// Objects with pages of checkpoints.
    pub map_objects: Vec<ObjectRun>,
}

impl Condemned {
    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.map_objects.is_empty()
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.segments.iter().chain(&self.map_objects).fold(0, |sum, run| sum.saturating_add(run.count))
    }

    /// Refuses runs that no writer makes, before anybody counts up to them.
    ///
    /// # Errors
    /// `Damaged`, naming `what` holds them.
    pub fn check(&self, what: &str) -> Result<()> {
        let is_senseless = |run: &ObjectRun| run.count == 0 || run.first.saturating_add(run.count) > COUNT_MAX;
        if self.segments.iter().chain(&self.map_objects).any(is_senseless) || self.count() > CONDEMNED_MAX {
            return Err(Error::damaged(format!("{what} is damaged: the objects that it condemns make no sense")));
        }
        Ok(())
    }
}

/// Adds an object behind the runs.
pub fn push_object(runs: &mut Vec<ObjectRun>, at: ObjectAt) {
    match runs.last_mut() {
        Some(last) if (last.epoch, last.first + last.count) == (at.epoch, at.number) => last.count += 1,
        _ => runs.push(ObjectRun { epoch: at.epoch, first: at.number, count: 1 }),
    }
}

/// What kind of object is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// A segment; its units are blocks.
    Segment,
    /// An object with pages of checkpoints; its units are bytes.
    Map,
}

/// What is known of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Its length.
    pub bytes: u32,
    /// What it was written with: blocks of a segment, bytes of pages and directories of a map object.
    pub units: u32,
    /// How many of the units the newest map leads to. For segments a hint, see `design/cleaning.md`.
    pub live: u32,
    /// From where on nothing leads to it: a position of the sequence for a segment, for a map object the first one whose checkpoint did without it.
    pub dead_at: Option<ObjectAt>,
}

/// One row of a census.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What kind of object.
    pub kind: ObjectKind,
    /// Which.
    pub at: ObjectAt,
    /// What is known of it.
    pub counted: Counted,
}

/// What writing a checkpoint changed among the volume's own map objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapChanges {
    /// Objects that were written: which, their length, and the bytes of them that the new checkpoint leads to.
    pub written: Vec<(ObjectAt, u32, u32)>,
    /// Bytes to which the checkpoint before led and the new one does not, by object.
    pub released: BTreeMap<ObjectAt, u64>,
}

/// How a census was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Making {
    /// What it says of segments in use is exact, and not only a hint.
    pub is_exact: bool,
    /// It began with a listing of the store, which may have missed objects: what it does not name may be needed all the same.
    pub is_listed: bool,
}

impl Making {
    /// Every change was counted, from the first object on.
    pub const COUNTED: Making = Making { is_exact: true, is_listed: false };

    fn flags(self) -> u16 {
        u16::from(!self.is_exact) | u16::from(self.is_listed) << 1
    }

    fn of_flags(flags: u16) -> Self {
        Making { is_exact: flags & 1 == 0, is_listed: flags & 2 != 0 }
    }

    /// How a census was made of which this and the other are parts.
    pub fn with(self, other: Making) -> Self {
        Making { is_exact: self.is_exact && other.is_exact, is_listed: self.is_listed || other.is_listed }
    }
}

/// The rows as parts of a map object, none longer than a reader accepts.
pub fn encode_rows(rows: &[Row], making: Making) -> Vec<Vec<u8>> {
    rows.chunks(ROWS_MAX).map(|rows| encode_part(rows, making)).collect()
}

fn encode_part(rows: &[Row], making: Making) -> Vec<u8> {
    let mut out = Writer::with_capacity(HEADER_BYTES + rows.len() * ROW_BYTES);
    // A part has far fewer rows than a word counts.
    out.u16(VERSION).u16(making.flags()).u32(0).u32(rows.len() as u32).u32(0);
    for Row { kind, at, counted } in rows {
        let dead = counted.dead_at.unwrap_or(ObjectAt { epoch: Epoch(0), number: 0 });
        out.u8(if *kind == ObjectKind::Segment { 1 } else { 2 }).u8(u8::from(counted.dead_at.is_some())).u16(0);
        out.u32(at.epoch.0).u64(at.number).u32(counted.bytes).u32(counted.units).u32(counted.live);
        out.u32(dead.epoch.0).u64(dead.number);
    }
    out.bytes
}

/// Reads the rows of one part, and how they were made.
///
/// # Errors
/// `Damaged` or `Unsupported`.
pub fn decode_rows(bytes: &[u8]) -> Result<(Vec<Row>, Making)> {
    let mut input = Reader::new("the census of a checkpoint", bytes);
    let (version, flags) = (input.u16()?, input.u16()?);
    let incompatible = input.u32()?;
    input.check_version(version, VERSION, incompatible)?;
    let count = input.u32()? as usize;
    input.u32()?;
    input.expect_items(count, ROW_BYTES)?;
    let mut rows = Vec::with_capacity(count);
    for _ in 0..count {
        rows.push(decode_row(&mut input)?);
    }
    if input.remaining() > 0 {
        return Err(input.damaged("more follows than it announces"));
    }
    Ok((rows, Making::of_flags(flags)))
}

fn decode_row(input: &mut Reader<'_>) -> Result<Row> {
    let (kind, dead) = (input.u8()?, input.u8()?);
    input.u16()?;
    let at = ObjectAt { epoch: Epoch(input.u32()?), number: input.u64()? };
    let (bytes, units, live) = (input.u32()?, input.u32()?, input.u32()?);
    let dead_at = ObjectAt { epoch: Epoch(input.u32()?), number: input.u64()? };
    let kind = match kind {
        1 => ObjectKind::Segment,
        2 => ObjectKind::Map,
        _ => return Err(input.damaged("it counts an object of no kind")),
    };
    if at.number.max(dead_at.number) > COUNT_MAX || live > units {
        return Err(input.damaged("a row makes no sense"));
    }
    let dead_at = (dead != 0).then_some(dead_at);
    Ok(Row { kind, at, counted: Counted { bytes, units, live, dead_at } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: ObjectKind, number: u64, dead_at: Option<ObjectAt>) -> Row {
        let at = ObjectAt { epoch: Epoch(2), number };
        Row { kind, at, counted: Counted { bytes: 100, units: 8, live: 3, dead_at } }
    }

    #[test]
    fn golden_bytes() {
        let dead_at = Some(ObjectAt { epoch: Epoch(5), number: 6 });
        let expected: Vec<u8> = [
            &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..],
            &[1, 1, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0],
            &[100, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(encode_rows(&[row(ObjectKind::Segment, 9, dead_at)], Making::COUNTED), [expected]);
    }

    #[test]
    fn many_rows_come_back_from_their_parts_and_nonsense_is_refused() {
        let rows: Vec<Row> = (0..ROWS_MAX as u64 + 5)
            .map(|number| row(if number % 2 == 0 { ObjectKind::Map } else { ObjectKind::Segment }, number, None))
            .collect();
        for (is_exact, is_listed) in [(true, false), (false, false), (true, true), (false, true)] {
            let making = Making { is_exact, is_listed };
            assert_eq!(decode_rows(&encode_rows(&rows[..1], making)[0]).unwrap().1, making);
        }
        let parts = encode_rows(&rows, Making::COUNTED);
        assert!(parts.len() == 2 && parts.iter().all(|part| part.len() <= RAW_BYTES_MAX as usize));
        let read: Vec<Row> = parts.iter().flat_map(|part| decode_rows(part).unwrap().0).collect();
        assert_eq!(read, rows);
        let intact = &parts[1];
        for (at, byte) in [(0, 9), (4, 1), (8, 200), (16, 3), (31, 0xff), (40, 9)] {
            let mut bytes = intact.clone();
            bytes[at] = byte;
            assert!(decode_rows(&bytes).is_err(), "byte {at}");
        }
        assert!((0..intact.len()).all(|end| decode_rows(&intact[..end]).is_err()));
    }
}

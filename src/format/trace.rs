//! Traces: which parts of a volume were read first, in their order. A hint that stands beside a snapshot; nothing depends on it. The byte table
//! is in `design/formats.md`.

use crate::error::{Error, Result};
use crate::format::codec::{Reader, Writer};
use crate::limits::{TRACE_RUNS_MAX, TRACE_UNIT_BYTES, VOLUME_BYTES_MAX};
use crate::seal::{ITEM_OVERHEAD_BYTES, ItemPlace, Salt, VolumeKey};
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange, Lba, SnapshotId, VolumeId};

const MAGIC: &[u8; 4] = b"VRVT";
const VERSION: u16 = 1;
/// Incompatible feature: what follows the ids is sealed with the key of the volume.
const FEATURE_SEALED: u32 = 1;
/// Bytes before what is sealed.
const FRONT_BYTES: usize = 32;
const HEADER_BYTES: usize = 40;
const RUN_BYTES: usize = 8;
const CRC_BYTES: usize = 4;
/// Units of the largest volume.
const UNITS_MAX: u64 = VOLUME_BYTES_MAX / TRACE_UNIT_BYTES;
/// Length of the longest trace, in bytes.
pub const TRACE_BYTES_MAX: u64 =
    (FRONT_BYTES + ITEM_OVERHEAD_BYTES + HEADER_BYTES + TRACE_RUNS_MAX * RUN_BYTES + CRC_BYTES) as u64;

const _: () = assert!(UNITS_MAX < u32::MAX as u64);

/// Units of a volume ([`TRACE_UNIT_BYTES`] each) that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRun {
    /// The first.
    pub first: u32,
    /// How many; at least 1.
    pub count: u32,
}

impl TraceRun {
    /// The unit behind the last.
    pub fn end(self) -> u32 {
        self.first.saturating_add(self.count)
    }

    /// The blocks of the run, which may reach beyond the end of the volume.
    pub fn blocks(self) -> BlockRange {
        let blocks = TRACE_UNIT_BYTES / BLOCK_SIZE;
        BlockRange::new(Lba(u64::from(self.first) * blocks), BlockCount(u64::from(self.count) * blocks))
    }
}

/// What was read first of a volume after it was attached, in that order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The snapshot that it stands beside.
    pub snapshot: SnapshotId,
    /// The volume that the snapshot is of.
    pub volume: VolumeId,
    /// What was read. No unit is there twice.
    pub runs: Vec<TraceRun>,
}

impl Trace {
    /// The trace as an object.
    ///
    /// # Errors
    /// `Invalid` for more runs than a trace has, which only a bug can cause.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let count = u32::try_from(self.runs.len()).ok().filter(|_| self.runs.len() <= TRACE_RUNS_MAX);
        let count = count.ok_or_else(|| Error::invalid(format!("a trace has no {} runs", self.runs.len())))?;
        let mut writer = Writer::with_capacity(HEADER_BYTES + self.runs.len() * RUN_BYTES + CRC_BYTES);
        writer.put(MAGIC).u16(VERSION).u16(0).u32(0).u32(0);
        writer.u64(self.snapshot.0).u64(self.volume.0).u32(TRACE_UNIT_BYTES as u32).u32(count);
        for run in &self.runs {
            writer.u32(run.first).u32(run.count);
        }
        writer.crc();
        Ok(writer.bytes)
    }

    /// The trace as an object that is sealed with the key of its volume; `salt` is fresh random bits.
    ///
    /// # Errors
    /// As [`Trace::encode`].
    pub fn encode_sealed(&self, key: &VolumeKey, salt: Salt) -> Result<Vec<u8>> {
        let mut writer = Writer::default();
        writer.put(MAGIC).u16(VERSION).u16(0).u32(FEATURE_SEALED).u32(0).u64(self.snapshot.0).u64(self.volume.0);
        writer.put(&key.seal_item(ItemPlace::Trace(self.snapshot), salt, &self.encode()?));
        Ok(writer.bytes)
    }

    /// The volume that an object says it is the trace of a snapshot of, and what of it is sealed, if it is; not verified.
    ///
    /// # Errors
    /// `Damaged` for what does not begin as a trace.
    pub fn peek(id: SnapshotId, bytes: &[u8]) -> Result<(VolumeId, Option<&[u8]>)> {
        let what = format!("the trace of {id}");
        let mut reader = Reader::new(&what, bytes);
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(reader.damaged("it is no trace"));
        }
        reader.u32()?;
        let (incompatible, _, _) = (reader.u32()?, reader.u32()?, reader.u64()?);
        let volume = VolumeId(reader.u64()?);
        let is_sealed = incompatible & FEATURE_SEALED != 0;
        Ok((volume, is_sealed.then_some(&bytes[FRONT_BYTES..])))
    }

    /// Reads what was sealed of the trace beside snapshot `id`.
    ///
    /// # Errors
    /// As [`Trace::decode`].
    pub fn decode_sealed(id: SnapshotId, item: &[u8], key: &VolumeKey) -> Result<Self> {
        let opened = key.open_item(ItemPlace::Trace(id), item);
        let opened = opened.ok_or_else(|| {
            Error::damaged(format!("the trace of {id} is damaged: it does not open with the key of its volume"))
        })?;
        Trace::decode(id, &opened)
    }

    /// Reads the trace beside snapshot `id`.
    ///
    /// # Errors
    /// `Damaged` or `Unsupported`.
    pub fn decode(id: SnapshotId, bytes: &[u8]) -> Result<Self> {
        let what = format!("the trace of {id}");
        let mut reader = Reader::new(&what, bytes);
        if reader.take(MAGIC.len())? != MAGIC {
            return Err(reader.damaged("it is no trace"));
        }
        let (version, _) = (reader.u16()?, reader.u16()?);
        let (incompatible, _) = (reader.u32()?, reader.u32()?);
        reader.check_version(version, VERSION, incompatible)?;
        let covered = bytes.len().checked_sub(CRC_BYTES).filter(|covered| *covered >= HEADER_BYTES);
        let covered = covered.ok_or_else(|| reader.damaged("it ends too early"))?;
        if Reader::new(&what, &bytes[covered..]).u32()? != crc32c::crc32c(&bytes[..covered]) {
            return Err(reader.damaged("its checksum is wrong"));
        }
        let (snapshot, volume) = (SnapshotId(reader.u64()?), VolumeId(reader.u64()?));
        if snapshot != id {
            return Err(reader.damaged(&format!("it is that of {snapshot}")));
        }
        let (unit, count) = (reader.u32()?, reader.u32()? as usize);
        if u64::from(unit) != TRACE_UNIT_BYTES || count > TRACE_RUNS_MAX {
            return Err(reader.damaged("its header makes no sense"));
        }
        if reader.remaining() != count * RUN_BYTES + CRC_BYTES {
            return Err(reader.damaged("its length is wrong"));
        }
        let mut runs = Vec::with_capacity(count);
        for _ in 0..count {
            let run = TraceRun { first: reader.u32()?, count: reader.u32()? };
            if run.count == 0 || u64::from(run.first) + u64::from(run.count) > UNITS_MAX {
                return Err(reader.damaged("a run lies outside of every volume"));
            }
            runs.push(run);
        }
        Ok(Trace { snapshot, volume, runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn trace() -> Trace {
        let runs = vec![TraceRun { first: 7, count: 2 }, TraceRun { first: 0, count: 1 }];
        Trace { snapshot: SnapshotId(9), volume: VolumeId(0x0102), runs }
    }

    #[test]
    fn golden_bytes() {
        let bytes = trace().encode().unwrap();
        let mut expected = b"VRVT\x01\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        expected.extend(b"\x09\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0\0\0\x01\0\x02\0\0\0");
        expected.extend(b"\x07\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0");
        assert_eq!(&bytes[..bytes.len() - 4], expected);
        assert_eq!(Trace::decode(SnapshotId(9), &bytes).unwrap(), trace());
        assert_eq!(trace().runs[0].blocks(), BlockRange::new(Lba(7 * 16), BlockCount(32)));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = trace().encode().unwrap();
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1 << bit;
                assert!(Trace::decode(SnapshotId(9), &flipped).is_err(), "byte {position}");
            }
            assert!(Trace::decode(SnapshotId(9), &bytes[..position]).is_err());
        }
        assert!(Trace::decode(SnapshotId(8), &bytes).unwrap_err().message().contains("it is that of vs_"));
    }

    #[test]
    fn a_newer_version_and_runs_outside_of_every_volume_are_refused() {
        let mut newer = trace().encode().unwrap();
        newer[4] = 2;
        assert_eq!(Trace::decode(SnapshotId(9), &newer).unwrap_err().kind(), ErrorKind::Unsupported);
        for run in [TraceRun { first: 1, count: 0 }, TraceRun { first: UNITS_MAX as u32, count: 1 }] {
            let outside = Trace { runs: vec![run], ..trace() };
            assert!(Trace::decode(SnapshotId(9), &outside.encode().unwrap()).is_err(), "{run:?}");
        }
        let endless = vec![TraceRun { first: 0, count: 1 }; TRACE_RUNS_MAX + 1];
        assert!(Trace { runs: endless, ..trace() }.encode().is_err());
    }
}

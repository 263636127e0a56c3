//! Objects with pages of checkpoints: a header, pages back to back, directories, and the root. Byte tables in
//! `design/checkpoints.md`.
//!
//! A reference to a page carries its checksum, so that whoever trusts the manifest can trust every page below it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::compression;
use crate::error::{Error, Result};
use crate::format::codec::{Reader, Writer};
use crate::limits::{DIRECTORY_PAGES, PAGE_BLOCKS, VOLUME_BYTES_MAX};
use crate::seal::{ITEM_OVERHEAD_BYTES, ItemPlace, VolumeKey};
use crate::units::{BLOCK_SIZE, ByteLen, Epoch, SegmentNumber, Sequence, VolumeId};

#[cfg(test)]
mod tests;

/// Directories of the largest volume.
const DIRECTORIES_MAX: u64 = VOLUME_BYTES_MAX / (DIRECTORY_PAGES * PAGE_BLOCKS * BLOCK_SIZE);
const MAGIC: &[u8; 4] = b"VRVM";
const VERSION: u16 = 1;
/// Length of the header, in bytes; the first page begins here.
pub const HEADER_BYTES: usize = 40;
const OBJECT_BYTES: usize = 20;
const REFERENCE_BYTES: usize = 24;
/// Incompatible feature: pages, directories, roots and census are sealed with the key of the volume.
const FEATURE_SEALED: u32 = 1;
/// Longest page, directory or root before compression, in bytes.
pub const RAW_BYTES_MAX: u32 = 4 << 20;

/// The name of an object with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MapObjectId {
    /// The volume that wrote it.
    pub volume: VolumeId,
    /// The attachment that wrote it.
    pub epoch: Epoch,
    /// Its number within that epoch.
    pub number: u64,
}

impl std::fmt::Display for MapObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "map object {}/{}/{}", self.volume, self.epoch, self.number)
    }
}

/// Where a page, directory or root lies, and how to verify it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRef {
    /// The object.
    pub object: MapObjectId,
    /// Byte offset in it.
    pub offset: u32,
    /// Bytes there.
    pub stored_length: u32,
    /// Bytes after decompression. It is not compressed if it is stored in as many, but for what a seal adds.
    pub raw_length: u32,
    /// CRC32C of the stored bytes.
    pub crc: u32,
}

impl PageRef {
    /// The byte behind it in its object.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.stored_length)
    }

    /// Where it belongs, for sealing.
    pub fn item_place(&self) -> ItemPlace {
        let MapObjectId { volume, epoch, number } = self.object;
        ItemPlace::Map { volume, epoch, number, offset: self.offset }
    }
}

/// A checkpoint, as a manifest names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRef {
    /// Its root.
    pub root: PageRef,
}

/// The top of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// The first segment that the checkpoint does not include.
    pub epoch: Epoch,
    /// Its number.
    pub number: SegmentNumber,
    /// The last place of the sequence that it includes.
    pub sequence: Sequence,
    /// Size of the volume, in bytes.
    pub size: ByteLen,
    /// The directories that have pages: which GiB of the volume, and where.
    pub directories: References,
}

/// A sparse table of references, sorted by slot.
pub type References = Vec<(u32, PageRef)>;

/// The header of an object as bytes; whether what follows is sealed.
pub fn encode_header(id: MapObjectId, sealed: bool) -> Vec<u8> {
    let mut out = Writer::with_capacity(HEADER_BYTES);
    let incompatible = if sealed { FEATURE_SEALED } else { 0 };
    out.put(MAGIC).u16(VERSION).u16(0).u32(incompatible).u32(0);
    out.u64(id.volume.0).u64(id.number).u32(id.epoch.0).crc();
    assert_eq!(out.bytes.len(), HEADER_BYTES, "the header has a fixed length");
    out.bytes
}

/// Reads the header of an object.
///
/// # Errors
/// `Damaged` or `Unsupported`.
pub fn decode_header(bytes: &[u8]) -> Result<MapObjectId> {
    let what = "the header of a map object";
    let header = Reader::new(what, bytes).take(HEADER_BYTES)?;
    let (covered, crc) = header.split_at(HEADER_BYTES - 4);
    let mut input = Reader::new(what, covered);
    if input.take(4)? != MAGIC || Reader::new(what, crc).u32()? != crc32c::crc32c(covered) {
        return Err(input.damaged("its checksum is wrong"));
    }
    let version = input.u16()?;
    input.u16()?;
    let incompatible = input.u32()?;
    input.check_version(version, VERSION, incompatible & !FEATURE_SEALED)?;
    input.u32()?;
    let (volume, number) = (VolumeId(input.u64()?), input.u64()?);
    Ok(MapObjectId { volume, number, epoch: Epoch(input.u32()?) })
}

/// A directory as bytes: references to the pages of one GiB.
pub fn encode_directory(references: &References) -> Vec<u8> {
    let mut out = Writer::default();
    out.u16(VERSION).u16(0).u32(0);
    encode_references(&mut out, references);
    out.bytes
}

/// Reads a directory.
///
/// # Errors
/// `Damaged` or `Unsupported`.
pub fn decode_directory(bytes: &[u8]) -> Result<References> {
    let mut input = Reader::new("a directory of a checkpoint", bytes);
    let version = input.u16()?;
    input.u16()?;
    let incompatible = input.u32()?;
    input.check_version(version, VERSION, incompatible)?;
    decode_references(&mut input, DIRECTORY_PAGES)
}

/// A root as bytes.
pub fn encode_root(root: &Root) -> Vec<u8> {
    let mut out = Writer::default();
    out.u16(VERSION).u16(0).u32(0).u32(0); // incompatible, compatible features
    out.u32(root.epoch.0).u64(root.number.0).u64(root.sequence.0).u64(root.size.0);
    encode_references(&mut out, &root.directories);
    out.bytes
}

/// Reads a root.
///
/// # Errors
/// `Damaged` or `Unsupported`.
pub fn decode_root(bytes: &[u8]) -> Result<Root> {
    let mut input = Reader::new("the root of a checkpoint", bytes);
    let version = input.u16()?;
    input.u16()?;
    let incompatible = input.u32()?;
    input.check_version(version, VERSION, incompatible)?;
    input.u32()?;
    let (epoch, number) = (Epoch(input.u32()?), SegmentNumber(input.u64()?));
    let (sequence, size) = (Sequence(input.u64()?), ByteLen(input.u64()?));
    if size.0 > VOLUME_BYTES_MAX {
        return Err(input.damaged("the volume is larger than any can be"));
    }
    let directories = decode_references(&mut input, DIRECTORIES_MAX)?;
    Ok(Root { epoch, number, sequence, size, directories })
}

fn encode_references(out: &mut Writer, references: &References) {
    let mut objects: Vec<MapObjectId> = references.iter().map(|(_, reference)| reference.object).collect();
    objects.sort_unstable();
    objects.dedup();
    // Slots are below 2^14 and there is at most one reference a slot, so the counts fit.
    out.u32(objects.len() as u32).u32(references.len() as u32);
    for object in &objects {
        out.u64(object.volume.0).u64(object.number).u32(object.epoch.0);
    }
    for (slot, reference) in references {
        let object = objects.partition_point(|known| *known < reference.object);
        out.u32(*slot).u32(object as u32).u32(reference.offset);
        out.u32(reference.stored_length).u32(reference.raw_length).u32(reference.crc);
    }
}

fn decode_references(input: &mut Reader<'_>, slots: u64) -> Result<References> {
    let (object_count, reference_count) = (input.u32()? as usize, input.u32()? as usize);
    input.expect_items(object_count, OBJECT_BYTES)?;
    let mut objects = Vec::with_capacity(object_count);
    for _ in 0..object_count {
        let (volume, number) = (VolumeId(input.u64()?), input.u64()?);
        objects.push(MapObjectId { volume, number, epoch: Epoch(input.u32()?) });
    }
    input.expect_items(reference_count, REFERENCE_BYTES)?;
    let mut references = References::with_capacity(reference_count);
    for _ in 0..reference_count {
        let (slot, object) = (input.u32()?, input.u32()? as usize);
        let (offset, stored_length, raw_length, crc) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
        let follows =
            references.last().is_none_or(|(last, _): &(u32, PageRef)| *last < slot) && u64::from(slot) < slots;
        let object = objects.get(object).copied().filter(|_| follows);
        let object = object.ok_or_else(|| input.damaged("a reference is out of order or names no object"))?;
        let reference = PageRef { object, offset, stored_length, raw_length, crc };
        check_reference(&reference)?;
        references.push((slot, reference));
    }
    if input.remaining() > 0 {
        return Err(input.damaged("more follows than it announces"));
    }
    Ok(references)
}

/// Compresses a page, directory or root where it pays; returns the bytes to store.
pub fn compress(raw: Vec<u8>) -> Vec<u8> {
    // A compressor that fails costs space only.
    match compression::compress(&raw) {
        Ok(compressed) if compressed.len() < raw.len() => compressed,
        _ => raw,
    }
}

/// Checks what a reference says before anything is fetched or allocated for it.
///
/// # Errors
/// `Damaged` if no encoder writes such a reference.
pub fn check_reference(reference: &PageRef) -> Result<()> {
    let &PageRef { object, offset, stored_length, raw_length, .. } = reference;
    let longest = raw_length.saturating_add(ITEM_OVERHEAD_BYTES as u32);
    let fits = (1..=longest).contains(&stored_length) && raw_length <= RAW_BYTES_MAX;
    if !fits || (offset as usize) < HEADER_BYTES || reference.end() > u64::from(u32::MAX) {
        return Err(Error::damaged(format!(
            "a reference to byte {offset} of {object} is damaged: {stored_length} bytes of {raw_length} cannot be there"
        )));
    }
    Ok(())
}

/// Verifies the stored bytes of a page, directory or root, and decompresses them. `key` is that of the volume that wrote them, if it has one.
///
/// # Errors
/// `Damaged`.
pub fn open(reference: &PageRef, stored: &[u8], key: Option<&VolumeKey>) -> Result<Vec<u8>> {
    let damaged =
        |why: &str| Error::damaged(format!("{} is damaged at byte {}: {why}", reference.object, reference.offset));
    check_reference(reference)?;
    if stored.len() != reference.stored_length as usize || crc32c::crc32c(stored) != reference.crc {
        return Err(damaged("its checksum is wrong"));
    }
    let packed = match key {
        Some(key) => key
            .open_item(reference.item_place(), stored)
            .map(Cow::Owned)
            .ok_or_else(|| damaged("it was changed, or sealed with another key or for another place"))?,
        None => Cow::Borrowed(stored),
    };
    if packed.len() == reference.raw_length as usize {
        return Ok(packed.into_owned());
    }
    let raw =
        compression::decompress(&packed, reference.raw_length as usize).map_err(|error| damaged(&error.to_string()))?;
    if raw.len() != reference.raw_length as usize {
        return Err(damaged("it is shorter than announced"));
    }
    Ok(raw)
}

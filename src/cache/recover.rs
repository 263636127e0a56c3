//! The ring's file: created, or found and carried on with.
//!
//! Order at open: 1. the newer valid superblock says how far the ring was written; 2. chunks written after it are
//! found by looking for their first entry; 3. entries that a crash took from the index (it is newer in the file) are
//! put back, walking back from the end to the first chunk that the index knows. What the index knows and the file no
//! longer has is found when it is read. A file that does not fit (damaged, other size, other version) is removed, made
//! anew, and the index of slots cleared.

use std::io::{ErrorKind as IoErrorKind, IoSliceMut};
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::cache::SlotIndex;
use crate::cache::chunk::{Geometry, Marks};
use crate::cache::door::Door;
use crate::cache::ring::{Buffers, Counters, IsWarm, Ring, Writer};
use crate::cache::rotate::credit_max;
use crate::clock;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{Context, Error, Result};
use crate::format::cache::{
    CHUNK_BYTES, ENTRY_GRANULES_MAX, GRANULE_BYTES, RING_START, RingPosition, SUPERBLOCK_BYTES, Superblock,
    decode_entry, entries_of_chunk,
};
use crate::units::{ByteLen, FrameId};

/// Fewest chunks with which coming round makes sense.
const CHUNKS_MIN: u64 = 4;
/// Most chunks to put back into the index at open: 1 GiB is read in a second or so; what is older is fetched again.
const REINDEX_CHUNKS_MAX: u64 = 1024;

/// Opens or creates the ring.
pub(super) fn open(
    disk: &dyn Disk,
    path: &Path,
    budget: ByteLen,
    index: Arc<dyn SlotIndex>,
    is_warm: IsWarm,
) -> Result<Ring> {
    let geometry = Geometry { chunks: budget.0.saturating_sub(RING_START) / CHUNK_BYTES };
    if geometry.chunks < CHUNKS_MIN {
        let least = RING_START + CHUNKS_MIN * CHUNK_BYTES;
        return Err(Error::invalid(format!(
            "a disk cache of {budget} bytes is too small: give it at least {least}, or 0"
        )));
    }
    let describe = || format!("the read cache's file {}", path.display());
    let found = match disk.open(path, OpenMode::Existing) {
        Ok(file) => {
            let superblock = newest_superblock(file.as_ref(), geometry).context(describe)?;
            superblock.map(|superblock| (file, superblock))
        }
        Err(error) if error.kind() == IoErrorKind::NotFound => None,
        Err(error) => return Err(error).context(describe),
    };
    let (file, superblock) = match found {
        Some(found) => found,
        None => create(disk, path, geometry, index.as_ref()).context(describe)?,
    };
    let ring = Ring {
        file,
        identity: superblock.ring,
        geometry,
        marks: Marks::new(geometry),
        door: Door::new(geometry.chunks),
        index,
        is_warm,
        buffers: RwLock::new(Buffers::default()),
        writer: Mutex::new(Writer {
            superblock: superblock.number,
            credit: credit_max(geometry.chunks),
            crowded: 0,
            spare: None,
        }),
        counters: Counters::default(),
    };
    let written_end = ring.find_end(superblock.next_chunk).context(describe)?;
    let oldest = written_end.saturating_sub(geometry.chunks);
    *ring.buffers.write() = Buffers { active: None, sealed: None, oldest, written_end };
    ring.put_back_slots(oldest, written_end).context(describe)?;
    Ok(ring)
}

/// The newer valid superblock of a file of the right size; `None` if the file must be made anew.
fn newest_superblock(file: &dyn DiskFile, geometry: Geometry) -> Result<Option<Superblock>> {
    if file.length().context(|| "asking for its length")? != geometry.file_bytes() {
        return Ok(None);
    }
    let mut bytes = vec![0; RING_START as usize];
    file.read_at(&mut [IoSliceMut::new(&mut bytes)], 0).context(|| "reading its superblock")?;
    let copies = bytes.chunks(SUPERBLOCK_BYTES as usize).filter_map(Superblock::decode);
    Ok(copies.filter(|copy| copy.chunks == geometry.chunks).max_by_key(|copy| copy.number))
}

/// Makes the file, in the place of an older one if there is one; takes it away again if there is no space for it.
fn create(
    disk: &dyn Disk,
    path: &Path,
    geometry: Geometry,
    index: &dyn SlotIndex,
) -> Result<(Arc<dyn DiskFile>, Superblock)> {
    match disk.remove(path) {
        Ok(()) => {
            let path = path.display();
            tracing::info!("the read cache's file {path} is of another size or version, or damaged: it is made anew");
        }
        Err(error) if error.kind() == IoErrorKind::NotFound => {}
        Err(error) => return Err(error).context(|| "removing it"),
    }
    index.clear()?;
    let superblock = Superblock { number: 0, ring: clock::random_u64(), chunks: geometry.chunks, next_chunk: 0 };
    let file = disk.open(path, OpenMode::CreateNew).context(|| "creating it")?;
    let filled = file
        .allocate(geometry.file_bytes())
        .and_then(|()| file.write_at(&[std::io::IoSlice::new(&superblock.encode())], 0));
    if let Err(error) = filled {
        // Best effort: a part that stays is found to be of the wrong size next time.
        let _ = disk.remove(path);
        return Err(error).context(|| format!("reserving {} bytes for it", geometry.file_bytes()));
    }
    Ok((file, superblock))
}

impl Ring {
    /// The first chunk from `next` on that was not written.
    fn find_end(&self, next: u64) -> Result<u64> {
        let mut bytes = vec![0; (ENTRY_GRANULES_MAX * GRANULE_BYTES) as usize];
        for chunk in next..next + self.geometry.chunks {
            let position = RingPosition::of_chunk(chunk);
            let offset = self.geometry.file_offset(position);
            self.file.read_at(&mut [IoSliceMut::new(&mut bytes)], offset).context(|| format!("reading at {offset}"))?;
            if decode_entry(self.identity, position, &bytes).is_none() {
                return Ok(chunk);
            }
        }
        Ok(next + self.geometry.chunks)
    }

    /// Puts the slots of the newest chunks into the index, from where it knows none of a chunk's.
    fn put_back_slots(&self, oldest: u64, written_end: u64) -> Result<()> {
        let least = oldest.max(written_end.saturating_sub(REINDEX_CHUNKS_MAX));
        let mut first = written_end;
        while first > least && !self.is_known(first - 1)? {
            first -= 1;
        }
        for chunk in first..written_end {
            let slots = self.slots_of_chunk(chunk)?;
            self.index.apply(&slots, &[])?;
        }
        Ok(())
    }

    fn is_known(&self, chunk: u64) -> Result<bool> {
        let slots = self.slots_of_chunk(chunk)?;
        let frames: Vec<_> = slots.iter().map(|&(frame, _)| frame).collect();
        let known = self.index.get_many(&frames)?;
        Ok(slots.iter().zip(known).any(|(&(_, slot), known)| known == Some(slot)))
    }

    fn slots_of_chunk(&self, chunk: u64) -> Result<Vec<(FrameId, u64)>> {
        let bytes = self.read_chunk(chunk)?;
        let entries = entries_of_chunk(self.identity, chunk, &bytes);
        Ok(entries.map(|(_, entry)| (entry.frame, entry.slot.packed())).collect())
    }
}

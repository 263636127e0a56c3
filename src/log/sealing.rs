//! Sealing and opening records: a log belongs to one volume, and has had several starts, each with a key of its own.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::shared::Ring;
use crate::error::{Error, Result};
use crate::format::log::{RecordHeader, RecordKind, block_tag, open_header};
use crate::seal::{LogSealer, VolumeKey};
use crate::units::{BLOCK_SIZE, Epoch, VolumeId};

/// Sealers kept: as many starts as a log survives between its tail and its head, more or less.
const SEALERS_MAX: usize = 64;

/// Finds the key of a volume, none if it is plain.
pub type KeyOf<'a> = &'a (dyn Fn(VolumeId) -> Result<Option<Arc<VolumeKey>>> + 'a);

/// What seals and opens the records of one volume's log.
pub(super) struct Sealing {
    key: Arc<VolumeKey>,
    sealers: Mutex<HashMap<(Epoch, u64), Arc<LogSealer>>>,
}

impl Sealing {
    pub fn new(key: Arc<VolumeKey>) -> Self {
        Sealing { key, sealers: Mutex::default() }
    }

    /// That of one start of the log.
    pub fn sealer(&self, epoch: Epoch, incarnation: u64) -> Arc<LogSealer> {
        let mut sealers = self.sealers.lock();
        if sealers.len() >= SEALERS_MAX {
            sealers.clear();
        }
        let start = (epoch, incarnation);
        sealers.entry(start).or_insert_with(|| Arc::new(self.key.log(epoch, incarnation))).clone()
    }
}

/// A header, of which `bytes` are header and table and verify, with where its blocks belong.
///
/// # Errors
/// `Damaged` if it is sealed otherwise than its log, or does not open.
pub(super) fn opened(ring: &Ring, header: RecordHeader, bytes: &[u8]) -> Result<RecordHeader> {
    if !matches!(header.kind, RecordKind::Write | RecordKind::Zero) {
        return Ok(header);
    }
    let opened = match &ring.sealing {
        None => Some(header).filter(|header| !header.sealed),
        Some(_) if !header.sealed => None,
        Some(sealing) => open_header(&header, bytes, &sealing.sealer(header.epoch, header.incarnation)),
    };
    opened.ok_or_else(|| {
        let message = format!(
            "the record at {} of the write log {} does not open with the key of its volume: it was changed, or is another volume's",
            header.offset, ring.name
        );
        Error::damaged(message)
    })
}

/// Opens blocks of a sealed write, from its block `first` on, in place. `bytes` are its header and table, verified.
///
/// # Errors
/// `Damaged`.
pub(super) fn open_blocks(
    ring: &Ring,
    header: &RecordHeader,
    bytes: &[u8],
    first: u64,
    buffer: &mut [u8],
) -> Result<()> {
    let Some(sealing) = &ring.sealing else { return Ok(()) };
    let sealer = sealing.sealer(header.epoch, header.incarnation);
    for (index, block) in (first..).zip(buffer.chunks_exact_mut(BLOCK_SIZE as usize)) {
        let tag = block_tag(header, bytes, index);
        // A record has fewer blocks than a word counts.
        if !tag.is_some_and(|tag| sealer.open_block(header.offset, index as u32, tag, block)) {
            let message = format!(
                "block {index} of the record at {} of the write log {} does not open with the key of its volume: it was changed",
                header.offset, ring.name
            );
            return Err(Error::damaged(message));
        }
    }
    Ok(())
}

//! The write path: from a batch of changes to records in the log and places in the overlay.
//!
//! Whole blocks go into the log as they are. Part blocks are merged with what is there: read without a lock, then appended
//! only if nobody has written to the block since (else again), so concurrent writers of the same block never lose each other's bytes.
//! Whoever finds no room waits in one line, whatever it writes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::block_device::{Attempt, Change};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::REQUEST_BYTES_MAX;
use crate::log::{Appender, LogPlace as Appended, NewRecord};
use crate::map::{LogPlace, OverlayPlace};
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange, Lba, LogOffset};
use crate::volume::core::Volume;
use crate::volume::gate::Refusal;
use crate::volume::progress::Mark;

/// A change whose first or last block must be merged with what is there, as the records that it becomes.
struct Merged {
    parts: Vec<Part>,
    /// The log's head before any block was read: what was read holds everything before it.
    head: LogOffset,
}

enum Part {
    /// Blocks, and those of them that must be merged.
    Data {
        lba: Lba,
        data: Vec<u8>,
        edges: Vec<Lba>,
    },
    Zero(BlockRange),
}

/// What came of a try to append a change.
enum Appending {
    Done,
    /// It must be made anew: somebody may have changed a block of it since it was read, or the gate is in doubt.
    Outdated,
    NoRoom,
}

impl Part {
    /// The bytes of one block, if it is among the data.
    fn block_mut(&mut self, wanted: Lba) -> Option<&mut [u8]> {
        let Part::Data { lba, data, .. } = self else { return None };
        let start = usize::try_from(wanted.0.checked_sub(lba.0)? * BLOCK_SIZE).ok()?;
        data.get_mut(start..start + BLOCK_SIZE as usize)
    }

    fn edges(&self) -> &[Lba] {
        match self {
            Part::Data { edges, .. } => edges,
            Part::Zero(_) => &[],
        }
    }

    fn record(&self) -> NewRecord<'_> {
        match self {
            Part::Data { lba, data, .. } => NewRecord::Write { lba: *lba, data },
            Part::Zero(range) => NewRecord::Zero { lba: range.start, blocks: range.count },
        }
    }
}

impl Volume {
    pub(super) fn try_changes(&self, changes: &[Change<&[u8]>], outcomes: &mut Vec<Attempt>) {
        match self.gate.check() {
            Ok(()) => {}
            Err(Refusal::Doubtful) => return outcomes.extend(changes.iter().map(|_| Attempt::WouldBlock)),
            Err(Refusal::Closed(error)) => {
                return outcomes.extend(changes.iter().map(|_| Attempt::Failed(error.clone())));
            }
        }
        // Writers that wait for space go first.
        if self.space_waiters.load(Ordering::Acquire) > 0 {
            return outcomes.extend(changes.iter().map(|_| Attempt::WouldBlock));
        }
        let mut batch: Vec<NewRecord<'_>> = Vec::with_capacity(changes.len());
        for change in changes {
            match self.check_change(change) {
                Err(error) => {
                    self.append_batch(&mut batch, outcomes);
                    outcomes.push(Attempt::Failed(error));
                }
                Ok(()) => match whole_blocks(change) {
                    Some(record) => batch.push(record),
                    None => {
                        self.append_batch(&mut batch, outcomes);
                        outcomes.push(self.try_part_blocks(change));
                    }
                },
            }
        }
        self.append_batch(&mut batch, outcomes);
    }

    /// Makes one change, waiting for whatever it needs. After each wait it passes the gate again before it is appended: so what is appended is
    /// answered at once, in the order of the log.
    pub(super) async fn change_waiting(&self, change: Change<Bytes>) -> Result<()> {
        loop {
            self.pass_gate().await?;
            let borrowed = match &change {
                Change::Write { offset, data } => Change::Write { offset: *offset, data: &data[..] },
                Change::Zero { offset, length } => Change::Zero { offset: *offset, length: *length },
                Change::Trim { offset, length } => Change::Trim { offset: *offset, length: *length },
            };
            self.check_change(&borrowed)?;
            let done = match whole_blocks(&borrowed) {
                Some(record) => self.append_waiting(|| self.append_record(&record)).await?,
                None => self.change_part_blocks(&borrowed).await?,
            };
            if let Appending::Done = done {
                return Ok(());
            }
        }
    }

    /// Waits while the gate is doubtful.
    ///
    /// # Errors
    /// Why it is closed.
    pub(crate) async fn pass_gate(&self) -> Result<()> {
        loop {
            let woken = self.gate_wake.notified();
            match self.gate.check() {
                Ok(()) => return Ok(()),
                Err(Refusal::Closed(error)) => return Err(error),
                Err(Refusal::Doubtful) => woken.await,
            }
        }
    }

    /// For what was read after a wait, before it is answered: the process may have been suspended meanwhile, and somebody else the owner.
    ///
    /// # Errors
    /// Why the volume takes no requests any more, unless it just stops: then it was ours all the time.
    pub(super) async fn stand_by(&self) -> Result<()> {
        match self.pass_gate().await {
            Err(error) if error.kind() == ErrorKind::Stopping => Ok(()),
            passed => passed,
        }
    }

    fn check_change(&self, change: &Change<&[u8]>) -> Result<()> {
        let (offset, length) = match change {
            Change::Write { offset, data } => (*offset, data.len() as u64),
            Change::Zero { offset, length } | Change::Trim { offset, length } => (*offset, *length),
        };
        let size = self.size_bytes();
        if length == 0 {
            return Err(Error::invalid("a change of no bytes"));
        }
        if offset.checked_add(length).is_none_or(|end| end > size) {
            let message = format!("{length} bytes at {offset} lie beyond the end of volume {} ({size} bytes)", self.id);
            return Err(Error::new(ErrorKind::Full, message));
        }
        if matches!(change, Change::Write { .. }) && length > REQUEST_BYTES_MAX {
            return Err(Error::invalid(format!("a write of {length} bytes is longer than {REQUEST_BYTES_MAX}")));
        }
        Ok(())
    }

    /// Appends the records gathered so far, pushing an outcome for each.
    fn append_batch(&self, batch: &mut Vec<NewRecord<'_>>, outcomes: &mut Vec<Attempt>) {
        if batch.is_empty() {
            return;
        }
        let appended = self.append(&mut self.writer.lock(), batch);
        let count = batch.len();
        batch.clear();
        match appended {
            Ok(fitted) => {
                outcomes.extend((0..fitted).map(|_| Attempt::Done));
                outcomes.extend((fitted..count).map(|_| Attempt::WouldBlock));
            }
            Err(error) => outcomes.extend((0..count).map(|_| Attempt::Failed(error.clone()))),
        }
    }

    /// Appends records and makes them the newest content of their blocks. Returns how many found room.
    fn append(&self, writer: &mut Appender, records: &[NewRecord<'_>]) -> Result<usize> {
        // Looked at again under the lock under which the end of the attachment closes it: what is appended from then on would be lost.
        self.gate.ensure_not_closed()?;
        if self.shared.places.is_full() {
            self.upload_wake.notify_one();
            return Ok(0);
        }
        let mut places: Vec<Appended> = Vec::with_capacity(records.len());
        let fitted = match writer.append(records, &mut places) {
            Ok(fitted) => fitted,
            Err(error) => {
                self.fail(&error);
                return Err(error);
            }
        };
        if fitted > 0 {
            self.overlay.change(|overlay| {
                for (record, place) in records.iter().zip(&places) {
                    match record {
                        NewRecord::Write { lba, data } => {
                            let range = BlockRange::new(*lba, BlockCount(data.len() as u64 / BLOCK_SIZE));
                            overlay.set(range, OverlayPlace::Log(LogPlace { record: place.record, block: 0 }));
                        }
                        NewRecord::Zero { lba, blocks } => {
                            overlay.set(BlockRange::new(*lba, *blocks), OverlayPlace::Zero(place.record));
                        }
                    }
                }
            });
            self.note_accepted(&records[..fitted], &places);
        }
        // Whoever found no room tries again when some came free, and then asks again.
        let is_refused = fitted < records.len();
        if is_refused {
            self.wants_room.store(true, Ordering::Release);
        }
        if is_refused || self.is_tight() {
            self.upload_wake.notify_one();
        }
        Ok(fitted)
    }

    fn note_accepted(&self, records: &[NewRecord<'_>], places: &[Appended]) {
        let now = clock::uptime();
        let mut progress = self.progress.lock();
        let was_empty = progress.due_at(Duration::ZERO).is_none();
        let mut gathered = false;
        for (record, place) in records.iter().zip(places) {
            let bytes = match record {
                NewRecord::Write { data, .. } => data.len() as u64,
                NewRecord::Zero { .. } => 0,
            };
            gathered |= progress.accept(Mark { sequence: place.sequence, end: place.end }, bytes, now);
        }
        drop(progress);
        if gathered || was_empty {
            self.upload_wake.notify_one();
        }
    }

    /// True if the process was suspended, and the store is to say first whose the volume is.
    ///
    /// # Errors
    /// Why the volume takes no requests any more.
    fn is_in_doubt(&self) -> Result<bool> {
        match self.gate.check() {
            Ok(()) => Ok(false),
            Err(Refusal::Doubtful) => Ok(true),
            Err(Refusal::Closed(error)) => Err(error),
        }
    }

    fn append_record(&self, record: &NewRecord<'_>) -> Result<Appending> {
        let fitted = self.append(&mut self.writer.lock(), std::slice::from_ref(record))?;
        Ok(if fitted == 1 { Appending::Done } else { Appending::NoRoom })
    }

    /// Appends something once it is its turn, waiting for room as long as `append` finds none.
    async fn append_waiting(&self, mut append: impl FnMut() -> Result<Appending>) -> Result<Appending> {
        // As long as anybody stands in the line, all others must join it; so nobody does who finds room.
        if self.space_waiters.load(Ordering::Acquire) == 0 {
            if self.is_in_doubt()? {
                return Ok(Appending::Outdated);
            }
            match append()? {
                Appending::NoRoom => {}
                done => return Ok(done),
            }
        }
        self.space_waiters.fetch_add(1, Ordering::AcqRel);
        let _leave = LeaveQueue(&self.space_waiters);
        let _turn = self.space_turn.lock().await;
        loop {
            let woken = self.space_wake.notified();
            let eased = self.shared.places.eased();
            tokio::pin!(woken, eased);
            woken.as_mut().enable();
            eased.as_mut().enable();
            if self.is_in_doubt()? {
                return Ok(Appending::Outdated);
            }
            match append()? {
                Appending::NoRoom => {}
                done => return Ok(done),
            }
            tracing::debug!(volume = %self.id, "writers wait for the full log");
            tokio::select! {
                biased;
                () = woken => {}
                () = eased => {}
            }
        }
    }

    fn try_part_blocks(&self, change: &Change<&[u8]>) -> Attempt {
        let Some((mut merged, edges)) = self.plan_merge(change) else { return Attempt::Done };
        for lba in edges {
            let Some(buffer) = merged.parts.iter_mut().find_map(|part| part.block_mut(lba)) else { continue };
            match self.try_read_blocks(BlockRange::new(lba, BlockCount(1)), buffer) {
                Attempt::Done => {}
                other => return other,
            }
        }
        fill_in(change, &mut merged.parts);
        match self.append_merged(&mut merged) {
            Ok(Appending::Done) => Attempt::Done,
            Ok(Appending::Outdated | Appending::NoRoom) => Attempt::WouldBlock,
            Err(error) => Attempt::Failed(error),
        }
    }

    async fn change_part_blocks(&self, change: &Change<&[u8]>) -> Result<Appending> {
        let Some((mut merged, edges)) = self.plan_merge(change) else { return Ok(Appending::Done) };
        for lba in edges {
            let Some(buffer) = merged.parts.iter_mut().find_map(|part| part.block_mut(lba)) else { continue };
            self.read_blocks(BlockRange::new(lba, BlockCount(1)), buffer).await?;
        }
        fill_in(change, &mut merged.parts);
        self.append_waiting(|| self.append_merged(&mut merged)).await
    }

    /// Lays out the records of a change with part blocks, and says which blocks must be read first. `None` for a trim
    /// of less than a block, which changes nothing.
    fn plan_merge(&self, change: &Change<&[u8]>) -> Option<(Merged, Vec<Lba>)> {
        let (offset, length, all_data) = match change {
            Change::Write { offset, data } => (*offset, data.len() as u64, true),
            Change::Zero { offset, length } => (*offset, *length, false),
            Change::Trim { .. } => return None,
        };
        let range = BlockRange::covering(offset, length);
        let last = Lba(range.end().0 - 1);
        let mut edges = Vec::with_capacity(2);
        if !offset.is_multiple_of(BLOCK_SIZE) {
            edges.push(range.start);
        }
        if !(offset + length).is_multiple_of(BLOCK_SIZE) && edges.first() != Some(&last) {
            edges.push(last);
        }
        let data_part = |range: BlockRange, edges: &[Lba]| {
            let data = vec![0; range.count.bytes().0 as usize];
            Part::Data { lba: range.start, data, edges: edges.to_vec() }
        };
        let mut parts = Vec::with_capacity(3);
        if all_data {
            parts.push(data_part(range, &edges));
        } else {
            parts.extend(edges.iter().map(|&lba| data_part(BlockRange::new(lba, BlockCount(1)), &[lba])));
            let start = offset.div_ceil(BLOCK_SIZE);
            let end = (offset + length) / BLOCK_SIZE;
            if end > start {
                parts.push(Part::Zero(BlockRange::new(Lba(start), BlockCount(end - start))));
            }
        }
        Some((Merged { parts, head: self.log_head() }, edges))
    }

    /// Appends a merged change, if nobody has written to a merged block since it was read. Parts that found room are taken out of it.
    fn append_merged(&self, merged: &mut Merged) -> Result<Appending> {
        let mut writer = self.writer.lock();
        let is_current = {
            let overlay = self.overlay()?;
            // What was written since lies in the log from there on. As long as nothing of that was given back, the overlay names it.
            let names_all = self.released.load(Ordering::Acquire) <= merged.head.0;
            let mut edges = merged.parts.iter().flat_map(Part::edges);
            edges.all(|&lba| names_all && overlay.block(lba).is_before(merged.head))
        };
        if !is_current {
            return Ok(Appending::Outdated);
        }
        let records: Vec<NewRecord<'_>> = merged.parts.iter().map(Part::record).collect();
        let fitted = self.append(&mut writer, &records)?;
        merged.parts.drain(..fitted);
        Ok(if merged.parts.is_empty() { Appending::Done } else { Appending::NoRoom })
    }
}

struct LeaveQueue<'a>(&'a AtomicU64);

impl Drop for LeaveQueue<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The record for a change that covers whole blocks only. A trim covers the whole blocks within it.
fn whole_blocks<'a>(change: &Change<&'a [u8]>) -> Option<NewRecord<'a>> {
    let aligned = |offset: u64, length: u64| offset.is_multiple_of(BLOCK_SIZE) && length.is_multiple_of(BLOCK_SIZE);
    match change {
        Change::Write { offset, data } if aligned(*offset, data.len() as u64) => {
            Some(NewRecord::Write { lba: Lba::containing(*offset), data })
        }
        Change::Zero { offset, length } | Change::Trim { offset, length } if aligned(*offset, *length) => {
            Some(NewRecord::Zero { lba: Lba::containing(*offset), blocks: BlockCount(length / BLOCK_SIZE) })
        }
        Change::Trim { offset, length } => {
            let start = offset.div_ceil(BLOCK_SIZE);
            let end = (offset + length) / BLOCK_SIZE;
            (end > start).then(|| NewRecord::Zero { lba: Lba(start), blocks: BlockCount(end - start) })
        }
        _ => None,
    }
}

/// Puts the bytes of the change over the merged blocks.
fn fill_in(change: &Change<&[u8]>, parts: &mut [Part]) {
    let (offset, length) = match change {
        Change::Write { offset, data } => (*offset, data.len() as u64),
        Change::Zero { offset, length } | Change::Trim { offset, length } => (*offset, *length),
    };
    for part in parts {
        let Part::Data { lba, data: blocks, .. } = part else { continue };
        let base = lba.byte_offset();
        let from = offset.max(base);
        let to = (offset + length).min(base + blocks.len() as u64);
        let target = &mut blocks[(from - base) as usize..(to - base) as usize];
        match change {
            Change::Write { data, .. } => {
                target.copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize])
            }
            _ => target.fill(0),
        }
    }
}

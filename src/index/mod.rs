//! The local index: one RocksDB database for the daemon, which holds pages of block maps, indexes of segments, the
//! states of volumes, and the slots of the read cache. Values are opaque here; pages and indexes carry checksums of
//! their own.
//!
//! Owns: a directory of the state directory. All that is in it can be rebuilt from the write logs and the store.
//! Guarantees: what comes back after a crash is the state as of one moment, all column families alike (atomic flush),
//! and each method that writes has effect as a whole or not at all. Memory stays within the budget (`open` says how it
//! is divided).
//! Order: RocksDB's own log is off, so a write survives the process only after [`Index::flush`], a flush of
//! RocksDB's own, or a drop. What was written later than that is missing after a crash; who needs it replays it.
//! Errors: a database that cannot be opened as it is, or in which damage was met, is moved aside to `<path>.damaged`
//! (one is kept) at open, and a fresh one takes its place. Damage met while running is an error of kind `Damaged`, and
//! noted for the next open.
//!
//! Methods block; point lookups are brief enough for a call from async code, flush and open are not.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rocksdb::{ColumnFamily, DB, Direction, FlushOptions, IteratorMode, ReadOptions, WriteBatch};

use crate::error::{Error, ErrorKind, Result};
use crate::format::index as keys;
use crate::map::PageIndex;
use crate::units::{ByteLen, FrameId, SegmentId, VolumeId};

mod open;
#[cfg(test)]
mod tests;
mod twin;

pub use twin::Twin;

/// The column families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    Pages,
    SegmentIndexes,
    Volumes,
    Slots,
}

impl Family {
    const ALL: [Family; 4] = [Family::Pages, Family::SegmentIndexes, Family::Volumes, Family::Slots];

    fn name(self) -> &'static str {
        match self {
            Family::Pages => "pages",
            Family::SegmentIndexes => "segment_indexes",
            Family::Volumes => "volumes",
            Family::Slots => "slots",
        }
    }
}

/// The local index. Share it by `Arc`.
pub struct Index {
    rows: Rows,
    path: PathBuf,
    is_damage_noted: AtomicBool,
}

/// Where the rows are.
enum Rows {
    RocksDb(DB),
    /// In the simulated world.
    Twin(twin::Open),
}

/// Changes that have effect together.
enum Batch {
    RocksDb(WriteBatch),
    Twin(twin::Changes),
}

impl Index {
    /// Opens the database in the directory `path`, or creates it. `memory` bounds its caches and buffers together.
    ///
    /// # Errors `Busy` if another process has it open, `Full` if there is no space, `Io` if the directory cannot be
    /// used. Damage is no error.
    pub fn open(path: &Path, memory: ByteLen) -> Result<Self> {
        let db = open::open(path, memory)?;
        Ok(Index { rows: Rows::RocksDb(db), path: path.to_owned(), is_damage_noted: AtomicBool::new(false) })
    }

    /// An index of the simulated world.
    pub fn on_twin(twin: &Twin, path: &Path) -> Self {
        Index { rows: Rows::Twin(twin.open()), path: path.to_owned(), is_damage_noted: AtomicBool::new(false) }
    }

    /// Makes everything written so far survive the process and power loss.
    ///
    /// # Errors
    /// What RocksDB says; then nothing is known about what was written since the last success.
    pub fn flush(&self) -> Result<()> {
        let db = match &self.rows {
            Rows::RocksDb(db) => db,
            Rows::Twin(twin) => return twin.flush(),
        };
        let families = Family::ALL.map(|family| self.family(db, family));
        let families = families.into_iter().collect::<Result<Vec<_>>>()?;
        let mut options = FlushOptions::default();
        options.set_wait(true);
        db.flush_cfs_opt(&families, &options).map_err(|error| self.error("flushing", &error))
    }

    /// A page of a volume's block map.
    ///
    /// # Errors
    /// `Damaged` or `Io`, as all that read.
    pub fn page(&self, volume: VolumeId, page: PageIndex) -> Result<Option<Bytes>> {
        self.get(Family::Pages, keys::page_key(volume, page.0))
    }

    /// Puts pages of a volume, all at once.
    ///
    /// # Errors
    /// `Io` or `Full`, as all that write.
    pub fn put_pages<B: AsRef<[u8]>>(
        &self,
        volume: VolumeId,
        pages: impl IntoIterator<Item = (PageIndex, B)>,
    ) -> Result<()> {
        let batch = self.page_batch(volume, pages)?;
        self.write(batch)
    }

    /// The pages of a volume from `first` on and before `end` that there are, in order, at most `count` of them.
    ///
    /// # Errors
    /// As [`Index::page`].
    pub fn pages_between(
        &self,
        volume: VolumeId,
        first: PageIndex,
        end: PageIndex,
        count: usize,
    ) -> Result<Vec<(PageIndex, Bytes)>> {
        let (first, end) = (keys::page_key(volume, first.0), keys::page_key(volume, end.0));
        let named = |key: &[u8]| keys::page_of_key(key).map(PageIndex);
        let db = match &self.rows {
            Rows::RocksDb(db) => db,
            Rows::Twin(twin) => {
                let rows = twin.range(Family::Pages, &first, &end, count)?;
                return Ok(rows.into_iter().filter_map(|(key, value)| Some((named(&key)?, value))).collect());
            }
        };
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end);
        let from = IteratorMode::From(&first, Direction::Forward);
        let mut pages = Vec::new();
        for row in db.iterator_cf_opt(self.family(db, Family::Pages)?, options, from).take(count) {
            let (key, value) = row.map_err(|error| self.error("reading pages of", &error))?;
            pages.extend(named(&key).map(|page| (page, Bytes::from(value))));
        }
        Ok(pages)
    }

    /// Deletes the pages of a volume from `first` on and before `end`.
    ///
    /// # Errors
    /// As [`Index::put_pages`].
    pub fn delete_pages(&self, volume: VolumeId, first: PageIndex, end: PageIndex) -> Result<()> {
        let mut batch = self.batch();
        let (first, end) = (keys::page_key(volume, first.0), keys::page_key(volume, end.0));
        self.delete_range(&mut batch, Family::Pages, first, end)?;
        self.write(batch)
    }

    /// Puts pages of a volume together with the state that says up to where they are applied, all at once.
    ///
    /// # Errors
    /// As [`Index::put_pages`].
    pub fn put_pages_and_state<B: AsRef<[u8]>>(
        &self,
        volume: VolumeId,
        pages: impl IntoIterator<Item = (PageIndex, B)>,
        state: &[u8],
    ) -> Result<()> {
        let mut batch = self.page_batch(volume, pages)?;
        self.put(&mut batch, Family::Volumes, keys::volume_key(volume), state)?;
        self.write(batch)
    }

    /// Deletes all pages and the state of a volume. The indexes of its segments stay: forks read them.
    ///
    /// # Errors
    /// As [`Index::put_pages`].
    pub fn drop_volume(&self, volume: VolumeId) -> Result<()> {
        let mut batch = self.batch();
        let (first, end) = keys::page_keys(volume);
        self.delete_range(&mut batch, Family::Pages, first, end)?;
        self.delete(&mut batch, Family::Volumes, keys::volume_key(volume))?;
        self.write(batch)
    }

    /// The state of a volume.
    ///
    /// # Errors
    /// As [`Index::page`].
    pub fn volume_state(&self, volume: VolumeId) -> Result<Option<Bytes>> {
        self.get(Family::Volumes, keys::volume_key(volume))
    }

    /// Puts the state of a volume.
    ///
    /// # Errors
    /// As [`Index::put_pages`].
    pub fn put_volume_state(&self, volume: VolumeId, state: &[u8]) -> Result<()> {
        let mut batch = self.batch();
        self.put(&mut batch, Family::Volumes, keys::volume_key(volume), state)?;
        self.write(batch)
    }

    /// The index of a segment.
    ///
    /// # Errors
    /// As [`Index::page`].
    pub fn segment_index(&self, segment: SegmentId) -> Result<Option<Bytes>> {
        self.get(Family::SegmentIndexes, keys::segment_key(segment))
    }

    /// Puts the index of a segment.
    ///
    /// # Errors
    /// As [`Index::put_pages`].
    pub fn put_segment_index(&self, segment: SegmentId, bytes: &[u8]) -> Result<()> {
        let mut batch = self.batch();
        self.put(&mut batch, Family::SegmentIndexes, keys::segment_key(segment), bytes)?;
        self.write(batch)
    }

    /// Deletes the index of a segment.
    ///
    /// # Errors
    /// As [`Index::put_pages`].
    pub fn delete_segment_index(&self, segment: SegmentId) -> Result<()> {
        let mut batch = self.batch();
        self.delete(&mut batch, Family::SegmentIndexes, keys::segment_key(segment))?;
        self.write(batch)
    }

    /// The slot of a frame in the read cache.
    ///
    /// # Errors
    /// As [`Index::page`].
    pub fn slot(&self, frame: FrameId) -> Result<Option<u64>> {
        Ok(self.get(Family::Slots, keys::slot_key(frame))?.and_then(|value| keys::slot_of_value(&value)))
    }

    /// The slots of several frames, in their order.
    ///
    /// # Errors
    /// As [`Index::page`].
    pub fn slots(&self, frames: &[FrameId]) -> Result<Vec<Option<u64>>> {
        let slot_keys: Vec<_> = frames.iter().map(|&frame| keys::slot_key(frame)).collect();
        let db = match &self.rows {
            Rows::RocksDb(db) => db,
            Rows::Twin(_) => return frames.iter().map(|&frame| self.slot(frame)).collect(),
        };
        let found = db.batched_multi_get_cf(self.family(db, Family::Slots)?, &slot_keys, false);
        found
            .into_iter()
            .map(|value| match value {
                Ok(value) => Ok(value.and_then(|value| keys::slot_of_value(&value))),
                Err(error) => Err(self.error("reading slots", &error)),
            })
            .collect()
    }

    /// Deletes the slots of some frames, then puts others, all at once.
    ///
    /// # Errors
    /// As [`Index::put_pages`].
    pub fn apply_slots(&self, puts: &[(FrameId, u64)], deletes: &[FrameId]) -> Result<()> {
        if puts.is_empty() && deletes.is_empty() {
            return Ok(());
        }
        let mut batch = self.batch();
        for &frame in deletes {
            self.delete(&mut batch, Family::Slots, keys::slot_key(frame))?;
        }
        for &(frame, slot) in puts {
            self.put(&mut batch, Family::Slots, keys::slot_key(frame), keys::slot_value(slot))?;
        }
        self.write(batch)
    }

    /// Deletes the slots of all frames.
    ///
    /// # Errors
    /// As [`Index::put_pages`].
    pub fn clear_slots(&self) -> Result<()> {
        let (first, end) = keys::slot_keys();
        let mut batch = self.batch();
        self.delete_range(&mut batch, Family::Slots, first, end)?;
        self.write(batch)
    }

    fn page_batch<B: AsRef<[u8]>>(
        &self,
        volume: VolumeId,
        pages: impl IntoIterator<Item = (PageIndex, B)>,
    ) -> Result<Batch> {
        let mut batch = self.batch();
        for (page, bytes) in pages {
            self.put(&mut batch, Family::Pages, keys::page_key(volume, page.0), bytes)?;
        }
        Ok(batch)
    }

    fn batch(&self) -> Batch {
        match self.rows {
            Rows::RocksDb(_) => Batch::RocksDb(WriteBatch::default()),
            Rows::Twin(_) => Batch::Twin(twin::Changes::default()),
        }
    }

    fn put(&self, batch: &mut Batch, family: Family, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        match (batch, &self.rows) {
            (Batch::RocksDb(batch), Rows::RocksDb(db)) => batch.put_cf(self.family(db, family)?, key, value),
            (Batch::Twin(changes), _) => changes.put(family, key.as_ref(), value.as_ref()),
            (Batch::RocksDb(_), Rows::Twin(_)) => {}
        }
        Ok(())
    }

    fn delete(&self, batch: &mut Batch, family: Family, key: impl AsRef<[u8]>) -> Result<()> {
        match (batch, &self.rows) {
            (Batch::RocksDb(batch), Rows::RocksDb(db)) => batch.delete_cf(self.family(db, family)?, key),
            (Batch::Twin(changes), _) => changes.delete(family, key.as_ref()),
            (Batch::RocksDb(_), Rows::Twin(_)) => {}
        }
        Ok(())
    }

    /// Deletes what lies from `first` to before `end`.
    fn delete_range(
        &self,
        batch: &mut Batch,
        family: Family,
        first: impl AsRef<[u8]>,
        end: impl AsRef<[u8]>,
    ) -> Result<()> {
        let (first, end) = (first.as_ref(), end.as_ref());
        match (batch, &self.rows) {
            (Batch::RocksDb(batch), Rows::RocksDb(db)) => batch.delete_range_cf(self.family(db, family)?, first, end),
            (Batch::Twin(changes), _) => changes.delete_range(family, first, end),
            (Batch::RocksDb(_), Rows::Twin(_)) => {}
        }
        Ok(())
    }

    fn family<'a>(&self, db: &'a DB, family: Family) -> Result<&'a ColumnFamily> {
        let found = db.cf_handle(family.name());
        found.ok_or_else(|| Error::damaged(format!("the index {} has no '{}'", self.path.display(), family.name())))
    }

    fn get(&self, family: Family, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        let db = match &self.rows {
            Rows::RocksDb(db) => db,
            Rows::Twin(twin) => return twin.get(family, key.as_ref()),
        };
        let value = db.get_cf(self.family(db, family)?, key);
        value.map(|value| value.map(Bytes::from)).map_err(|error| self.error("reading", &error))
    }

    fn write(&self, batch: Batch) -> Result<()> {
        match (batch, &self.rows) {
            (Batch::RocksDb(batch), Rows::RocksDb(db)) => {
                db.write_without_wal(batch).map_err(|error| self.error("writing", &error))
            }
            (Batch::Twin(changes), Rows::Twin(twin)) => twin.write(changes),
            _ => Err(Error::new(ErrorKind::Io, "a batch of another index")),
        }
    }

    /// An error with the index's name; damage is also noted, so that the next open starts afresh.
    fn error(&self, what: &str, error: &rocksdb::Error) -> Error {
        let kind = open::error_kind(error);
        if kind == ErrorKind::Damaged && !self.is_damage_noted.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "{what} the index {}: {error}; it will be made anew at the next start",
                self.path.display()
            );
            open::note_damage(&self.path);
        }
        let remedy = if kind == ErrorKind::Damaged { "; it is made anew when the daemon is started again" } else { "" };
        Error::new(kind, format!("{what} the index {}: {error}{remedy}", self.path.display()))
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::warn!("{error}; what it lacks is rebuilt at the next start");
        }
    }
}

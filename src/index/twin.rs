//! RocksDB's twin in the simulated world: rows in memory behind the same seam, with the same atomicity.
//!
//! Fault model: each batch has effect as a whole. A death of the process leaves the state of the last flush or, since RocksDB may flush
//! by itself at any time, of any batch behind it; a test may also put an older state in its place, or none.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::Family;
use crate::error::{Error, ErrorKind, Result};

type RowMap = BTreeMap<(Family, Bytes), Bytes>;

#[derive(Clone, Debug)]
enum Change {
    Put(Family, Bytes, Bytes),
    Delete(Family, Bytes),
    DeleteRange(Family, Bytes, Bytes),
}

/// A batch.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes(Vec<Change>);

impl Changes {
    pub fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.0.push(Change::Put(family, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
    }

    pub fn delete(&mut self, family: Family, key: &[u8]) {
        self.0.push(Change::Delete(family, Bytes::copy_from_slice(key)));
    }

    pub fn delete_range(&mut self, family: Family, first: &[u8], end: &[u8]) {
        self.0.push(Change::DeleteRange(family, Bytes::copy_from_slice(first), Bytes::copy_from_slice(end)));
    }

    fn apply(&self, rows: &mut RowMap) {
        for change in &self.0 {
            match change {
                Change::Put(family, key, value) => {
                    rows.insert((*family, key.clone()), value.clone());
                }
                Change::Delete(family, key) => {
                    rows.remove(&(*family, key.clone()));
                }
                Change::DeleteRange(family, first, end) => {
                    let range = (*family, first.clone())..(*family, end.clone());
                    let gone: Vec<_> = rows.range(range).map(|(key, _)| key.clone()).collect();
                    gone.iter().for_each(|key| drop(rows.remove(key)));
                }
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Counts the deaths of the process: what was opened before the last one is dead.
    life: u64,
    flushed: RowMap,
    /// The batches since.
    unflushed: Vec<Changes>,
    current: RowMap,
}

/// The medium under an index. Clones are the same; it outlives the process.
#[derive(Clone, Debug, Default)]
pub struct Twin(Arc<Mutex<State>>);

impl Twin {
    pub(super) fn open(&self) -> Open {
        Open { life: self.0.lock().life, twin: self.clone() }
    }

    /// The process dies: what stays is the state after the last flush and `batches` more, or all if there are fewer.
    pub fn die(&self, batches: usize) {
        let mut state = self.0.lock();
        state.life += 1;
        let unflushed = std::mem::take(&mut state.unflushed);
        unflushed.iter().take(batches).for_each(|changes| changes.apply(&mut state.flushed));
        state.current = state.flushed.clone();
    }

    /// The number of batches since the last flush.
    pub fn unflushed(&self) -> usize {
        self.0.lock().unflushed.len()
    }

    /// A medium of its own with the same content.
    pub fn fork(&self) -> Twin {
        Twin(Arc::new(Mutex::new(self.0.lock().clone())))
    }
}

/// An open index.
pub(super) struct Open {
    life: u64,
    twin: Twin,
}

impl Open {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> Result<T> {
        let mut state = self.twin.0.lock();
        if state.life != self.life {
            return Err(Error::new(ErrorKind::Io, "the process that opened this index is dead"));
        }
        Ok(act(&mut state))
    }

    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        self.with(|state| state.current.get(&(family, Bytes::copy_from_slice(key))).cloned())
    }

    pub fn range(&self, family: Family, first: &[u8], end: &[u8], count: usize) -> Result<Vec<(Bytes, Bytes)>> {
        let range = (family, Bytes::copy_from_slice(first))..(family, Bytes::copy_from_slice(end));
        let rows = |state: &mut State| {
            state.current.range(range).take(count).map(|((_, key), value)| (key.clone(), value.clone())).collect()
        };
        self.with(rows)
    }

    pub fn write(&self, changes: Changes) -> Result<()> {
        self.with(|state| {
            changes.apply(&mut state.current);
            state.unflushed.push(changes);
        })
    }

    pub fn flush(&self) -> Result<()> {
        self.with(|state| {
            state.unflushed.clear();
            state.flushed = state.current.clone();
        })
    }
}

//! Damage in a store and in a state directory, under the whole engine: attach, read every block, check.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use varve::admin::Admin;
use varve::block_device::{BlockDevice, Change};
use varve::disk::Disk;
use varve::error::{Error, ErrorKind, Result};
use varve::fleet::Fleet;
use varve::index::Index;
use varve::service::{CheckReport, Durability};
use varve::store::{ByteRange, Condition, MemoryStore, ObjectKey, Store, list_all};
use varve::units::{ByteLen, VolumeId};
use varve::volume::{Volume, VolumeDevice};

use super::engine::{self, Setup};
use super::samples::content;

/// Blocks of the volume.
pub const BLOCKS: u64 = 1024;
const BLOCK: u64 = 4096;

/// A volume in a store, and what it must hold: for each block what it was filled with last, if anything.
pub struct World {
    pub store: Arc<dyn Store>,
    pub id: VolumeId,
    pub model: Vec<Option<u64>>,
}

/// A store with the same objects.
pub async fn copy(store: &dyn Store) -> Arc<dyn Store> {
    let to = MemoryStore::new();
    for object in list_all(store, &ObjectKey::everything()).await.unwrap() {
        let bytes = store.get(&object.key, ByteRange::Full).await.unwrap().bytes;
        to.put(&object.key, bytes, Condition::IfAbsent).await.unwrap();
    }
    engine::keyed(Arc::new(to))
}

/// Puts other bytes in the place of an object, or takes it away.
pub async fn replace(store: &dyn Store, key: &ObjectKey, bytes: Option<Vec<u8>>) {
    match bytes {
        None => store.delete(key).await.unwrap(),
        Some(bytes) => {
            let etag = store.get(key, ByteRange::Full).await.unwrap().etag;
            store.put(key, bytes.into(), Condition::IfMatch(etag)).await.unwrap();
        }
    }
}

/// A folder of its own, in memory where the system has a place for that: hundreds of databases are opened and closed, and none of them is
/// to survive power loss.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// An engine with a small log, of which everything is uploaded soon.
pub async fn start(disk: Arc<dyn Disk>, store: &Arc<dyn Store>, folder: &Path) -> Arc<Fleet> {
    let setup = Setup { log_length: 4 << 20, cache_size: 5 << 20, ..Setup::default() };
    engine::start(disk, folder, store.clone(), setup).await
}

impl World {
    pub async fn new() -> Self {
        let store = engine::keyed(Arc::new(MemoryStore::new()));
        let id = engine::create(&store, BLOCKS * BLOCK, Durability::Local).await;
        World { store, id, model: vec![None; BLOCKS as usize] }
    }

    /// Writes a run of blocks, of noise or of what compresses.
    pub async fn write(&mut self, volume: &Arc<Volume>, first: u64, count: u64, stamp: u64) {
        let mut data = Vec::new();
        for block in first..first + count {
            let seed = stamp * BLOCKS + block;
            data.extend(content(seed, seed.is_multiple_of(3)));
            self.model[block as usize] = Some(seed);
        }
        let device = VolumeDevice::new(volume.clone());
        device.change(Change::Write { offset: first * BLOCK, data: Bytes::from(data) }).await.unwrap();
    }

    pub async fn trim(&mut self, volume: &Arc<Volume>, first: u64, count: u64) {
        let device = VolumeDevice::new(volume.clone());
        device.change(Change::Trim { offset: first * BLOCK, length: count * BLOCK }).await.unwrap();
        self.model[first as usize..(first + count) as usize].fill(None);
    }

    fn expected(&self, block: u64) -> Vec<u8> {
        self.model[block as usize].map_or(vec![0; BLOCK as usize], |seed| content(seed, seed.is_multiple_of(3)))
    }

    /// Reads every block: each must be right, or an error. Returns the blocks that could not be had, and the first error.
    pub async fn read_all(&self, volume: &Arc<Volume>, what: &str) -> (BTreeSet<u64>, Option<Error>) {
        let device = VolumeDevice::new(volume.clone());
        let (mut lost, mut first) = (BTreeSet::new(), None);
        let mut buffer = vec![0; BLOCK as usize];
        for block in 0..BLOCKS {
            match device.read(block * BLOCK, &mut buffer).await {
                Ok(()) => assert!(buffer == self.expected(block), "{what}: block {block} is wrong"),
                Err(error) => {
                    lost.insert(block);
                    first.get_or_insert(error);
                }
            }
        }
        (lost, first)
    }

    pub async fn check(&self, store: &Arc<dyn Store>) -> Result<CheckReport> {
        Admin::new(store.clone()).check(self.id, false, &mut |_| ()).await
    }
}

/// The blocks that a report names.
pub fn named(report: &CheckReport) -> BTreeSet<u64> {
    let texts = report.problems.iter().filter_map(|problem| problem.blocks.as_deref());
    let mut blocks = BTreeSet::new();
    for range in texts.flat_map(|text| text.split(", ")).filter(|range| *range != "all") {
        let (first, last) = range.split_once('-').expect("few enough ranges are named");
        blocks.extend(first.parse::<u64>().unwrap()..=last.parse::<u64>().unwrap());
    }
    blocks
}

/// Lets go of an engine, and waits until its index is closed.
pub async fn stop(fleet: Arc<Fleet>, folder: &Path) {
    drop(fleet);
    loop {
        match Index::open(&folder.join("index"), ByteLen(8 << 20)) {
            Ok(_) => return,
            Err(error) if error.kind() == ErrorKind::Busy => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The files below a folder.
pub fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// Copies a folder of plain files, holes as holes.
pub fn copy_folder(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

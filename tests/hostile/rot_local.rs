//! Damage in what a host keeps: the local index, the read cache, the write log.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use varve::block_device::BlockDevice;
use varve::disk::host::HostDisk;
use varve::error::{Error, ErrorKind};
use varve::fleet::Fleet;
use varve::format::log::write_span;
use varve::store::Store;
use varve::volume::VolumeDevice;

use super::engine::{self, Setup};
use super::rot_engine::{World, copy, copy_folder, files, scratch, start, stop};

/// Cases under way at a time: most of each is waiting.
const AT_ONCE: usize = 6;

/// What was done, and what came of it.
#[derive(Debug, Default)]
pub struct Found {
    pub cases: u64,
    /// All was right at the first start.
    pub at_once: u64,
    /// The first start told of the damage, the second had all right.
    pub at_second_start: u64,
    /// Told, and left alone.
    pub refused: u64,
}

/// An engine that uploads nothing by itself, so that everything is in the log.
async fn patient(store: &Arc<dyn Store>, folder: &Path) -> Arc<Fleet> {
    let setup = Setup { segment_age: Duration::from_hours(1), cache_size: 5 << 20, ..Setup::default() };
    engine::start(Arc::new(HostDisk), folder, store.clone(), setup).await
}

/// Flips a bit of a file in its place.
fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let at = at % file.metadata().unwrap().len();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1 << (at % 8);
    file.write_all_at(&byte, at).unwrap();
}

/// A kind of damage to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip(u64),
    Cut(u64),
    Gone,
}

impl Damage {
    fn apply(self, path: &Path) {
        match self {
            Damage::Flip(at) => flip(path, at),
            Damage::Cut(length) => fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap(),
            Damage::Gone => fs::remove_file(path).unwrap(),
        }
    }
}

/// A detached volume, and the state directory of the host that had it.
async fn detached(folder: &Path) -> World {
    let mut world = World::new().await;
    let fleet = start(Arc::new(HostDisk), &world.store, folder).await;
    let (volume, _) = fleet.attach(world.id, false, false).await.unwrap();
    for (stamp, (first, count)) in [(0, 60), (300, 33), (20, 9), (512, 120)].into_iter().enumerate() {
        world.write(&volume, first, count, stamp as u64).await;
        volume.sync().await.unwrap();
    }
    drop(volume);
    fleet.detach(world.id, false).await.unwrap();
    stop(fleet, folder).await;
    // Read through a log that is empty, so that the cache is filled.
    let fleet = start(Arc::new(HostDisk), &world.store, folder).await;
    let (volume, _) = fleet.attach(world.id, false, false).await.unwrap();
    assert!(world.read_all(&volume, "nothing is damaged yet").await.0.is_empty());
    drop(volume);
    fleet.detach(world.id, false).await.unwrap();
    stop(fleet, folder).await;
    world
}

/// Attaches and reads everything; nothing may be wrong. An error is told.
async fn whole(world: &World, store: &Arc<dyn Store>, folder: &Path, what: &str) -> Result<(), Error> {
    let fleet = start(Arc::new(HostDisk), store, folder).await;
    let outcome = match fleet.attach(world.id, true, false).await {
        Err(error) => Err(error),
        Ok((volume, _)) => world.read_all(&volume, what).await.1.map_or(Ok(()), Err),
    };
    // Not in good order where the index is damaged.
    let _ = fleet.detach(world.id, true).await;
    stop(fleet, folder).await;
    outcome
}

/// Damages every file of the local index, and the cache, and takes them away.
pub async fn damage_index_and_cache() -> Found {
    let scratch = scratch();
    let template = scratch.path().join("template");
    let world = detached(&template).await;
    let mut cases: Vec<(PathBuf, Damage)> = Vec::new();
    for path in files(&template.join("index")).into_iter().filter(|path| !path.ends_with("LOCK")) {
        let length = fs::metadata(&path).unwrap().len();
        let path = path.strip_prefix(&template).unwrap().to_owned();
        let places = [3, length / 4, length / 2, length.saturating_sub(60)];
        if length > 0 {
            cases.extend(places.map(|at| (path.clone(), Damage::Flip(at))));
            cases.extend([length / 2].map(|to| (path.clone(), Damage::Cut(to))));
        }
        cases.push((path, Damage::Gone));
    }
    let cache = PathBuf::from("cache");
    let places = [20, 4100, 8200, 8300, 20_000, 60_000, 200_000];
    cases.extend(places.map(|at| (cache.clone(), Damage::Flip(at))));
    cases.extend([Damage::Cut(0), Damage::Cut(100_000), Damage::Gone].map(|damage| (cache.clone(), damage)));
    let mut found = Found { cases: cases.len() as u64, ..Found::default() };
    let runs = cases.into_iter().enumerate().map(|(number, (path, damage))| {
        let folder = scratch.path().join(format!("case-{number}"));
        copy_folder(&template, &folder);
        damage.apply(&folder.join(&path));
        index_case(&world, folder, format!("{}: {damage:?}", path.display()))
    });
    let mut runs = stream::iter(runs).buffer_unordered(AT_ONCE);
    while let Some(at_once) = runs.next().await {
        match at_once {
            true => found.at_once += 1,
            false => found.at_second_start += 1,
        }
    }
    drop(runs);
    fs::remove_dir_all(template.join("index")).unwrap();
    whole(&world, &copy(&*world.store).await, &template, "without the index").await.unwrap();
    found
}

/// True if all is right at the first start, false if that tells of damage to the index and the second start has all right.
async fn index_case(world: &World, folder: PathBuf, what: String) -> bool {
    let store = copy(&*world.store).await;
    let first = whole(world, &store, &folder, &what).await;
    if let Err(error) = &first {
        assert!(error.message().contains("index"), "{what}: {error}");
        assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error}");
        whole(world, &store, &folder, &what).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    fs::remove_dir_all(&folder).unwrap();
    first.is_ok()
}

/// Damages a write log of which nothing is stored yet. Every write is a block of its own and was made durable.
pub async fn damage_log() -> Found {
    const WRITES: u64 = 10;
    let scratch = scratch();
    let (live, template) = (scratch.path().join("live"), scratch.path().join("template"));
    let mut world = World::new().await;
    let fleet = patient(&world.store, &live).await;
    let (volume, _) = fleet.attach(world.id, false, false).await.unwrap();
    for block in 0..WRITES {
        world.write(&volume, block, 1, 1).await;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        VolumeDevice::new(volume.clone()).commit(Box::new(move |done| drop(sender.send(done))));
        receiver.await.unwrap().unwrap();
    }
    // As kill -9 leaves it: what RocksDB holds does not matter.
    let store = copy(&*world.store).await;
    copy_folder(&live, &template);
    fs::remove_dir_all(template.join("index")).unwrap();
    drop(volume);
    fleet.detach(world.id, true).await.unwrap();
    let log = Path::new("volumes").join(world.id.to_string()).join("log");
    let mut found = Found::default();
    let record = write_span(1, true);
    let places = (0..WRITES).flat_map(|write| [9, 50, 63, 90, 2000].map(|at| 8192 + write * record + at));
    let superblocks = [0, 8, 40, 90, 130, 2000, 4096, 4200];
    let all = places.chain(superblocks).chain([8192 + WRITES * record, 8192 + WRITES * record + 99_999]);
    let runs = all.map(|at| {
        let folder = scratch.path().join(format!("case-{at}"));
        copy_folder(&template, &folder);
        flip(&folder.join(&log), at);
        let is_record = (8192..8192 + WRITES * record).contains(&at);
        log_case(&world, &store, folder, at, is_record.then(|| (at - 8192) / record))
    });
    let mut runs = stream::iter(runs).buffer_unordered(AT_ONCE);
    while let Some(refused) = runs.next().await {
        found.cases += 1;
        match refused {
            true => found.refused += 1,
            false => found.at_once += 1,
        }
    }
    drop(runs);
    found
}

/// `hit` is the write whose record was hit. True if attaching is refused.
async fn log_case(world: &World, store: &Arc<dyn Store>, folder: PathBuf, at: u64, hit: Option<u64>) -> bool {
    let (what, store) = (format!("byte {at} of the log"), copy(&**store).await);
    let fleet = patient(&store, &folder).await;
    let attached = fleet.attach(world.id, false, false).await;
    let is_refused = attached.is_err();
    match attached {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error}");
            assert!(error.message().contains("write log"), "{what}: {error}");
            assert!(hit.is_some(), "{what}: {error}");
        }
        Ok((volume, _)) => {
            // A last record that nothing proves to have been durable is cut off like a torn one; then it alone is lost.
            let mut left = World { store: store.clone(), id: world.id, model: world.model.clone() };
            let torn = hit.filter(|&hit| hit + 1 == world.model.iter().flatten().count() as u64);
            if let Some(torn) = torn {
                left.model[torn as usize] = None;
            }
            assert!(hit.is_none() || torn.is_some(), "{what}: record {hit:?} was hit, and nobody says so");
            assert!(left.read_all(&volume, &what).await.0.is_empty());
        }
    }
    // What it then does with the store is of no interest here.
    let _ = fleet.detach(world.id, true).await;
    stop(fleet, &folder).await;
    fs::remove_dir_all(&folder).unwrap();
    is_refused
}

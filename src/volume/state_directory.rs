//! The state directory of a daemon: one daemon at a time, and one store for ever.
//!
//! ```text
//! lock            held while the daemon runs
//! state.json      which store this directory belongs to
//! volumes/<vol>/  write logs, and notes of claims
//! index/          RocksDB
//! cache           the read cache's file
//! control.sock    the control socket
//! ```

use std::io::{IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::cache::{CacheSettings, ReadCache};
use crate::checkpoint::KnownDirectories;
use crate::disk::host::{HostDisk, LockGuard, lock_exclusive};
use crate::disk::{Disk, OpenMode};
use crate::error::{Context, Error, Result};
use crate::format::envelope;
use crate::index::Index;
use crate::store::Store;
use crate::units::{ByteLen, StoreId};
use crate::volume::fetch::new_segment_index_cache;
use crate::volume::frozen_device::FrozenMaps;
use crate::volume::packers::Packers;
use crate::volume::pages::PageBudget;
use crate::volume::places::PlacesBudget;
use crate::volume::shared::{CLEANERS, EngineSettings, Shared, SlotsInIndex, UPLOADS_KIB_MAX};
use crate::volume::warm::Warming;
use crate::work::Runtime;

/// How the memory of a daemon is divided: blocks of the read cache, the block map (half of it pages, half places in the logs), segment
/// indexes, RocksDB.
const MEMORY_SHARES: [u64; 4] = [8, 4, 2, 2];

#[derive(Serialize, Deserialize)]
struct StateFile {
    store: StoreId,
}

/// What a state directory is opened with.
#[derive(Clone, Debug)]
pub struct StateSettings {
    /// The directory.
    pub path: PathBuf,
    /// Budget of the read cache on disk.
    pub cache_size: ByteLen,
    /// Budget of everything kept in memory.
    pub memory_size: ByteLen,
    /// The engine.
    pub engine: EngineSettings,
}

/// Opens a state directory for the store with this identity, creating it if there is none.
///
/// # Errors
/// `Busy` if another daemon uses it, `Invalid` if it belongs to another store, and what the local disk says.
pub fn open(
    settings: StateSettings,
    store: Arc<dyn Store>,
    store_id: StoreId,
    runtime: Handle,
) -> Result<(Arc<Shared>, LockGuard)> {
    let path = &settings.path;
    HostDisk.create_directory(path).context(|| format!("cannot create the state directory {}", path.display()))?;
    let lock = lock_exclusive(path)?;
    Ok((open_on(Arc::new(HostDisk), Index::open, settings, store, store_id, runtime.into())?, lock))
}

/// As [`open`], on any disk and without the lock: the simulated world comes in here. Write logs and the read cache's file are
/// on `disk`; `open_index` is given the path `index/` below the same directory and the memory that the index may take.
///
/// # Errors
/// As [`open`].
pub fn open_on(
    disk: Arc<dyn Disk>,
    open_index: impl FnOnce(&Path, ByteLen) -> Result<Index>,
    settings: StateSettings,
    store: Arc<dyn Store>,
    store_id: StoreId,
    runtime: Runtime,
) -> Result<Arc<Shared>> {
    let path = &settings.path;
    disk.create_directory(path).context(|| format!("cannot create the state directory {}", path.display()))?;
    check_store(&*disk, path, store_id, store.address())?;
    let volumes_directory = path.join("volumes");
    disk.create_directory(&volumes_directory).context(|| format!("cannot create {}", volumes_directory.display()))?;
    let total: u64 = MEMORY_SHARES.iter().sum();
    let share = |which: usize| ByteLen(settings.memory_size.0 * MEMORY_SHARES[which] / total);
    let index = Arc::new(open_index(&path.join("index"), share(3))?);
    let cache_settings = CacheSettings { memory: share(0), disk: settings.cache_size, path: path.join("cache") };
    let cache = Arc::new(ReadCache::open(&cache_settings, &*disk, Arc::new(SlotsInIndex(index.clone()))));
    let half_of_pages = usize::try_from(share(1).0 / 2).unwrap_or(usize::MAX);
    let shared = Shared {
        store,
        store_id,
        disk,
        volumes_directory,
        index,
        cache,
        waiting_for_disk: Arc::default(),
        cleaners: Semaphore::new(CLEANERS),
        uploads: Arc::new(Semaphore::new(UPLOADS_KIB_MAX)),
        segment_indexes: new_segment_index_cache(share(2)),
        frozen_maps: FrozenMaps::default(),
        directories: KnownDirectories::default(),
        places: Arc::new(PlacesBudget::new(half_of_pages)),
        page_budget: Arc::new(PageBudget::new(half_of_pages)),
        packers: Packers::start()?,
        warming: Warming::default(),
        runs_noted: Arc::default(),
        runtime,
        settings: settings.engine,
    };
    Ok(Arc::new(shared))
}

fn check_store(disk: &dyn Disk, directory: &Path, store: StoreId, address: &str) -> Result<()> {
    let path = directory.join("state.json");
    let shown = path.display().to_string();
    match disk.open(&path, OpenMode::Existing) {
        Ok(file) => {
            let length = file.length().context(|| &shown)?.min(crate::limits::JSON_OBJECT_BYTES_MAX);
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            file.read_at(&mut [IoSliceMut::new(&mut bytes)], 0).context(|| &shown)?;
            let found: StateFile = envelope::decode("state", &shown, &bytes)?;
            if found.store != store {
                return Err(Error::invalid(format!(
                    "the state directory {} belongs to {}, but the store at {address} is {store}: give each store a state directory of its own with --state",
                    directory.display(),
                    found.store
                )));
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let bytes = envelope::encode("state", &StateFile { store })?;
            let fresh = directory.join("state.json.new");
            match disk.remove(&fresh) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(fresh.display(), &error));
                }
                _ => {}
            }
            let file = disk.open(&fresh, OpenMode::CreateNew).context(|| fresh.display().to_string())?;
            file.write_at(&[IoSlice::new(&bytes)], 0)
                .and_then(|()| file.sync_data())
                .context(|| fresh.display().to_string())?;
            disk.rename(&fresh, &path).and_then(|()| disk.sync_directory(directory)).context(|| &shown)
        }
        Err(error) => Err(Error::io(&shown, &error)),
    }
}

//! Volumes on a real state directory and a store that fails on demand. A daemon's life ends as by `kill -9`: nothing is handed back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::admin::{Admin, PurgeTimer};
use crate::block_device::{BlockDevice, Change};
use crate::fleet::Fleet;
use crate::keys::{KeySource, Keyring};
use crate::seal::{KEY_BYTES, VolumeKey};
use crate::service::{Durability, NewVolume};
use crate::store::{Effect, Faults, Keyed, Matching, MemoryStore, ObjectKey, Operation, Store, StoreErrorKind};
use crate::units::{ByteLen, SegmentId, SegmentNumber, StoreId, VolumeId};
use crate::volume::state_directory::{self, StateSettings};
use crate::volume::{CLEANING, EngineSettings, Volume, VolumeDevice};

mod again;
mod asking;
mod catalog;
mod claims;
mod counting;
mod crashes;
mod damaged_map;
mod export_log;
mod family;
mod frozen;
mod handing_back;
mod manifest;
mod past;
mod purge;
mod room;
mod slow_attach;

const LOG_BYTES: ByteLen = ByteLen(4 << 20);

/// A store that outlives its hosts.
struct World {
    directory: tempfile::TempDir,
    store: Arc<dyn Store>,
    faults: Faults,
    /// Of each daemon.
    memory_size: ByteLen,
}

impl World {
    fn new() -> Self {
        let faults = Faults::new();
        let keyring = Arc::new(Keyring::new(vec![KeySource::Given(VolumeKey::new([7; KEY_BYTES]))]));
        let store = Arc::new(Keyed::new(faults.wrap(Arc::new(MemoryStore::new())), keyring));
        World { directory: tempfile::tempdir().unwrap(), store, faults, memory_size: ByteLen(32 << 20) }
    }

    fn admin(&self) -> Admin {
        Admin::new(self.store.clone())
    }

    fn create(&self) -> VolumeId {
        self.create_as("v")
    }

    fn create_as(&self, name: &str) -> VolumeId {
        let new = NewVolume { encrypted: true, ..NewVolume::named(name, ByteLen(8 << 20)) };
        runtime().block_on(self.admin().create_volume(new)).unwrap().id
    }

    /// From now on nothing can be stored, until the faults are cleared. Reads go on: a volume in doubt whether it is still its host's answers
    /// nobody until the store does.
    fn refuse_puts(&self) {
        let refused = Effect::FailBefore(StoreErrorKind::Unavailable);
        self.faults.inject(Matching::operation(Operation::Put), refused, usize::MAX);
    }

    /// Where a host keeps what is local of a volume.
    fn local(&self, host: &str, volume: VolumeId) -> PathBuf {
        self.directory.path().join(host).join("volumes").join(volume.to_string())
    }

    /// The life of a daemon on `host`, from its start to its sudden death at the end of `act`.
    fn life<T>(&self, host: &str, act: impl AsyncFnOnce(Arc<Fleet>) -> T) -> T {
        let runtime = runtime();
        let engine = EngineSettings {
            log_length: LOG_BYTES,
            segment_age: Duration::from_millis(1),
            segments_per_checkpoint: 64,
            cleaning: CLEANING,
            prefetch: true,
            control: "/run/control.sock".into(),
        };
        let path: &Path = &self.directory.path().join(host);
        let cache_size = ByteLen(32 << 20);
        let settings = StateSettings { path: path.to_owned(), cache_size, memory_size: self.memory_size, engine };
        let opened = state_directory::open(settings, self.store.clone(), StoreId(1), runtime.handle().clone());
        let (shared, _lock) = opened.unwrap();
        let fleet = Fleet::start(shared, Duration::from_hours(1), PurgeTimer::default());
        let result = runtime.block_on(act(fleet));
        // All tasks end here, wherever they are.
        drop(runtime);
        result
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Sleeps, and says whether nothing held this process up: after a suspension each volume asks whose it is.
async fn sleep_undisturbed(time: Duration) -> bool {
    let (step, began) = (Duration::from_millis(50), Instant::now());
    let mut last = began;
    while began.elapsed() < time {
        tokio::time::sleep(step).await;
        // Half of what counts as a suspension.
        if last.elapsed() > Duration::from_millis(300) {
            return false;
        }
        last = Instant::now();
    }
    true
}

/// The first two segments of an attachment.
fn first_segments(volume: &Volume) -> [ObjectKey; 2] {
    let id = |number| SegmentId { volume: volume.id, epoch: volume.epoch, number: SegmentNumber(number) };
    [0, 1].map(|number| ObjectKey::segment(id(number)))
}

async fn write(volume: &Arc<Volume>, offset: u64, byte: u8) {
    let data = vec![byte; 4096].into();
    VolumeDevice::new(volume.clone()).change(Change::Write { offset, data }).await.unwrap();
}

async fn read(volume: &Arc<Volume>, offset: u64) -> u8 {
    let mut buffer = vec![0; 4096];
    VolumeDevice::new(volume.clone()).read(offset, &mut buffer).await.unwrap();
    assert!(buffer.iter().all(|byte| *byte == buffer[0]));
    buffer[0]
}

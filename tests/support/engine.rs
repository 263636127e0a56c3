//! The engine in the test's own process, over any disk and any store: what `varved` puts together, without its doors.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use varve::admin::{Admin, PurgeTimer, root};
use varve::clean::Goal;
use varve::disk::Disk;
use varve::error::ErrorKind;
use varve::fleet::Fleet;
use varve::index::Index;
use varve::keys::{KeySource, Keyring};
use varve::seal::{KEY_BYTES, VolumeKey};
use varve::service::{Durability, NewVolume};
use varve::store::{Keyed, Store};
use varve::units::{ByteLen, VolumeId};
use varve::volume::state_directory::{self, StateSettings};
use varve::volume::{CLEANING, EngineSettings};
use varve::work::Runtime;

/// How an engine is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub log_length: u64,
    pub cache_size: u64,
    pub memory_size: u64,
    pub segment_age: Duration,
    pub segments_per_checkpoint: u64,
    pub cleaning: Goal,
    pub prefetch: bool,
}

impl Default for Setup {
    /// As `varved` does it, only smaller.
    fn default() -> Self {
        Setup {
            log_length: 128 << 20,
            cache_size: 16 << 20,
            memory_size: 64 << 20,
            segment_age: Duration::from_secs(3),
            segments_per_checkpoint: 64,
            cleaning: CLEANING,
            prefetch: true,
        }
    }
}

/// A minute's worth.
const TRIES_WHILE_BUSY: usize = 6000;

/// Starts an engine with its state in `path` on `disk`, as a host has one. The store must have its header.
pub async fn start(disk: Arc<dyn Disk>, path: &Path, store: Arc<dyn Store>, setup: Setup) -> Arc<Fleet> {
    let header = root::read(&*store).await.unwrap();
    let settings = StateSettings {
        path: path.to_owned(),
        cache_size: ByteLen(setup.cache_size),
        memory_size: ByteLen(setup.memory_size),
        engine: EngineSettings {
            log_length: ByteLen(setup.log_length),
            segment_age: setup.segment_age,
            segments_per_checkpoint: setup.segments_per_checkpoint,
            cleaning: setup.cleaning,
            prefetch: setup.prefetch,
            control: path.join("control.sock").display().to_string(),
        },
    };
    // The engine before this one may still be closing its index in the same process.
    let mut tries = 0;
    let shared = loop {
        let runtime = Runtime::current();
        match state_directory::open_on(
            disk.clone(),
            Index::open,
            settings.clone(),
            store.clone(),
            header.store,
            runtime,
        ) {
            Err(error) if error.kind() == ErrorKind::Busy && tries < TRIES_WHILE_BUSY => tries += 1,
            opened => break opened.unwrap(),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    Fleet::start(shared, Duration::from_hours(1), PurgeTimer::default())
}

/// A store with the key that volumes of tests are encrypted with, as a process has it that has opened none of them yet.
pub fn keyed(store: Arc<dyn Store>) -> Arc<dyn Store> {
    let keyring = Keyring::new(vec![KeySource::Given(VolumeKey::new([0xa5; KEY_BYTES]))]);
    Arc::new(Keyed::new(store, Arc::new(keyring)))
}

/// Makes a volume, encrypted if the store is [`keyed`], and the store's header if it has none.
pub async fn create(store: &Arc<dyn Store>, size: u64, durability: Durability) -> VolumeId {
    root::read_or_create(&**store).await.unwrap();
    let encrypted = store.keyring().is_some();
    let new = NewVolume { durability, encrypted, ..NewVolume::named("disk", ByteLen(size)) };
    Admin::new(store.clone()).create_volume(new).await.unwrap().id
}

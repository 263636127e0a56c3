//! Where a world has its store, and the hosts that live beside it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use varve::clean::Goal;
use varve::disk::host::HostDisk;
use varve::fleet::{Fleet, FleetExports, FleetService};
use varve::store::{Counts, DirectoryStore, MemoryStore, S3Access, S3Store, Store, wrap};

use crate::engine::{self, Setup};
use crate::minio::Minio;

enum Kind {
    Shared(Arc<dyn Store>),
    S3 { bucket: String, access: S3Access },
}

/// A store, and a folder for the state of hosts.
pub struct Site {
    kind: Kind,
    pub folder: TempDir,
    /// Of the store, if it is a directory.
    _directory: Option<TempDir>,
}

/// In memory if that is possible: RocksDB syncs at every checkpoint, and what survives a loss of power is not the question here.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl Site {
    pub fn memory() -> Site {
        // Short pages, so that listings have several.
        let store = Arc::new(MemoryStore::with_page(7));
        Site { kind: Kind::Shared(store), folder: folder(), _directory: None }
    }

    pub fn directory() -> Site {
        let directory = tempfile::tempdir().unwrap();
        let store = runtime().block_on(DirectoryStore::open(&directory.path().join("store"), true)).unwrap();
        Site { kind: Kind::Shared(Arc::new(store)), folder: folder(), _directory: Some(directory) }
    }

    pub fn minio() -> Site {
        let bucket = runtime().block_on(Minio::shared().fresh_bucket());
        let kind = Kind::S3 { bucket, access: Minio::shared().access() };
        Site { kind, folder: folder(), _directory: None }
    }

    /// The store as a process opens it. Connections belong to the runtime of that process, and end with it.
    pub fn store(&self) -> Arc<dyn Store> {
        let bare: Arc<dyn Store> = match &self.kind {
            Kind::Shared(store) => store.clone(),
            Kind::S3 { bucket, access } => Arc::new(S3Store::with_access(bucket, "disks", access)),
        };
        engine::keyed(wrap(bare).store)
    }
}

/// A daemon without its doors.
pub struct Host {
    // Dropped in this order: the fleet, then everything that runs for it.
    pub service: FleetService,
    pub exports: FleetExports,
    pub runtime: Runtime,
}

impl Host {
    pub fn start(path: &Path, store: Arc<dyn Store>, segment_age: Duration, segments_per_checkpoint: u64) -> Host {
        let setup = Setup {
            log_length: 1 << 20,
            cache_size: 4 << 20,
            memory_size: 2 << 20,
            segment_age,
            segments_per_checkpoint,
            cleaning: Goal { percent: 130, slack: 64 << 10, fullest: 90 },
            prefetch: true,
        };
        let runtime = runtime();
        let fleet = runtime.block_on(engine::start(Arc::new(HostDisk), path, store, setup));
        Host::of(fleet, runtime)
    }

    fn of(fleet: Arc<Fleet>, runtime: Runtime) -> Host {
        let service = FleetService {
            fleet: fleet.clone(),
            counts: Arc::new(Counts::default()),
            nbd: Vec::new(),
            control_tcp: None,
        };
        Host { service, exports: FleetExports(fleet), runtime }
    }

    /// The sudden death of the daemon: nothing is handed back, and every task ends wherever it is.
    pub fn die(self) {
        let Host { service, exports, runtime } = self;
        drop((service, exports));
        drop(runtime);
    }
}

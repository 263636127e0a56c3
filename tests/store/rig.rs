//! The stores to try.

use std::any::Any;
use std::sync::Arc;

use varve::store::{DirectoryStore, Faults, MemoryStore, Meter, OpenStore, S3Store, Store, wrap};

use crate::support::minio::Minio;

/// A store, and what must live as long as it does.
pub struct Rig {
    pub store: Arc<dyn Store>,
    _keep: Box<dyn Any + Send + Sync>,
}

impl Rig {
    fn wrapped(self) -> Rig {
        let open: OpenStore = wrap(Faults::new().wrap(self.store));
        let again: Arc<dyn Store> = Arc::new(Meter::new(open.store, open.counts));
        Rig { store: again, _keep: self._keep }
    }
}

pub async fn memory() -> Rig {
    Rig { store: Arc::new(MemoryStore::with_page(100)), _keep: Box::new(()) }
}

pub async fn directory() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::open(directory.path(), false).await.unwrap();
    Rig { store: Arc::new(store), _keep: Box::new(directory) }
}

pub async fn minio() -> Rig {
    let bucket = Minio::shared().fresh_bucket().await;
    let store = S3Store::with_access(&bucket, "some/prefix", &Minio::shared().access());
    Rig { store: Arc::new(store), _keep: Box::new(()) }
}

pub async fn memory_wrapped() -> Rig {
    memory().await.wrapped()
}

pub async fn directory_wrapped() -> Rig {
    directory().await.wrapped()
}

pub async fn minio_wrapped() -> Rig {
    minio().await.wrapped()
}

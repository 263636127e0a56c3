//! What volumes there are, for clients that list exports or name one: read from the store at most now and then, however often they ask.
//!
//! Owns: one view of all manifests, and the right to read them anew, which one request has at a time.
//!
//! Guarantees: a view is never older than [`VIEW_AGE_MAX`]; a name that it does not show, or shows twice, is looked up in one that was read after
//! the request came, so that a volume created a moment ago opens by its name. Requests that wait at the same time share that reading: however many
//! ask for names that are not there, one pass over the store runs at a time. A name found in an older view is checked against the volume's own
//! manifest. Only this may go unnoticed, for as long as a view lives: that a second volume was given the name of a first.

use std::sync::Arc;
use std::time::Duration;

use crate::admin::purge::{self, PurgeTimer};
use crate::clock;
use crate::error::Result;
use crate::format::lineage::SnapshotRecord;
use crate::lineage;
use crate::ownership;
use crate::store::Store;
use crate::units::{ByteLen, VolumeId};

/// How old what is told of other volumes may be.
const VIEW_AGE_MAX: Duration = Duration::from_secs(10);

/// A volume that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Id.
    pub id: VolumeId,
    /// Name.
    pub name: String,
    /// Size in bytes.
    pub size: ByteLen,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<KnownSnapshot>,
}

/// A snapshot that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSnapshot {
    /// What it says of itself.
    pub record: SnapshotRecord,
    /// Size of the volume then, in bytes.
    pub size: ByteLen,
}

#[derive(Default)]
struct View {
    /// When its reading began, as time since the machine started.
    began: Duration,
    volumes: Vec<Known>,
}

/// The volumes of a store.
pub struct Catalog {
    store: Arc<dyn Store>,
    timer: PurgeTimer,
    view: tokio::sync::Mutex<Option<Arc<View>>>,
}

impl Catalog {
    /// Nothing is read yet. What is seen of destroyed volumes is told to `timer`.
    pub fn new(store: Arc<dyn Store>, timer: PurgeTimer) -> Self {
        Catalog { store, timer, view: tokio::sync::Mutex::default() }
    }

    /// All volumes that are not destroyed and whose manifest can be read, as of [`VIEW_AGE_MAX`] ago at most.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list(&self) -> Result<Vec<Known>> {
        let oldest = clock::uptime().saturating_sub(VIEW_AGE_MAX);
        self.view_since(oldest).await.map(|view| view.volumes.clone())
    }

    /// The volume that a name means.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` if several volumes have the name, naming them; what the store says.
    pub async fn resolve(&self, name: &str) -> Result<VolumeId> {
        let now = clock::uptime();
        let view = self.view_since(now.saturating_sub(VIEW_AGE_MAX)).await?;
        if view.began >= now {
            return view.only(&*self.store, name);
        }
        if let Ok(id) = view.only(&*self.store, name)
            && let Ok(loaded) = ownership::load(&*self.store, id).await
            && loaded.manifest.is_shown()
            && loaded.manifest.name == name
        {
            return Ok(id);
        }
        self.view_since(now).await?.only(&*self.store, name)
    }

    /// A view whose reading began at `oldest` or later.
    async fn view_since(&self, oldest: Duration) -> Result<Arc<View>> {
        let mut current = self.view.lock().await;
        if let Some(view) = current.as_ref().filter(|view| view.began >= oldest) {
            return Ok(view.clone());
        }
        let mut view = View { began: clock::uptime(), volumes: Vec::new() };
        for (id, loaded) in ownership::list(&*self.store).await? {
            match loaded {
                Ok(loaded) if loaded.manifest.is_shown() => {
                    let snapshots = lineage::snapshots(&loaded.manifest).into_iter();
                    let snapshots = snapshots
                        .map(|(record, moment)| KnownSnapshot { record: record.clone(), size: moment.size })
                        .collect();
                    let manifest = loaded.manifest;
                    view.volumes.push(Known { id, name: manifest.name, size: manifest.size, snapshots });
                }
                Ok(loaded) => self.timer.note(purge::due(&loaded.manifest)),
                Err(error) => tracing::warn!(volume = %id, %error, "passed over while looking for volumes"),
            }
        }
        let view = Arc::new(view);
        *current = Some(view.clone());
        Ok(view)
    }
}

impl View {
    fn only(&self, store: &dyn Store, name: &str) -> Result<VolumeId> {
        let named = self.volumes.iter().filter(|known| known.name == name).map(|known| known.id).collect();
        ownership::only_named(store, name, named)
    }
}

//! The family that commands are given for: built once, copied for each of them.

use super::*;
use crate::service::{NewForks, NewSnapshot};
use crate::store::{ByteRange, Condition};
use crate::units::SnapshotId;
use bytes::Bytes;

/// What the volumes are called. Ids are by chance, so that states are compared by names.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Has a snapshot and forks.
    pub disk: VolumeId,
    /// Of the disk's past.
    pub past: SnapshotId,
    /// A fork of the disk, with data of its own.
    pub spare: VolumeId,
    /// The same, and destroyed.
    pub gone: VolumeId,
}

/// The objects of a store with a family in it.
pub struct Base {
    objects: Vec<(ObjectKey, Bytes)>,
    pub family: Family,
}

impl Base {
    pub fn build() -> Base {
        let world = World::new();
        let new = NewVolume::named("disk", ByteLen(1 << 20));
        let disk = runtime().block_on(world.admin().create_volume(new)).unwrap().id;
        let family = world.life("builder", async |fleet| {
            let (volume, _) = fleet.attach(disk, false, false).await.unwrap();
            write(&volume, 0, 1).await;
            write(&volume, 4096, 1).await;
            // So that there is a trace.
            read(&volume, 0).await;
            let past = volume.snapshot(NewSnapshot::default()).await.unwrap().id;
            write(&volume, 0, 2).await;
            volume.sync().await.unwrap();
            write(&volume, 8192, 2).await;
            let fork = async |name: &str| {
                let new = NewForks { name: Some(name.into()), count: 1, region: None };
                let id = volume.fork(&new).await.unwrap().remove(0).volume;
                let (forked, _) = fleet.attach(id, false, false).await.unwrap();
                write(&forked, 12288, 3).await;
                drop(forked);
                fleet.detach(id, false).await.unwrap();
                id
            };
            let (spare, gone) = (fork("spare").await, fork("gone").await);
            drop(volume);
            fleet.detach(disk, false).await.unwrap();
            world.admin().destroy_volume(gone, false).await.unwrap();
            Family { disk, past, spare, gone }
        });
        let objects = runtime().block_on(async {
            let mut objects = Vec::new();
            for listed in list_all(&*world.store, &ObjectKey::everything()).await.unwrap() {
                let bytes = world.store.get(&listed.key, ByteRange::Full).await.unwrap().bytes;
                objects.push((listed.key, bytes));
            }
            objects
        });
        Base { objects, family }
    }

    /// The same once more.
    pub fn copy(&self) -> Arc<dyn Store> {
        let store = MemoryStore::with_page(5);
        runtime().block_on(async {
            for (key, bytes) in &self.objects {
                store.put(key, bytes.clone(), Condition::IfAbsent).await.unwrap();
            }
        });
        Arc::new(store)
    }
}

impl Family {
    /// The name of an object, the same for whichever ids were given by chance.
    pub fn anonymous(&self, key: &ObjectKey) -> String {
        let name = key.as_str();
        let known = [self.disk, self.spare, self.gone].map(|id| id.to_string());
        if let Some(id) = key.parse_volume().map(|id| id.to_string()).filter(|id| !known.contains(id)) {
            return name.replace(&id, "new");
        }
        match (key.parse_snapshot(), key.parse_trace()) {
            (Some(id), _) if id != self.past => "snapshots/new".to_owned(),
            (_, Some(id)) if id != self.past => "snapshots/new.trace".to_owned(),
            _ => name.to_owned(),
        }
    }
}

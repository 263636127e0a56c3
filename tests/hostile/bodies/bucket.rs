//! A whole store that somebody else has filled: all that `varve` does with one without owning a volume.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use varve::admin::Admin;
use varve::format::manifest::Owner;
use varve::lineage::{FrozenMap, diff};
use varve::map::PageIndex;
use varve::ownership::{self, Permit};
use varve::service::{DumpTarget, NewForks, NewSnapshot, NewVolume};
use varve::store::{ByteRange, Condition, MemoryStore, ObjectKey, Store, list_all};
use varve::units::{ByteLen, Epoch, SegmentId, SegmentNumber, SnapshotId, Token, UnixMillis, VolumeId};

/// Pages looked up of each snapshot.
const PAGES: u64 = 12;

/// Cuts an input into objects: length of the name (2 bytes), name, length (4 bytes), bytes.
pub fn objects_in(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut objects = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let Some((name, rest)) = rest.split_at_checked(u16::from_le_bytes(*length).into()) else { break };
        let Some((length, rest)) = rest.split_first_chunk::<4>() else { break };
        let Some((object, rest)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else { break };
        objects.push((String::from_utf8_lossy(name).into_owned(), object.to_vec()));
        bytes = rest;
    }
    objects
}

/// The reverse of [`objects_in`].
pub fn frame_objects(objects: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, object) in objects {
        bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&(object.len() as u32).to_le_bytes());
        bytes.extend_from_slice(object);
    }
    bytes
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_current_thread().enable_all().build().unwrap())
}

/// A store with these objects.
pub fn bucket(bytes: &[u8]) {
    runtime().block_on(async {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (mut volumes, mut snapshots, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        for (name, object) in objects_in(bytes) {
            let key = ObjectKey::from_listing(name);
            volumes.extend(key.parse_manifest());
            snapshots.extend(key.parse_snapshot());
            segments.extend(segment_of(&key));
            // A name may come twice.
            let _ = store.put(&key, object.into(), Condition::IfAbsent).await;
        }
        let admin = Admin::new(store.clone());
        look(&admin, &volumes, &snapshots, &segments).await;
        for &snapshot in &snapshots {
            look_into(&store, snapshot, &snapshots).await;
        }
        change(&admin, &store, &volumes, &snapshots).await;
    });
}

fn segment_of(key: &ObjectKey) -> Option<SegmentId> {
    let (volume, rest) = (key.parse_volume()?, key.as_str().split_once("/segments/")?.1);
    let (epoch, number) = rest.split_once('/')?;
    Some(SegmentId { volume, epoch: Epoch(epoch.parse().ok()?), number: SegmentNumber(number.parse().ok()?) })
}

async fn look(admin: &Admin, volumes: &[VolumeId], snapshots: &[SnapshotId], segments: &[SegmentId]) {
    let _ = admin.list_volumes(true).await.map(|list| serde_json::to_string(&list));
    let _ = admin.resolve("disk").await;
    for &id in volumes {
        let _ = admin.volume(id).await;
        let _ = admin.check(id, false, &mut |_| ()).await.map(|report| serde_json::to_string(&report));
        let _ = admin.usage(Some(id), &mut |_, _| ()).await.map(|report| serde_json::to_string(&report));
        let _ = admin.dump(DumpTarget::Manifest(id)).await;
        let _ = admin.dump(DumpTarget::Checkpoint(id)).await;
    }
    for &id in snapshots {
        let _ = admin.snapshot_summary(id).await;
        let _ = admin.check_snapshot(id, &mut |_| ()).await.map(|report| serde_json::to_string(&report));
    }
    for &id in segments {
        let _ = admin.dump(DumpTarget::Segment(id)).await;
    }
    let _ = admin.usage(None, &mut |_, _| ()).await;
    let _ = admin.leftovers(None, false).await;
}

/// Reads a snapshot's map, and what differs from the others.
async fn look_into(store: &Arc<dyn Store>, id: SnapshotId, others: &[SnapshotId]) {
    let Ok(found) = varve::lineage::find(&**store, id).await else { return };
    let Ok(map) = FrozenMap::open(store, &found.moment).await else { return };
    for index in (0..PAGES).map(PageIndex) {
        let mut places = Vec::new();
        if map.lookup(index.range(), &mut places).await.is_ok() {
            assert_eq!(places.iter().map(|place| place.range.count.0).sum::<u64>(), index.range().count.0);
        }
    }
    for which in map.directories() {
        let _ = (map.directory(which), map.occupied(which).await);
    }
    for &other in others.iter().filter(|&&other| other != id).take(2) {
        let Ok(other) = varve::lineage::find(&**store, other).await else { continue };
        let Ok(other) = FrozenMap::open(store, &other.moment).await else { continue };
        let _ = diff(&map, &other, &mut |_| Ok(())).await;
    }
}

async fn change(admin: &Admin, store: &Arc<dyn Store>, volumes: &[VolumeId], snapshots: &[SnapshotId]) {
    for &id in volumes {
        let new = NewSnapshot { name: Some("a".into()), retention_seconds: Some(u64::MAX) };
        let _ = admin.snapshot(id, new).await;
        let _ = admin.fork_volume(id, NewForks { name: None, count: 2, region: None }).await;
        let _ = admin.snapshots(id).await;
        if let Ok(loaded) = ownership::load(&**store, id).await {
            attach(store, id, &loaded).await;
        }
        let _ = admin.destroy_volume(id, false).await;
        let _ = admin.undelete_volume(id).await;
    }
    for &id in snapshots {
        let new = NewVolume::named("new", ByteLen(0));
        let _ = admin.create_from_snapshot(id, new, 1).await;
        for &volume in volumes {
            let _ = admin.roll_back(volume, id).await;
        }
        let _ = admin.destroy_snapshot(id).await;
    }
    let _ = admin.leftovers(None, true).await;
    let _ = admin.purge().await;
    for object in list_all(&**store, &ObjectKey::everything()).await.unwrap_or_default() {
        let _: Result<Bytes, _> = store.get(&object.key, ByteRange::Full).await.map(|fetched| fetched.bytes);
    }
}

/// What attaching does with the store.
async fn attach(store: &Arc<dyn Store>, id: VolumeId, loaded: &ownership::Loaded) {
    let owner = Owner {
        token: Token(3),
        resumes: None,
        host: "h".into(),
        pid: 1,
        control: String::new(),
        attached_at: UnixMillis(1),
    };
    let _ = ownership::claim(&**store, loaded, owner.clone(), Permit::IfFree).await;
    let Ok(attachment) = ownership::claim(&**store, loaded, owner, Permit::TakeOver).await else { return };
    let manifest = &attachment.loaded.manifest;
    let (from, epoch, base) = (manifest.replay_from, attachment.epoch, manifest.sequence);
    let _ = varve::lineage::replayed_indexes(&**store, &manifest.inherited).await;
    let _ = ownership::discover(&**store, id, from, epoch, attachment.token, base).await;
    let _ = varve::lineage::current_moment(&**store, manifest).await;
}

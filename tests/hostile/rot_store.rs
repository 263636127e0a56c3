//! Every kind of byte of every kind of object in a store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use varve::admin::Admin;
use varve::disk::simulated::SimulatedDisk;
use varve::error::ErrorKind;
use varve::lineage::FrozenMap;
use varve::store::{ByteRange, ObjectKey, Store, list_all};
use varve::units::SnapshotId;

use super::rot_engine::{World, copy, named, replace, scratch, start, stop};
use varve::service::NewSnapshot;

/// What was done, and what came of it.
#[derive(Debug, Default)]
pub struct Found {
    pub cases: u64,
    /// Nothing was lost.
    pub harmless: u64,
    /// Some blocks were lost, the others not.
    pub partly: u64,
    /// The volume could not be attached, and the object was named.
    pub refused: u64,
}

enum Damage {
    Flip(usize),
    Cut(usize),
    Gone,
    Instead(Vec<u8>),
}

/// A detached volume of several segments, of which later ones overwrite parts of earlier ones, with a snapshot; and the same while its
/// owner is lost, so that segments follow the checkpoint.
async fn worlds() -> [(World, Option<SnapshotId>); 2] {
    let mut world = World::new().await;
    let folder = scratch();
    let fleet = start(Arc::new(SimulatedDisk::new()), &world.store, folder.path()).await;
    let (volume, _) = fleet.attach(world.id, false, false).await.unwrap();
    for (stamp, (first, count)) in [(0, 40), (300, 33), (20, 9), (512, 20)].into_iter().enumerate() {
        world.write(&volume, first, count, stamp as u64).await;
        volume.sync().await.unwrap();
    }
    world.trim(&volume, 305, 3).await;
    volume.sync().await.unwrap();
    let lost = World { store: copy(&*world.store).await, id: world.id, model: world.model.clone() };
    drop(volume);
    fleet.detach(world.id, false).await.unwrap();
    let snapshot = Admin::new(world.store.clone()).snapshot(world.id, NewSnapshot::default()).await.unwrap();
    [(world, Some(snapshot.id)), (lost, None)]
}

/// Places in an object: its first bytes and its last, as they hold headers and trailers, and some between.
fn places(length: usize) -> BTreeSet<usize> {
    let edges = [0, 6, 30, 93].into_iter().chain([1, 30, 45, 100].map(|back| length.saturating_sub(back)));
    let between = (1..4).map(|step| length * step / 4);
    edges.chain(between).filter(|&at| at < length).collect()
}

/// `follow` says that segments follow the checkpoint.
async fn damages(store: &dyn Store, follow: bool) -> Vec<(ObjectKey, Vec<u8>, Damage)> {
    let mut kinds: BTreeMap<&str, Vec<(ObjectKey, Vec<u8>)>> = BTreeMap::new();
    for object in list_all(store, &ObjectKey::everything()).await.unwrap() {
        let bytes = store.get(&object.key, ByteRange::Full).await.unwrap().bytes.to_vec();
        let name = object.key.as_str();
        let kind = ["/segments/", "/map/", "/manifest", "snapshots/"].into_iter().find(|part| name.contains(part));
        if let Some(kind) = kind {
            kinds.entry(kind).or_default().push((object.key, bytes));
        }
    }
    let mut all = Vec::new();
    for (kind, objects) in &kinds {
        for (number, (key, bytes)) in objects.iter().enumerate() {
            let mut damage = |damage| all.push((key.clone(), bytes.clone(), damage));
            places(bytes.len()).into_iter().for_each(|at| damage(Damage::Flip(at)));
            [0, bytes.len() / 2, bytes.len() - 1].map(Damage::Cut).into_iter().for_each(&mut damage);
            let other = &objects[(number + 1) % objects.len()].1;
            if other != bytes {
                damage(Damage::Instead(other.clone()));
            }
            // A manifest that is gone is a volume that does not exist; a segment behind the checkpoint is where the history ends, since those
            // beyond a hole may never have been acknowledged as stored.
            if *kind != "/manifest" && !(follow && *kind == "/segments/") {
                damage(Damage::Gone);
            }
        }
    }
    all
}

/// Damages one object after the other in every way.
pub async fn damage_every_object() -> Found {
    let mut found = Found::default();
    for (world, snapshot) in worlds().await {
        assert!(world.check(&world.store).await.unwrap().problems.is_empty());
        for (key, bytes, damage) in damages(&*world.store, snapshot.is_none()).await {
            let store = copy(&*world.store).await;
            let (bytes, what) = match damage {
                Damage::Flip(at) => {
                    let mut bytes = bytes;
                    bytes[at] ^= 1 << (at % 8);
                    (Some(bytes), format!("{key}, byte {at} flipped"))
                }
                Damage::Cut(length) => (Some(bytes[..length].to_vec()), format!("{key} cut to {length}")),
                Damage::Gone => (None, format!("{key} is gone")),
                Damage::Instead(other) => (Some(other), format!("{key} swapped")),
            };
            replace(&*store, &key, bytes).await;
            found.cases += 1;
            if key.as_str().contains("snapshots/") {
                snapshot_case(&world, &store, snapshot.unwrap(), &what, &mut found).await;
            } else {
                volume_case(&world, &store, &key, &what, &mut found).await;
            }
        }
    }
    found
}

async fn volume_case(world: &World, store: &Arc<dyn Store>, key: &ObjectKey, what: &str, found: &mut Found) {
    let report = world.check(store).await;
    let folder = scratch();
    let fleet = start(Arc::new(SimulatedDisk::new()), store, folder.path()).await;
    let is_manifest = key.parse_manifest().is_some();
    let opened = fleet.attach(world.id, true, false).await;
    let Ok((volume, _)) = opened else {
        let error = opened.err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported), "{what}: {error:?}");
        assert!(error.message().contains(&world.id.to_string()), "{what}: {error}");
        let named = report.map_or(is_manifest, |report| !report.problems.is_empty());
        assert!(named, "{what}: check says nothing, but attaching fails: {error}");
        found.refused += 1;
        return;
    };
    let (lost, error) = world.read_all(&volume, what).await;
    match report {
        Err(error) => panic!("{what}: it can be attached, but not checked: {error}"),
        Ok(report) => {
            assert_eq!(named(&report), lost, "{what}: what check names is what is lost: {report:?}");
            let is_segment = key.as_str().contains("/segments/");
            let names_it = report.problems.iter().any(|problem| problem.object == key.as_str());
            // Seals behind a checkpoint, and segments that hold nothing any more, are not looked at.
            assert!(!is_segment || names_it || lost.is_empty(), "{what}: check does not name it: {report:?}");
        }
    }
    match error {
        None => found.harmless += 1,
        Some(error) => {
            assert_eq!(error.kind(), ErrorKind::Damaged, "{what}: {error}");
            found.partly += 1;
        }
    }
    drop(volume);
    // It waits for tasks that hold the volume, and nobody here needs to wait with it. The folder must outlive it: RocksDB sleeps for a second
    // after a flush that failed, on the one thread that flushes for the whole process.
    let id = world.id;
    tokio::spawn(async move {
        // Not in good order where the map is damaged.
        let _ = fleet.detach(id, true).await;
        stop(fleet, folder.path()).await;
    });
}

async fn snapshot_case(world: &World, store: &Arc<dyn Store>, id: SnapshotId, what: &str, found: &mut Found) {
    let admin = Admin::new(store.clone());
    match admin.check_snapshot(id, &mut |_| ()).await {
        Err(error) => {
            assert!(error.message().contains(&id.to_string()), "{what}: {error}");
            found.refused += 1;
        }
        Ok(report) => {
            // Spaces and such: its content is what it was.
            assert!(report.problems.is_empty(), "{what}: {report:?}");
            let moment = varve::lineage::find(&**store, id).await.unwrap().moment;
            FrozenMap::open(store, &moment).await.unwrap();
            found.harmless += 1;
        }
    }
    let report = world.check(store).await.unwrap();
    assert!(report.problems.is_empty(), "{what}: the volume itself is whole: {report:?}");
}

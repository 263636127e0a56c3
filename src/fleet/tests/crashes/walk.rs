//! What people see of a store, and what in it is of use to nobody.

use std::collections::BTreeSet;
use std::io::Write;

use parking_lot::Mutex;

use super::*;
use crate::disk::image::ImageWriter;
use crate::format::lineage::{Moment, PinHolder};
use crate::format::manifest::Manifest;
use crate::format::map_object::MapObjectId;
use crate::lineage::FrozenMap;
use crate::segment::fetch_index;

#[derive(Clone, Default)]
struct Sum(Arc<Mutex<(u32, u64)>>);

impl Write for Sum {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let mut sum = self.0.lock();
        *sum = (crc32c::crc32c_append(sum.0, data), sum.1 + data.len() as u64);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A fingerprint of everything that a disk holds.
async fn content(store: &Arc<dyn Store>, moment: &Moment) -> String {
    let map = FrozenMap::open(store, moment).await.unwrap();
    let sum = Sum::default();
    let image = ImageWriter::of_stream("sum", sum.clone());
    Admin::new(store.clone()).export(&map, image, &mut |_| (), std::future::pending()).await.unwrap();
    let sum = sum.0.lock();
    format!("{} bytes, {:08x}", sum.1, sum.0)
}

/// True for what is not destroyed.
pub fn shown(line: &str) -> bool {
    !line.contains("destroyed")
}

/// What people see: a line for each volume and snapshot, by name and content. All of it is verified.
pub async fn view(store: &Arc<dyn Store>, family: &Family) -> Vec<String> {
    let admin = Admin::new(store.clone());
    let mut lines = Vec::new();
    for (id, loaded) in ownership::list(&**store).await.unwrap() {
        let manifest = loaded.unwrap().manifest;
        if manifest.being_made || manifest.destroyed_at == Some(purge::MARK) {
            continue;
        }
        assert!(manifest.owner.is_none(), "{id} has an owner");
        let state = if manifest.destroyed_at.is_some() { "destroyed" } else { "free" };
        let disk = content(store, &manifest.moment()).await;
        let Manifest { name, schedule, durability, .. } = &manifest;
        lines.push(format!("volume {name}, {state}, {durability:?}, {schedule:?}: {disk}"));
        let report = admin.check(id, false, &mut |_| ()).await.unwrap();
        assert!(report.problems.is_empty(), "{report:?}");
        for (record, moment) in lineage::snapshots(&manifest) {
            let snapshot =
                record.name.clone().unwrap_or_else(|| if record.id == family.past { "past" } else { "new" }.into());
            lines.push(format!("snapshot {snapshot} of {name}, {state}: {}", content(store, moment).await));
            let report = admin.check_snapshot(record.id, &mut |_| ()).await.unwrap();
            assert!(report.problems.is_empty(), "{report:?}");
        }
    }
    lines.sort();
    lines
}

/// The objects that nothing refers to, by names that do not depend on chance.
pub async fn unreachable_objects(store: &Arc<dyn Store>, family: &Family) -> Vec<String> {
    let mut reached: BTreeSet<ObjectKey> = BTreeSet::from([ObjectKey::store_root()]);
    for (id, loaded) in ownership::list(&**store).await.unwrap() {
        let manifest = loaded.unwrap().manifest;
        reached.insert(ObjectKey::manifest(id));
        reach(store, &manifest.moment(), &mut reached).await;
        for pin in &manifest.pins {
            reach(store, &pin.moment, &mut reached).await;
            let snapshots = pin.holders.iter().filter_map(|holder| match holder {
                PinHolder::Snapshot(record) => Some([ObjectKey::snapshot(record.id), ObjectKey::trace(record.id)]),
                PinHolder::Fork { .. } => None,
            });
            reached.extend(snapshots.flatten());
        }
        // Seals keep late writers out as long as there is a volume.
        for listed in list_all(&**store, &ObjectKey::segments(id)).await.unwrap() {
            let index = fetch_index(&**store, listed.key.parse_segment().unwrap()).await.unwrap();
            if index.header.seal {
                reached.insert(listed.key);
            }
        }
    }
    let all = list_all(&**store, &ObjectKey::everything()).await.unwrap().into_iter().map(|listed| listed.key);
    let mut left: Vec<String> = all.filter(|key| !reached.contains(key)).map(|key| family.anonymous(&key)).collect();
    left.sort();
    left
}

/// Everything that it takes to read a moment.
async fn reach(store: &Arc<dyn Store>, moment: &Moment, reached: &mut BTreeSet<ObjectKey>) {
    let object = |id: MapObjectId| ObjectKey::map_object(id.volume, id.epoch, id.number);
    let map = FrozenMap::open(store, moment).await.unwrap();
    reached.extend(moment.checkpoint.map(|checkpoint| object(checkpoint.root.object)));
    reached.extend(moment.replayed().map(ObjectKey::segment));
    for which in map.directories() {
        reached.extend(map.directory(which).0.map(|reference| object(reference.object)));
        for page in map.occupied(which).await.unwrap() {
            reached.extend(page.reference.map(|reference| object(reference.object)));
            let page = map.page(page.index).await.unwrap();
            reached.extend(page.places().map(|(_, _, place)| ObjectKey::segment(place.segment)));
        }
    }
}

//! What `check` finds: all of the damage, not only the first.
#![cfg(test)]

#[path = "support/engine.rs"]
mod engine;

use std::sync::Arc;

use bytes::Bytes;
use engine::Setup;
use varve::admin::Admin;
use varve::block_device::{BlockDevice, Change};
use varve::checkpoint::Checkpoint;
use varve::disk::host::HostDisk;
use varve::format::map_object;
use varve::ownership;
use varve::service::Durability;
use varve::store::{ByteRange, Condition, MemoryStore, ObjectKey};
use varve::volume::VolumeDevice;

/// Bytes of the volume that one page of the block map describes.
const PAGE_BYTES: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_to_several_map_pages_is_all_named() {
    let store = engine::keyed(Arc::new(MemoryStore::new()));
    let id = engine::create(&store, 64 << 20, Durability::Local).await;
    let folder = tempfile::tempdir().unwrap();
    let fleet = engine::start(Arc::new(HostDisk), folder.path(), store.clone(), Setup::default()).await;
    let (volume, _) = fleet.attach(id, false, false).await.unwrap();
    for page in 0..8 {
        let change = Change::Write { offset: page * PAGE_BYTES + 8192, data: Bytes::from(vec![page as u8; 4096]) };
        VolumeDevice::new(volume.clone()).change(change).await.unwrap();
    }
    drop(volume);
    fleet.detach(id, false).await.unwrap();
    let check = async || Admin::new(store.clone()).check(id, false, &mut |_| ()).await.unwrap();
    assert!(check().await.problems.is_empty());

    let reference = ownership::load(&*store, id).await.unwrap().manifest.checkpoint.unwrap();
    let checkpoint = Checkpoint::open(store.clone(), reference).await.unwrap();
    let (_, directory) = checkpoint.root().directories[0];
    let object = directory.object;
    let key = ObjectKey::map_object(object.volume, object.epoch, object.number);
    let fetched = store.get(&key, ByteRange::Full).await.unwrap();
    let part = directory.offset as usize..(directory.offset + directory.stored_length) as usize;
    let raw = map_object::open(&directory, &fetched.bytes[part], store.key_of(id).unwrap().as_deref()).unwrap();
    let pages = map_object::decode_directory(&raw).unwrap();
    let mut damaged = fetched.bytes.to_vec();
    for (slot, page) in pages.iter().filter(|(slot, _)| [1, 5].contains(slot)) {
        assert_eq!(page.object, object, "page {slot}");
        damaged[page.offset as usize + 3] ^= 0x10;
    }
    store.put(&key, damaged.into(), Condition::IfMatch(fetched.etag)).await.unwrap();

    let report = check().await;
    let blocks: Vec<_> = report.problems.iter().map(|problem| problem.blocks.as_deref().unwrap_or("")).collect();
    assert_eq!(blocks, ["256-511", "1280-1535"], "{report:?}");
    assert!(report.problems.iter().all(|problem| problem.what.contains("page")), "{report:?}");
}

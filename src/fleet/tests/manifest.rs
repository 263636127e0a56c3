//! Manifests that somebody else tampered with.

use super::*;
use crate::error::ErrorKind;
use crate::service::NewSnapshot;
use crate::store::{ByteRange, Condition, ObjectKey};

#[test]
fn a_manifest_that_was_put_back_is_refused_by_its_owner() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let key = ObjectKey::manifest(id);
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        let old = world.store.get(&key, ByteRange::Full).await.unwrap();
        write(&volume, 0, 1).await;
        let snapshot = || volume.snapshot(NewSnapshot { name: None, retention_seconds: None });
        snapshot().await.unwrap();
        let newest = world.store.get(&key, ByteRange::Full).await.unwrap();
        world.store.put(&key, old.bytes.clone(), Condition::IfMatch(newest.etag)).await.unwrap();
        let refused = snapshot().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Damaged, "{refused}");
        assert!(refused.to_string().contains("put back to an older version"), "{refused}");
        let found = world.store.get(&key, ByteRange::Full).await.unwrap();
        assert_eq!(found.bytes, old.bytes, "nothing was changed");
        assert!(volume.gate.closed().is_some());
    });
}

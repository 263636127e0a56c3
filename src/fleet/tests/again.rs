//! Asking for a volume that is attached here already.

use super::{World, read, write};
use crate::clock;
use crate::error::ErrorKind;
use crate::format::manifest::Owner;
use crate::ownership::{self, Permit};
use crate::store::StoreErrorKind;

#[test]
fn what_cannot_be_confirmed_is_not_vouched_for() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        for (outage, kind) in
            [(StoreErrorKind::Unavailable, ErrorKind::Unavailable), (StoreErrorKind::Denied, ErrorKind::Denied)]
        {
            // Through the gate while the store can be asked: in doubt about the owner, the write below would not be answered.
            write(&volume, 0, 6).await;
            world.faults.outage(Some(outage));
            let refused = fleet.attach(id, false, false).await.err().unwrap();
            assert_eq!(refused.kind(), kind, "{refused}");
            assert!(refused.message().contains("attached here and its clients go on"), "{refused}");
            let (same, _) = fleet.attach(id, false, true).await.expect("clients do not ask the store");
            write(&same, 0, 7).await;
            world.faults.outage(None);
        }
        let (same, _) = fleet.attach(id, false, false).await.unwrap();
        assert_eq!((same.epoch, read(&same, 0).await), (volume.epoch, 7));
        let loaded = ownership::load(&*world.store, id).await.unwrap();
        let mut rival: Owner = loaded.manifest.owner.clone().unwrap();
        rival.token = clock::random_token();
        ownership::claim(&*world.store, &loaded, rival, Permit::TakeOver).await.unwrap();
        let refused = fleet.attach(id, false, false).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    });
}

//! Handing a volume back, when its last writes cannot be uploaded.

use std::task::Poll;

use super::{World, first_segments, read, write};
use crate::error::{Error, ErrorKind};
use crate::ownership;
use crate::service::VolumeChange;
use crate::store::{Condition, Effect, Gate, Matching, Operation};
use crate::units::ByteLen;

#[test]
fn what_cannot_be_uploaded_is_not_handed_back() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        let [first, second] = first_segments(&volume).map(|key| {
            let gate = Gate::closed();
            world.faults.inject(
                Matching::operation(Operation::Put).on(key.as_str()),
                Effect::HoldBefore(gate.clone()),
                1,
            );
            (key, gate)
        });
        write(&volume, 0, 1).await;
        first.1.arrived(1).await;
        let detaching = fleet.detach(id, false);
        let is_closed = volume.gate_wake.notified();
        tokio::pin!(detaching, is_closed);
        is_closed.as_mut().enable();
        let begun = std::future::poll_fn(|context| Poll::Ready(detaching.as_mut().poll(context))).await;
        assert!(begun.is_pending(), "it waits for what was accepted before");
        write(&volume, 4096, 2).await;
        second.1.arrived(1).await;
        first.1.open();
        tokio::select! {
            () = is_closed => {}
            done = detaching.as_mut() => panic!("the last segment is not there yet: {done:?}"),
        }
        // Now, with the gate closed already, something that is not ours is in the place of the last segment.
        world.store.put(&second.0, b"rot".as_slice().into(), Condition::IfAbsent).await.unwrap();
        second.1.open();
        let refused = detaching.await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Damaged, "{refused}");
        assert!(refused.message().contains("was not handed back"), "{refused}");
        let manifest = ownership::load(&*world.store, id).await.unwrap().manifest;
        assert!(manifest.owner.is_some() && !manifest.complete);
        world.store.delete(&second.0).await.unwrap();
        let (volume, report) = fleet.attach(id, false, false).await.unwrap();
        assert_eq!(report.replayed_records, 1);
        assert_eq!((read(&volume, 0).await, read(&volume, 4096).await), (1, 2));
        fleet.detach(id, false).await.unwrap();
    });
}

#[test]
fn a_volume_that_had_failed_is_not_said_to_be_handed_back() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        world.refuse_puts();
        write(&volume, 0, 1).await;
        volume.fail(&Error::new(ErrorKind::Io, "the disk burns"));
        let refused = fleet.detach(id, false).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Io, "{refused}");
        assert!(refused.message().contains("was not handed back"), "{refused}");
        world.faults.clear();
        let (volume, report) = fleet.attach(id, false, false).await.unwrap();
        assert_eq!((report.replayed_records, read(&volume, 0).await), (1, 1));
        volume.fail(&volume.fenced("a rival"));
        fleet.detach(id, false).await.unwrap();
    });
}

#[test]
fn a_volume_that_was_handed_back_is_not_changed_by_who_had_it() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        fleet.detach(id, false).await.unwrap();
        let before = ownership::load(&*world.store, id).await.unwrap();
        // As a snapshot does that was begun before: whoever sweeps the store by now knows nothing of the moment that it holds.
        let change = VolumeChange { size: Some(ByteLen(16 << 20)), ..VolumeChange::default() };
        let refused = volume.update(&change).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Stopping, "{refused}");
        let after = ownership::load(&*world.store, id).await.unwrap();
        assert_eq!(after.etag, before.etag);
    });
}

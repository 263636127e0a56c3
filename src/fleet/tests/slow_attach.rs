//! Attachments that take so long that somebody else may have the volume when they are complete.

use std::time::Duration;

use super::{World, read, write};
use crate::clock;
use crate::error::ErrorKind;
use crate::format::manifest::Owner;
use crate::ownership::{self, Permit};
use crate::store::{Effect, Gate, Matching, Operation};

/// Longer than what raises doubt about the owner.
const LONG: Duration = Duration::from_millis(900);

#[test]
fn a_slow_store_is_asked_whose_the_volume_is_and_then_requests_are_answered() {
    let world = World::new();
    let id = world.create();
    for operation in [Operation::Put, Operation::Get] {
        world.faults.inject(Matching::operation(operation).on("manifest"), Effect::Delay(LONG), usize::MAX);
    }
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        assert!(volume.gate.suspensions() > 0, "attaching was to take long");
        write(&volume, 0, 7).await;
        assert_eq!(read(&volume, 0).await, 7);
    });
}

#[test]
fn who_was_overtaken_while_attaching_is_told() {
    let world = World::new();
    let id = world.create();
    let gate = Gate::closed();
    world.faults.inject(Matching::operation(Operation::Put).on("manifest"), Effect::HoldAfter(gate.clone()), 1);
    world.life("a", async |fleet| {
        let attaching = tokio::spawn({
            let fleet = fleet.clone();
            async move { fleet.attach(id, false, false).await.err() }
        });
        gate.arrived(1).await;
        let claimed = ownership::load(&*world.store, id).await.unwrap();
        let rival = Owner { token: clock::random_token(), ..claimed.manifest.owner.clone().unwrap() };
        ownership::claim(&*world.store, &claimed, rival, Permit::TakeOver).await.unwrap();
        tokio::time::sleep(LONG).await;
        gate.open();
        let refused = attaching.await.unwrap().expect("it has another owner");
        assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
        assert!(fleet.find(id).is_none());
    });
}

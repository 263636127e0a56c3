//! A host that dies while it attaches, or with everything stored, attaches again by itself; one that has lost something does not.

use std::fs;
use std::time::Duration;

use super::{World, first_segments, read, write};
use crate::error::ErrorKind;
use crate::store::{Effect, Gate, Matching, ObjectKey, Operation, StoreErrorKind};
use crate::units::{Sequence, VolumeId};

/// Dies after the manifest names this host as the owner, and before there is a log.
fn die_while_attaching(world: &World, host: &str, volume: VolumeId, takeover: bool) {
    let gate = Gate::closed();
    world.faults.inject(Matching::operation(Operation::Put).on("manifest"), Effect::HoldAfter(gate.clone()), 1);
    world.life(host, async |fleet| {
        tokio::spawn(async move { fleet.attach(volume, takeover, false).await.map(|_| ()) });
        gate.arrived(1).await;
    });
    world.faults.clear();
}

#[test]
fn a_death_between_claim_and_log_needs_no_takeover() {
    let world = World::new();
    let volume = world.create();
    for _ in 0..2 {
        die_while_attaching(&world, "a", volume, false);
        assert!(!world.local("a", volume).join("log").exists(), "the death came too late to test anything");
    }
    world.life("b", async |fleet| {
        let refused = fleet.attach(volume, false, false).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Busy, "the claim of another host: {refused}");
    });
    world.life("a", async |fleet| {
        let (volume, report) = fleet.attach(volume, false, false).await.unwrap();
        assert!(!report.taken_over && report.rescued_log.is_none());
        world.refuse_puts();
        write(&volume, 0, 7).await;
    });
    world.faults.clear();
    world.life("a", async |fleet| {
        let (volume, report) = fleet.attach(volume, false, false).await.unwrap();
        assert_eq!((report.replayed_records, read(&volume, 0).await), (1, 7));
        world.faults.outage(Some(StoreErrorKind::Unavailable));
    });
    world.faults.outage(None);
    // A log that is lost with an acknowledged write in it is no claim that came to nothing.
    fs::remove_file(world.local("a", volume).join("log")).unwrap();
    world.life("a", async |fleet| {
        let refused = fleet.attach(volume, false, false).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    });
}

#[test]
fn a_death_during_a_takeover_keeps_the_old_log_aside_later() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        world.refuse_puts();
        write(&volume, 0, 7).await;
    });
    world.faults.clear();
    world.life("b", async |fleet| {
        let (volume, report) = fleet.attach(id, true, false).await.unwrap();
        assert!(report.taken_over && read(&volume, 0).await == 0);
    });
    die_while_attaching(&world, "a", id, true);
    world.life("a", async |fleet| {
        let (volume, report) = fleet.attach(id, false, false).await.unwrap();
        assert!(!report.taken_over && read(&volume, 0).await == 0);
        assert_eq!(report.rescued_log.map(|log| log.records), Some(1));
    });
}

/// The first of two segments under way never arrives, and the epoch is sealed in its place: the second, behind the seal, is no part of the history.
#[test]
fn what_lies_behind_a_seal_is_not_stored() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        let [first, second] = first_segments(&volume);
        let gate = Gate::closed();
        let put = Matching::operation(Operation::Put).on(first.as_str());
        world.faults.inject(put, Effect::HoldBefore(gate.clone()), 1);
        write(&volume, 0, 7).await;
        gate.arrived(1).await;
        write(&volume, 4096, 8).await;
        let all = ObjectKey::epoch_segments(id, volume.epoch);
        let there = async || world.store.list(&all, None).await.unwrap().objects;
        while !there().await.iter().any(|object| object.key == second) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    world.faults.clear();
    world.life("b", async |fleet| {
        let (volume, report) = fleet.attach(id, true, false).await.unwrap();
        assert!(report.taken_over);
        assert_eq!((read(&volume, 0).await, read(&volume, 4096).await), (0, 0));
        fleet.detach(id, false).await.unwrap();
    });
    world.life("a", async |fleet| {
        let (_, report) = fleet.attach(id, false, false).await.unwrap();
        let rescued = report.rescued_log.expect("the only copy of two writes is kept");
        assert_eq!(rescued.records, 2);
        assert!(fs::exists(rescued.path).unwrap());
    });
}

#[test]
fn a_log_of_which_everything_is_stored_is_carried_on_with() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| drop(fleet.attach(id, false, false).await.unwrap()));
    for round in 1..4 {
        world.life("a", async |fleet| {
            let (volume, report) = fleet.attach(id, false, false).await.unwrap();
            assert_eq!(report.resumed, Sequence(u64::from(round) - 1));
            assert_eq!(read(&volume, 0).await, round - 1);
            write(&volume, 0, round).await;
            volume.sync().await.unwrap();
        });
    }
}

#[test]
fn a_store_that_holds_more_than_the_log_is_gone_on_from() {
    let world = World::new();
    let id = world.create();
    let log = world.local("a", id).join("log");
    let older = world.directory.path().join("older");
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        write(&volume, 0, 1).await;
        fs::copy(&log, &older).unwrap();
        write(&volume, 0, 2).await;
        volume.sync().await.unwrap();
    });
    // Power was lost with the newest record, which the store has. And then the new log cannot be made at first.
    fs::copy(&older, &log).unwrap();
    let obstacle = world.local("a", id).join("log.new");
    fs::create_dir(&obstacle).unwrap();
    world.life("a", async |fleet| drop(fleet.attach(id, false, false).await.err().unwrap()));
    assert!(!log.exists(), "the failure came too early to test anything");
    fs::remove_dir(&obstacle).unwrap();
    world.life("a", async |fleet| {
        let (volume, report) = fleet.attach(id, false, false).await.unwrap();
        assert_eq!((report.resumed, read(&volume, 0).await, report.taken_over), (Sequence(2), 2, false));
    });
}

/// The owner that was to be put out may hold what the store does not: it stays the owner if nothing comes of the takeover.
#[test]
fn a_takeover_that_fails_leaves_the_volume_to_its_owner() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        world.refuse_puts();
        write(&volume, 0, 7).await;
    });
    world.faults.clear();
    world.life("b", async |fleet| {
        let matching = Matching::operation(Operation::Put).on("segments");
        world.faults.inject(matching, Effect::FailBefore(StoreErrorKind::Unavailable), 1);
        let refused = fleet.attach(id, true, false).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "no seal could be put: {refused}");
        let refused = fleet.attach(id, false, false).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    });
    world.life("a", async |fleet| {
        let (volume, report) = fleet.attach(id, false, false).await.unwrap();
        assert!(report.rescued_log.is_none() && report.replayed_records == 1, "its log is part of the volume");
        assert_eq!(read(&volume, 0).await, 7);
    });
}

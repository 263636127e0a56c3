//! Snapshots, forks, growth and rollback, of volumes in use and of detached ones.

use super::*;
use crate::error::ErrorKind;
use crate::lineage::FrozenMap;
use crate::service::{Durability, NewForks, NewSnapshot, ScheduleChange, VolumeChange, VolumeState};
use crate::store::{ObjectKey, Operation};
use crate::units::{BlockCount, BlockRange, Lba, SnapshotId};

async fn attach(fleet: &Arc<Fleet>, volume: VolumeId) -> Arc<Volume> {
    fleet.attach(volume, false, false).await.unwrap().0
}

fn one_fork() -> NewForks {
    NewForks { name: None, count: 1, region: None }
}

/// How many blocks from the start on a snapshot has data for.
async fn mapped(world: &World, snapshot: SnapshotId) -> u64 {
    let found = crate::lineage::find(&*world.store, snapshot).await.unwrap();
    let map = FrozenMap::open(&world.store, &found.moment).await.unwrap();
    let mut places = Vec::new();
    map.lookup(BlockRange::new(Lba(0), BlockCount(map.size().0 / 4096)), &mut places).await.unwrap();
    places.iter().filter(|place| place.place.is_some()).map(|place| place.range.count.0).sum()
}

#[test]
fn a_live_snapshot_holds_exactly_what_was_acknowledged_before() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let volume = attach(&fleet, id).await;
        let mut snapshots = Vec::new();
        for count in 0..20u64 {
            let suspensions = volume.gate.suspensions();
            let is_open = volume.gate.check().is_ok();
            let (taken, ()) = tokio::join!(
                biased;
                // Polled first: what is asked for before the write is acknowledged does not hold it.
                volume.snapshot(NewSnapshot::default()),
                write(&volume, count * 4096, 7)
            );
            // Unless the process stood still just then: both wait at the gate, and the write may pass first.
            let is_first = is_open && volume.gate.suspensions() == suspensions;
            snapshots.push((taken.unwrap().id, count..=count + u64::from(!is_first)));
        }
        for (snapshot, blocks) in snapshots {
            assert!(blocks.contains(&mapped(&world, snapshot).await), "not {blocks:?} blocks");
        }
        fleet.detach(id, false).await.unwrap();
    });
    let listed = runtime().block_on(world.admin().snapshots(id)).unwrap();
    assert_eq!(listed.len(), 20);
}

#[test]
fn forks_of_forks_share_the_past_and_nothing_else() {
    let world = World::new();
    let first = world.create();
    world.life("a", async |fleet| {
        let mut chain = vec![first];
        for depth in 0..6u64 {
            let parent = attach(&fleet, chain[depth as usize]).await;
            write(&parent, depth * 4096, depth as u8 + 1).await;
            let fork = parent.fork(&one_fork()).await.unwrap().remove(0);
            write(&parent, depth * 4096, 0xee).await;
            // Every other parent has let go of its volume when its fork is attached.
            if depth % 2 == 0 {
                fleet.detach(parent.id, false).await.unwrap();
            }
            chain.push(fork.volume);
        }
        for (depth, id) in chain.iter().enumerate() {
            let volume = attach(&fleet, *id).await;
            for block in 0..6 {
                let expected = match block.cmp(&depth) {
                    std::cmp::Ordering::Less => block as u8 + 1,
                    std::cmp::Ordering::Equal => 0xee,
                    std::cmp::Ordering::Greater => 0,
                };
                let expected = if block == depth && depth == chain.len() - 1 { 0 } else { expected };
                assert_eq!(read(&volume, block as u64 * 4096).await, expected, "depth {depth}, block {block}");
            }
        }
    });
}

#[test]
fn a_fork_that_was_never_attached_can_be_forked_and_snapshotted() {
    let world = World::new();
    let id = world.create();
    let fork = world.life("a", async |fleet| {
        let volume = attach(&fleet, id).await;
        write(&volume, 0, 5).await;
        volume.fork(&one_fork()).await.unwrap().remove(0).volume
    });
    let admin = world.admin();
    let (again, restored) = runtime().block_on(async {
        let again = admin.fork_volume(fork, NewForks { name: Some("n".into()), count: 3, region: None }).await.unwrap();
        assert_eq!(again.len(), 3);
        let snapshot = admin.snapshot(again[2].id, NewSnapshot::default()).await.unwrap();
        let new = NewVolume::named("restored", ByteLen(16 << 20));
        let too_small = NewVolume { size: ByteLen(4096), ..new.clone() };
        let refused = admin.create_from_snapshot(snapshot.id, too_small, 1).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        let restored = admin.create_from_snapshot(snapshot.id, new, 1).await.unwrap().remove(0);
        // What was made from it needs neither the snapshot nor its volume to be there for people.
        admin.destroy_snapshot(snapshot.id).await.unwrap();
        admin.destroy_volume(again[2].id, false).await.unwrap();
        assert_eq!(admin.snapshot_summary(snapshot.id).await.unwrap_err().kind(), ErrorKind::NotFound);
        (again[0].id, restored)
    });
    assert_eq!(restored.size, ByteLen(16 << 20));
    world.life("b", async |fleet| {
        for id in [again, restored.id] {
            assert_eq!(read(&attach(&fleet, id).await, 0).await, 5);
        }
    });
}

#[test]
fn growth_is_seen_at_once_and_after_a_sudden_death() {
    let world = World::new();
    let id = world.create();
    let larger = VolumeChange { size: Some(ByteLen(12 << 20)), ..VolumeChange::default() };
    world.life("a", async |fleet| {
        let volume = attach(&fleet, id).await;
        volume.update(&larger).await.unwrap();
        write(&volume, 11 << 20, 3).await;
        let smaller = VolumeChange {
            size: Some(ByteLen(8 << 20)),
            durability: Some(Durability::Store),
            ..VolumeChange::default()
        };
        assert!(volume.update(&smaller).await.unwrap_err().message().contains("cannot shrink"));
        assert_eq!(volume.status().durability, Durability::Local, "of what was refused nothing is in force");
    });
    world.life("a", async |fleet| {
        let volume = attach(&fleet, id).await;
        assert_eq!(volume.status().size, ByteLen(12 << 20));
        assert_eq!(read(&volume, 11 << 20).await, 3);
    });
}

#[test]
fn a_rollback_brings_back_the_past_and_keeps_the_present() {
    let world = World::new();
    let id = world.create();
    let past = world.life("a", async |fleet| {
        let volume = attach(&fleet, id).await;
        write(&volume, 0, 1).await;
        let past = volume.snapshot(NewSnapshot::default()).await.unwrap().id;
        write(&volume, 0, 2).await;
        write(&volume, 4096, 2).await;
        let refused = world.admin().roll_back(id, past).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        fleet.detach(id, false).await.unwrap();
        past
    });
    let (volume, present) = runtime().block_on(world.admin().roll_back(id, past)).unwrap();
    assert_eq!(volume.state, VolumeState::Detached);
    // The same host has pages of the abandoned future, which must not shine through.
    world.life("a", async |fleet| {
        let volume = attach(&fleet, id).await;
        assert_eq!((read(&volume, 0).await, read(&volume, 4096).await), (1, 0));
        write(&volume, 8192, 3).await;
        fleet.detach(id, false).await.unwrap();
    });
    runtime().block_on(world.admin().roll_back(id, present.id)).unwrap();
    world.life("b", async |fleet| {
        let volume = attach(&fleet, id).await;
        assert_eq!((read(&volume, 0).await, read(&volume, 4096).await, read(&volume, 8192).await), (2, 2, 0));
    });
}

#[test]
fn snapshots_and_forks_cost_four_requests_at_most() {
    let world = World::new();
    let id = world.create();
    let admin = world.admin();
    let detached = |act: &dyn Fn()| {
        let before = world.faults.log().len();
        act();
        world.faults.log().len() - before
    };
    let snapshot = detached(&|| drop(runtime().block_on(admin.snapshot(id, NewSnapshot::default())).unwrap()));
    let fork = detached(&|| drop(runtime().block_on(admin.fork_volume(id, one_fork())).unwrap()));
    // Opening the store costs one more.
    assert!(snapshot <= 3 && fork <= 3, "{snapshot} and {fork}");
    world.life("a", async |fleet| {
        let volume = attach(&fleet, id).await;
        for block in 0..1000 {
            write(&volume, block * 4096, 1).await;
        }
        volume.sync().await.unwrap();
        // A checkpoint may be due by now: it is waited for. What that condemns may be deleted behind it, by the cleaner.
        volume.clean_now().await.unwrap();
        let asked = || world.faults.log().iter().filter(|logged| logged.operation != Operation::Delete).count();
        let before = asked();
        volume.snapshot(NewSnapshot::default()).await.unwrap();
        assert_eq!(asked() - before, 2);
        write(&volume, 0, 2).await;
        volume.fork(&one_fork()).await.unwrap();
        assert!(asked() - before <= 2 + 3, "the lag is one segment");
    });
}

#[test]
fn scheduled_snapshots_come_and_go_by_themselves() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let volume = attach(&fleet, id).await;
        write(&volume, 0, 1).await;
        let schedule = ScheduleChange { off: false, interval_seconds: Some(1), retention_seconds: Some(5) };
        let change = VolumeChange { schedule: Some(schedule), ..VolumeChange::default() };
        volume.update(&change).await.unwrap();
        let listed = async || world.admin().snapshots(id).await.unwrap();
        while listed().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(listed().await.iter().all(|snapshot| snapshot.scheduled));
        let objects = async || world.store.list(&ObjectKey::snapshots(), None).await.unwrap().objects.len();
        while objects().await > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // What goes with a snapshot is deleted after it.
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Nothing was written since: nothing is taken, and nothing is asked of the store.
        let mut windows = 0;
        while windows < 20 {
            world.faults.clear_log();
            if sleep_undisturbed(Duration::from_secs(3)).await {
                break;
            }
            windows += 1;
        }
        let log = world.faults.log();
        assert!(windows < 20 && log.is_empty(), "after {windows} windows with a pause: {log:?}");
    });
}

#[test]
fn usage_tells_what_is_shared_from_what_is_not() {
    let world = World::new();
    let id = world.create();
    let fork = world.life("a", async |fleet| {
        let volume = attach(&fleet, id).await;
        for block in 0..8 {
            write(&volume, block * 4096, block as u8 + 1).await;
        }
        let fork = volume.fork(&one_fork()).await.unwrap().remove(0).volume;
        let forked = attach(&fleet, fork).await;
        write(&forked, 0, 99).await;
        for id in [id, fork] {
            fleet.detach(id, false).await.unwrap();
        }
        fork
    });
    let report = runtime().block_on(world.admin().usage(Some(fork), &mut |_, _| ())).unwrap();
    let of = |id| report.disks.iter().find(|disk| disk.volume == id).unwrap();
    let (origin, fork) = (of(id), of(fork));
    assert_eq!((origin.written, fork.written), (ByteLen(8 * 4096), ByteLen(8 * 4096)));
    // Block 0 is the origin's own by now; of the fork's blocks only the one that it wrote is its own.
    assert!(origin.unique.0 > 0 && fork.unique.0 > 0);
    assert_eq!(origin.shared, fork.shared);
    assert!(origin.shared.0 > 0);
    let sum = report.unique.0 + report.shared.0 + report.dead.0 + report.metadata.0;
    assert!(sum.abs_diff(report.stored.0) <= 2, "{sum} of {}", report.stored);
    assert_eq!(report.unique.0, origin.unique.0 + fork.unique.0);
    assert!(report.shared.0.abs_diff(origin.shared.0) <= 2);
}

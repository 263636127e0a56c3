//! Destroyed volumes are removed a day later: not before, not while they are pinned, and for good also after a crash meanwhile.

use super::{World, runtime, write};
use crate::admin::purge::{UNDELETE_MILLIS, sweep};
use crate::clock;
use crate::error::ErrorKind;
use crate::service::{NewForks, NewSnapshot, Swept, VolumeState};
use crate::store::{Condition, Effect, Matching, ObjectKey, Operation, StoreErrorKind};
use crate::units::{Epoch, SegmentId, SegmentNumber, UnixMillis, VolumeId};

/// A volume with some objects, destroyed now.
fn destroyed(world: &World) -> VolumeId {
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        for block in 0..4 {
            write(&volume, block * 4096, 1).await;
            volume.sync().await.unwrap();
        }
        drop(volume);
        fleet.detach(id, false).await.unwrap();
    });
    runtime().block_on(world.admin().destroy_volume(id, false)).unwrap();
    id
}

fn sweep_after(world: &World, millis: u64) -> Swept {
    let at = UnixMillis(clock::now().0 + millis);
    runtime().block_on(sweep(&*world.store, at)).unwrap()
}

fn names(world: &World) -> Vec<String> {
    let page = runtime().block_on(world.store.list(&ObjectKey::everything(), None)).unwrap();
    page.objects.iter().map(|object| object.key.to_string()).collect()
}

const HOUR: u64 = 3_600_000;

#[test]
fn a_volume_goes_when_its_day_is_over() {
    let world = World::new();
    let (id, living) = (destroyed(&world), world.create());
    let before = names(&world);
    assert!(before.len() > 6, "{before:?}");
    let early = sweep_after(&world, 23 * HOUR);
    assert!(early.purged.is_empty() && early.next_due.is_some() && names(&world) == before, "{early:?}");
    runtime().block_on(world.admin().undelete_volume(id)).unwrap();
    assert_eq!(sweep_after(&world, 1000 * HOUR), Swept::default());
    runtime().block_on(world.admin().destroy_volume(id, false)).unwrap();
    let swept = sweep_after(&world, 25 * HOUR);
    assert_eq!((swept.purged, swept.objects), (vec![id], before.len() as u64 - 1));
    assert_eq!(names(&world), [ObjectKey::manifest(living).to_string()]);
}

#[test]
fn a_volume_with_a_snapshot_stays_until_that_is_gone() {
    let world = World::new();
    let (id, admin) = (destroyed(&world), world.admin());
    let snapshot = runtime().block_on(async {
        admin.undelete_volume(id).await.unwrap();
        let snapshot = admin.snapshot(id, NewSnapshot::default()).await.unwrap().id;
        admin.destroy_volume(id, false).await.unwrap();
        snapshot
    });
    let before = names(&world);
    assert_eq!(sweep_after(&world, 1000 * HOUR), Swept::default());
    assert_eq!(names(&world), before);
    runtime().block_on(admin.destroy_snapshot(snapshot)).unwrap();
    assert_eq!(sweep_after(&world, 1000 * HOUR).purged, [id]);
    assert!(names(&world).is_empty());
}

#[test]
fn a_snapshot_that_expires_lets_its_volume_go() {
    let world = World::new();
    let (id, admin) = (destroyed(&world), world.admin());
    runtime().block_on(async {
        admin.undelete_volume(id).await.unwrap();
        let new = NewSnapshot { name: None, retention_seconds: Some(48 * 3600) };
        admin.snapshot(id, new).await.unwrap();
        admin.destroy_volume(id, false).await.unwrap();
    });
    assert!(sweep_after(&world, 47 * HOUR).purged.is_empty());
    assert_eq!(sweep_after(&world, 49 * HOUR).purged, [id]);
    assert!(names(&world).is_empty());
}

#[test]
fn the_last_fork_takes_its_origin_with_it() {
    let world = World::new();
    let (origin, admin) = (destroyed(&world), world.admin());
    let fork = runtime().block_on(async {
        admin.undelete_volume(origin).await.unwrap();
        let fork =
            admin.fork_volume(origin, NewForks { name: None, count: 1, region: None }).await.unwrap().remove(0).id;
        admin.destroy_volume(origin, false).await.unwrap();
        fork
    });
    assert_eq!(sweep_after(&world, 1000 * HOUR), Swept::default());
    runtime().block_on(admin.destroy_volume(fork, false)).unwrap();
    let mut purged = sweep_after(&world, 25 * HOUR).purged;
    purged.sort();
    let mut both = vec![origin, fork];
    both.sort();
    assert_eq!((purged, names(&world)), (both, vec![]));
}

#[test]
fn a_crash_at_any_delete_leaves_what_check_names_and_the_next_purge_removes() {
    let mut crashes = 0;
    loop {
        let world = World::new();
        let id = destroyed(&world);
        world.faults.inject(Matching::operation(Operation::Delete), Effect::Delay(std::time::Duration::ZERO), crashes);
        world.faults.inject(
            Matching::operation(Operation::Delete),
            Effect::FailBefore(StoreErrorKind::Unavailable),
            999,
        );
        let swept = sweep_after(&world, 25 * HOUR);
        world.faults.clear();
        if swept.failures.is_empty() {
            assert_eq!(swept.purged, [id]);
            break;
        }
        crashes += 1;
        let left = names(&world);
        assert!(!left.is_empty() && swept.purged.is_empty());
        let refused = runtime().block_on(world.admin().undelete_volume(id)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "half of a volume was brought back");
        let report = runtime().block_on(world.admin().check(id, false, &mut |_| {})).unwrap();
        assert_eq!(report.problems.iter().map(|problem| problem.object.clone()).collect::<Vec<_>>(), left);
        assert_eq!(sweep_after(&world, 0).purged, [id]);
        assert!(names(&world).is_empty());
    }
    assert!(crashes > 6, "the crashes hit nothing: {crashes}");
}

#[test]
fn what_an_old_owner_writes_later_is_removed_when_it_is_a_day_old() {
    let world = World::new();
    let id = destroyed(&world);
    sweep_after(&world, 25 * HOUR);
    let late = ObjectKey::segment(SegmentId { volume: id, epoch: Epoch(1), number: SegmentNumber(9) });
    runtime().block_on(world.store.put(&late, "late".into(), Condition::IfAbsent)).unwrap();
    assert_eq!(sweep_after(&world, UNDELETE_MILLIS / 2), Swept::default());
    let report = runtime().block_on(world.admin().check(id, false, &mut |_| {})).unwrap();
    assert_eq!(report.problems.len(), 1);
    assert_eq!(sweep_after(&world, 25 * HOUR).leftovers, [id]);
    assert!(names(&world).is_empty());
    let gone = runtime().block_on(world.admin().check(id, false, &mut |_| {})).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
}

#[test]
fn a_swap_by_somebody_else_keeps_the_volume() {
    let world = World::new();
    let id = destroyed(&world);
    let conflict = Effect::FailBefore(StoreErrorKind::PreconditionFailed);
    world.faults.inject(Matching::operation(Operation::Put).on("manifest"), conflict, 1);
    let before = names(&world);
    let swept = sweep_after(&world, 25 * HOUR);
    assert!(swept.purged.is_empty() && swept.failures.len() == 1, "{swept:?}");
    assert_eq!(names(&world), before);
    let shown = runtime().block_on(world.admin().volume(id)).unwrap();
    assert_eq!(shown.state, VolumeState::Destroyed);
}

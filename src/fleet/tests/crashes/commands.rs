//! The commands, and a cut at each request of each.

use std::io::Cursor;

use super::*;
use crate::disk::image::ImageReader;
use crate::error::Result;
use crate::service::{NewForks, NewSnapshot, ScheduleChange, VolumeChange};

fn new_volume(size: u64) -> NewVolume {
    NewVolume::named("made", ByteLen(size))
}

fn three_forks() -> NewForks {
    NewForks { name: Some("fork".into()), count: 3, region: None }
}

fn larger() -> VolumeChange {
    VolumeChange { size: Some(ByteLen(3 << 20)), ..VolumeChange::default() }
}

fn rescheduled() -> VolumeChange {
    let schedule = ScheduleChange { off: false, interval_seconds: Some(86_400), retention_seconds: Some(7 * 86_400) };
    VolumeChange { schedule: Some(schedule), durability: Some(Durability::Store), ..VolumeChange::default() }
}

/// Gives a command straight on the store, to nobody's volumes.
fn detached(name: &str, partly: &[&[&str]], requests_min: usize, command: impl AsyncFn(&Admin, Family) -> Result<()>) {
    let base = Base::build();
    let family = base.family;
    let known = clean_states(&base, partly, async |bare| {
        command(&Admin::new(bare), family).await.unwrap();
    });
    let mut points = 0;
    for cut in CUTS {
        for passed in 0.. {
            let (world, bare) = world_of(&base);
            // As the command line has it, but without trying again: so it learns of each failure.
            let admin = Admin::new(world.faults.wrap(bare.clone()));
            let gate = cut.order(&world.faults, passed);
            let process = runtime();
            process.block_on(async {
                tokio::select! {
                    biased;
                    // What it says does not matter: what counts is what it leaves.
                    _ = command(&admin, family) => {}
                    () = gate.arrived(1) => {}
                }
            });
            drop(process);
            if world.faults.log().len() <= passed {
                assert!(passed >= requests_min, "{name}: {cut:?} found only {passed} requests");
                break;
            }
            points += 1;
            runtime().block_on(judge(&bare, &family, &known, &format!("{name}, {cut:?} at request {passed}")));
        }
    }
    println!("{name}: {points} points");
    assert!(points >= requests_min * CUTS.len());
}

/// Gives a command to the owner of the disk, right after a write that is not stored yet.
fn live(
    name: &str,
    partly: &[&[&str]],
    requests_min: usize,
    command: impl AsyncFn(&Arc<Volume>, Family) -> Result<()>,
) {
    let base = Base::build();
    let family = base.family;
    let mut known = Known { views: Vec::new(), garbage: Vec::new() };
    for is_new in [false, true] {
        let (world, bare) = world_of(&base);
        world.life("a", async |fleet| {
            let (volume, _) = fleet.attach(family.disk, false, false).await.unwrap();
            read(&volume, 0).await;
            write(&volume, 16384, 4).await;
            if is_new {
                command(&volume, family).await.unwrap();
            }
        });
        hand_back(&world, family);
        runtime().block_on(note(&bare, &family, &mut known));
    }
    add_partly(&mut known, partly);
    let mut points = 0;
    for cut in CUTS {
        for passed in 0.. {
            let (world, bare) = world_of(&base);
            let met = world.life("a", async |fleet| {
                let (volume, _) = fleet.attach(family.disk, false, false).await.unwrap();
                // So that a snapshot has a trace.
                read(&volume, 0).await;
                let gate = cut.order(&world.faults, passed);
                write(&volume, 16384, 4).await;
                let outcome = tokio::select! {
                    biased;
                    outcome = command(&volume, family) => Some(outcome),
                    () = gate.arrived(1) => None,
                };
                if matches!(cut, Cut::OnceBefore | Cut::OnceAfter) {
                    outcome.unwrap().unwrap();
                }
                world.faults.log().len() > passed
            });
            world.faults.clear();
            if !met {
                assert!(passed >= requests_min, "{name}: {cut:?} found only {passed} requests");
                break;
            }
            points += 1;
            hand_back(&world, family);
            runtime().block_on(judge(&bare, &family, &known, &format!("{name}, {cut:?} at request {passed}")));
        }
    }
    println!("{name}: {points} points");
    assert!(points >= requests_min * CUTS.len());
}

/// The next process of the same host carries on, and hands the volume back.
fn hand_back(world: &World, family: Family) {
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(family.disk, false, false).await.unwrap();
        assert_eq!(read(&volume, 16384).await, 4, "an acknowledged write is lost");
        drop(volume);
        fleet.detach(family.disk, false).await.unwrap();
    });
}

async fn note(bare: &Arc<dyn Store>, family: &Family, known: &mut Known) {
    known.views.push(view(bare, family).await);
    clean(bare, "nothing was cut").await;
    known.garbage.push(unreachable_objects(bare, family).await);
}

/// What the store is like before and after the command when all goes well.
fn clean_states(base: &Base, partly: &[&[&str]], command: impl AsyncFn(Arc<dyn Store>)) -> Known {
    let mut known = Known { views: Vec::new(), garbage: Vec::new() };
    for is_new in [false, true] {
        let bare = base.copy();
        runtime().block_on(async {
            if is_new {
                command(bare.clone()).await;
            }
            note(&bare, &base.family, &mut known).await;
        });
    }
    add_partly(&mut known, partly);
    known
}

/// Adds the states of a command that may end half-way by its own account: the old one and some lines of the new one.
fn add_partly(known: &mut Known, partly: &[&[&str]]) {
    let (old, new) = (known.views[0].clone(), known.views[1].clone());
    for parts in partly {
        let mut added: Vec<String> = new.iter().filter(|line| !old.contains(line)).cloned().collect();
        let mut view = old.clone();
        for part in *parts {
            let at = added.iter().position(|line| line.starts_with(part)).unwrap();
            view.push(added.swap_remove(at));
        }
        view.sort();
        known.views.push(view);
    }
}

/// Of three forks some may have been made.
const SOME_FORKS: &[&[&str]] = &[&["volume fork"], &["volume fork", "volume fork"]];

#[test]
fn snapshot() {
    detached("snapshot", &[], 3, async |admin, family| {
        admin.snapshot(family.disk, NewSnapshot::default()).await.map(drop)
    });
}

#[test]
fn snapshot_in_use() {
    live("snapshot in use", &[], 4, async |volume, _| volume.snapshot(NewSnapshot::default()).await.map(drop));
}

#[test]
fn destroy_snapshot() {
    detached("destroy snapshot", &[], 5, async |admin, family| admin.destroy_snapshot(family.past).await.map(drop));
}

#[test]
fn destroy_snapshot_in_use() {
    live("destroy snapshot in use", &[], 5, async |volume, family| {
        Admin::new(volume.shared.store.clone()).destroy_snapshot(family.past).await.map(drop)
    });
}

#[test]
fn fork() {
    detached("fork", SOME_FORKS, 5, async |admin, family| {
        admin.fork_volume(family.disk, three_forks()).await.map(drop)
    });
}

#[test]
fn fork_in_use() {
    live("fork in use", SOME_FORKS, 5, async |volume, _| volume.fork(&three_forks()).await.map(drop));
}

#[test]
fn create_from_snapshot() {
    detached("create from a snapshot", &[], 5, async |admin, family| {
        admin.create_from_snapshot(family.past, new_volume(2 << 20), 1).await.map(drop)
    });
}

#[test]
fn extend() {
    detached("extend", &[], 2, async |admin, family| admin.update_volume(family.disk, larger()).await.map(drop));
}

#[test]
fn extend_in_use() {
    live("extend in use", &[], 1, async |volume, _| volume.update(&larger()).await);
}

#[test]
fn update() {
    detached("update", &[], 2, async |admin, family| admin.update_volume(family.disk, rescheduled()).await.map(drop));
}

#[test]
fn update_in_use() {
    live("update in use", &[], 1, async |volume, _| volume.update(&rescheduled()).await);
}

#[test]
fn roll_back() {
    // The snapshot of the present may have been taken already.
    detached("restore", &[&["snapshot before the restore"]], 6, async |admin, family| {
        admin.roll_back(family.disk, family.past).await.map(drop)
    });
}

#[test]
fn destroy() {
    detached("destroy", &[], 2, async |admin, family| admin.destroy_volume(family.spare, false).await.map(drop));
}

#[test]
fn undelete() {
    detached("undelete", &[], 2, async |admin, family| admin.undelete_volume(family.gone).await.map(drop));
}

#[test]
fn import() {
    let image: Vec<u8> = (0..1_500_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    detached("import", &[], 5, async |admin, _| {
        let image = ImageReader::of_stream("image", Cursor::new(image.clone()));
        admin.import(new_volume(0), image, &mut |_| (), std::future::pending()).await.map(drop)
    });
}

#[test]
fn purge_of_a_fork() {
    detached("purge", &[], 10, async |admin, _| {
        purge::sweep(&*admin.store, UnixMillis(clock::now().0 + 25 * HOUR)).await.map(drop)
    });
}

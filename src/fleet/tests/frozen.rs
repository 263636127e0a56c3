//! Snapshots as disks, and what has changed since them.

use super::*;
use crate::block_device::{Attempt, Exports};
use crate::error::ErrorKind;
use crate::fleet::FleetExports;
use crate::lineage;
use crate::service::NewSnapshot;
use crate::units::SnapshotId;

async fn snapshot(volume: &Arc<Volume>) -> SnapshotId {
    volume.snapshot(NewSnapshot::default()).await.unwrap().id
}

#[test]
fn a_snapshot_is_a_disk_that_refuses_changes() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        write(&volume, 4096, 7).await;
        let taken = snapshot(&volume).await;
        write(&volume, 4096, 8).await;
        let exports = FleetExports(fleet.clone());
        let name = taken.to_string();
        assert!(exports.inspect(&name).await.unwrap().read_only);
        assert_eq!(exports.list().await.unwrap().len(), 2);
        let open = exports.open(&name).await.unwrap();
        let mut buffer = vec![0; 12288];
        assert!(matches!(open.device.try_read(0, &mut buffer), Attempt::WouldBlock), "nothing is at hand yet");
        open.device.read(0, &mut buffer).await.unwrap();
        let expected = [[0; 4096], [7; 4096], [0; 4096]].concat();
        assert!(buffer == expected);
        buffer.fill(1);
        assert!(matches!(open.device.try_read(0, &mut buffer), Attempt::Done), "everything is in memory by now");
        assert!(buffer == expected);
        let mut part = vec![0; 10];
        open.device.read(4091, &mut part).await.unwrap();
        assert_eq!(part, [0, 0, 0, 0, 0, 7, 7, 7, 7, 7]);
        assert!(open.device.read(8 << 20, &mut part).await.is_err());
        let mut outcomes = Vec::new();
        open.device.try_change(&[Change::Write { offset: 0, data: &[1] }], &mut outcomes);
        assert!(matches!(&outcomes[..], [Attempt::Failed(error)] if error.kind() == ErrorKind::ReadOnly));
        let refused = open.device.change(Change::Zero { offset: 0, length: 4096 }).await;
        assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::ReadOnly));
        world.admin().destroy_snapshot(taken).await.unwrap();
        for error in [exports.open(&name).await.err(), exports.inspect(&name).await.err()] {
            assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::NotFound));
        }
        open.device.read(0, &mut buffer).await.unwrap();
    });
}

#[test]
fn changes_since_a_snapshot_are_told_before_and_after_the_upload() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        for block in 0..64 {
            write(&volume, block * 4096, 7).await;
        }
        let taken = snapshot(&volume).await;
        let device = VolumeDevice::new(volume.clone());
        let told = async || {
            let extents = device.changed_since(taken, 0, 8 << 20, 100).await.unwrap();
            extents.into_iter().map(|extent| (extent.length / 4096, extent.changed)).collect::<Vec<_>>()
        };
        assert_eq!(told().await, [(2048, false)]);
        write(&volume, 3 * 4096, 8).await;
        device.change(Change::Zero { offset: 10 * 4096, length: 4096 }).await.unwrap();
        let expected = [(3, false), (1, true), (6, false), (1, true), (2037, false)];
        assert_eq!(told().await, expected);
        volume.sync().await.unwrap();
        assert_eq!(told().await, expected);
        let newer = snapshot(&volume).await;
        let (from, to) = tokio::join!(frozen(&world, taken), frozen(&world, newer));
        let mut extents = Vec::new();
        let mut visit = |extent: lineage::ChangedExtent| {
            extents.push((extent.range.start.0, extent.range.count.0, extent.zero));
            Ok(())
        };
        lineage::diff(&from, &to, &mut visit).await.unwrap();
        assert_eq!(extents, [(3, 1, false), (10, 1, true)]);
        let few = device.changed_since(taken, 4096, 8 << 19, 2).await.unwrap();
        assert_eq!(few.iter().map(|extent| extent.length).collect::<Vec<_>>(), [2 * 4096, 4096]);
    });
}

async fn frozen(world: &World, id: SnapshotId) -> lineage::FrozenMap {
    world.admin().frozen_snapshot(id).await.unwrap()
}

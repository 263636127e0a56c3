//! What clients ask of a disk besides its content: where the bytes are, and to bring them near.

use super::*;
use crate::block_device::{Attempt, Exports, Residence};
use crate::fleet::FleetExports;
use crate::limits::NEAR_BYTES_MAX;
use crate::service::NewSnapshot;
use crate::store::{Effect, Matching, Operation, StoreErrorKind};

const MIB: u64 = 1 << 20;
const SIZE: ByteLen = ByteLen(256 << 20);

fn create(world: &World) -> VolumeId {
    runtime().block_on(world.admin().create_volume(NewVolume::named("v", SIZE))).unwrap().id
}

#[test]
fn where_bytes_are_is_told_from_any_offset() {
    let world = World::new();
    let id = create(&world);
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        for at in [70 * MIB, 130 * MIB] {
            write(&volume, at, 7).await;
        }
        let taken = volume.snapshot(NewSnapshot::default()).await.unwrap().id;
        let frozen = FleetExports(fleet.clone()).open(&taken.to_string()).await.unwrap().device;
        let devices: [Arc<dyn BlockDevice>; 2] = [Arc::new(VolumeDevice::new(volume.clone())), frozen];
        for device in devices {
            // The second begins where a partition does that was made for a disk of the old kind.
            for offset in [0, 63 * 512, 4095] {
                let extents = device.residence(offset, 200 * MIB, 100).await.unwrap();
                let told: Vec<(u64, bool)> =
                    extents.iter().map(|extent| (extent.length, extent.residence == Residence::Hole)).collect();
                let behind = 200 * MIB + offset - (130 * MIB + 4096);
                let between = 60 * MIB - 4096;
                let expected =
                    [(70 * MIB - offset, true), (4096, false), (between, true), (4096, false), (behind, true)];
                assert_eq!(told, expected, "from {offset}");
            }
        }
    });
}

#[test]
fn however_much_is_to_be_brought_near_only_a_window_is_under_way() {
    let world = World::new();
    let id = create(&world);
    let places: Vec<u64> = (0..64).map(|step| step * MIB).collect();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        for &at in &places {
            // A segment of its own.
            write(&volume, at, 7).await;
            volume.sync().await.unwrap();
        }
        let taken = volume.snapshot(NewSnapshot::default()).await.unwrap().id;
        let device = FleetExports(fleet.clone()).open(&taken.to_string()).await.unwrap().device;
        let gets = || world.faults.count(&Matching::operation(Operation::Get).on("/segments/"));
        let before = gets();
        let broken = Matching::operation(Operation::Get).on("/segments/");
        world.faults.inject(broken, Effect::FailBefore(StoreErrorKind::Unavailable), usize::MAX);
        assert!(device.prefetch(0, SIZE.0).await.is_err());
        let tried = gets() - before;
        assert!((1..=NEAR_BYTES_MAX / MIB).contains(&(tried as u64)), "{tried} fetches were under way");
        world.faults.clear();
        device.prefetch(0, SIZE.0).await.unwrap();
        let mut block = vec![0; 4096];
        for &at in &places {
            assert!(matches!(device.try_read(at, &mut block), Attempt::Done), "{at} was brought near");
        }
    });
}

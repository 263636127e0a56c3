//! Counting what a volume has in the store, where no census says so, while its clients write.

use std::time::Duration;

use bytes::Bytes;

use super::{World, read, runtime, write};
use crate::block_device::{BlockDevice, Change};
use crate::checkpoint::testing::flip_a_bit;
use crate::ownership;
use crate::service::NewSnapshot;
use crate::store::{Effect, Gate, Matching, ObjectKey, Operation};
use crate::units::Epoch;
use crate::volume::VolumeDevice;

const PAGE_BYTES: u64 = 1 << 20;

/// A segment has taken effect in one page of the map, and waits for the store to bring the next one, when the map is walked: only a part of
/// what is live in it shows.
#[test]
fn a_segment_that_is_taking_effect_is_not_counted_by_what_shows_of_it() {
    let world = World::new();
    let id = world.create();
    // Two pages of the map, in two objects.
    for offset in [0, PAGE_BYTES] {
        world.life("a", async |fleet| {
            let (volume, _) = fleet.attach(id, false, false).await.unwrap();
            write(&volume, offset, 1).await;
            fleet.detach(id, false).await.unwrap();
        });
    }
    // A volume that was rolled back has no census.
    let past = runtime().block_on(world.admin().snapshot(id, NewSnapshot::default())).unwrap().id;
    runtime().block_on(world.admin().roll_back(id, past)).unwrap();
    world.life("b", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        assert_eq!(read(&volume, 0).await, 1);
        let gate = Gate::closed();
        let second = ObjectKey::map_object(id, Epoch(2), 0);
        world.faults.inject(
            Matching::operation(Operation::Get).on(second.as_str()),
            Effect::HoldBefore(gate.clone()),
            1,
        );
        let data = Bytes::from(vec![2; 10 * 4096]);
        let both = Change::Write { offset: PAGE_BYTES - 4096, data };
        VolumeDevice::new(volume.clone()).change(both).await.unwrap();
        gate.arrived(1).await;
        let cleaning = tokio::spawn({
            let volume = volume.clone();
            async move { volume.clean_now().await.map(drop) }
        });
        // Until it waits for the uploader, for whatever reason.
        while volume.relocation.lock().is_none() && volume.checkpoint_asked.lock().is_empty() {
            assert!(!cleaning.is_finished(), "it cannot end before the segment has taken effect");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gate.open();
        cleaning.await.unwrap().unwrap();
        fleet.detach(id, false).await.unwrap();
    });
    world.life("c", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        for block in 0..10 {
            assert_eq!(read(&volume, PAGE_BYTES - 4096 + block * 4096).await, 2, "block {block} of the write");
        }
    });
}

/// What a checkpoint says of the volume's objects is for the cleaner: if it is damaged, the volume goes on, and they are counted.
#[test]
fn a_damaged_census_is_counted_anew() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        write(&volume, 0, 1).await;
        fleet.detach(id, false).await.unwrap();
    });
    runtime().block_on(async {
        let manifest = ownership::load(&*world.store, id).await.unwrap().manifest;
        flip_a_bit(&*world.store, manifest.census.unwrap()[0]).await;
    });
    world.life("b", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        write(&volume, 4096, 2).await;
        fleet.detach(id, false).await.unwrap();
        let manifest = ownership::load(&*world.store, id).await.unwrap().manifest;
        assert!(manifest.complete, "it is handed back, whether or not they were counted in time");
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        volume.clean_now().await.unwrap();
        assert_eq!((read(&volume, 0).await, read(&volume, 4096).await), (1, 2));
        fleet.detach(id, false).await.unwrap();
        let manifest = ownership::load(&*world.store, id).await.unwrap().manifest;
        assert!(manifest.census.is_some_and(|parts| !parts.is_empty()), "they were counted");
    });
}

//! How often the store is read for clients that list exports, or name one.

use std::sync::Arc;

use super::{World, runtime};
use crate::block_device::Exports;
use crate::error::ErrorKind;
use crate::fleet::FleetExports;
use crate::fleet::catalog::Catalog;
use crate::service::NewVolume;
use crate::store::{Effect, Gate, Matching, Operation};
use crate::units::{ByteLen, VolumeId};

async fn create(world: &World, name: &str) -> VolumeId {
    let new = NewVolume::named(name, ByteLen(8 << 20));
    world.admin().create_volume(new).await.unwrap().id
}

fn lists(world: &World) -> usize {
    world.faults.count(&Matching::operation(Operation::List))
}

#[test]
fn many_lists_read_the_store_once() {
    let world = World::new();
    world.life("a", async |fleet| {
        let id = create(&world, "one").await;
        let exports = FleetExports(fleet);
        world.faults.clear_log();
        for _ in 0..50 {
            let listed = exports.list().await.unwrap();
            assert_eq!(listed.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>(), [id.to_string()]);
            assert_eq!(exports.inspect("one").await.unwrap().size, 8 << 20);
        }
        assert_eq!(lists(&world), 1);
        // By whichever name it is opened, it is the same: its clients share what one export may have.
        for name in ["one", &id.to_string()] {
            assert_eq!(exports.open(name).await.unwrap().id, id.to_string());
        }
    });
}

#[test]
fn names_mean_what_they_mean_now() {
    let world = World::new();
    world.life("a", async |fleet| {
        let exports = FleetExports(fleet.clone());
        let first = create(&world, "one").await;
        assert_eq!(exports.list().await.unwrap().len(), 1);
        // Created a moment ago, and not in the view.
        let second = create(&world, "two").await;
        assert_eq!(fleet.resolve("two").await.unwrap(), second);
        // Destroyed and created anew under the same name, with the old one still in the view.
        world.admin().destroy_volume(first, false).await.unwrap();
        assert_eq!(fleet.resolve("one").await.unwrap_err().kind(), ErrorKind::NotFound);
        let third = create(&world, "one").await;
        assert_eq!(fleet.resolve("one").await.unwrap(), third);
        world.admin().destroy_volume(third, false).await.unwrap();
        let fourth = create(&world, "one").await;
        assert_eq!(fleet.resolve("one").await.unwrap(), fourth);
    });
}

#[test]
fn unknown_names_share_a_reading() {
    let world = World::new();
    let gate = Gate::closed();
    runtime().block_on(async {
        let catalog = Arc::new(Catalog::new(world.store.clone(), Default::default()));
        world.faults.inject(Matching::operation(Operation::List), Effect::HoldBefore(gate.clone()), 1);
        let ask = |catalog: Arc<Catalog>| tokio::spawn(async move { catalog.resolve("absent").await });
        let first = ask(catalog.clone());
        gate.arrived(1).await;
        // All of these come while the first reads: one more reading serves them all.
        let mut others = Vec::new();
        for _ in 0..100 {
            let mut asking = Box::pin({
                let catalog = catalog.clone();
                async move { catalog.resolve("absent").await }
            });
            assert!(futures_util::FutureExt::now_or_never(&mut asking).is_none());
            others.push(asking);
        }
        gate.open();
        assert_eq!(first.await.unwrap().unwrap_err().kind(), ErrorKind::NotFound);
        for refused in futures_util::future::join_all(others).await {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotFound);
        }
        assert_eq!(lists(&world), 2);
    });
}

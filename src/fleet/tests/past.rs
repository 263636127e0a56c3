//! What the history of a volume names stays in the store for as long as it does.

use super::{World, runtime, write};
use crate::clock;
use crate::format::map_object::MapObjectId;
use crate::ownership;
use crate::service::VolumeChange;
use crate::store::{ByteRange, Effect, Matching, ObjectKey, Operation, StoreErrorKind};
use crate::units::UnixMillis;

const HOUR: u64 = 3_600_000;

#[test]
fn a_checkpoint_that_came_into_force_unnoticed_stays() {
    let world = World::new();
    let id = world.create();
    world.life("a", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        let history = VolumeChange { history_seconds: Some(24 * 3600), ..VolumeChange::default() };
        volume.update(&history).await.unwrap();
        write(&volume, 0, 1).await;
        volume.sync().await.unwrap();
        let key = ObjectKey::manifest(id);
        let swap = Matching::operation(Operation::Put).on(key.as_str());
        world.faults.inject(swap, Effect::FailAfter(StoreErrorKind::OutcomeUnknown), 1);
        // Asks for a checkpoint; the uploader writes another, as it does not know that the first one is in force.
        volume.clean_now().await.unwrap();
        drop(volume);
        fleet.detach(id, false).await.unwrap();
    });
    let later = UnixMillis(clock::now().0 + 2 * HOUR);
    runtime().block_on(async {
        world.admin().sweep_at(false, later).await.unwrap();
        let manifest = ownership::load(&*world.store, id).await.unwrap().manifest;
        let roots = manifest.history.iter().filter_map(|past| past.moment.checkpoint);
        let roots: Vec<MapObjectId> = roots.map(|checkpoint| checkpoint.root.object).collect();
        assert!(roots.iter().any(|root| Some(*root) != manifest.checkpoint.map(|newest| newest.root.object)));
        for root in roots {
            let key = ObjectKey::map_object(root.volume, root.epoch, root.number);
            world.store.get(&key, ByteRange::Full).await.unwrap();
        }
    });
}

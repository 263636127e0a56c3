//! Looking at snapshots, and the end of a history: everything is there, on hosts that have nothing of their own, and nothing is left to do.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;
use varve::block_device::Exports;
use varve::checkpoint::{Checkpoint, read_census};
use varve::clock;
use varve::fleet::FleetExports;
use varve::format::map_object::MapObjectId;
use varve::lineage::{FrozenMap, GRACE};
use varve::ownership;
use varve::segment::fetch_index;
use varve::service::{Service, VolumeChange};
use varve::store::{ObjectKey, list_all};
use varve::units::SnapshotId;
use varve::work::simulated::HostId;

use super::client::read_device;
use super::commands::a_day_later;
use super::host::{Host, keyed, within};
use super::record::Expected;
use super::world::World;

const PATIENCE: Duration = Duration::from_secs(600);

impl World {
    pub async fn verify_some_snapshot(&mut self) {
        let known: Vec<(SnapshotId, Expected, String)> = {
            let family = self.family.lock().unwrap();
            let there = family.snapshots.iter().filter(|(_, snapshot)| !snapshot.is_destroyed);
            there.filter_map(|(name, known)| Some((known.id?, known.expected.clone(), name.clone()))).collect()
        };
        if known.is_empty() {
            return;
        }
        let choice = self.random.random_range(0..known.len());
        let host = self.some_host();
        self.calm(host);
        let (id, expected, name) = &known[choice];
        self.verify_snapshot(host, *id, expected, name).await;
        if self.random.random_bool(0.15) {
            let destroyed = self.admin().destroy_snapshot(*id).await;
            assert!(destroyed.is_ok(), "snapshot {name} cannot be destroyed: {destroyed:?}");
            self.journal.hit("family: a snapshot is destroyed");
            if let Some(known) = self.family.lock().unwrap().snapshots.get_mut(name) {
                known.is_destroyed = true;
            }
        }
        self.stir();
    }

    pub async fn verify_snapshot(&mut self, host: u32, id: SnapshotId, expected: &Expected, name: &str) {
        let exports = FleetExports(self.host(host).fleet().await);
        let sectors = expected.stamps.len();
        let reading = self.host(host).run(async move {
            let opened = exports.open(&id.to_string()).await?;
            read_device(&*opened.device, 0, sectors).await
        });
        let read = within(PATIENCE, reading).await;
        let Some(Ok(read)) = read else { panic!("snapshot {name} cannot be read: no answer") };
        let disk = read.unwrap_or_else(|error| panic!("snapshot {name} cannot be read: {error}"));
        let disk = disk.unwrap_or_else(|fault| panic!("snapshot {name}: {fault}"));
        expected.compare(&disk).unwrap_or_else(|fault| panic!("snapshot {name} is not its moment: {fault}"));
        self.journal.hit("family: a snapshot is verified");
    }

    /// The end.
    pub async fn end(&mut self) {
        self.is_dangerous = false;
        for number in 1..=self.hosts.len() as u32 {
            self.calm(number);
        }
        clock::sleep(Duration::from_secs(45)).await;
        self.adopt();
        self.look();
        for which in 0..self.subjects.len() {
            assert!(self.put_down(which).await, "volume {which} cannot be handed back");
        }
        self.look();
        self.fresh_host().await;
    }

    /// Everything that is dead is deleted.
    async fn clean_up(&mut self, which: usize, number: u32) {
        let (service, id) = (self.host(number).service().await, self.subjects[which].id);
        let cleaning = self.host(number).run(async move {
            let no_past = VolumeChange { history_seconds: Some(0), ..VolumeChange::default() };
            service.update(id, no_past).await?;
            service.clean(id).await
        });
        let cleaned = within(PATIENCE, cleaning).await.expect("an answer").expect("no death");
        cleaned.unwrap_or_else(|error| panic!("volume {which} cannot be cleaned: {error}"));
    }

    /// What is in the store is needed by somebody: nothing is left over for ever.
    async fn nothing_is_left_over(&mut self) {
        clock::sleep(GRACE + Duration::from_secs(60)).await;
        let store = keyed(self.network.line(HostId(0)));
        let admin = self.admin();
        // The store goes by the clock that is put forward to purge, so some objects may seem to be of tomorrow.
        let swept = a_day_later(admin.sweep(false)).await.expect("a sweep");
        assert!(swept.failures.is_empty(), "{:?}", swept.failures);
        for subject in &self.subjects {
            let manifest = ownership::load_unlocked(&*store, subject.id).await.expect("a manifest").manifest;
            let census =
                read_census(&*store, manifest.census.as_deref().unwrap_or_default()).await.expect("its census");
            // What a listing may have missed is never taken for left over.
            if !manifest.pins.is_empty() || census.1.is_listed {
                continue;
            }
            let map = FrozenMap::open(&store, &manifest.moment()).await.expect("its map");
            let (mut segments, mut maps) = (BTreeSet::new(), BTreeSet::new());
            for which in map.directories() {
                for page in map.occupied(which).await.expect("its pages") {
                    let page = map.page(page.index).await.expect("a page");
                    segments.extend(page.places().map(|(_, _, place)| ObjectKey::segment(place.segment)));
                }
            }
            if let Some(reference) = manifest.checkpoint {
                let checkpoint = Checkpoint::open(store.clone(), reference).await.expect("its checkpoint");
                maps.extend(checkpoint.objects().await.expect("its objects"));
                maps.insert(reference.root.object);
            }
            for object in list_all(&*store, &ObjectKey::volume(subject.id)).await.expect("a listing") {
                if let Some((volume, epoch, number)) = object.key.parse_map_object() {
                    let is_named = maps.contains(&MapObjectId { volume, epoch, number });
                    assert!(is_named, "nothing leads to {}", object.key);
                } else if let Some(id) = object.key.parse_segment().filter(|_| !segments.contains(&object.key)) {
                    let index = fetch_index(&*store, id).await.expect("its index");
                    assert!(index.header.seal, "nothing leads to {}", object.key);
                }
            }
            self.journal.hit("clean: nothing is left over");
        }
    }

    /// Waits until a fork that hydrates has copied all.
    pub async fn end_hydration(&mut self, which: usize) {
        let Some(attached) = &self.subjects[which].attached else { return };
        let volume = attached.client.volume.clone();
        let Some(mut status) = volume.status().hydration else { return };
        for _ in 0..600 {
            clock::sleep(Duration::from_millis(100)).await;
            match volume.status().hydration {
                Some(next) => status = next,
                None => return,
            }
        }
        assert!(status.waits_for_pins, "volume {which} does not come to an end with hydrating: {status:?}");
    }

    /// All that there is, seen from a host that has nothing.
    async fn fresh_host(&mut self) {
        let number = self.hosts.len() as u32 + 1;
        self.hosts.push(Host::new(number, self.around.clone()));
        for which in 0..self.subjects.len() {
            self.bring_up(which, number).await;
        }
        for which in 0..self.subjects.len() {
            self.end_hydration(which).await;
        }
        // What is brought because it was read first comes soon after the attachment, and then no more.
        clock::sleep(Duration::from_secs(20)).await;
        let before = self.network.requests();
        clock::sleep(Duration::from_secs(20)).await;
        assert_eq!(self.network.requests(), before, "volumes that nobody uses ask the store for something");
        let known: Vec<(Option<SnapshotId>, Expected, String)> = {
            let family = self.family.lock().unwrap();
            let there = family.snapshots.iter().filter(|(_, snapshot)| !snapshot.is_destroyed);
            there.map(|(name, known)| (known.id, known.expected.clone(), name.clone())).collect()
        };
        let admin = self.admin();
        for which in 0..self.subjects.len() {
            let id = self.subjects[which].id;
            for snapshot in admin.snapshots(id).await.expect("a list of snapshots") {
                let name = snapshot.name.unwrap_or_default();
                let found = known.iter().find(|(id, _, known)| *id == Some(snapshot.id) || *known == name);
                let Some((_, expected, _)) = found else { panic!("nobody asked for snapshot '{name}'") };
                self.verify_snapshot(number, snapshot.id, expected, &name).await;
            }
        }
        for (id, expected, name) in known {
            if let Some(id) = id {
                self.verify_snapshot(number, id, &expected, &name).await;
            }
        }
        for which in 0..self.subjects.len() {
            self.clean_up(which, number).await;
            assert!(self.detach(which).await, "volume {which} cannot be handed back at the end");
            let report = admin.check(self.subjects[which].id, false, &mut |_| ()).await.expect("a check");
            assert!(report.problems.is_empty(), "volume {which}: {:?}", report.problems);
        }
        self.look();
        self.nothing_is_left_over().await;
    }
}

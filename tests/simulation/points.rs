//! Every point of some short histories at which everything may die: each request to the store, before and after it takes effect, and each
//! write, sync and change of a name on the disks, with whatever part of the unsynced a power loss leaves.
//!
//! A script runs once. At each point the disks, the indexes and the store are copied, with what clients had been told by then. Then each
//! copy is gone on with: on the same host, or on one that has nothing.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use varve::admin::root;
use varve::clock;
use varve::disk::simulated::{Kept, SimulatedDisk};
use varve::index::Twin;
use varve::service::{Durability, NewVolume, VolumeChange};
use varve::store::MemoryStore;
use varve::units::ByteLen;
use varve::work::simulated;

use super::client::Wish;
use super::host::{Host, Setup, Surroundings, within};
use super::journal::Journal;
use super::layout::Layout;
use super::network::{Capture, Network};
use super::record::{BLOCK, Expected, Floor, Record, Step};
use super::world::{Family, Fork, Scene, SceneSubject, Snapshot, Subject, World};

/// Random subsets of the unsynced that are tried at each point.
const SUBSETS: u64 = 16;
const SECTORS: usize = 2048 + 64;
const PATIENCE: Duration = Duration::from_secs(600);

/// A moment at which everything dies.
pub struct Point {
    pub what: String,
    disks: Vec<(SimulatedDisk, Twin)>,
    store: MemoryStore,
    subjects: Vec<(SceneSubject, Record)>,
    family: Family,
    /// The host on whose disk something happens.
    host: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    Upload,
    Family,
    Handover,
    Takeover,
    Growth,
    Rollback,
    Cleaning,
    Past,
    Hydration,
}

impl Script {
    pub const ALL: [Script; 9] = [
        Script::Upload,
        Script::Family,
        Script::Handover,
        Script::Takeover,
        Script::Growth,
        Script::Rollback,
        Script::Cleaning,
        Script::Past,
        Script::Hydration,
    ];
}

fn setup() -> Setup {
    Setup {
        log_length: 128 << 10,
        cache_size: 0,
        memory_size: 1 << 20,
        segment_age: Duration::from_millis(200),
        segments_per_checkpoint: 2,
    }
}

impl World {
    async fn change(&mut self, wish: impl Fn(Step) -> Wish, block: usize, blocks: usize) {
        let stamp = self.next_number();
        let attached = self.subjects[0].attached.as_ref().expect("the script has attached it");
        let (client, host) = (attached.client.clone(), attached.host);
        let wish = wish(Step { first: block * BLOCK, count: blocks * BLOCK, stamp });
        client.record.lock().unwrap().begin(stamp, &wish.steps());
        let join = self.host(host).run(client.change(stamp, wish, false));
        within(PATIENCE, join).await;
        self.look();
    }

    async fn write(&mut self, block: usize, blocks: usize) {
        self.change(Wish::Write, block, blocks).await;
    }

    async fn trim(&mut self, block: usize, blocks: usize) {
        self.change(|step| Wish::Trim(Step { stamp: 0, ..step }), block, blocks).await;
    }

    async fn flush(&mut self) {
        let attached = self.subjects[0].attached.as_ref().expect("the script has attached it");
        let (client, host) = (attached.client.clone(), attached.host);
        let join = self.host(host).run(client.flush());
        within(PATIENCE, join).await;
        self.look();
    }

    async fn sync(&mut self) {
        let attached = self.subjects[0].attached.as_ref().expect("the script has attached it");
        let (client, host) = (attached.client.clone(), attached.host);
        let join = self.host(host).run(client.sync());
        within(PATIENCE, join).await;
        self.look();
    }

    async fn clean_now(&mut self) {
        let attached = self.subjects[0].attached.as_ref().expect("the script has attached it");
        let (client, host) = (attached.client.clone(), attached.host);
        let join = self.clean(0, client, host).await;
        within(PATIENCE, join).await;
        self.look();
    }

    async fn fill(&mut self) {
        for number in 0..6 {
            self.write(number * 3, 5).await;
            if number % 2 == 1 {
                self.flush().await;
            }
        }
        self.trim(2, 6).await;
        self.flush().await;
    }

    async fn play(&mut self, script: Script) {
        let (snapshots, forks) = (script == Script::Family, script == Script::Family);
        self.bring_up(0, 1).await;
        self.fill().await;
        match script {
            Script::Upload => {
                self.sync().await;
                self.fill().await;
                clock::sleep(Duration::from_secs(2)).await;
                self.write(1, 12).await;
                self.sync().await;
                self.write(4, 2).await;
            }
            Script::Family => {
                assert!(snapshots && forks);
                self.take_snapshot().await;
                self.write(3, 9).await;
                self.take_snapshot().await;
                self.destroy_first_snapshot().await;
                self.make_fork().await;
                self.trim(0, 12).await;
                self.flush().await;
            }
            Script::Cleaning => self.play_cleaning().await,
            Script::Past => self.play_past().await,
            Script::Hydration => self.play_hydration().await,
            Script::Handover => {
                while !self.detach(0).await {
                    self.bring_up(0, 1).await;
                }
                self.bring_up(0, 2).await;
                self.write(2, 9).await;
                self.flush().await;
                while !self.detach(0).await {
                    self.bring_up(0, 2).await;
                }
                self.bring_up(0, 1).await;
                self.write(3, 3).await;
                self.flush().await;
            }
            Script::Takeover => {
                self.sync().await;
                self.write(5, 7).await;
                self.bring_up(0, 2).await;
                self.write(6, 2).await;
                self.flush().await;
                self.sync().await;
                self.write(7, 2).await;
            }
            Script::Growth => {
                self.extend(SECTORS + 512).await;
                self.write((SECTORS + 256) / BLOCK, 4).await;
                self.flush().await;
                self.sync().await;
            }
            Script::Rollback => {
                self.take_snapshot().await;
                self.write(3, 9).await;
                while !self.detach(0).await {
                    self.bring_up(0, 1).await;
                }
                self.restore().await;
            }
        }
        self.look();
    }

    async fn play_cleaning(&mut self) {
        self.sync().await;
        for number in 0..5 {
            self.write(number, 3).await;
            self.sync().await;
        }
        self.clean_now().await;
        self.take_snapshot().await;
        self.write(1, 4).await;
        self.trim(8, 4).await;
        self.sync().await;
        self.clean_now().await;
        self.destroy_first_snapshot().await;
        self.write(6, 2).await;
        self.sync().await;
        self.clean_now().await;
    }

    async fn play_hydration(&mut self) {
        self.sync().await;
        self.write(3, 4).await;
        self.make_fork().await;
        self.adopt();
        if self.subjects.len() < 2 {
            return;
        }
        self.bring_up(1, 1).await;
        let attached = self.subjects[1].attached.as_ref().expect("it was brought up");
        let (client, host) = (attached.client.clone(), attached.host);
        let join = self.hydrate(1, client, host).await;
        within(PATIENCE, join).await;
        self.end_hydration(1).await;
        self.trim(0, 16).await;
        self.sync().await;
        self.clean_now().await;
    }

    async fn play_past(&mut self) {
        self.sync().await;
        self.remember(0).await;
        for number in 0..4 {
            self.write(number, 3).await;
            self.sync().await;
        }
        self.clean_now().await;
        self.remember(0).await;
        self.trim(0, 24).await;
        self.sync().await;
        self.clean_now().await;
        self.go_back(0).await;
        self.adopt();
        self.go_back(0).await;
    }

    async fn take_snapshot(&mut self) {
        let attached = self.subjects[0].attached.as_ref().expect("the script has attached it");
        let (client, host) = (attached.client.clone(), attached.host);
        if let Some(join) = self.snapshot(0, client, host).await {
            within(PATIENCE, join).await;
        }
    }

    async fn make_fork(&mut self) {
        let attached = self.subjects[0].attached.as_ref().expect("the script has attached it");
        let (client, host) = (attached.client.clone(), attached.host);
        if let Some(join) = self.fork(0, client, host).await {
            within(PATIENCE, join).await;
        }
    }

    fn known_snapshot(&self) -> Option<(String, Snapshot)> {
        let family = self.family.lock().unwrap();
        let mut known = family.snapshots.iter().filter(|(_, known)| known.id.is_some() && !known.is_destroyed);
        known.next().map(|(name, known)| (name.clone(), known.clone()))
    }

    async fn destroy_first_snapshot(&mut self) {
        let Some((name, known)) = self.known_snapshot() else { return };
        if let Some(known) = self.family.lock().unwrap().snapshots.get_mut(&name) {
            known.is_destroyed = true;
        }
        if let Some(id) = known.id {
            let destroyed = self.admin().destroy_snapshot(id).await;
            assert!(destroyed.is_ok(), "{destroyed:?}");
        }
    }

    /// A new volume from a snapshot.
    async fn restore(&mut self) {
        let Some((_, Snapshot { id: Some(id), expected, .. })) = self.known_snapshot() else { return };
        let name = format!("f{}", self.next_number());
        self.family.lock().unwrap().forks.insert(name.clone(), Fork { id: None, expected, sectors_max: SECTORS });
        let new = NewVolume::named(name.clone(), ByteLen(0));
        let made = self.admin().create_from_snapshot(id, new, 1).await.expect("a volume from a snapshot");
        if let Some(known) = self.family.lock().unwrap().forks.get_mut(&name) {
            known.id = made.first().map(|made| made.id);
        }
    }

    async fn extend(&mut self, sectors: usize) {
        self.subjects[0].sectors_max.store(sectors, Ordering::SeqCst);
        self.show_scene();
        let attached = self.subjects[0].attached.as_ref().expect("the script has attached it");
        let (client, host) = (attached.client.clone(), attached.host);
        let change = VolumeChange { size: Some(ByteLen(client.layout().size(sectors))), ..VolumeChange::default() };
        let join = self.host(host).run(async move {
            match client.volume.update(&change).await {
                Ok(()) => client.record.lock().unwrap().grow(sectors),
                Err(error) => client.met("growth", &error),
            }
        });
        within(PATIENCE, join).await;
    }
}

async fn stage(seed: u64, journal: Journal, script: Script) -> World {
    let network = Network::new(seed, MemoryStore::new(), journal.clone(), None);
    let store = root::read_or_create(&network.store).await.expect("an empty store takes a header").store;
    let around = Surroundings { journal, network, store, setup: setup(), broken_disk: None };
    let hosts = (1..=2).map(|number| Host::new(number, around.clone())).collect();
    let mut world = World::with(seed, around, hosts);
    world.window = if script == Script::Past { 3600 } else { 0 };
    world.create(Layout::Narrow, SECTORS, Durability::Local).await;
    world
}

/// Runs a script and captures every point of it. Returns how many requests it made, too.
pub fn capture(script: Script) -> (Vec<Point>, u64) {
    let world = simulated::World::begin(7, None);
    world.run(async move {
        let mut world = stage(7, Journal::new(false), script).await;
        let scene: Arc<Mutex<Scene>> = Arc::default();
        world.scene = Some(scene.clone());
        world.show_scene();
        let points: Arc<Mutex<Vec<Point>>> = Arc::default();
        for number in 1..=world.hosts.len() as u32 {
            world.host(number).fleet().await;
        }
        let media: Vec<(SimulatedDisk, Twin)> =
            world.hosts.iter().map(|host| (host.disk.clone(), host.twin.clone())).collect();
        let shared = (world.network.clone(), world.family.clone(), points.clone());
        let capture = |host: Option<u32>| -> Capture {
            let (scene, media) = (scene.clone(), media.clone());
            let (network, family, points) = shared.clone();
            Arc::new(move |what: &str| {
                let known = scene.lock().unwrap().clone();
                let subjects = known.into_iter().map(|known| {
                    let record = known.record.lock().unwrap().clone();
                    (known, record)
                });
                let point = Point {
                    what: what.to_owned(),
                    disks: media.iter().map(|(disk, twin)| (disk.fork(), twin.fork())).collect(),
                    store: network.store.fork(),
                    subjects: subjects.collect(),
                    family: family.lock().unwrap().clone(),
                    host,
                };
                points.lock().unwrap().push(point);
            })
        };
        world.network.capture(Some(capture(None)));
        for number in 1..=world.hosts.len() as u32 {
            let capture = capture(Some(number));
            world.host(number).faulty.capture(Some(capture));
        }
        world.play(script).await;
        world.network.capture(None);
        let requests = world.network.requests();
        let points = std::mem::take(&mut *points.lock().unwrap());
        (points, requests)
    })
}

/// What everything dies of at a point, and where it goes on.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    kept: Option<Kept>,
    batches: usize,
    /// The host that goes on; 3 has nothing.
    host: u32,
}

impl Point {
    /// All that may follow.
    pub fn endings(&self) -> Vec<Ending> {
        let home = self.subjects.first().and_then(|(known, _)| known.home).unwrap_or(1);
        let Some(host) = self.host else {
            return [home, 3 - home, 3].map(|host| Ending { kept: None, batches: 1, host }).to_vec();
        };
        let unsynced = self.disks[host as usize - 1].0.unsynced();
        let mut kept = vec![Kept::Nothing, Kept::Everything];
        kept.extend((1..unsynced).map(Kept::First));
        kept.extend((0..unsynced).map(|count| Kept::Torn(count, count as u64)));
        kept.extend((0..SUBSETS).map(Kept::Some));
        let ending = |(number, kept)| Ending { kept: Some(kept), batches: number % 3 * 5, host: home };
        kept.into_iter().enumerate().map(ending).collect()
    }

    /// Dies, goes on, and looks whether all is there.
    pub fn go_on(&self, ending: Ending) {
        let world = simulated::World::begin(11, None);
        let store = self.store.fork();
        let disks: Vec<(SimulatedDisk, Twin)> =
            self.disks.iter().map(|(disk, twin)| (disk.fork(), twin.fork())).collect();
        let subjects = self.subjects.clone();
        let family = self.family.clone();
        world.run(async move {
            let network = Network::new(11, store, Journal::new(false), None);
            let header = root::read(&network.store).await.expect("the store's header").store;
            let journal = Journal::new(false);
            let around = Surroundings { journal, network, store: header, setup: setup(), broken_disk: None };
            let mut hosts: Vec<Host> = Vec::new();
            for (number, (disk, twin)) in (1..).zip(disks) {
                match ending.kept {
                    Some(kept) => disk.power_loss_keeping(kept),
                    None => disk.kill(),
                }
                twin.die(ending.batches);
                hosts.push(Host::with(number, around.clone(), disk, twin));
            }
            hosts.push(Host::new(3, around.clone()));
            let mut world = World::with(1 << 20, around, hosts);
            let left = if ending.kept.is_some() { Floor::Flushed } else { Floor::Acknowledged };
            world.subjects = subjects.into_iter().map(|(known, record)| revived(known, record, left)).collect();
            world.family = Arc::new(Mutex::new(family));
            world.go_on_with(ending.host).await;
        });
    }
}

fn revived(known: SceneSubject, record: Record, left: Floor) -> Subject {
    let mut subject = Subject::new(known.id, Expected { stamps: Vec::new(), optional: Vec::new() });
    subject.record = Arc::new(Mutex::new(record));
    (subject.home, subject.floor) = (known.home, known.floor.min(left));
    subject.has_rivals = known.has_rivals;
    subject.sectors_max.store(known.sectors_max, Ordering::SeqCst);
    subject
}

impl World {
    async fn go_on_with(&mut self, host: u32) {
        self.bring_up(0, host).await;
        self.write(9, 3).await;
        self.flush().await;
        self.adopt();
        for which in 1..self.subjects.len() {
            self.bring_up(which, host).await;
        }
        if let Some((name, Snapshot { id: Some(id), expected, .. })) = self.known_snapshot() {
            self.verify_snapshot(host, id, &expected, &name).await;
        }
        assert!(self.detach(0).await, "what has recovered can be handed back");
        let report = self.admin().check(self.subjects[0].id, false, &mut |_| ()).await.expect("a check");
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        self.look();
    }
}

/// Runs a script in which one request loses its answer, or never takes effect; everybody lives on.
pub fn lose_one(script: Script, number: u64, is_applied: bool) {
    let world = simulated::World::begin(7, None);
    world.run(async move {
        let mut world = stage(7, Journal::new(false), script).await;
        world.network.lose(number, is_applied);
        world.hardness = (1, 0, 0);
        world.play(script).await;
        world.adopt();
        world.hardness = (0, 0, 0);
        world.end().await;
    });
}

//! A world: a store, a few hosts, and volumes that live on them; and what happens to the hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use varve::admin::{Admin, root};
use varve::clock;
use varve::service::{Durability, NewVolume};
use varve::store::{Counts, MemoryStore, Retry, RetryPolicy, Store};
use varve::units::{ByteLen, Epoch, SnapshotId, VolumeId};
use varve::work::simulated::HostId;

use super::client::{Client, Excuses, Faults, Witness};
use super::disk;
use super::host::{Host, Setup, Surroundings, keyed};
use super::journal::Journal;
use super::layout::Layout;
use super::network::{self, Network};
use super::past::Past;
use super::record::{Expected, Floor, Record};
use super::runs::KEPT;

/// The deliberate bugs of the world's edges.
#[derive(Clone, Copy, Debug, Default)]
pub struct Broken {
    pub disk: Option<disk::Broken>,
    pub network: Option<network::Broken>,
    /// Clients' trims are answered and left out.
    pub trims: bool,
}

/// An attached volume and its clients.
pub struct Attached {
    pub host: u32,
    pub life: HostId,
    pub client: Client,
}

/// A volume.
pub struct Subject {
    pub id: VolumeId,
    pub record: Arc<Mutex<Record>>,
    pub attached: Option<Attached>,
    /// The host whose log may hold more than the store.
    pub home: Option<u32>,
    /// What is left of that at least.
    pub floor: Floor,
    /// The newest attachment that was looked at.
    pub epoch: Option<Epoch>,
    /// Another host than its home has tried to take it since.
    pub has_rivals: bool,
    /// Hosts on which a log of it has rotted since they attached it: maybe an old one, of which its owner knows nothing.
    pub rotted: BTreeSet<u32>,
    /// The most sectors that somebody asked for; commands under way look at it, too.
    pub sectors_max: Arc<AtomicUsize>,
    /// A life of a host that may still be detaching it.
    pub leaving: Option<HostId>,
    /// Owners that do not know yet that they are none any more.
    pub ghosts: Vec<Attached>,
    /// Clients of before, by host, some of whom may still wait for an answer.
    pub former: Vec<(u32, Arc<Excuses>)>,
}

impl Subject {
    pub fn new(id: VolumeId, expected: Expected) -> Subject {
        let sectors_max = Arc::new(AtomicUsize::new(expected.stamps.len()));
        Subject {
            id,
            record: Arc::new(Mutex::new(Record::new(expected))),
            attached: None,
            home: None,
            floor: Floor::Stored,
            epoch: None,
            has_rivals: false,
            rotted: BTreeSet::new(),
            sectors_max,
            leaving: None,
            ghosts: Vec::new(),
            former: Vec::new(),
        }
    }

    /// What all who ever were clients on this host may be excused for.
    pub fn excuses(&self, host: u32) -> impl Iterator<Item = &Arc<Excuses>> {
        let known = self.attached.iter().chain(&self.ghosts).map(|attached| (attached.host, &attached.client.excuses));
        let former = self.former.iter().map(|(host, excuses)| (*host, excuses));
        known.chain(former).filter(move |(on, _)| *on == host).map(|(_, excuses)| excuses)
    }

    /// Another owner began with what there was at this step.
    pub fn put_out_others(&mut self, at: usize) {
        self.ghosts.extend(self.attached.take());
        for ghost in &self.ghosts {
            let mut record = ghost.client.record.lock().unwrap();
            record.survived = Some(record.survived.map_or(at, |before| before.min(at)));
        }
    }

    pub fn host_died(&mut self, host: u32, life: HostId, left: Option<Floor>) {
        self.ghosts.retain(|ghost| ghost.life != life);
        if self.attached.as_ref().is_some_and(|attached| attached.life == life) {
            self.attached = None;
            self.record.lock().unwrap().died();
        }
        if self.home == Some(host) {
            match left {
                Some(floor) => self.floor = self.floor.min(floor),
                None => self.home = None,
            }
        }
    }
}

/// How a volume stands.
#[derive(Clone)]
pub struct SceneSubject {
    pub id: VolumeId,
    pub record: Arc<Mutex<Record>>,
    pub home: Option<u32>,
    pub floor: Floor,
    pub has_rivals: bool,
    pub sectors_max: usize,
}

pub type Scene = Vec<SceneSubject>;

/// A snapshot that was asked for.
#[derive(Clone)]
pub struct Snapshot {
    pub of: VolumeId,
    pub id: Option<SnapshotId>,
    pub expected: Expected,
    pub is_destroyed: bool,
}

/// A volume that was asked for, made from a moment of another.
#[derive(Clone)]
pub struct Fork {
    pub id: Option<VolumeId>,
    pub expected: Expected,
    pub sectors_max: usize,
}

/// What came of commands, as their tasks note it.
#[derive(Clone, Default)]
pub struct Family {
    /// By name.
    pub snapshots: BTreeMap<String, Snapshot>,
    /// Forks and restored volumes that were asked for, by name; with their id once it is known.
    pub forks: BTreeMap<String, Fork>,
}

pub struct World {
    pub random: StdRng,
    pub journal: Journal,
    pub network: Arc<Network>,
    pub around: Surroundings,
    pub hosts: Vec<Host>,
    pub subjects: Vec<Subject>,
    /// What a point at which everything may die must know.
    pub scene: Option<Arc<Mutex<Scene>>>,
    pub family: Arc<Mutex<Family>>,
    pub faults: Faults,
    pub broken: Broken,
    /// Makes the bytes of every write unlike those of any other, and numbers changes and names.
    pub stamp: u64,
    /// Of a thousand requests to the store, and of ten thousand operations of a disk, how many fail in hard times.
    pub hardness: (u32, u32, u32),
    /// Hosts may die while they attach.
    pub is_dangerous: bool,
    /// Volumes that nobody uses are rolled back, destroyed and purged.
    pub has_commands: bool,
    /// Seconds of their past that volumes can go back to. Where they can, no clock jumps: times must mean the same to all.
    pub window: u64,
    /// Moments of it that are known.
    pub pasts: Vec<Past>,
    /// Volumes that were asked to hydrate: their past may begin anew.
    pub hydrated: BTreeSet<VolumeId>,
    /// How many volumes there may be.
    pub subjects_max: usize,
}

impl World {
    /// A world with what is there already.
    pub fn with(seed: u64, around: Surroundings, hosts: Vec<Host>) -> World {
        World {
            random: StdRng::seed_from_u64(seed),
            journal: around.journal.clone(),
            network: around.network.clone(),
            around,
            hosts,
            scene: None,
            subjects: Vec::new(),
            family: Arc::default(),
            faults: Faults::default(),
            broken: Broken::default(),
            stamp: seed << 32,
            hardness: (0, 0, 0),
            is_dangerous: false,
            has_commands: false,
            window: 0,
            pasts: Vec::new(),
            hydrated: BTreeSet::new(),
            subjects_max: 4,
        }
    }

    pub async fn begin(seed: u64, journal: Journal, broken: Broken) -> World {
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        let setup = Setup {
            log_length: [128 << 10, 256 << 10, 512 << 10, 2 << 20][random.random_range(0..4)],
            cache_size: [0, 5 << 20][random.random_range(0..2)],
            memory_size: [64 << 10, 512 << 10, 8 << 20][random.random_range(0..3)],
            segment_age: Duration::from_millis([5, 300, 3000][random.random_range(0..3)]),
            segments_per_checkpoint: random.random_range(1..8),
        };
        let network = Network::new(seed, MemoryStore::new(), journal.clone(), broken.network);
        let store = root::read_or_create(&network.store).await.expect("an empty store takes a header").store;
        let around =
            Surroundings { journal: journal.clone(), network: network.clone(), store, setup, broken_disk: broken.disk };
        let hosts = (1..=random.random_range(2..4)).map(|number| Host::new(number, around.clone())).collect();
        let hardness = match random.random_range(0..5) {
            0 => (0, 0, 0),
            1 => (100, 0, 0),
            2 => (0, 30, 0),
            3 => (20, 0, 40),
            _ => (100, 20, [0, 10][random.random_range(0..2)]),
        };
        let has_commands = seed % 4 == 3;
        let window = if matches!(seed % 12, 2 | 3 | 6 | 10) { [4, 60, 3600][seed as usize / 12 % 3] } else { 0 };
        let known = World { random, broken, hardness, has_commands, window, ..World::with(seed, around, hosts) };
        let mut world = World { is_dangerous: true, ..known };
        // Those that found something when there were no wide ones stay what they were.
        let is_kept = KEPT.iter().any(|(kept, _)| *kept == seed);
        let layout = if matches!(seed % 7, 0 | 4) && !is_kept { Layout::Wide } else { Layout::Narrow };
        for _ in 0..world.random.random_range(1..3) {
            let sectors = 2048 * world.random.random_range(1..3) + 8 * world.random.random_range(0..30);
            let durability = if world.random.random_bool(0.3) { Durability::Store } else { Durability::Local };
            world.create(layout, sectors, durability).await;
        }
        world
    }

    /// Tells the scene how things stand.
    pub fn show_scene(&self) {
        if let Some(scene) = &self.scene {
            let known = self.subjects.iter().map(|subject| SceneSubject {
                id: subject.id,
                record: subject.record.clone(),
                home: subject.home,
                floor: subject.floor,
                has_rivals: subject.has_rivals,
                sectors_max: subject.sectors_max.load(Ordering::SeqCst),
            });
            *scene.lock().unwrap() = known.collect();
        }
    }

    /// The commands that need no owner, from the world's own place in the network.
    pub fn admin(&self) -> Admin {
        let line = self.network.line(HostId(0));
        let store: Arc<dyn Store> = Arc::new(Retry::new(line, RetryPolicy::default(), Arc::new(Counts::default())));
        Admin::new(keyed(store))
    }

    pub async fn create(&mut self, layout: Layout, sectors: usize, durability: Durability) {
        let name = format!("disk-{}", self.next_number());
        let size = ByteLen(layout.size(sectors));
        // Some are plain: there a checksum is all that tells rot.
        let encrypted = !clock::random_u64().is_multiple_of(4);
        let new = NewVolume { durability, history_seconds: self.window, encrypted, ..NewVolume::named(name, size) };
        let made = self.admin().create_volume(new).await.expect("a store that works takes a volume");
        let expected = Expected { stamps: vec![0; sectors], optional: Vec::new() };
        self.subjects.push(Subject::new(made.id, expected));
    }

    pub fn next_number(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    pub fn host(&mut self, number: u32) -> &mut Host {
        &mut self.hosts[number as usize - 1]
    }

    pub fn some_host(&mut self) -> u32 {
        self.random.random_range(1..=self.hosts.len() as u32)
    }

    /// Times become hard, if this world has hard times.
    pub fn stir(&mut self) {
        let (store, disk, rot) = self.hardness;
        self.network.trouble(store, rot);
        self.hosts.iter().for_each(|host| host.faulty.trouble(disk));
        for attached in self.subjects.iter().flat_map(|subject| subject.attached.iter().chain(&subject.ghosts)) {
            excuse(attached, store, disk, rot);
        }
    }

    /// Nothing fails by itself for now, and this host reaches the store.
    pub fn calm(&mut self, host: u32) {
        self.network.trouble(0, 0);
        self.hosts.iter().for_each(|host| host.faulty.trouble(0));
        let host = self.host(host);
        host.cut(false);
        host.resume();
    }

    /// Panics if a promise was broken.
    pub fn look(&self) {
        if let Some(fault) = self.faults.first() {
            panic!("{fault}");
        }
    }

    /// A new attachment's clients.
    pub fn client(&self, which: usize, host: u32, volume: Arc<varve::volume::Volume>) -> Attached {
        let subject = &self.subjects[which];
        let life = self.hosts[host as usize - 1].id;
        let witness = Witness {
            name: format!("volume {which} on {}", life.0),
            record: subject.record.clone(),
            faults: self.faults.clone(),
            journal: self.journal.clone(),
            excuses: Arc::new(Excuses::default()),
            has_failed: Arc::new(AtomicBool::new(false)),
        };
        let attached = Attached { host, life, client: Client { volume, witness } };
        let (store, disk, rot) = self.hardness;
        excuse(&attached, store, disk, rot);
        attached.client.excuses.leaving.store(subject.leaving == Some(life), Ordering::SeqCst);
        attached
    }

    /// Stops a host's daemon in good order.
    pub async fn stop(&mut self, number: u32) {
        self.calm(number);
        let life = self.host(number).id;
        let here = |subject: &mut Subject| subject.attached.take_if(|attached| attached.life == life);
        for attached in self.subjects.iter_mut().filter_map(here) {
            attached.client.excuses.leaving.store(true, Ordering::SeqCst);
            attached.client.record.lock().unwrap().died();
        }
        for ghost in
            self.subjects.iter_mut().flat_map(|subject| subject.ghosts.extract_if(.., |ghost| ghost.life == life))
        {
            ghost.client.excuses.leaving.store(true, Ordering::SeqCst);
        }
        self.host(number).stop().await;
        self.journal.hit("host: stopped");
        if self.random.random_bool(0.4) {
            self.rot_one(number, false);
        }
        self.stir();
    }

    pub async fn pass(&mut self, most: u64) {
        let millis = self.random.random_range(0..most);
        clock::sleep(Duration::from_millis(millis)).await;
    }
}

fn excuse(attached: &Attached, store: u32, disk: u32, rot: u32) {
    let excuses = &attached.client.excuses;
    for (excuse, is) in [(&excuses.store, store > 0), (&excuses.disk, disk > 0), (&excuses.rot, rot > 0)] {
        if is {
            excuse.store(true, Ordering::SeqCst);
        }
    }
}

//! A world: volumes and snapshots, what each must hold, and the two hosts that use them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;
use varve::admin::{Admin, root};
use varve::ownership;
use varve::store::ObjectKey;
use varve::units::{SnapshotId, UnixMillis, VolumeId};

use crate::site::{Host, Site, runtime};

pub const MIB: usize = 1 << 20;
/// No volume grows beyond this.
pub const SIZE_MAX: usize = 4 * MIB;
pub const HOSTS: usize = 2;
/// Steps between two looks at one volume or snapshot.
const LOOK_EVERY: usize = 6;

/// Where a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Free,
    Attached(usize),
    /// The daemon of this host died with it.
    Orphaned(usize),
    Destroyed,
    /// Destroyed so long ago that it cannot be brought back; what others need of it is there.
    Gone,
}

pub struct Disk {
    pub id: VolumeId,
    pub place: Place,
    pub data: Vec<u8>,
}

pub struct Shot {
    pub id: SnapshotId,
    pub volume: VolumeId,
    pub data: Vec<u8>,
}

/// The steps so far.
pub type Said = Arc<Mutex<Vec<String>>>;

/// How often what was done.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<&'static str, usize>);

impl Counts {
    pub fn note(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    pub fn add(&mut self, more: &Counts) {
        more.0.iter().for_each(|(what, count)| *self.0.entry(what).or_default() += count);
    }

    /// What should have happened, and did not.
    pub fn never(&self) -> Vec<&'static str> {
        let all = crate::steps::NAMES.iter().copied().chain(["look at a volume", "look at a snapshot", "compare two"]);
        all.filter(|name| !self.0.contains_key(name)).collect()
    }
}

pub struct World {
    pub random: StdRng,
    pub site: Site,
    pub runtime: Runtime,
    pub hosts: [Option<Host>; HOSTS],
    pub disks: Vec<Disk>,
    pub shots: Vec<Shot>,
    pub stamp: u64,
    said: Said,
    segment_age: Duration,
    segments_per_checkpoint: u64,
}

impl World {
    pub fn new(seed: u64, site: Site, said: Said) -> World {
        let mut random = StdRng::seed_from_u64(seed);
        let runtime = runtime();
        let store = site.store();
        runtime.block_on(root::read_or_create(&*store)).unwrap();
        World {
            site,
            runtime,
            hosts: [None, None],
            disks: Vec::new(),
            shots: Vec::new(),
            stamp: seed << 32,
            said,
            segment_age: Duration::from_millis(random.random_range(1..25)),
            segments_per_checkpoint: random.random_range(2..5),
            random,
        }
    }

    pub fn run(mut self, steps: usize) -> Counts {
        let mut counts = Counts::default();
        for step in 0..steps {
            let done = self.step();
            counts.note(done);
            if step % LOOK_EVERY == 0 {
                self.look_at_one(&mut counts);
            }
        }
        self.say("the end".into());
        self.look_at_all(&mut counts);
        self.destroy_all();
        counts
    }

    /// Notes a step, for whoever has to understand a failure.
    pub fn say(&self, what: String) {
        self.said.lock().unwrap().push(what);
    }

    pub fn admin(&self) -> Admin {
        Admin::new(self.site.store())
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.random.random_range(0..bound)
    }

    /// One of the volumes that are in such a place.
    pub fn any(&mut self, is_meant: impl Fn(Place) -> bool) -> Option<usize> {
        let found: Vec<usize> = (0..self.disks.len()).filter(|at| is_meant(self.disks[*at].place)).collect();
        (!found.is_empty()).then(|| found[self.random.random_range(0..found.len())])
    }

    pub fn any_shot(&mut self) -> Option<usize> {
        (!self.shots.is_empty()).then(|| self.random.random_range(0..self.shots.len()))
    }

    pub fn host(&mut self, which: usize) -> &Host {
        if self.hosts[which].is_none() {
            let path = self.site.folder.path().join(format!("host-{which}"));
            let store = self.site.store();
            self.hosts[which] = Some(Host::start(&path, store, self.segment_age, self.segments_per_checkpoint));
        }
        self.hosts[which].as_ref().unwrap()
    }

    /// A host that never had anything to do with this store.
    pub fn stranger(&self, name: &str) -> Host {
        let path = self.site.folder.path().join(name);
        Host::start(&path, self.site.store(), self.segment_age, self.segments_per_checkpoint)
    }

    /// The daemon of a host dies, with all that it had attached.
    pub fn kill(&mut self, which: usize) {
        let Some(host) = self.hosts[which].take() else { return };
        host.die();
        for disk in self.disks.iter_mut().filter(|disk| disk.place == Place::Attached(which)) {
            disk.place = Place::Orphaned(which);
        }
    }

    pub fn attach(&mut self, at: usize, which: usize) {
        let id = self.disks[at].id;
        self.host(which);
        let host = self.hosts[which].as_ref().unwrap();
        let attached = host.runtime.block_on(host.service.fleet.attach(id, false, false));
        attached.unwrap_or_else(|error| panic!("{id} cannot be attached on host {which}: {error}"));
        self.disks[at].place = Place::Attached(which);
    }

    pub fn detach(&mut self, at: usize) {
        let (id, Place::Attached(which)) = (self.disks[at].id, self.disks[at].place) else {
            panic!("only what is attached is detached")
        };
        let host = self.hosts[which].as_ref().unwrap();
        host.runtime.block_on(host.service.fleet.detach(id, false)).unwrap();
        self.disks[at].place = Place::Free;
    }

    /// Lets a day pass for every volume that is destroyed, and removes what may go then.
    pub fn purge(&mut self) {
        let (store, admin) = (self.site.store(), self.admin());
        let long_ago = UnixMillis(varve::clock::now().0 - varve::admin::UNDELETE_MILLIS - 60_000);
        self.runtime.block_on(async {
            for (id, loaded) in ownership::list(&*store).await.unwrap() {
                if loaded.unwrap().manifest.destroyed_at.is_some_and(|at| at > long_ago) {
                    let aged = ownership::change(&*store, id, |manifest| {
                        manifest.destroyed_at = Some(long_ago);
                        Ok(())
                    });
                    aged.await.unwrap();
                }
            }
            let swept = admin.purge().await.unwrap();
            assert!(swept.failures.is_empty(), "{swept:?}");
        });
        for disk in self.disks.iter_mut().filter(|disk| disk.place == Place::Destroyed) {
            disk.place = Place::Gone;
        }
    }

    /// Everything goes; nothing may be left.
    fn destroy_all(&mut self) {
        for at in 0..self.disks.len() {
            if let Place::Orphaned(which) = self.disks[at].place {
                self.attach(at, which);
            }
            if let Place::Attached(_) = self.disks[at].place {
                self.detach(at);
            }
        }
        let admin = self.admin();
        self.runtime.block_on(async {
            for disk in self.disks.iter().filter(|disk| disk.place == Place::Free) {
                admin.destroy_volume(disk.id, false).await.unwrap();
            }
            for shot in &self.shots {
                admin.destroy_snapshot(shot.id).await.unwrap();
            }
        });
        self.purge();
        let left = self.runtime.block_on(varve::store::list_all(&*self.site.store(), &ObjectKey::everything()));
        let left: Vec<String> = left.unwrap().into_iter().map(|object| object.key.to_string()).collect();
        assert!(left.len() == 1 && !left[0].contains('/'), "all is destroyed, and this is left: {left:?}");
    }
}

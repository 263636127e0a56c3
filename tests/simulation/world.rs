//! A world: one volume, its store, and the hosts that it lives on, one after the other.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use varve::disk::simulated::SimulatedDisk;
use varve::error::ErrorKind;
use varve::service::{AttachReport, Durability};
use varve::store::{Counts, Retry, RetryPolicy, Store};
use varve::units::VolumeId;
use varve::volume::{Admin, Fleet, Volume};

use super::engine::{self, Setup};
use super::late_store::LateStore;
use super::life::Life;
use super::record::Record;

/// Four pages of the block map.
const SIZE: usize = 4 << 20;
/// Attempts to attach that somebody else's late write may spoil.
const ATTEMPTS: usize = 10;

/// How often what happened.
#[derive(Debug, Default)]
pub struct Deaths {
    killed: u64,
    power: u64,
    host: u64,
    detached: u64,
    /// Of these: records were found in the log and carried on with.
    replayed: u64,
}

impl Deaths {
    pub fn add(&mut self, more: &Deaths) {
        self.killed += more.killed;
        self.power += more.power;
        self.host += more.host;
        self.detached += more.detached;
        self.replayed += more.replayed;
    }

    pub fn all_happened(&self) -> bool {
        [self.killed, self.power, self.host, self.detached, self.replayed].iter().all(|&count| count > 0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Kill,
    Power,
    Host,
    Detach,
}

pub struct World {
    seed: u64,
    random: StdRng,
    store: Arc<LateStore>,
    disk: SimulatedDisk,
    /// RocksDB of each life, in order, in a folder of its own.
    indexes: TempDir,
    lives: usize,
    /// The folder that the host's state is in, as its own disk sees it.
    record: Record,
    stamp: u64,
    setup: Setup,
    deaths: Deaths,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut random = StdRng::seed_from_u64(seed);
        let setup = Setup {
            log_length: [256 << 10, 1 << 20, 3 << 20][random.random_range(0..3)],
            cache_size: [0, 5 << 20][random.random_range(0..2)],
            memory_size: [64 << 10, 1 << 20, 32 << 20][random.random_range(0..3)],
            segment_age: Duration::from_millis(random.random_range(1..50)),
            segments_per_checkpoint: random.random_range(1..12),
        };
        World {
            seed,
            store: LateStore::new(random.random_range(0..u64::MAX)),
            random,
            disk: SimulatedDisk::new(),
            indexes: tempfile::tempdir().unwrap(),
            lives: 0,
            record: Record::new(SIZE),
            stamp: seed << 32,
            setup,
            deaths: Deaths::default(),
        }
    }

    /// Where the life's state is: the same name on the simulated disk and, for RocksDB, on the host.
    fn folder(&self, life: usize) -> PathBuf {
        self.indexes.path().join(life.to_string())
    }

    pub fn run(mut self) -> Deaths {
        let durability = if self.random.random_bool(0.25) { Durability::Store } else { Durability::Local };
        let (store, _) = self.store.line();
        let id = runtime().block_on(engine::create(&store, SIZE as u64, durability));
        let mut before = Death::Detach;
        for _ in 0..self.random.random_range(3..7) {
            before = self.live(id, before);
        }
        self.last_life(id, before);
        self.deaths
    }

    /// One life, from its attach to its death.
    fn live(&mut self, id: VolumeId, before: Death) -> Death {
        let runtime = runtime();
        let (line, cut) = self.store.line();
        let death = match self.random.random_range(0..10) {
            0..=2 => Death::Kill,
            3..=6 => Death::Power,
            7..=8 => Death::Host,
            _ => Death::Detach,
        };
        runtime.block_on(async {
            let fleet = self.start(line).await;
            let (volume, report) = self.attach(&fleet, id, before).await;
            self.deaths.replayed += u64::from(report.replayed_records > 0);
            let holding = [0, 5, 9, 10][self.random.random_range(0..4)];
            let mut life = self.begin(fleet, volume);
            let disk = life.read_all().await;
            after(before, life.record, &disk, &report);
            life.store.hold(holding);
            for _ in 0..life.random.random_range(5..70) {
                life.act().await;
            }
            match death {
                Death::Detach => life.detach().await,
                _ => {
                    life.leave_under_way();
                    for _ in 0..life.random.random_range(0..6) {
                        tokio::task::yield_now().await;
                    }
                }
            }
        });
        cut.cut();
        self.die(death);
        runtime.shutdown_timeout(Duration::from_secs(5));
        death
    }

    /// The volume on a host that has nothing: all is there, and all of it is whole.
    fn last_life(&mut self, id: VolumeId, before: Death) {
        let runtime = runtime();
        let (line, _) = self.store.line();
        runtime.block_on(async {
            let fleet = self.start(line.clone()).await;
            let (volume, report) = self.attach(&fleet, id, before).await;
            let life = self.begin(fleet, volume);
            let disk = life.read_all().await;
            after(before, life.record, &disk, &report);
            life.detach().await;
            self.die(Death::Host);
            let fleet = self.start(line.clone()).await;
            let (volume, _) = self.attach(&fleet, id, Death::Detach).await;
            let life = self.begin(fleet, volume);
            assert!(life.read_all().await == life.record.current, "seed {}: the store lacks something", self.seed);
            let report = Admin::new(line).check(id, false, &mut |_| ()).await.unwrap();
            assert!(report.problems.is_empty(), "seed {}: {report:?}", self.seed);
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
    }

    fn begin(&mut self, fleet: Arc<Fleet>, volume: Arc<Volume>) -> Life<'_> {
        Life {
            fleet,
            volume,
            store: &self.store,
            record: &mut self.record,
            random: &mut self.random,
            stamp: &mut self.stamp,
        }
    }

    async fn start(&self, line: Arc<dyn Store>) -> Arc<Fleet> {
        // The wrapper that the daemon has over every store, with short pauses.
        let policy = RetryPolicy {
            first_delay: Duration::from_millis(1),
            delay_max: Duration::from_millis(4),
            ..RetryPolicy::default()
        };
        let store: Arc<dyn Store> = Arc::new(Retry::new(line, policy, Arc::new(Counts::default())));
        let path = self.folder(self.lives);
        engine::start(Arc::new(self.disk.clone()), &path, store, self.setup).await
    }

    async fn attach(&mut self, fleet: &Arc<Fleet>, id: VolumeId, before: Death) -> (Arc<Volume>, AttachReport) {
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            match fleet.attach(id, false, false).await {
                Ok(attached) => return attached,
                // A put of the dead was faster.
                Err(error) if error.kind() == ErrorKind::Conflict => last = error.to_string(),
                Err(error) if error.kind() == ErrorKind::Busy && before == Death::Host => {
                    match fleet.attach(id, true, false).await {
                        Ok(attached) => return attached,
                        Err(error) if error.kind() == ErrorKind::Conflict => last = error.to_string(),
                        Err(error) => panic!("seed {}: a takeover was refused: {error}", self.seed),
                    }
                }
                Err(error) => panic!("seed {}: attaching after {before:?} was refused: {error}", self.seed),
            }
        }
        panic!("seed {}: {ATTEMPTS} attempts to attach failed: {last}", self.seed)
    }

    /// What the next life finds.
    fn die(&mut self, death: Death) {
        let power = self.random.random_range(0..u64::MAX);
        match death {
            Death::Kill => {
                self.deaths.killed += 1;
                self.disk.kill();
            }
            Death::Power => {
                self.deaths.power += 1;
                self.disk.power_loss(power);
            }
            Death::Host => {
                self.deaths.host += 1;
                self.disk.kill();
                self.disk = SimulatedDisk::new();
            }
            Death::Detach => {
                self.deaths.detached += 1;
                self.disk.kill();
            }
        }
        self.store.orphan();
        let next = self.folder(self.lives + 1);
        std::fs::create_dir(&next).unwrap();
        // RocksDB as it is on the medium now, as it was a life ago, or gone.
        let source = match self.random.random_range(0..10) {
            0..=5 => Some(self.lives),
            6 => self.lives.checked_sub(1),
            _ => None,
        };
        if let Some(source) = source.filter(|_| death != Death::Host) {
            copy(&self.folder(source).join("index"), &next.join("index"));
        }
        self.lives += 1;
        self.disk_moves(self.lives - 1, self.lives);
    }

    /// Each life has its state under a name of its own, since RocksDB of the last one may still be closing.
    fn disk_moves(&self, from: usize, to: usize) {
        use varve::disk::Disk;
        let (from, to) = (self.folder(from), self.folder(to));
        for path in self.disk.everything() {
            if let Ok(rest) = path.strip_prefix(&from) {
                self.disk.rename(&path, &to.join(rest)).unwrap();
            }
        }
        self.disk.sync_directory(&to).unwrap();
    }
}

/// Compares the disk with the record, as the death before allows.
fn after(before: Death, record: &mut Record, disk: &[u8], report: &AttachReport) {
    match before {
        Death::Kill | Death::Detach => record.survived_death(disk),
        Death::Power => record.survived_power_loss(disk),
        // The host may have handed the volume back with its last breath: then all of it is in the store.
        Death::Host if report.previous_owner.is_none() => {
            record.survived_death(disk);
            record.survived_loss_of_the_host(disk);
        }
        Death::Host => record.survived_loss_of_the_host(disk),
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Copies a folder that RocksDB may still be closing, at a moment at which nothing in it changes: no death leaves a mixture of two.
fn copy(from: &Path, to: &Path) {
    let files = || -> BTreeMap<OsString, (u64, SystemTime)> {
        let entries = std::fs::read_dir(from).into_iter().flatten().map(Result::unwrap);
        let entries = entries.filter(|entry| entry.file_name() != "LOCK");
        let told = entries.filter_map(|entry| Some((entry.file_name(), entry.metadata().ok()?)));
        told.map(|(name, file)| (name, (file.len(), file.modified().unwrap()))).collect()
    };
    loop {
        let before = files();
        std::fs::create_dir_all(to).unwrap();
        let is_whole = before.keys().all(|name| std::fs::copy(from.join(name), to.join(name)).is_ok());
        if is_whole && files() == before {
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
    }
}

//! A host: a disk, an index and, while it lives, a daemon. Each life has an id of its own in the world.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use varve::admin::PurgeTimer;
use varve::clean::Goal;
use varve::clock;
use varve::disk::simulated::{Kept, SimulatedDisk};
use varve::error::{Error, Result};
use varve::fleet::{Fleet, FleetService};
use varve::index::{Index, Twin};
use varve::keys::{KeySource, Keyring};
use varve::seal::{KEY_BYTES, VolumeKey};
use varve::store::{Counts, Keyed, Retry, RetryPolicy, Store};
use varve::units::{ByteLen, StoreId, VolumeId};
use varve::volume::EngineSettings;
use varve::volume::state_directory::{self, StateSettings};
use varve::work::simulated::{self, HostId, Join};
use varve::work::{Gone, Runtime};

use super::disk::{self, FaultyDisk};
use super::journal::Journal;
use super::network::Network;

/// How the daemons of a world are set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub log_length: u64,
    pub cache_size: u64,
    pub memory_size: u64,
    pub segment_age: Duration,
    pub segments_per_checkpoint: u64,
}

/// What a world has, as far as a host needs it.
#[derive(Clone)]
pub struct Surroundings {
    pub journal: Journal,
    pub network: Arc<Network>,
    pub store: StoreId,
    pub setup: Setup,
    pub broken_disk: Option<disk::Broken>,
}

pub struct Host {
    pub number: u32,
    lives: u32,
    pub id: HostId,
    pub disk: SimulatedDisk,
    pub faulty: FaultyDisk,
    pub twin: Twin,
    /// The index as it was at an earlier death.
    older: Option<Twin>,
    pub fleet: Option<Arc<Fleet>>,
    pub is_paused: bool,
    pub is_cut: bool,
    /// When it was last resumed, in milliseconds; shared with its clients.
    pub resumed: Arc<AtomicU64>,
    around: Surroundings,
}

pub fn state_path() -> PathBuf {
    PathBuf::from("/state")
}

pub fn log_path(volume: VolumeId) -> PathBuf {
    state_path().join("volumes").join(volume.to_string()).join("log")
}

impl Host {
    pub fn new(number: u32, around: Surroundings) -> Host {
        Host::with(number, around, SimulatedDisk::new(), Twin::default())
    }

    /// A host whose disk and index exist already.
    pub fn with(number: u32, around: Surroundings, disk: SimulatedDisk, twin: Twin) -> Host {
        let faulty = FaultyDisk::new(disk.clone(), u64::from(number), around.journal.clone(), around.broken_disk);
        Host {
            number,
            lives: 0,
            id: HostId(number * 1000),
            disk,
            faulty,
            twin,
            older: None,
            fleet: None,
            is_paused: false,
            is_cut: false,
            resumed: Arc::default(),
            around,
        }
    }

    /// Runs something as a task of the host.
    pub fn run<F>(&self, work: F) -> Join<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        simulated::spawn_on(self.id, work)
    }

    /// The daemon, which is started if it is not there.
    pub async fn fleet(&mut self) -> Arc<Fleet> {
        if let Some(fleet) = &self.fleet {
            return fleet.clone();
        }
        self.lives += 1;
        self.id = HostId(self.number * 1000 + self.lives);
        let seed = clock::random_u64();
        self.faulty = FaultyDisk::new(self.disk.clone(), seed, self.around.journal.clone(), self.around.broken_disk);
        let (faulty, twin, around) = (self.faulty.clone(), self.twin.clone(), self.around.clone());
        let line = around.network.line(self.id);
        let fleet = self.run(async move { start(faulty, twin, line, &around) }).await;
        let fleet = fleet.expect("the daemon of a host that lives").expect("a daemon starts");
        self.around.journal.note(format_args!("host {} starts as {}", self.number, self.id.0));
        self.fleet = Some(fleet.clone());
        fleet
    }

    pub async fn service(&mut self) -> Arc<FleetService> {
        let fleet = self.fleet().await;
        Arc::new(FleetService { fleet, counts: Arc::default(), nbd: Vec::new(), control_tcp: None })
    }

    /// The daemon is killed; with `kept` the host loses power, too.
    pub fn kill(&mut self, kept: Option<Kept>, batches: usize) {
        if kept.is_some() {
            self.disk.power_loss_keeping(kept.unwrap_or(Kept::Everything));
        } else {
            self.disk.kill();
        }
        self.twin.die(batches);
        self.around.network.died(self.id);
        self.resume();
        simulated::kill(self.id);
        self.fleet = None;
    }

    /// The daemon stops in good order, after it has handed back what it can.
    pub async fn stop(&mut self) {
        if let Some(fleet) = self.fleet.take() {
            let stopping = self.run(async move {
                let left = fleet.detach_all(Duration::from_secs(60)).await;
                drop(fleet);
                left
            });
            // What could not be handed back is in the logs.
            drop(within(Duration::from_secs(400), stopping).await);
        }
        self.kill(None, usize::MAX);
    }

    /// The host is gone for good: another one takes its place.
    pub fn lose(&mut self) {
        self.kill(None, 0);
        self.disk = SimulatedDisk::new();
        self.twin = Twin::default();
        self.older = None;
    }

    /// While no daemon runs: the index is as it was at an earlier death.
    pub fn age_index(&mut self) {
        let now = self.twin.fork();
        if let Some(older) = self.older.replace(now) {
            self.twin = older;
        }
    }

    /// While no daemon runs: the index is gone.
    pub fn drop_index(&mut self) {
        self.twin = Twin::default();
    }

    pub fn pause(&mut self) {
        self.is_paused = true;
        simulated::pause(self.id);
    }

    pub fn resume(&mut self) {
        if std::mem::replace(&mut self.is_paused, false) {
            self.resumed.store(clock::uptime().as_millis() as u64, Ordering::SeqCst);
            simulated::resume(self.id);
        }
    }

    pub fn cut(&mut self, is_cut: bool) {
        self.is_cut = is_cut;
        self.around.network.cut(self.id, is_cut);
    }

    /// True if it has been going on for long enough not to be in doubt about anything.
    pub fn is_steady(&self) -> bool {
        let now = clock::uptime().as_millis() as u64;
        let resumed = self.resumed.load(Ordering::SeqCst);
        !self.is_paused && !self.is_cut && (resumed == 0 || now > resumed + 5000)
    }

    pub fn exists(&self, path: &Path) -> bool {
        self.disk.everything().iter().any(|known| known == path)
    }
}

fn start(faulty: FaultyDisk, twin: Twin, line: Arc<dyn Store>, around: &Surroundings) -> Result<Arc<Fleet>> {
    let store: Arc<dyn Store> = Arc::new(Retry::new(line, RetryPolicy::default(), Arc::new(Counts::default())));
    let store = keyed(store);
    let setup = around.setup;
    let settings = StateSettings {
        path: state_path(),
        cache_size: ByteLen(setup.cache_size),
        memory_size: ByteLen(setup.memory_size),
        engine: EngineSettings {
            log_length: ByteLen(setup.log_length),
            segment_age: setup.segment_age,
            segments_per_checkpoint: setup.segments_per_checkpoint,
            cleaning: Goal { percent: 130, slack: 24 << 10, fullest: 90 },
            prefetch: true,
            control: "control.sock".to_owned(),
        },
    };
    let open = |path: &Path, _: ByteLen| Ok(Index::on_twin(&twin, path));
    let shared = state_directory::open_on(Arc::new(faulty), open, settings, store, around.store, Runtime::Simulated)?;
    Ok(Fleet::start(shared, Duration::from_secs(3600), PurgeTimer::default()))
}

/// A store with the key that all hosts have, as a process has it that has opened no volume yet.
pub fn keyed(store: Arc<dyn Store>) -> Arc<dyn Store> {
    let keyring = Keyring::new(vec![KeySource::Given(VolumeKey::new([0x5a; KEY_BYTES]))]);
    Arc::new(Keyed::new(store, Arc::new(keyring)))
}

/// What a task of a host came to, if the host did not die.
pub async fn within<T>(patience: Duration, join: Join<T>) -> Option<std::result::Result<T, Gone>> {
    clock::timeout(patience, join).await.ok()
}

pub fn kind_of<T>(result: &Result<T>) -> String {
    result.as_ref().err().map_or_else(|| "done".to_owned(), |error: &Error| format!("{:?}: {error}", error.kind()))
}

//! What is asked of the store: few round trips to attach a volume, however much was written to it, and nothing at all while nobody uses it.
//! Each on a directory store and on MinIO.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod engine;
    pub mod minio;
}

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use support::engine::{self, Setup};
use support::minio::Minio;
use tempfile::TempDir;
use varve::admin::Admin;
use varve::block_device::{BlockDevice, Change};
use varve::clock;
use varve::disk::host::HostDisk;
use varve::fleet::Fleet;
use varve::service::{AttachReport, Durability};
use varve::store::{DirectoryStore, Effect, Faults, Logged, Matching, S3Store, Store, wrap};
use varve::units::VolumeId;
use varve::volume::{Volume, VolumeDevice};

/// What the brief allows an attach: requests that wait for one another.
const ROUND_TRIPS_MAX: usize = 6;
/// How far away the store is while somebody attaches.
const DISTANCE: Duration = Duration::from_millis(100);
/// 1 GiB: 1,024 pages of the block map, so that writes can be all over it.
const SIZE: u64 = 1 << 30;
const BLOCKS: u64 = SIZE / 4096;

/// A store, and the folder that hosts have their state in.
struct Site {
    bare: Arc<dyn Store>,
    folder: TempDir,
}

impl Site {
    async fn directory() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(&folder.path().join("store"), true).await.unwrap();
        Site { bare: Arc::new(store), folder }
    }

    async fn minio() -> Site {
        let bucket = Minio::shared().fresh_bucket().await;
        let store = S3Store::with_access(&bucket, "disks", &Minio::shared().access());
        Site { bare: Arc::new(store), folder: tempfile::tempdir().unwrap() }
    }

    async fn create(&self) -> VolumeId {
        engine::create(&self.bare, SIZE, Durability::Local).await
    }

    /// A host of this name, with the requests that it makes from now on.
    async fn host(&self, name: &str, setup: Setup) -> Host {
        let faults = Faults::new();
        let store = wrap(faults.wrap(self.bare.clone())).store;
        let fleet = engine::start(Arc::new(HostDisk), &self.folder.path().join(name), store, setup).await;
        faults.clear_log();
        Host { fleet, requests: faults }
    }
}

struct Host {
    fleet: Arc<Fleet>,
    requests: Faults,
}

impl Host {
    /// Attaches, and checks what that took.
    async fn attach(&self, id: VolumeId, takeover: bool, what: &str) -> (Arc<Volume>, AttachReport) {
        self.requests.clear_log();
        // Without a delay, requests that run at once would often be answered before the next of them began.
        self.requests.inject(Matching::any(), Effect::Delay(DISTANCE), usize::MAX);
        let attached = self.fleet.attach(id, takeover, false).await.unwrap();
        self.requests.clear();
        let log = self.requests.log();
        let trips = self.requests.round_trips();
        println!("{what}: {} requests in {trips} round trips", log.len());
        assert!(trips <= ROUND_TRIPS_MAX, "{what}: attaching took {trips} round trips: {log:#?}");
        assert!(trips >= 2, "{what}: manifest and claim cannot take {trips}: {log:#?}");
        attached
    }
}

/// The block that write number `number` goes to: neighbours in time are far apart in place.
fn place(number: u64) -> u64 {
    number * 104_729 % BLOCKS
}

fn content(number: u64) -> [u8; 4096] {
    std::array::from_fn(|at| (number as usize * 31 + at / 16) as u8)
}

async fn write(volume: &Arc<Volume>, number: u64) {
    let change = Change::Write { offset: place(number) * 4096, data: Bytes::copy_from_slice(&content(number)) };
    VolumeDevice::new(volume.clone()).change(change).await.unwrap();
}

/// Writes blocks `from..to`, each of which becomes a segment.
async fn write_segments(volume: &Arc<Volume>, from: u64, to: u64) {
    for number in from..to {
        write(volume, number).await;
        volume.sync().await.unwrap();
    }
}

async fn check_blocks(volume: &Arc<Volume>, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        let mut block = [0; 4096];
        VolumeDevice::new(volume.clone()).read(place(number) * 4096, &mut block).await.unwrap();
        assert!(block == content(number), "write {number} is not there");
    }
}

async fn attaching_takes_few_round_trips(site: Site) {
    let id = site.create().await;
    let first = site.host("first", Setup::default()).await;
    let (volume, _) = first.attach(id, false, "an empty volume").await;
    write_segments(&volume, 0, 1000).await;
    let segments = first.requests.count(&Matching::operation(varve::store::Operation::Put).on("segments/"));
    assert!(segments >= 1000, "{segments} segments");
    // The host is lost with what it has: only the store is left, with up to 64 segments behind the last checkpoint.
    let second = site.host("second", Setup::default()).await;
    let (volume, report) = second.attach(id, true, "1,000 segments, the owner lost").await;
    assert!(report.taken_over);
    check_blocks(&volume, (0..1000).step_by(37)).await;
    second.fleet.detach(id, false).await.unwrap();
    let third = site.host("third", Setup::default()).await;
    let (volume, _) = third.attach(id, false, "1,000 segments, detached").await;
    check_blocks(&volume, (0..1000).step_by(41)).await;
    // Segments behind the checkpoint that change what lies under it, read back through pages that come later.
    write_segments(&volume, 1000, 1040).await;
    let fourth = site.host("fourth", Setup::default()).await;
    let (volume, _) = fourth.attach(id, true, "40 segments behind the checkpoint").await;
    check_blocks(&volume, (900..1040).step_by(7)).await;
}

async fn restarts_do_not_add_round_trips(site: Site) {
    let id = site.create().await;
    for life in 0..12 {
        let host = site.host(&format!("life-{life}"), Setup::default()).await;
        let (volume, _) = host.attach(id, life > 0, &format!("after {life} lives without a checkpoint")).await;
        check_blocks(&volume, 0..life * 2).await;
        write_segments(&volume, life * 2, life * 2 + 2).await;
    }
    let report = Admin::new(site.bare.clone()).check(id, false, &mut |_| ()).await.unwrap();
    assert_eq!((report.problems.len(), report.segments), (0, 24), "{report:?}");
}

/// Longer than everything that the engine does from time to time: the age limit of segments (3 s), the pulse (100 ms).
const IDLE: Duration = Duration::from_secs(8);
/// A pause of the process from 0.6 s on makes each attached volume look at its manifest: a window with one of this length says nothing.
const PAUSE: Duration = Duration::from_millis(400);
/// Long enough for what a pause has made the volumes ask for.
const SETTLED: Duration = Duration::from_secs(1);
/// Windows after which the machine is found to be too busy for this test.
const WINDOWS_MAX: usize = 10;

/// Tells whether this process has stood still: ticks by the clock of the volumes' pulse, and more often.
struct Ticks(Mutex<Ticked>);

struct Ticked {
    last: Duration,
    gap: Duration,
}

impl Ticks {
    fn start() -> Arc<Ticks> {
        let ticks = Arc::new(Ticks(Mutex::new(Ticked { last: clock::uptime(), gap: Duration::ZERO })));
        let ticking = ticks.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                ticking.tick();
            }
        });
        ticks
    }

    fn tick(&self) {
        let mut ticked = self.0.lock().unwrap();
        let now = clock::uptime();
        ticked.gap = ticked.gap.max(now.saturating_sub(ticked.last));
        ticked.last = now;
    }

    /// The largest gap since this was asked the last time, up to now.
    fn take_gap(&self) -> Duration {
        self.tick();
        std::mem::take(&mut self.0.lock().unwrap().gap)
    }
}

/// What is asked of the store in a time in which the process did not stand still, from now on if it does not.
async fn asked_while_idle(requests: &Faults, ticks: &Ticks) -> Vec<Logged> {
    for _ in 0..WINDOWS_MAX {
        requests.clear_log();
        tokio::time::sleep(IDLE).await;
        let asked = requests.log();
        let gap = ticks.take_gap();
        if gap <= PAUSE {
            return asked;
        }
        println!("the process stood still for {gap:?}: once more");
        tokio::time::sleep(SETTLED).await;
    }
    panic!("the process stood still in each of {WINDOWS_MAX} windows of {IDLE:?}");
}

async fn an_idle_volume_asks_for_nothing(site: Site) {
    let (quiet, busy_once) = (site.create().await, site.create().await);
    // From here on: what follows from a pause before the window may be asked for within it.
    let ticks = Ticks::start();
    let host = site.host("a", Setup::default()).await;
    host.attach(quiet, false, "quiet").await;
    let (volume, _) = host.attach(busy_once, false, "busy once").await;
    // Uploaded by age, and everything that follows from it done.
    write(&volume, 1).await;
    write(&volume, 2).await;
    volume.sync().await.unwrap();
    check_blocks(&volume, 1..3).await;
    let asked = asked_while_idle(&host.requests, &ticks).await;
    assert!(asked.is_empty(), "two idle volumes asked the store for {asked:#?}");
    // They were idle, not dead.
    write(&volume, 3).await;
    volume.sync().await.unwrap();
    assert!(!host.requests.log().is_empty());
}

macro_rules! on_both_stores {
    ($($case:ident)*) => {
        $(
            mod $case {
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn directory() {
                    super::$case(super::Site::directory().await).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn minio() {
                    super::$case(super::Site::minio().await).await;
                }
            }
        )*
    };
}

on_both_stores! {
    attaching_takes_few_round_trips
    restarts_do_not_add_round_trips
    an_idle_volume_asks_for_nothing
}

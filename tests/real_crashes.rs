//! The real daemon, killed (SIGKILL) under load at counted points: as it begins a write or a sync of its log, a sync of anything, a link or
//! a rename in a directory store, and before or after a PUT of each kind has taken effect in a real MinIO. After each death it
//! starts again, and the disk is compared with the record of what was acknowledged.
//!
//! `VARVE_TEST_KILLS` is the number of kills of both stores together; a test run makes 60.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod fault_proxy;
    pub mod history;
    pub mod injection;
    pub mod minio;
    pub mod process;
}

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command as Program, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use support::client::Client;
use support::daemon::{Daemon, Host, StoreKind, World, binary, both_stores};
use support::fault_proxy::{Fault, FaultProxy};
use support::history::{Chance, History, Load};
use support::injection::Injection;
use support::process::{PATIENCE, SetOnDrop};

const SIZE: u64 = 16 << 20;
const SIZE_ARGUMENT: &str = "16MiB";
const SECTORS_MAX: u64 = 64;
const DEPTH: usize = 16;
/// Kills of both stores in an ordinary run.
const KILLS: u64 = 60;

both_stores!(killed_at_counted_points);

/// Where the daemon dies.
#[derive(Clone, Copy)]
enum Point {
    /// At the beginning of one of the first calls of this kind that a thread makes, of the log's file or of any.
    Call { name: &'static str, of_the_log: bool, first: u64 },
    /// At one of the first PUTs of this kind, before or after it has taken effect.
    Put { part: &'static str, before: bool, first: u64 },
}

/// What the daemon does when it dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum During {
    /// It attaches the volume, or has just done so.
    Attach,
    Load,
    /// Load, and snapshots taken one after the other.
    Snapshots,
    /// It stops in order, and hands the volume back.
    Stop,
}

fn call(name: &'static str, first: u64) -> Point {
    Point::Call { name, of_the_log: false, first }
}

fn of_the_log(name: &'static str, first: u64) -> Point {
    Point::Call { name, of_the_log: true, first }
}

/// Every kind of point, in the order in which rounds take them.
fn points(kind: StoreKind) -> Vec<(During, Point)> {
    let mut points = vec![
        (During::Load, of_the_log("fdatasync", 40)),
        (During::Load, of_the_log("pwritev", 400)),
        (During::Attach, of_the_log("fdatasync", 2)),
        (During::Stop, of_the_log("fdatasync", 1)),
    ];
    match kind {
        StoreKind::Directory => points.extend([
            (During::Attach, call("fsync", 3)),
            (During::Attach, call("linkat", 1)),
            (During::Attach, call("renameat", 1)),
            (During::Load, call("fsync", 6)),
            (During::Load, call("linkat", 3)),
            (During::Load, call("unlinkat", 2)),
            (During::Snapshots, call("renameat", 2)),
            (During::Snapshots, call("linkat", 2)),
            // Each thread counts its own, and every object makes two.
            (During::Stop, call("fsync", 2)),
            (During::Stop, call("linkat", 1)),
            (During::Stop, call("renameat", 1)),
        ]),
        StoreKind::Minio => {
            // Only the local index syncs by this call, twice with each checkpoint.
            points.push((During::Load, call("fsync", 2)));
            for before in [true, false] {
                let put = |part, first| Point::Put { part, before, first };
                points.extend([
                    (During::Attach, put("/manifest", 1)),
                    (During::Attach, put("/segments/", 1)),
                    (During::Load, put("/segments/", 20)),
                    (During::Snapshots, put("/manifest", 3)),
                    (During::Snapshots, put("/snapshots/", 3)),
                    (During::Stop, put("/segments/", 1)),
                    (During::Stop, put("/map/", 1)),
                    (During::Stop, put("/manifest", 1)),
                ]);
            }
        }
    }
    points
}

impl Point {
    fn name(self) -> String {
        match self {
            Point::Call { name, of_the_log: true, .. } => format!("{name} of the log"),
            Point::Call { name, .. } => name.to_owned(),
            Point::Put { part, before, .. } => format!("{} PUT {part}", if before { "before" } else { "after" }),
        }
    }
}

impl During {
    fn name(self) -> &'static str {
        match self {
            During::Attach => "attaching",
            During::Load => "under load",
            During::Snapshots => "taking snapshots",
            During::Stop => "stopping",
        }
    }
}

struct Trial {
    host: Host,
    volume: String,
    proxy: Option<FaultProxy>,
    history: History,
    chance: Chance,
}

impl Trial {
    fn connect(&self) -> std::io::Result<Client> {
        Client::connect(&self.host.nbd(), &self.volume)
    }

    fn log(&self) -> PathBuf {
        self.host.state().join("volumes").join(&self.volume).join("log")
    }

    /// Lays the trap; it is gone when what is returned is dropped.
    fn arm(&mut self, daemon: &Daemon, point: Point) -> Option<Injection> {
        match point {
            Point::Call { name, of_the_log, first } => {
                let nth = 1 + self.chance.below(first);
                let log = self.log();
                Some(Injection::kill_at(daemon, name, nth, of_the_log.then_some(&log)))
            }
            Point::Put { part, before, first } => {
                let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap()).unwrap();
                // The daemon is reaped only after its connections have ended, and they end with this.
                let kill = Arc::new(move || kill_process(pid, Signal::KILL).unwrap());
                let fault = if before { Fault::CallBefore(kill) } else { Fault::CallAfter(kill) };
                let proxy = self.proxy.as_ref().expect("only an S3 store has requests to meet");
                proxy.add("PUT", part, self.chance.below(first), 1, fault);
                None
            }
        }
    }

    /// One life of the daemon, from its start to its death at the point.
    fn round(&mut self, during: During, point: Point) {
        let mut daemon = self.host.start();
        let mut trap = None;
        if during == During::Attach {
            trap = self.arm(&daemon, point);
        } else {
            let disk = self.connect().unwrap().read_all();
            self.history.check(&disk, self.history.moment());
        }
        let died = AtomicBool::new(false);
        let clients: std::io::Result<Vec<Client>> = (0..2).map(|_| self.connect()).collect();
        if let Ok(clients) = clients {
            let mut load = Load::new(clients, DEPTH, SECTORS_MAX).with_durable(20);
            if during == During::Stop {
                let target = self.history.acknowledged() + 100;
                while self.history.acknowledged() < target {
                    assert!(load.step(&mut self.history, &mut self.chance), "the daemon hung up\n{}", daemon.said());
                }
            }
            if during != During::Attach {
                trap = self.arm(&daemon, point);
            }
            std::thread::scope(|scope| {
                let _died_in_the_end = SetOnDrop(&died);
                match during {
                    During::Stop => daemon.terminate(),
                    During::Snapshots => drop(scope.spawn(|| snapshots(&self.host, &self.volume, &died))),
                    During::Attach | During::Load => {}
                }
                let since = Instant::now();
                while during != During::Stop && load.step(&mut self.history, &mut self.chance) {
                    assert!(since.elapsed() < PATIENCE, "{} was never met", point.name());
                }
                load.wreck(&mut self.history);
            });
        }
        let status = daemon.end();
        assert_eq!(status.signal(), Some(9), "{}: it ended with {status}\n{}", point.name(), daemon.said());
        drop(trap);
    }
}

/// Takes snapshots until the daemon is gone, and then one more in vain.
fn snapshots(host: &Host, volume: &str, died: &AtomicBool) {
    while !died.load(Ordering::SeqCst) {
        let mut command = Program::new(binary("varve"));
        command.args(["volumes", "snapshots", "create", volume]).envs(host.environment.clone());
        // It may succeed, or fail with the daemon; what it leaves is the subject of tests/family_crash.rs.
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    }
}

/// The share of one store.
fn kills() -> u64 {
    let wanted = std::env::var("VARVE_TEST_KILLS").ok().map(|text| text.parse().expect("VARVE_TEST_KILLS: a number"));
    wanted.unwrap_or(KILLS).div_ceil(2)
}

fn killed_at_counted_points(kind: StoreKind) {
    let world = World::new(kind);
    // Segments follow each other quickly, so that their PUTs are many.
    let host = world.host("a").with(&["--log-size", "128MiB", "--segment-age", "50ms"]);
    let (host, proxy) = match kind {
        StoreKind::Directory => (host, None),
        StoreKind::Minio => {
            let (host, proxy) = FaultProxy::before(host);
            (host, Some(proxy))
        }
    };
    let volume = host.create("crash", SIZE_ARGUMENT);
    let mut trial = Trial { host, volume, proxy, history: History::new(SIZE), chance: Chance::new(77) };
    let points = points(kind);
    let mut met: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..kills() {
        let (during, point) = points[(round % points.len() as u64) as usize];
        trial.round(during, point);
        *met.entry(format!("{}, {}", during.name(), point.name())).or_default() += 1;
    }
    let daemon = trial.host.start();
    trial.history.check(&trial.connect().unwrap().read_all(), trial.history.moment());
    daemon.stop();
    trial.host.varve(&["check", &trial.volume]).succeeded();
    // From the store alone.
    let other = world.host("b");
    let daemon = other.start();
    let disk = Client::connect(&other.nbd(), &trial.volume).unwrap().read_all();
    trial.history.check(&disk, trial.history.moment());
    daemon.stop();
    println!("{} kills, {} acknowledged writes, none lost", kills(), trial.history.acknowledged());
    for (point, kills) in met {
        println!("{kills:5} {point}");
    }
}

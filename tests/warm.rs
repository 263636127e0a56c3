//! Warm starts: what was read first is kept beside a snapshot and brought where the snapshot is forked; `varve volumes warm`; and that none of it
//! is ever in the way.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use support::client::{Client, Command};
use support::daemon::{Host, StoreKind, World, both_stores, id_in};
use support::process::{shell, until};

both_stores!(
    a_fork_brings_what_was_read_first,
    a_trace_goes_with_its_snapshot,
    a_damaged_trace_costs_only_the_warm_start,
    warming_by_hand_brings_everything_once,
    a_small_cache_is_not_overrun,
    a_missing_frame_is_fetched_once,
);

const MIB: usize = 1 << 20;
const SIZE: usize = 64 * MIB;
/// The places that a machine reads when it starts, in its order: far apart, and each within 64 KiB.
const FIRST_READS: [usize; 8] = [40 * MIB, 3 * MIB + 8192, 0, 61 * MIB, 17 * MIB, 17 * MIB + 65536, 9 * MIB, 50 * MIB];

struct Disk {
    world: World,
    model: Vec<u8>,
}

impl Disk {
    /// A store, and a host that has written a volume and handed it back.
    fn new(kind: StoreKind) -> (Disk, String) {
        let world = World::new(kind);
        let first = world.host("writer");
        let volume = first.create("golden", "64MiB");
        let daemon = first.start();
        let mut client = Client::connect(&first.nbd(), &volume).unwrap();
        let mut model = vec![0; SIZE];
        SmallRng::seed_from_u64(1).fill_bytes(&mut model);
        for (step, part) in model.chunks(MIB).enumerate() {
            client.write((step * MIB) as u64, part).unwrap();
        }
        drop(client);
        daemon.stop();
        (Disk { world, model }, volume)
    }

    fn host(&self, name: &str) -> Host {
        self.world.host(name)
    }

    fn read_first(&self, host: &Host, volume: &str) {
        let mut client = Client::connect(&host.nbd(), volume).unwrap();
        for at in FIRST_READS {
            assert!(read(&mut client, at as u64) == self.model[at..at + 4096], "at {at}");
        }
    }

    /// A snapshot of the volume, after a machine has started on it.
    fn snapshot_after_reads(&self, volume: &str) -> String {
        let host = self.host("golden");
        let daemon = host.start();
        self.read_first(&host, volume);
        let taken = host.varve_json(&["volumes", "snapshots", "create", volume]);
        daemon.stop();
        taken["id"].as_str().unwrap().to_owned()
    }

    fn has(&self, name: &str) -> bool {
        self.world.names().iter().any(|known| known.ends_with(name))
    }
}

fn read(client: &mut Client, offset: u64) -> Vec<u8> {
    client.ask(Command::Read, 0, offset, 4096, &[]).unwrap()
}

fn gets(host: &Host) -> u64 {
    host.store_counts()["gets"].as_u64().unwrap()
}

fn fork_of(host: &Host, snapshot: &str) -> String {
    id_in(&host.varve(&["volumes", "create", "fork", "--snapshot-id", snapshot]).succeeded())
}

/// Attaches, and waits until what goes on in the background has ended.
fn attach_and_settle(host: &Host, volume: &str) {
    host.varve(&["volumes", "attach", volume]).succeeded();
    host.silence(Duration::from_millis(1500));
    assert!(host.varve_json(&["volumes", "show", volume])["attached"]["warming"].is_null());
}

fn a_fork_brings_what_was_read_first(kind: StoreKind) {
    let (disk, volume) = Disk::new(kind);
    let snapshot = disk.snapshot_after_reads(&volume);
    assert!(disk.has(&format!("{snapshot}.trace")));
    let warm = disk.host("warm");
    let daemon = warm.start();
    let fork = fork_of(&warm, &snapshot);
    attach_and_settle(&warm, &fork);
    let before = gets(&warm);
    disk.read_first(&warm, &fork);
    assert_eq!(gets(&warm), before, "all of it was there");
    assert!(daemon.said().contains("brought what is read first"));
    daemon.stop();

    // With nothing local, the volume itself does as its fork did.
    let again = disk.host("again");
    let daemon = again.start();
    attach_and_settle(&again, &volume);
    let before = gets(&again);
    disk.read_first(&again, &volume);
    assert_eq!(gets(&again), before);
    daemon.stop();

    let cold = disk.host("cold").with(&["--prefetch", "off"]);
    let daemon = cold.start();
    let fork = fork_of(&cold, &snapshot);
    attach_and_settle(&cold, &fork);
    let before = gets(&cold);
    disk.read_first(&cold, &fork);
    assert!(gets(&cold) >= before + 6, "nothing was there");
    // Nothing was noted either.
    let taken = cold.varve_json(&["volumes", "snapshots", "create", &fork]);
    assert!(!disk.has(&format!("{}.trace", taken["id"].as_str().unwrap())));
    daemon.stop();
}

fn a_trace_goes_with_its_snapshot(kind: StoreKind) {
    let (disk, volume) = Disk::new(kind);
    let snapshot = disk.snapshot_after_reads(&volume);
    let host = disk.host("a");
    // One that was taken while nobody had the volume has no trace, and is passed over for the one before it.
    let late = host.varve_json(&["volumes", "snapshots", "create", &volume])["id"].as_str().unwrap().to_owned();
    assert!(!disk.has(&format!("{late}.trace")));
    let daemon = host.start();
    let fork = fork_of(&host, &late);
    attach_and_settle(&host, &fork);
    let before = gets(&host);
    disk.read_first(&host, &fork);
    assert_eq!(gets(&host), before);
    host.varve(&["check", &volume]).succeeded();
    host.varve(&["volumes", "warm", &fork, "--from", &late]).refused(&["there is no trace of", &late]);
    host.varve(&["volumes", "warm", &fork, "--from", "vs_0000000000001"]).refused(&["there is no trace of"]);
    let name = format!("snapshots/{snapshot}.trace");
    let bytes = disk.world.get(&name);
    for id in [&snapshot, &late] {
        host.varve(&["volumes", "snapshots", "destroy", "--yes", id]).succeeded();
    }
    assert!(!disk.has(".trace"));
    daemon.stop();
    // What a crash between the two deletions leaves.
    match kind {
        StoreKind::Directory => {
            let path = disk.world.path().join("store").join(&name);
            std::fs::write(&path, &bytes).unwrap();
            assert!(host.varve(&["check", &volume]).succeeded().contains(&name));
            shell("touch -d '2 hours ago' \"$1\"", &[&path.display().to_string()]).succeeded();
            host.varve(&["check", &volume, "--clean"]).succeeded();
            assert!(!disk.has(".trace"), "it was removed");
        }
        StoreKind::Minio => {
            disk.world.put(&name, &bytes);
            assert!(host.varve(&["check", &volume, "--clean"]).succeeded().contains(&name));
            assert!(disk.has(".trace"), "it is young, and may be under way");
        }
    }
}

fn a_damaged_trace_costs_only_the_warm_start(kind: StoreKind) {
    let (disk, volume) = Disk::new(kind);
    let snapshot = disk.snapshot_after_reads(&volume);
    let name = format!("snapshots/{snapshot}.trace");
    let mut bytes = disk.world.get(&name);
    bytes[41] ^= 4;
    match kind {
        StoreKind::Directory => std::fs::write(disk.world.path().join("store").join(&name), &bytes).unwrap(),
        StoreKind::Minio => disk.world.put(&name, &bytes),
    }
    let host = disk.host("a");
    let daemon = host.start();
    let fork = fork_of(&host, &snapshot);
    attach_and_settle(&host, &fork);
    assert!(daemon.said().contains("a trace is of no use"), "{}", daemon.said());
    disk.read_first(&host, &fork);
    host.varve(&["volumes", "warm", &fork, "--from", &snapshot]).refused(&["is damaged"]);
    host.varve(&["check", &volume]).succeeded();
    daemon.stop();
}

fn warming_by_hand_brings_everything_once(kind: StoreKind) {
    let (disk, volume) = Disk::new(kind);
    let host = disk.host("a").with(&["--cache-size", "256MiB"]);
    let daemon = host.start();
    // Nobody has it: it is attached, warmed, and handed back.
    let report = host.varve_json(&["volumes", "warm", &volume]);
    let fetched = report["fetched"].as_u64().unwrap();
    assert!(fetched >= SIZE as u64 && fetched < SIZE as u64 * 102 / 100, "{report}");
    assert_eq!((&report["present"], &report["complete"]), (&0.into(), &true.into()), "{report}");
    assert_eq!(host.varve_json(&["volumes", "show", &volume])["state"], "detached");
    let again = host.varve_json(&["volumes", "warm", &volume]);
    assert_eq!((&again["present"], &again["fetched"]), (&report["fetched"], &0.into()), "{again}");
    host.varve(&["volumes", "attach", &volume]).succeeded();
    let before = gets(&host);
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    assert!(client.read_all() == disk.model);
    assert_eq!(gets(&host), before, "every frame was there");
    drop(client);
    daemon.stop();

    // Without a disk part what there is room for goes into memory.
    let host = disk.host("b").with(&["--cache-size", "1MiB", "--memory-size", "256MiB"]);
    let daemon = host.start();
    let report = host.varve_json(&["volumes", "warm", &volume]);
    assert_eq!(report["complete"], false, "{report}");
    assert!(report["fetched"].as_u64().unwrap() > 0, "{report}");
    daemon.stop();
}

fn a_small_cache_is_not_overrun(kind: StoreKind) {
    let (disk, volume) = Disk::new(kind);
    let host = disk.host("a").with(&["--cache-size", "24MiB", "--memory-size", "16MiB"]);
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    // In use: read twice.
    let used: Vec<u64> = (0..64).map(|step| (48 * MIB + step * 65536) as u64).collect();
    for _ in 0..2 {
        for at in &used {
            read(&mut client, *at);
        }
    }
    let report = host.varve_json(&["volumes", "warm", &volume]);
    assert_eq!(report["complete"], false, "{report}");
    let fetched = report["fetched"].as_u64().unwrap();
    assert!((8 * MIB as u64..=24 * MIB as u64).contains(&fetched), "{report}");
    let before = gets(&host);
    for at in &used {
        read(&mut client, *at);
    }
    assert_eq!(gets(&host), before, "what was in use is still there");
    let length = std::fs::metadata(host.state().join("cache")).unwrap().len();
    assert!(length <= 24 * MIB as u64, "the cache's file has {length} bytes");
    // An end in the middle of it does no harm.
    let mut patient = begin_warming(&host, &volume);
    patient.kill().unwrap();
    patient.wait().unwrap();
    until("the warming has ended with who asked for it", || {
        host.varve_json(&["volumes", "show", &volume])["attached"]["warming"].is_null()
    });
    assert!(client.read_all() == disk.model);
    drop(client);
    daemon.stop();
}

/// Readers of the same places in different orders, and somebody who warms the volume meanwhile: no byte comes from the store twice.
fn a_missing_frame_is_fetched_once(kind: StoreKind) {
    const PART: usize = 16 * MIB;
    const STEP: usize = 64 << 10;
    let (disk, volume) = Disk::new(kind);
    // Nothing is read ahead of those who read at random, and all of the part stays in memory.
    let host = disk.host("a").with(&["--memory-size", "512MiB", "--prefetch", "off"]);
    let daemon = host.start();
    host.varve(&["volumes", "attach", &volume]).succeeded();
    let bytes = |host: &Host| host.store_counts()["get_bytes"].as_u64().unwrap();
    let before = bytes(&host);
    let mut warming = begin_warming(&host, &volume);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (host, volume, model) = (&host, &volume, &disk.model);
            scope.spawn(move || {
                let mut client = Client::connect(&host.nbd(), volume).unwrap();
                let mut places: Vec<usize> = (0..PART / STEP).collect();
                places.shuffle(&mut SmallRng::seed_from_u64(seed));
                for at in places.into_iter().map(|place| place * STEP) {
                    let found = client.ask(Command::Read, 0, at as u64, STEP as u32, &[]).unwrap();
                    assert!(found == model[at..at + STEP], "at {at}");
                }
            });
        }
    });
    assert!(warming.wait().unwrap().success());
    let fetched = bytes(&host) - before;
    // Besides the frames: indexes of segments, and pages of the map.
    println!("{:.3} times the disk was fetched", fetched as f64 / SIZE as f64);
    assert!((SIZE as u64..SIZE as u64 + MIB as u64).contains(&fetched), "{fetched} bytes were fetched of {SIZE}");
    daemon.stop();
}

/// Somebody who warms the volume.
fn begin_warming(host: &Host, volume: &str) -> std::process::Child {
    let mut command = std::process::Command::new(support::daemon::binary("varve"));
    command.args(["volumes", "warm", volume]).envs(host.environment.clone());
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.spawn().unwrap()
}

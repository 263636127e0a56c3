//! A real daemon and a real MinIO, and between them a proxy that does what networks and busy servers do: every status, lost requests and
//! replies, duplicates that arrive when all is over, cut bodies, listings that are old or have holes. Under load, with the disk compared to the
//! record of what was acknowledged.
#![cfg(test)]

#[allow(dead_code, unused_macros, unused_imports, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod fault_proxy;
    pub mod history;
    pub mod minio;
    pub mod process;
}

use std::time::Duration;

use support::client::Client;
use support::daemon::{Daemon, Host, StoreKind, World};
use support::fault_proxy::{Fault, FaultProxy};
use support::history::{Chance, History, Load};
use support::process;
use varve::limits::{STORE_FETCHES_AT_ONCE, UPLOADS_AT_ONCE};

const SIZE: u64 = 16 << 20;
const SIZE_ARGUMENT: &str = "16MiB";
const SECTORS_MAX: u64 = 64;
const DEPTH: usize = 16;
/// How often each fault strikes in a row.
const TIMES: u64 = 3;
const LATE: Duration = Duration::from_millis(300);
const EIO: u32 = 5;
const PRECONDITION_FAILED: u16 = 412;

/// A volume under load on a host whose requests pass a proxy.
struct Site {
    world: World,
    host: Host,
    proxy: FaultProxy,
    volume: String,
    history: History,
    chance: Chance,
}

impl Site {
    fn new(seed: u64) -> Site {
        let world = World::new(StoreKind::Minio);
        // Small segments, one after the other, so that requests are many.
        let host = world.host("a").with(&["--log-size", "128MiB", "--segment-age", "50ms"]);
        let (host, proxy) = FaultProxy::before(host);
        let volume = host.create("faulty", SIZE_ARGUMENT);
        Site { world, host, proxy, volume, history: History::new(SIZE), chance: Chance::new(seed) }
    }

    fn connect(&self) -> Client {
        Client::connect(&self.host.nbd(), &self.volume).unwrap()
    }

    fn load(&self) -> Load {
        Load::new(vec![self.connect(), self.connect()], DEPTH, SECTORS_MAX).with_durable(50)
    }

    #[track_caller]
    fn step(&mut self, load: &mut Load, daemon: &Daemon) {
        assert!(load.step(&mut self.history, &mut self.chance), "the daemon hung up\n{}", daemon.said());
    }

    #[track_caller]
    fn write(&mut self, load: &mut Load, daemon: &Daemon, count: usize) {
        let target = self.history.acknowledged() + count;
        while self.history.acknowledged() < target {
            self.step(load, daemon);
        }
    }

    /// Writes, and hands everything back: the store has it all.
    fn fill(&mut self, count: usize) {
        let daemon = self.host.start();
        let mut load = self.load();
        self.write(&mut load, &daemon, count);
        load.finish(&mut self.history);
        drop(load);
        daemon.stop();
    }

    /// A daemon that has nothing local: all of the disk comes from the store, and so does what attaching takes.
    fn start_anew(&self) -> Daemon {
        std::fs::remove_dir_all(self.host.state()).unwrap();
        self.host.start()
    }

    /// What another host finds, with nothing but the store, and with a way to it that is sound.
    #[track_caller]
    fn check_elsewhere(&self, floor: u64) {
        let other = self.world.host("elsewhere");
        let daemon = other.start();
        let disk = Client::connect(&other.nbd(), &self.volume).unwrap().read_all();
        self.history.check(&disk, floor);
        daemon.stop();
        other.varve(&["check", &self.volume]).succeeded();
    }
}

/// What may happen to a write; 403 is tried by [`refused_for_a_while`], which takes longer.
fn faults_of_writes() -> Vec<(&'static str, Fault)> {
    vec![
        ("429", Fault::Refuse(429)),
        ("500", Fault::Refuse(500)),
        ("503", Fault::Refuse(503)),
        ("409", Fault::Refuse(409)),
        ("500 although applied", Fault::ApplyAndRefuse(500)),
        ("503 although applied", Fault::ApplyAndRefuse(503)),
        ("delay", Fault::Delay(LATE)),
        ("request lost", Fault::DropRequest),
        ("reply lost", Fault::DropReply),
        ("reply cut", Fault::CutReply),
        ("sent twice", Fault::Duplicate),
        ("arrives late", Fault::Postpone),
    ]
}

#[test]
fn every_fault_of_a_write_in_turn() {
    let mut site = Site::new(51);
    let daemon = site.host.start();
    let mut load = site.load();
    for (name, fault) in faults_of_writes() {
        let rule = site.proxy.add("PUT", "/segments/", 0, TIMES, fault.clone());
        let limit = site.history.acknowledged() + 50_000;
        while site.proxy.hits(rule) < TIMES {
            assert!(site.history.acknowledged() < limit, "{name}: only {} segments met it", site.proxy.hits(rule));
            site.step(&mut load, &daemon);
        }
        load.finish(&mut site.history);
        site.host.varve(&["volumes", "sync", &site.volume]).succeeded();
        // A change of the manifest, in each state of the world that the fault may leave.
        let rule = site.proxy.add("PUT", "/manifest", 0, 1, fault);
        site.host.varve(&["volumes", "snapshots", "create", &site.volume, "--name", "kept"]).succeeded();
        assert_eq!(site.proxy.hits(rule), 1, "{name}: taking a snapshot did not change the manifest");
    }
    let snapshots = site.host.varve_json(&["volumes", "snapshots", "list", &site.volume]);
    assert_eq!(snapshots.as_array().unwrap().len(), faults_of_writes().len(), "one snapshot a fault: {snapshots}");
    let counts = site.host.store_counts();
    assert!(counts["retries"].as_u64().unwrap() >= 8 * (TIMES + 1), "too few tries for these faults: {counts}");
    for (name, status) in site.proxy.send_late() {
        assert_eq!(status, PRECONDITION_FAILED, "a late write of {name} took effect");
    }
    let floor = site.history.moment();
    site.history.check(&site.connect().read_all(), floor);
    drop(load);
    daemon.stop();
    site.check_elsewhere(floor);
}

#[test]
fn every_fault_of_a_read_in_turn() {
    let mut site = Site::new(52);
    site.fill(3000);
    let faults = [
        ("429", Fault::Refuse(429)),
        ("500", Fault::Refuse(500)),
        ("503", Fault::Refuse(503)),
        ("409", Fault::Refuse(409)),
        ("delay", Fault::Delay(LATE)),
        ("request lost", Fault::DropRequest),
        ("reply lost", Fault::DropReply),
        ("reply cut", Fault::CutReply),
    ];
    for (name, fault) in faults {
        let daemon = site.start_anew();
        let rules: Vec<_> = ["/segments/", "/map/", "/manifest"]
            .into_iter()
            .map(|part| (part, site.proxy.add("GET", part, 0, 2, fault.clone())))
            .collect();
        let disk = site.connect().read_all();
        site.history.check(&disk, site.history.moment());
        for (part, rule) in rules {
            // A fault makes a second try; what is merely late need not be read twice.
            let wanted = if name == "delay" { 1 } else { 2 };
            assert!((wanted..=2).contains(&site.proxy.hits(rule)), "{name}: reads of {part}");
            // What is left of it would take requests from the next fault.
            site.proxy.end(rule);
        }
        daemon.stop();
    }
}

#[test]
fn refused_for_a_while() {
    let mut site = Site::new(53);
    let daemon = site.host.start();
    let mut load = site.load();
    site.write(&mut load, &daemon, 500);
    let rules = ["PUT", "GET"].map(|method| site.proxy.add(method, "", 0, u64::MAX, Fault::Refuse(403)));
    // Writes go on while the log has room, and what it has can be read.
    site.write(&mut load, &daemon, 1000);
    load.finish(&mut site.history);
    site.history.check(&site.connect().read_all(), site.history.moment());
    process::until("the daemon says what is wrong", || {
        let said = daemon.said();
        said.contains("an upload failed") && said.contains("403")
    });
    for rule in rules {
        // No tight loop: each request is tried every few seconds.
        assert!(site.proxy.hits(rule) < 100, "{} requests while access was refused", site.proxy.hits(rule));
        site.proxy.end(rule);
    }
    // Nothing has to be started anew.
    site.write(&mut load, &daemon, 500);
    load.finish(&mut site.history);
    site.host.varve(&["volumes", "sync", &site.volume]).succeeded();
    drop(load);
    daemon.stop();
    site.check_elsewhere(site.history.moment());
}

#[test]
fn a_refused_read_is_an_error_of_its_blocks_until_access_is_back() {
    let mut site = Site::new(54);
    site.fill(1000);
    let daemon = site.start_anew();
    let mut client = site.connect();
    let rule = site.proxy.add("GET", "/segments/", 0, u64::MAX, Fault::Refuse(403));
    let refused = client.ask(support::client::Command::Read, 0, 0, 1 << 20, &[]);
    assert_eq!(refused.map(|data| data.len()), Err(EIO));
    client.write(0, &[0; 4096]).expect("a write of a whole block does not need the store");
    site.proxy.end(rule);
    client.ask(support::client::Command::Read, 0, 1 << 20, 1 << 20, &[]).expect("access is back");
    drop(client);
    daemon.stop();
}

/// What a daemon has open besides its fetches: files, sockets, uploads, clients.
const OTHER_DESCRIPTORS: usize = 64;
const READS: u64 = 1000;

/// However many scattered reads there are, the connections to the store stay within a bound.
#[test]
fn a_burst_of_reads_takes_a_bounded_number_of_connections() {
    let mut site = Site::new(57);
    site.fill(3000);
    let daemon = site.start_anew();
    let mut client = site.connect();
    let rule = site.proxy.add("GET", "/segments/", 0, u64::MAX, Fault::Delay(LATE));
    for _ in 0..READS {
        let offset = site.chance.below(SIZE / 4096) * 4096;
        client.send(support::client::Command::Read, 0, offset, 512, &[]).unwrap();
    }
    let mut most = 0;
    for _ in 0..READS {
        assert_eq!(client.answer().unwrap().error, 0);
        most = most.max(std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count());
    }
    assert!(site.proxy.hits(rule) > 200, "only {} fetches: that is no burst", site.proxy.hits(rule));
    // A fetch that begins to connect may get a connection that came free first; its own then rests beside the others.
    assert!(most <= 2 * STORE_FETCHES_AT_ONCE + OTHER_DESCRIPTORS, "{most} descriptors");
    println!("{} fetches, {most} descriptors at most", site.proxy.hits(rule));
    drop(client);
    daemon.stop();
}

/// The old owner's writes arrive when another host has long taken the volume over.
#[test]
fn late_writes_of_a_lost_host_change_nothing() {
    let mut site = Site::new(55);
    let mut daemon = site.host.start();
    let mut load = site.load();
    site.write(&mut load, &daemon, 500);
    load.finish(&mut site.history);
    site.host.varve(&["volumes", "sync", &site.volume]).succeeded();
    let floor = site.history.moment();
    let rule = site.proxy.add("PUT", "", 0, u64::MAX, Fault::Postpone);
    // Little by little: whoever writes on while nothing is stored fills the log, and is not answered any more.
    for segment in 1..=UPLOADS_AT_ONCE {
        site.write(&mut load, &daemon, 50);
        process::until("another segment is on its way", || site.proxy.hits(rule) >= segment as u64);
    }
    daemon.kill9();
    load.wreck(&mut site.history);

    let other = site.world.host("b");
    let owner = other.start();
    other.varve(&["volumes", "attach", &site.volume, "--takeover"]).succeeded();
    let mut client = Client::connect(&other.nbd(), &site.volume).unwrap();
    let mut disk = client.read_all();
    site.history.check(&disk, floor);
    client.write(0, &[0x33; 1 << 20]).unwrap();
    disk[..1 << 20].fill(0x33);
    other.varve(&["volumes", "sync", &site.volume]).succeeded();
    let late = site.proxy.send_late();
    assert!(late.len() >= UPLOADS_AT_ONCE, "{late:?}");
    // Segments behind a hole may be created, as long as nobody takes notice of them; the place of the seal must be taken.
    assert!(late.iter().any(|(_, status)| *status == PRECONDITION_FAILED), "{late:?}");
    println!("late: {late:?}");
    assert!(client.read_all() == disk, "late writes changed the disk of the owner");
    drop(client);
    owner.stop();
    let third = site.world.host("c");
    let reader = third.start();
    let found = Client::connect(&third.nbd(), &site.volume).unwrap().read_all();
    assert!(found == disk, "late writes changed what is in the store");
    reader.stop();
    third.varve(&["check", &site.volume]).succeeded();
}

#[test]
fn nothing_depends_on_listings() {
    for fault in [Fault::OldList, Fault::PartialList] {
        let mut site = Site::new(56);
        // The proxy sees these listings first, and gives them again later.
        site.host.varve(&["volumes", "list"]).succeeded();
        site.host.varve(&["volumes", "purge"]).succeeded();
        site.host.varve(&["check", &site.volume]).succeeded();
        let rule = site.proxy.add("GET", "list-type=2", 0, u64::MAX, fault);
        let mut daemon = site.host.start();
        for _ in 0..2 {
            let mut load = site.load();
            site.write(&mut load, &daemon, 1500);
            site.host.varve(&["volumes", "snapshots", "create", &site.volume]).succeeded();
            site.host.varve(&["volumes", "fork", &site.volume]).succeeded();
            daemon.kill9();
            load.wreck(&mut site.history);
            daemon = site.host.start();
            site.history.check(&site.connect().read_all(), site.history.moment());
            site.host.varve(&["volumes", "purge"]).succeeded();
        }
        site.host.varve(&["volumes", "list"]).succeeded();
        site.host.varve(&["check", &site.volume, "--clean"]).succeeded();
        daemon.stop();
        assert!(site.proxy.hits(rule) >= 3, "only {} listings were asked for", site.proxy.hits(rule));
        site.proxy.end(rule);
        site.check_elsewhere(site.history.moment());
        let volumes = site.host.varve_json(&["volumes", "list"]);
        assert_eq!(volumes.as_array().unwrap().len(), 3, "a fork is gone: {volumes}");
        for volume in volumes.as_array().unwrap() {
            site.host.varve(&["check", volume["id"].as_str().unwrap()]).succeeded();
        }
    }
}

//! A family on one host: forks share what is fetched and cached, however deep they are; and a disk that grows under a running QEMU.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command as Program, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::client::{Client, Command};
use support::daemon::{Host, StoreKind, World, both_stores, id_in};
use support::process::{self, PATIENCE, text_of};

both_stores!(forks_share_one_cache, depth_costs_nothing, a_disk_grows_under_a_running_qemu);

const BLOCK: usize = 4096;
const MIB: usize = 1 << 20;

fn host(world: &World, name: &str) -> Host {
    world.host(name).with(&["--log-size", "128MiB"])
}

#[track_caller]
fn fork(host: &Host, volume: &str) -> String {
    id_in(&host.varve(&["volumes", "fork", volume]).succeeded())
}

#[track_caller]
fn forks(host: &Host, volume: &str, count: usize) -> Vec<String> {
    let made = host.varve_json(&["volumes", "fork", volume, "-n", &count.to_string()]);
    made.as_array().unwrap().iter().map(|fork| fork["id"].as_str().unwrap().to_owned()).collect()
}

/// What a daemon has fetched since the last time it was asked.
#[derive(Default)]
struct Fetched {
    requests: u64,
    bytes: u64,
}

impl Fetched {
    #[track_caller]
    fn since(&mut self, host: &Host) -> Fetched {
        let counts = host.store_counts();
        let now = Fetched { requests: counts["gets"].as_u64().unwrap(), bytes: counts["get_bytes"].as_u64().unwrap() };
        let before = std::mem::replace(self, now);
        Fetched { requests: self.requests - before.requests, bytes: self.bytes - before.bytes }
    }
}

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn forks_share_one_cache(kind: StoreKind) {
    const DATA: usize = 64 * MIB;
    let world = World::new(kind);
    let first = host(&world, "a");
    let volume = first.create("weights", "80MiB");
    let daemon = first.start();
    let mut data = noise(DATA);
    let mut client = Client::connect(&first.nbd(), &volume).unwrap();
    for (index, chunk) in data.chunks(MIB).enumerate() {
        client.write((index * MIB) as u64, chunk).unwrap();
    }
    drop(client);
    let made = forks(&first, &volume, 4);
    daemon.stop();

    // A host that has nothing local.
    let second = host(&world, "b");
    let daemon = second.start();
    let mut fetched = Fetched::default();
    data.resize(80 * MIB, 0);
    let mut read = |fork: &str, data: &[u8]| {
        let found = Client::connect(&second.nbd(), fork).unwrap().read_all();
        assert!(found == data, "{fork} is not what it was forked from");
        fetched.since(&second)
    };
    let cold = read(&made[0], &data);
    assert!(cold.bytes >= DATA as u64, "{} bytes were fetched of {DATA}: was the cache cold?", cold.bytes);
    for fork in &made[1..3] {
        let warm = read(fork, &data);
        println!("cold: {} requests, {} bytes; warm: {}, {}", cold.requests, cold.bytes, warm.requests, warm.bytes);
        assert!(warm.bytes < MIB as u64, "{} bytes were fetched again for another fork", warm.bytes);
        assert!(warm.requests < 16, "{} requests for what is here", warm.requests);
    }
    // What one of them writes makes nothing else colder, and is its own.
    let mut client = Client::connect(&second.nbd(), &made[1]).unwrap();
    client.write(5 * MIB as u64, &[7; MIB]).unwrap();
    drop(client);
    let untouched = read(&made[3], &data);
    data[5 * MIB..6 * MIB].fill(7);
    let written = read(&made[1], &data);
    assert!(untouched.bytes < MIB as u64 && written.bytes < MIB as u64, "{}, {}", untouched.bytes, written.bytes);
    daemon.stop();
}

fn depth_costs_nothing(kind: StoreKind) {
    const DEPTH: usize = 20;
    const SHARED: usize = 4 * MIB;
    // Far away, so that nothing of it is read ahead.
    const OWN: usize = 48 * MIB;
    let world = World::new(kind);
    let first = host(&world, "a");
    let volume = first.create("disk", "64MiB");
    let daemon = first.start();
    let mut expected = noise(SHARED);
    let put = |export: &str, offset: usize, data: &[u8]| {
        Client::connect(&first.nbd(), export).unwrap().write(offset as u64, data).unwrap();
    };
    put(&volume, 0, &expected);
    // Each is a fork of the one before, while that is in use, and adds a block.
    let mut chain = vec![volume];
    for depth in 1..=DEPTH {
        let fork = fork(&first, &chain[depth - 1]);
        put(&fork, OWN + depth * BLOCK, &[depth as u8; BLOCK]);
        chain.push(fork);
    }
    daemon.stop();

    // A host that has nothing local: what attaching takes, and then what reading the origin's data takes.
    let cold = |name: &str, fork: &str| {
        // What is brought in the background is not counted here.
        let host = host(&world, name).with(&["--prefetch", "off"]);
        let daemon = host.start();
        // At its start it looks for volumes to be purged.
        host.silence(Duration::from_secs(2));
        let mut fetched = Fetched::default();
        fetched.since(&host);
        let mut client = Client::connect(&host.nbd(), fork).unwrap();
        let attaching = fetched.since(&host).requests;
        // In one request: a sequence of them would be read ahead of, which may count a request more or not.
        let data = client.ask(Command::Read, 0, 0, SHARED as u32, &[]).unwrap();
        assert!(data == expected[..SHARED], "the data of the origin is not what it was");
        let reading = fetched.since(&host).requests;
        let disk = client.read_all();
        drop(client);
        daemon.stop();
        (attaching, reading, disk)
    };
    let (attaching_first, reading_first, _) = cold("b", &chain[1]);
    let (attaching_last, reading_last, disk) = cold("c", &chain[DEPTH]);
    println!(
        "requests at depth 1: {attaching_first}, {reading_first}; at depth {DEPTH}: {attaching_last}, {reading_last}"
    );
    assert!(
        reading_last <= reading_first,
        "{reading_last} requests to read at depth {DEPTH}, {reading_first} at depth 1"
    );
    assert!(attaching_last <= attaching_first, "{attaching_last} requests to attach, {attaching_first} at depth 1");
    expected.resize(64 * MIB, 0);
    for depth in 1..=DEPTH {
        expected[OWN + depth * BLOCK..][..BLOCK].fill(depth as u8);
    }
    assert!(disk == expected, "the last fork does not have what those before it have written");
}

/// A virtual machine that is paused at its start, with one disk; told what to do over QMP.
struct Qemu {
    child: Child,
    input: UnixStream,
    output: BufReader<UnixStream>,
    log: PathBuf,
}

impl Qemu {
    /// Starts it as the README says; the monitor may use the disk beside the guest.
    #[track_caller]
    fn start(world: &World, host: &Host, export: &str) -> Qemu {
        let (monitor, log) = (world.path().join("qmp.sock"), world.path().join("qemu.log"));
        let output = std::fs::File::create(&log).unwrap();
        let disk = format!(
            "driver=nbd,node-name=disk,server.type=unix,server.path={},export={export},discard=unmap,reconnect-delay=60",
            host.nbd().display()
        );
        let mut qemu = Program::new("qemu-system-x86_64");
        qemu.args(["-machine", "q35,accel=tcg", "-m", "64", "-S", "-nodefaults", "-display", "none"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())])
            .args(["-blockdev", &disk, "-device", "virtio-blk-pci,drive=disk,share-rw=on"])
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let mut child = qemu.spawn().expect("qemu-system-x86_64: run tools/test once, which installs it");
        let mut found = None;
        process::until("QEMU opens its monitor", || {
            assert!(child.try_wait().unwrap().is_none(), "QEMU ended at its start:\n{}", text_of(&log));
            found = UnixStream::connect(&monitor).ok();
            found.is_some()
        });
        let input = found.unwrap();
        input.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut qemu = Qemu { child, output: BufReader::new(input.try_clone().unwrap()), input, log };
        qemu.ask("qmp_capabilities", &json!({}));
        qemu
    }

    fn send(&mut self, command: &str, arguments: &Value) {
        let request = json!({ "execute": command, "arguments": arguments });
        self.input.write_all(format!("{request}\n").as_bytes()).unwrap();
    }

    /// The answer to the command that was sent last.
    #[track_caller]
    fn answer(&mut self) -> Value {
        loop {
            let mut line = String::new();
            let count =
                self.output.read_line(&mut line).unwrap_or_else(|error| panic!("QEMU does not answer: {error}"));
            assert!(count > 0, "QEMU is gone:\n{}", text_of(&self.log));
            let answer: Value = serde_json::from_str(&line).unwrap();
            assert!(answer.get("error").is_none(), "{answer}");
            if let Some(value) = answer.get("return") {
                return value.clone();
            }
        }
    }

    #[track_caller]
    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        self.send(command, arguments);
        self.answer()
    }

    /// A request to the disk, as a guest would make it. Does not wait for its end.
    fn begin(&mut self, request: &str) {
        self.send("human-monitor-command", &json!({ "command-line": format!("qemu-io disk \"{request}\"") }));
    }

    /// Waits for the end of a request; fails unless it went well. QEMU prints that, and does not tell the monitor.
    #[track_caller]
    fn ends_well(&mut self, words: &str) {
        let said = self.answer();
        assert!(said == "" && text_of(&self.log).contains(words), "no '{words}': {said}\n{}", text_of(&self.log));
    }

    /// The size of the disk that the guest has, in bytes.
    #[track_caller]
    fn size(&mut self) -> u64 {
        let disks = self.ask("query-block", &json!({}));
        disks[0]["inserted"]["image"]["virtual-size"].as_u64().unwrap_or_else(|| panic!("{disks}"))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn a_disk_grows_under_a_running_qemu(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world, "a");
    let volume = host.create("disk", "16MiB");
    let daemon = host.start();
    let mut qemu = Qemu::start(&world, &host, &volume);
    qemu.begin("write -P 1 0 4k");
    qemu.ends_well("wrote 4096/4096 bytes at offset 0");
    assert_eq!(qemu.size(), 16 * MIB as u64);
    let text = host.varve(&["volumes", "extend", &volume, "--size", "32MiB"]).succeeded();
    assert!(text.contains("restart varved") && text.contains("block_resize DEVICE 33554432B"), "{text}");

    daemon.stop();
    // The guest goes on meanwhile: its request waits for the daemon.
    qemu.begin("read -P 1 0 4k");
    let mut daemon = host.start();
    qemu.ends_well("read 4096/4096 bytes at offset 0");
    qemu.ask("block_resize", &json!({ "node-name": "disk", "size": 32 * MIB }));
    assert_eq!(qemu.size(), 32 * MIB as u64);
    qemu.begin("write -P 2 24M 4k");
    qemu.ends_well("wrote 4096/4096 bytes at offset 25165824");

    // Another restart, without warning, does not take the room away.
    daemon.kill9();
    qemu.begin("read -P 2 24M 4k");
    let daemon = host.start();
    qemu.ends_well("read 4096/4096 bytes at offset 25165824");
    assert_eq!(qemu.size(), 32 * MIB as u64);
    drop(qemu);
    let disk = Client::connect(&host.nbd(), &volume).unwrap().read_all();
    assert_eq!((disk.len(), disk[0], disk[24 * MIB]), (32 * MIB, 1, 2));
    daemon.stop();
}

//! Snapshots of volumes that are being written to: by fio and by writers that know what was acknowledged when, by a database in a file
//! system; and those that the daemon takes by itself.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod database;
    pub mod disk;
    pub mod minio;
    pub mod process;
}

use std::collections::HashSet;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use support::client::Client;
use support::daemon::{Host, StoreKind, World, both_stores, id_in};
use support::database::{Writer, check_database};
use support::disk::{BlockDisk, FileSystem};
use support::process::{self, SetOnDrop, shell};

both_stores!(
    a_snapshot_under_load_is_one_moment,
    a_snapshot_of_a_database_in_use,
    snapshots_come_and_go_by_the_clock,
    nothing_is_asked_of_the_store_while_nobody_writes,
);

const BLOCK: usize = 4096;
const MIB: usize = 1 << 20;

fn host(world: &World) -> Host {
    world.host("a").with(&["--log-size", "128MiB"])
}

#[track_caller]
fn snapshot(host: &Host, volume: &str) -> String {
    id_in(&host.varve(&["volumes", "snapshots", "create", volume]).succeeded())
}

#[track_caller]
fn restored(host: &Host, snapshot: &str) -> String {
    id_in(&host.varve(&["volumes", "create", "restored", "--snapshot-id", snapshot]).succeeded())
}

/// Writers that stamp blocks, each in a region of its own.
const WRITERS: usize = 3;
/// Blocks of a writer's region: few, so that each is written many times.
const REGION: usize = 700;

/// One write of a writer; its number is its place in the list, from 1 on. Times are ticks of a counter that all share.
struct Stamped {
    block: usize,
    count: usize,
    asked: u64,
    acknowledged: u64,
}

/// Where write number `number` goes: anywhere in the region, 1 to 4 blocks.
fn target(number: usize) -> (usize, usize) {
    let count = 1 + number % 4;
    (number * 7919 % (REGION - count), count)
}

/// A block that says which write of which writer it is of, in every word.
fn stamp(writer: usize, number: usize) -> [u8; BLOCK] {
    let word = ((writer as u64 + 1) << 32 | number as u64).to_le_bytes();
    std::array::from_fn(|at| word[at % 8])
}

/// Writes until told to stop, each write when the one before was acknowledged.
fn write_stamps(host: &Host, volume: &str, writer: usize, ticks: &AtomicU64, stop: &AtomicBool) -> Vec<Stamped> {
    let mut client = Client::connect(&host.nbd(), volume).unwrap();
    let mut writes = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let number = writes.len() + 1;
        let (block, count) = target(number);
        let asked = ticks.fetch_add(1, Ordering::SeqCst);
        let data = stamp(writer, number).repeat(count);
        client.write(((writer * REGION + block) * BLOCK) as u64, &data).unwrap();
        writes.push(Stamped { block, count, asked, acknowledged: ticks.fetch_add(1, Ordering::SeqCst) });
    }
    writes
}

/// How many of a writer's writes its region holds; fails unless it holds just the first so many of them.
#[track_caller]
fn writes_in(disk: &[u8], writer: usize, writes: &[Stamped]) -> usize {
    let region = &disk[writer * REGION * BLOCK..(writer + 1) * REGION * BLOCK];
    let number_of = |block: &[u8]| u32::from_le_bytes(block[..4].try_into().unwrap()) as usize;
    let newest = region.chunks(BLOCK).map(number_of).max().unwrap_or(0);
    assert!(newest <= writes.len(), "writer {writer}: a write that was never made");
    let mut expected = vec![0; region.len()];
    for (index, write) in writes[..newest].iter().enumerate() {
        let data = stamp(writer, index + 1).repeat(write.count);
        expected[write.block * BLOCK..][..data.len()].copy_from_slice(&data);
    }
    let wrong = region.chunks(BLOCK).zip(expected.chunks(BLOCK)).position(|(found, expected)| found != expected);
    assert_eq!(wrong, None, "writer {writer}: this block is not as it was after write {newest}");
    newest
}

/// Checks that a disk holds exactly what had been written at one moment between two ticks.
#[track_caller]
fn is_one_moment(disk: &[u8], writers: &[Vec<Stamped>], before: u64, after: u64) {
    let counts: Vec<usize> =
        writers.iter().enumerate().map(|(writer, writes)| writes_in(disk, writer, writes)).collect();
    let newest_asked = writers.iter().zip(&counts).filter_map(|(writes, count)| Some(writes[..*count].last()?.asked));
    let newest_asked = newest_asked.max().unwrap_or(0);
    assert!(newest_asked < after, "the snapshot has a write that was asked for after the command had returned");
    for (writer, (writes, count)) in writers.iter().zip(&counts).enumerate() {
        let Some(missing) = writes.get(*count) else { continue };
        assert!(missing.acknowledged > before, "writer {writer}: a write acknowledged before the command is missing");
        // A write that is there was asked for when one that is not had been acknowledged: that is no moment.
        assert!(missing.acknowledged > newest_asked, "writer {writer}: a later write is there without an earlier one");
    }
}

/// fio on the upper half of the disk, which verifies what it has written at its end.
fn fio(world: &World, host: &Host, volume: &str) -> Child {
    let mut fio = Command::new("fio");
    // It may leave files where it runs.
    fio.current_dir(world.path());
    fio.args(["--name=load", "--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=8", "--loops=4"])
        .args([
            "--offset=32m",
            "--size=32m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--verify_state_save=0",
            "--fsync=64",
        ])
        .arg(format!("--uri={}", host.uri(volume)))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    fio.spawn().expect("fio: run tools/test once, which installs it")
}

fn a_snapshot_under_load_is_one_moment(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = host.create("disk", "64MiB");
    let daemon = host.start();
    let (ticks, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut taken = Vec::new();
    let writers: Vec<Vec<Stamped>> = std::thread::scope(|scope| {
        let (ticks, stop) = (&ticks, &stop);
        let stop_in_the_end = SetOnDrop(stop);
        let start = |writer| {
            let (host, volume) = (&host, &volume);
            scope.spawn(move || write_stamps(host, volume, writer, ticks, stop))
        };
        let threads: Vec<_> = (0..WRITERS).map(start).collect();
        // A command to a volume that is just being attached is refused.
        process::until("the writers write", || ticks.load(Ordering::SeqCst) > 100);
        let mut load = fio(&world, &host, &volume);
        while load.try_wait().unwrap().is_none() || taken.len() < 3 {
            let before = ticks.fetch_add(1, Ordering::SeqCst);
            let id = snapshot(&host, &volume);
            taken.push((id, before, ticks.fetch_add(1, Ordering::SeqCst)));
        }
        drop(stop_in_the_end);
        let status = load.wait().unwrap();
        assert!(status.success(), "fio did not find what it had written, or could not write: {status}");
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let made: Vec<usize> = writers.iter().map(Vec::len).collect();
    println!("{} snapshots while the writers made {made:?} writes", taken.len());
    let (middle, last) = (taken.len() / 2, taken.len() - 1);
    for index in [0, 1, middle, last] {
        let (id, before, after) = &taken[index];
        let served = Client::connect(&host.nbd(), id).unwrap().read_all();
        assert_eq!(served.len(), 64 * MIB);
        is_one_moment(&served, &writers, *before, *after);
        if index == middle {
            let copy = restored(&host, id);
            let found = Client::connect(&host.nbd(), &copy).unwrap().read_all();
            assert!(found == served, "what is restored differs from what is served");
        }
    }
    daemon.stop();
}

fn a_snapshot_of_a_database_in_use(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = host.create("database", "256MiB");
    let daemon = host.start();
    let disk = BlockDisk::attach(&host.uri(&volume));
    disk.make(FileSystem::Ext4);
    let mount = disk.mount();
    let database = mount.path.join("rows.db");
    let mut writer = Writer::start(&database, 1);
    let mut taken = Vec::new();
    for _ in 0..3 {
        writer.commits(60);
        let before = writer.newest;
        let id = snapshot(&host, &volume);
        let query = "sqlite3 -cmd '.timeout 60000' \"$1\" 'SELECT max(id) FROM rows'";
        let after = shell(query, &[&database.display().to_string()]).succeeded();
        taken.push((id, before, after.trim().parse::<u64>().unwrap()));
    }
    // While the original goes on, each is opened next to it, as after a power cut.
    for (id, before, after) in &taken {
        let copy = BlockDisk::attach(&host.uri(&restored(&host, id)));
        let mounted = copy.mount();
        let database = mounted.path.join("rows.db");
        let newest = check_database(&database, *before);
        assert!((*before..=*after).contains(&newest), "row {newest}, not between {before} and {after}");
        // No row is missing below the newest.
        check_database(&database, newest);
        mounted.unmount();
        copy.check(FileSystem::Ext4);
        copy.detach();
        writer.commits(5);
    }
    let newest = writer.end();
    check_database(&database, newest);
    mount.unmount();
    disk.check(FileSystem::Ext4);
    disk.detach();
    daemon.stop();
}

/// The snapshots that the manifest in the store holds, in order. A command that lists them would let go of those that have expired.
#[track_caller]
fn pinned(host: &Host, volume: &str) -> Vec<String> {
    let text = host.varve(&["dump", "manifest", volume]).succeeded();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let pins = manifest["pins"].as_array().unwrap();
    let holders = pins.iter().flat_map(|pin| pin["holders"].as_array().unwrap());
    holders.map(|holder| holder["snapshot"]["id"].as_str().unwrap().to_owned()).collect()
}

/// Longer than a few of the looks that the daemon takes at its schedules.
const SILENCE: Duration = Duration::from_secs(4);

#[track_caller]
fn put(client: &mut Client, block: u64, byte: u8) {
    client.write(block * BLOCK as u64, &[byte; BLOCK]).unwrap();
}

/// A volume of which a snapshot is taken every second, and kept for half a minute: each look at them takes a new process, and none must be missed.
fn hurried(host: &Host) -> String {
    let schedule = ["--snapshot-interval", "1s", "--snapshot-retention", "30s"];
    let create = ["volumes", "create", "disk", "--size", "16MiB"];
    id_in(&host.varve(&[&create[..], &schedule].concat()).succeeded())
}

fn snapshots_come_and_go_by_the_clock(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = hurried(&host);
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    let mut seen = HashSet::new();
    for round in 1..=3 {
        put(&mut client, round, round as u8);
        process::until("the next snapshot is taken", || {
            pinned(&host, &volume).iter().any(|id| seen.insert(id.clone()))
        });
    }
    assert_eq!(seen.len(), 3, "one for each round of writes: {seen:?}");
    process::until("the last snapshot goes", || pinned(&host, &volume).is_empty());
    process::until("nothing is left of them", || {
        let report = host.varve_json(&["check", &volume]);
        assert_eq!(report["problems"], json!([]), "{report}");
        report["leftovers"] == json!([])
    });
    // What is kept longer can be used like any other.
    host.varve(&["volumes", "update", &volume, "--snapshot-interval", "1s", "--snapshot-retention", "1h"]).succeeded();
    put(&mut client, 4, 4);
    process::until("the next snapshot is taken", || !pinned(&host, &volume).is_empty());
    let list = host.varve_json(&["volumes", "snapshots", "list", &volume]);
    assert_eq!((list.as_array().map(Vec::len), &list[0]["scheduled"]), (Some(1), &json!(true)), "{list}");
    let disk = Client::connect(&host.nbd(), list[0]["id"].as_str().unwrap()).unwrap().read_all();
    assert_eq!([0, 1, 2, 3, 4, 5].map(|block| disk[block * BLOCK]), [0, 1, 2, 3, 4, 0]);
    drop(client);
    daemon.stop();
}

fn nothing_is_asked_of_the_store_while_nobody_writes(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = hurried(&host);
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    host.silence(SILENCE);
    assert!(pinned(&host, &volume).is_empty(), "a snapshot of a volume to which nothing was written");
    put(&mut client, 1, 1);
    process::until("a snapshot is taken", || !pinned(&host, &volume).is_empty());
    process::until("it goes", || pinned(&host, &volume).is_empty());
    // Reading is no reason for a snapshot.
    client.read_all();
    host.silence(SILENCE);
    assert!(pinned(&host, &volume).is_empty(), "a second snapshot of the same");
    drop(client);
    daemon.stop();
}

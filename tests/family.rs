//! Snapshots, forks, restores, growth and rollback, as people give the commands: to a running daemon and to nobody's volumes, on both
//! stores.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use std::path::Path;
use std::process::Command as Program;
use std::sync::atomic::{AtomicU64, Ordering};

use support::client::{Client, Command};
use support::daemon::{Host, StoreKind, World, both_stores, id_in};
use support::process::{self, shell};

both_stores!(
    snapshots_of_volumes_in_use_and_of_others,
    a_snapshot_while_writes_go_on,
    volumes_made_of_a_snapshot,
    forks_of_a_volume_in_use_and_forks_of_forks,
    a_hundred_forks,
    forks_in_a_loop_of_the_shell,
    growth_in_use,
    growth_of_a_detached_volume,
    a_restore_keeps_the_present,
    destroying_leaves_the_family_its_data,
    an_owner_that_cannot_be_asked,
    requests_that_make_no_sense,
);

const BLOCK: usize = 4096;
const SIZE: &str = "16MiB";

/// A host whose volumes take little room.
fn host(world: &World) -> Host {
    world.host("a").with(&["--log-size", "128MiB"])
}

#[track_caller]
fn put(host: &Host, export: &str, block: u64, byte: u8) {
    let mut client = Client::connect(&host.nbd(), export).unwrap();
    client.write(block * BLOCK as u64, &[byte; BLOCK]).unwrap();
}

/// The first bytes of the first `count` blocks, each of which must be of one kind of byte.
#[track_caller]
fn bytes(host: &Host, export: &str, count: usize) -> Vec<u8> {
    let mut client = Client::connect(&host.nbd(), export).unwrap();
    let data = client.ask(Command::Read, 0, 0, (count * BLOCK) as u32, &[]).unwrap();
    let blocks = data.chunks(BLOCK);
    blocks
        .map(|block| {
            assert!(block.iter().all(|byte| *byte == block[0]), "a block is torn");
            block[0]
        })
        .collect()
}

#[track_caller]
fn snapshot(host: &Host, volume: &str) -> String {
    let text = host.varve(&["volumes", "snapshots", "create", volume]).succeeded();
    let id = id_in(&text);
    assert!(id.starts_with("vs_") && id.len() == 16, "{text}");
    id
}

#[track_caller]
fn fork(host: &Host, volume: &str) -> String {
    id_in(&host.varve(&["volumes", "fork", volume]).succeeded())
}

#[track_caller]
fn restored(host: &Host, snapshot: &str) -> String {
    id_in(&host.varve(&["volumes", "create", "restored", "--snapshot-id", snapshot]).succeeded())
}

fn snapshots_of_volumes_in_use_and_of_others(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = host.create("disk", SIZE);
    let empty = snapshot(&host, &volume);
    let daemon = host.start();
    put(&host, &volume, 0, 1);
    let live = host.varve_json(&["volumes", "snapshots", "create", "disk", "--name", "in use", "--retention", "1d"]);
    assert_eq!((&live["name"], &live["volume"]), (&"in use".into(), &volume.as_str().into()), "{live}");
    assert!(live["stored_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{live}");
    let live = live["id"].as_str().unwrap().to_owned();
    daemon.stop();
    let detached = snapshot(&host, "disk");

    let list = host.varve_json(&["volumes", "snapshots", "list", "disk"]);
    let listed: Vec<_> = list.as_array().unwrap().iter().map(|snapshot| snapshot["id"].as_str().unwrap()).collect();
    assert_eq!(listed, [&empty, &live, &detached], "{list}");
    let table = host.varve(&["volumes", "snapshots", "list", "disk"]).succeeded();
    let line = table.lines().find(|line| line.starts_with(&live)).unwrap();
    assert!(line.contains("in use") && line.contains("ready") && line.contains("16 MB"), "{table}");
    let shown = host.varve_json(&["volumes", "snapshots", "show", &live]);
    assert!(shown["expires_at"].as_u64() == shown["created_at"].as_u64().map(|at| at + 86_400_000), "{shown}");
    assert_eq!(host.varve_json(&["volumes", "show", "disk"])["snapshots"], 3);

    // Of a volume in use they go just as well, and the owner is not disturbed.
    let daemon = host.start();
    put(&host, &volume, 1, 2);
    host.varve(&["volumes", "snapshots", "destroy", &empty, &live, "--yes"]).succeeded();
    put(&host, &volume, 2, 3);
    let after = snapshot(&host, &volume);
    host.varve(&["volumes", "snapshots", "show", &live]).refused(&[&live]);
    assert_eq!(host.varve_json(&["volumes", "snapshots", "list", "disk"]).as_array().map(Vec::len), Some(2));
    assert_eq!(bytes(&host, &restored(&host, &after), 3), [1, 2, 3]);
    daemon.stop();
}

/// Block after block is written, each when the one before was acknowledged. So a snapshot holds a prefix of them: at least what was
/// acknowledged when the command was given, at most what had been asked for when it was answered.
fn a_snapshot_while_writes_go_on(kind: StoreKind) {
    const WRITES: u64 = 3000;
    let world = World::new(kind);
    let host = host(&world);
    let volume = host.create("disk", SIZE);
    let daemon = host.start();
    let acknowledged = AtomicU64::new(0);
    let mut taken = Vec::new();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for block in 0..WRITES {
                client.write(block * BLOCK as u64, &[block as u8 | 1; BLOCK]).unwrap();
                acknowledged.store(block + 1, Ordering::SeqCst);
            }
        });
        while !writer.is_finished() || taken.is_empty() {
            let before = acknowledged.load(Ordering::SeqCst);
            let id = snapshot(&host, &volume);
            taken.push((id, before, acknowledged.load(Ordering::SeqCst) + 1));
        }
        writer.join().unwrap();
    });
    let middle = taken.len() / 2;
    for (id, before, after) in [&taken[0], &taken[middle], taken.last().unwrap()] {
        let found = bytes(&host, &restored(&host, id), WRITES as usize);
        let written = found.iter().take_while(|byte| **byte != 0).count() as u64;
        assert!((*before..=*after).contains(&written), "{written} of {before} to {after} blocks");
        assert!(found[written as usize..].iter().all(|byte| *byte == 0), "a later write without an earlier one");
        assert!((0..written).all(|block| found[block as usize] == block as u8 | 1), "not what was written");
    }
    daemon.stop();
}

fn volumes_made_of_a_snapshot(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = host.create("disk", SIZE);
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    let data: Vec<u8> = (0..1_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    client.write(3 << 20, &data).unwrap();
    let taken = snapshot(&host, &volume);
    let expected = client.read_all();
    client.write(3 << 20, &vec![0xee; 1 << 20]).unwrap();
    let copies = host.varve_json(&["volumes", "create", "copy", "--snapshot-id", &taken, "--size", "20MiB", "-n", "2"]);
    for copy in copies.as_array().unwrap() {
        assert_eq!((&copy["size"], &copy["origin"]), (&(20 << 20).into(), &volume.as_str().into()), "{copy}");
        let mut client = Client::connect(&host.nbd(), copy["id"].as_str().unwrap()).unwrap();
        let found = client.read_all();
        assert!(found[..expected.len()] == expected[..], "the copy differs from the snapshot");
        assert!(found.len() == 20 << 20 && found[expected.len()..].iter().all(|byte| *byte == 0));
    }
    drop(client);
    daemon.stop();
    // Another host finds the same in the store alone.
    let other = world.host("b").with(&["--log-size", "128MiB"]);
    let daemon = other.start();
    let copy = restored(&other, &taken);
    assert!(Client::connect(&other.nbd(), &copy).unwrap().read_all() == expected, "another host sees another disk");
    daemon.stop();
    let before = host.varve_json(&["volumes", "list"]);
    host.varve(&["volumes", "create", "small", "--snapshot-id", &taken, "--size", "8MiB"])
        .refused(&[&taken, "8388608"]);
    assert_eq!(host.varve_json(&["volumes", "list"]), before, "something is left half-made");
}

fn forks_of_a_volume_in_use_and_forks_of_forks(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let first = host.create("disk", SIZE);
    let daemon = host.start();
    put(&host, &first, 0, 1);
    let second = fork(&host, &first);
    put(&host, &first, 0, 9);
    put(&host, &second, 1, 2);
    let third = fork(&host, &second);
    put(&host, &second, 1, 9);
    // Never attached, so that its fork is made without an owner.
    let fourth = fork(&host, &third);
    put(&host, &fourth, 2, 4);
    assert_eq!(bytes(&host, &first, 3), [9, 0, 0]);
    assert_eq!(bytes(&host, &second, 3), [1, 9, 0]);
    assert_eq!(bytes(&host, &third, 3), [1, 2, 0]);
    assert_eq!(bytes(&host, &fourth, 3), [1, 2, 4]);
    daemon.stop();
    let fifth = fork(&host, &fourth);
    let other = world.host("b").with(&["--log-size", "128MiB"]);
    let daemon = other.start();
    assert_eq!(bytes(&other, &fifth, 3), [1, 2, 4]);
    daemon.stop();
    let origin = |volume: &str| host.varve_json(&["volumes", "show", volume])["origin"].clone();
    assert_eq!([origin(&second), origin(&third)], [first.as_str(), second.as_str()]);
    assert!(origin(&first).is_null());
}

fn a_hundred_forks(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = host.create("seed", SIZE);
    let daemon = host.start();
    put(&host, &volume, 7, 7);
    let text = host.varve(&["volumes", "fork", &volume, "--name", "job", "-n", "100"]).succeeded();
    let ids: Vec<&str> = text.lines().filter_map(|line| line.trim_start().strip_prefix("ID: ")).collect();
    assert_eq!(ids.len(), 100, "{text}");
    assert_eq!(host.varve_json(&["volumes", "list"]).as_array().map(Vec::len), Some(101));
    let use_one = |number: usize, id: &str| {
        put(&host, id, 0, number as u8 + 1);
        assert_eq!(bytes(&host, id, 8), [number as u8 + 1, 0, 0, 0, 0, 0, 0, 7]);
        // A hundred write logs would fill the disk. The daemon may still count the client that has just gone.
        process::until("a fork is detached", || host.varve(&["volumes", "detach", id]).status.success());
    };
    std::thread::scope(|scope| {
        for lane in 0..8 {
            let (ids, use_one) = (&ids, &use_one);
            scope.spawn(move || (lane..100).step_by(8).for_each(|number| use_one(number, ids[number])));
        }
    });
    assert_eq!(bytes(&host, ids[42], 8), [43, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(bytes(&host, &volume, 8), [0, 0, 0, 0, 0, 0, 0, 7]);
    daemon.stop();
}

fn forks_in_a_loop_of_the_shell(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    // A name that has "ID" in it must not mislead the script.
    let volume = host.create("GRID", SIZE);
    let script = "for job in $(seq 10); do FORK=$(varve volumes fork \"$1\" | grep ID | awk '{ print $2 }'); echo \"$FORK\"; done";
    let folder = Path::new(env!("CARGO_BIN_EXE_varved")).parent().unwrap().display().to_string();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap_or_default());
    let run = || {
        let mut shell = Program::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", script, "test", &volume])
            .envs(host.environment.clone())
            .env("PATH", &path);
        let text = process::run(&mut shell).succeeded();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let detached = run();
    let daemon = host.start();
    put(&host, &volume, 0, 5);
    let live = run();
    assert_eq!((detached.len(), live.len()), (10, 10), "{detached:?} {live:?}");
    assert_eq!(bytes(&host, &detached[9], 1), [0]);
    for id in [&live[0], &live[9]] {
        assert_eq!(bytes(&host, id, 1), [5]);
    }
    daemon.stop();
}

/// What nbdinfo says of an export.
#[track_caller]
fn nbdinfo_size(host: &Host, export: &str) -> String {
    process::run(Program::new("nbdinfo").args(["--size", &host.uri(export)])).succeeded().trim().to_owned()
}

fn growth_in_use(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = host.create("disk", SIZE);
    let mut daemon = host.start();
    let mut old = Client::connect(&host.nbd(), &volume).unwrap();
    old.write(0, &[1; BLOCK]).unwrap();
    let text = host.varve(&["volumes", "extend", &volume, "--size", "32MiB"]).succeeded();
    assert!(text.contains("32 MB") && text.contains("block_resize DEVICE 33554432B"), "{text}");
    assert_eq!(nbdinfo_size(&host, &volume), "33554432");
    let mut new = Client::connect(&host.nbd(), &volume).unwrap();
    assert_eq!((old.size, new.size), (16 << 20, 32 << 20));
    new.write((32 << 20) - BLOCK as u64, &[2; BLOCK]).unwrap();
    new.flush().unwrap();
    old.write(BLOCK as u64, &[3; BLOCK]).unwrap();
    // The size that it has is no error; a smaller one is refused, and changes nothing.
    host.varve(&["volumes", "extend", &volume, "--size", "32MiB"]).succeeded();
    host.varve(&["volumes", "extend", &volume, "--size", "24MiB"]).refused(&[&volume, "shrink"]);
    daemon.kill9();
    let daemon = host.start();
    assert_eq!(nbdinfo_size(&host, &volume), "33554432");
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    assert_eq!(client.size, 32 << 20);
    let disk = client.read_all();
    assert_eq!((disk[0], disk[BLOCK], disk[(32 << 20) - 1]), (1, 3, 2));
    drop(client);
    daemon.stop();
    assert_eq!(host.varve_json(&["volumes", "show", &volume])["size"], 32 << 20);
}

fn growth_of_a_detached_volume(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = host.create("disk", SIZE);
    let extended = host.varve_json(&["volumes", "extend", "disk", "--size", "32MiB"]);
    assert_eq!((&extended["size"], &extended["clients"]), (&(32 << 20).into(), &0.into()), "{extended}");
    host.varve(&["volumes", "extend", "disk", "--size", "16MiB"]).refused(&[&volume, "shrink"]);
    let daemon = host.start();
    assert_eq!(Client::connect(&host.nbd(), &volume).unwrap().size, 32 << 20);
    daemon.stop();
}

fn a_restore_keeps_the_present(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = host.create("disk", SIZE);
    let daemon = host.start();
    put(&host, &volume, 0, 1);
    let past = snapshot(&host, &volume);
    put(&host, &volume, 0, 2);
    put(&host, &volume, 1, 2);
    let pid = daemon.pid().to_string();
    host.varve(&["volumes", "restore", &volume, "--to", &past]).refused(&[&volume, &pid, "detach"]);
    assert_eq!(host.varve_json(&["volumes", "show", &volume])["snapshots"], 1, "a refusal keeps nothing");
    daemon.stop();
    let report = host.varve_json(&["volumes", "restore", &volume, "--to", &past]);
    let kept = report["kept"]["id"].as_str().unwrap().to_owned();
    assert_eq!((&report["id"], &report["restored_to"]), (&volume.as_str().into(), &past.as_str().into()));
    let daemon = host.start();
    assert_eq!(bytes(&host, &volume, 2), [1, 0]);
    put(&host, &volume, 2, 3);
    assert_eq!(bytes(&host, &restored(&host, &kept), 3), [2, 2, 0]);
    daemon.stop();
    let text = host.varve(&["volumes", "restore", &volume, "--to", &kept]).succeeded();
    assert!(text.contains("Kept as: vs_"), "{text}");
    let other = world.host("b").with(&["--log-size", "128MiB"]);
    let daemon = other.start();
    assert_eq!(bytes(&other, &volume, 3), [2, 2, 0]);
    daemon.stop();
    let stranger = host.create("stranger", SIZE);
    host.varve(&["volumes", "restore", &stranger, "--to", &past]).refused(&[&past, &volume, "--snapshot-id"]);
}

fn destroying_leaves_the_family_its_data(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = host.create("origin", SIZE);
    let daemon = host.start();
    put(&host, &volume, 0, 1);
    let taken = snapshot(&host, &volume);
    let (made, forked) = (restored(&host, &taken), fork(&host, &volume));
    host.varve(&["volumes", "destroy", &volume, "--yes"]).refused(&[&volume, "attached", "detach"]);
    host.varve(&["volumes", "snapshots", "destroy", &taken, "--yes"]).succeeded();
    daemon.stop();
    host.varve(&["volumes", "destroy", &volume, "--yes"]).succeeded();
    host.varve(&["volumes", "fork", &volume]).refused(&[&volume, "undelete"]);
    host.varve(&["volumes", "snapshots", "create", &volume]).refused(&[&volume, "undelete"]);
    let other = world.host("b").with(&["--log-size", "128MiB"]);
    let daemon = other.start();
    assert_eq!(bytes(&other, &made, 1), [1]);
    let again = fork(&other, &forked);
    put(&other, &forked, 0, 2);
    assert_eq!(bytes(&other, &again, 1), [1]);
    daemon.stop();
    for id in [&made, &forked, &again] {
        let report = host.varve_json(&["check", id]);
        assert_eq!(report["problems"].as_array().map(Vec::len), Some(0), "{report}");
    }
}

fn an_owner_that_cannot_be_asked(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = host.create("disk", SIZE);
    let mut daemon = host.start();
    put(&host, &volume, 0, 1);
    let taken = snapshot(&host, &volume);
    let pid = daemon.pid().to_string();
    let other = world.host("b").with(&["--log-size", "128MiB"]);
    let second = other.start();
    let socket = host.control().display().to_string();
    let commands: [&[&str]; 4] = [
        &["volumes", "fork", &volume],
        &["volumes", "snapshots", "create", &volume],
        &["volumes", "extend", &volume, "--size", "32MiB"],
        &["volumes", "update", &volume, "--no-scheduled-snapshots"],
    ];
    for command in commands {
        // From beside, with a daemon that does not own it: who does, and how to ask it.
        other.varve(command).refused(&[&volume, &pid, &format!("--control {socket}"), "--takeover"]);
    }
    daemon.kill9();
    for command in commands {
        // The owner is gone: which daemon to start again.
        host.varve(command).refused(&[&volume, &pid, "start that daemon again with: varved --store"]);
    }
    other.varve(&["volumes", "restore", &volume, "--to", &taken]).refused(&[&volume, &pid, "--takeover"]);
    // What needs no owner works all the same.
    assert_eq!(other.varve_json(&["volumes", "snapshots", "list", &volume]).as_array().map(Vec::len), Some(1));
    assert_eq!(bytes(&other, &restored(&other, &taken), 1), [1]);
    other.varve(&["volumes", "snapshots", "destroy", &taken, "--yes"]).succeeded();
    // What the message says helps.
    let again = host.start();
    host.varve(&["volumes", "attach", &volume]).succeeded();
    fork(&host, &volume);
    again.stop();
    second.stop();
}

fn requests_that_make_no_sense(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world);
    let volume = host.create("disk", SIZE);
    let (no_volume, no_snapshot) = ("vol_0000000000001", "vs_0000000000001");
    let before = host.varve_json(&["volumes", "list", "--all"]);
    let long = "x".repeat(129);
    let table: [(&[&str], &[&str]); 21] = [
        (&["fork", no_volume], &["there is no volume", no_volume]),
        (&["fork", no_snapshot], &[no_snapshot, "snapshot"]),
        (&["fork", &volume, "--name", ""], &["name"]),
        (&["fork", &volume, "--name", "line\nbreak"], &["name"]),
        (&["fork", &volume, "--name", &long], &["name", "128"]),
        (&["fork", &volume, "-n", "0"], &["1..=1000"]),
        (&["fork", &volume, "-n", "99999999999"], &["count"]),
        (&["extend", no_volume, "--size", "1"], &["there is no volume", no_volume]),
        (&["extend", &volume, "--size", "-1"], &["negative"]),
        (&["extend", &volume, "--size", "17TiB"], &["16 TiB"]),
        (&["create", "x", "--snapshot-id", no_snapshot], &["there is no snapshot", no_snapshot]),
        (&["create", "x", "--snapshot-id", &volume], &[&volume, "is the id of a volume"]),
        (&["create", "x", "--size", "1", "--snapshot-interval", "0s"], &["0s", "too short"]),
        (&["create", "x", "--size", "1", "--snapshot-retention", "soon"], &["soon"]),
        (&["restore", &volume, "--to", no_snapshot], &["there is no snapshot", no_snapshot]),
        (&["restore", &volume], &["--to"]),
        (&["update", &volume], &["--durability", "--snapshot-interval"]),
        (&["snapshots", "create", no_volume], &["there is no volume", no_volume]),
        (&["snapshots", "create", &volume, "--name", "\u{1b}[31m"], &["name"]),
        (&["snapshots", "list", no_volume], &["there is no volume", no_volume]),
        (&["snapshots", "destroy", &volume, "--yes"], &[&volume, "is the id of a volume"]),
    ];
    let try_all = || {
        for (arguments, words) in &table {
            let mut all = vec!["volumes"];
            all.extend(*arguments);
            let outcome = host.varve(&all);
            assert!(matches!(outcome.status.code(), Some(1 | 2)), "{}", outcome.report());
            assert!(!outcome.stderr.contains('\u{1b}'), "the message steers the terminal: {}", outcome.report());
            outcome.refused(words);
        }
    };
    try_all();
    assert_eq!(host.varve_json(&["volumes", "list", "--all"]), before, "something is left half-made");
    let daemon = host.start();
    host.varve(&["volumes", "attach", &volume]).succeeded();
    try_all();
    // The daemon itself does not take what the command line would not.
    let socket = host.control().display().to_string();
    for (method, resource, body) in [
        ("POST", "forks", r#"{"count":4000000000}"#),
        ("POST", "forks", r#"{"count":0}"#),
        ("PATCH", "", r#"{"size":18446744073709551615}"#),
        ("PATCH", "", r#"{"size":33554433}"#),
        ("PATCH", "", r#"{"schedule":{"interval_seconds":0}}"#),
    ] {
        let script = "curl -s --unix-socket \"$1\" -X \"$2\" -d \"$4\" \"http://varved/v1/volumes/$3\"";
        let resource = format!("{volume}/{resource}");
        let answer = shell(script, &[&socket, method, resource.trim_end_matches('/'), body]).succeeded();
        assert!(answer.contains("\"kind\":\"invalid\""), "{method} {resource} {body}: {answer}");
    }
    daemon.stop();
    assert_eq!(host.varve_json(&["volumes", "list"]).as_array().map(Vec::len), Some(1));
}

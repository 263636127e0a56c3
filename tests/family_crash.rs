//! `kill -9` of a real daemon, and of the command itself, in the middle of live snapshots and forks under a load of writes. Whoever starts again finds
//! the old state or the new one: each snapshot and each fork that is listed holds what one moment held, and `check` finds nothing wrong.
//! On a directory store and on MinIO.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod history;
    pub mod minio;
    pub mod process;
}

use std::collections::BTreeSet;
use std::process::{Child, Command as Program, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use support::client::{Client, Command};
use support::daemon::{Host, StoreKind, World, binary, both_stores};
use support::history::Chance;

both_stores!(killed_in_the_middle_of_snapshots_and_forks);

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 1024;

/// The load: write number `n` puts `n` into the first bytes of block `n % BLOCKS`. Each is sent when the one before it was acknowledged.
fn content(number: u64) -> Vec<u8> {
    let mut block = vec![number as u8; BLOCK as usize];
    block[..8].copy_from_slice(&number.to_le_bytes());
    block
}

/// The number of the last write that a disk holds; fails unless it holds all before that, and nothing else.
fn last_write(disk: &[u8], what: &str) -> u64 {
    let number = |block: &[u8]| u64::from_le_bytes(block[..8].try_into().unwrap());
    let last = disk.chunks(BLOCK as usize).map(number).max().unwrap();
    for (place, block) in disk.chunks(BLOCK as usize).enumerate() {
        let place = place as u64;
        // The newest write of this place up to the last.
        let newest = (last + BLOCKS - place) / BLOCKS * BLOCKS + place;
        let newest = newest.checked_sub(BLOCKS).filter(|number| *number > 0);
        let wanted = newest.map_or_else(|| vec![0; BLOCK as usize], content);
        assert!(block == wanted, "{what}: block {place} has write {}, not {newest:?} of {last}", number(block));
    }
    last
}

/// Writes until the connection breaks, or until it is told to stop.
fn load(client: &mut Client, acknowledged: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let number = acknowledged.load(Ordering::SeqCst) + 1;
        let offset = number % BLOCKS * BLOCK;
        let sent = client.send(Command::Write, 0, offset, BLOCK as u32, &content(number));
        match sent.and_then(|_| client.answer_within(Duration::from_secs(60))) {
            Ok(Some(answer)) => assert_eq!(answer.error, 0, "write {number}"),
            _ => return,
        }
        acknowledged.store(number, Ordering::SeqCst);
    }
}

/// Takes a snapshot and makes forks at the same time, over and over, until it is told to stop; then it kills the commands that are under way
/// if it shall.
fn command(host: &Host, volume: &str, done: &AtomicU64, stop: &AtomicBool, kills: bool) {
    let begin = |arguments: &[&str]| -> Child {
        let mut command = Program::new(binary("varve"));
        command.args(arguments).envs(host.environment.clone());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    while !stop.load(Ordering::SeqCst) {
        let snapshot = begin(&["volumes", "snapshots", "create", volume]);
        let fork = begin(&["volumes", "fork", volume, "-n", "2"]);
        for mut child in [snapshot, fork] {
            while child.try_wait().unwrap().is_none() {
                if kills && stop.load(Ordering::SeqCst) {
                    child.kill().unwrap();
                }
                std::thread::yield_now();
            }
        }
        done.fetch_add(1, Ordering::SeqCst);
    }
}

fn ids(list: &serde_json::Value) -> BTreeSet<String> {
    list.as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect()
}

struct Seen {
    snapshots: BTreeSet<String>,
    volumes: BTreeSet<String>,
}

fn seen(host: &Host, volume: &str) -> Seen {
    Seen {
        snapshots: ids(&host.varve_json(&["volumes", "snapshots", "list", volume])),
        volumes: ids(&host.varve_json(&["volumes", "list"])),
    }
}

/// What was made in a round: each holds one moment, between what was acknowledged before the round and what was sent in it.
fn judge(host: &Host, volume: &str, before: &Seen, bounds: (u64, u64)) -> (usize, usize) {
    let after = seen(host, volume);
    let snapshots: Vec<&String> = after.snapshots.difference(&before.snapshots).collect();
    let forks: Vec<&String> = after.volumes.difference(&before.volumes).collect();
    for id in snapshots.iter().chain(&forks) {
        let disk = Client::connect(&host.nbd(), id).unwrap().read_all();
        let last = last_write(&disk, id);
        assert!((bounds.0..=bounds.1).contains(&last), "{id} ends at write {last}, not within {bounds:?}");
    }
    for id in before.snapshots.iter().chain(&before.volumes) {
        assert!(after.snapshots.contains(id) || after.volumes.contains(id), "{id} is gone");
    }
    for id in snapshots.iter().chain(&forks).copied().chain([&volume.to_owned()]) {
        let report = host.varve_json(&["check", id]);
        assert_eq!(report["problems"].as_array().map(Vec::len), Some(0), "{report}");
        for left in report["leftovers"].as_array().into_iter().flatten() {
            // Only what is named, and young: it may be under way for all that `check` can tell.
            assert!(left["why"].as_str().is_some_and(|why| why.contains("interrupted")), "{report}");
        }
    }
    (snapshots.len(), forks.len())
}

fn killed_in_the_middle_of_snapshots_and_forks(kind: StoreKind) {
    let rounds = if kind == StoreKind::Directory { 10 } else { 5 };
    let world = World::new(kind);
    let host = world.host("a").with(&["--log-size", "128MiB"]);
    let volume = host.create("disk", "4MiB");
    let mut chance = Chance::new(41);
    let acknowledged = AtomicU64::new(0);
    let (mut snapshots, mut forks) = (0, 0);
    for round in 0..rounds {
        let mut daemon = host.start();
        let mut client = Client::connect(&host.nbd(), &volume).unwrap();
        // The last write of the round before may have been made without being acknowledged.
        let found = last_write(&client.read_all(), &volume);
        let known = acknowledged.load(Ordering::SeqCst);
        assert!((known..=known + 1).contains(&found), "round {round}: {found} after {known} were acknowledged");
        acknowledged.store(found, Ordering::SeqCst);
        let before = seen(&host, &volume);
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let kills_command = chance.below(3) == 0;
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| load(&mut client, &acknowledged, &stop));
            let commander = scope.spawn(|| command(&host, &volume, &done, &stop, kills_command));
            // Where it hits the commands is by chance: some writes after the first of them were done, while the next are under way.
            let wait = |count: &AtomicU64, until: u64| {
                while count.load(Ordering::SeqCst) < until && !writer.is_finished() && !commander.is_finished() {
                    std::thread::yield_now();
                }
            };
            wait(&done, 1);
            // As many as the first commands took, at most: so that the next are at their beginning, in their middle, or just done.
            let now = acknowledged.load(Ordering::SeqCst);
            wait(&acknowledged, now + chance.below(now - found + 10));
            stop.store(true, Ordering::SeqCst);
            daemon.kill9();
        });
        drop(client);
        let daemon = host.start();
        host.varve(&["volumes", "attach", &volume]).succeeded();
        let made = judge(&host, &volume, &before, (found, acknowledged.load(Ordering::SeqCst) + 1));
        println!("round {round}: {} writes, {made:?}", acknowledged.load(Ordering::SeqCst));
        (snapshots, forks) = (snapshots + made.0, forks + made.1);
        daemon.stop();
    }
    println!("{rounds} kills: {snapshots} snapshots and {forks} forks were made");
    assert!(snapshots >= rounds as usize && forks >= rounds as usize, "the kills came before everything");
    let mut daemon = host.start();
    let last = last_write(&Client::connect(&host.nbd(), &volume).unwrap().read_all(), &volume);
    assert!(last >= 10 * rounds, "only {last} writes were made");
    daemon.kill9();
}

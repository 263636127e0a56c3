//! Faults of the disks below a real daemon: syncs and writes of the write log that fail, a directory store that cannot sync, or is full.
//! Whatever fails, no answer is wrong, nothing acknowledged is lost, and the daemon goes on when the fault has passed.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod injection;
    pub mod minio;
    pub mod process;
}

use std::path::{Path, PathBuf};

use support::client::{Client, Command};
use support::daemon::{Host, StoreKind, World, both_stores};
use support::injection::Injection;
use support::process::{self, shell};

const EIO: u32 = 5;
const PART: usize = 64 << 10;

fn log_of(host: &Host, volume: &str) -> PathBuf {
    host.state().join("volumes").join(volume).join("log")
}

fn connect(host: &Host, volume: &str) -> Client {
    Client::connect(&host.nbd(), volume).unwrap_or_else(|error| panic!("export {volume}: {error}"))
}

#[track_caller]
fn holds(client: &mut Client, offset: u64, byte: u8) {
    let read = client.ask(Command::Read, 0, offset, PART as u32, &[]);
    assert!(read == Ok(vec![byte; PART]), "at {offset} not {byte}: {:?}", read.map(|bytes| bytes[0]));
}

/// The faults of the log: with `call` failing, nothing is acknowledged that was not done, and a new attachment has everything that was.
fn the_log_fails(kind: StoreKind, call: &str, write_is_kept: bool) {
    let world = World::new(kind);
    // Nothing is uploaded by itself: the log is all there is.
    let host = world.host("a").with(&["--segment-age", "1h"]);
    let volume = host.create("faulty", "64MiB");
    let mut daemon = host.start();
    let mut client = connect(&host, &volume);
    client.write(0, &[1; PART]).unwrap();
    client.flush().unwrap();
    let fault = Injection::start(&daemon, call, "EIO", "1+", Some(&log_of(&host, &volume)));
    assert_eq!(client.write(1 << 20, &[2; PART]), if write_is_kept { Ok(()) } else { Err(EIO) });
    assert_eq!(client.flush(), Err(EIO), "a flush that failed was acknowledged");
    drop(fault);
    // The fault has passed, but nobody knows what became of what was written before it.
    assert_eq!(client.flush(), Err(EIO), "a failed sync was repeated");
    assert_eq!(client.write(2 << 20, &[3; PART]), Err(EIO), "a poisoned log took a write");
    let shown = host.varve_json(&["volumes", "show", &volume]);
    assert!(shown.to_string().contains("poisoned"), "show does not say what is wrong: {shown}");
    drop(client);
    // Connecting anew attaches anew: what was acknowledged is there, and what was not was not done.
    for round in 0..2 {
        let mut client = connect(&host, &volume);
        holds(&mut client, 0, 1);
        holds(&mut client, 1 << 20, if write_is_kept { 2 } else { 0 });
        holds(&mut client, 2 << 20, 0);
        client.write(3 << 20, &[4; PART]).unwrap();
        client.flush().unwrap();
        drop(client);
        if round == 0 {
            daemon.kill9();
            daemon = host.start();
        }
    }
    daemon.stop();
    host.varve(&["check", &volume]).succeeded();
}

both_stores!(a_failed_sync_of_the_log_is_never_taken_for_a_success, a_failed_write_of_the_log_is_not_acknowledged);

fn a_failed_sync_of_the_log_is_never_taken_for_a_success(kind: StoreKind) {
    the_log_fails(kind, "fdatasync", true);
}

fn a_failed_write_of_the_log_is_not_acknowledged(kind: StoreKind) {
    the_log_fails(kind, "pwritev", false);
}

#[test]
fn a_directory_store_that_cannot_sync_is_tried_again() {
    let world = World::new(StoreKind::Directory);
    let host = world.host("a");
    let volume = host.create("patient", "64MiB");
    let daemon = host.start();
    let mut client = connect(&host, &volume);
    let fault = Injection::start(&daemon, "fsync", "EIO", "1..3", None);
    client.write(0, &[7; PART]).unwrap();
    client.flush().unwrap();
    host.varve(&["volumes", "sync", &volume]).succeeded();
    drop((fault, client, daemon));
    // From the store alone: what sync promised is there.
    let other = world.host("b");
    let survivor = other.start();
    other.varve(&["volumes", "attach", &volume, "--takeover"]).succeeded();
    holds(&mut connect(&other, &volume), 0, 7);
    survivor.stop();
    other.varve(&["check", &volume]).succeeded();
}

/// In MiB: what the store's disk holds at first, and what is written.
const STORE_MIB: u64 = 24;
const WRITTEN_MIB: u64 = 48;

/// A file system of its own for the store.
struct StoreDisk(String);

impl StoreDisk {
    fn mount(at: &Path) -> StoreDisk {
        let at = at.display().to_string();
        shell("mount -t tmpfs -o \"size=$2m,mode=700\" tmpfs \"$1\"", &[&at, &STORE_MIB.to_string()]).succeeded();
        StoreDisk(at)
    }
}

impl Drop for StoreDisk {
    fn drop(&mut self) {
        shell("umount -l \"$1\" || true", &[&self.0]);
    }
}

#[test]
fn a_full_store_stalls_uploads_and_loses_nothing() {
    let world = World::new(StoreKind::Directory);
    let place = world.path().join("store");
    let _disk = StoreDisk::mount(&place);
    let host = world.host("a").with(&["--log-size", "256MiB"]);
    let volume = host.create("patient", "64MiB");
    let daemon = host.start();
    let mut client = connect(&host, &volume);
    // Bytes that do not compress: the store cannot take them all.
    let content = |part: u64| -> Vec<u8> {
        let mut state = part + 1;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        };
        (0..1 << 20).map(next).collect()
    };
    for part in 0..WRITTEN_MIB {
        client.write(part << 20, &content(part)).expect("a full store stopped writes while the log has room");
    }
    client.flush().expect("a flush to the local disk needs no store");
    process::until("an upload meets the full disk", || daemon.said().contains("an upload failed"));
    for part in [0, WRITTEN_MIB - 1] {
        let read = client.ask(Command::Read, 0, part << 20, 1 << 20, &[]).unwrap();
        assert!(read == content(part), "part {part} of the log is wrong");
    }
    shell("mount -o remount,size=200m \"$1\"", &[&place.display().to_string()]).succeeded();
    host.varve(&["volumes", "sync", &volume]).succeeded();
    drop((client, daemon));
    let other = world.host("b");
    let survivor = other.start();
    other.varve(&["volumes", "attach", &volume, "--takeover"]).succeeded();
    let mut client = connect(&other, &volume);
    for part in 0..WRITTEN_MIB {
        let read = client.ask(Command::Read, 0, part << 20, 1 << 20, &[]).unwrap();
        assert!(read == content(part), "part {part} is wrong in the store");
    }
    drop(client);
    survivor.stop();
    other.varve(&["check", &volume]).succeeded();
}

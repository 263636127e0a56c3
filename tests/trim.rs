//! The largest volume there can be, on which file systems are made and of which everything is trimmed: what that costs does not depend on its size.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod disk;
    pub mod minio;
    pub mod process;
}

use support::client::{Client, Command};
use support::daemon::{Daemon, Host, StoreKind, World, both_stores};
use support::disk::{BlockDisk, FileSystem};
use support::process::shell;

both_stores!(
    ext4_on_the_largest_volume_and_a_trim_of_all_of_it,
    xfs_on_the_largest_volume_and_a_trim_of_all_of_it,
    zeros_that_are_written_take_no_room,
);

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 << 40;
/// The longest request of a client without extended headers.
const LONGEST: u64 = (1 << 32) - 4096;
/// The memory that the daemons have: their budgets and what the promise allows beyond them.
const MEMORY_KIB_MAX: u64 = (64 + 128 + 128) << 10;

fn host(world: &World, name: &str) -> Host {
    world.host(name).with(&["--log-size", "256MiB", "--memory-size", "64MiB", "--transfer-size", "128MiB"])
}

#[track_caller]
fn check_memory(daemon: &Daemon) {
    let (_, highest) = daemon.memory_kib();
    assert!(highest <= MEMORY_KIB_MAX, "{highest} KiB resident, of at most {MEMORY_KIB_MAX}");
}

/// Bytes of all objects in the store.
fn stored(host: &Host, volume: &str) -> u64 {
    host.varve_json(&["volumes", "show", volume])["stored_bytes"].as_u64().unwrap()
}

/// Makes a file, and another that goes again.
const FILES: &str = "dd if=/dev/urandom of=\"$1/file\" bs=1M count=5 status=none; cp \"$1/file\" \"$1/copy\"; rm \"$1/copy\"; sync -f \"$1\"; \
                     sha256sum < \"$1/file\"";

fn ext4_on_the_largest_volume_and_a_trim_of_all_of_it(kind: StoreKind) {
    on_the_largest_volume(kind, FileSystem::Ext4);
}

fn xfs_on_the_largest_volume_and_a_trim_of_all_of_it(kind: StoreKind) {
    on_the_largest_volume(kind, FileSystem::Xfs);
}

fn on_the_largest_volume(kind: StoreKind, system: FileSystem) {
    let world = World::new(kind);
    let first = host(&world, "a");
    let volume = first.create("largest", "16TiB");
    let daemon = first.start();
    let disk = BlockDisk::attach(&first.uri(&volume));
    disk.make(system);
    let mount = disk.mount();
    let hash = shell(FILES, &[&mount.path.display().to_string()]).succeeded();
    if matches!(system, FileSystem::Xfs) {
        // ext4 has a hundred thousand groups of blocks, and asks for each of them.
        shell("fstrim \"$1\"", &[&mount.path.display().to_string()]).succeeded();
    }
    mount.unmount();
    disk.detach();
    check_memory(&daemon);
    daemon.stop();
    // A file system writes its own tables, most of them zeros; nothing else is there but the file.
    let bytes = stored(&first, &volume);
    assert!(bytes < 64 * MIB, "{bytes} bytes in the store for a file of 5 MiB");

    // Elsewhere, with nothing local: the same file, and then a trim of everything.
    let second = host(&world, "b");
    let mut daemon = second.start();
    let disk = BlockDisk::attach(&second.uri(&volume));
    let mount = disk.mount();
    let again = shell("sha256sum < \"$1/file\"", &[&mount.path.display().to_string()]).succeeded();
    assert_eq!(again, hash);
    mount.unmount();
    disk.detach();
    let mut client = Client::connect(&second.nbd(), &volume).unwrap();
    for piece in 0..SIZE.div_ceil(LONGEST) {
        let offset = piece * LONGEST;
        let length = LONGEST.min(SIZE - offset) as u32;
        client.ask(Command::Trim, 0, offset, length, &[]).unwrap();
    }
    client.flush().unwrap();
    reads_as_zero(&mut client);
    second.varve(&["volumes", "sync", &volume]).succeeded();
    reads_as_zero(&mut client);
    check_memory(&daemon);
    daemon.kill9();
    let daemon = second.start();
    let mut client = Client::connect(&second.nbd(), &volume).unwrap();
    reads_as_zero(&mut client);
    client.write(SIZE - 4096, &[7; 4096]).unwrap();
    drop(client);
    daemon.stop();
    // Cleaning may have brought back what was trimmed.
    assert!(stored(&second, &volume) < bytes + MIB, "a trim of everything is a few records");
    second.varve(&["check", &volume]).succeeded();

    let third = host(&world, "c");
    let daemon = third.start();
    let mut client = Client::connect(&third.nbd(), &volume).unwrap();
    assert_eq!(client.ask(Command::Read, 0, SIZE - 4096, 4096, &[]).unwrap(), [7; 4096]);
    client.ask(Command::Trim, 0, SIZE - 4096, 4096, &[]).unwrap();
    reads_as_zero(&mut client);
    drop(client);
    check_memory(&daemon);
    daemon.stop();
}

/// The places where file systems have something, and the ends.
#[track_caller]
fn reads_as_zero(client: &mut Client) {
    let step = SIZE / 64;
    for offset in (0..64).map(|number| number * step).chain([MIB, 128 * MIB, SIZE - MIB]) {
        let found = client.ask(Command::Read, 0, offset, MIB as u32, &[]).unwrap();
        assert!(found.iter().all(|byte| *byte == 0), "at {offset}");
    }
}

/// Zeros among data, and nothing but zeros: only data reaches the store.
fn zeros_that_are_written_take_no_room(kind: StoreKind) {
    const BLOCK: usize = 4096;
    let world = World::new(kind);
    let first = host(&world, "a");
    let volume = first.create("zeros", "1GiB");
    let daemon = first.start();
    let mut client = Client::connect(&first.nbd(), &volume).unwrap();
    let block = |number: usize| -> Vec<u8> {
        match number % 3 {
            0 => (0..BLOCK).map(|at| ((at * 7919 + number * 31) >> 3) as u8).collect(),
            _ => vec![0; BLOCK],
        }
    };
    let mixed: Vec<u8> = (0..256).flat_map(block).collect();
    client.write(0, &vec![1; mixed.len()]).unwrap();
    client.write(0, &mixed).unwrap();
    for piece in 1..100 {
        client.write(piece * mixed.len() as u64, &vec![0; mixed.len()]).unwrap();
    }
    drop(client);
    daemon.stop();
    let bytes = stored(&first, &volume);
    assert!(bytes < MIB, "{bytes} bytes in the store for 86 blocks of data");
    let second = host(&world, "b");
    let daemon = second.start();
    let mut client = Client::connect(&second.nbd(), &volume).unwrap();
    assert!(client.ask(Command::Read, 0, 0, mixed.len() as u32, &[]).unwrap() == mixed);
    let behind = client.ask(Command::Read, 0, mixed.len() as u64, mixed.len() as u32, &[]).unwrap();
    assert!(behind.iter().all(|byte| *byte == 0));
    drop(client);
    daemon.stop();
}

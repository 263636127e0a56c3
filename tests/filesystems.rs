//! Real file systems and a real database on a volume: ext4 and xfs through nbdfuse and a loop device; SQLite through the death of the daemon.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod daemon;
    pub mod database;
    pub mod disk;
    pub mod minio;
    pub mod process;
}

use std::fs;
use std::path::{Path, PathBuf};

use support::daemon::{StoreKind, World, both_stores};
use support::database::{Writer, check_database};
use support::disk::{BlockDisk, Bridge, FileSystem, Mount, script_in};
use support::process::{repository, shell};

both_stores!(
    ext4_keeps_a_source_tree,
    xfs_keeps_a_source_tree,
    sqlite_survives_the_death_of_the_daemon_ext4,
    sqlite_survives_the_death_of_the_daemon_xfs,
    sqlite_rides_over_restarts,
);

/// Crates whose sources are copied along with our own; those that the registry cache has.
const CRATES: [&str; 8] = ["tokio", "syn", "serde", "axum", "rustls", "clap", "regex", "futures"];

/// A tree with thousands of files: this repository's sources and those of some crates.
fn source_tree(into: &Path) {
    let repository = repository();
    fs::create_dir_all(into).unwrap();
    shell("cp -a \"$1\" \"$2\"", &[&repository.join("src").display().to_string(), &into.display().to_string()])
        .succeeded();
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cargo"));
    for name in CRATES {
        let script = "shopt -s nullglob; for d in \"$1\"/registry/src/*/\"$2\"-[0-9]*; do cp -a \"$d\" \"$3\"; done";
        shell(script, &[&cargo.display().to_string(), name, &into.display().to_string()]).succeeded();
    }
    let files: usize = script_in(into, "find . -type f | wc -l").succeeded().trim().parse().unwrap();
    assert!(files > 500, "the tree has only {files} files: is the cargo registry empty?");
}

fn same_trees(left: &Path, right: &Path) {
    shell("diff -r --no-dereference \"$1\" \"$2\"", &[&left.display().to_string(), &right.display().to_string()])
        .succeeded();
}

fn ext4_keeps_a_source_tree(kind: StoreKind) {
    keeps_a_source_tree(kind, FileSystem::Ext4);
}

fn xfs_keeps_a_source_tree(kind: StoreKind) {
    keeps_a_source_tree(kind, FileSystem::Xfs);
}

fn keeps_a_source_tree(kind: StoreKind, system: FileSystem) {
    const DELETE_HALF: &str = "find . -type f | LC_ALL=C sort | awk 'NR % 2' | tr '\\n' '\\0' | xargs -0 rm";
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("files", "1GiB");
    let tree = world.path().join("tree");
    source_tree(&tree);
    let daemon = host.start();

    let disk = BlockDisk::attach(&host.uri(&volume));
    disk.make(system);
    let mount = disk.mount();
    let copy = mount.path.join("tree");
    shell("cp -a \"$1\" \"$2\"", &[&tree.display().to_string(), &copy.display().to_string()]).succeeded();
    script_in(&copy, DELETE_HALF).succeeded();
    script_in(&tree, DELETE_HALF).succeeded();
    shell("sync -f \"$1\"; fstrim -v \"$1\"", &[&mount.path.display().to_string()]).succeeded();
    same_trees(&tree, &copy);
    mount.unmount();
    disk.check(system);
    let mount = disk.mount();
    same_trees(&tree, &mount.path.join("tree"));
    mount.unmount();
    disk.detach();

    // Moved to another host that has nothing local.
    daemon.stop();
    let other = world.host("b");
    let daemon = other.start();
    let disk = BlockDisk::attach(&other.uri(&volume));
    disk.check(system);
    let mount = disk.mount();
    same_trees(&tree, &mount.path.join("tree"));
    mount.unmount();
    disk.detach();
    daemon.stop();
}

fn sqlite_survives_the_death_of_the_daemon_ext4(kind: StoreKind) {
    sqlite_survives_the_death_of_the_daemon(kind, FileSystem::Ext4);
}

fn sqlite_survives_the_death_of_the_daemon_xfs(kind: StoreKind) {
    sqlite_survives_the_death_of_the_daemon(kind, FileSystem::Xfs);
}

/// The daemon dies under the mounted file system and the machine with it: the journal and the database recover from what was flushed.
fn sqlite_survives_the_death_of_the_daemon(kind: StoreKind, system: FileSystem) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("database", "512MiB");
    let mut daemon = host.start();
    let disk = BlockDisk::attach(&host.uri(&volume));
    disk.make(system);
    disk.detach();
    let mut newest = 0;
    for round in 0..5 {
        let disk = BlockDisk::attach(&host.uri(&volume));
        let mount = disk.mount();
        let database = mount.path.join("rows.db");
        if newest > 0 {
            newest = check_database(&database, newest);
        }
        let mut writer = Writer::start(&database, newest + 1);
        writer.commits(40 + 25 * round);
        daemon.kill9();
        newest = writer.end();
        mount.crash();
        drop(disk);
        daemon = host.start();
    }
    let disk = BlockDisk::attach(&host.uri(&volume));
    let mount = disk.mount();
    check_database(&mount.path.join("rows.db"), newest);
    mount.unmount();
    disk.check(system);
    disk.detach();
    daemon.stop();
}

/// With a client that connects again, a daemon that is killed and started is only a pause: the file system stays mounted.
fn sqlite_rides_over_restarts(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("database", "512MiB");
    let mut daemon = host.start();
    let bridge = Bridge::start(&host.nbd(), &volume);
    let disk = BlockDisk::attach(&bridge.uri());
    disk.make(FileSystem::Ext4);
    let mount: Mount = disk.mount();
    let database = mount.path.join("rows.db");
    let mut writer = Writer::start(&database, 1);
    for _ in 0..5 {
        writer.commits(60);
        daemon.kill9();
        daemon = host.start();
    }
    writer.commits(60);
    let newest = writer.end();
    check_database(&database, newest);
    mount.unmount();
    disk.check(FileSystem::Ext4);
    let mount = disk.mount();
    check_database(&mount.path.join("rows.db"), newest);
    mount.unmount();
    disk.detach();
    drop(bridge);
    daemon.stop();
}

//! Real file systems and a real database on a volume: ext4 and xfs through nbdfuse and a loop device; SQLite through the death of the daemon.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod daemon;
    pub mod disk;
    pub mod minio;
    pub mod process;
}

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use support::daemon::{StoreKind, World, both_stores};
use support::disk::{BlockDisk, Bridge, FileSystem, Mount, script_in};
use support::process::{PATIENCE, shell};

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
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
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

/// A SQLite shell that commits one row after the other and says each number once it is committed.
struct Writer {
    child: Child,
    committed: Receiver<u64>,
    newest: u64,
}

impl Writer {
    /// Writes rows from `first` on into the database.
    fn start(database: &Path, first: u64) -> Writer {
        let mut command = Command::new("sqlite3");
        command.arg("-bail").arg(database).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("sqlite3: run tools/test once, which installs it");
        let mut input = child.stdin.take().unwrap();
        // Ends when the shell does: the pipe breaks.
        std::thread::spawn(move || {
            let head = ".timeout 60000\nPRAGMA journal_mode=WAL;\nPRAGMA synchronous=FULL;\nCREATE TABLE IF NOT EXISTS rows(id INTEGER PRIMARY KEY, text TEXT);\n";
            let mut sent = input.write_all(head.as_bytes());
            for row in first.. {
                if sent.is_err() {
                    break;
                }
                let text = "BEGIN; INSERT INTO rows VALUES({}, hex(randomblob(700))); UPDATE rows SET text = hex(randomblob(900)) WHERE id = {} / 2; COMMIT;\nSELECT 'row {}';\n";
                sent = input.write_all(text.replace("{}", &row.to_string()).as_bytes());
            }
        });
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, committed) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(row) = line.strip_prefix("row ") {
                    let _ = sender.send(row.parse().unwrap());
                }
            }
        });
        Writer { child, committed, newest: 0 }
    }

    /// Waits until this many more rows are committed.
    #[track_caller]
    fn commits(&mut self, rows: u64) {
        for _ in 0..rows {
            match self.committed.recv_timeout(PATIENCE) {
                Ok(row) => self.newest = row,
                Err(RecvTimeoutError::Timeout) => panic!("no commit for {PATIENCE:?} after row {}", self.newest),
                Err(RecvTimeoutError::Disconnected) => panic!("sqlite3 gave up after row {}", self.newest),
            }
        }
    }

    /// Ends the shell, and returns the newest row that it said was committed.
    fn end(mut self) -> u64 {
        let _ = self.child.kill();
        let _ = self.child.wait();
        while let Ok(row) = self.committed.recv() {
            self.newest = row;
        }
        self.newest
    }
}

/// Checks the database: sound, and every row up to `newest` is there. Returns the newest row that it has.
#[track_caller]
fn check_database(database: &Path, newest: u64) -> u64 {
    let query = "PRAGMA integrity_check; SELECT count(*) FROM rows WHERE id <= $2; SELECT max(id) FROM rows;";
    let query = query.replace("$2", &newest.to_string());
    let text = shell("sqlite3 -bail \"$1\" \"$2\"", &[&database.display().to_string(), &query]).succeeded();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "ok", "{text}");
    assert_eq!(lines[1], newest.to_string(), "committed rows are missing");
    lines[2].parse().unwrap()
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

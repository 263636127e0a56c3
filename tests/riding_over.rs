//! What goes on while the daemon is killed below it, again and again, with QEMU's reconnecting client between: files on ext4, xfs and btrfs that
//! are compared with a model, and PostgreSQL under pgbench, which must keep every transaction and find its indexes sound.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod bridged;
    pub mod client;
    pub mod daemon;
    pub mod disk;
    pub mod exerciser;
    pub mod history;
    pub mod minio;
    pub mod process;
}

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use support::bridged::Bridged;
use support::daemon::{StoreKind, both_stores};
use support::disk::FileSystem;
use support::exerciser::Exerciser;
use support::process::{self, SetOnDrop, shell, text_of};

/// Deaths of the daemon below each of them.
const KILLS: u64 = 5;
/// Operations on files between two deaths.
const OPERATIONS: u64 = 150;

both_stores!(files_on_ext4, files_on_xfs, files_on_btrfs, postgresql_keeps_every_transaction);

fn files_on_ext4(kind: StoreKind) {
    files_ride_over(kind, FileSystem::Ext4);
}

fn files_on_xfs(kind: StoreKind) {
    files_ride_over(kind, FileSystem::Xfs);
}

fn files_on_btrfs(kind: StoreKind) {
    files_ride_over(kind, FileSystem::Btrfs);
}

fn files_ride_over(kind: StoreKind, system: FileSystem) {
    let mut site = Bridged::new(kind);
    site.disk.make(system);
    let mount = site.disk.mount();
    let path = mount.path.join("exercised");
    let mut exerciser = Exerciser::new(&path, 71);
    let (done, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let enough_in_the_end = SetOnDrop(&enough);
        let exercising = scope.spawn(|| {
            while !enough.load(Ordering::SeqCst) {
                exerciser.step();
                done.store(exerciser.done, Ordering::SeqCst);
            }
        });
        for kill in 1..=KILLS {
            process::until("the exerciser goes on", || {
                exercising.is_finished() || done.load(Ordering::SeqCst) >= kill * OPERATIONS
            });
            site.kill();
        }
        let goal = done.load(Ordering::SeqCst) + OPERATIONS;
        process::until("the exerciser goes on", || exercising.is_finished() || done.load(Ordering::SeqCst) >= goal);
        drop(enough_in_the_end);
    });
    exerciser.check();
    let wanted = exerciser.content().to_vec();
    drop(exerciser);
    let mount = site.check(system, mount);
    assert!(std::fs::read(&path).unwrap() == wanted, "the file is not what was written to it");
    mount.unmount();
    site.end();
}

/// Transactions of pgbench between two deaths, and after the last.
const TRANSACTIONS: u64 = 400;
/// In seconds: pgbench goes on until it is told that its time is over.
const WITHOUT_END: &str = "86400";

/// A PostgreSQL on a mounted disk, reached through a Unix socket.
struct Postgres {
    server: Child,
    programs: PathBuf,
    sockets: String,
}

/// A command as the user `postgres`: the server refuses to run as root.
fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program).current_dir("/");
    command
}

impl Postgres {
    fn start(mount: &Path, log: &Path) -> Postgres {
        let programs = shell("dirname \"$(ls /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)\"", &[]);
        let programs = PathBuf::from(programs.succeeded().trim());
        let sockets = mount.join("sockets").display().to_string();
        let data = mount.join("data");
        let folder = mount.parent().unwrap().display().to_string();
        let script = "chmod 755 \"$1\"; mkdir -p \"$2\" \"$3\"; chown postgres \"$2\" \"$3\"; chmod 700 \"$2\"";
        shell(script, &[&folder, &data.display().to_string(), &sockets]).succeeded();
        if !data.join("PG_VERSION").exists() {
            let mut command = as_postgres(&programs.join("initdb"));
            process::run(command.args(["--auth=trust", "--data-checksums", "-D"]).arg(&data)).succeeded();
        }
        let output = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = as_postgres(&programs.join("postgres"));
        command.args(["-c", "listen_addresses=", "-c", "shared_buffers=16MB", "-k", &sockets, "-D"]).arg(&data);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let server = command.spawn().unwrap();
        let postgres = Postgres { server, programs, sockets };
        process::until("PostgreSQL answers", || {
            process::run(&mut postgres.client("pg_isready", &["-q"])).status.success()
        });
        postgres
    }

    fn client(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = as_postgres(&self.programs.join(program));
        command.args(["-h", &self.sockets]).args(arguments);
        command
    }

    fn query(&self, query: &str) -> String {
        let text = process::run(&mut self.client("psql", &["-X", "-A", "-t", "-c", query, "postgres"])).succeeded();
        text.trim().to_owned()
    }

    fn stop(mut self, data: &Path) {
        let mut command = as_postgres(&self.programs.join("pg_ctl"));
        process::run(command.args(["stop", "-m", "fast", "-D"]).arg(data)).succeeded();
        assert!(process::wait(&mut self.server, process::PATIENCE).is_some(), "PostgreSQL does not stop");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // runuser passes the signal on.
        let _ = Command::new("kill").args(["-QUIT", &self.server.id().to_string()]).stderr(Stdio::null()).status();
        let _ = process::wait(&mut self.server, process::PATIENCE);
    }
}

fn postgresql_keeps_every_transaction(kind: StoreKind) {
    let mut site = Bridged::new(kind);
    site.disk.make(FileSystem::Ext4);
    let mount = site.disk.mount();
    let log = site.world.path().join("postgres.log");
    let data = mount.path.join("data");
    let postgres = Postgres::start(&mount.path, &log);
    process::run(&mut postgres.client("pgbench", &["-i", "-q", "-s", "2", "postgres"])).succeeded();
    postgres.query("CREATE EXTENSION amcheck");

    let progress = site.world.path().join("pgbench.log");
    let output = std::fs::File::create(&progress).unwrap();
    // Not by runuser, which does not pass on the signal that ends it.
    let mut pgbench = Command::new(postgres.programs.join("pgbench"));
    pgbench.args(["-h", &postgres.sockets, "-U", "postgres", "-n", "-c", "4", "-T", WITHOUT_END, "--progress=1"]);
    pgbench.arg("postgres").stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    let mut pgbench = pgbench.spawn().unwrap();
    let mut go_on = || {
        let goal = history_of(&postgres) + TRANSACTIONS;
        process::until("transactions go on", || {
            let ended = pgbench.try_wait().unwrap();
            assert!(ended.is_none(), "pgbench ended\n{}\n{}", text_of(&progress), text_of(&log));
            history_of(&postgres) >= goal
        });
    };
    for _ in 0..KILLS {
        go_on();
        site.kill();
    }
    go_on();
    // Its own alarm: each client ends with the transaction that it is at.
    process::run(Command::new("kill").args(["-ALRM", &pgbench.id().to_string()])).succeeded();
    let status = process::wait(&mut pgbench, process::PATIENCE);
    let said = text_of(&progress);
    let status = status.unwrap_or_else(|| panic!("pgbench does not end\n{said}\n{}", text_of(&log)));
    assert!(status.success(), "{said}\n{}", text_of(&log));
    postgres.stop(&data);

    // From the disk, by a server that has none of it in memory.
    let mount = site.check(FileSystem::Ext4, mount);
    let postgres = Postgres::start(&mount.path, &log);
    assert_eq!(history_of(&postgres), processed(&said), "transactions are missing");
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history) \
                AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(tbalance) FROM pgbench_tellers)";
    assert_eq!(postgres.query(sums), "t", "balances do not add up");
    process::run(&mut postgres.client("pg_amcheck", &["--heapallindexed", "--parent-check", "postgres"])).succeeded();
    postgres.stop(&data);
    mount.unmount();
    site.end();
}

/// How many transactions pgbench says that it has made.
fn processed(said: &str) -> u64 {
    let mut lines = said.lines().filter_map(|line| line.strip_prefix("number of transactions actually processed: "));
    lines.next().and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("no count in\n{said}"))
}

fn history_of(postgres: &Postgres) -> u64 {
    postgres.query("SELECT count(*) FROM pgbench_history").parse().unwrap()
}

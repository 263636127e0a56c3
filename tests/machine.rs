//! Faults of the machine below and around a real daemon: a state directory that is deleted or becomes read-only, a slow disk, clocks that jump,
//! too few descriptors, a stop while the store is away, clients that come and go.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod history;
    pub mod injection;
    pub mod minio;
    pub mod process;
}

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use support::client::{AtHand, Client, Command};
use support::daemon::{Daemon, Host, StoreKind, World, both_stores};
use support::history::{Chance, History, Load};
use support::injection::Injection;
use support::process::{self, shell};

const EIO: u32 = 5;
const PART: usize = 64 << 10;

both_stores!(
    a_deleted_state_directory_is_never_taken_for_an_empty_one,
    an_unreadable_log_is_given_up_only_by_whoever_says_so,
    a_read_only_state_directory_gives_errors_and_loses_nothing,
    a_stop_while_the_store_is_away_keeps_the_data_in_the_log,
    a_slow_disk_holds_up_its_own_volume_only,
    clocks_may_jump,
    without_descriptors_old_connections_go_on,
    connections_may_come_and_go,
    sockets_and_state_are_private,
);

fn connect(host: &Host, volume: &str) -> Client {
    Client::connect(&host.nbd(), volume).unwrap_or_else(|error| panic!("export {volume}: {error}"))
}

#[track_caller]
fn holds(client: &mut Client, offset: u64, byte: u8) {
    let read = client.ask(Command::Read, 0, offset, PART as u32, &[]);
    assert!(read == Ok(vec![byte; PART]), "at {offset} not {byte}: {:?}", read.map(|bytes| bytes[0]));
}

fn a_deleted_state_directory_is_never_taken_for_an_empty_one(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("gone", "64MiB");
    let mut daemon = host.start();
    let mut client = connect(&host, &volume);
    client.write(0, &[1; PART]).unwrap();
    host.varve(&["volumes", "sync", &volume]).succeeded();
    std::fs::remove_dir_all(host.state().join("volumes")).unwrap();
    // The file is still open: what is written now is as safe as before from the death of the daemon, until nothing has it open.
    client.write(1 << 20, &[2; PART]).unwrap();
    client.flush().unwrap();
    holds(&mut client, 1 << 20, 2);
    daemon.kill9();
    let daemon = host.start();
    let refusal = Client::connect(&host.nbd(), &volume).err().map(|error| error.to_string());
    let refusal = refusal.expect("a volume whose write log is gone was attached as if nothing were missing");
    assert!(refusal.contains("takeover"), "no remedy is named: {refusal}");
    host.varve(&["volumes", "attach", &volume, "--takeover"]).succeeded();
    let mut client = connect(&host, &volume);
    holds(&mut client, 0, 1);
    client.write(2 << 20, &[3; PART]).unwrap();
    client.flush().unwrap();
    drop(client);
    daemon.stop();
    host.varve(&["check", &volume]).succeeded();
}

/// The logs of a volume that were put aside on a host because nobody could read them.
fn unreadable_logs(directory: &Path) -> Vec<Vec<u8>> {
    let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let aside =
        names.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("unreadable-")));
    aside.map(|path| std::fs::read(path).unwrap()).collect()
}

fn an_unreadable_log_is_given_up_only_by_whoever_says_so(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("rotten", "64MiB");
    let mut daemon = host.start();
    let mut client = connect(&host, &volume);
    client.write(0, &[1; PART]).unwrap();
    host.varve(&["volumes", "sync", &volume]).succeeded();
    daemon.kill9();
    // Both superblocks.
    let directory = host.state().join("volumes").join(&volume);
    let log = directory.join("log");
    let mut content = std::fs::read(&log).unwrap();
    content[..8192].fill(0xa5);
    std::fs::write(&log, &content).unwrap();
    let mut daemon = host.start();
    for _ in 0..2 {
        host.varve(&["volumes", "attach", &volume]).refused(&[&volume, "superblock", "--takeover"]);
    }
    assert!(std::fs::read(&log).unwrap() == content, "the refusal has changed the log");
    host.varve(&["volumes", "attach", &volume, "--takeover"]).succeeded();
    assert!(unreadable_logs(&directory) == [content.clone()], "the log was not kept aside as it was");
    let mut client = connect(&host, &volume);
    holds(&mut client, 0, 1);
    client.write(0, &[2; PART]).unwrap();
    drop(client);
    host.varve(&["volumes", "detach", &volume]).succeeded();
    daemon.kill9();
    // Of a volume that was handed back nobody needs a log of before, and nobody has to say so.
    std::fs::write(&log, &content).unwrap();
    let daemon = host.start();
    holds(&mut connect(&host, &volume), 0, 2);
    assert!(unreadable_logs(&directory) == [content.clone(), content], "the old log was not kept aside");
    daemon.stop();
    host.varve(&["check", &volume]).succeeded();
}

/// A file system of its own for a host's state.
struct StateDisk {
    mount: String,
    image: String,
}

impl StateDisk {
    fn make(world: &World, host: &Host) -> StateDisk {
        let image = world.path().join("state.image").display().to_string();
        let disk = StateDisk { mount: host.state().display().to_string(), image };
        let script = "truncate -s 700M \"$2\"; mkfs.ext4 -qF \"$2\"; mkdir -p \"$1\"";
        shell(script, &[&disk.mount, &disk.image]).succeeded();
        disk.mount();
        disk
    }

    fn mount(&self) {
        shell("mount -o loop \"$2\" \"$1\"", &[&self.mount, &self.image]).succeeded();
    }

    fn unmount(&self) {
        shell("umount \"$1\"", &[&self.mount]).succeeded();
    }

    /// What the kernel does by itself when the file system finds itself damaged.
    fn becomes_read_only(&self) {
        shell("mount -o remount,abort \"$1\"", &[&self.mount]).succeeded();
    }
}

impl Drop for StateDisk {
    fn drop(&mut self) {
        shell("umount -l \"$1\" || true", &[&self.mount]);
    }
}

fn a_read_only_state_directory_gives_errors_and_loses_nothing(kind: StoreKind) {
    let world = World::new(kind);
    // Nothing is uploaded by itself: the log is all there is.
    let host = world.host("a").with(&["--segment-age", "1h", "--log-size", "128MiB"]);
    let disk = StateDisk::make(&world, &host);
    let volume = host.create("readonly", "64MiB");
    let mut daemon = host.start();
    let mut client = connect(&host, &volume);
    client.write(0, &[1; PART]).unwrap();
    client.flush().unwrap();
    disk.becomes_read_only();
    let (mut place, mut refused) = (1 << 20, 0);
    while refused < 3 {
        let outcome = client.write(place, &[2; PART]).and_then(|()| client.flush());
        assert!(matches!(outcome, Ok(()) | Err(EIO)), "{outcome:?}");
        refused += u64::from(outcome.is_err());
        place += PART as u64;
        assert!(place < 60 << 20, "a file system that is read-only took everything");
    }
    let shown = host.varve_json(&["volumes", "show", &volume]);
    assert!(shown.to_string().contains("poisoned"), "show does not say what is wrong: {shown}");
    drop(client);
    daemon.kill9();
    disk.unmount();
    shell("e2fsck -fy \"$1\" || [ $? -le 1 ]", &[&disk.image]).succeeded();
    disk.mount();
    let daemon = host.start();
    let mut client = connect(&host, &volume);
    holds(&mut client, 0, 1);
    client.write(62 << 20, &[3; PART]).unwrap();
    client.flush().unwrap();
    drop(client);
    daemon.stop();
    host.varve(&["check", &volume]).succeeded();
    disk.unmount();
}

fn a_stop_while_the_store_is_away_keeps_the_data_in_the_log(kind: StoreKind) {
    let world = World::alone(kind);
    let host = world.host("a").with(&["--segment-age", "1h"]);
    let volume = host.create("patient", "64MiB");
    let mut daemon = host.start();
    let mut client = connect(&host, &volume);
    world.store_away();
    client.write(0, &[7; PART]).unwrap();
    client.flush().unwrap();
    daemon.terminate();
    // `end` has a limit: it does not wait for the store.
    let status = daemon.end();
    assert_eq!(status.code(), Some(1), "{status}: a volume that was not handed back is no success\n{}", daemon.said());
    assert!(daemon.said().contains("not handed back"), "{}", daemon.said());
    world.store_back();
    let daemon = host.start();
    holds(&mut connect(&host, &volume), 0, 7);
    daemon.stop();
    let other = world.host("b");
    let daemon = other.start();
    holds(&mut connect(&other, &volume), 0, 7);
    daemon.stop();
}

/// Far longer than what the other volume does meanwhile, mostly.
const SLOW: Duration = Duration::from_secs(5);

fn a_slow_disk_holds_up_its_own_volume_only(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let (slow, quick) = (host.create("slow", "64MiB"), host.create("quick", "64MiB"));
    let daemon = host.start();
    let (mut slow_client, mut quick_client) = (connect(&host, &slow), connect(&host, &quick));
    let log = host.state().join("volumes").join(&slow).join("log");
    let fault = Injection::slow(&daemon, "fdatasync", SLOW.as_micros() as u64, Some(&log));
    // Every sync that holds this write takes longer from here on than the delay.
    let began = Instant::now();
    slow_client.write(0, &[1; PART]).unwrap();
    let flush = slow_client.send(Command::Flush, 0, 0, 0, &[]).unwrap();
    // So that it has come to the disk; too short a time would only prove less.
    std::thread::sleep(Duration::from_millis(100));
    let mut slow_answer = None;
    // Whatever the two share holds up the first round already. More of them would only ask for a quick machine.
    for round in 0..2 {
        quick_client.write(round << 20, &[2; PART]).unwrap();
        quick_client.flush().unwrap();
        match slow_client.answer_at_hand() {
            AtHand::Nothing => {}
            // A machine that is slower than the disk shows nothing.
            AtHand::Answer(answer) if began.elapsed() >= SLOW => slow_answer = Some(answer),
            other => panic!("the other volume waited for the slow disk in round {round}: {other:?}"),
        }
    }
    let answer = slow_answer.unwrap_or_else(|| slow_client.answer().unwrap());
    assert_eq!((answer.cookie, answer.error), (flush, 0), "slow is no error");
    drop((fault, slow_client, quick_client));
    daemon.stop();
}

/// A host whose wall clock can be set; time that passes is left alone.
struct Clock(PathBuf);

impl Clock {
    fn of(world: &World, host: Host) -> (Host, Clock) {
        let library = shell("ls /usr/lib/*/faketime/libfaketimeMT.so.1", &[]).succeeded();
        let file = world.path().join("clock");
        let host = host
            .with_environment("LD_PRELOAD", library.trim())
            .with_environment("FAKETIME_TIMESTAMP_FILE", &file.display().to_string())
            .with_environment("FAKETIME_NO_CACHE", "1")
            .with_environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let clock = Clock(file);
        clock.set("+0");
        (host, clock)
    }

    /// `+1y`: a year fast.
    fn set(&self, offset: &str) {
        let aside = self.0.with_extension("new");
        std::fs::write(&aside, offset).unwrap();
        std::fs::rename(aside, &self.0).unwrap();
    }
}

const TEN_YEARS_MS: u64 = 10 * 365 * 86_400_000;
/// How long a clock is wrong at most for a store that verifies clocks.
const WRONG_MAX: Duration = Duration::from_secs(10);

#[track_caller]
fn write_on(load: &mut Load, history: &mut History, chance: &mut Chance, count: usize, daemon: &Daemon) {
    let target = history.acknowledged() + count;
    while history.acknowledged() < target {
        assert!(load.step(history, chance), "the daemon hung up\n{}", daemon.said());
    }
}

fn clocks_may_jump(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a").with(&["--log-size", "256MiB", "--segment-age", "100ms"]);
    let (host, clock) = Clock::of(&world, host);
    let volume = host.create("clock", "16MiB");
    let mut chance = Chance::new(61);
    let mut history = History::new(16 << 20);
    let mut daemon = host.start();
    for offset in ["+1y", "-1y", "+20m", "-20m", "+30y", "-10y", "+0"] {
        let mut load = Load::new(vec![connect(&host, &volume)], 8, 32).with_durable(20);
        write_on(&mut load, &mut history, &mut chance, 100, &daemon);
        clock.set(offset);
        std::thread::scope(|scope| {
            let (over, is_over) = mpsc::channel::<()>();
            let clock = &clock;
            if kind == StoreKind::Minio {
                // A daemon that stood still asks the store whose the volume is, and answers nobody before the store answers.
                scope.spawn(move || {
                    if is_over.recv_timeout(WRONG_MAX) == Err(RecvTimeoutError::Timeout) {
                        clock.set("+0");
                    }
                });
            }
            write_on(&mut load, &mut history, &mut chance, 200, &daemon);
            load.finish(&mut history);
            history.check(&connect(&host, &volume).read_all(), history.moment());
            drop(over);
        });
        // A store that verifies clocks refuses us until ours is right.
        clock.set(if kind == StoreKind::Minio { "+0" } else { offset });
        host.varve(&["volumes", "sync", &volume]).succeeded();
        host.varve(&["volumes", "snapshots", "create", &volume]).succeeded();
        daemon.kill9();
        load.wreck(&mut history);
        daemon = host.start();
    }
    history.check(&connect(&host, &volume).read_all(), history.moment());
    daemon.stop();
    if kind == StoreKind::Directory {
        // The clock did jump: snapshots of other decades are there.
        let snapshots = host.varve_json(&["volumes", "snapshots", "list", &volume]);
        let made = snapshots.as_array().unwrap().iter().map(|snapshot| snapshot["created_at"].as_u64().unwrap());
        let (first, last) = (made.clone().min().unwrap(), made.max().unwrap());
        assert!(last - first > TEN_YEARS_MS, "{snapshots}");
    }
    let other = world.host("b");
    let daemon = other.start();
    history.check(&connect(&other, &volume).read_all(), history.moment());
    daemon.stop();
    other.varve(&["check", &volume]).succeeded();
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

fn limit_descriptors(daemon: &Daemon, limit: usize) {
    let arguments = [daemon.pid().to_string(), format!("{limit}:")];
    shell("prlimit --pid \"$1\" --nofile=\"$2\"", &[&arguments[0], &arguments[1]]).succeeded();
}

fn without_descriptors_old_connections_go_on(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("scarce", "64MiB");
    let daemon = host.start();
    let mut client = connect(&host, &volume);
    client.write(0, &[1; PART]).unwrap();
    limit_descriptors(&daemon, descriptors(&daemon) + 3);
    let crowd: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(host.nbd()).unwrap()).collect();
    for round in 1..20 {
        client.write(round << 20, &[1; PART]).unwrap();
        client.flush().unwrap();
        holds(&mut client, round << 20, 1);
    }
    drop(crowd);
    limit_descriptors(&daemon, 1024);
    // Both doors open again by themselves.
    process::until("new connections are served", || Client::connect(&host.nbd(), &volume).is_ok());
    host.varve(&["volumes", "sync", &volume]).succeeded();
    drop(client);
    daemon.stop();
}

fn connections_may_come_and_go(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a").with(&["--detach-after", "100ms"]);
    let volume = host.create("storm", "16MiB");
    let mut chance = Chance::new(62);
    let mut history = History::new(16 << 20);
    let daemon = host.start();
    let before = descriptors(&daemon);
    for round in 0..5 {
        let mut load = Load::new(vec![connect(&host, &volume)], 8, 32);
        for _ in 0..60 {
            for _ in 0..10 {
                assert!(load.step(&mut history, &mut chance), "the daemon hung up\n{}", daemon.said());
            }
            match chance.below(4) {
                0 => drop(UnixStream::connect(host.nbd()).unwrap()),
                1 => drop(connect(&host, &volume)),
                2 => half_a_handshake(&host),
                // Gone with requests in flight, which only read.
                _ => drop(connect(&host, &volume).send(Command::Read, 0, 0, 1 << 20, &[]).unwrap()),
            }
        }
        load.finish(&mut history);
        history.check(&connect(&host, &volume).read_all(), history.moment());
        drop(load);
        if round % 2 == 0 {
            // With nobody left it is handed back, and attached again by the next.
            process::until("the volume is detached", || {
                host.varve_json(&["volumes", "show", &volume])["state"] == "detached"
            });
        }
    }
    process::until("no descriptor is left behind", || descriptors(&daemon) <= before + 40);
    daemon.stop();
}

fn half_a_handshake(host: &Host) {
    let mut stream = UnixStream::connect(host.nbd()).unwrap();
    stream.set_read_timeout(Some(process::PATIENCE)).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&[0, 0, 0, 3, b'I']).unwrap();
}

fn sockets_and_state_are_private(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("private", "64MiB");
    let daemon = host.start();
    let mut client = connect(&host, &volume);
    client.write(0, &[1; PART]).unwrap();
    client.flush().unwrap();
    host.varve(&["volumes", "sync", &volume]).succeeded();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&host.control()), 0o600, "the control socket is for its owner only");
    assert_eq!(mode(&host.state().join("volumes").join(&volume).join("log")), 0o600, "the write log");
    let state = host.state().display().to_string();
    let open = shell("find \"$1\" -maxdepth 0 -perm /077; find \"$1\" -type f -path '*cache*' -perm /077", &[&state]);
    assert_eq!(open.succeeded(), "", "others may look into the state directory");
    drop(client);
    daemon.stop();
}

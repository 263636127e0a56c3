//! What survives: kill -9, loss of the host, a second owner, a store that is away. Each on a directory store and on MinIO, under load,
//! checked against a record of what was acknowledged.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod history;
    pub mod minio;
    pub mod process;
}

use std::time::{Duration, Instant};

use support::client::{AtHand, Client, Command};
use support::daemon::{StoreKind, World, both_stores};
use support::history::{Chance, History, Load};
use support::process;

/// Size of the disks: small enough to read back often, large enough for several segments.
const SIZE: u64 = 64 << 20;
const SIZE_ARGUMENT: &str = "64MiB";
/// Longest write: 64 KiB, in sectors of 512 bytes.
const SECTORS_MAX: u64 = 128;
const DEPTH: usize = 16;

both_stores!(
    kill_nine_loses_nothing,
    a_stop_loses_nothing,
    a_lost_host_leaves_one_moment,
    the_old_owner_harms_nothing,
    the_store_may_go_away,
);

fn connect(world: &World, host: &str, volume: &str) -> Client {
    let host = world.host(host);
    Client::connect(&host.nbd(), volume).unwrap_or_else(|error| panic!("export {volume}: {error}"))
}

fn kill_nine_loses_nothing(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("crash", SIZE_ARGUMENT);
    let mut chance = Chance::new(9);
    let mut history = History::new(SIZE);
    for round in 0..20 {
        let mut daemon = host.start();
        let mut client = connect(&world, "a", &volume);
        assert_eq!(client.size, SIZE);
        history.check(&client.read_all(), history.moment());
        drop(client);
        let clients = (0..2).map(|_| connect(&world, "a", &volume)).collect();
        let mut load = Load::new(clients, DEPTH, SECTORS_MAX);
        let target = history.acknowledged() + 1 + chance.below(2000) as usize;
        while history.acknowledged() < target {
            assert!(load.step(&mut history, &mut chance), "round {round}: the daemon hung up\n{}", daemon.said());
        }
        daemon.kill9();
        load.wreck(&mut history);
        println!("round {round}: {} writes acknowledged", history.acknowledged());
    }
    let daemon = host.start();
    history.check(&connect(&world, "a", &volume).read_all(), history.moment());
    daemon.stop();
    host.varve(&["check", &volume]).succeeded();
}

fn a_stop_loses_nothing(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("stop", SIZE_ARGUMENT);
    let mut chance = Chance::new(15);
    let mut history = History::new(SIZE);
    let daemon = host.start();
    let mut load = Load::new(vec![connect(&world, "a", &volume)], DEPTH, SECTORS_MAX);
    while history.acknowledged() < 2000 {
        assert!(load.step(&mut history, &mut chance), "the daemon hung up\n{}", daemon.said());
    }
    daemon.stop();
    load.wreck(&mut history);
    // SIGTERM uploads what is left and hands the volume back: another host with nothing local has it all.
    let other = world.host("b").start();
    history.check(&connect(&world, "b", &volume).read_all(), history.moment());
    other.stop();
}

fn a_lost_host_leaves_one_moment(kind: StoreKind) {
    let world = World::new(kind);
    let lost = world.host("lost");
    let volume = lost.create("lost", SIZE_ARGUMENT);
    let mut chance = Chance::new(21);
    let mut history = History::new(SIZE);
    let mut daemon = lost.start();
    let mut load =
        Load::new(vec![connect(&world, "lost", &volume), connect(&world, "lost", &volume)], DEPTH, SECTORS_MAX);
    let mut synced = 0;
    for part in 1..=4 {
        // Enough for some segments by size, besides those that age cuts.
        while history.acknowledged_bytes() < part * (48 << 20) {
            assert!(load.step(&mut history, &mut chance), "the daemon hung up\n{}", daemon.said());
        }
        if part == 2 {
            synced = history.moment();
            lost.varve(&["volumes", "sync", &volume]).succeeded();
        }
    }
    std::fs::rename(lost.state(), world.path().join("wiped")).unwrap();
    daemon.kill9();
    std::fs::remove_dir_all(world.path().join("wiped")).unwrap();
    load.wreck(&mut history);
    let other = world.host("other");
    let survivor = other.start();
    let refusal = Client::connect(&other.nbd(), &volume).err().map(|error| error.to_string());
    assert!(refusal.is_some(), "a volume of another owner was attached without a takeover");
    let report = other.varve(&["volumes", "attach", &volume, "--takeover"]).succeeded();
    assert!(
        report.to_lowercase().contains("resumed"),
        "the takeover does not say from which position it resumed:\n{report}"
    );
    let mut client = connect(&world, "other", &volume);
    history.check(&client.read_all(), synced);
    client.write(4096, &[7; 4096]).unwrap();
    client.flush().unwrap();
    drop(client);
    survivor.stop();
    other.varve(&["check", &volume]).succeeded();
}

/// A pause that a daemon notices when it goes on, with much to spare.
const PAUSE_NOTICED: Duration = Duration::from_secs(3);

fn the_old_owner_harms_nothing(kind: StoreKind) {
    let world = World::new(kind);
    let (old, new) = (world.host("old"), world.host("new"));
    let volume = old.create("contended", SIZE_ARGUMENT);
    let mut chance = Chance::new(33);
    let mut history = History::new(SIZE);
    let zombie = old.start();
    let mut load = Load::new(vec![connect(&world, "old", &volume)], DEPTH, SECTORS_MAX);
    while history.acknowledged() < 1000 {
        assert!(load.step(&mut history, &mut chance), "the daemon hung up\n{}", zombie.said());
    }
    load.finish(&mut history);
    let synced = history.moment();
    old.varve(&["volumes", "sync", &volume]).succeeded();
    while history.acknowledged() < 1500 {
        assert!(load.step(&mut history, &mut chance), "the daemon hung up\n{}", zombie.said());
    }
    load.finish(&mut history);
    let mut stale = connect(&world, "old", &volume);
    zombie.pause();
    let paused = Instant::now();

    let owner = new.start();
    new.varve(&["volumes", "attach", &volume, "--takeover"]).succeeded();
    let mut client = connect(&world, "new", &volume);
    let taken = client.read_all();
    history.check(&taken, synced);
    client.write(0, &[0x55; 1 << 20]).unwrap();
    new.varve(&["volumes", "sync", &volume]).succeeded();

    // Sent after the takeover, answered after the pause: none of it may be acknowledged.
    let mut asked = Vec::new();
    for place in 0..32_u64 {
        asked.push(stale.send(Command::Write, 0, (place + 1) << 20, 4096, &[0xee; 4096]).unwrap());
    }
    asked.push(stale.send(Command::Flush, 0, 0, 0, &[]).unwrap());
    assert_eq!(stale.answer_at_hand(), AtHand::Nothing, "a paused daemon answered");
    // A shorter pause is not noticed by itself, only at the next contact with the store: see design/ownership.md.
    std::thread::sleep(PAUSE_NOTICED.saturating_sub(paused.elapsed()));
    zombie.resume();
    while let Some(answer) = stale.answer() {
        assert_ne!(
            answer.error,
            0,
            "the old owner acknowledged request {} after the takeover\n{}",
            answer.cookie,
            zombie.said()
        );
        asked.retain(|&cookie| cookie != answer.cookie);
        if asked.is_empty() {
            break;
        }
    }
    if let Ok(mut again) = Client::connect(&old.nbd(), &volume) {
        assert!(again.write(0, &[0xee; 512]).is_err(), "the old owner acknowledges writes of a new connection");
    }
    drop(stale);
    zombie.stop();

    let mut wanted = taken;
    wanted[..1 << 20].fill(0x55);
    assert!(client.read_all() == wanted, "the old owner changed the disk of the new one");
    drop(client);
    owner.stop();
    // From the store alone, on a third host.
    let third = world.host("third");
    let reader = third.start();
    assert!(connect(&world, "third", &volume).read_all() == wanted, "the old owner changed what is in the store");
    reader.stop();
    third.varve(&["check", &volume]).succeeded();
}

/// How long the store is away, as the issue asks; retries must outlast it.
const AWAY: Duration = Duration::from_secs(60);
/// The log of this test, its smallest length.
const LOG_BYTES: u64 = 128 << 20;

fn the_store_may_go_away(kind: StoreKind) {
    let world = World::alone(kind);
    let host = world.host("a").with(&["--log-size", "128MiB"]);
    let volume = host.create("patient", SIZE_ARGUMENT);
    let mut chance = Chance::new(41);
    let mut history = History::new(SIZE);
    let daemon = host.start();
    let pid = daemon.pid();
    let mut load = Load::new(vec![connect(&world, "a", &volume)], DEPTH, SECTORS_MAX);
    while history.acknowledged_bytes() < 32 << 20 {
        assert!(load.step(&mut history, &mut chance), "the daemon hung up\n{}", daemon.said());
    }
    let before = history.acknowledged_bytes();
    world.store_away();
    let began = Instant::now();
    assert!(
        load.until_stalled(&mut history, &mut chance, Duration::from_secs(4)),
        "the daemon hung up\n{}",
        daemon.said()
    );
    let accepted = history.acknowledged_bytes() - before;
    assert!(
        accepted > LOG_BYTES / 4,
        "only {accepted} bytes were accepted while the store was away, of a log of {LOG_BYTES}"
    );
    // What is in the log can still be read.
    let mut reader = connect(&world, "a", &volume);
    reader.ask(Command::Read, 0, 0, 4096, &[]).expect("reading while the store is away");
    std::thread::sleep(AWAY.saturating_sub(began.elapsed()));
    world.store_back();
    load.finish(&mut history);
    while history.acknowledged_bytes() < before + accepted + (8 << 20) {
        assert!(load.step(&mut history, &mut chance), "the daemon hung up\n{}", daemon.said());
    }
    load.finish(&mut history);
    host.varve(&["volumes", "sync", &volume]).succeeded();
    history.check(&reader.read_all(), history.moment());
    assert_eq!(daemon.pid(), pid);
    drop((reader, load));
    daemon.stop();
    let other = world.host("b").start();
    history.check(&connect(&world, "b", &volume).read_all(), history.moment());
    other.stop();
    process::until("the first daemon's socket is gone", || !host.answers());
}

/// The record itself: it must accept what could have been, and find each kind of loss.
mod the_record {
    use super::support::history::{Chance, History, SECTOR};

    /// A record of 200 acknowledged writes, and the disk after each.
    fn written() -> (History, Vec<Vec<u8>>) {
        let mut chance = Chance::new(1);
        let mut history = History::new(256 << 10);
        let mut disks = vec![vec![0; 256 << 10]];
        for _ in 0..200 {
            let index = history.next_write(&mut chance, 16);
            let mut disk = disks.last().unwrap().clone();
            history.apply(index, &mut disk);
            history.acknowledge(index);
            disks.push(disk);
        }
        (history, disks)
    }

    fn accepts(history: &History, disk: &[u8], floor: u64) -> bool {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| history.check(disk, floor))).is_ok()
    }

    #[test]
    fn accepts_every_earlier_moment_and_nothing_before_the_floor() {
        let (history, disks) = written();
        assert!(disks.iter().all(|disk| accepts(&history, disk, 0)));
        assert!(accepts(&history, &disks[200], history.moment()));
        assert!(!accepts(&history, &disks[150], history.moment()));
    }

    #[test]
    fn finds_mixtures_tears_and_strange_bytes() {
        let (history, disks) = written();
        let mut mixture = disks[200].clone();
        let differs = |sector: &usize| disks[100][sector * 512..][..512] != disks[200][sector * 512..][..512];
        let sector = (0..512).find(differs).unwrap();
        mixture[sector * 512..][..512].copy_from_slice(&disks[100][sector * 512..][..512]);
        assert!(!accepts(&history, &mixture, 0), "one sector of an earlier moment");
        let mut strange = disks[200].clone();
        strange[sector * 512 + 77] ^= 1;
        assert!(!accepts(&history, &strange, 0), "a flipped bit");
        let mut moved = disks[200].clone();
        let data = (0..511).find(|sector| moved[sector * 512..][..512].iter().any(|&byte| byte != 0)).unwrap();
        moved.copy_within(data * 512..(data + 1) * 512, (data + 1) * 512);
        assert!(!accepts(&history, &moved, 0), "a sector in another's place");
    }

    #[test]
    fn finds_a_torn_write_that_was_never_acknowledged() {
        let (mut history, disks) = written();
        let mut chance = Chance::new(2);
        let mut whole = disks[200].clone();
        let changed = |before: &[u8], after: &[u8]| -> Vec<usize> {
            (0..512).filter(|sector| before[sector * 512..][..512] != after[sector * 512..][..512]).collect()
        };
        let sectors = loop {
            let index = history.next_write(&mut chance, 16);
            whole.copy_from_slice(&disks[200]);
            history.apply(index, &mut whole);
            let sectors = changed(&disks[200], &whole);
            let data =
                sectors.iter().all(|sector| whole[sector * 512..][..SECTOR as usize].iter().any(|&byte| byte != 0));
            if sectors.len() > 4 && data {
                break sectors;
            }
        };
        assert!(accepts(&history, &disks[200], history.moment()), "not there at all");
        assert!(accepts(&history, &whole, history.moment()), "there as a whole");
        let mut torn = disks[200].clone();
        torn[sectors[0] * 512..][..512].copy_from_slice(&whole[sectors[0] * 512..][..512]);
        assert!(!accepts(&history, &torn, 0), "the first sector only");
    }
}

//! Space that comes back: overwritten data goes from the store by itself and at once, snapshots keep theirs, and what crashes left is swept.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use std::time::{Duration, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use support::client::{Client, Command};
use support::daemon::{Host, StoreKind, World, both_stores, id_in};
use support::process::shell;

both_stores!(
    overwritten_space_comes_back_by_itself,
    a_snapshot_keeps_its_own_and_nothing_else,
    leftovers_are_swept_and_nothing_else,
    any_moment_of_the_past_can_be_had_until_it_is_over,
);

const MIB: usize = 1 << 20;
const SIZE: usize = 96 * MIB;
/// What a small volume may take besides: see `CLEANING` in src/volume/shared.rs.
const SLACK: u64 = 64 << 20;

fn host(world: &World, name: &str) -> Host {
    world.host(name).with(&["--log-size", "128MiB", "--segment-age", "200ms"])
}

/// A volume that cannot go back, so that what is overwritten goes.
fn without_past(host: &Host) -> String {
    id_in(&host.varve(&["volumes", "create", "disk", "--size", "96MiB", "--history", "off"]).succeeded())
}

/// Writes of random lengths at random places, until so many bytes are written; the model gets the same.
fn scribble(client: &mut Client, model: &mut [u8], random: &mut SmallRng, bytes: usize) {
    let mut written = 0;
    while written < bytes {
        let length = random.random_range(1..=256) * 4096;
        let offset = random.random_range(0..=(model.len() - length) / 4096) * 4096;
        let part = &mut model[offset..offset + length];
        random.fill_bytes(part);
        client.write(offset as u64, part).unwrap();
        written += length;
    }
}

fn number(host: &Host, volume: &str, field: &str) -> u64 {
    let shown = host.varve_json(&["volumes", "show", volume]);
    let attached = shown["attached"].as_object().and_then(|attached| attached.get(field));
    attached.unwrap_or(&shown[field]).as_u64().unwrap()
}

fn clean(host: &Host, volume: &str) -> serde_json::Value {
    host.varve_json(&["volumes", "clean", volume])
}

fn overwritten_space_comes_back_by_itself(kind: StoreKind) {
    let world = World::new(kind);
    let first = host(&world, "a");
    let volume = without_past(&first);
    let mut daemon = first.start();
    let mut client = Client::connect(&first.nbd(), &volume).unwrap();
    let (mut model, mut random) = (vec![0; SIZE], SmallRng::seed_from_u64(1));
    scribble(&mut client, &mut model, &mut random, 8 * SIZE);
    first.varve(&["volumes", "sync", &volume]).succeeded();
    // It goes on until the goal is reached, whether or not anybody writes.
    let goal = SIZE as u64 * 135 / 100 + SLACK + SLACK / 2;
    while number(&first, &volume, "stored_bytes") > goal {
        std::thread::sleep(Duration::from_millis(100));
    }
    let report = clean(&first, &volume);
    let stored = report["stored"].as_u64().unwrap();
    assert!(stored < SIZE as u64 * 11 / 10, "{report}");
    assert_eq!(report["pinned"], 0);
    let usage = first.varve_json(&["volumes", "usage", &volume]);
    assert!(usage["dead"].as_u64().unwrap() < 4096, "no death has left anything yet: {usage}");
    assert!(client.read_all() == model, "cleaning has changed what is read");
    scribble(&mut client, &mut model, &mut random, 2 * MIB);
    client.flush().unwrap();
    daemon.kill9();
    let daemon = first.start();
    let mut client = Client::connect(&first.nbd(), &volume).unwrap();
    assert!(client.read_all() == model, "it is another disk after a death");
    client.ask(Command::Trim, 0, 0, (SIZE / 2) as u32, &[]).unwrap();
    model[..SIZE / 2].fill(0);
    drop(client);
    daemon.stop();
    first.varve(&["check", &volume]).succeeded();

    let second = host(&world, "b");
    let daemon = second.start();
    let mut client = Client::connect(&second.nbd(), &volume).unwrap();
    assert!(client.read_all() == model, "it is another disk elsewhere");
    let report = clean(&second, &volume);
    assert!(report["stored"].as_u64().unwrap() < SIZE as u64 * 6 / 10, "half was trimmed: {report}");
    drop(client);
    daemon.stop();
    second.varve(&["check", &volume]).succeeded();
    let usage = second.varve_json(&["volumes", "usage", &volume]);
    // Nothing refers to seals, nor to what the death cut off from the history: segments of the last writes that came before one that did not.
    assert!(usage["dead"].as_u64().unwrap() < 4096 + 2 * MIB as u64, "{usage}");
}

fn a_snapshot_keeps_its_own_and_nothing_else(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world, "a");
    let volume = without_past(&host);
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    let (mut model, mut random) = (vec![0; SIZE], SmallRng::seed_from_u64(2));
    scribble(&mut client, &mut model, &mut random, SIZE / 2);
    let old = model.clone();
    let snapshot = host.varve_json(&["volumes", "snapshots", "create", &volume])["id"].as_str().unwrap().to_owned();
    let fork = id_in(&host.varve(&["volumes", "fork", &volume]).succeeded());
    scribble(&mut client, &mut model, &mut random, 4 * SIZE);
    let report = clean(&host, &volume);
    assert!(report["pinned"].as_u64().unwrap() > 0, "{report}");
    assert!(client.read_all() == model);
    let mut past = Client::connect(&host.nbd(), &snapshot).unwrap();
    assert!(past.read_all() == old, "the snapshot is another disk");
    drop(past);
    host.varve(&["volumes", "snapshots", "destroy", "--yes", &snapshot]).succeeded();
    assert!(clean(&host, &volume)["pinned"].as_u64().unwrap() > 0, "the fork still needs it");
    let mut forked = Client::connect(&host.nbd(), &fork).unwrap();
    assert!(forked.read_all() == old, "the fork is another disk");
    drop((forked, client));
    daemon.stop();
    host.varve(&["check", &fork]).succeeded();
    host.varve(&["check", &volume]).succeeded();
}

fn leftovers_are_swept_and_nothing_else(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world, "a");
    let volume = without_past(&host);
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    let (mut model, mut random) = (vec![0; SIZE], SmallRng::seed_from_u64(3));
    scribble(&mut client, &mut model, &mut random, SIZE);
    drop(client);
    daemon.stop();
    let sweep = |arguments: &[&str]| host.varve_json(&[&["store", "sweep"], arguments].concat());
    let found = |report: &serde_json::Value| report["objects"]["objects"].as_array().unwrap().len();
    assert_eq!(found(&sweep(&[])), 0, "nothing is left over");
    // What a crash leaves behind a seal: a segment that is no part of the history.
    let is_segment =
        |name: &String| name.contains("/segments/") && name.rsplit('/').next().is_some_and(|n| n.len() == 20);
    let source = world.names().into_iter().find(is_segment).unwrap();
    let start = source.find("volumes/").unwrap();
    let (name, _) = source[start..].rsplit_once('/').unwrap();
    let name = format!("{name}/{:020}", 900);
    let body = vec![7; 5000];
    match kind {
        StoreKind::Directory => {
            let path = world.path().join("store").join(&name).display().to_string();
            std::fs::write(&path, &body).unwrap();
            assert_eq!(found(&sweep(&["--dry-run"])), 0, "it is young, and may be under way");
            shell("touch -d '2 hours ago' \"$1\"", &[&path]).succeeded();
            assert_eq!(found(&sweep(&["--dry-run"])), 1);
            assert!(world.names().iter().any(|known| known.contains(&name)), "a dry run removes nothing");
            let report = sweep(&[]);
            assert!(report["objects"]["objects"][0]["key"].as_str().unwrap().ends_with(&name), "{report}");
            assert!(!world.names().iter().any(|known| known.contains(&name)));
        }
        StoreKind::Minio => {
            world.put(&name, &body);
            assert_eq!(found(&sweep(&[])), 0, "it is young, and may be under way");
            assert!(world.names().iter().any(|known| known.contains(&name)));
        }
    }
    // A place that is not ours.
    let foreign = world.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("treasure"), "of somebody else").unwrap();
    let url = format!("file://{}", foreign.display());
    host.varve(&["--store", &url, "store", "sweep"]).refused(&["is not a varve store", "treasure"]);
    assert!(foreign.join("treasure").exists());
    host.varve(&["check", &volume]).succeeded();
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    assert!(client.read_all() == model);
    drop(client);
    daemon.stop();
}

fn any_moment_of_the_past_can_be_had_until_it_is_over(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world, "a");
    let volume = host.create("disk", "96MiB");
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    let (mut model, mut random) = (vec![0; SIZE], SmallRng::seed_from_u64(4));
    let mut moments = Vec::new();
    for _ in 0..4 {
        scribble(&mut client, &mut model, &mut random, SIZE / 2);
        host.varve(&["volumes", "sync", &volume]).succeeded();
        // What is written from now on is of a later second.
        std::thread::sleep(Duration::from_millis(1100));
        let now = UNIX_EPOCH.elapsed().unwrap().as_secs();
        std::thread::sleep(Duration::from_millis(1100));
        moments.push((now, model.clone()));
        clean(&host, &volume);
    }
    let usage = host.varve_json(&["volumes", "usage", &volume]);
    assert!(usage["history"].as_u64().unwrap() > SIZE as u64 / 2, "{usage}");
    assert!(usage["dead"].as_u64().unwrap() < 4096, "{usage}");
    for (number, (time, expected)) in moments.iter().enumerate() {
        let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(*time)).to_string();
        let made = match number % 2 {
            0 => host.varve(&["volumes", "fork", &volume, "--at", &at]).succeeded(),
            _ => host.varve(&["volumes", "create", "old", "--from", &volume, "--at", &at]).succeeded(),
        };
        let mut past = Client::connect(&host.nbd(), &id_in(&made)).unwrap();
        assert!(past.read_all() == *expected, "at {at} it was another disk");
    }
    host.varve(&["volumes", "fork", &volume, "--at", "2001-01-01T00:00:00Z"]).refused(&["any moment since"]);
    host.varve(&["volumes", "fork", &volume, "--at", "2901-01-01T00:00:00Z"]).refused(&["future"]);
    host.varve(&["volumes", "create", "x", "--from", &volume, "--at", "0s", "--size", "8MiB"])
        .refused(&["cannot have only"]);
    let other = without_past(&host);
    host.varve(&["volumes", "fork", &other, "--at", "1m"]).refused(&["keeps no history", "--history"]);

    // Without a history only the forks keep what was.
    scribble(&mut client, &mut model, &mut random, SIZE);
    scribble(&mut client, &mut model, &mut random, SIZE);
    clean(&host, &volume);
    // The daemon may clean as soon as it may.
    let before = number(&host, &volume, "stored_bytes");
    host.varve(&["volumes", "update", &volume, "--history", "off"]).succeeded();
    clean(&host, &volume);
    assert!(number(&host, &volume, "stored_bytes") < before);
    assert_eq!(host.varve_json(&["volumes", "usage", &volume])["history"], 0);
    assert!(client.read_all() == model);
    drop(client);
    daemon.stop();
    host.varve(&["check", &volume]).succeeded();
}

//! Two stores as two regions: forks that go from one to the other, are used at once, and need their origin no more in the end.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use support::client::{Client, Command};
use support::daemon::{Host, StoreKind, World, both_stores, id_in};

both_stores!(
    a_fork_in_another_region_is_usable_at_once_and_independent_in_the_end,
    a_fork_is_made_independent_once_nothing_of_before_needs_its_origin,
    what_cannot_be_is_refused,
);

const MIB: usize = 1 << 20;
const SIZE: usize = 48 * MIB;

/// How a region's store is reached, as the settings file says it.
fn region(name: &str, world: &World) -> String {
    let endpoint = world.environment.iter().find(|(name, _)| name == "AWS_ENDPOINT_URL");
    let endpoint = endpoint.map_or_else(String::new, |(_, url)| format!("endpoint = \"{url}\"\n"));
    format!("[regions.{name}]\nstore = \"{}\"\n{endpoint}", world.store)
}

/// A host in the region `own`, which knows these regions.
fn host(world: &World, name: &str, own: &str, regions: &[String]) -> Host {
    let file = world.path().join(format!("{name}.toml"));
    std::fs::write(&file, format!("region = \"{own}\"\n{}", regions.concat())).unwrap();
    let host = world.host(name).with(&["--log-size", "128MiB", "--segment-age", "200ms"]);
    // The same key in every region.
    let host =
        host.with_environment("VARVE_KEY", "env:KEY_OF_REGIONS").with_environment("KEY_OF_REGIONS", &"5a".repeat(32));
    host.with_environment("VARVE_CONFIG", &file.display().to_string())
}

fn scribble(client: &mut Client, model: &mut [u8], random: &mut SmallRng, bytes: usize) {
    let mut written = 0;
    while written < bytes {
        let length = random.random_range(1..=128) * 4096;
        let offset = random.random_range(0..=(model.len() - length) / 4096) * 4096;
        let part = &mut model[offset..offset + length];
        random.fill_bytes(part);
        client.write(offset as u64, part).unwrap();
        written += length;
    }
}

fn hydration(host: &Host, volume: &str) -> serde_json::Value {
    host.varve_json(&["volumes", "show", volume])["attached"]["hydration"].clone()
}

/// How long the keys are that a volume's manifest holds.
fn keys_of(host: &Host, volume: &str) -> usize {
    let manifest = host.varve(&["dump", "manifest", volume]).succeeded();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    manifest["encryption"]["keys"].as_str().unwrap().len()
}

/// Names of regions in a manifest mean what they mean where the volume is.
fn is_refused_outside_its_region(outside: &Host, volume: &str) {
    outside.varve(&["volumes", "attach", volume]).refused(&["nyc", "of that region"]);
    assert!(Client::connect(&outside.nbd(), volume).is_err(), "it is served in the wrong region");
}

fn a_fork_in_another_region_is_usable_at_once_and_independent_in_the_end(kind: StoreKind) {
    let (ams, nyc) = (World::alone(kind), World::alone(kind));
    let regions = [region("ams", &ams), region("nyc", &nyc)];
    let (origin, away) = (host(&ams, "a", "ams", &regions), host(&nyc, "b", "nyc", &regions));
    let volume =
        id_in(&origin.varve(&["volumes", "create", "disk", "--size", "48MiB", "--history", "off"]).succeeded());
    away.create("any", "1MiB");
    let daemon = origin.start();
    let mut client = Client::connect(&origin.nbd(), &volume).unwrap();
    let (mut model, mut random) = (vec![0; SIZE], SmallRng::seed_from_u64(1));
    scribble(&mut client, &mut model, &mut random, 2 * SIZE);
    let at_fork = model.clone();
    let mut old = model.clone();
    let fork = id_in(&origin.varve(&["volumes", "fork", &volume, "--region", "nyc"]).succeeded());
    let snapshot = origin.varve_json(&["volumes", "snapshots", "create", &volume])["id"].as_str().unwrap().to_owned();
    let copy = ["volumes", "create", "copy", "--snapshot-id", &snapshot, "--region", "nyc"];
    let copy = id_in(&origin.varve(&copy).succeeded());
    scribble(&mut client, &mut model, &mut random, SIZE);
    origin.varve(&["volumes", "clean", &volume]).succeeded();
    let names = |world: &World, id: &str| world.names().iter().filter(|name| name.contains(id)).count();
    assert_eq!((names(&ams, &fork), names(&nyc, &fork) > 0), (0, true), "the fork is in the other store");
    is_refused_outside_its_region(&origin, &fork);

    let keys_before = keys_of(&away, &fork);

    // Usable at once, and while it copies; a death in between changes nothing.
    let shown = away.varve(&["volumes", "show", &fork]).succeeded();
    assert!(shown.contains("Hydration: goes on when it is attached"), "{shown}");
    let mut elsewhere = away.start();
    let mut forked = Client::connect(&away.nbd(), &fork).unwrap();
    scribble(&mut forked, &mut old, &mut random, 4 * MIB);
    forked.flush().unwrap();
    elsewhere.kill9();
    let elsewhere = away.start();
    let mut forked = Client::connect(&away.nbd(), &fork).unwrap();
    assert!(forked.read_all() == old, "it is another disk in the other region");
    forked.ask(Command::Trim, 0, 0, (8 * MIB) as u32, &[]).unwrap();
    old[..8 * MIB].fill(0);
    let done = away.varve(&["volumes", "hydrate", &fork, "--wait"]).succeeded();
    assert!(done.contains("all that it needs is its own"), "{done}");
    assert!(hydration(&away, &fork).is_null());
    assert!(keys_of(&away, &fork) < keys_before, "the key of the origin is still among those of the fork");
    scribble(&mut forked, &mut old, &mut random, MIB);
    drop(forked);
    let mut copied = Client::connect(&away.nbd(), &copy).unwrap();
    assert!(copied.read_all() == at_fork, "it is another disk in the other region");
    away.varve(&["volumes", "hydrate", &copy, "--wait"]).succeeded();
    assert!(copied.read_all() == at_fork);
    drop(copied);
    elsewhere.stop();
    for id in [&fork, &copy] {
        away.varve(&["check", id]).succeeded();
        let pins = origin.varve(&["dump", "manifest", &volume]).succeeded();
        assert!(!pins.contains(&**id), "the origin still holds something for {id}:\n{pins}");
    }
    origin.varve(&["check", &volume]).succeeded();
    drop(client);
    daemon.stop();

    // The origin's region is cut off, and nothing is left here but the store.
    ams.store_away();
    std::fs::remove_dir_all(away.state()).unwrap();
    let elsewhere = away.start();
    let mut forked = Client::connect(&away.nbd(), &fork).unwrap();
    assert!(forked.read_all() == old, "something was still in the origin's region");
    let mut copied = Client::connect(&away.nbd(), &copy).unwrap();
    assert!(copied.read_all() == at_fork, "something was still in the origin's region");
    drop((forked, copied));
    elsewhere.stop();
    ams.store_back();
}

fn a_fork_is_made_independent_once_nothing_of_before_needs_its_origin(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a").with(&["--log-size", "128MiB", "--segment-age", "200ms"]);
    let volume = host.create("disk", "48MiB");
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    let (mut model, mut random) = (vec![0; SIZE], SmallRng::seed_from_u64(2));
    scribble(&mut client, &mut model, &mut random, SIZE);
    let fork = id_in(&host.varve(&["volumes", "fork", &volume]).succeeded());
    let mut forked = Client::connect(&host.nbd(), &fork).unwrap();
    let snapshot = host.varve_json(&["volumes", "snapshots", "create", &fork])["id"].as_str().unwrap().to_owned();
    let refused = host.varve(&["volumes", "hydrate", &fork, "--wait"]).refused(&["snapshots"]);
    assert!(refused.contains(&fork), "{refused}");
    let shown = host.varve(&["volumes", "show", &fork]).succeeded();
    assert!(shown.contains("waits for snapshots"), "{shown}");
    let pins = || host.varve(&["dump", "manifest", &volume]).succeeded();
    assert!(pins().contains(&fork));
    host.varve(&["volumes", "snapshots", "destroy", "--yes", &snapshot]).succeeded();
    scribble(&mut forked, &mut model, &mut random, MIB);
    host.varve(&["volumes", "sync", &fork]).succeeded();
    host.varve(&["volumes", "hydrate", &fork, "--wait"]).succeeded();
    assert!(!pins().contains(&fork));
    assert!(forked.read_all() == model);
    host.varve(&["volumes", "hydrate", &fork]).refused(&["no origin"]);
    drop((client, forked));
    daemon.stop();
    host.varve(&["check", &fork]).succeeded();
}

fn what_cannot_be_is_refused(kind: StoreKind) {
    let (ams, nyc) = (World::alone(kind), World::alone(kind));
    let regions = [region("ams", &ams), region("nyc", &nyc)];
    let origin = host(&ams, "a", "ams", &regions);
    let volume = origin.create("disk", "48MiB");
    let fork = |region: &str| origin.varve(&["volumes", "fork", &volume, "--region", region]);
    fork("mars").refused(&["mars", "[regions.mars]"]);
    fork("nyc").refused(&["not a store of varve yet", "volumes create"]);
    origin.varve(&["volumes", "create", "x", "--size", "1MiB", "--region", "mars"]).refused(&["[regions.mars]"]);
    let nameless = ams.host("c");
    nameless.varve(&["volumes", "fork", &volume, "--region", "nyc"]).refused(&["[regions.nyc]"]);
    let away = host(&nyc, "b", "nyc", &regions);
    away.create("any", "1MiB");
    let made = fork("nyc").succeeded();
    assert!(made.contains("nyc"), "{made}");
    let empty = id_in(&origin.varve(&["volumes", "create", "x", "--size", "1MiB", "--region", "nyc"]).succeeded());
    away.varve(&["volumes", "show", &empty]).succeeded();

    // A host that does not know the origin's region.
    let daemon = origin.start();
    let mut client = Client::connect(&origin.nbd(), &volume).unwrap();
    client.write(0, &[7; 4096]).unwrap();
    let fork = id_in(&fork("nyc").succeeded());
    let lost = host(&nyc, "d", "nyc", &regions[1..]);
    let elsewhere = lost.start();
    let refused = lost.varve(&["volumes", "attach", &fork]).refused(&["ams", "[regions.ams]"]);
    assert!(refused.contains("does not name it"), "{refused}");
    elsewhere.stop();
    let elsewhere = away.start();
    let mut forked = Client::connect(&away.nbd(), &fork).unwrap();
    assert_eq!(forked.ask(Command::Read, 0, 0, 4096, &[]).unwrap(), [7; 4096]);
    drop((client, forked));
    elsewhere.stop();
    daemon.stop();
}

//! Encryption as its user sees it, on a real daemon: nothing readable is left anywhere, the wrong key opens nothing and changes nothing, keys are
//! wrapped anew while the volume is in use, shredded volumes are gone, and what is put in another's place is noticed.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use std::path::Path;

use support::client::Client;
use support::daemon::{Host, StoreKind, World, both_stores, id_in};
use support::process;

both_stores!(
    nothing_readable_is_left_anywhere,
    the_wrong_key_opens_nothing_and_changes_nothing,
    keys_are_wrapped_anew_while_the_volume_is_in_use,
    a_shredded_volume_is_gone,
    passphrases_and_commands_open_volumes,
    a_plain_object_is_not_believed_in_an_encrypted_volume,
    a_manifest_that_was_made_up_is_refused,
    an_older_manifest_that_was_put_back_is_noticed,
);

const SIZE: &str = "64MiB";
/// What is looked for afterwards. No compressor can take it apart.
const PATTERN: &[u8; 47] = b"k7Qz!vN2#xW9pL4$eR8tY1uI6oA3sD5fG0hJ-cV_bM=nB+?";

/// Blocks of the pattern and of noise, so that some frames are compressed and some are not.
fn content(blocks: usize) -> Vec<u8> {
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let mut data = Vec::with_capacity(blocks * 4096);
    for block in 0..blocks {
        let end = data.len() + 4096;
        data.extend_from_slice(PATTERN);
        while data.len() < end {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            match block % 3 {
                0 => data.extend_from_slice(&noise.to_le_bytes()),
                _ => data.extend_from_slice(PATTERN),
            }
        }
        data.truncate(end);
    }
    data
}

fn create_plain(host: &Host, name: &str) -> String {
    id_in(&host.varve(&["volumes", "create", name, "--size", SIZE, "--no-encryption"]).succeeded())
}

fn write(host: &Host, export: &str, offset: u64, data: &[u8]) {
    let mut client = Client::connect(&host.nbd(), export).unwrap();
    client.write(offset, data).unwrap();
    client.flush().unwrap();
}

fn read(host: &Host, export: &str, length: usize) -> Vec<u8> {
    let mut client = Client::connect(&host.nbd(), export).unwrap();
    let mut all = client.read_all();
    all.truncate(length);
    all
}

/// The files below a folder in which the pattern can be read.
fn readable_in(folder: &Path) -> Vec<String> {
    let pattern = String::from_utf8_lossy(PATTERN).into_owned();
    let found = process::shell("grep -rlaF -e \"$1\" \"$2\" || true", &[&pattern, &folder.display().to_string()]);
    found.succeeded().lines().map(str::to_owned).collect()
}

/// The objects in which the pattern can be read.
fn readable_objects(world: &World, kind: StoreKind) -> Vec<String> {
    if kind == StoreKind::Directory {
        return readable_in(&world.path().join("store"));
    }
    let is_readable = |name: &String| world.get(name).windows(PATTERN.len()).any(|window| window == PATTERN);
    objects(world).filter(is_readable).collect()
}

/// The objects in a bucket, relative to the store's prefix.
fn objects(world: &World) -> impl Iterator<Item = String> {
    world.names().into_iter().filter_map(|name| name.strip_prefix("disks/").map(str::to_owned))
}

fn nothing_readable_is_left_anywhere(kind: StoreKind) {
    for encrypted in [true, false] {
        let world = World::new(kind);
        let host = world.host("a");
        let volume = match encrypted {
            true => host.create("disk", SIZE),
            false => create_plain(&host, "disk"),
        };
        let mut daemon = host.start();
        let data = content(700);
        write(&host, &volume, 0, &data);
        host.varve(&["volumes", "sync", &volume]).succeeded();
        host.varve(&["volumes", "snapshots", "create", &volume]).succeeded();
        // Through the cache, which is then on the disk as well.
        daemon.stop();
        daemon = host.start();
        assert!(read(&host, &volume, data.len()) == data);
        let fork = id_in(&host.varve(&["volumes", "fork", &volume]).succeeded());
        write(&host, &fork, 8192, &content(3));
        // What is only in the log stays there.
        write(&host, &volume, 40 << 20, &content(50));
        daemon.kill9();
        let (local, stored) = (readable_in(&host.state()), readable_objects(&world, kind));
        if encrypted {
            assert!(local.is_empty() && stored.is_empty(), "{local:?} {stored:?}");
        } else {
            assert!(!local.is_empty() && !stored.is_empty(), "the search finds nothing where there is something");
        }
        let daemon = host.start();
        assert!(read(&host, &volume, data.len()) == data, "it is all there with the key");
        assert_eq!(read(&host, &fork, 8192 + 3 * 4096)[8192..], content(3));
        daemon.stop();
    }
}

fn everything(world: &World, kind: StoreKind) -> Vec<String> {
    if kind == StoreKind::Directory {
        let store = world.path().join("store").display().to_string();
        let sums = process::shell("cd \"$1\" && find . -type f -exec sha256sum {} + | sort", &[&store]);
        return sums.succeeded().lines().map(str::to_owned).collect();
    }
    objects(world).map(|name| format!("{name} {}", crc(&world.get(&name)))).collect()
}

fn crc(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A key file in the world's folder.
fn key_file(world: &World, host: &Host, name: &str) -> String {
    let path = world.path().join(name).display().to_string();
    host.varve(&["keys", "create", &path]).succeeded();
    format!("file:{path}")
}

fn the_wrong_key_opens_nothing_and_changes_nothing(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let said = host.varve(&["volumes", "create", "disk", "--size", SIZE]);
    assert!(said.stderr.contains("keep a copy"), "nobody is told what the key means: {}", said.report());
    let volume = id_in(&said.succeeded());
    let right = host.varve_json(&["volumes", "show", &volume])["encryption"]["key"].as_str().unwrap().to_owned();
    let daemon = host.start();
    write(&host, &volume, 0, &content(20));
    let snapshot = id_in(&host.varve(&["volumes", "snapshots", "create", &volume]).succeeded());
    daemon.stop();

    let before = everything(&world, kind);
    let stranger = world.host("b");
    let wrong = key_file(&world, &stranger, "wrong.key");
    let stranger = stranger.with_environment("VARVE_KEY", &wrong);
    let daemon = stranger.start();
    assert!(Client::connect(&stranger.nbd(), &volume).is_err(), "an export was opened with the wrong key");
    assert!(Client::connect(&stranger.nbd(), &snapshot).is_err(), "a snapshot was opened with the wrong key");
    let image = world.path().join("image").display().to_string();
    for command in [
        &["volumes", "attach", &volume][..],
        &["volumes", "fork", &volume],
        &["volumes", "create", "copy", "--snapshot-id", &snapshot],
        &["volumes", "export", &snapshot, &image],
        &["check", &volume],
        &["keys", "rotate", &volume, "--to", &wrong],
    ] {
        stranger.varve(command).refused(&[&right, "--key"]);
    }
    daemon.stop();
    assert_eq!(everything(&world, kind), before, "something was changed");
    assert_eq!(stranger.varve_json(&["volumes", "list"])[0]["name"], "disk", "names need no key");
    let daemon = host.start();
    assert!(read(&host, &volume, 20 * 4096) == content(20));
    daemon.stop();
}

fn keys_are_wrapped_anew_while_the_volume_is_in_use(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("disk", SIZE);
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    client.write(0, &content(10)).unwrap();
    let new = key_file(&world, &host, "new.key");
    let before = host.varve_json(&["volumes", "show", &volume])["encryption"].clone();
    let after = host.varve(&["keys", "rotate", &volume, "--to", &new, "--json"]).succeeded();
    assert!(!after.contains(before["key"].as_str().unwrap()), "{after}");
    client.write(40960, &content(10)).unwrap();
    client.flush().unwrap();
    host.varve(&["volumes", "sync", &volume]).succeeded();
    // The daemon has only the old key: it goes on with the volume, and makes no fork that the new one would not open.
    host.varve(&["volumes", "fork", &volume]).refused(&["--key"]);
    drop(client);
    daemon.stop();
    let daemon = host.start();
    assert!(Client::connect(&host.nbd(), &volume).is_err(), "the old key opens it still");
    daemon.stop();
    let host = host.with_environment("VARVE_KEY", &new);
    let daemon = host.start();
    let both = [content(10), content(10)].concat();
    assert!(read(&host, &volume, both.len()) == both);
    // A fork is opened by the same key as its origin.
    let fork = id_in(&host.varve(&["volumes", "fork", &volume]).succeeded());
    assert!(read(&host, &fork, both.len()) == both);
    daemon.stop();
}

fn a_shredded_volume_is_gone(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("disk", SIZE);
    let daemon = host.start();
    write(&host, &volume, 0, &content(30));
    let fork = id_in(&host.varve(&["volumes", "fork", &volume]).succeeded());
    host.varve(&["volumes", "destroy", &volume, "--yes", "--shred"]).refused(&["detach"]);
    host.varve(&["volumes", "detach", &volume]).succeeded();
    // The fork has the keys too, as long as it reads what its origin has.
    host.varve(&["volumes", "destroy", &volume, "--yes", "--shred"]).refused(&[&fork, "Hydrate"]);
    host.varve(&["volumes", "attach", &fork]).succeeded();
    host.varve(&["volumes", "hydrate", &fork, "--wait"]).succeeded();
    let text = host.varve(&["volumes", "destroy", &volume, "--yes", "--shred"]).succeeded();
    assert!(text.contains("nothing can bring back"), "{text}");
    host.varve(&["volumes", "undelete", &volume]).refused(&["keys", "destroyed"]);
    host.varve(&["check", &volume]).refused(&["keys", "destroyed"]);
    host.varve(&["volumes", "usage"]).succeeded();
    assert!(Client::connect(&host.nbd(), &volume).is_err());
    assert!(read(&host, &fork, 30 * 4096) == content(30), "the fork has all that it needs");
    let plain = create_plain(&host, "plain");
    host.varve(&["volumes", "destroy", &plain, "--yes", "--shred"]).refused(&["not encrypted"]);
    // Destroyed first and shredded later is as good.
    let later = host.create("later", SIZE);
    host.varve(&["volumes", "destroy", &later, "--yes"]).succeeded();
    host.varve(&["volumes", "destroy", &later, "--yes", "--shred"]).succeeded();
    host.varve(&["volumes", "undelete", &later]).refused(&["keys", "destroyed"]);
    daemon.stop();
}

fn passphrases_and_commands_open_volumes(kind: StoreKind) {
    let world = World::new(kind);
    let script = world.path().join("wrapper");
    std::fs::write(
        &script,
        "test -n \"$VARVE_VOLUME\" || exit 3\ncase $1 in wrap) exec base64 -w0;; unwrap) exec base64 -d;; esac\nexit 4\n",
    )
    .unwrap();
    let command = format!("command:/bin/sh {}", script.display());
    for (name, key) in [("passphrase", "passphrase-env:HORSE"), ("command", &command)] {
        let host = world.host(name).with_environment("VARVE_KEY", key).with_environment("HORSE", "correct battery");
        let volume = host.create(name, SIZE);
        assert_eq!(host.varve_json(&["volumes", "show", &volume])["encryption"]["wrapping"], name);
        let daemon = host.start();
        write(&host, &volume, 0, &content(5));
        let fork = id_in(&host.varve(&["volumes", "fork", &volume]).succeeded());
        daemon.stop();
        let daemon = host.start();
        for disk in [&volume, &fork] {
            assert!(read(&host, disk, 5 * 4096) == content(5), "{name}");
        }
        assert!(!daemon.said().contains("correct battery"), "a passphrase is in the log");
        daemon.stop();
        let elsewhere =
            host.with_environment("HORSE", "wrong battery").with_environment("VARVE_KEY", "passphrase-env:HORSE");
        let said = elsewhere.varve(&["check", &volume]).refused(&["--key"]);
        assert!(!said.contains("wrong battery"), "{said}");
    }
}

/// Puts bytes in the place of an object, as who can write the bucket can.
fn put(world: &World, kind: StoreKind, name: &str, bytes: &[u8]) {
    match kind {
        StoreKind::Directory => std::fs::write(world.path().join("store").join(name), bytes).unwrap(),
        StoreKind::Minio => world.put(name, bytes),
    }
}

/// One volume's objects in the place of another's: whoever can write the bucket can do that.
fn a_plain_object_is_not_believed_in_an_encrypted_volume(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("disk", SIZE);
    let plain = create_plain(&host, "plain");
    let daemon = host.start();
    for disk in [&volume, &plain] {
        write(&host, disk, 0, &content(20));
    }
    daemon.stop();
    let name = |disk: &str| format!("volumes/{disk}/segments/0000000001/00000000000000000000");
    // The forger knows the format: the plain segment gets the other's name inside, too, and a right checksum.
    let mut forged = world.get(&name(&plain));
    let target = world.get(&name(&volume));
    forged[16..24].copy_from_slice(&target[16..24]);
    forged[36..52].copy_from_slice(&target[36..52]);
    let sum = crc32c::crc32c(&forged[..92]).to_le_bytes();
    forged[92..96].copy_from_slice(&sum);
    let put = |bytes: &[u8]| put(&world, kind, &name(&volume), bytes);
    put(&forged);
    // Nothing local: all comes from the store.
    let fresh = world.host("fresh");
    let daemon = fresh.start();
    let mut client = Client::connect(&fresh.nbd(), &volume).unwrap();
    let read = client.ask(support::client::Command::Read, 0, 0, 4096, &[]);
    assert_eq!(read, Err(5), "a forged segment was believed");
    drop(client);
    fresh.varve(&["check", &volume]).refused(&["not encrypted", "damaged"]);
    daemon.stop();
    put(&target);
    let again = world.host("again");
    let daemon = again.start();
    let mut client = Client::connect(&again.nbd(), &volume).unwrap();
    assert_eq!(client.ask(support::client::Command::Read, 0, 0, 4096, &[]).unwrap(), content(1));
    drop(client);
    daemon.stop();
}

/// The manifest of a volume, changed by somebody who knows the format and has no key.
fn forged(world: &World, volume: &str, change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut envelope: serde_json::Value =
        serde_json::from_slice(&world.get(&format!("volumes/{volume}/manifest"))).unwrap();
    change(&mut envelope["body"]);
    let body = serde_json::to_string(&envelope["body"]).unwrap();
    let sum = crc32c::crc32c(body.as_bytes());
    format!(
        "{{\"varve\":\"manifest\",\"version\":1,\"incompatible_features\":{},\"compatible_features\":0,\"crc32c\":\"{sum:08x}\",\"body\":{body}}}",
        envelope["incompatible_features"]
    )
    .into_bytes()
}

fn put_manifest(world: &World, kind: StoreKind, volume: &str, bytes: &[u8]) {
    put(world, kind, &format!("volumes/{volume}/manifest"), bytes);
}

fn a_manifest_that_was_made_up_is_refused(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("disk", SIZE);
    let daemon = host.start();
    write(&host, &volume, 0, &content(20));
    let snapshot = id_in(&host.varve(&["volumes", "snapshots", "create", &volume]).succeeded());
    write(&host, &volume, 0, &content(7)[4096..]);
    daemon.stop();
    let true_one = world.get(&format!("volumes/{volume}/manifest"));
    type Forgery = fn(&mut serde_json::Value);
    let forgeries: [(&str, Forgery); 4] = [
        ("the size", |body| body["size"] = serde_json::json!(128 << 20)),
        ("no checkpoint", |body| body["checkpoint"] = serde_json::Value::Null),
        ("a mixture", |body| {
            let volume = body["volume"].clone();
            body["inherited"] = serde_json::json!([{"volume": volume, "epoch": 1, "first": 0, "count": 1}]);
        }),
        ("what a snapshot holds", |body| {
            let sequence = body["pins"][0]["moment"]["sequence"].as_u64().unwrap();
            body["pins"][0]["moment"]["sequence"] = serde_json::json!(sequence + 1);
        }),
    ];
    for (what, forge) in forgeries {
        put_manifest(&world, kind, &volume, &forged(&world, &volume, forge));
        for command in [&["volumes", "fork", &volume][..], &["check", &volume], &["check", &snapshot]] {
            let said = host.varve(command).refused(&["not written by one who has the key"]);
            assert!(said.contains(&volume), "{what}: {said}");
        }
        put_manifest(&world, kind, &volume, &true_one);
    }
    // What needs no key is not sealed.
    put_manifest(&world, kind, &volume, &forged(&world, &volume, |body| body["name"] = serde_json::json!("renamed")));
    host.varve(&["check", &volume]).succeeded();
}

fn an_older_manifest_that_was_put_back_is_noticed(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("disk", SIZE);
    let daemon = host.start();
    write(&host, &volume, 0, &content(5));
    daemon.stop();
    let older = world.get(&format!("volumes/{volume}/manifest"));
    let daemon = host.start();
    write(&host, &volume, 0, &content(9));
    daemon.stop();
    let newest = world.get(&format!("volumes/{volume}/manifest"));
    put_manifest(&world, kind, &volume, &older);
    let fresh = world.host("fresh");
    let daemon = fresh.start();
    fresh.varve(&["volumes", "attach", &volume]).refused(&["put back to an older version"]);
    put_manifest(&world, kind, &volume, &newest);
    assert!(read(&fresh, &volume, 9 * 4096) == content(9));
    daemon.stop();
}

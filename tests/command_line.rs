//! The command line as people and scripts use it, and what it says when something makes no sense: which thing, and what to do about it.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use std::fs;
use std::path::Path;

use support::client::{Client, Command};
use support::daemon::{StoreKind, World, both_stores, id_in};
use support::process::{self, shell};

both_stores!(
    a_volume_from_creation_to_undeletion,
    scripts_find_the_id,
    attach_detach_and_sync,
    dump_and_check_show_what_is_there,
    an_attached_volume_is_not_destroyed,
    an_unknown_export_is_refused,
    a_second_owner_is_refused,
    names_and_sizes_that_make_no_sense,
    an_absent_store,
    an_empty_store,
    a_foreign_store,
    a_store_of_a_newer_format,
    a_store_that_forbids_access,
    the_state_directory_of_another_store,
    a_state_directory_in_use,
    a_full_local_disk,
);

fn a_volume_from_creation_to_undeletion(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("notes", "512MiB");
    let shown = host.varve_json(&["volumes", "show", &volume]);
    assert_eq!(shown["id"], volume.as_str(), "{shown}");
    assert_eq!(shown["name"], "notes", "{shown}");
    assert_eq!(shown["size"], 512 << 20, "{shown}");
    assert_eq!(shown["state"], "detached", "{shown}");
    assert_eq!(shown["lag"]["bytes"], 0, "{shown}");
    assert!(host.varve(&["volumes", "show", "notes"]).succeeded().contains(&volume), "show by name");
    assert!(host.varve(&["volumes", "list"]).succeeded().contains(&volume));
    host.varve(&["volumes", "destroy", &volume, "--yes"]).succeeded();
    assert!(!host.varve(&["volumes", "list"]).succeeded().contains(&volume), "a destroyed volume is listed");
    assert!(host.varve(&["volumes", "list", "--all"]).succeeded().contains(&volume), "--all does not list it");
    let daemon = host.start();
    let refusal = Client::connect(&host.nbd(), &volume).err().map(|error| error.to_string());
    assert!(refusal.is_some(), "a destroyed volume was opened");
    host.varve(&["volumes", "undelete", &volume]).succeeded();
    assert!(host.varve(&["volumes", "list"]).succeeded().contains(&volume));
    let client = Client::connect(&host.nbd(), "notes").unwrap();
    assert_eq!(client.size, 512 << 20);
    drop(client);
    daemon.stop();
    host.varve(&["volumes", "destroy", "no-such-volume", "--yes"]).refused(&["no-such-volume"]);
}

fn scripts_find_the_id(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    // --size without a unit is in GB, as in flyctl.
    let text = host.varve(&["volumes", "create", "demo", "--size", "2"]).succeeded();
    let id = id_in(&text);
    assert!(id.starts_with("vol_") && id.len() == 17, "{text}");
    let by_script = shell("printf '%s\\n' \"$1\" | grep ID | awk '{ print $2 }'", &[&text]).succeeded();
    assert_eq!(by_script.trim(), id);
    assert_eq!(host.varve_json(&["volumes", "show", &id])["size"], 2_u64 << 30);
    let several = host.varve_json(&["volumes", "create", "many", "--size", "1", "-n", "3"]);
    assert_eq!(several.as_array().map(Vec::len), Some(3), "{several}");
    let listed = host.varve_json(&["volumes", "list"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(4), "{listed}");
    // A name that several volumes have is no name of one.
    host.varve(&["volumes", "show", "many"]).refused(&["many", "vol_"]);
}

fn attach_detach_and_sync(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("work", "256MiB");
    host.varve(&["volumes", "attach", &volume]).refused(&["varved"]);
    let daemon = host.start();
    host.varve(&["volumes", "attach", &volume]).succeeded();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    client.write(4096, &[1; 100_000]).unwrap();
    host.varve(&["volumes", "sync", &volume]).succeeded();
    let shown = host.varve_json(&["volumes", "show", &volume]);
    assert_eq!(shown["state"], "attached", "{shown}");
    assert_eq!(shown["owner"]["pid"], daemon.pid(), "{shown}");
    assert_eq!(shown["lag"]["bytes"], 0, "sync waits until the lag is zero: {shown}");
    assert!(shown["stored_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{shown}");
    host.varve(&["volumes", "detach", &volume]).refused(&[&volume]);
    drop(client);
    process::until("the daemon has seen the client go", || {
        host.varve(&["volumes", "detach", &volume]).status.success()
    });
    assert_eq!(host.varve_json(&["volumes", "show", &volume])["state"], "detached");
    daemon.stop();
}

fn dump_and_check_show_what_is_there(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("work", "256MiB");
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    client.write(8192, &[7; 65536]).unwrap();
    drop(client);
    daemon.stop();
    let manifest = host.varve(&["dump", "manifest", &volume]).succeeded();
    assert!(manifest.contains(&volume) && manifest.contains("work"), "{manifest}");
    host.varve_json(&["dump", "manifest", &volume]);
    host.varve(&["dump", "checkpoint", &volume]).succeeded();
    let segment = host.varve(&["dump", "segment", &format!("{volume}/1/0")]).succeeded();
    assert!(segment.to_lowercase().contains("frame") || segment.to_lowercase().contains("extent"), "{segment}");
    let report = host.varve_json(&["check", &volume]);
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(0), "{report}");
    assert!(report["segments"].as_u64().is_some_and(|count| count > 0), "{report}");
    host.varve(&["dump", "segment", &format!("{volume}/1/99999")]).refused(&["99999"]);
    if kind == StoreKind::Directory {
        a_damaged_segment_is_named(&world, &volume);
    }
}

/// Flips a byte in the middle of the first segment: `check` names the object, and reading gives EIO, not wrong bytes.
fn a_damaged_segment_is_named(world: &World, volume: &str) {
    let folder = world.path().join("store/volumes").join(volume).join("segments");
    let find = "find \"$1\" -type f -size +0 | LC_ALL=C sort | head -n 1";
    let path = shell(find, &[&folder.display().to_string()]).succeeded();
    let path = Path::new(path.trim());
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle - 2..middle + 2] {
        *byte ^= 0x5a;
    }
    fs::write(path, bytes).unwrap();
    let host = world.host("elsewhere");
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    host.varve(&["check", volume]).refused(&[&name]);
    let daemon = host.start();
    // A daemon may find the damage when it attaches, or when it reads.
    if let Ok(mut client) = Client::connect(&host.nbd(), volume) {
        let answer = client.ask(Command::Read, 0, 8192, 65536, &[]);
        assert!(
            answer == Err(5) || answer == Ok(vec![7; 65536]),
            "wrong bytes instead of EIO: {:?}",
            answer.map(|_| ())
        );
    }
    drop(daemon);
}

fn an_attached_volume_is_not_destroyed(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("busy", "256MiB");
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    let message = host.varve(&["volumes", "destroy", &volume, "--yes"]).refused(&[&volume, "attached"]);
    let hostname = process::text_of(Path::new("/proc/sys/kernel/hostname"));
    let by_whom = message.contains(hostname.trim()) || message.contains(&daemon.pid().to_string());
    assert!(by_whom, "the message does not say by whom: {message}");
    client.write(0, &[1; 512]).unwrap();
    drop(client);
    daemon.stop();
    host.varve(&["volumes", "destroy", &volume, "--yes"]).succeeded();
}

fn an_unknown_export_is_refused(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    host.create("known", "256MiB");
    let daemon = host.start();
    for name in ["unknown", "", "../../etc/passwd", "vol_0000000000000", "vs_0000000000000"] {
        let error = Client::connect(&host.nbd(), name).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("0x80000006"), "export '{name}' is answered with ERR_UNKNOWN, not: '{error}'");
    }
    assert!(Client::connect(&host.nbd(), "known").is_ok());
    daemon.stop();
}

fn a_second_owner_is_refused(kind: StoreKind) {
    let world = World::new(kind);
    let (first, second) = (world.host("first"), world.host("second"));
    let volume = first.create("single", "256MiB");
    let owner = first.start();
    let mut client = Client::connect(&first.nbd(), &volume).unwrap();
    client.write(0, &[9; 4096]).unwrap();
    let other = second.start();
    second.varve(&["volumes", "attach", &volume]).refused(&[&volume, "takeover"]);
    let refusal = Client::connect(&second.nbd(), &volume).err().map(|error| error.to_string());
    assert!(refusal.is_some(), "a second owner opened the volume");
    client.write(4096, &[9; 4096]).unwrap();
    client.flush().unwrap();
    drop(client);
    other.stop();
    owner.stop();
}

fn names_and_sizes_that_make_no_sense(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let long = "x".repeat(129);
    for name in ["", " ", "a/b", "../up", "tab\there", "line\nbreak", "vol_0000000000000", "vs_1", long.as_str()] {
        host.varve(&["volumes", "create", name, "--size", "1"]).refused(&["name"]);
    }
    for size in ["0", "-1", "", "ten", "1.5.2", "1XB", "99999999999999999999", "17TiB", "512KiB", "1000001B"] {
        let message = host.varve(&["volumes", "create", "fine", "--size", size]).refused(&["size"]);
        assert!(size.len() < 2 || message.contains(size), "the message does not name '{size}': {message}");
    }
    host.varve(&["volumes", "create", "fine"]).refused(&["--size"]);
    host.varve(&["volumes", "show", "vol_short"]).refused(&["vol_short"]);
    host.varve(&["volumes", "frobnicate"]).refused(&["frobnicate"]);
    let odd = host.clone().with_environment("VARVE_STORE", "ftp://example.org/x");
    odd.varve(&["volumes", "list"]).refused(&["ftp://example.org/x", "file://", "s3://"]);
    odd.daemon_that_refuses().refused(&["ftp://example.org/x", "file://", "s3://"]);
    host.clone().with(&["--log-size", "1MiB"]).daemon_that_refuses().refused(&["log", "1MiB"]);
}

/// The store under another name: a directory, or a bucket, that is not there.
fn elsewhere(world: &World) -> String {
    match world.kind {
        StoreKind::Directory => format!("file://{}/nowhere/store", world.path().display()),
        StoreKind::Minio => "s3://varve-no-such-bucket/disks".into(),
    }
}

fn an_absent_store(kind: StoreKind) {
    let world = World::new(kind);
    let absent = elsewhere(&world);
    let name = if kind == StoreKind::Directory { "nowhere" } else { "varve-no-such-bucket" };
    let host = world.host("a").with_environment("VARVE_STORE", &absent);
    host.varve(&["volumes", "list"]).refused(&[name]);
    host.varve(&["volumes", "show", "x"]).refused(&[name]);
    host.daemon_that_refuses().refused(&[name]);
    assert!(!world.path().join("nowhere").exists(), "a store was made where nobody asked for one");
}

fn an_empty_store(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    // What only looks must not make a store of an empty folder or bucket.
    let message = host.varve(&["volumes", "list"]).refused(&["volumes create"]);
    assert!(message.contains("://"), "the message does not name the store: {message}");
    host.varve(&["volumes", "show", "x"]).refused(&["volumes create"]);
    host.create("first", "256MiB");
    host.varve(&["volumes", "list"]).succeeded();
}

/// Puts an object of our choice at the place of the store's header.
fn replace_header(world: &World, header: &str) {
    match world.kind {
        StoreKind::Directory => {
            let find = "find \"$1\" -name 'varve.json*' -type f | head -n 1";
            let store = world.path().join("store");
            let path = shell(find, &[&store.display().to_string()]).succeeded();
            fs::write(path.trim(), header).unwrap();
        }
        StoreKind::Minio => world.put("varve.json", header.as_bytes()),
    }
}

fn a_foreign_store(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    host.create("mine", "256MiB");
    replace_header(&world, "{\"somebody\": \"else's\"}");
    host.varve(&["volumes", "list"]).refused(&["varve.json"]);
    host.varve(&["volumes", "create", "x", "--size", "1"]).refused(&["varve.json"]);
    host.daemon_that_refuses().refused(&["varve.json"]);
}

fn a_store_of_a_newer_format(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    host.create("mine", "256MiB");
    let header = world.get("varve.json");
    let mut value: serde_json::Value = serde_json::from_slice(&header).unwrap();
    let object = value.as_object_mut().unwrap();
    let version = object.keys().find(|key| key.contains("version")).expect("the header has a version").clone();
    object.insert(version, 999.into());
    replace_header(&world, &value.to_string());
    host.varve(&["volumes", "list"]).refused(&["999"]);
    let message = host.daemon_that_refuses().refused(&["999"]);
    let remedy = ["upgrade", "newer"].iter().any(|word| message.contains(word));
    assert!(remedy, "the message does not say what to do: {message}");
}

fn a_store_that_forbids_access(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    host.create("mine", "256MiB");
    let name = if kind == StoreKind::Directory { "store" } else { "s3://" };
    let locked = match kind {
        // Root may do anything: for it the store lies on a path that is a file, which forbids all alike.
        StoreKind::Directory => {
            let file = world.path().join("store-file");
            fs::write(&file, "no directory").unwrap();
            host.clone().with_environment("VARVE_STORE", &format!("file://{}", file.display()))
        }
        StoreKind::Minio => host.clone().with_environment("AWS_SECRET_ACCESS_KEY", "not-the-secret"),
    };
    locked.varve(&["volumes", "list"]).refused(&[name]);
    locked.varve(&["volumes", "create", "x", "--size", "1"]).refused(&[name]);
    let message = locked.daemon_that_refuses().refused(&[name]);
    assert!(!message.contains("not-the-secret"), "the message tells the secret: {message}");
    if kind == StoreKind::Minio {
        let unknown = host.clone().with_environment("AWS_ACCESS_KEY_ID", "nobody");
        unknown.varve(&["volumes", "list"]).refused(&["AWS_ACCESS_KEY_ID"]);
        let nobody_there = host.clone().with_environment("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
        nobody_there.varve(&["volumes", "list"]).refused(&["s3://"]);
    }
    host.varve(&["volumes", "list"]).succeeded();
}

fn the_state_directory_of_another_store(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("mine", "256MiB");
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    client.write(0, &[1; 4096]).unwrap();
    drop(client);
    daemon.stop();
    let other = World::new(kind);
    other.host("a").create("theirs", "256MiB");
    let state = host.state().display().to_string();
    let stranger = other.host("a").with_environment("VARVE_STATE", &state);
    stranger.daemon_that_refuses().refused(&[&state]);
    // Nothing was lost: the right store still finds its state.
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    assert_eq!(client.ask(Command::Read, 0, 0, 4096, &[]), Ok(vec![1; 4096]));
    drop(client);
    daemon.stop();
}

fn a_state_directory_in_use(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("mine", "256MiB");
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    let state = host.state().display().to_string();
    // A second daemon on the same state, with sockets of its own.
    let second = world.host("b").with_environment("VARVE_STATE", &state);
    second.daemon_that_refuses().refused(&[&state]);
    client.write(0, &[1; 4096]).unwrap();
    drop(client);
    daemon.stop();
}

/// A file system of its own for the state directory, too small for a write log.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mebibytes: u32) -> SmallDisk {
        fs::create_dir_all(at).unwrap();
        let script = "truncate -s \"$2\"M \"$1.image\"; mkfs.ext4 -qF \"$1.image\"; mount -o loop \"$1.image\" \"$1\"; chmod 700 \"$1\"";
        shell(script, &[&at.display().to_string(), &mebibytes.to_string()]).succeeded();
        SmallDisk(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        shell("umount -l \"$1\" || true", &[&self.0.display().to_string()]);
    }
}

fn a_full_local_disk(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a").with(&["--log-size", "256MiB"]);
    let volume = host.create("mine", "256MiB");
    let small = SmallDisk::mount(&host.state(), 64);
    // Where there is no room for the log, the volume is not attached, and the message says so; the daemon lives on.
    let daemon = host.start();
    let message = host.varve(&["volumes", "attach", &volume]).refused(&[]);
    let named = message.contains("space") || message.contains("room");
    assert!(named && message.contains(&host.state().display().to_string()), "which disk is full? {message}");
    assert!(Client::connect(&host.nbd(), &volume).is_err());
    assert!(host.answers(), "the daemon no longer answers\n{}", daemon.said());
    daemon.stop();
    drop(small);
    // With room again it is as if nothing had happened.
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    client.write(0, &[1; 4096]).unwrap();
    drop(client);
    daemon.stop();
}

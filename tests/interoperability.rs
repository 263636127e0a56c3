//! Other people's clients: nbdinfo, nbdcopy, QEMU's tools, fio, libnbd's Python bindings, the `nbd` crate. On both stores.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;

use support::daemon::{Daemon, Host, StoreKind, World, binary, both_stores};
use support::process::{repository, run, shell};

both_stores!(
    nbdinfo_shows_everything,
    nbdcopy_copies_in_and_out,
    qemu_img_agrees,
    qemu_io_at_odd_offsets,
    fio_verifies,
    libnbd_features,
    the_nbd_crate_over_tcp,
    sockets_from_systemd,
);

/// A host with its daemon, and a volume of 256 MiB named disk.
fn served(world: &World) -> (Host, Daemon, String) {
    let host = world.host("a");
    let volume = host.create("disk", "256MiB");
    let daemon = host.start();
    (host, daemon, volume)
}

/// A file of some size whose content compresses a little.
fn random_file(path: &Path, mebibytes: u32) {
    let script = "head -c \"$2\"M /dev/urandom > \"$1\"; truncate -s +1M \"$1\"; head -c 1M /dev/urandom >> \"$1\"";
    shell(script, &[&path.display().to_string(), &(mebibytes - 2).to_string()]).succeeded();
}

fn nbdinfo_shows_everything(kind: StoreKind) {
    let world = World::new(kind);
    let (host, daemon, volume) = served(&world);
    let text = run(Command::new("nbdinfo").args(["--json", &host.uri("disk")])).succeeded();
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(info["structured"], true, "{text}");
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 256 << 20, "{text}");
    assert_eq!(export["is_read_only"], false, "{text}");
    for flag in
        ["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"]
    {
        assert_eq!(export[flag], true, "{flag}: {text}");
    }
    let contexts: Vec<&str> =
        export["contexts"].as_array().unwrap().iter().filter_map(|context| context.as_str()).collect();
    assert!(contexts.contains(&"base:allocation"), "{contexts:?}");
    assert!(contexts.iter().any(|context| context.starts_with("varve:")), "our own context is missing: {contexts:?}");
    assert_eq!(export["block_size_minimum"], 1, "{text}");
    assert_eq!(export["block_size_preferred"], 4096, "{text}");
    assert_eq!(export["block_size_maximum"], 32 << 20, "{text}");
    let list = run(Command::new("nbdinfo").args(["--list", &host.uri("")])).succeeded();
    assert!(list.contains("disk") || list.contains(&volume), "the list of exports lacks the volume:\n{list}");
    let by_id = run(Command::new("nbdinfo").args(["--size", &host.uri(&volume)])).succeeded();
    assert_eq!(by_id.trim(), (256 << 20).to_string());
    daemon.stop();
}

fn nbdcopy_copies_in_and_out(kind: StoreKind) {
    let world = World::new(kind);
    let (host, daemon, _) = served(&world);
    let (source, copy) = (world.path().join("in"), world.path().join("out"));
    random_file(&source, 256);
    let copy_with = |from: &str, to: &str| {
        run(Command::new("nbdcopy").args(["--connections=4", "--requests=32", from, to])).succeeded();
    };
    copy_with(&source.display().to_string(), &host.uri("disk"));
    copy_with(&host.uri("disk"), &copy.display().to_string());
    let same = "cmp \"$1\" \"$2\"; test \"$(sha256sum < \"$1\")\" = \"$(sha256sum < \"$2\")\"";
    shell(same, &[&source.display().to_string(), &copy.display().to_string()]).succeeded();
    // The same once more, from a daemon that has to find it again.
    daemon.stop();
    let daemon = host.start();
    fs::remove_file(&copy).unwrap();
    copy_with(&host.uri("disk"), &copy.display().to_string());
    shell(same, &[&source.display().to_string(), &copy.display().to_string()]).succeeded();
    daemon.stop();
}

fn qemu_img_agrees(kind: StoreKind) {
    let world = World::new(kind);
    let (host, daemon, _) = served(&world);
    let uri = host.uri("disk");
    let image = world.path().join("image");
    shell("head -c 64M /dev/urandom > \"$1\"; truncate -s 256M \"$1\"", &[&image.display().to_string()]).succeeded();
    let image = image.display().to_string();
    let qemu_img = |arguments: &[&str]| run(Command::new("qemu-img").args(arguments)).succeeded();
    let info: serde_json::Value = serde_json::from_str(&qemu_img(&["info", "--output=json", &uri])).unwrap();
    assert_eq!(info["virtual-size"], 256 << 20);
    qemu_img(&["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", &image, &uri]);
    qemu_img(&["compare", "-f", "raw", "-F", "raw", &image, &uri]);
    let text = qemu_img(&["map", "-f", "raw", "--output=json", &uri]);
    let map: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let data: u64 =
        map.iter().filter(|extent| extent["data"] == true).filter_map(|extent| extent["length"].as_u64()).sum();
    let all: u64 = map.iter().filter_map(|extent| extent["length"].as_u64()).sum();
    assert_eq!(all, 256 << 20, "{text}");
    assert_eq!(data, 64 << 20, "what was written is data, and the rest is a hole: {text}");
    let back = format!("{image}.back");
    qemu_img(&["convert", "-f", "raw", "-O", "raw", &uri, &back]);
    qemu_img(&["compare", "-f", "raw", "-F", "raw", &image, &back]);
    daemon.stop();
}

fn qemu_io_at_odd_offsets(kind: StoreKind) {
    let world = World::new(kind);
    let (host, daemon, _) = served(&world);
    // Through QEMU requests are cut and joined; every byte must still be where it belongs.
    let commands = [
        "write -P 0x11 0 1M",
        "write -P 0x22 1 1",
        "write -P 0x33 511 2",
        "write -P 0x44 4095 4098",
        "write -f -P 0x55 100001 70001",
        "write -z 200001 3",
        "write -z -u 262144 131072",
        "write -P 0x66 1048575 33554431",
        "discard 40M 1M",
        "aio_write -P 0x77 50000001 9999",
        "aio_flush",
        "flush",
        "read -P 0x11 0 1",
        "read -P 0x22 1 1",
        "read -P 0x11 2 509",
        "read -P 0x33 511 2",
        "read -P 0x11 513 3582",
        "read -P 0x44 4095 4098",
        "read -P 0x11 8193 91808",
        "read -P 0x55 100001 70001",
        "read -P 0x11 170002 29999",
        "read -P 0 200001 3",
        "read -P 0x11 200004 62140",
        "read -P 0 262144 131072",
        "read -P 0x11 393216 655359",
        "read -P 0x66 1048575 33554431",
        "read -P 0 34603006 15396995",
        "read -P 0x77 50000001 9999",
        "read -P 0 50010000 4096",
    ];
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw", "-d", "unmap", &host.uri("disk")]);
    for line in commands {
        command.args(["-c", line]);
    }
    let outcome = run(&mut command);
    assert!(!outcome.stdout.contains("failed"), "{}", outcome.report());
    outcome.succeeded();
    daemon.stop();
}

fn fio_verifies(kind: StoreKind) {
    let world = World::new(kind);
    let (host, daemon, _) = served(&world);
    let mut command = Command::new("fio");
    command.current_dir(world.path());
    command.args(["--name=verify", "--ioengine=nbd", &format!("--uri={}", host.uri("disk"))]);
    command.args(["--rw=randwrite", "--bsrange=512-256k", "--blockalign=512", "--iodepth=16"]);
    command.args(["--numjobs=4", "--size=64m", "--offset_increment=64m", "--group_reporting"]);
    command.args([
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--verify_backlog=512",
        "--fsync=64",
        "--randseed=7",
    ]);
    run(&mut command).succeeded();
    daemon.stop();
}

fn libnbd_features(kind: StoreKind) {
    let world = World::new(kind);
    let (host, daemon, volume) = served(&world);
    let script = repository().join("tests/support/features.py");
    let mut command = Command::new("/usr/bin/python3");
    let text = run(command.arg(script).arg(host.nbd()).arg(&volume)).succeeded();
    assert_eq!(text.trim(), "ok");
    daemon.stop();
}

fn the_nbd_crate_over_tcp(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a").with(&["--nbd", "127.0.0.1:0"]);
    host.create("disk", "256MiB");
    let daemon = host.start();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, host.nbd_port("nbd"))).unwrap();
    let export = nbd::client::handshake(&mut stream, b"disk").unwrap();
    assert_eq!(export.size, 256 << 20);
    assert!(!export.readonly && export.send_flush && export.send_trim, "{export:?}");
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let pattern: Vec<u8> = (0..=250).cycle().take(100_000).collect();
    client.seek(SeekFrom::Start(12_345)).unwrap();
    client.write_all(&pattern).unwrap();
    client.flush().unwrap();
    client.seek(SeekFrom::Start(12_340)).unwrap();
    let mut back = vec![1; 100_010];
    client.read_exact(&mut back).unwrap();
    assert_eq!(&back[..5], &[0; 5]);
    assert_eq!(&back[5..100_005], &pattern[..]);
    assert_eq!(&back[100_005..], &[0; 5]);
    drop(stream);
    daemon.stop();
}

/// The socket is there before the daemon is, and is the only one it listens on.
fn sockets_from_systemd(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("disk", "256MiB");
    let script = repository().join("tests/support/activation.py");
    for handed in ["unix", "tcp"] {
        let mut python = Command::new("/usr/bin/python3");
        python.arg(&script).args([handed, "disk"]).arg(binary("varved")).envs(host.environment.clone());
        assert_eq!(run(&mut python).succeeded().trim(), "ok");
        // It went as it does for SIGTERM: everything is in the store.
        assert_eq!(host.varve_json(&["volumes", "show", &volume])["state"], "detached", "{handed}");
    }
    let daemon = host.start();
    let copy = world.path().join("copy");
    run(Command::new("nbdcopy").arg(host.uri("disk")).arg(&copy)).succeeded();
    let bytes = fs::read(&copy).unwrap();
    assert!(bytes[4096..].starts_with(b"unix.") && bytes[8192..].starts_with(b"tcp."), "what was written is not there");
    daemon.stop();
}

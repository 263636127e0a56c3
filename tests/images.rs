//! Raw images in and out, snapshots as read-only disks, and what has changed: against real daemons and other people's clients.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod minio;
    pub mod process;
}

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use support::client::{Client, Command as Request};
use support::daemon::{Host, StoreKind, World, both_stores, id_in};
use support::process::{self, run, shell};

both_stores!(
    an_imported_file_comes_out_again,
    a_pipe_goes_in_and_out,
    bad_images_leave_nothing,
    a_killed_import_leaves_a_hidden_volume,
    an_export_replaces_nothing_unasked,
    a_snapshot_is_served_to_two_hosts_while_the_volume_goes_on,
    a_diff_names_all_that_changed,
    a_dirty_bitmap_names_what_changed,
    qcow2_goes_in_by_the_nbd_address,
);

const MIB: u64 = 1 << 20;

/// A host whose daemon takes little of the disk.
fn host(world: &World, name: &str) -> Host {
    world.host(name).with(&["--cache-size", "256MiB"])
}

/// A sequence of numbers that looks random and is the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 24
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        // Half of it compresses.
        (0..count).map(|at| if at % 2 == 0 { 7 } else { self.next() as u8 }).collect()
    }
}

/// A sparse file with data here and there, the last of it not a whole block.
fn sparse_image(path: &Path, size: u64) -> Vec<u8> {
    let mut numbers = Numbers(size);
    let file = fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, length) in [(0, 1000), (5 * MIB - 3, 3 * MIB), (40 * MIB, 30 * MIB), (size - 10, 10)] {
        file.write_all_at(&numbers.bytes(length as usize), offset).unwrap();
    }
    // Zeros that are data to the file system.
    file.write_all_at(&vec![0; MIB as usize], 20 * MIB).unwrap();
    fs::read(path).unwrap()
}

fn read_to_the_end(mut bytes: Vec<u8>, size: u64) -> Vec<u8> {
    bytes.resize(size as usize, 0);
    bytes
}

#[track_caller]
fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let block = found.chunks(4096).zip(expected.chunks(4096)).position(|(found, expected)| found != expected);
    assert!(block.is_none(), "{what}: block {block:?} differs");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn snapshot(host: &Host, volume: &str) -> String {
    let taken = host.varve_json(&["volumes", "snapshots", "create", volume]);
    taken["id"].as_str().unwrap_or_else(|| panic!("no id: {taken}")).to_owned()
}

fn an_imported_file_comes_out_again(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world, "a");
    let (image, copy, again) = (world.path().join("image"), world.path().join("copy"), world.path().join("again"));
    let size = 90 * MIB + 1234;
    let rounded = size.next_multiple_of(4096);
    let content = read_to_the_end(sparse_image(&image, size), rounded);
    let volume = id_in(&host.varve(&["volumes", "import", "disk", &text(&image)]).succeeded());
    let shown = host.varve_json(&["volumes", "show", &volume]);
    assert_eq!((&shown["size"], &shown["state"]), (&rounded.into(), &"detached".into()), "{shown}");
    assert!(shown["stored_bytes"].as_u64().is_some_and(|bytes| bytes < 34 * MIB), "holes are not stored: {shown}");
    host.varve(&["check", &volume]).succeeded();
    host.varve(&["volumes", "export", &volume, &text(&copy)]).succeeded();
    assert_same(&fs::read(&copy).unwrap(), &content, "the copy of the detached volume");
    let used = fs::metadata(&copy).unwrap().blocks() * 512;
    assert!(used < 36 * MIB, "holes stay holes: {used} bytes are used");
    // It is a volume like any other, and is exported while it is written to.
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), "disk").unwrap();
    assert_same(&client.read_all(), &content, "the disk");
    client.write(8192, &[9; 4096]).unwrap();
    host.varve(&["volumes", "export", "disk", &text(&again)]).succeeded();
    let mut changed = content.clone();
    changed[8192..8192 + 4096].fill(9);
    assert_same(&fs::read(&again).unwrap(), &changed, "the copy of the live volume");
    let left = host.varve_json(&["volumes", "snapshots", "list", "disk"]);
    assert_eq!(left.as_array().map(Vec::len), Some(0), "the snapshot of the export is gone: {left}");
    let taken = snapshot(&host, "disk");
    client.write(8192, &[10; 4096]).unwrap();
    host.varve(&["volumes", "export", &taken, &text(&again), "--force"]).succeeded();
    assert_same(&fs::read(&again).unwrap(), &changed, "the copy of the snapshot");
    drop(client);
    daemon.stop();
}

fn a_pipe_goes_in_and_out(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world, "a");
    let (image, copy) = (world.path().join("image"), world.path().join("copy"));
    let content = sparse_image(&image, 80 * MIB);
    let environment: Vec<String> = host.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let varve = Path::new(env!("CARGO_BIN_EXE_varved")).with_file_name("varve");
    let in_environment = |script: &str| {
        let mut command = Command::new("env");
        command.args(&environment).args(["bash", "-euo", "pipefail", "-c", script, "test"]);
        run(command.args([&varve, &image, &copy])).succeeded()
    };
    let volume = id_in(&in_environment("cat \"$2\" | \"$1\" volumes import piped - --size 96MiB"));
    assert_eq!(host.varve_json(&["volumes", "show", &volume])["size"], 96 * MIB);
    in_environment("\"$1\" volumes export piped - | cat > \"$3\"");
    assert_same(&fs::read(&copy).unwrap(), &read_to_the_end(content.clone(), 96 * MIB), "through pipes");
    // Without a size, the pipe's length counts.
    let volume = id_in(&in_environment("cat \"$2\" | \"$1\" volumes import whole -"));
    assert_eq!(host.varve_json(&["volumes", "show", &volume])["size"], 80 * MIB);
    host.varve(&["volumes", "export", "whole", "-", "--json"]).refused(&["standard output"]);
    host.varve(&["check", &volume]).succeeded();
}

/// The objects in the store, but for its own header.
fn objects(world: &World) -> usize {
    match world.kind {
        StoreKind::Directory => {
            let listed =
                shell("find \"$1\" -path '*/volumes/*' -type f | wc -l", &[&text(&world.path().join("store"))]);
            listed.succeeded().trim().parse().unwrap()
        }
        // What can be seen of it without a client of one's own.
        StoreKind::Minio => 0,
    }
}

fn bad_images_leave_nothing(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world, "a");
    let image = world.path().join("image");
    sparse_image(&image, 80 * MIB);
    let import = |file: &str, size: &[&str]| {
        let mut arguments = vec!["volumes", "import", "bad", file];
        arguments.extend(size);
        host.varve(&arguments)
    };
    import(&text(&image), &["--size", "64MiB"]).refused(&["image", "67108864", "--size"]);
    import(&text(&world.path().join("nowhere")), &[]).refused(&["nowhere"]);
    import(&text(world.path()), &[]).refused(&["directory"]);
    fs::write(world.path().join("empty"), b"").unwrap();
    import(&text(&world.path().join("empty")), &[]).refused(&["empty"]);
    // Of a pipe it is only seen when much was made already.
    let mut pipe = Command::new(Path::new(env!("CARGO_BIN_EXE_varved")).with_file_name("varve"));
    pipe.args(["volumes", "import", "bad", "-", "--size", "64MiB"]).envs(host.environment.clone());
    let mut child = pipe.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The reader stops listening in the middle, which is an error of the pipe here.
    let _ = stdin.write_all(&fs::read(&image).unwrap());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--size") && !said.contains("hidden"), "{said}");
    let all = host.varve_json(&["volumes", "list", "--all"]);
    assert_eq!(all.as_array().map(Vec::len), Some(0), "{all}");
    assert_eq!(objects(&world), 0, "nothing half-made is left");
}

fn a_killed_import_leaves_a_hidden_volume(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world, "a");
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_varved")).with_file_name("varve"));
    command.args(["volumes", "import", "dead", "-"]).envs(host.environment.clone());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It has taken in all but what fits into the pipe and its queue: something is in the store by then.
    stdin.write_all(&Numbers(1).bytes(300 << 20)).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    for all in [&["volumes", "list"][..], &["volumes", "list", "--all"]] {
        let listed = host.varve_json(all);
        assert_eq!(listed.as_array().map(Vec::len), Some(0), "{listed}");
    }
    host.varve(&["volumes", "show", "dead"]).refused(&["dead"]);
    if kind == StoreKind::Directory {
        let folder = fs::read_dir(world.path().join("store/volumes")).unwrap().next().unwrap().unwrap();
        let id = folder.file_name().to_string_lossy().into_owned();
        host.varve(&["volumes", "undelete", &id]).refused(&["made"]);
        host.varve(&["volumes", "fork", &id]).refused(&["made"]);
        let daemon = host.start();
        host.varve(&["volumes", "attach", &id, "--takeover"]).refused(&["made"]);
        assert!(Client::connect(&host.nbd(), &id).is_err(), "a half-made volume was opened");
        daemon.stop();
    }
}

fn an_export_replaces_nothing_unasked(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world, "a");
    let volume = host.create("disk", "64MiB");
    let file = world.path().join("precious");
    fs::write(&file, b"precious").unwrap();
    host.varve(&["volumes", "export", &volume, &text(&file)]).refused(&["precious", "--force"]);
    host.varve(&["volumes", "export", "no-such", &text(&file), "--force"]).refused(&["no-such"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    assert!(!world.path().join("precious.part").exists(), "an unfinished image is left");
    host.varve(&["volumes", "export", &volume, &text(&file), "--force"]).succeeded();
    let found = fs::metadata(&file).unwrap();
    assert_eq!((found.len(), found.blocks()), (64 * MIB, 0), "an empty volume is one hole");
}

fn a_snapshot_is_served_to_two_hosts_while_the_volume_goes_on(kind: StoreKind) {
    let world = World::new(kind);
    let (first, second) = (host(&world, "a"), host(&world, "b"));
    let volume = first.create("disk", "64MiB");
    let (one, two) = (first.start(), second.start());
    let mut client = Client::connect(&first.nbd(), &volume).unwrap();
    let mut numbers = Numbers(5);
    let mut disk = vec![0; 64 << 20];
    for _ in 0..200 {
        let offset = (numbers.next() % (16_000 * 4096)) as usize;
        let length = numbers.next() % 60_000 + 1;
        let data = numbers.bytes(length as usize);
        client.write(offset as u64, &data).unwrap();
        disk[offset..offset + data.len()].copy_from_slice(&data);
    }
    let taken = snapshot(&first, &volume);
    for host in [&first, &second] {
        let mut reader = Client::connect(&host.nbd(), &taken).unwrap();
        let mut another = Client::connect(&host.nbd(), &taken).unwrap();
        client.write(numbers.next() % (60 * MIB), &[0xee; 100_000]).unwrap();
        assert_same(&reader.read_all(), &disk, "the snapshot");
        assert_same(&another.read_all(), &disk, "the snapshot again");
        assert_eq!(another.ask(Request::Read, 0, 5001, 300, &[]).unwrap(), disk[5001..5301], "within a block");
        assert_eq!(reader.write(0, &[1; 4096]), Err(1), "EPERM");
        assert_eq!(reader.ask(Request::Trim, 0, 0, 4096, &[]), Err(1), "EPERM");
        reader.flush().unwrap();
        let list = run(Command::new("nbdinfo").args(["--list", &host.uri("")])).succeeded();
        assert!(list.contains(&taken) && list.contains("snapshot of disk"), "{list}");
        run(Command::new("nbdinfo").args(["--is", "read-only", &host.uri(&taken)])).succeeded();
        let map = run(Command::new("nbdinfo").args(["--map", "--totals", &host.uri(&taken)])).succeeded();
        assert!(map.contains("data") && map.contains("hole"), "{map}");
        let info = run(Command::new("qemu-img").args(["info", &host.uri(&taken)])).succeeded();
        assert!(info.contains("64 MiB"), "{info}");
        let write = run(Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 4096", &host.uri(&taken)]));
        write.refused(&[]);
    }
    let mut reader = Client::connect(&second.nbd(), &taken).unwrap();
    first.varve(&["volumes", "snapshots", "destroy", &taken, "--yes"]).succeeded();
    assert!(Client::connect(&second.nbd(), &taken).is_err(), "a snapshot that is gone was opened");
    assert_same(&reader.read_all(), &disk, "the snapshot of those who had it open");
    drop((client, reader));
    one.stop();
    two.stop();
}

/// The extents of `varve volumes diff`, and whether each is zero.
fn diff(host: &Host, from: &str, to: &str) -> Vec<(u64, u64, bool)> {
    let found = host.varve_json(&["volumes", "diff", from, to]);
    let extents: Vec<(u64, u64, bool)> = found["extents"]
        .as_array()
        .unwrap_or_else(|| panic!("{found}"))
        .iter()
        .map(|extent| {
            let number = |name: &str| extent[name].as_u64().unwrap();
            (number("offset"), number("length"), extent["zero"].as_bool().unwrap())
        })
        .collect();
    let total: u64 = extents.iter().map(|(_, length, _)| length).sum();
    assert_eq!(found["changed"], total, "{found}");
    assert!(extents.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "in order: {extents:?}");
    extents
}

/// Every block that differs lies in an extent, and every extent was written or trimmed.
#[track_caller]
fn assert_covers(extents: &[(u64, u64, bool)], before: &[u8], after: &[u8], touched: &[bool]) {
    let mut told = vec![None; touched.len()];
    for &(offset, length, zero) in extents {
        told[(offset / 4096) as usize..((offset + length) / 4096) as usize].fill(Some(zero));
    }
    for (block, told) in told.iter().enumerate() {
        let range = block * 4096..(block + 1) * 4096;
        let same = before.get(range.clone()) == after.get(range.clone());
        assert!(same || told.is_some(), "block {block} changed, and no extent has it");
        assert!(told.is_none() || touched[block], "block {block} was not touched, and an extent has it");
        if *told == Some(true) {
            assert!(after[range].iter().all(|byte| *byte == 0), "block {block} is not zero");
        }
    }
}

fn a_diff_names_all_that_changed(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world, "a");
    let volume = host.create("disk", "2");
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    let mut numbers = Numbers(11);
    // The first 32 MiB, and as much behind the first GiB.
    let place =
        |number: u64| if number.is_multiple_of(2) { number % (32 * MIB) } else { number % (32 * MIB) + (1 << 30) };
    let mut disk = vec![0_u8; (1 << 30) + (64 << 20)];
    let mut before: Option<(String, Vec<u8>)> = None;
    let mut touched = vec![false; disk.len() / 4096];
    let mut steps = Vec::new();
    for round in 0..4_u64 {
        // Two places that are written and made zero in turns, so that both kinds of extents are there.
        for (which, block) in [(0, 9000), (1, 9100)] {
            let range = block * 4096..(block + 2) * 4096;
            touched[block..block + 2].fill(true);
            if round % 2 == which {
                client.write(range.start as u64, &[0x55; 8192]).unwrap();
                disk[range].fill(0x55);
            } else {
                client.ask(Request::WriteZeroes, 0, range.start as u64, 8192, &[]).unwrap();
                disk[range].fill(0);
            }
        }
        for _ in 0..60 {
            let offset = place(numbers.next());
            let length = numbers.next() % 200_000 + 1;
            let range = offset as usize..(offset + length) as usize;
            touched[range.start / 4096..range.end.div_ceil(4096)].fill(true);
            if numbers.next().is_multiple_of(4) {
                client.ask(Request::WriteZeroes, 0, offset, length as u32, &[]).unwrap();
                disk[range].fill(0);
            } else {
                let data = numbers.bytes(length as usize);
                client.write(offset, &data).unwrap();
                disk[range].copy_from_slice(&data);
            }
        }
        let taken = snapshot(&host, &volume);
        if let Some((earlier, content)) = before.replace((taken.clone(), disk.clone())) {
            let extents = diff(&host, &earlier, &taken);
            assert!(
                !extents.is_empty() && extents.iter().any(|extent| extent.2) && extents.iter().any(|extent| !extent.2)
            );
            assert_covers(&extents, &content, &disk, &touched);
            steps.push((earlier, content));
        }
        assert_eq!(diff(&host, &taken, &taken), []);
        assert_eq!(diff(&host, &taken, &volume), [], "nothing was written since");
        touched.fill(false);
    }
    // Of a live volume, with what is not uploaded yet.
    client.write(100 * 4096, &[0x77; 8192]).unwrap();
    let (newest, _) = before.unwrap();
    assert_eq!(diff(&host, &newest, "disk"), [(100 * 4096, 8192, false)]);
    let printed = host.varve(&["volumes", "diff", &newest, "disk"]).succeeded();
    assert!(printed.contains("409600") && printed.contains("data") && printed.contains("8192 bytes"), "{printed}");
    let left = host.varve_json(&["volumes", "snapshots", "list", "disk"]);
    assert_eq!(left.as_array().map(Vec::len), Some(4), "snapshots taken for diffs are gone: {left}");
    drop(client);
    daemon.stop();
    // Detached, and larger than the snapshot: what lies behind its end counts only where there is data.
    host.varve(&["volumes", "extend", &volume, "--size", "3"]).succeeded();
    assert_eq!(diff(&host, &newest, &volume), [(100 * 4096, 8192, false)]);
    host.varve(&["volumes", "diff", &volume, "vs_0000000000007"]).refused(&["vs_0000000000007"]);
}

/// The runs of bytes that may differ, as nbdinfo tells them.
fn dirty(host: &Host, export: &str, since: &str) -> Vec<(u64, u64)> {
    let map = format!("--map=qemu:dirty-bitmap:{since}");
    let text = run(Command::new("nbdinfo").args(["--json", &map, &host.uri(export)])).succeeded();
    let extents: serde_json::Value = serde_json::from_str(&text).unwrap();
    let extents = extents.as_array().unwrap_or_else(|| panic!("{text}"));
    let dirty = extents.iter().filter(|extent| extent["type"] == 1);
    dirty.map(|extent| (extent["offset"].as_u64().unwrap(), extent["length"].as_u64().unwrap())).collect()
}

fn a_dirty_bitmap_names_what_changed(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world, "a");
    let volume = host.create("disk", "3");
    let daemon = host.start();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    client.write(0, &Numbers(3).bytes(4 << 20)).unwrap();
    client.write(2 << 30, &Numbers(4).bytes(4 << 20)).unwrap();
    let first = snapshot(&host, &volume);
    assert_eq!(dirty(&host, "disk", &first), []);
    let written = [(8192, 4096), (MIB, 65_536), ((2 << 30) + 4096, 8192), (3 << 20, 2 * MIB)];
    let mut expected = written.to_vec();
    expected.sort_unstable();
    for (offset, length) in written {
        client.write(offset, &vec![0x5a; length as usize]).unwrap();
    }
    assert_eq!(dirty(&host, "disk", &first), expected, "before the upload");
    host.varve(&["volumes", "sync", &volume]).succeeded();
    assert_eq!(dirty(&host, "disk", &first), expected, "after the upload");
    let second = snapshot(&host, &volume);
    assert_eq!(dirty(&host, "disk", &second), []);
    assert_eq!(dirty(&host, &second, &first), expected, "from one snapshot to another");
    // QEMU shows what the bitmap marks as if it were not there.
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export=disk,x-dirty-bitmap=qemu:dirty-bitmap:{first}",
        host.nbd().display()
    );
    let map = run(Command::new("qemu-img").args(["map", "--output=json", "--image-opts", &options])).succeeded();
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let marked = map.as_array().unwrap().iter().filter(|extent| extent["data"] == false);
    let marked: Vec<(u64, u64)> =
        marked.map(|extent| (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap())).collect();
    assert_eq!(marked, expected, "{map}");
    let info = run(Command::new("nbdinfo").args(["--json", &host.uri("disk")])).succeeded();
    for context in ["base:allocation", "varve:residence", &format!("qemu:dirty-bitmap:{first}")] {
        assert!(info.contains(context), "{context} is not listed: {info}");
    }
    let unknown = "--map=qemu:dirty-bitmap:vs_0000000000007";
    run(Command::new("nbdinfo").args([unknown, &host.uri("disk")])).refused(&[]);
    drop(client);
    daemon.stop();
}

fn qcow2_goes_in_by_the_nbd_address(kind: StoreKind) {
    let world = World::new(kind);
    let host = host(&world, "a");
    let (image, qcow2) = (world.path().join("image"), world.path().join("disk.qcow2"));
    let content = sparse_image(&image, 80 * MIB);
    let qemu_img = |arguments: &[&str]| run(Command::new("qemu-img").args(arguments)).succeeded();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &text(&image), &text(&qcow2)]);
    host.create("disk", "80MiB");
    let daemon = host.start();
    qemu_img(&["convert", "-n", "-O", "raw", &text(&qcow2), &host.uri("disk")]);
    let mut client = Client::connect(&host.nbd(), "disk").unwrap();
    assert_same(&client.read_all(), &content, "what qemu-img brought in");
    drop(client);
    let taken = snapshot(&host, "disk");
    let out = world.path().join("out.qcow2");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &host.uri(&taken), &text(&out)]);
    qemu_img(&["compare", &text(&image), &text(&out)]);
    process::until("the daemon has seen the client go", || host.varve(&["volumes", "detach", "disk"]).status.success());
    daemon.stop();
}

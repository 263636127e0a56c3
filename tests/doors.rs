//! The doors of a real daemon: who may come in, what they may open, and what they learn of the others; secrets that must not show; the units
//! for systemd.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod minio;
    pub mod process;
    pub mod tls_files;
}

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::client::Client;
use support::daemon::{Host, StoreKind, World, binary, both_stores, id_in};
use support::process::{self, Outcome, shell, text_of};
use support::tls_files;
use varve::nbd::TlsMode;

both_stores!(
    a_certificate_opens_the_volumes_of_the_table,
    a_door_that_anybody_could_use_is_not_opened,
    another_user_is_turned_away_from_the_control_socket,
    secrets_show_nowhere,
    the_unit_allows_what_the_daemon_does,
);

/// A daemon's settings file with a table of clients, and the folder of its certificates.
fn guarded(world: &World, table: &str) -> (Host, PathBuf) {
    let files = world.path().join("tls");
    std::fs::create_dir(&files).unwrap();
    tls_files::settings(&files, TlsMode::Require, true);
    let path = |name: &str| files.join(name).display().to_string();
    let config = world.path().join("varve.toml");
    let settings = format!(
        "nbd = '127.0.0.1:0'\ntls = 'require'\ntls-certificate = '{}'\ntls-key = '{}'\ntls-client-ca = '{}'\n[clients]\n{table}",
        path("server-cert.pem"),
        path("server-key.pem"),
        path("ca-cert.pem")
    );
    std::fs::write(&config, settings).unwrap();
    (world.host("a").with(&["--config", config.to_str().unwrap()]), files)
}

/// Somebody with a certificate.
struct Visitor {
    port: u16,
    files: PathBuf,
}

impl Visitor {
    fn new(host: &Host, files: &Path, who: &str) -> Self {
        Visitor { port: host.nbd_port("nbds"), files: tls_files::client(files, who, None, 2) }
    }

    fn nbdinfo(&self, more: &[&str], export: &str) -> Outcome {
        let uri = format!("nbds://localhost:{}/{export}?tls-certificates={}", self.port, self.files.display());
        process::run(Command::new("nbdinfo").args(more).arg(uri))
    }
}

fn snapshot(host: &Host, volume: &str) -> String {
    id_in(&host.varve(&["volumes", "snapshots", "create", volume]).succeeded())
}

fn a_certificate_opens_the_volumes_of_the_table(kind: StoreKind) {
    let world = World::new(kind);
    let plain = world.host("a");
    let (cache, shop) = (plain.create("build-cache", "64MiB"), plain.create("shop", "64MiB"));
    let table = format!("'build-*' = ['build-*']\n'till' = ['{shop}']\n'ops' = ['*']\n");
    let (host, files) = guarded(&world, &table);
    let daemon = host.start();
    // The Unix socket asks for nothing.
    for volume in [&cache, &shop] {
        let mut client = Client::connect(&host.nbd(), volume).unwrap();
        client.write(0, &[7; 4096]).unwrap();
        client.flush().unwrap();
    }
    let (of_cache, of_shop) = (snapshot(&host, &cache), snapshot(&host, &shop));
    let [build, till, ops] = ["build-1", "till", "ops"].map(|who| Visitor::new(&host, &files, who));
    for export in [&cache, "build-cache", &of_cache] {
        build.nbdinfo(&[], export).succeeded();
        ops.nbdinfo(&[], export).succeeded();
        till.nbdinfo(&[], export).refused(&["No such file"]);
    }
    for export in [&shop, "shop", &of_shop] {
        till.nbdinfo(&[], export).succeeded();
        build.nbdinfo(&[], export).refused(&["No such file"]);
    }
    build.nbdinfo(&[], "nothing-of-that-name").refused(&["No such file"]);
    let seen = till.nbdinfo(&["--list"], "").succeeded();
    assert!(seen.contains(&shop) && seen.contains(&of_shop), "{seen}");
    assert!(!seen.contains(&cache) && !seen.contains(&of_cache) && !seen.contains("build"), "{seen}");
    // What changed since a snapshot tells of that snapshot, too.
    till.nbdinfo(&[&format!("--map=qemu:dirty-bitmap:{of_shop}")], "shop").succeeded();
    till.nbdinfo(&[&format!("--map=qemu:dirty-bitmap:{of_cache}")], "shop").refused(&[&of_cache]);
    ops.nbdinfo(&[&format!("--map=qemu:dirty-bitmap:{of_cache}")], "shop").succeeded();
    assert!(daemon.said().contains("may not open"), "the operator is not told: {}", daemon.said());
    daemon.stop();
}

fn a_door_that_anybody_could_use_is_not_opened(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    host.create("disk", "64MiB");
    let open = ["--nbd", "0.0.0.0:0"];
    host.clone().with(&open).daemon_that_refuses().refused(&["0.0.0.0", "--tls require", "--allow-insecure-tcp"]);
    let config = world.path().join("clients.toml");
    std::fs::write(&config, "[clients]\n'a' = ['disk']\n").unwrap();
    let config = ["--config", config.to_str().unwrap()];
    host.clone().with(&config).daemon_that_refuses().refused(&["tls-client-ca"]);
    let daemon = host.with(&open).with(&["--allow-insecure-tcp"]).start();
    assert!(daemon.said().contains("need no certificate"), "{}", daemon.said());
    daemon.stop();
}

fn another_user_is_turned_away_from_the_control_socket(kind: StoreKind) {
    let world = World::new(kind);
    let host = world.host("a");
    host.create("disk", "64MiB");
    let daemon = host.start();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let ask =
        "setpriv --reuid=65534 --clear-groups curl -sS --max-time 60 --unix-socket \"$1\" http://varved/v1/status";
    let control = host.control();
    let as_nobody = || shell(ask, &[control.to_str().unwrap()]);
    mode(world.path(), 0o755);
    as_nobody().refused(&["connect"]);
    // Somebody has loosened the permissions.
    mode(&control, 0o666);
    as_nobody().refused(&["curl"]);
    assert!(host.answers(), "{}", daemon.said());
    assert!(daemon.said().contains("turned away"), "{}", daemon.said());
    daemon.stop();
}

fn secrets_show_nowhere(kind: StoreKind) {
    let world = World::new(kind);
    let (host, files) = guarded(&world, "'ops' = ['*']\n");
    let host = host.with_environment("VARVE_LOG", "trace");
    let mut secrets: Vec<String> = Vec::new();
    if kind == StoreKind::Minio {
        let secret = world.environment.iter().find(|(name, _)| name == "AWS_SECRET_ACCESS_KEY");
        secrets.push(secret.expect("MinIO has a secret").1.clone());
    }
    let key = text_of(&files.join("server-key.pem"));
    secrets.extend(key.lines().filter(|line| !line.starts_with('-')).map(str::to_owned));
    assert!(secrets.len() > 1 && secrets.iter().all(|secret| secret.len() > 8));
    let volume = host.create("disk", "64MiB");
    let daemon = host.start();
    Visitor::new(&host, &files, "ops").nbdinfo(&[], "disk").succeeded();
    let mut client = Client::connect(&host.nbd(), &volume).unwrap();
    client.write(0, &[7; 4096]).unwrap();
    drop(client);
    let mut said = vec![
        host.varve(&["volumes", "sync", &volume]).report(),
        host.varve(&["volumes", "show", &volume, "--json"]).report(),
        host.varve(&["status", "--json"]).report(),
        host.varve(&["dump", "manifest", &volume]).report(),
        text_of(Path::new(&format!("/proc/{}/cmdline", daemon.pid()))),
    ];
    daemon.stop();
    said.push(text_of(&world.path().join("a").join("varved.log")));
    // What speaks HTTP has much to say; a directory adds nothing.
    let expected = if kind == StoreKind::Minio { "TRACE" } else { "varved is ready" };
    assert!(said.last().is_some_and(|log| log.contains(expected)), "the log is not as talkative as it was told to be");
    // Messages of refusals: a store that does not let us in, and keys where none belong.
    if kind == StoreKind::Minio {
        let wrong = host.clone().with_environment("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-anything");
        secrets.push("not-the-secret-of-anything".to_owned());
        said.push(wrong.daemon_that_refuses().refused(&["varved ends"]));
        said.push(wrong.varve(&["volumes", "list"]).refused(&["s3://"]));
    }
    secrets.push("key-in-a-url".to_owned());
    let url = host.clone().with_environment("VARVE_STORE", "s3://user:key-in-a-url@bucket/disks");
    said.push(url.daemon_that_refuses().refused(&["is not the URL of a store"]));
    said.push(url.varve(&["volumes", "list"]).refused(&["is not the URL of a store"]));
    for secret in &secrets {
        for text in &said {
            let place = text.find(secret.as_str());
            let around = place.map(|place| text[..place].lines().next_back().unwrap_or_default());
            assert!(place.is_none(), "a secret shows behind {around:?}");
        }
    }
}

/// The system calls that a daemon has made, by their names.
fn calls_of(host: &Host, volume: &str, trace: &Path) -> Vec<String> {
    let daemon = host.start();
    let mut strace = Command::new("strace")
        .args(["-f", "-c", "-U", "calls,name", "-o", trace.to_str().unwrap(), "-p", &daemon.pid().to_string()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    process::until("strace has its hands on the daemon", || {
        text_of(Path::new(&format!("/proc/{}/status", daemon.pid()))).contains(&format!("TracerPid:\t{}", strace.id()))
    });
    let mut client = Client::connect(&host.nbd(), volume).unwrap();
    client.write(0, &[7; 65536]).unwrap();
    client.flush().unwrap();
    drop(client);
    snapshot(host, volume);
    daemon.stop();
    assert!(process::wait(&mut strace, process::PATIENCE).is_some(), "strace goes on without the daemon");
    let text = text_of(trace);
    let names = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next()?.parse::<u64>().ok()?;
        words.next().map(str::to_owned)
    });
    names.filter(|name| name != "total").collect()
}

fn the_unit_allows_what_the_daemon_does(kind: StoreKind) {
    let folder = process::repository().join("tools/systemd");
    let unit = text_of(&folder.join("varved.service"));
    let world = World::new(kind);
    let host = world.host("a");
    let volume = host.create("disk", "64MiB");
    let calls = calls_of(&host, &volume, &world.path().join("calls"));
    assert!(calls.len() > 20 && calls.iter().any(|call| call == "fdatasync" || call == "sync_file_range"), "{calls:?}");

    let mut allowed = Vec::new();
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (without, groups) = line.strip_prefix('~').map_or((false, line), |groups| (true, groups));
        for group in groups.split(' ') {
            if !group.starts_with('@') {
                assert!(!without, "not understood: {line}");
                allowed.push(group.to_owned());
                continue;
            }
            let script = "for group in $(systemd-analyze syscall-filter \"$1\" | grep -o '^ *@[a-z-]*'); do
                 systemd-analyze syscall-filter \"$group\"; done; systemd-analyze syscall-filter \"$1\"";
            let members = shell(script, &[group]).succeeded();
            let members = members.lines().filter(|line| line.starts_with(' ')).map(|line| line.trim().to_owned());
            match without {
                false => allowed.extend(members),
                true => {
                    let members: Vec<_> = members.collect();
                    allowed.retain(|call| !members.contains(call));
                }
            }
        }
    }
    let denied: Vec<_> = calls.iter().filter(|&call| !allowed.contains(call)).collect();
    assert!(denied.is_empty(), "the unit does not allow {denied:?}");

    // The units themselves, with the binary that is here.
    let here = world.path().join("units");
    std::fs::create_dir(&here).unwrap();
    let daemon = binary("varved").display().to_string();
    assert!(unit.contains("ExecStart=/usr/local/bin/varved "));
    std::fs::write(here.join("varved.service"), unit.replace("/usr/local/bin/varved", &daemon)).unwrap();
    std::fs::copy(folder.join("varved.socket"), here.join("varved.socket")).unwrap();
    let script = "cd \"$1\"; systemd-analyze verify ./varved.service ./varved.socket; \
                  systemd-analyze security --offline=yes --threshold=15 ./varved.service";
    shell(script, &[here.to_str().unwrap()]).succeeded();
}

//! Tests of commands: from the command line to what is printed, with a store in a directory and, where one is
//! needed, a daemon behind a real control socket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use tempfile::TempDir;
use tokio::sync::oneshot;
use varve::admin::Admin;
use varve::control::{ControlSocket, serve};
use varve::error::{Error, Result};
use varve::format::manifest::{Manifest, Owner, Position};
use varve::format::map_object::{CheckpointRef, MapObjectId, PageRef};
use varve::ownership;
use varve::service::VolumeState;
use varve::settings::ControlAddress;
use varve::settings::{Regions, SharedSettings};
use varve::store::{Effect, Faults, Matching, Operation, Store, StoreErrorKind};
use varve::units::{ByteLen, Epoch, SegmentNumber, Token, UnixMillis, VolumeId};

use crate::arguments::{CommandLine, explained};
use crate::context::Context;
use crate::render::Report;

mod daemon;
mod family;

use daemon::Daemon;

/// When the commands are given: 2026-11-21T04:23:58Z.
const NOW: UnixMillis = UnixMillis(1_795_235_038_000);
const DAY: u64 = 86_400_000;

/// A detached volume of 10 GB, a day old.
fn detached(id: u64, name: &str) -> Manifest {
    let created_at = UnixMillis(NOW.0 - DAY);
    Manifest {
        epoch: Epoch(4),
        replay_from: Position { epoch: Epoch(5), number: SegmentNumber(0) },
        stored_bytes: ByteLen(3 << 29),
        ..Manifest::first(VolumeId(id), name.to_owned(), ByteLen(10 << 30), created_at, Token(1))
    }
}

/// The same, attached by a daemon on `host` with this control socket.
fn attached(id: u64, name: &str, host: &str, control: &str) -> Manifest {
    let owner = Owner {
        token: Token(2),
        resumes: None,
        host: host.into(),
        pid: 42,
        control: control.into(),
        attached_at: UnixMillis(NOW.0 - 90_000),
    };
    Manifest { owner: Some(owner), complete: false, ..detached(id, name) }
}

/// A store in a directory, and who works with it: with a daemon, if one runs, whose socket is in `state`.
struct Place {
    context: Context,
    raw: Arc<dyn Store>,
    directory: TempDir,
}

impl Place {
    async fn new(state: &Path, volumes: Vec<Manifest>) -> Place {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("file://{}", directory.path().display());
        let (control, regions) = (ControlAddress::Socket(state.join("control.sock")), Regions::default());
        let key = directory.path().join("key");
        let keys = vec![format!("file:{}", key.display())];
        let state = state.to_owned();
        let settings = SharedSettings { store: url.clone(), control, state, regions, keys, default_key: Some(key) };
        Admin::open(&settings, true).await.unwrap();
        let raw = varve::store::open(&url, false).await.unwrap().store;
        for volume in volumes {
            ownership::create(&*raw, volume).await.unwrap();
        }
        let mut context = Context::new(settings, false).unwrap();
        context.now = NOW;
        context.ask = |_| Ok(false);
        Place { context, raw, directory }
    }

    async fn volumes(&self) -> Vec<varve::service::VolumeSummary> {
        Admin::new(self.raw.clone()).list_volumes(true).await.unwrap()
    }
}

/// Without a daemon.
async fn nowhere(volumes: Vec<Manifest>) -> Place {
    Place::new(Path::new("/nonexistent"), volumes).await
}

async fn run(place: &Place, line: &str) -> Result<Report> {
    let words = std::iter::once("varve").chain(line.split_whitespace());
    let parsed = CommandLine::try_parse_from(words).map_err(|error| Error::invalid(explained(&error)))?;
    parsed.command.report(&place.context).await
}

async fn text(place: &Place, line: &str) -> String {
    let report = run(place, line).await.unwrap();
    assert_eq!(report.failure, None);
    report.text
}

async fn json(place: &Place, line: &str) -> serde_json::Value {
    serde_json::from_str(&text(place, line).await).unwrap()
}

async fn message(place: &Place, line: &str) -> String {
    run(place, line).await.unwrap_err().message().to_owned()
}

/// Runs a test while a daemon listens in a fresh directory.
async fn with_daemon(test: impl AsyncFnOnce(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    let socket = ControlSocket::bind(&directory.path().join("control.sock")).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(socket, Arc::new(Daemon), async move { stopped.await.unwrap_or_default() }));
    test(directory.path()).await;
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}

#[test]
fn the_command_line_is_consistent() {
    CommandLine::command().debug_assert();
}

#[tokio::test]
async fn create_prints_one_line_with_the_id() {
    let place = nowhere(vec![]).await;
    let created = text(&place, "volumes create data --size 1.5").await;
    let volume = place.volumes().await.remove(0);
    let expected = format!(
        "                  ID: {}
                Name: data
              Region: default
                Size: 1.5 GB
          Encryption: AES-256-GCM, key {}
          Durability: local
          Created at: {}
",
        volume.id,
        volume.encryption.as_ref().unwrap().key.as_ref().unwrap(),
        crate::render::moment(volume.created_at)
    );
    assert_eq!(created, expected);
    let two = text(&place, "vol create VOID --size 512MiB -n 2 --durability store --region ams").await;
    assert_eq!(two.lines().filter(|line| line.contains("ID")).count(), 2, "a name does not mislead scripts: {two}");
    assert!(
        two.contains("Region: ams\n") && two.contains("Durability: store\n") && two.contains("Size: 512 MB\n"),
        "{two}"
    );
}

#[tokio::test]
async fn what_was_created_before_a_failure_is_printed() {
    let mut place = nowhere(vec![]).await;
    let faults = Faults::new();
    let puts = || Matching::operation(Operation::Put).on("manifest");
    faults.inject(puts(), Effect::Delay(Duration::ZERO), 2);
    faults.inject(puts(), Effect::FailBefore(StoreErrorKind::Full), 2);
    place.context = place.context.with_store(Admin::new(faults.wrap(place.raw.clone())));
    let report = run(&place, "volumes create data --size 1 -n 3 --no-encryption").await.unwrap();
    assert_eq!(report.text.matches("ID: vol_").count(), 2);
    let failure = report.failure.unwrap();
    assert!(failure.starts_with("volume 3 of 3: cannot create volume vol_") && failure.contains("Full"), "{failure}");
    assert!(message(&place, "volumes create data --size 1 --no-encryption").await.contains("Full"));
    assert_eq!(place.volumes().await.len(), 2);
}

#[tokio::test]
async fn arguments_that_make_no_sense_are_named() {
    let place = nowhere(vec![]).await;
    for (line, expected) in [
        ("volumes create a/b --size 1", "'a/b' cannot be a name"),
        ("volumes create vol_x --size 1", "could be taken for ids"),
        ("volumes create data", "--size"),
        ("volumes create data --size -1", "--size: '-1' is negative"),
        ("volumes create data --size 100000", "largest size is 16 TiB"),
        ("volumes create data --size 1 -n 0", "--count: 0 is not in 1..=100"),
        ("volumes create data --size 1 -n -3", "--count: -3 is not in 1..=100"),
        ("volumes create data --size 1 --durability both", "'both' is not a durability"),
        ("volumes create data --size 1 --region a/b", "--region: 'a/b'"),
        ("volumes show vol_1", "'vol_1' is not the id of a volume"),
        ("volumes show vs_0000000000001", "id of a snapshot"),
        ("volumes show absent", "there is no volume 'absent'"),
        ("volumes destroy", "required"),
        ("volumes fly", "unrecognized subcommand 'fly'"),
        ("dump segment 5", "VOLUME/EPOCH/NUMBER"),
    ] {
        let message = message(&place, line).await;
        assert!(message.contains(expected), "{line}: {message}");
    }
    assert!(place.volumes().await.is_empty());
}

#[tokio::test]
async fn list_is_a_table_without_borders() {
    let destroyed = Manifest { destroyed_at: Some(varve::clock::now()), ..detached(3, "old\x1b[31m") };
    let being_made = Manifest { being_made: true, ..detached(4, "unfinished") };
    let volumes = vec![attached(2, "wide", "hector", "/c"), detached(1, "demo"), destroyed, being_made];
    let place = nowhere(volumes).await;
    let expected = "\
ID                 NAME  STATE      SIZE  STORED  OWNER   CREATED AT
vol_0000000000001  demo  detached  10 GB  1.5 GB          1 day ago
vol_0000000000002  wide  attached  10 GB  1.5 GB  hector  1 day ago
";
    assert_eq!(text(&place, "volumes list").await, expected);
    let all = text(&place, "volumes ls --all").await;
    assert!(all.contains("vol_0000000000003  old\\u{1b}[31m  destroyed"), "{all}");
    assert!(!all.contains("unfinished"), "{all}");
    assert!(text(&nowhere(vec![]).await, "volumes list").await.starts_with("ID  NAME"));
}

#[tokio::test]
async fn show_tells_the_lag_where_it_is_known() {
    let expected = "                  ID: vol_0000000000001
                Name: demo
               State: detached
              Region: default
          Encryption: none
                Size: 10 GB
              Stored: 1.5 GB
          Durability: local
               Epoch: 4
                 Lag: 0 bytes, 0.0 s
           Snapshots: 0; no scheduled snapshots
             History: off
          Created at: 2026-11-20T04:23:58Z
";
    assert_eq!(text(&nowhere(vec![detached(1, "demo")]).await, "volumes show demo").await, expected);
    let away = text(&nowhere(vec![attached(7, "demo", "hector", "/c")]).await, "volumes show demo").await;
    assert!(away.contains("Owner: hector (process 42, control socket /c)\n"), "{away}");
    assert!(away.contains("Lag: unknown: only its owner can tell\n"), "{away}");

    with_daemon(async |directory| {
        let here = Place::new(directory, vec![attached(7, "demo", "hector", "/c")]).await;
        let shown = text(&here, "volumes show vol_0000000000007").await;
        for line in
            ["Size: 20 GB", "Stored: 2 GB", "Durability: store", "Epoch: 5", "Lag: 8192 bytes, 1.2 s", "Clients: 2"]
        {
            assert!(shown.contains(&format!("{line}\n")), "{line}: {shown}");
        }
        assert_eq!(shown.matches("ID").count(), 1);
        // A daemon that has lost the volume to a newer epoch is not believed.
        let newer = Manifest { epoch: Epoch(6), ..attached(7, "demo", "hector", "/c") };
        let shown = text(&Place::new(directory, vec![newer]).await, "volumes show demo").await;
        assert!(shown.contains("Lag: unknown") && shown.contains("Size: 10 GB"), "{shown}");
    })
    .await;
}

#[tokio::test]
async fn json_is_what_the_types_say() {
    let mut place = nowhere(vec![attached(7, "demo", "hector", "/c")]).await;
    place.context.json = true;
    let shown = json(&place, "volumes show demo").await;
    assert_eq!(shown["id"], "vol_0000000000007");
    assert_eq!(shown["size"], 10_u64 << 30);
    assert_eq!(shown["owner"]["host"], "hector");
    assert!(shown["lag"].is_null() && shown["attached"].is_null());
    assert_eq!(json(&place, "volumes list").await[0]["state"], "attached");
    let created = json(&place, "volumes create x --size 1").await;
    assert_eq!(created["name"], "x");
    assert_eq!(created["schedule"]["retention_seconds"], 5 * 86_400, "on by default");
    let several = json(&place, "volumes create x --size 1 -n 2").await;
    assert_eq!(several.as_array().map(Vec::len), Some(2));
    let dumped = json(&place, "dump manifest demo").await;
    assert!(dumped["text"].as_str().unwrap().contains("vol_0000000000007"), "{dumped}");
}

#[tokio::test]
async fn destroy_asks_refuses_what_is_attached_and_can_be_undone() {
    let place = nowhere(vec![detached(1, "demo"), attached(2, "busy", "hector", "/c")]).await;
    let expected = "vol_0000000000002 is attached by hector (process 42, control socket /c): nothing was destroyed; \
                    detach it first: varve volumes detach vol_0000000000002";
    assert_eq!(message(&place, "volumes destroy demo busy --yes").await, expected);
    assert_eq!(message(&place, "volumes destroy demo").await, "nothing was destroyed");
    assert!(place.volumes().await.iter().all(|volume| volume.state != VolumeState::Destroyed));

    let done = text(&place, "volumes destroy demo vol_0000000000001 --yes").await;
    let until = crate::render::moment(place.volumes().await[1].purge_after.unwrap());
    let expected = format!(
        "Destroyed vol_0000000000001 (demo). It can be brought back until {until}: varve volumes undelete \
         vol_0000000000001\n"
    );
    assert_eq!(done, expected);
    assert!(message(&place, "volumes destroy vol_0000000000001 -y").await.contains("destroyed already"));
    assert!(text(&place, "volumes undelete demo").await.contains("State: detached\n"));
    assert!(message(&place, "volumes undelete demo").await.contains("no destroyed volume is named 'demo'"));

    let twice = nowhere(vec![detached(1, "demo"), detached(2, "demo")]).await;
    text(&twice, "volumes destroy vol_0000000000001 vol_0000000000002 --yes").await;
    let expected = "2 destroyed volumes are named 'demo': use the id of one: vol_0000000000001, vol_0000000000002";
    assert_eq!(message(&twice, "volumes undelete demo").await, expected);
}

#[tokio::test]
async fn purge_says_what_is_gone_and_what_is_next() {
    let now = varve::clock::now().0;
    let destroyed = |id, ago| Manifest { destroyed_at: Some(UnixMillis(now - ago)), ..detached(id, "old") };
    let place = nowhere(vec![destroyed(1, DAY + 1), destroyed(2, DAY / 2), detached(3, "demo")]).await;
    let said = text(&place, "volumes purge").await;
    let next = crate::render::moment(UnixMillis(now - DAY / 2 + DAY));
    for line in ["Purged: vol_0000000000001".to_owned(), "Objects deleted: 1".to_owned(), format!("Next due: {next}")] {
        assert!(said.lines().any(|said| said.trim_start() == line), "{said}");
    }
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(message(&place, "volumes show vol_0000000000001").await.contains("there is no volume"));
    text(&place, "volumes show vol_0000000000002").await;
}

#[tokio::test]
async fn the_daemon_is_asked_for_what_it_owns() {
    with_daemon(async |directory| {
        let place = Place::new(directory, vec![detached(1, "spare"), attached(7, "demo", "hector", "/c")]).await;
        let busy = message(&place, "volumes attach demo").await;
        assert!(busy.starts_with("vol_0000000000007 is attached by hector (") && busy.contains("--takeover"), "{busy}");
        let expected = "                  ID: vol_0000000000007
                Name: demo
               State: attached
                Size: 20 GB
               Epoch: 5
        Resumed from: position 18
            Replayed: 0 records of this host's write log
     Taken over from: hector
      Log kept aside: /state/rescued/1: 12 records, 48 KB, since 2026-11-21T04:23:58Z, are not part of the volume's history
                 Lag: 8192 bytes, 1.2 s
";
        assert_eq!(text(&place, "volumes attach demo --takeover").await, expected);
        let expected = "                  ID: vol_0000000000007\n              Stored: up to position 20\n                 Lag: 0 bytes, 0.0 s\n";
        assert_eq!(text(&place, "volumes sync demo").await, expected);
        assert_eq!(message(&place, "volumes detach demo").await, "vol_0000000000007 has 2 clients");
        assert!(text(&place, "volumes detach demo --force").await.contains("State: detached\n"));
        assert!(text(&place, "volumes update demo --durability local").await.contains("Durability: local\n"));
        // Volume 1 is nobody's: nothing to wait for, nothing to hand back, and the manifest can be changed.
        assert!(text(&place, "volumes sync spare").await.contains("Stored: everything\n"));
        assert!(text(&place, "volumes detach spare").await.contains("State: detached\n"));
        assert!(text(&place, "volumes update spare --durability store").await.contains("Durability: store\n"));

        let status = text(&place, "status").await;
        let expected = "             Version: 1.2.3
             Process: 42
               Store: file:///store
                 NBD: nbd://127.0.0.1:10809
             Control: on its socket only
             Fetched: 1 MB in 3 requests
            Uploaded: 3 MB in 2 requests
      Other requests: 1 deletes, 0 lists, 4 retries
            Attached: 1

ID                 NAME   SIZE  CLIENTS                LAG  DURABILITY  CONDITION
vol_0000000000007  demo  20 GB        2  8192 bytes, 1.2 s  store       serving
";
        assert_eq!(status, expected);
    })
    .await;
}

#[tokio::test]
async fn without_a_daemon_the_message_says_who_and_what_to_do() {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let here = attached(1, "here", host.trim_end(), "/nonexistent/control.sock");
    let beside = attached(2, "beside", host.trim_end(), "/other/it's.sock");
    let there = attached(3, "there", "hector", "/nonexistent/control.sock");
    let place = nowhere(vec![here, beside, there]).await;
    let start = format!("varved --store {} --state /nonexistent", place.context.settings.store);
    let no_daemon = "no daemon listens at /nonexistent/control.sock";
    assert_eq!(message(&place, "status").await, format!("{no_daemon}: start one with: {start}"));
    assert_eq!(message(&place, "volumes attach there").await, format!("{no_daemon}: start one with: {start}"));
    for verb in ["detach", "sync", "update --durability store"] {
        let on_this_host = message(&place, &format!("volumes {verb} here")).await;
        assert!(
            on_this_host.contains(&format!("but {no_daemon}: start that daemon again with: {start}")),
            "{on_this_host}"
        );
        let beside = message(&place, &format!("volumes {verb} beside")).await;
        assert!(beside.contains(r"varve --control '/other/it'\''s.sock' volumes"), "{beside}");
        let on_another = message(&place, &format!("volumes {verb} there")).await;
        assert!(on_another.contains("attached by hector (process 42"), "{on_another}");
        assert!(on_another.contains("varve volumes attach vol_0000000000003 --takeover"), "{on_another}");
    }
}

#[tokio::test]
async fn check_fails_when_it_finds_something() {
    let object = MapObjectId { volume: VolumeId(2), epoch: Epoch(1), number: 0 };
    let root = PageRef { object, offset: 0, stored_length: 100, raw_length: 100, crc: 0 };
    let ill = Manifest { checkpoint: Some(CheckpointRef { root }), ..detached(2, "ill") };
    let place = nowhere(vec![detached(1, "demo"), ill]).await;
    let expected = "                  ID: vol_0000000000001
            Segments: 0
            Verified: 0 bytes
            Problems: 0
           Left over: 0
";
    assert_eq!(text(&place, "check demo").await, expected);
    let report = run(&place, "check ill").await.unwrap();
    let named = report.text.lines().any(|line| line.starts_with("map object vol_0000000000002/1/0  all     "));
    assert!(named && report.text.contains("\nOBJECT "), "{}", report.text);
    assert_eq!(report.failure.as_deref(), Some("vol_0000000000002 is damaged: 1 problems were found"));
}

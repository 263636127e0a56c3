//! Tests of commands: from the command line to what is printed, with a store in memory and, where one is
//! needed, a daemon behind a real socket.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use clap::{CommandFactory, Parser};
use tokio::sync::oneshot;
use varve::control::{ControlSocket, serve};
use varve::error::{Error, ErrorKind, Result};
use varve::service::{
    AttachReport, AttachedStatus, CheckProblem, DaemonStatus, Durability, Lag, RescuedLog, Service, StoreCounts,
    VolumeState,
};
use varve::settings::SharedSettings;
use varve::units::{ByteLen, Epoch, Sequence, UnixMillis, VolumeId};

use crate::arguments::{CommandLine, explained};
use crate::backend::memory::{Memory, NOW, attached, detached};
use crate::context::Context;
use crate::render::Report;

fn settings(directory: &Path) -> SharedSettings {
    let state = directory.to_owned();
    SharedSettings { store: "file:///store".into(), control: state.join("control.sock"), state }
}

/// Surroundings whose daemon, if one runs, is the one whose socket is in `directory`.
fn context(directory: &Path, store: Memory) -> Context<Memory> {
    let mut context = Context::new(settings(directory), false).unwrap().with_store(store);
    context.now = NOW;
    context.ask = |_| Ok(false);
    context
}

fn nowhere(store: Memory) -> Context<Memory> {
    context(Path::new("/nonexistent"), store)
}

async fn run(context: &Context<Memory>, line: &str) -> Result<Report> {
    let words = std::iter::once("varve").chain(line.split_whitespace());
    let parsed = CommandLine::try_parse_from(words).map_err(|error| Error::invalid(explained(&error)))?;
    parsed.command.report(context).await
}

async fn text(context: &Context<Memory>, line: &str) -> String {
    let report = run(context, line).await.unwrap();
    assert_eq!(report.failure, None);
    report.text
}

async fn message(context: &Context<Memory>, line: &str) -> String {
    run(context, line).await.unwrap_err().message().to_owned()
}

/// A daemon that has volume 7 attached.
struct Daemon;

fn status() -> AttachedStatus {
    AttachedStatus {
        volume: VolumeId(7),
        name: "demo".into(),
        size: ByteLen(20 << 30),
        epoch: Epoch(5),
        durability: Durability::Store,
        clients: 2,
        lag: Lag { bytes: ByteLen(8192), seconds: 1.25 },
        accepted: Sequence(20),
        stored: Sequence(18),
        stored_bytes: ByteLen(2 << 30),
        log_used: ByteLen(64 << 20),
        log_length: ByteLen(2 << 30),
        failed: None,
    }
}

fn known(volume: VolumeId) -> Result<AttachedStatus> {
    if volume == VolumeId(7) { Ok(status()) } else { Err(Error::not_found(format!("{volume} is not attached here"))) }
}

#[async_trait]
impl Service for Daemon {
    fn daemon(&self) -> DaemonStatus {
        let store_counts =
            StoreCounts { gets: 3, get_bytes: 1 << 20, puts: 2, put_bytes: 3 << 20, deletes: 1, lists: 0, retries: 4 };
        let nbd = vec!["nbd://127.0.0.1:10809".into()];
        DaemonStatus { version: "1.2.3".into(), pid: 42, store: "file:///store".into(), nbd, store_counts }
    }
    fn attached(&self) -> Vec<AttachedStatus> {
        vec![status()]
    }
    async fn attach(&self, volume: VolumeId, takeover: bool) -> Result<AttachReport> {
        if !takeover {
            return Err(Error::new(ErrorKind::Busy, format!("{volume} is attached by hector")));
        }
        let rescued = RescuedLog {
            path: "/state/rescued/1".into(),
            records: 12,
            bytes: ByteLen(48 << 10),
            since: UnixMillis(NOW.0),
        };
        Ok(AttachReport {
            status: status(),
            resumed: Sequence(18),
            replayed_records: 0,
            taken_over: true,
            previous_owner: Some("hector".into()),
            rescued_log: Some(rescued),
        })
    }
    async fn detach(&self, volume: VolumeId, force: bool) -> Result<()> {
        let status = known(volume)?;
        if force {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Busy, format!("{volume} has {} clients", status.clients)))
        }
    }
    async fn sync(&self, volume: VolumeId) -> Result<AttachedStatus> {
        known(volume).map(|status| AttachedStatus { lag: Lag::default(), stored: status.accepted, ..status })
    }
    async fn set_durability(&self, volume: VolumeId, durability: Durability) -> Result<AttachedStatus> {
        known(volume).map(|status| AttachedStatus { durability, ..status })
    }
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
    let context = nowhere(Memory::default());
    let created = text(&context, "volumes create data --size 1.5").await;
    let expected = "                  ID: vol_0000000000001
                Name: data
              Region: default
                Size: 1.5 GB
          Durability: local
          Created at: 2026-11-21T04:23:58Z
";
    assert_eq!(created, expected);
    let ids: Vec<_> = created.lines().filter(|line| line.contains("ID")).collect();
    assert_eq!(
        ids.iter().map(|line| line.split_whitespace().nth(1).unwrap()).collect::<Vec<_>>(),
        ["vol_0000000000001"]
    );
    let two = text(&context, "vol create data --size 512MiB -n 2 --durability store --region ams").await;
    assert_eq!(two.lines().filter(|line| line.contains("ID")).count(), 2);
    assert!(
        two.contains("Region: ams\n") && two.contains("Durability: store\n") && two.contains("Size: 512 MB\n"),
        "{two}"
    );
}

#[tokio::test]
async fn what_was_created_before_a_failure_is_printed() {
    let context = nowhere(Memory { capacity: Some(2), ..Memory::default() });
    let report = run(&context, "volumes create data --size 1 -n 3").await.unwrap();
    assert_eq!(report.text.matches("ID: vol_").count(), 2);
    assert_eq!(report.failure.as_deref(), Some("volume 3 of 3: the store is full"));
    assert_eq!(message(&context, "volumes create data --size 1").await, "the store is full");
}

#[tokio::test]
async fn arguments_that_make_no_sense_are_named() {
    let context = nowhere(Memory::default());
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
        let message = message(&context, line).await;
        assert!(message.contains(expected), "{line}: {message}");
    }
    assert!(context.store().await.unwrap().volumes.borrow().is_empty());
}

#[tokio::test]
async fn list_is_a_table_without_borders() {
    let destroyed = varve::service::VolumeSummary { state: VolumeState::Destroyed, ..detached(3, "old\x1b[31m") };
    let store = Memory::holding(vec![attached(2, "wide", "hector", "/c"), detached(1, "demo"), destroyed]);
    let context = nowhere(store);
    let expected = "\
ID                 NAME  STATE      SIZE  STORED  OWNER   CREATED AT
vol_0000000000001  demo  detached  10 GB  1.5 GB          1 day ago
vol_0000000000002  wide  attached  10 GB  1.5 GB  hector  1 day ago
";
    assert_eq!(text(&context, "volumes list").await, expected);
    let all = text(&context, "volumes ls --all").await;
    assert!(all.contains("vol_0000000000003  old\\u{1b}[31m  destroyed"), "{all}");
    assert!(text(&nowhere(Memory::default()), "volumes list").await.starts_with("ID  NAME"));
}

#[tokio::test]
async fn show_tells_the_lag_where_it_is_known() {
    let expected = "                  ID: vol_0000000000001
                Name: demo
               State: detached
              Region: default
                Size: 10 GB
              Stored: 1.5 GB
          Durability: local
               Epoch: 4
                 Lag: 0 bytes, 0.0 s
          Created at: 2026-11-20T04:23:58Z
";
    assert_eq!(text(&nowhere(Memory::holding(vec![detached(1, "demo")])), "volumes show demo").await, expected);
    let away = text(&nowhere(Memory::holding(vec![attached(7, "demo", "hector", "/c")])), "volumes show demo").await;
    assert!(away.contains("Owner: hector (process 42, control socket /c)\n"), "{away}");
    assert!(away.contains("Lag: unknown: only its owner can tell\n"), "{away}");

    with_daemon(async |directory| {
        let here = context(directory, Memory::holding(vec![attached(7, "demo", "hector", "/c")]));
        let shown = text(&here, "volumes show vol_0000000000007").await;
        for line in
            ["Size: 20 GB", "Stored: 2 GB", "Durability: store", "Epoch: 5", "Lag: 8192 bytes, 1.2 s", "Clients: 2"]
        {
            assert!(shown.contains(&format!("{line}\n")), "{line}: {shown}");
        }
        assert_eq!(shown.matches("ID").count(), 1);
        // A daemon that has lost the volume to a newer epoch is not believed.
        let newer = varve::service::VolumeSummary { epoch: Epoch(6), ..attached(7, "demo", "hector", "/c") };
        let shown = text(&context(directory, Memory::holding(vec![newer])), "volumes show demo").await;
        assert!(shown.contains("Lag: unknown") && shown.contains("Size: 10 GB"), "{shown}");
    })
    .await;
}

#[tokio::test]
async fn json_is_what_the_types_say() {
    let mut context = nowhere(Memory::holding(vec![attached(7, "demo", "hector", "/c")]));
    context.json = true;
    let shown: serde_json::Value = serde_json::from_str(&text(&context, "volumes show demo").await).unwrap();
    assert_eq!(shown["id"], "vol_0000000000007");
    assert_eq!(shown["size"], 10_u64 << 30);
    assert_eq!(shown["owner"]["host"], "hector");
    assert!(shown["lag"].is_null() && shown["attached"].is_null());
    let listed: serde_json::Value = serde_json::from_str(&text(&context, "volumes list").await).unwrap();
    assert_eq!(listed[0]["state"], "attached");
    let created: serde_json::Value = serde_json::from_str(&text(&context, "volumes create x --size 1").await).unwrap();
    assert_eq!(created["id"], "vol_0000000000002");
    let several: serde_json::Value =
        serde_json::from_str(&text(&context, "volumes create x --size 1 -n 2").await).unwrap();
    assert_eq!(several.as_array().map(Vec::len), Some(2));
    let dumped: serde_json::Value = serde_json::from_str(&text(&context, "dump log ./log").await).unwrap();
    assert_eq!(dumped["text"], "LogFile(\"./log\")\n");
}

#[tokio::test]
async fn destroy_asks_refuses_what_is_attached_and_can_be_undone() {
    let context = nowhere(Memory::holding(vec![detached(1, "demo"), attached(2, "busy", "hector", "/c")]));
    let expected = "vol_0000000000002 is attached by hector (process 42, control socket /c): nothing was destroyed; \
                    detach it first: varve volumes detach vol_0000000000002";
    assert_eq!(message(&context, "volumes destroy demo busy --yes").await, expected);
    assert_eq!(message(&context, "volumes destroy demo").await, "nothing was destroyed");
    assert!(
        context.store().await.unwrap().volumes.borrow().iter().all(|volume| volume.state != VolumeState::Destroyed)
    );

    let done = text(&context, "volumes destroy demo vol_0000000000001 --yes").await;
    let expected = "Destroyed vol_0000000000001 (demo). It can be brought back until 2026-11-22T04:23:58Z: \
                    varve volumes undelete vol_0000000000001\n";
    assert_eq!(done, expected);
    assert!(message(&context, "volumes destroy vol_0000000000001 -y").await.contains("destroyed already"));
    assert!(text(&context, "volumes undelete demo").await.contains("State: detached\n"));
    assert!(message(&context, "volumes undelete demo").await.contains("no destroyed volume is named 'demo'"));

    let twice = nowhere(Memory::holding(vec![detached(1, "demo"), detached(2, "demo")]));
    text(&twice, "volumes destroy vol_0000000000001 vol_0000000000002 --yes").await;
    let expected = "2 destroyed volumes are named 'demo': use the id of one: vol_0000000000001, vol_0000000000002";
    assert_eq!(message(&twice, "volumes undelete demo").await, expected);
}

#[tokio::test]
async fn purge_says_what_is_gone_and_what_is_next() {
    let due = |id, after| varve::service::VolumeSummary { purge_after: Some(UnixMillis(after)), ..detached(id, "old") };
    let context = nowhere(Memory::holding(vec![due(1, NOW.0 - 1), due(2, NOW.0 + 3_600_000), detached(3, "demo")]));
    let expected = "              Purged: vol_0000000000001
     Objects deleted: 1
            Next due: 2026-11-21T05:23:58Z
";
    assert_eq!(text(&context, "volumes purge").await, expected);
    assert_eq!(context.store().await.unwrap().volumes.borrow().len(), 2);
}

#[tokio::test]
async fn the_daemon_is_asked_for_what_it_owns() {
    with_daemon(async |directory| {
        let context = context(directory, Memory::holding(vec![detached(1, "spare"), attached(7, "demo", "hector", "/c")]));
        let busy = message(&context, "volumes attach demo").await;
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
        assert_eq!(text(&context, "volumes attach demo --takeover").await, expected);
        let expected = "                  ID: vol_0000000000007\n              Stored: up to position 20\n                 Lag: 0 bytes, 0.0 s\n";
        assert_eq!(text(&context, "volumes sync demo").await, expected);
        assert_eq!(message(&context, "volumes detach demo").await, "vol_0000000000007 has 2 clients");
        assert!(text(&context, "volumes detach demo --force").await.contains("State: detached\n"));
        assert!(text(&context, "volumes update demo --durability local").await.contains("Durability: local\n"));
        // Volume 1 is nobody's: nothing to wait for, nothing to hand back, and the manifest can be changed.
        assert!(text(&context, "volumes sync spare").await.contains("Stored: everything\n"));
        assert!(text(&context, "volumes detach spare").await.contains("State: detached\n"));
        assert!(text(&context, "volumes update spare --durability store").await.contains("Durability: store\n"));

        let status = text(&context, "status").await;
        let expected = "             Version: 1.2.3
             Process: 42
               Store: file:///store
                 NBD: nbd://127.0.0.1:10809
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
    let context = nowhere(Memory::holding(vec![here, beside, there]));
    let start = "varved --store file:///store --state /nonexistent";
    let no_daemon = "no daemon listens at /nonexistent/control.sock";
    assert_eq!(message(&context, "status").await, format!("{no_daemon}: start one with: {start}"));
    assert_eq!(message(&context, "volumes attach there").await, format!("{no_daemon}: start one with: {start}"));
    for verb in ["detach", "sync", "update --durability store"] {
        let on_this_host = message(&context, &format!("volumes {verb} here")).await;
        assert!(
            on_this_host.contains(&format!("but {no_daemon}: start that daemon again with: {start}")),
            "{on_this_host}"
        );
        let beside = message(&context, &format!("volumes {verb} beside")).await;
        assert!(beside.contains(r"varve --control '/other/it'\''s.sock' volumes"), "{beside}");
        let on_another = message(&context, &format!("volumes {verb} there")).await;
        assert!(on_another.contains("attached by hector (process 42"), "{on_another}");
        assert!(on_another.contains("varve volumes attach vol_0000000000003 --takeover"), "{on_another}");
    }
}

#[tokio::test]
async fn check_fails_when_it_finds_something() {
    let well = nowhere(Memory::holding(vec![detached(1, "demo")]));
    let expected = "                  ID: vol_0000000000001
            Segments: 3
            Verified: 25 MB
            Problems: 0
";
    assert_eq!(text(&well, "check demo").await, expected);
    let problem =
        CheckProblem { object: "volumes/x/1".into(), what: "is missing".into(), blocks: Some("0 to 7".into()) };
    let ill = nowhere(Memory { problems: vec![problem], ..Memory::holding(vec![detached(1, "demo")]) });
    let report = run(&ill, "check demo").await.unwrap();
    assert!(
        report.text.ends_with("\nOBJECT       BLOCKS  PROBLEM\nvolumes/x/1  0 to 7  is missing\n"),
        "{}",
        report.text
    );
    assert_eq!(report.failure.as_deref(), Some("vol_0000000000001 is damaged: 1 problems were found"));
}

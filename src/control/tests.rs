//! Client and server over a real socket, with a small service behind it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::client::{CallError, Client};
use super::wire::{BODY_BYTES_MAX, ErrorBody, KINDS, http_status, kind_name};
use super::{ControlSocket, serve};
use crate::error::{Error, ErrorKind, Result};
use crate::service::{
    AttachReport, AttachedStatus, CleanReport, DaemonStatus, Durability, Lag, NewForks, NewSnapshot, Service,
    SnapshotStatus, SnapshotSummary, StoreCounts, VolumeChange, VolumeSummary, WarmReport, WarmRequest,
};
use crate::settings::ControlAddress;
use crate::units::{ByteLen, Epoch, Sequence, SnapshotId, UnixMillis, VolumeId};

const KNOWN: VolumeId = VolumeId(7);
/// A test that waits longer has failed.
const DEADLINE: Duration = Duration::from_secs(60);
const OWNED_ELSEWHERE: VolumeId = VolumeId(8);

fn client_at(path: &Path) -> Client {
    Client::new(&ControlAddress::Socket(path.to_owned()))
}

/// A daemon with one volume.
#[derive(Default)]
struct Small {
    attached: Mutex<Option<AttachedStatus>>,
    /// While set, an attach says that it began, then waits to be let go on.
    gate: Option<(Notify, Notify)>,
    finished: Notify,
}

fn attached_status(epoch: u32) -> AttachedStatus {
    AttachedStatus {
        volume: KNOWN,
        name: "demo".into(),
        size: ByteLen(10 << 30),
        epoch: Epoch(epoch),
        durability: Durability::Local,
        clients: 1,
        lag: Lag { bytes: ByteLen(4096), seconds: 0.25 },
        accepted: Sequence(u64::MAX),
        stored: Sequence(3),
        stored_bytes: ByteLen(1 << 20),
        live_bytes: ByteLen(1 << 19),
        hydration: None,
        log_used: ByteLen(8192),
        log_length: ByteLen(1 << 30),
        warming: None,
        failed: None,
    }
}

#[async_trait]
impl Service for Small {
    fn daemon(&self) -> DaemonStatus {
        DaemonStatus {
            version: "1.2.3".into(),
            pid: 42,
            host: "hector".into(),
            control: "/c".into(),
            store: "file:///store".into(),
            nbd: vec!["nbd://127.0.0.1:10809".into()],
            control_tcp: None,
            store_counts: StoreCounts { gets: 5, ..StoreCounts::default() },
        }
    }

    fn attached(&self) -> Vec<AttachedStatus> {
        self.attached.lock().iter().cloned().collect()
    }

    async fn attach(&self, volume: VolumeId, takeover: bool) -> Result<AttachReport> {
        if let Some((began, go_on)) = &self.gate {
            began.notify_one();
            go_on.notified().await;
        }
        if volume == OWNED_ELSEWHERE && !takeover {
            return Err(Error::new(ErrorKind::Busy, format!("{volume} is attached by hector")));
        }
        let status = attached_status(2);
        *self.attached.lock() = Some(status.clone());
        self.finished.notify_one();
        let previous_owner = takeover.then(|| "hector".to_owned());
        Ok(AttachReport {
            status,
            resumed: Sequence(3),
            replayed_records: 0,
            taken_over: takeover,
            previous_owner,
            rescued_log: None,
        })
    }

    async fn detach(&self, volume: VolumeId, force: bool) -> Result<()> {
        if !force {
            return Err(Error::new(ErrorKind::Busy, format!("{volume} has 1 client")));
        }
        self.attached
            .lock()
            .take()
            .map(|_| ())
            .ok_or_else(|| Error::not_found(format!("{volume} is not attached here")))
    }

    async fn sync(&self, volume: VolumeId) -> Result<AttachedStatus> {
        let attached = self.attached.lock().clone();
        attached.ok_or_else(|| Error::not_found(format!("{volume} is not attached here")))
    }

    async fn update(&self, _volume: VolumeId, change: VolumeChange) -> Result<AttachedStatus> {
        let status = attached_status(2);
        let (size, durability) = (change.size.unwrap_or(status.size), change.durability.unwrap_or(status.durability));
        Ok(AttachedStatus { size, durability, ..status })
    }

    async fn hydrate(&self, volume: VolumeId) -> Result<AttachedStatus> {
        self.sync(volume).await
    }

    async fn clean(&self, volume: VolumeId) -> Result<CleanReport> {
        match self.attached.lock().as_ref().filter(|status| status.volume == volume) {
            Some(status) => Ok(CleanReport { stored: status.stored_bytes, ..CleanReport::default() }),
            None => Err(Error::not_found(format!("{volume} is not attached here"))),
        }
    }

    async fn warm(&self, volume: VolumeId, request: WarmRequest) -> Result<WarmReport> {
        match request.from {
            None => {
                self.sync(volume).await.map(|status| WarmReport { fetched: status.live_bytes, ..WarmReport::default() })
            }
            Some(id) => Err(Error::invalid(format!("there is no trace of {id}"))),
        }
    }

    async fn snapshot(&self, volume: VolumeId, new: NewSnapshot) -> Result<SnapshotSummary> {
        Ok(SnapshotSummary {
            id: SnapshotId(3),
            name: new.name,
            volume,
            status: SnapshotStatus::Ready,
            size: ByteLen(1 << 30),
            stored_bytes: ByteLen(0),
            created_at: UnixMillis(1),
            expires_at: new.retention_seconds.map(|seconds| UnixMillis(1 + seconds * 1000)),
            scheduled: false,
        })
    }

    async fn fork(&self, _volume: VolumeId, new: NewForks) -> Result<Vec<VolumeSummary>> {
        Err(Error::invalid(format!("no {} forks named {:?}", new.count, new.name)))
    }
}

struct Running {
    directory: tempfile::TempDir,
    client: Client,
    service: Arc<Small>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<()>>,
}

impl Running {
    fn start(service: Small) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let service = Arc::new(service);
        let (stop, stopped) = oneshot::channel::<()>();
        let socket = ControlSocket::bind(&path).unwrap();
        let serving = serve(socket, service.clone(), async move { stopped.await.unwrap_or_default() });
        let server = tokio::spawn(serving);
        Running { client: client_at(&path), directory, service, stop, server }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.server.await.unwrap().unwrap();
    }

    /// Sends bytes as they are and returns the status line and the body.
    async fn raw(&self, request: &str) -> (String, String) {
        let mut stream = tokio::net::UnixStream::connect(self.path()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}

fn failed<T: std::fmt::Debug>(result: Result<T, CallError>) -> Error {
    match result {
        Err(CallError::Failed(error)) => error,
        other => panic!("expected the daemon to refuse, got {other:?}"),
    }
}

#[tokio::test]
async fn every_request_reaches_the_service_and_its_answer_comes_back() {
    let running = Running::start(Small::default());
    let client = &running.client;
    assert_eq!(client.status().await.unwrap(), running.service.daemon());
    assert_eq!(client.volumes().await.unwrap(), vec![]);
    assert_eq!(failed(client.volume(KNOWN).await).kind(), ErrorKind::NotFound);
    let report = client.attach(KNOWN, true).await.unwrap();
    assert_eq!(report.previous_owner.as_deref(), Some("hector"));
    assert_eq!(client.volumes().await.unwrap(), vec![attached_status(2)]);
    assert_eq!(client.volume(KNOWN).await.unwrap(), attached_status(2));
    assert_eq!(client.sync(KNOWN).await.unwrap(), attached_status(2));
    let change =
        VolumeChange { durability: Some(Durability::Store), size: Some(ByteLen(11 << 30)), ..VolumeChange::default() };
    let changed = client.update(KNOWN, &change).await.unwrap();
    assert_eq!((changed.durability, changed.size), (Durability::Store, ByteLen(11 << 30)));
    let new = NewSnapshot { name: Some("nightly".into()), retention_seconds: Some(5) };
    let snapshot = client.snapshot(KNOWN, &new).await.unwrap();
    assert_eq!((snapshot.name, snapshot.expires_at), (new.name, Some(UnixMillis(5001))));
    let refused = failed(client.fork(KNOWN, &NewForks { name: Some("f".into()), count: 2, region: None }).await);
    assert_eq!(refused.message(), "no 2 forks named Some(\"f\")");
    let busy = failed(client.detach(KNOWN, false).await);
    assert_eq!((busy.kind(), busy.message()), (ErrorKind::Busy, "vol_0000000000007 has 1 client"));
    client.detach(KNOWN, true).await.unwrap();
    assert!(client.sync(KNOWN).await.is_err_and(|error| error.is_not_found()));
    let owned = failed(client.attach(OWNED_ELSEWHERE, false).await);
    assert!(owned.message().contains("hector"), "{owned}");
    running.stop().await;
}

#[tokio::test]
async fn requests_that_make_no_sense_get_a_json_error() {
    let running = Running::start(Small::default());
    let long = "x".repeat(BODY_BYTES_MAX + 1);
    let post = |resource: &str, body: &str| {
        format!(
            "POST {resource} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let attach = "/v1/volumes/vol_0000000000007/attach";
    for (request, status, message) in [
        (post("/v1/volumes/vol_x/attach", ""), "400", "not the id of a volume"),
        (post("/v1/volumes/..%2f..%2fetc/attach", ""), "400", "not the id of a volume"),
        (post(attach, "{\"takeover\": 1}"), "400", "expected a boolean"),
        (post(attach, "{\"take_over\": true}"), "400", "take_over"),
        (post(attach, "["), "400", "not the JSON"),
        (post(attach, &long), "400", "more than 65536 bytes"),
        (post("/v1/nothing", ""), "404", "no resource /v1/nothing"),
        (post("/v1/status", ""), "405", "does not take POST"),
        (post("/v1/volumes/vol_0000000000007/sync", ""), "404", "not attached here"),
        (
            "PATCH /v1/volumes/vol_0000000000007 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(),
            "400",
            "not the JSON",
        ),
    ] {
        let (line, body) = running.raw(&request).await;
        assert!(line.contains(status), "{line}: {body}");
        let error: ErrorBody = serde_json::from_str(&body).unwrap();
        assert!(error.error.message.contains(message), "{body}");
    }
    let (line, _) = running.raw("garbage\r\n\r\n").await;
    assert!(line.contains("400"), "{line}");
    assert!(running.raw(&post(attach, "")).await.0.contains("200"));
    running.stop().await;
}

#[tokio::test]
async fn an_attach_is_finished_though_its_client_has_gone() {
    let running = Running::start(Small { gate: Some((Notify::new(), Notify::new())), ..Small::default() });
    let client = running.client.clone();
    let caller = tokio::spawn(async move { client.attach(KNOWN, false).await });
    let (began, go_on) = running.service.gate.as_ref().unwrap();
    began.notified().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    // A whole request in between: the server has had its chance to notice that the client is gone.
    running.client.status().await.unwrap();
    go_on.notify_one();
    let finished = running.service.finished.notified();
    assert!(tokio::time::timeout(DEADLINE, finished).await.is_ok(), "the attach was cut off with its client");
    assert_eq!(running.client.volumes().await.unwrap().len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_daemon() {
    let running = Running::start(Small::default());
    let path = running.path();
    assert_eq!(std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let second = ControlSocket::bind(&path).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::Busy);
    running.client.status().await.unwrap();
    let (client, directory) = (running.client.clone(), tempfile::tempdir().unwrap());
    running.stop().await;
    assert!(matches!(client.status().await, Err(CallError::NoDaemon(at)) if at == path));
    assert!(!path.exists());

    let other = client_at(&directory.path().join("never.sock"));
    let error = other.sync(KNOWN).await.unwrap_err();
    let path = directory.path().join("never.sock");
    assert_eq!(error.to_string(), format!("no daemon listens at {}", path.display()));
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    // What a daemon that was killed leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let client = client_at(&path);
    assert!(matches!(client.status().await, Err(CallError::NoDaemon(_))));
    let first = ControlSocket::bind(&path).unwrap();

    // A file that is no longer ours stays.
    std::fs::remove_file(&path).unwrap();
    let second = ControlSocket::bind(&path).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    assert_eq!(ControlSocket::bind(&path).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let long = Path::new("/tmp").join("x".repeat(120));
    assert!(ControlSocket::bind(&long).unwrap_err().message().contains("107 bytes"));
}

#[tokio::test]
async fn something_else_behind_the_socket_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let other = tokio::spawn(async move {
        for answer in
            ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", ""]
        {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let client = client_at(&path);
    assert_eq!(failed(client.status().await).kind(), ErrorKind::Unsupported);
    assert!(failed(client.status().await).message().contains("no varved"));
    let gone = failed(client.status().await);
    assert!(gone.kind() == ErrorKind::Unavailable && gone.message().contains("went away"), "{gone}");
    other.await.unwrap();
}

#[test]
fn every_kind_of_error_survives_the_way_through_json() {
    for kind in KINDS {
        let error = Error::new(kind, "what happened");
        let text = serde_json::to_string(&ErrorBody::from(&error)).unwrap();
        let back = Error::from(serde_json::from_str::<ErrorBody>(&text).unwrap());
        assert_eq!((back.kind(), back.message()), (kind, "what happened"));
        assert!((400..600).contains(&http_status(kind)), "{}", kind_name(kind));
    }
    let newer = r#"{"error": {"kind": "tired", "message": "later"}}"#;
    assert_eq!(Error::from(serde_json::from_str::<ErrorBody>(newer).unwrap()).message(), "later");
}

//! Requests on the control socket, to the real server before a service that does nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::{Builder, Runtime};
use varve::control::{ControlSocket, serve};
use varve::error::{Error, Result};
use varve::service::{
    AttachReport, AttachedStatus, CleanReport, DaemonStatus, NewForks, NewSnapshot, Service, SnapshotSummary,
    StoreCounts, VolumeChange, VolumeSummary, WarmReport, WarmRequest,
};
use varve::units::VolumeId;

/// A server that is silent for longer hangs.
const SILENCE: Duration = Duration::from_secs(30);

struct Idle;

fn nothing<T>(volume: VolumeId) -> Result<T> {
    Err(Error::not_found(format!("{volume} is not attached here")))
}

#[async_trait]
impl Service for Idle {
    fn daemon(&self) -> DaemonStatus {
        DaemonStatus {
            version: "0".into(),
            pid: 1,
            host: String::new(),
            control: String::new(),
            store: "memory:".into(),
            nbd: Vec::new(),
            control_tcp: None,
            store_counts: StoreCounts::default(),
        }
    }

    fn attached(&self) -> Vec<AttachedStatus> {
        Vec::new()
    }

    async fn attach(&self, volume: VolumeId, _: bool) -> Result<AttachReport> {
        nothing(volume)
    }

    async fn detach(&self, volume: VolumeId, _: bool) -> Result<()> {
        nothing(volume)
    }

    async fn sync(&self, volume: VolumeId) -> Result<AttachedStatus> {
        nothing(volume)
    }

    async fn update(&self, volume: VolumeId, _: VolumeChange) -> Result<AttachedStatus> {
        nothing(volume)
    }

    async fn hydrate(&self, volume: VolumeId) -> Result<AttachedStatus> {
        nothing(volume)
    }

    async fn clean(&self, volume: VolumeId) -> Result<CleanReport> {
        nothing(volume)
    }

    async fn warm(&self, volume: VolumeId, _: WarmRequest) -> Result<WarmReport> {
        nothing(volume)
    }

    async fn snapshot(&self, volume: VolumeId, _: NewSnapshot) -> Result<SnapshotSummary> {
        nothing(volume)
    }

    async fn fork(&self, volume: VolumeId, _: NewForks) -> Result<Vec<VolumeSummary>> {
        nothing(volume)
    }
}

struct Site {
    socket: PathBuf,
    _runtime: Runtime,
    _folder: tempfile::TempDir,
}

fn site() -> &'static Site {
    static SITE: OnceLock<Site> = OnceLock::new();
    SITE.get_or_init(|| {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let bound = runtime.block_on(async { ControlSocket::bind(&socket).unwrap() });
        runtime.spawn(serve(bound, Arc::new(Idle), std::future::pending()));
        Site { socket, _runtime: runtime, _folder: folder }
    })
}

/// A request: `METHOD /path`, a line end, and the body; or, behind a zero byte, all that the client sends as it is.
pub fn control_request(bytes: &[u8]) {
    if let Some((0, raw)) = bytes.split_first() {
        exchange(raw, true);
        return;
    }
    let cut = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let line: String = String::from_utf8_lossy(&bytes[..cut]).chars().filter(|letter| !letter.is_control()).collect();
    let body = bytes.get(cut + 1..).unwrap_or_default();
    let mut request =
        format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len())
            .into_bytes();
    request.extend_from_slice(body);
    let answer = exchange(&request, false);
    let head = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
    // A request line that is none is HTTP's to refuse, not ours; a body that was too long may cost the answer.
    assert!(head.starts_with("HTTP/1.") || body.len() > 64 << 10, "{line}: {head}");
    if head.ends_with("500") {
        panic!("{line}: {}", String::from_utf8_lossy(&answer));
    }
}

/// Sends a request, and the end of the stream where the request may not ask for one, which cuts off what is under way.
fn exchange(request: &[u8], ends: bool) -> Vec<u8> {
    let mut stream = UnixStream::connect(&site().socket).unwrap();
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let mut sending = stream.try_clone().unwrap();
    let mut answer = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The server may have closed already.
            let _ = sending.write_all(request);
            if ends {
                let _ = sending.shutdown(Shutdown::Write);
            }
        });
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
            Err(error) => panic!("the server neither answers nor closes: {error}"),
        }
    });
    answer
}

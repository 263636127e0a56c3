//! What NBD clients send: to the decoders alone, and to the whole server.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use varve::block_device::Geometry;
use varve::nbd::options::{
    check_queries, decode_info, decode_meta, export_name, names_all_snapshots, select_contexts, snapshots_named,
};
use varve::nbd::protocol::Style;
use varve::nbd::request::{Parsed, judge, parse};
use varve::nbd::{NbdSettings, Server};

use super::memory_device::{MemoryDevice, MemoryExports};

/// Bytes of the disks, so that no read is long.
const SIZE: u64 = 256 << 10;
/// A server that is silent for longer hangs.
const SILENCE: Duration = Duration::from_secs(30);

/// The data of one option of the handshake.
pub fn nbd_option(bytes: &[u8]) {
    if let Ok(query) = decode_info(bytes) {
        let _ = export_name(query.name);
    }
    if let Ok(query) = decode_meta(bytes) {
        let _ = (export_name(query.name), check_queries(&query.queries));
        let snapshots = snapshots_named(&query.queries);
        for list in [false, true] {
            let _ = names_all_snapshots(&query.queries, list);
            let chosen = select_contexts(&query.queries, list, &snapshots);
            assert!(chosen.len() <= 64, "the number of contexts is bounded");
        }
    }
}

/// A stream of requests, in each of the three styles.
pub fn nbd_requests(bytes: &[u8]) {
    let geometry = Geometry { size: SIZE, read_only: false, preferred_block: 4096 };
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let mut rest = bytes;
        loop {
            match parse(style, rest) {
                Parsed::Whole { head, payload } => {
                    if judge(style, &head, &geometry).is_ok() && head.command != 3 {
                        assert!(head.offset + head.length <= geometry.size);
                    }
                    assert!(payload.end <= rest.len() && payload.start > 0);
                    rest = &rest[payload.end..];
                }
                Parsed::Part { needed } => {
                    assert!(needed > rest.len() && needed <= (32 << 20) + 64);
                    break;
                }
                Parsed::TooLong { payload_bytes, .. } => {
                    assert!(payload_bytes > 32 << 20);
                    break;
                }
                Parsed::Garbage { reason } => {
                    assert!(!reason.is_empty());
                    break;
                }
            }
        }
    }
}

struct Site {
    socket: PathBuf,
    _server: Server,
    _runtime: Runtime,
    _folder: tempfile::TempDir,
}

fn site() -> &'static Site {
    static SITE: OnceLock<Site> = OnceLock::new();
    SITE.get_or_init(|| {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut exports = MemoryExports::default();
        exports.devices.insert("disk".to_owned(), MemoryDevice::new(SIZE, false));
        exports.devices.insert("read-only".to_owned(), MemoryDevice::new(SIZE, true));
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nbd.sock");
        let settings = NbdSettings { tcp: Vec::new(), unix: vec![socket.clone()], ..NbdSettings::default() };
        let server = Server::start(settings, Arc::new(exports), runtime.handle().clone()).unwrap();
        Site { socket, _server: server, _runtime: runtime, _folder: folder }
    })
}

/// All that one client sends, from its first byte on. The server must have closed the connection in the end.
pub fn nbd_session(bytes: &[u8]) {
    let mut stream = UnixStream::connect(&site().socket).unwrap();
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let mut sending = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The server may have closed already.
            let _ = sending.write_all(bytes);
            let _ = sending.shutdown(Shutdown::Write);
        });
        let mut buffer = [0; 16 << 10];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => break,
                Err(error) => panic!("the server neither answers nor closes: {error}"),
            }
        }
    });
}

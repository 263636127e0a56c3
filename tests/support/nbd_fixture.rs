//! A server over disks in memory, and the runtime it needs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use varve::nbd::{NbdSettings, Server};

use super::memory_device::{MemoryDevice, MemoryExports};

/// Bytes of each disk but `big`.
pub const SIZE: u64 = 8 << 20;

/// See the file's description.
pub struct Fixture {
    /// The disk named `disk`.
    pub disk: Arc<MemoryDevice>,
    /// All disks: `disk`, `read-only`, `secret` (not listed), and `big` (64 MiB).
    pub exports: Arc<MemoryExports>,
    /// The server.
    pub server: Server,
    /// After the server, so that it is dropped later.
    pub _runtime: Runtime,
}

impl Fixture {
    /// A server on a TCP port of its own.
    pub fn new() -> Self {
        Fixture::with(|_| {})
    }

    /// A server whose settings were changed.
    pub fn with(change: impl FnOnce(&mut NbdSettings)) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let disk = MemoryDevice::new(SIZE, false);
        let mut exports = MemoryExports::default();
        exports.devices.insert("disk".to_owned(), disk.clone());
        exports.devices.insert("read-only".to_owned(), MemoryDevice::new(SIZE, true));
        exports.devices.insert("secret".to_owned(), MemoryDevice::new(SIZE, false));
        exports.devices.insert("big".to_owned(), MemoryDevice::new(64 << 20, false));
        let exports = Arc::new(exports);
        let mut settings = NbdSettings { tcp: vec!["127.0.0.1:0".parse().unwrap()], ..NbdSettings::default() };
        change(&mut settings);
        let server = Server::start(settings, exports.clone(), runtime.handle().clone()).unwrap();
        Fixture { disk, exports, server, _runtime: runtime }
    }

    /// The URI of the first socket.
    pub fn address(&self) -> String {
        self.server.addresses()[0].clone()
    }

    /// Waits for something that the server does after the client has gone on.
    pub fn wait_for(&self, condition: impl Fn(&Fixture) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition(self) {
            assert!(Instant::now() < deadline, "it has not come about");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until no client has an export open.
    pub fn wait_until_left(&self) {
        self.wait_for(|fixture| {
            fixture.exports.clients.load(Ordering::SeqCst) == 0 && fixture.server.connections() == 0
        });
    }
}

//! The NBD server: accepts connections, gives each a thread, and stops them all.
//!
//! # Bounds
//! At most `connections_max` connections; what comes beyond is closed at once. A handshake has a time limit. A connection
//! that cannot have a thread, or a descriptor, is shed; the others go on. What all of them hold in memory for long requests and for
//! requests that are not answered at once is bounded together, half of it for what comes in and half for the rest.
//!
//! # Stopping
//! No more connections are accepted and no more is received; what was received is answered; then connections close. What has not
//! closed by the deadline is cut off.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use tokio::runtime::Handle;

use super::budget::Budget;
use super::connection::Connection;
use super::flow::Flow;
use super::handshake::{Agreement, Host, negotiate};
use super::listen::Listener;
use super::session::Session;
use super::tls::{Tls, TlsMode, TlsSettings};
use super::transport::{Channel, shut};
use super::writer::Writer;
use crate::block_device::{Exports, OpenDevice};
use crate::clock;
use crate::error::{Context, Error, Result};
use crate::limits::NBD_INFLIGHT_BYTES_MAX;

/// Stack of a connection's thread. Slow work runs on the runtime; what runs here is parsing and the device's
/// `try_` forms, which may look into RocksDB.
const STACK_BYTES: usize = 512 << 10;
/// How long accepting pauses when it fails for want of descriptors.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How the server is set up.
#[derive(Clone, Debug)]
pub struct NbdSettings {
    /// TCP addresses to listen on.
    pub tcp: Vec<SocketAddr>,
    /// Unix sockets to listen on.
    pub unix: Vec<PathBuf>,
    /// Also listen on the sockets that systemd hands over.
    pub inherited: bool,
    /// TLS.
    pub tls: TlsSettings,
    /// Connections at a time.
    pub connections_max: usize,
    /// How long a client may take for its handshake.
    pub handshake_time: Duration,
    /// Bytes of payloads and replies in flight for each connection.
    pub inflight_bytes_max: u64,
    /// Bytes of payloads and replies in flight for all connections together, beyond what every connection has of its own.
    pub transfer_bytes_max: u64,
}

impl Default for NbdSettings {
    fn default() -> Self {
        NbdSettings {
            tcp: Vec::new(),
            unix: Vec::new(),
            inherited: false,
            tls: TlsSettings::default(),
            connections_max: 1024,
            handshake_time: Duration::from_secs(10),
            inflight_bytes_max: NBD_INFLIGHT_BYTES_MAX,
            transfer_bytes_max: 4 * NBD_INFLIGHT_BYTES_MAX,
        }
    }
}

/// A running server. Dropping it stops it without patience.
pub struct Server {
    shared: Arc<Shared>,
    addresses: Vec<String>,
    acceptor: Option<JoinHandle<()>>,
    /// Ending it wakes the acceptor.
    wake: UnixStream,
}

struct Shared {
    exports: Arc<dyn Exports>,
    runtime: Handle,
    tls: Tls,
    connections_max: usize,
    handshake_time: Duration,
    inflight_bytes_max: u64,
    incoming: Arc<Budget>,
    outgoing: Arc<Budget>,
    stopping: AtomicBool,
    /// Readable, at its end, when the acceptor should look at `stopping`.
    woken: UnixStream,
    connections: Mutex<Connections>,
    gone: Condvar,
}

#[derive(Default)]
struct Connections {
    next: u64,
    sockets: HashMap<u64, Arc<OwnedFd>>,
}

impl Server {
    /// Listens and serves. Work that must wait runs on `runtime`, which must have I/O and time enabled.
    ///
    /// # Errors
    /// `Invalid` (nothing to listen on, TLS files unfit), `Busy`, `Conflict`, `Io`: nothing was started.
    pub fn start(settings: NbdSettings, exports: Arc<dyn Exports>, runtime: Handle) -> Result<Server> {
        let tls = Tls::load(&settings.tls)?;
        let mut listeners = Vec::new();
        for &address in &settings.tcp {
            listeners.push(Listener::tcp(address)?);
        }
        for path in &settings.unix {
            listeners.push(Listener::unix(path)?);
        }
        if settings.inherited {
            listeners.extend(Listener::inherited()?);
        }
        if listeners.is_empty() {
            return Err(Error::invalid("the NBD server has nothing to listen on: name an address or a Unix socket"));
        }
        let addresses = listeners.iter().map(|listener| listener.uri(tls.mode == TlsMode::Require)).collect();
        let (wake, woken) = UnixStream::pair().context(|| "cannot make a pair of sockets for the NBD server")?;
        let shared = Arc::new(Shared {
            exports,
            runtime,
            tls,
            connections_max: settings.connections_max,
            handshake_time: settings.handshake_time,
            inflight_bytes_max: settings.inflight_bytes_max,
            incoming: Arc::new(Budget::new(settings.transfer_bytes_max / 2)),
            outgoing: Arc::new(Budget::new(settings.transfer_bytes_max / 2)),
            stopping: AtomicBool::new(false),
            woken,
            connections: Mutex::default(),
            gone: Condvar::new(),
        });
        let acceptor = thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn({
                let shared = shared.clone();
                move || accept_all(&shared, &listeners)
            })
            .context(|| "cannot start the thread that accepts NBD connections")?;
        Ok(Server { shared, addresses, acceptor: Some(acceptor), wake })
    }

    /// The URIs to reach it, without an export.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.clone()
    }

    /// The number of connections, those in their handshake included.
    pub fn connections(&self) -> usize {
        self.shared.connections.lock().sockets.len()
    }

    /// Stops: see the module's description. Blocks for at most `patience`, and a moment for what is cut off then; must
    /// not be called on a thread of the runtime. Returns the number of connections that had to be cut off.
    pub fn stop(mut self, patience: Duration) -> usize {
        self.end(patience)
    }

    fn end(&mut self, patience: Duration) -> usize {
        let Some(acceptor) = self.acceptor.take() else { return 0 };
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        shut(&self.wake, Shutdown::Both);
        if acceptor.join().is_err() {
            tracing::error!("the thread that accepts NBD connections has panicked");
        }
        shared.shut_all(Shutdown::Read);
        let left = shared.wait_for_none(patience);
        if left > 0 {
            tracing::warn!(connections = left, "cutting off NBD connections that did not finish in time");
            shared.shut_all(Shutdown::Both);
            shared.wait_for_none(Duration::from_secs(1));
        }
        left
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

impl Shared {
    fn shut_all(&self, how: Shutdown) {
        for socket in self.connections.lock().sockets.values() {
            shut(socket, how);
        }
    }

    /// Waits until no connection is left, and returns how many are left all the same.
    fn wait_for_none(&self, patience: Duration) -> usize {
        let deadline = clock::uptime() + patience;
        let mut connections = self.connections.lock();
        while !connections.sockets.is_empty() {
            let left = deadline.saturating_sub(clock::uptime());
            if left.is_zero() {
                break;
            }
            self.gone.wait_for(&mut connections, left);
        }
        connections.sockets.len()
    }

    fn register(self: &Arc<Self>, socket: &Arc<OwnedFd>) -> Option<Place> {
        let mut connections = self.connections.lock();
        if connections.sockets.len() >= self.connections_max {
            return None;
        }
        let number = connections.next;
        connections.next += 1;
        connections.sockets.insert(number, socket.clone());
        Some(Place { shared: self.clone(), number })
    }
}

/// A connection's place among the connections; dropping it gives the place back.
struct Place {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.connections.lock().sockets.remove(&self.number);
        self.shared.gone.notify_all();
    }
}

fn accept_all(shared: &Arc<Shared>, listeners: &[Listener]) {
    while !shared.stopping.load(Ordering::SeqCst) {
        let mut waits: Vec<_> = listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)).collect();
        waits.push(PollFd::new(&shared.woken, PollFlags::IN));
        if let Err(error) = poll(&mut waits, None)
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "cannot wait for NBD connections");
            return;
        }
        for (listener, wait) in listeners.iter().zip(&waits) {
            if wait.revents().is_empty() {
                continue;
            }
            match listener.accept() {
                Ok(socket) => serve(shared, socket),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an NBD connection");
                    let _ = poll(&mut [PollFd::new(&shared.woken, PollFlags::IN)], Some(&ACCEPT_PAUSE));
                }
            }
        }
    }
}

fn serve(shared: &Arc<Shared>, socket: OwnedFd) {
    let socket = Arc::new(socket);
    let Some(place) = shared.register(&socket) else {
        return tracing::warn!(limit = shared.connections_max, "refusing an NBD connection: there are too many");
    };
    let thread = thread::Builder::new().name("nbd".to_owned()).stack_size(STACK_BYTES);
    if let Err(error) = thread.spawn(move || serve_one(&place, socket)) {
        tracing::warn!(%error, "refusing an NBD connection: no thread to be had");
    }
}

fn serve_one(place: &Place, socket: Arc<OwnedFd>) {
    let shared = &place.shared;
    let host = Host { exports: &shared.exports, runtime: &shared.runtime, tls: &shared.tls };
    let agreement = match negotiate(host, Channel::new(socket, shared.handshake_time)) {
        Ok(Some(agreement)) => agreement,
        Ok(None) => return,
        Err(error) => return tracing::debug!(%error, "an NBD handshake failed"),
    };
    let Agreement { style, contexts, open, channel } = agreement;
    let OpenDevice { device, session: client } = open;
    let transport = Arc::new(channel.into_transport());
    let session = Session {
        device,
        style,
        contexts,
        writer: Writer::new(transport.clone(), shared.runtime.clone()),
        flow: Flow::new(shared.inflight_bytes_max, shared.outgoing.clone()),
        incoming: shared.incoming.clone(),
        runtime: shared.runtime.clone(),
    };
    Connection::new(Arc::new(session), transport).run();
    drop(client);
}

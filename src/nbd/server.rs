//! The NBD server: accepts connections, gives each a thread, and stops them all.
//!
//! # Bounds
//! At most `connections_max` connections, and `origin_connections_max` of one host; what comes beyond is closed at once (`crowd`). A handshake
//! has a time limit. A connection that cannot have a thread, or a descriptor, is shed; the others go on. What all of them hold in memory for
//! long requests and for requests that are not answered at once is bounded together, half of it for what comes in and half for the rest;
//! who keeps some of it from others and does not go on is cut off.
//!
//! # Who may connect
//! A TCP socket that other machines can reach is not opened without TLS, unless the settings say so. Unix sockets are guarded by file
//! permissions: there TLS may be used and is never asked for, and the rules by certificate do not hold.
//!
//! # Stopping
//! No more connections are accepted and no more is received; what was received is answered; then connections close. What has not
//! closed by the deadline is cut off.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::budget::{Account, Budget, Purse};
use super::connection::Connection;
use super::crowd::{Crowd, Place};
use super::flow::{Flow, LOOK};
use super::handshake::{Agreement, Host, negotiate};
use super::listen::{Listener, Origin};
use super::pace::{Share, Watched};
use super::permission::Rules;
use super::session::Session;
use super::tls::{Tls, TlsMode, TlsSettings};
use super::transport::{Channel, shut};
use super::writer::Writer;
use crate::block_device::{Exports, OpenDevice};
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
    /// Which exports a client may open, by its certificate; without rules, who gets in may open all. They need TLS to be required, and an
    /// authority for clients.
    pub rules: Option<Rules>,
    /// Listen where other machines can connect though TLS is not required.
    pub allow_insecure_tcp: bool,
    /// Connections at a time.
    pub connections_max: usize,
    /// Connections at a time from one address (of IPv6: one network of 64 bits).
    pub origin_connections_max: usize,
    /// How long a client may take for its handshake.
    pub handshake_time: Duration,
    /// How long a client may be idle; for ever if nothing is said.
    pub idle_time: Option<Duration>,
    /// How long a client may neither send the rest of a long request nor take its replies while others wait for the memory.
    pub stall_time: Duration,
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
            rules: None,
            allow_insecure_tcp: false,
            connections_max: 1024,
            origin_connections_max: 1024,
            handshake_time: Duration::from_secs(10),
            idle_time: None,
            stall_time: Duration::from_secs(10),
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
    rules: Option<Arc<Rules>>,
    handshake_time: Duration,
    idle_time: Option<Duration>,
    inflight_bytes_max: u64,
    incoming: Arc<Budget>,
    outgoing: Arc<Budget>,
    /// Of the exports that anybody has open, by id: what their clients have of both budgets.
    accounts: Mutex<HashMap<String, Weak<Accounts>>>,
    stopping: AtomicBool,
    /// Readable, at its end, when the acceptor should look at `stopping`.
    woken: UnixStream,
    crowd: Arc<Crowd>,
}

/// What the clients of one export have of both budgets.
#[derive(Default)]
struct Accounts {
    incoming: Arc<Account>,
    outgoing: Arc<Account>,
}

impl Shared {
    fn accounts(&self, export: String) -> Arc<Accounts> {
        let mut all = self.accounts.lock();
        if let Some(known) = all.get(&export).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, accounts| accounts.strong_count() > 0);
        let new = Arc::new(Accounts::default());
        all.insert(export, Arc::downgrade(&new));
        new
    }
}

impl Server {
    /// Listens and serves. Work that must wait runs on `runtime`, which must have I/O and time enabled.
    ///
    /// # Errors
    /// `Invalid` (nothing to listen on, TLS files unfit, open to other machines without TLS), `Busy`, `Conflict`, `Io`: nothing was started.
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
        check_access(&settings, &listeners)?;
        let addresses = listeners.iter().map(|listener| listener.uri(tls.mode == TlsMode::Require)).collect();
        let crowd = Crowd::new(settings.connections_max, settings.origin_connections_max);
        let budget = |share| {
            let (budget, crowd) = (Budget::new(settings.transfer_bytes_max / 2), crowd.clone());
            budget
                .relieve(LOOK.min(settings.stall_time / 4), move || crowd.cut_off_stalled(share, settings.stall_time));
            Arc::new(budget)
        };
        let (wake, woken) = UnixStream::pair().context(|| "cannot make a pair of sockets for the NBD server")?;
        let shared = Arc::new(Shared {
            exports,
            runtime,
            tls,
            rules: settings.rules.map(Arc::new),
            handshake_time: settings.handshake_time,
            idle_time: settings.idle_time,
            inflight_bytes_max: settings.inflight_bytes_max,
            incoming: budget(Share::Incoming),
            outgoing: budget(Share::Outgoing),
            accounts: Mutex::default(),
            stopping: AtomicBool::new(false),
            woken,
            crowd: crowd.clone(),
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
        self.shared.crowd.count()
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
        shared.crowd.shut_all(Shutdown::Read);
        let left = shared.crowd.wait_for_none(patience);
        if left > 0 {
            tracing::warn!(connections = left, "cutting off NBD connections that did not finish in time");
            shared.crowd.shut_all(Shutdown::Both);
            shared.crowd.wait_for_none(Duration::from_secs(1));
        }
        left
    }
}

/// Refuses what would let in whom nobody has asked for.
fn check_access(settings: &NbdSettings, listeners: &[Listener]) -> Result<()> {
    let required = settings.tls.mode == TlsMode::Require;
    if settings.rules.is_some() && !(required && settings.tls.client_authority.is_some()) {
        return Err(Error::invalid(
            "the table of clients goes by their certificates: set tls = \"require\" and tls-client-ca as well",
        ));
    }
    for address in listeners.iter().filter_map(Listener::exposed) {
        if !required && !settings.allow_insecure_tcp {
            return Err(Error::invalid(format!(
                "NBD on {address} can be reached from other machines, and without TLS anybody there could read and change every disk: set tls = \"require\" \
                 (--tls require) with a certificate, listen on 127.0.0.1 or a Unix socket, or set allow-insecure-tcp = true (--allow-insecure-tcp) if the network itself is safe"
            )));
        }
        if settings.tls.client_authority.is_none() {
            tracing::warn!(
                "NBD on {address} can be reached from other machines, and clients need no certificate: whoever can connect can read and change every disk; tls-client-ca asks for certificates"
            );
        }
    }
    Ok(())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
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
                Ok((socket, origin)) => serve(shared, socket, origin),
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

fn serve(shared: &Arc<Shared>, socket: OwnedFd, origin: Origin) {
    let socket = Arc::new(socket);
    let Some(place) = shared.crowd.admit(&socket, origin) else { return };
    let shared = shared.clone();
    let thread = thread::Builder::new().name("nbd".to_owned()).stack_size(STACK_BYTES);
    if let Err(error) = thread.spawn(move || serve_one(&shared, &place, socket, origin)) {
        tracing::warn!(%error, "refusing an NBD connection: no thread to be had");
    }
}

fn serve_one(shared: &Shared, place: &Place, socket: Arc<OwnedFd>, origin: Origin) {
    let is_remote = origin != Origin::Here;
    let host = Host {
        exports: &shared.exports,
        rules: shared.rules.as_ref().filter(|_| is_remote),
        runtime: &shared.runtime,
        tls: &shared.tls,
        tls_required: shared.tls.mode == TlsMode::Require && is_remote,
        asked: &|| place.enters(),
    };
    let agreement = match negotiate(host, Channel::new(socket, shared.handshake_time)) {
        Ok(Some(agreement)) => agreement,
        Ok(None) => return,
        Err(error) => return tracing::debug!(%origin, %error, "an NBD handshake failed"),
    };
    let Agreement { style, contexts, open, channel } = agreement;
    let OpenDevice { id, device, session: client } = open;
    let transport = Arc::new(channel.into_transport());
    if let Some(time) = shared.idle_time
        && let Err(error) = transport.set_idle_time(time)
    {
        return tracing::warn!(%error, "refusing an NBD connection: its idle time cannot be set");
    }
    // Kept as long as the connection, so that all who have the export open share them.
    let accounts = shared.accounts(id);
    let purse = |budget: &Arc<Budget>, account: &Arc<Account>| Purse::new(budget.clone(), account.clone());
    let flow = Flow::new(shared.inflight_bytes_max, purse(&shared.outgoing, &accounts.outgoing));
    place.is_served(Watched { pace: transport.pace().clone(), flow: flow.clone() });
    let session = Session {
        device,
        style,
        contexts,
        writer: Writer::new(transport.clone(), shared.runtime.clone()),
        flow,
        incoming: purse(&shared.incoming, &accounts.incoming),
        runtime: shared.runtime.clone(),
        gone: watch::Sender::new(false),
    };
    Connection::new(Arc::new(session), transport, &|| shared.stopping.load(Ordering::SeqCst)).run();
    drop((client, accounts));
}

//! The writing half of a connection, shared by its thread, by tasks, and by the thread that commits.
//!
//! # Order
//! Whoever finds the writer free becomes its owner and alone touches the socket; what others bring meanwhile is queued,
//! and the owner sends it before it lets go. So replies never mix, and TLS records go out in the order
//! of their encryption.
//!
//! # Who may wait
//! Only the connection's own thread ([`Writer::send`]): it then reads nothing, and so a client that does not take its
//! replies stalls only itself. [`Writer::post`] never waits: what the socket does not take at once is sent by
//! a task that waits for it. What is queued is bounded by the [`Charge`]s that it carries.
//!
//! # Errors
//! The first error closes the connection for good: the queue is dropped, and the thread that reads is woken.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use rustix::net::Shutdown;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

use super::flow::Charge;
use super::transport::{Raw, Transport};

struct Outgoing {
    parts: Vec<Bytes>,
    charges: Vec<Charge>,
}

/// What the socket did not take at once.
struct Rest {
    raw: Raw,
    /// Kept until the rest is out.
    _charges: Vec<Charge>,
}

#[derive(Default)]
struct State {
    owned: bool,
    closed: bool,
    queue: VecDeque<Outgoing>,
}

/// See the module's description.
pub struct Writer {
    transport: Arc<Transport>,
    runtime: Handle,
    state: Mutex<State>,
    released: Condvar,
}

impl Writer {
    /// A free writer.
    pub fn new(transport: Arc<Transport>, runtime: Handle) -> Arc<Self> {
        Arc::new(Writer { transport, runtime, state: Mutex::default(), released: Condvar::new() })
    }

    /// Sends these parts, one after the other, and what others have queued meanwhile, waiting as long as it takes.
    ///
    /// # Errors
    /// If the connection is closed, now or already.
    pub fn send(&self, parts: &[&[u8]]) -> io::Result<()> {
        let mut state = self.state.lock();
        while state.owned && !state.closed {
            self.released.wait(&mut state);
        }
        if state.closed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        state.owned = true;
        drop(state);
        let mut result = self.transport.send_all(parts);
        while result.is_ok() {
            let Some(next) = self.next_or_release() else { return Ok(()) };
            let parts: Vec<&[u8]> = next.parts.iter().map(|part| &part[..]).collect();
            result = self.transport.send_all(&parts);
        }
        self.close();
        result
    }

    /// Sends these parts, one after the other, now if that needs no waiting, else later. The charges are dropped when all of it is with the socket.
    pub fn post(self: &Arc<Self>, parts: Vec<Bytes>, charges: Vec<Charge>) {
        let outgoing = Outgoing { parts, charges };
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            return drop(outgoing);
        }
        if state.owned {
            return state.queue.push_back(outgoing);
        }
        state.owned = true;
        drop(state);
        match self.send_some(outgoing) {
            Ok(None) => {
                if let Some(next) = self.next_or_release() {
                    // Not on this thread: it may be the one that commits for everybody.
                    self.runtime.spawn(self.clone().drain(next));
                }
            }
            Ok(Some(rest)) => drop(self.runtime.spawn(self.clone().drain_rest(rest))),
            Err(_) => self.close(),
        }
    }

    /// Sends what the socket takes at once, and returns the rest if there is one.
    fn send_some(&self, outgoing: Outgoing) -> io::Result<Option<Rest>> {
        let mut raw = self.transport.encode(outgoing.parts)?;
        self.transport.try_send_raw(&mut raw)?;
        Ok((!raw.is_empty()).then_some(Rest { raw, _charges: outgoing.charges }))
    }

    /// True after the first error.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Sends what TLS itself has to say, if anything.
    pub fn post_tls(self: &Arc<Self>) {
        if self.transport.wants_write() {
            self.post(Vec::new(), Vec::new());
        }
    }

    /// Says goodbye where TLS wants it and ends the outgoing stream. Only when nothing is in flight.
    pub fn finish(self: &Arc<Self>) {
        let mut farewell = self.transport.farewell();
        // A client that has gone, or takes nothing more, does not miss it.
        let _ = self.transport.try_send_raw(&mut farewell);
        self.transport.shutdown(Shutdown::Write);
    }

    fn next_or_release(&self) -> Option<Outgoing> {
        let mut state = self.state.lock();
        let next = state.queue.pop_front();
        if next.is_none() {
            state.owned = false;
            drop(state);
            self.released.notify_all();
        }
        next
    }

    fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.owned = false;
        let queue = std::mem::take(&mut state.queue);
        drop(state);
        drop(queue);
        self.released.notify_all();
        self.transport.shutdown(Shutdown::Both);
    }

    /// Sends `next` and what is queued behind it, as the socket takes it.
    async fn drain(self: Arc<Self>, next: Outgoing) {
        match self.send_some(next) {
            Ok(None) => self.drain_queue().await,
            Ok(Some(rest)) => self.drain_rest(rest).await,
            Err(_) => self.close(),
        }
    }

    /// Sends `rest` and what is queued behind it, as the socket takes it.
    async fn drain_rest(self: Arc<Self>, rest: Rest) {
        if self.finish_rest(rest).await.is_ok() {
            self.drain_queue().await;
        } else {
            self.close();
        }
    }

    async fn drain_queue(&self) {
        while let Some(next) = self.next_or_release() {
            let outcome = match self.send_some(next) {
                Ok(None) => Ok(()),
                Ok(Some(rest)) => self.finish_rest(rest).await,
                Err(error) => Err(error),
            };
            if outcome.is_err() {
                return self.close();
            }
        }
    }

    async fn finish_rest(&self, mut rest: Rest) -> io::Result<()> {
        // A descriptor of its own: the next drain may register before this one has gone.
        let ready = watch_writable(self.transport.socket().try_clone()?)?;
        let _sending = self.transport.pace().sending();
        while !rest.raw.is_empty() {
            let mut guard = ready.writable().await?;
            self.transport.try_send_raw(&mut rest.raw)?;
            if !rest.raw.is_empty() {
                guard.clear_ready();
            }
        }
        Ok(())
    }
}

#[expect(
    deprecated,
    reason = "the successor is unsafe for the sake of types whose descriptor may change; an OwnedFd's does not"
)]
fn watch_writable(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(socket, Interest::WRITABLE)
}

//! The bytes of a connection: a socket (TCP or Unix), bare or under TLS.
//!
//! [`Channel`] is the form for the handshake: one thread, every wait bounded by a deadline. [`Transport`] is the form
//! for the transmission phase: one thread reads, and whoever owns the [`Writer`](super::writer::Writer) writes.
//! Under TLS the state is behind a mutex that is never held while the socket is waited for, so that a reader
//! that waits cannot keep a reply from being sent.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown};
use rustls::pki_types::CertificateDer;
use rustls::{ServerConfig, ServerConnection};

use super::pace::{Pace, Share};
use crate::clock;

/// Parts that are handed to the socket with one call, at most; the system takes 1024.
const SLICES_MAX: usize = 128;
/// Bytes taken from the socket at once under TLS.
const RAW_BYTES: usize = 128 << 10;
/// Between two looks of a watch that has its core for itself passes less than this.
const ALONE: Duration = Duration::from_micros(5);
/// Plain bytes encrypted before they are handed to the socket.
const ENCRYPT_BYTES: usize = 256 << 10;

/// Bytes as they go over the wire and have not gone yet, in parts.
pub struct Raw(VecDeque<Bytes>);

impl Raw {
    /// True if all of it has gone.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes away what has gone, and what is empty.
    fn advance(&mut self, mut count: usize) {
        while let Some(part) = self.0.front_mut() {
            let gone = count.min(part.len());
            part.advance(gone);
            count -= gone;
            if !part.is_empty() {
                return;
            }
            self.0.pop_front();
        }
    }
}

/// A socket whose every wait ends at a deadline.
struct DeadlineSocket {
    socket: Arc<OwnedFd>,
    /// By [`clock::uptime`].
    deadline: Duration,
}

impl DeadlineSocket {
    fn wait(&self, events: PollFlags) -> io::Result<()> {
        loop {
            let left = self.deadline.saturating_sub(clock::uptime());
            let timeout = Timespec::try_from(left).unwrap_or_default();
            match poll(&mut [PollFd::new(&self.socket, events)], Some(&timeout)) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long")),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Read for DeadlineSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait(PollFlags::IN)?;
            match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((count, _)) => return Ok(count),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Write for DeadlineSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.wait(PollFlags::OUT)?;
            match send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection during its handshake.
pub struct Channel {
    socket: DeadlineSocket,
    tls: Option<Box<ServerConnection>>,
}

impl Channel {
    /// A bare connection that has `time_limit` to finish its handshake.
    pub fn new(socket: Arc<OwnedFd>, time_limit: Duration) -> Self {
        Channel { socket: DeadlineSocket { socket, deadline: clock::uptime() + time_limit }, tls: None }
    }

    /// Gives the client more time, for what was not its fault.
    pub fn extend(&mut self, by: Duration) {
        self.socket.deadline += by;
    }

    /// True under TLS.
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Goes over to TLS and finishes the TLS handshake. Nothing has been read beyond what was asked
    /// for, so plain bytes sent too early meet the TLS decoder, which refuses them.
    ///
    /// # Errors
    /// What TLS or the socket says; the connection must be closed.
    pub fn start_tls(&mut self, config: Arc<ServerConfig>) -> io::Result<()> {
        let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
        connection.set_buffer_limit(None);
        while connection.is_handshaking() {
            connection.complete_io(&mut self.socket)?;
        }
        self.tls = Some(Box::new(connection));
        Ok(())
    }

    /// The client's own certificate, verified, if it was asked for one.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.tls.as_ref()?.peer_certificates()?.first()
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    /// `TimedOut`, `UnexpectedEof`, what the socket says.
    pub fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => rustls::Stream::new(tls.as_mut(), &mut self.socket).read_exact(buffer),
            None => self.socket.read_exact(buffer),
        }
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// `TimedOut`, what the socket says.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => {
                let mut stream = rustls::Stream::new(tls.as_mut(), &mut self.socket);
                stream.write_all(bytes)?;
                stream.flush()
            }
            None => self.socket.write_all(bytes),
        }
    }

    /// The form for the transmission phase.
    pub fn into_transport(self) -> Transport {
        Transport { socket: self.socket.socket, tls: self.tls.map(Mutex::new), pace: Arc::default() }
    }
}

/// A connection in the transmission phase.
pub struct Transport {
    socket: Arc<OwnedFd>,
    tls: Option<Mutex<Box<ServerConnection>>>,
    pace: Arc<Pace>,
}

/// What the reading thread keeps between reads: encrypted bytes not yet decrypted.
#[derive(Debug, Default)]
pub struct ReadState {
    raw: Vec<u8>,
    start: usize,
    end: usize,
}

impl Transport {
    /// The socket.
    pub fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// How its bytes move.
    pub fn pace(&self) -> &Arc<Pace> {
        &self.pace
    }

    /// Makes [`Transport::read`] fail with `WouldBlock` when nothing has come for so long.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn set_idle_time(&self, time: Duration) -> io::Result<()> {
        Ok(set_socket_timeout(&self.socket, Timeout::Recv, Some(time))?)
    }

    /// True if the client has ended its stream, though not all of it was read yet, or cannot be reached any more. The end is not seen behind more
    /// than the socket holds.
    pub fn is_hung_up(&self) -> bool {
        let mut ends = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        // An error of poll itself says nothing of the client.
        poll(&mut ends, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }

    /// True if bytes or the end of the stream come within `time`, which is spent watching the socket without sleeping. A
    /// thread that has something to do on this core goes first; if nothing has come when it is done, the core is wanted, and the watch ends. Not
    /// under TLS, where bytes may have come already.
    pub fn watch(&self, time: Duration) -> bool {
        if self.tls.is_some() {
            return false;
        }
        let mut looked = clock::running();
        let until = looked + time;
        let mut byte = [0];
        loop {
            let found = recv(&self.socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT);
            if !matches!(found, Err(Errno::AGAIN | Errno::INTR)) {
                // Also an error: the read that follows says which.
                return true;
            }
            let now = clock::running();
            if now >= until || now - looked > ALONE {
                return false;
            }
            looked = now;
            std::thread::yield_now();
        }
    }

    /// Waits for bytes and takes as many as there are; 0 at the end of the stream. Only for one thread.
    ///
    /// # Errors
    /// What TLS or the socket says.
    pub fn read(&self, state: &mut ReadState, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return self.receive(buffer) };
        loop {
            let count = decrypt(&mut tls.lock(), state, buffer)?;
            if count > 0 {
                return Ok(count);
            }
            state.raw.resize(RAW_BYTES, 0);
            // Not before it has come: after a timeout this is called again, and what was decrypted must not be so once more.
            let received = self.receive(&mut state.raw)?;
            (state.start, state.end) = (0, received);
            if received == 0 {
                return Ok(0);
            }
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((count, _)) => {
                    self.pace.moved(Share::Incoming, count);
                    return Ok(count);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// True if TLS itself has something to say, which [`Transport::encode`] of nothing then returns.
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.lock().wants_write())
    }

    /// What must go over the wire for these parts, one after the other. What is encoded first must be sent first.
    ///
    /// # Errors
    /// What TLS says.
    pub fn encode(&self, parts: Vec<Bytes>) -> io::Result<Raw> {
        let Some(tls) = &self.tls else { return Ok(Raw(parts.into())) };
        let mut raw = Vec::with_capacity(encrypted_bytes(parts.iter().map(Bytes::len).sum()));
        encrypt(&mut tls.lock(), parts.iter().map(|part| &part[..]), &mut raw)?;
        Ok(Raw(VecDeque::from([raw.into()])))
    }

    /// Sends all of these parts, one after the other, waiting as long as it takes.
    ///
    /// # Errors
    /// What TLS or the socket says.
    pub fn send_all(&self, parts: &[&[u8]]) -> io::Result<()> {
        let Some(tls) = &self.tls else { return self.send_raw_all(parts) };
        let length = parts.iter().map(|part| part.len()).sum();
        let mut raw = Vec::with_capacity(encrypted_bytes(length).min(encrypted_bytes(2 * ENCRYPT_BYTES)));
        for part in parts.iter().flat_map(|part| part.chunks(ENCRYPT_BYTES)) {
            encrypt(&mut tls.lock(), [part], &mut raw)?;
            if raw.len() >= ENCRYPT_BYTES {
                self.send_raw_all(&[&raw])?;
                raw.clear();
            }
        }
        self.send_raw_all(&[&raw])
    }

    fn send_raw_all(&self, parts: &[&[u8]]) -> io::Result<()> {
        let _sending = self.pace.sending();
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        // Also steps over what is empty.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            if let Some(count) = self.send_slices(rest, SendFlags::NOSIGNAL)? {
                IoSlice::advance_slices(&mut rest, count);
            }
        }
        Ok(())
    }

    /// Sends as much of `raw` as the socket takes at once, and takes it away.
    ///
    /// # Errors
    /// What the socket says, `WouldBlock` excepted.
    pub fn try_send_raw(&self, raw: &mut Raw) -> io::Result<()> {
        raw.advance(0);
        while !raw.is_empty() {
            let slices: Vec<IoSlice<'_>> = raw.0.iter().take(SLICES_MAX).map(|part| IoSlice::new(part)).collect();
            let Some(count) = self.send_slices(&slices, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)? else { break };
            raw.advance(count);
        }
        Ok(())
    }

    /// Sends as much of what is not empty as the socket takes with one call; `None` if that is nothing.
    fn send_slices(&self, slices: &[IoSlice<'_>], flags: SendFlags) -> io::Result<Option<usize>> {
        loop {
            let sent = match slices {
                [alone] => send(&self.socket, alone, flags),
                _ => {
                    let slices = &slices[..slices.len().min(SLICES_MAX)];
                    sendmsg(&self.socket, slices, &mut SendAncillaryBuffer::default(), flags)
                }
            };
            match sent {
                Ok(count) => {
                    self.pace.moved(Share::Outgoing, count);
                    return Ok(Some(count));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The last words of TLS, to be sent before the end; nothing without TLS.
    pub fn farewell(&self) -> Raw {
        let mut raw = Vec::new();
        if let Some(tls) = &self.tls {
            let mut tls = tls.lock();
            tls.send_close_notify();
            // What cannot be said is not missed.
            let _ = encrypt(&mut tls, [], &mut raw);
        }
        Raw(VecDeque::from([raw.into()]))
    }

    /// Ends the stream in the directions given; who waits for them is woken.
    pub fn shutdown(&self, how: Shutdown) {
        shut(self.socket.as_fd(), how);
    }
}

/// Ends a socket's stream in the directions given.
pub fn shut(socket: impl AsFd, how: Shutdown) {
    // It fails only if the peer has ended it already.
    let _ = shutdown(socket, how);
}

/// Decrypts from `state` into `buffer` until it is full or nothing is left.
fn decrypt(tls: &mut ServerConnection, state: &mut ReadState, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    loop {
        while count < buffer.len() {
            match tls.reader().read(&mut buffer[count..]) {
                Ok(0) => return Ok(count),
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if count == buffer.len() || state.start == state.end {
            return Ok(count);
        }
        let mut raw = &state.raw[state.start..state.end];
        let taken = tls.read_tls(&mut raw)?;
        state.start += taken;
        tls.process_new_packets().map_err(io::Error::other)?;
    }
}

/// What so many bytes come to at most under TLS.
fn encrypted_bytes(plain: usize) -> usize {
    plain + plain / 64 + 64
}

/// Adds to `raw` what must go over the wire for these parts.
fn encrypt<'a>(
    tls: &mut ServerConnection,
    parts: impl IntoIterator<Item = &'a [u8]>,
    raw: &mut Vec<u8>,
) -> io::Result<()> {
    for part in parts {
        tls.writer().write_all(part)?;
    }
    while tls.wants_write() {
        tls.write_tls(raw)?;
    }
    Ok(())
}

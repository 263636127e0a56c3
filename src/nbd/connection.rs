//! The transmission phase of one connection, on a thread of its own with a blocking socket.
//!
//! # A round
//! One `read` takes in as many requests as there are. All changes among them go to the device in one call, with
//! their payloads still in the receive buffer; then one commit is asked for on behalf of every FLUSH and FUA; then
//! reads are answered straight into the reply buffer; then one `write` sends all replies. Long reads are sent from the device's own memory, at once, where
//! it has their content there. What the device cannot do at once goes to the runtime and is answered when it is done.
//!
//! # Order
//! Changes of a round take effect before its reads and are covered by its flushes. Nothing else is promised, nor does the
//! protocol ask for it.
//!
//! # Errors
//! A refused request is answered and the connection goes on. A stream that has lost its step, a socket error or the end
//! of the stream end the loop; then everything in flight is awaited, so that the device is let go of only when
//! nothing of this client is under way. Changes that still wait for something (room in a log, a block of the store) are given up,
//! unless the client has said goodbye or the server stops: a client that lost its connection sends them again on another one, and they
//! must not take effect behind what it writes there. A thread that waits for memory looks now and then whether its client is still there.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::budget::Received;
use super::buffers::{KEEP_BYTES, ReceiveBuffer, ReplyBuffer};
use super::flow::Charge;
use super::protocol::{Errno, RequestHead, command, command_flag};
use super::reply::{self, Address};
use super::request::{Parsed, Refusal, TOO_LONG, judge, parse};
use super::session::{self, SHARED_BYTES_MIN, Session, StatusQuery, Ticket, answer_all, is_whole};
use super::transport::{ReadState, Transport};
use super::watch::Watch;
use crate::block_device::{Attempt, Change, Geometry, Sharing};
use crate::limits::NEAR_BYTES_MAX;

/// Replies gathered before they are sent though more requests of the round wait.
const REPLY_BATCH_BYTES: usize = 1 << 20;

struct Request {
    head: RequestHead,
    /// Where the payload is in [`ReceiveBuffer::filled`].
    payload: Range<usize>,
    verdict: Result<(), Refusal>,
}

impl Request {
    fn to(&self) -> Address {
        Address { cookie: self.head.cookie, offset: self.head.offset }
    }

    fn is_durable(&self) -> bool {
        self.head.flags & command_flag::FUA != 0
    }

    /// The change it asks for, with its payload still in `buffer`.
    fn change<'a>(&self, buffer: &'a [u8]) -> Option<Change<&'a [u8]>> {
        let RequestHead { offset, length, .. } = self.head;
        match self.head.command {
            _ if self.verdict.is_err() => None,
            command::WRITE => Some(Change::Write { offset, data: &buffer[self.payload.clone()] }),
            command::WRITE_ZEROES => Some(Change::Zero { offset, length }),
            command::TRIM => Some(Change::Trim { offset, length }),
            _ => None,
        }
    }
}

/// How a round ends.
enum End {
    /// More may come.
    Continue,
    /// The client has said goodbye, or cannot be understood or reached any more.
    Close,
}

/// After so many rounds of a single request in a row a client is taken for one that sends one at a time.
const SINGLES_OF_ONE_AT_A_TIME: u32 = 16;

/// The thread's own part of a connection.
pub struct Connection<'a> {
    session: Arc<Session>,
    transport: Arc<Transport>,
    /// The server ends connections: the end of the stream is not the client's doing.
    is_stopping: &'a dyn Fn() -> bool,
    read_state: ReadState,
    buffer: ReceiveBuffer,
    replies: ReplyBuffer,
    requests: Vec<Request>,
    attempts: Vec<Attempt>,
    /// A request with too long a payload, and how much of that is still to come.
    discarding: Option<(RequestHead, u64)>,
    /// Length of the request that has come in part, if it is a long one.
    long: u64,
    /// What is taken of the memory of all connections to receive it.
    receiving: Option<Received>,
    /// The client cannot be reached any more: nothing it still wants is worth doing.
    broken: bool,
    /// The client has said goodbye: all it has asked for is done.
    said_goodbye: bool,
    /// The newest round was a single request, answered at once: the next may come any moment.
    is_next_near: bool,
    /// Rounds of a single request in a row: what a client that waits for each answer makes.
    singles: u32,
    watch: Watch,
}

impl<'a> Connection<'a> {
    /// A connection that has finished its handshake. The end of the stream is not the client's doing if the server `is_stopping`.
    pub fn new(session: Arc<Session>, transport: Arc<Transport>, is_stopping: &'a dyn Fn() -> bool) -> Self {
        Connection {
            session,
            transport,
            is_stopping,
            read_state: ReadState::default(),
            buffer: ReceiveBuffer::new(),
            replies: ReplyBuffer::default(),
            requests: Vec::new(),
            attempts: Vec::new(),
            discarding: None,
            long: 0,
            receiving: None,
            broken: false,
            said_goodbye: false,
            is_next_near: false,
            singles: 0,
            watch: Watch::new(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)),
        }
    }

    /// Serves the client until it goes, and returns when nothing of it is in flight any more.
    pub fn run(mut self) {
        while self.make_room() {
            if self.is_next_near {
                self.watch.before_sleep(&self.transport);
            }
            let pace = self.transport.pace();
            pace.set_receiving(self.receiving.is_some());
            let result = self.transport.read(&mut self.read_state, self.buffer.space());
            pace.set_receiving(false);
            let received = match result {
                Ok(0) => break,
                Ok(received) => received,
                // Who waits for an answer is not idle.
                Err(error) if error.kind() == ErrorKind::WouldBlock && !self.session.flow.is_idle() => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    tracing::info!("closing an NBD connection that was idle for longer than idle-time");
                    break;
                }
                Err(error) => {
                    tracing::debug!(%error, "an NBD connection broke");
                    break;
                }
            };
            self.session.writer.post_tls();
            self.buffer.received(received);
            if matches!(self.round(), End::Close) {
                break;
            }
        }
        self.buffer = ReceiveBuffer::new();
        self.receiving = None;
        if !self.said_goodbye && !(self.is_stopping)() {
            self.session.gone.send_replace(true);
        }
        self.session.flow.wait_until_idle();
        self.session.writer.finish();
    }

    /// A long request is received only when there is memory for all of it: half of one would be in the way of others. False if the client was
    /// lost meanwhile.
    fn make_room(&mut self) -> bool {
        if self.long == 0 {
            self.receiving = None;
        } else if self.receiving.is_none() {
            self.receiving = Received::new(&self.session.incoming, self.long, || self.is_lost());
            return self.receiving.is_some();
        }
        true
    }

    /// True if the client has gone while something of it was still to be read. Goodbyes among that are not seen.
    fn is_lost(&self) -> bool {
        self.transport.is_hung_up() && !(self.is_stopping)()
    }

    fn round(&mut self) -> End {
        loop {
            self.discard();
            let (end, consumed, again) = self.gather();
            let mut requests = std::mem::take(&mut self.requests);
            self.is_next_near = requests.len() == 1;
            self.singles = match requests.len() {
                0 => self.singles,
                1 => self.singles.saturating_add(1),
                _ => 0,
            };
            if !requests.is_empty() {
                self.make_changes(&requests);
                self.answer_others(&requests);
            }
            requests.clear();
            self.requests = requests;
            self.buffer.consume(consumed);
            if consumed > 0 {
                self.receiving = None;
            }
            self.send_replies();
            if self.broken || matches!(end, End::Close) {
                return End::Close;
            }
            if !again {
                return End::Continue;
            }
        }
    }

    /// Throws away what is there of a payload that is too long, and refuses its request when all of it has come.
    fn discard(&mut self) {
        let Some((head, left)) = &mut self.discarding else { return };
        let count = self.buffer.filled().len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        self.buffer.consume(count);
        *left -= count as u64;
        if *left == 0 {
            let to = Address { cookie: head.cookie, offset: head.offset };
            self.discarding = None;
            self.fail(to, TOO_LONG.errno, TOO_LONG.message);
        }
    }

    /// Cuts what is there into requests. Returns how it ends, the bytes looked at, and true if there is more to look at.
    fn gather(&mut self) -> (End, usize, bool) {
        let bytes = self.buffer.filled();
        if bytes.is_empty() || self.discarding.is_some() {
            return (End::Continue, 0, false);
        }
        let (style, geometry) = (self.session.style, self.session.device.geometry());
        let mut at = 0;
        self.long = 0;
        while at < bytes.len() {
            match parse(style, &bytes[at..]) {
                Parsed::Whole { head, .. } if head.command == command::DISC => {
                    self.said_goodbye = true;
                    return (End::Close, at, false);
                }
                Parsed::Whole { head, payload } => {
                    let payload = at + payload.start..at + payload.end;
                    at = payload.end;
                    self.requests.push(examine(&self.session, head, payload, bytes, &geometry));
                }
                Parsed::Part { needed } => {
                    self.long = if needed > KEEP_BYTES { needed as u64 } else { 0 };
                    self.buffer.expect(needed);
                    break;
                }
                Parsed::TooLong { head, head_bytes, payload_bytes } => {
                    self.discarding = Some((head, payload_bytes));
                    return (End::Continue, at + head_bytes, true);
                }
                Parsed::Garbage { reason } => {
                    tracing::debug!(reason, "closing an NBD connection");
                    return (End::Close, at, false);
                }
            }
        }
        (End::Continue, at, false)
    }

    /// Makes the changes among `requests`, and asks for one commit for all that need it.
    fn make_changes(&mut self, requests: &[Request]) {
        let session = self.session.clone();
        let changes: Vec<_> = requests.iter().filter_map(|request| request.change(self.buffer.filled())).collect();
        self.attempts.clear();
        if !changes.is_empty() {
            session.device.try_change(&changes, &mut self.attempts);
        }
        drop(changes);
        let mut attempts = std::mem::take(&mut self.attempts);
        let mut outcomes = attempts.drain(..);
        let mut durable = Vec::new();
        for request in requests {
            let to = request.to();
            if request.head.command == command::FLUSH && request.verdict.is_ok() {
                self.promise(to, &mut durable);
                continue;
            }
            let Some(change) = request.change(self.buffer.filled()) else { continue };
            match outcomes.next() {
                Some(Attempt::Done) if request.is_durable() => self.promise(to, &mut durable),
                Some(Attempt::Done) => reply::success(&mut self.replies, session.style, to),
                Some(Attempt::WouldBlock) => {
                    let change = to_owned(&change);
                    commit(&session, &mut durable);
                    let Some(ticket) = self.ticket(to, request.payload.len() as u64) else { break };
                    session.runtime.spawn(session::change(ticket, change, request.is_durable()));
                }
                Some(Attempt::Failed(error)) => {
                    self.fail(to, error.kind().into(), error.message());
                }
                None => {
                    self.fail(to, Errno::Io, "the device gave no answer");
                }
            }
        }
        drop(outcomes);
        self.attempts = attempts;
        if !durable.is_empty() {
            let answer = answer_all(durable);
            if self.singles > SINGLES_OF_ONE_AT_A_TIME {
                session.device.commit_here(answer);
                // Not if somebody else syncs for it.
                self.is_next_near = session.flow.is_idle();
            } else {
                session.device.commit(answer);
            }
        }
    }

    /// Adds a promise to those that one commit will keep. If there is no room for it, what is promised must be kept first: charges that nothing
    /// is done for would be waited for in vain.
    fn promise(&mut self, to: Address, durable: &mut Vec<Ticket>) {
        if let Some(charge) = self.session.flow.try_admit(0) {
            self.is_next_near = false;
            return durable.push(Ticket::new(self.session.clone(), to, charge));
        }
        commit(&self.session, durable);
        durable.extend(self.ticket(to, 0));
    }

    /// Answers what changes nothing: refusals, reads, and questions.
    fn answer_others(&mut self, requests: &[Request]) {
        let session = self.session.clone();
        for request in requests {
            if self.broken {
                return;
            }
            let (to, head) = (request.to(), &request.head);
            if let Err(refusal) = request.verdict {
                self.fail(to, refusal.errno, refusal.message);
                continue;
            }
            match head.command {
                command::READ => self.read(to, u32::try_from(head.length).unwrap_or(u32::MAX)),
                command::CACHE => {
                    // What is brought near is in memory until it is there.
                    let Some(ticket) = self.ticket(to, head.length.min(NEAR_BYTES_MAX)) else { return };
                    session.runtime.spawn(session::prefetch(ticket, head.length));
                }
                command::BLOCK_STATUS => {
                    if let Ok(query) = StatusQuery::of(&session, head, &self.buffer.filled()[request.payload.clone()]) {
                        let Some(ticket) = self.ticket(to, query.bytes_max()) else { return };
                        session.runtime.spawn(session::block_status(ticket, query));
                    }
                }
                _ => {}
            }
        }
    }

    fn read(&mut self, to: Address, length: u32) {
        let style = self.session.style;
        let head_bytes = style.read_head_bytes();
        let bytes = head_bytes + length as usize;
        if self.replies.filled().len() + bytes > REPLY_BATCH_BYTES {
            self.send_replies();
        }
        // A long one has its memory for itself, and gives it back when it is sent.
        let charge = if bytes > KEEP_BYTES { self.admit(bytes as u64) } else { None };
        if self.broken {
            return;
        }
        if length >= SHARED_BYTES_MIN {
            match self.session.device.try_share(to.offset, u64::from(length)) {
                Sharing::Parts(parts) if is_whole(&parts, length) => return self.send_shared(to, length, &parts),
                Sharing::WouldBlock => return self.read_slowly(to, length, charge),
                Sharing::Parts(_) | Sharing::Copy => {}
            }
        }
        let (head, content) = self.replies.room(bytes).split_at_mut(head_bytes);
        match self.session.device.try_read(to.offset, content) {
            Attempt::Done => {
                reply::read_head(head, style, to, length);
                self.replies.keep(bytes);
                if charge.is_some() {
                    self.send_replies();
                }
            }
            Attempt::WouldBlock => self.read_slowly(to, length, charge),
            Attempt::Failed(error) => {
                self.fail(to, error.kind().into(), error.message());
            }
        }
    }

    /// Leaves a read to a task. A long one has its charge already.
    fn read_slowly(&mut self, to: Address, length: u32, charge: Option<Charge>) {
        if charge.is_some() {
            // Nothing is in there, for what was before a long one has been sent.
            self.replies.clear();
        }
        let bytes = self.session.style.read_head_bytes() as u64 + u64::from(length);
        let Some(charge) = charge.or_else(|| self.admit(bytes)) else { return };
        let ticket = Ticket::new(self.session.clone(), to, charge);
        self.session.runtime.spawn(session::read(ticket, length));
    }

    /// Answers a long read from memory of the device.
    fn send_shared(&mut self, to: Address, length: u32, content: &[Bytes]) {
        let (style, head_bytes) = (self.session.style, self.session.style.read_head_bytes());
        reply::read_head(self.replies.room(head_bytes), style, to, length);
        self.replies.keep(head_bytes);
        self.send_replies_and(content);
    }

    fn fail(&mut self, to: Address, errno: Errno, message: &str) {
        reply::error(&mut self.replies, self.session.style, to, errno, message);
        if self.replies.filled().len() > REPLY_BATCH_BYTES {
            self.send_replies();
        }
    }

    /// A promise to answer, within the bounds of what may be in flight. If that means waiting, what is answered goes out first. `None` if the
    /// client was lost meanwhile.
    fn ticket(&mut self, to: Address, bytes: u64) -> Option<Ticket> {
        let charge = self.admit(bytes)?;
        Some(Ticket::new(self.session.clone(), to, charge))
    }

    fn admit(&mut self, bytes: u64) -> Option<Charge> {
        let at_once = self.session.flow.try_admit(bytes);
        let charge = at_once.or_else(|| {
            self.send_replies();
            self.session.flow.admit(bytes, || self.is_lost())
        });
        self.broken |= charge.is_none() || self.session.writer.is_closed();
        self.is_next_near = false;
        charge
    }

    fn send_replies(&mut self) {
        self.send_replies_and(&[]);
    }

    /// Sends what is answered, and the content that belongs to the last reply.
    fn send_replies_and(&mut self, content: &[Bytes]) {
        let mut parts = Vec::with_capacity(1 + content.len());
        parts.push(self.replies.filled());
        parts.extend(content.iter().map(|part| &part[..]));
        if !parts[0].is_empty() && self.session.writer.send(&parts).is_err() {
            self.broken = true;
        }
        self.replies.clear();
    }
}

/// Asks for a commit on behalf of `durable`, if there are any, and leaves none.
fn commit(session: &Session, durable: &mut Vec<Ticket>) {
    if !durable.is_empty() {
        session.device.commit(answer_all(std::mem::take(durable)));
    }
}

/// Judges a request whose payload is at `payload` of `bytes`.
fn examine(session: &Session, head: RequestHead, payload: Range<usize>, bytes: &[u8], geometry: &Geometry) -> Request {
    let verdict = if head.command == command::BLOCK_STATUS {
        StatusQuery::of(session, &head, &bytes[payload.clone()])
            .and_then(|query| judge(session.style, &RequestHead { length: query.length, ..head }, geometry))
    } else {
        judge(session.style, &head, geometry)
    };
    Request { head, payload, verdict }
}

fn to_owned(change: &Change<&[u8]>) -> Change<Bytes> {
    match *change {
        Change::Write { offset, data } => Change::Write { offset, data: Bytes::copy_from_slice(data) },
        Change::Zero { offset, length } => Change::Zero { offset, length },
        Change::Trim { offset, length } => Change::Trim { offset, length },
    }
}

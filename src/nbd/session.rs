//! What a connection in the transmission phase shares with the tasks and callbacks that answer its slower requests.

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::budget::Purse;
use super::flow::{Charge, Flow};
use super::protocol::{Errno, Reader, RequestHead, Style, command_flag};
use super::reply::{self, Address, MetaContext, Status};
use super::request::Refusal;
use super::writer::Writer;
use crate::block_device::{BlockDevice, Change, CommitDone};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::NBD_STATUS_EXTENTS_MAX;

/// Content of shorter reads is copied behind the head of the reply: that costs less than to send it in parts.
pub const SHARED_BYTES_MIN: u32 = 64 << 10;
/// Extents looked at to find the first run of one status.
const ONE_RUN_EXTENTS: usize = 64;

/// One client on one export.
pub struct Session {
    /// The disk.
    pub device: Arc<dyn BlockDevice>,
    /// The headers agreed on.
    pub style: Style,
    /// The metadata contexts agreed on.
    pub contexts: Vec<MetaContext>,
    /// The way back to the client.
    pub writer: Arc<Writer>,
    /// What is in flight.
    pub flow: Arc<Flow>,
    /// What all connections are receiving of long requests.
    pub incoming: Purse,
    /// Where slower requests run.
    pub runtime: Handle,
    /// True once the client has gone without a goodbye.
    pub gone: watch::Sender<bool>,
}

/// A promise to answer one request. One that is dropped unanswered (a task that panicked, a callback never called)
/// answers EIO.
pub struct Ticket {
    session: Arc<Session>,
    to: Address,
    charge: Option<Charge>,
}

impl Ticket {
    /// A promise that keeps `charge` until the reply is out.
    pub fn new(session: Arc<Session>, to: Address, charge: Charge) -> Self {
        Ticket { session, to, charge: Some(charge) }
    }

    /// Answers without content.
    pub fn finish(self, outcome: &Result<()>) {
        let mut bytes = Vec::with_capacity(64);
        encode_outcome(&mut bytes, self.session.style, self.to, outcome);
        self.send(vec![bytes.into()]);
    }

    /// Answers with a reply that is encoded already, in parts.
    fn send(mut self, parts: Vec<Bytes>) {
        self.session.writer.post(parts, self.charge.take().into_iter().collect());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(charge) = self.charge.take() {
            let mut bytes = Vec::new();
            reply::error(&mut bytes, self.session.style, self.to, Errno::Io, "the request was lost within the server");
            self.session.writer.post(vec![bytes.into()], vec![charge]);
        }
    }
}

fn encode_outcome(out: &mut Vec<u8>, style: Style, to: Address, outcome: &Result<()>) {
    match outcome {
        Ok(()) => reply::success(out, style, to),
        Err(error) => reply::error(out, style, to, error.kind().into(), error.message()),
    }
}

/// The callback that answers all of `tickets` by one message.
pub fn answer_all(mut tickets: Vec<Ticket>) -> CommitDone {
    Box::new(move |outcome| {
        let mut bytes = Vec::with_capacity(32 * tickets.len() + 64);
        let mut charges = Vec::with_capacity(tickets.len());
        for ticket in &mut tickets {
            encode_outcome(&mut bytes, ticket.session.style, ticket.to, &outcome);
            charges.extend(ticket.charge.take());
        }
        if let Some(ticket) = tickets.first() {
            ticket.session.writer.post(vec![bytes.into()], charges);
        }
    })
}

/// Makes a change that could not be made at once, and makes it durable where `durable` is set. While it waits, it is given up if the
/// client goes: a client that comes back on another connection sends it again, and what it then writes must not be overwritten by this.
pub async fn change(ticket: Ticket, change: Change<Bytes>, durable: bool) {
    let session = ticket.session.clone();
    let mut gone = session.gone.subscribe();
    let outcome = tokio::select! {
        biased;
        // An error would say that the session is no more, which this task keeps.
        _ = gone.wait_for(|gone| *gone) => Err(Error::new(ErrorKind::Stopping, "the client has gone")),
        outcome = session.device.change(change) => outcome,
    };
    match outcome {
        Ok(()) if durable => session.device.commit(answer_all(vec![ticket])),
        outcome => ticket.finish(&outcome),
    }
}

/// Answers a read whose content is not at hand.
pub async fn read(ticket: Ticket, length: u32) {
    let (session, to) = (ticket.session.clone(), ticket.to);
    let head_bytes = session.style.read_head_bytes();
    if length >= SHARED_BYTES_MIN {
        match session.device.share(to.offset, u64::from(length)).await {
            Ok(parts) if !is_whole(&parts, length) => {
                ticket.finish(&Err(Error::new(ErrorKind::Io, "the device gave another length than was asked for")));
            }
            Ok(mut parts) => {
                let mut head = vec![0; head_bytes];
                reply::read_head(&mut head, session.style, to, length);
                parts.insert(0, head.into());
                ticket.send(parts);
            }
            Err(error) => ticket.finish(&Err(error)),
        }
        return;
    }
    let mut bytes = vec![0; head_bytes + length as usize];
    match session.device.read(to.offset, &mut bytes[head_bytes..]).await {
        Ok(()) => {
            reply::read_head(&mut bytes[..head_bytes], session.style, to, length);
            ticket.send(vec![bytes.into()]);
        }
        Err(error) => ticket.finish(&Err(error)),
    }
}

/// True if these parts are as long as they must be: a client takes what follows the head of a reply for content, as long as that says.
pub fn is_whole(parts: &[Bytes], length: u32) -> bool {
    parts.iter().map(|part| part.len() as u64).sum::<u64>() == u64::from(length)
}

/// Brings a range near.
pub async fn prefetch(ticket: Ticket, length: u64) {
    let outcome = ticket.session.device.prefetch(ticket.to.offset, length).await;
    ticket.finish(&outcome);
}

/// What a BLOCK_STATUS asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusQuery {
    /// Bytes of interest.
    pub length: u64,
    /// No more than one extent for each context.
    pub only_one: bool,
    /// The contexts wanted, of those agreed on.
    pub contexts: Vec<MetaContext>,
}

impl StatusQuery {
    /// What this request asks for; with a payload that is told there.
    ///
    /// # Errors
    /// What is to be answered to one that makes no sense.
    pub fn of(session: &Session, head: &RequestHead, payload: &[u8]) -> std::result::Result<Self, Refusal> {
        let invalid = |message| Refusal { errno: Errno::Invalid, message };
        if session.contexts.is_empty() {
            return Err(invalid("no metadata context was agreed on"));
        }
        let only_one = head.flags & command_flag::REQ_ONE != 0;
        if session.style != Style::Extended || head.flags & command_flag::PAYLOAD_LEN == 0 {
            return Ok(StatusQuery { length: head.length, only_one, contexts: session.contexts.clone() });
        }
        let malformed = || invalid("the payload of a block status request is malformed");
        let mut reader = Reader(payload);
        let length = reader.u64().ok_or_else(malformed)?;
        let mut contexts = Vec::new();
        while !reader.is_empty() {
            let id = reader.u32().ok_or_else(malformed)?;
            let known = session.contexts.iter().copied().find(|context| context.id() == id);
            let context = known.filter(|context| !contexts.contains(context));
            contexts.push(context.ok_or_else(|| invalid("a metadata context that is unknown or named twice"))?);
        }
        if contexts.is_empty() {
            return Err(malformed());
        }
        Ok(StatusQuery { length, only_one, contexts })
    }

    /// Most bytes that the extents and the reply take.
    pub fn bytes_max(&self) -> u64 {
        let extents = if self.only_one { ONE_RUN_EXTENTS } else { NBD_STATUS_EXTENTS_MAX } as u64;
        extents * 16 * (1 + self.contexts.len() as u64)
    }
}

/// Tells where a range is.
pub async fn block_status(ticket: Ticket, query: StatusQuery) {
    let session = ticket.session.clone();
    let (to, style) = (ticket.to, session.style);
    let statuses = match statuses(&*session.device, to.offset, &query).await {
        Ok(statuses) => statuses,
        Err(error) => return ticket.finish(&Err(error)),
    };
    let mut bytes = Vec::new();
    if reply::block_status(&mut bytes, style, to, &statuses, query.only_one) {
        ticket.send(vec![bytes.into()]);
    } else {
        ticket.finish(&Err(Error::new(ErrorKind::Io, "the device told of no extent")));
    }
}

/// Asks the device for each context; where its bytes are only once.
async fn statuses(device: &dyn BlockDevice, offset: u64, query: &StatusQuery) -> Result<Vec<Status>> {
    let extents_max = if query.only_one { ONE_RUN_EXTENTS } else { NBD_STATUS_EXTENTS_MAX };
    let mut residence = None;
    let mut statuses = Vec::with_capacity(query.contexts.len());
    for &context in &query.contexts {
        statuses.push(if let MetaContext::Changes { since, .. } = context {
            let extents = device.changed_since(since, offset, query.length, extents_max).await?;
            Status::of_changes(context, &extents[..extents.len().min(extents_max)], query.length)
        } else {
            let extents = match residence.take() {
                Some(extents) => extents,
                None => device.residence(offset, query.length, extents_max).await?,
            };
            let status = Status::of_residence(context, &extents[..extents.len().min(extents_max)], query.length);
            residence = Some(extents);
            status
        });
    }
    Ok(statuses)
}

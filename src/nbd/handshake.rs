//! The handshake of one connection: fixed newstyle, option after option, until the client has chosen an export.
//!
//! It runs on the connection's own thread. Everything the client does must fit into one time limit, however it
//! spreads its bytes; time spent on opening an export does not count. Exports are opened on the runtime, because
//! attaching a volume needs more stack than a connection's thread has.
//!
//! # Errors
//! An option that is unknown, malformed, too long or out of place is answered with an error and the handshake goes on.
//! What leaves no way to answer (no magic number, EXPORT_NAME that cannot be had, time is up) closes the connection.
//!
//! # TLS
//! STARTTLS forgets all that was agreed on before. Where TLS is required nothing but STARTTLS and ABORT is answered
//! without it. Where rules say who may open what, a client sees only that; before TLS it has no name, and sees nothing.

use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::certificate;
use super::options::{
    Malformed, check_queries, decode_info, decode_meta, export_name, names_all_snapshots, put_context, put_error,
    put_export, put_info_block_size, put_info_export, put_info_text, put_reply, select_contexts, snapshots_named,
    transmission_flags,
};
use super::permission::{Permitted, Rules};
use super::protocol::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, MAGIC, OPTION_MAGIC, Put, Reader, Style, info, option, option_reply,
};
use super::reply::MetaContext;
use super::tls::Tls;
use super::transport::Channel;
use crate::block_device::{Exports, Geometry, OpenDevice};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::NBD_OPTION_BYTES_MAX;
use crate::units::SnapshotId;

/// Options that one client may send; far more than any needs.
const OPTIONS_MAX: usize = 256;
/// Longest data of an option that is skipped rather than taken for an attack.
const OPTION_BYTES_SKIPPED_MAX: u32 = 1 << 20;

/// What client and server have agreed on.
pub struct Agreement {
    /// The headers.
    pub style: Style,
    /// The metadata contexts; only with structured replies or extended headers.
    pub contexts: Vec<MetaContext>,
    /// The export.
    pub open: OpenDevice,
    /// The connection.
    pub channel: Channel,
}

/// What a server brings into a handshake.
pub struct Host<'a> {
    /// Its disks, all of them.
    pub exports: &'a Arc<dyn Exports>,
    /// Who may open which, by the names of certificates; if there are no rules, everybody may open all.
    pub rules: Option<&'a Arc<Rules>>,
    /// Where disks are opened.
    pub runtime: &'a Handle,
    /// Its TLS.
    pub tls: &'a Tls,
    /// Nothing is told or done without TLS.
    pub tls_required: bool,
    /// Called when the client asks for an export: from then on the time it takes is not its own.
    pub asked: &'a dyn Fn(),
}

impl Host<'_> {
    /// The disks that a client with these names may see.
    fn exports_for(&self, names: Vec<String>) -> Arc<dyn Exports> {
        match self.rules {
            Some(rules) => Arc::new(Permitted::new(self.exports.clone(), rules.clone(), names)),
            None => self.exports.clone(),
        }
    }
}

/// What options have changed; STARTTLS forgets it.
#[derive(Default)]
struct Agreed {
    structured: bool,
    extended: bool,
    /// The export that the contexts were chosen for, and the contexts.
    contexts: Option<(String, Vec<MetaContext>)>,
}

impl Agreed {
    fn has_chunks(&self) -> bool {
        self.structured || self.extended
    }

    fn contexts_for(&self, name: &str) -> Vec<MetaContext> {
        let chosen = self.contexts.as_ref().filter(|(export, _)| export == name && self.has_chunks());
        chosen.map(|(_, contexts)| contexts.clone()).unwrap_or_default()
    }
}

enum Step {
    Next,
    End,
    Enter { name: String, open: OpenDevice },
}

struct Handshake<'a> {
    host: Host<'a>,
    /// The disks as this client sees them.
    exports: Arc<dyn Exports>,
    channel: Channel,
    fixed: bool,
    no_zeroes: bool,
    agreed: Agreed,
    /// Replies to the option at hand.
    out: Vec<u8>,
}

fn broken(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Leads a client to an export. `None` if it leaves before.
///
/// # Errors
/// The connection must be closed: the client is silent, gone, cannot be understood, or asked for what it
/// cannot have in a way that allows no answer.
pub fn negotiate(host: Host<'_>, channel: Channel) -> io::Result<Option<Agreement>> {
    let exports = host.exports_for(Vec::new());
    let (agreed, out) = (Agreed::default(), Vec::new());
    let mut handshake = Handshake { host, exports, channel, fixed: false, no_zeroes: false, agreed, out };
    handshake.greet()?;
    for _ in 0..OPTIONS_MAX {
        let step = handshake.one_option()?;
        if !handshake.out.is_empty() {
            handshake.channel.write_all(&handshake.out)?;
            handshake.out.clear();
        }
        match step {
            Step::Next => {}
            Step::End => return Ok(None),
            Step::Enter { name, open } => {
                let Handshake { channel, agreed, .. } = handshake;
                let style = match (agreed.extended, agreed.structured) {
                    (true, _) => Style::Extended,
                    (false, true) => Style::Structured,
                    (false, false) => Style::Simple,
                };
                return Ok(Some(Agreement { style, contexts: agreed.contexts_for(&name), open, channel }));
            }
        }
    }
    Err(broken("too many options"))
}

impl Handshake<'_> {
    fn greet(&mut self) -> io::Result<()> {
        self.out.put_u64(MAGIC);
        self.out.put_u64(OPTION_MAGIC);
        self.out.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        self.channel.write_all(&self.out)?;
        self.out.clear();
        let mut flags = [0; 4];
        self.channel.read_exact(&mut flags)?;
        let flags = Reader(&flags).u32().unwrap_or(u32::MAX);
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Err(broken("unknown client flags"));
        }
        self.fixed = flags & u32::from(FLAG_FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        Ok(())
    }

    fn one_option(&mut self) -> io::Result<Step> {
        let mut head = [0; 16];
        self.channel.read_exact(&mut head)?;
        let mut reader = Reader(&head);
        let (Some(OPTION_MAGIC), Some(option), Some(length)) = (reader.u64(), reader.u32(), reader.u32()) else {
            return Err(broken("an option does not begin with its magic number"));
        };
        if length > NBD_OPTION_BYTES_MAX {
            self.skip(option, length)?;
            put_error(&mut self.out, option, option_reply::ERR_TOO_BIG, "the option is too long");
            return Ok(Step::Next);
        }
        let mut data = vec![0; length as usize];
        self.channel.read_exact(&mut data)?;
        let encrypted = self.channel.is_encrypted();
        let named = option == option::EXPORT_NAME;
        if !self.fixed && (!named || self.host.tls_required) {
            return Err(broken("a client without fixed newstyle can only ask for an export by EXPORT_NAME"));
        }
        if self.host.tls_required && !encrypted {
            match option {
                option::STARTTLS | option::ABORT => {}
                option::EXPORT_NAME => return Err(broken("EXPORT_NAME without TLS, which is required here")),
                _ => {
                    put_error(&mut self.out, option, option_reply::ERR_TLS_REQD, "this server requires TLS");
                    return Ok(Step::Next);
                }
            }
        }
        self.dispatch(option, &data)
    }

    fn skip(&mut self, option: u32, length: u32) -> io::Result<()> {
        if !self.fixed || option == option::EXPORT_NAME || length > OPTION_BYTES_SKIPPED_MAX {
            return Err(broken("an option announces more data than any option has"));
        }
        let mut left = length as usize;
        let mut sink = [0; 4096];
        while left > 0 {
            let part = left.min(sink.len());
            self.channel.read_exact(&mut sink[..part])?;
            left -= part;
        }
        Ok(())
    }

    fn dispatch(&mut self, option: u32, data: &[u8]) -> io::Result<Step> {
        match option {
            option::EXPORT_NAME => return self.enter_by_name(data),
            option::ABORT => {
                put_reply(&mut self.out, option, option_reply::ACK, &[]);
                return Ok(Step::End);
            }
            option::STARTTLS => return self.start_tls(data),
            option::INFO | option::GO => return Ok(self.info_or_go(option, data)),
            option::LIST => self.list(data),
            option::STRUCTURED_REPLY if self.agreed.extended => {
                let message = "extended headers were agreed on already";
                put_error(&mut self.out, option, option_reply::ERR_EXT_HEADER_REQD, message);
            }
            option::STRUCTURED_REPLY => self.agreed.structured |= self.accept_plain(option, data),
            option::EXTENDED_HEADERS => self.agreed.extended |= self.accept_plain(option, data),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(option, data),
            _ => put_error(&mut self.out, option, option_reply::ERR_UNSUP, "unknown option"),
        }
        Ok(Step::Next)
    }

    /// Accepts an option that has no data; returns whether.
    fn accept_plain(&mut self, option: u32, data: &[u8]) -> bool {
        if data.is_empty() {
            put_reply(&mut self.out, option, option_reply::ACK, &[]);
        } else {
            put_error(&mut self.out, option, option_reply::ERR_INVALID, "this option has no data");
        }
        data.is_empty()
    }

    fn start_tls(&mut self, data: &[u8]) -> io::Result<Step> {
        let option = option::STARTTLS;
        if self.channel.is_encrypted() {
            put_error(&mut self.out, option, option_reply::ERR_INVALID, "TLS is in use already");
            return Ok(Step::Next);
        }
        let Some(config) = self.host.tls.config.clone() else {
            put_error(&mut self.out, option, option_reply::ERR_POLICY, "this server is set up without TLS");
            return Ok(Step::Next);
        };
        if self.accept_plain(option, data) {
            self.channel.write_all(&self.out)?;
            self.out.clear();
            self.agreed = Agreed::default();
            self.channel.start_tls(config)?;
            let names = self.channel.peer_certificate().map(certificate::names).unwrap_or_default();
            self.exports = self.host.exports_for(names);
        }
        Ok(Step::Next)
    }

    fn list(&mut self, data: &[u8]) {
        let option = option::LIST;
        if !data.is_empty() {
            return put_error(&mut self.out, option, option_reply::ERR_INVALID, "this option has no data");
        }
        match self.ask(|exports| async move { exports.list().await }) {
            Ok(entries) => {
                entries.iter().for_each(|entry| put_export(&mut self.out, option, entry));
                put_reply(&mut self.out, option, option_reply::ACK, &[]);
            }
            Err(error) => put_error(&mut self.out, option, refusal(error.kind()), error.message()),
        }
    }

    /// Asks the exports something, on the runtime, and waits for the answer; the time it takes is not the client's.
    fn ask<T, F>(&mut self, question: impl FnOnce(Arc<dyn Exports>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let before = clock::uptime();
        let runtime = self.host.runtime;
        let lost = |_| Error::new(ErrorKind::Stopping, "the server gave up on the request; it may be stopping");
        let answer = runtime.block_on(runtime.spawn(question(self.exports.clone()))).map_err(lost);
        self.channel.extend(clock::uptime().saturating_sub(before));
        answer?
    }

    fn open(&mut self, name: &str) -> Result<OpenDevice> {
        (self.host.asked)();
        let name = name.to_owned();
        self.ask(|exports| async move { exports.open(&name).await })
    }

    fn flags(&self, name: &str, geometry: &Geometry) -> u16 {
        let payloads = self.agreed.extended && !self.agreed.contexts_for(name).is_empty();
        transmission_flags(geometry, self.agreed.has_chunks(), payloads)
    }

    fn enter_by_name(&mut self, data: &[u8]) -> io::Result<Step> {
        if self.agreed.extended {
            return Err(broken("EXPORT_NAME does not go with extended headers"));
        }
        let name = export_name(data).map_err(|Malformed(reason)| broken(reason))?.to_owned();
        let open = self.open(&name).map_err(io::Error::other)?;
        let geometry = open.device.geometry();
        self.out.put_u64(geometry.size);
        self.out.put_u16(self.flags(&name, &geometry));
        if !self.no_zeroes {
            self.out.put(&[0; 124]);
        }
        Ok(Step::Enter { name, open })
    }

    fn info_or_go(&mut self, option: u32, data: &[u8]) -> Step {
        let query = match decode_info(data) {
            Ok(query) => query,
            Err(Malformed(reason)) => {
                put_error(&mut self.out, option, option_reply::ERR_INVALID, reason);
                return Step::Next;
            }
        };
        let name = match export_name(query.name) {
            Ok(name) => name.to_owned(),
            Err(Malformed(reason)) => {
                put_error(&mut self.out, option, option_reply::ERR_UNKNOWN, reason);
                return Step::Next;
            }
        };
        let found = if option == option::GO {
            self.open(&name).map(|open| (open.device.geometry(), Some(open)))
        } else {
            let name = name.clone();
            let inspect = self.ask(|exports| async move { exports.inspect(&name).await });
            inspect.map(|geometry| (geometry, None))
        };
        let (geometry, open) = match found {
            Ok(found) => found,
            Err(error) => {
                put_error(&mut self.out, option, refusal(error.kind()), error.message());
                return Step::Next;
            }
        };
        let flags = self.flags(&name, &geometry);
        put_info_export(&mut self.out, option, geometry.size, flags);
        if query.wants.contains(&info::NAME) {
            put_info_text(&mut self.out, option, info::NAME, &name);
        }
        if query.wants.contains(&info::DESCRIPTION)
            && let Some(description) = self.description(&name)
        {
            put_info_text(&mut self.out, option, info::DESCRIPTION, &description);
        }
        put_info_block_size(&mut self.out, option, &geometry);
        put_reply(&mut self.out, option, option_reply::ACK, &[]);
        open.map_or(Step::Next, |open| Step::Enter { name, open })
    }

    /// What the list of exports says of `name`; an item that may be left out.
    fn description(&mut self, name: &str) -> Option<String> {
        let entries = self.ask(|exports| async move { exports.list().await }).ok()?;
        entries.into_iter().find(|entry| entry.name == name).map(|entry| entry.description)
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) {
        let list = option == option::LIST_META_CONTEXT;
        if !list {
            // Even an attempt that fails replaces what was chosen before.
            self.agreed.contexts = None;
        }
        match self.choose_contexts(list, data) {
            Ok((name, contexts)) => {
                contexts.iter().for_each(|&context| put_context(&mut self.out, option, context, list));
                put_reply(&mut self.out, option, option_reply::ACK, &[]);
                if !list {
                    self.agreed.contexts = Some((name, contexts));
                }
            }
            Err(Malformed(reason)) => put_error(&mut self.out, option, option_reply::ERR_INVALID, reason),
        }
    }

    fn choose_contexts(&mut self, list: bool, data: &[u8]) -> Result<(String, Vec<MetaContext>), Malformed> {
        if !list && !self.agreed.has_chunks() {
            return Err(Malformed("structured replies or extended headers must be agreed on first"));
        }
        let query = decode_meta(data)?;
        check_queries(&query.queries)?;
        let name = export_name(query.name)?.to_owned();
        let mut snapshots = Vec::new();
        if names_all_snapshots(&query.queries, list) {
            snapshots.extend(self.bitmaps(&name, None));
        }
        let mut named = snapshots_named(&query.queries);
        named.retain(|snapshot| !snapshots.contains(snapshot));
        if !named.is_empty() {
            snapshots.extend(self.bitmaps(&name, Some(named)));
        }
        Ok((name, select_contexts(&query.queries, list, &snapshots)))
    }

    /// The snapshots that an export can be compared with. If that cannot be found out there are none: contexts that cannot be had are left out.
    fn bitmaps(&mut self, name: &str, asked: Option<Vec<SnapshotId>>) -> Vec<SnapshotId> {
        let name = name.to_owned();
        let known = self.ask(|exports| async move { exports.bitmaps(&name, asked).await });
        known.unwrap_or_else(|error| {
            tracing::debug!(%error, "the snapshots of an export could not be looked up");
            Vec::new()
        })
    }
}

/// How an option says that an export cannot be had.
fn refusal(kind: ErrorKind) -> u32 {
    match kind {
        ErrorKind::Invalid
        | ErrorKind::NotFound
        | ErrorKind::Damaged
        | ErrorKind::Unavailable
        | ErrorKind::Full
        | ErrorKind::Io => option_reply::ERR_UNKNOWN,
        ErrorKind::Conflict
        | ErrorKind::Busy
        | ErrorKind::Fenced
        | ErrorKind::Denied
        | ErrorKind::ReadOnly
        | ErrorKind::Unsupported => option_reply::ERR_POLICY,
        ErrorKind::Stopping => option_reply::ERR_SHUTDOWN,
    }
}

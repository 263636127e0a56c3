//! The words of the NBD protocol: its constants, and the only conversions between its big-endian bytes and values.
//!
//! Pure: no I/O, no state, no allocation that follows an announced length. The names are those of the
//! specification (doc/proto.md of the NetworkBlockDevice project, with its extension of extended headers)
//! without the prefix `NBD_`.

use crate::error::ErrorKind;

/// First word of the server: `NBDMAGIC`.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the server, and first of every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// First word of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flag of server and client: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag of server and client: no 124 zero bytes after the reply to EXPORT_NAME.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Transmission flags.
pub mod transmission {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Changes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// FUA is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// DF is understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers all of them.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// FAST_ZERO is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// BLOCK_STATUS may carry a payload that selects contexts.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Options of the handshake.
pub mod option {
    /// Choose an export; cannot be refused but by closing.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Go over to TLS.
    pub const STARTTLS: u32 = 5;
    /// Ask about an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List the metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use extended headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options.
pub mod option_reply {
    /// Accepted, or the end of a list.
    pub const ACK: u32 = 1;
    /// An export.
    pub const SERVER: u32 = 2;
    /// An item of information.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Unknown option.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// Forbidden here.
    pub const ERR_POLICY: u32 = (1 << 31) + 2;
    /// Malformed, or out of place.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// TLS first.
    pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// Stopping.
    pub const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
    /// Too long.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    /// Extended headers were agreed on already.
    pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
}

/// Items of information on an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Its name.
    pub const NAME: u16 = 1;
    /// Its description.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum lengths.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Commands.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write.
    pub const WRITE: u16 = 1;
    /// Disconnect.
    pub const DISC: u16 = 2;
    /// Make durable what was acknowledged.
    pub const FLUSH: u16 = 3;
    /// Forget content.
    pub const TRIM: u16 = 4;
    /// Bring near.
    pub const CACHE: u16 = 5;
    /// Make zero.
    pub const WRITE_ZEROES: u16 = 6;
    /// Tell where content is.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Do not make a hole.
    pub const NO_HOLE: u16 = 1 << 1;
    /// Reply in one piece.
    pub const DF: u16 = 1 << 2;
    /// One extent only.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail unless it is fast.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// With extended headers: the length is that of a payload.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Types of reply chunks, and their flag.
pub mod chunk {
    /// Flag: the last chunk of a reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// Nothing.
    pub const NONE: u16 = 0;
    /// Content.
    pub const OFFSET_DATA: u16 = 1;
    /// Extents with 32-bit lengths.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents with 64-bit lengths.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// An error and its message.
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// `base:allocation`: not allocated.
pub const STATE_HOLE: u32 = 1 << 0;
/// `base:allocation`: reads as zero.
pub const STATE_ZERO: u32 = 1 << 1;

/// `qemu:dirty-bitmap:...`: may differ.
pub const STATE_DIRTY: u32 = 1 << 0;

/// The error values that the protocol knows, as far as they are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// EPERM.
    NotPermitted = 1,
    /// EIO.
    Io = 5,
    /// EINVAL.
    Invalid = 22,
    /// ENOSPC.
    NoSpace = 28,
    /// ENOTSUP.
    NotSupported = 95,
    /// ESHUTDOWN.
    Shutdown = 108,
}

impl From<ErrorKind> for Errno {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Fenced | ErrorKind::Stopping => Errno::Shutdown,
            ErrorKind::Full => Errno::NoSpace,
            ErrorKind::ReadOnly => Errno::NotPermitted,
            ErrorKind::Invalid | ErrorKind::NotFound => Errno::Invalid,
            ErrorKind::Unsupported => Errno::NotSupported,
            ErrorKind::Conflict
            | ErrorKind::Busy
            | ErrorKind::Damaged
            | ErrorKind::Unavailable
            | ErrorKind::Denied
            | ErrorKind::Io => Errno::Io,
        }
    }
}

/// Which headers the two sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests; structured replies where they carry something.
    Structured,
    /// Extended requests and replies.
    Extended,
}

impl Style {
    /// Bytes of a request before its payload.
    pub const fn request_head_bytes(self) -> usize {
        match self {
            Style::Simple | Style::Structured => 28,
            Style::Extended => 32,
        }
    }

    /// Bytes before the content in the reply to a read.
    pub const fn read_head_bytes(self) -> usize {
        match self {
            Style::Simple => 16,
            Style::Structured => 20 + 8,
            Style::Extended => 32 + 8,
        }
    }
}

/// A request without its payload, as it came; nothing in it has been judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// See [`command_flag`].
    pub flags: u16,
    /// See [`command`].
    pub command: u16,
    /// What the reply must repeat.
    pub cookie: u64,
    /// Bytes.
    pub offset: u64,
    /// Bytes of payload or of effect.
    pub length: u64,
}

/// Takes values off the front of a message.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `length` bytes; `None` if there are fewer.
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*front)
    }

    /// The next 16 bits.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string after its 32-bit length; `None` if it is longer than what is there.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.bytes(usize::try_from(length).ok()?)
    }

    /// True if nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Puts values at the end of a message.
pub trait Put {
    /// Bytes as they are.
    fn put(&mut self, bytes: &[u8]);

    /// 16 bits.
    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    /// 32 bits.
    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    /// 64 bits.
    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Writes into a slice from its front; what does not fit is a bug of the caller and is left out.
#[derive(Debug)]
pub struct Filler<'a>(pub &'a mut [u8]);

impl Put for Filler<'_> {
    fn put(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.0.len(), "a header must fit into its place");
        let place = std::mem::take(&mut self.0);
        if let Some((front, rest)) = place.split_at_mut_checked(bytes.len()) {
            front.copy_from_slice(bytes);
            self.0 = rest;
        }
    }
}

/// Decodes the head of a request. `Ok(None)` if there are too few bytes.
///
/// # Errors
/// The first word, if it is not the magic number of a request: the stream has lost its step.
pub fn decode_request(style: Style, bytes: &[u8]) -> Result<Option<RequestHead>, u32> {
    let mut reader = Reader(bytes);
    let Some(magic) = reader.u32() else { return Ok(None) };
    let (expected, wide) = match style {
        Style::Simple | Style::Structured => (REQUEST_MAGIC, false),
        Style::Extended => (EXTENDED_REQUEST_MAGIC, true),
    };
    if magic != expected {
        return Err(magic);
    }
    let mut fields = || {
        let (flags, command) = (reader.u16()?, reader.u16()?);
        let (cookie, offset) = (reader.u64()?, reader.u64()?);
        let length = if wide { reader.u64()? } else { u64::from(reader.u32()?) };
        Some(RequestHead { flags, command, cookie, offset, length })
    };
    Ok(fields())
}

/// Encodes a request; for clients, which here means tests.
pub fn encode_request(style: Style, head: &RequestHead, out: &mut Vec<u8>) {
    let wide = style == Style::Extended;
    out.put_u32(if wide { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC });
    out.put_u16(head.flags);
    out.put_u16(head.command);
    out.put_u64(head.cookie);
    out.put_u64(head.offset);
    if wide {
        out.put_u64(head.length);
    } else {
        out.put_u32(u32::try_from(head.length).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_way_through_bytes() {
        let head = RequestHead { flags: 0x21, command: 7, cookie: u64::MAX - 1, offset: 1 << 40, length: 0xffff_fff0 };
        for style in [Style::Simple, Style::Structured, Style::Extended] {
            let mut bytes = Vec::new();
            encode_request(style, &head, &mut bytes);
            assert_eq!(bytes.len(), style.request_head_bytes());
            assert_eq!(decode_request(style, &bytes), Ok(Some(head)));
            for cut in 0..bytes.len() {
                assert_eq!(decode_request(style, &bytes[..cut]), Ok(None));
            }
            bytes[0] ^= 1;
            assert!(decode_request(style, &bytes).is_err());
        }
    }

    #[test]
    fn the_golden_bytes_of_a_request_decode() {
        let bytes = [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x10, 0];
        let expected =
            RequestHead { flags: 1, command: 1, cookie: 0x0102_0304_0506_0708, offset: 1 << 32, length: 4096 };
        assert_eq!(decode_request(Style::Simple, &bytes), Ok(Some(expected)));
    }

    #[test]
    fn a_string_longer_than_its_message_is_refused() {
        assert!(Reader(&[0xff, 0xff, 0xff, 0xff, b'a']).string().is_none());
        assert_eq!(Reader(&[0, 0, 0, 1, b'a']).string(), Some(&b"a"[..]));
    }
}

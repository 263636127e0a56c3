//! Cuts a stream of bytes into requests, and judges each by itself. Pure.
//!
//! [`parse`] looks at the front of the receive buffer and says what is there; nothing is allocated for what a
//! request announces. [`judge`] then says whether the request is one that the device may be asked.

use std::ops::Range;

use super::protocol::{Errno, RequestHead, Style, command, command_flag, decode_request};
use crate::block_device::Geometry;
use crate::limits::REQUEST_BYTES_MAX;

/// What is at the front of the receive buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole request.
    Whole {
        /// Its head.
        head: RequestHead,
        /// Where its payload is in what was given to [`parse`]; empty for a request without one. The next request
        /// begins at its end.
        payload: Range<usize>,
    },
    /// A part of a request that is this many bytes long as far as can be said.
    Part {
        /// Bytes from the front of the request on.
        needed: usize,
    },
    /// A request with a payload so long that it is thrown away as it comes.
    TooLong {
        /// Its head.
        head: RequestHead,
        /// Bytes of the head; the payload follows.
        head_bytes: usize,
        /// Bytes of the payload.
        payload_bytes: u64,
    },
    /// Not a request: the connection cannot go on.
    Garbage {
        /// Why.
        reason: &'static str,
    },
}

/// Looks at the front of `bytes`.
pub fn parse(style: Style, bytes: &[u8]) -> Parsed {
    let head_bytes = style.request_head_bytes();
    let head = match decode_request(style, bytes) {
        Ok(Some(head)) => head,
        Ok(None) => return Parsed::Part { needed: head_bytes },
        Err(_) => return Parsed::Garbage { reason: "a request does not begin with the magic number agreed on" },
    };
    let carries = match style {
        Style::Simple | Style::Structured => head.command == command::WRITE,
        Style::Extended => head.flags & command_flag::PAYLOAD_LEN != 0,
    };
    let payload_bytes = if carries { head.length } else { 0 };
    if payload_bytes > u64::from(u32::MAX) {
        return Parsed::Garbage { reason: "a request announces a payload of more than 4 GiB" };
    }
    match usize::try_from(payload_bytes) {
        Ok(length) if payload_bytes <= REQUEST_BYTES_MAX => {
            let end = head_bytes + length;
            if bytes.len() < end {
                return Parsed::Part { needed: end };
            }
            Parsed::Whole { head, payload: head_bytes..end }
        }
        _ => Parsed::TooLong { head, head_bytes, payload_bytes },
    }
}

/// Why a request is refused before the device is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the client's program.
    pub errno: Errno,
    /// For a person.
    pub message: &'static str,
}

const fn refuse(errno: Errno, message: &'static str) -> Result<(), Refusal> {
    Err(Refusal { errno, message })
}

/// The refusal of a request with a payload beyond the limit.
pub const TOO_LONG: Refusal = Refusal { errno: Errno::Invalid, message: "a request may carry at most 32 MiB" };

/// The flags that a command may have.
fn flags_allowed(style: Style, command: u16) -> Option<u16> {
    use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
    let payload = if style == Style::Extended { PAYLOAD_LEN } else { 0 };
    // Existing clients set FUA on commands that change nothing; the protocol wants it accepted.
    Some(match command {
        command::READ if style == Style::Simple => FUA,
        command::READ => FUA | DF,
        command::WRITE => FUA | payload,
        command::DISC | command::FLUSH | command::TRIM | command::CACHE => FUA,
        command::WRITE_ZEROES => FUA | NO_HOLE | FAST_ZERO,
        command::BLOCK_STATUS => FUA | REQ_ONE | payload,
        _ => return None,
    })
}

/// Says whether the device may be asked. For a BLOCK_STATUS with a payload, `head.length` must be the
/// length of effect by now.
///
/// # Errors
/// A [`Refusal`]; the connection goes on.
pub fn judge(style: Style, head: &RequestHead, geometry: &Geometry) -> Result<(), Refusal> {
    let Some(allowed) = flags_allowed(style, head.command) else {
        return refuse(Errno::Invalid, "unknown command");
    };
    if head.flags & !allowed != 0 {
        return refuse(Errno::Invalid, "a flag that this command does not have");
    }
    let changes = matches!(head.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    if head.command == command::WRITE && style == Style::Extended && head.flags & command_flag::PAYLOAD_LEN == 0 {
        return refuse(Errno::Invalid, "a write without a payload");
    }
    if head.command == command::FLUSH {
        return Ok(());
    }
    if changes && geometry.read_only {
        return refuse(Errno::NotPermitted, "the export is read-only");
    }
    if head.length == 0 {
        return refuse(Errno::Invalid, "a length of zero");
    }
    if head.command == command::READ && head.length > REQUEST_BYTES_MAX {
        return refuse(Errno::Invalid, "a read may ask for at most 32 MiB");
    }
    if head.offset.checked_add(head.length).is_none_or(|end| end > geometry.size) {
        let errno = match head.command {
            command::WRITE | command::WRITE_ZEROES => Errno::NoSpace,
            _ => Errno::Invalid,
        };
        return refuse(errno, "beyond the end of the export");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::protocol::encode_request;
    use super::*;

    const GEOMETRY: Geometry = Geometry { size: 1 << 20, read_only: false, preferred_block: 4096 };

    fn head(command: u16, flags: u16, offset: u64, length: u64) -> RequestHead {
        RequestHead { flags, command, cookie: 7, offset, length }
    }

    #[test]
    fn requests_are_judged_one_by_one() {
        use command::*;
        type Case = (u16, u16, u64, u64, Result<(), Errno>);
        let ok = Ok(());
        let cases: &[Case] = &[
            (READ, 0, 0, 1, ok),
            (READ, command_flag::DF, (1 << 20) - 1, 1, ok),
            (READ, 0, (1 << 20) - 1, 2, Err(Errno::Invalid)),
            (READ, 0, 0, 0, Err(Errno::Invalid)),
            (READ, 0, 0, REQUEST_BYTES_MAX + 1, Err(Errno::Invalid)),
            (READ, command_flag::NO_HOLE, 0, 1, Err(Errno::Invalid)),
            (WRITE, command_flag::FUA, 0, 1, ok),
            (WRITE, 0, 1 << 20, 1, Err(Errno::NoSpace)),
            (WRITE, 0, u64::MAX, 1, Err(Errno::NoSpace)),
            (WRITE, command_flag::PAYLOAD_LEN, 0, 1, Err(Errno::Invalid)),
            (WRITE_ZEROES, command_flag::NO_HOLE | command_flag::FAST_ZERO, 0, 1 << 20, ok),
            (WRITE_ZEROES, 0, 1, 1 << 20, Err(Errno::NoSpace)),
            (TRIM, 0, 1, 1 << 20, Err(Errno::Invalid)),
            (FLUSH, 0, u64::MAX, u64::MAX, ok),
            (CACHE, 0, u64::MAX, u64::MAX, Err(Errno::Invalid)),
            (BLOCK_STATUS, command_flag::REQ_ONE, 0, 1, ok),
            (8, 0, 0, 1, Err(Errno::Invalid)),
            (0xffff, 0, 0, 1, Err(Errno::Invalid)),
        ];
        for &(command, flags, offset, length, expected) in cases {
            let verdict = judge(Style::Structured, &head(command, flags, offset, length), &GEOMETRY);
            assert_eq!(verdict.map_err(|refusal| refusal.errno), expected, "{command} {flags} {offset} {length}");
        }
        let read_only = Geometry { read_only: true, ..GEOMETRY };
        for command in [WRITE, TRIM, WRITE_ZEROES] {
            let verdict = judge(Style::Simple, &head(command, 0, 0, 1), &read_only);
            assert_eq!(verdict.map_err(|refusal| refusal.errno), Err(Errno::NotPermitted));
        }
    }

    #[test]
    fn announced_lengths_are_bounded() {
        let mut bytes = Vec::new();
        encode_request(Style::Simple, &head(command::WRITE, 0, 0, u64::from(u32::MAX)), &mut bytes);
        assert!(matches!(parse(Style::Simple, &bytes), Parsed::TooLong { payload_bytes: 0xffff_ffff, .. }));
        bytes.clear();
        encode_request(Style::Extended, &head(1, command_flag::PAYLOAD_LEN, 0, u64::MAX), &mut bytes);
        assert!(matches!(parse(Style::Extended, &bytes), Parsed::Garbage { .. }));
        bytes.clear();
        encode_request(Style::Extended, &head(command::TRIM, 0, 0, u64::MAX), &mut bytes);
        assert!(matches!(parse(Style::Extended, &bytes), Parsed::Whole { .. }));
    }
}

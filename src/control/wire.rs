//! What travels over the control socket besides the types of [`service`](crate::service): request bodies and errors.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// Longest request body, in bytes. Real ones have fewer than a hundred.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// Body of an attach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttachBody {
    /// Put out another owner.
    pub takeover: bool,
}

/// Body of a detach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetachBody {
    /// Disconnect clients.
    pub force: bool,
}

/// Any failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The failure.
    pub error: ErrorDetail,
}

/// A failure: what to do about it, and what to tell a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Name of an [`ErrorKind`].
    pub kind: String,
    /// For people.
    pub message: String,
}

impl From<&Error> for ErrorBody {
    fn from(error: &Error) -> Self {
        ErrorBody {
            error: ErrorDetail { kind: kind_name(error.kind()).to_owned(), message: error.message().to_owned() },
        }
    }
}

impl From<ErrorBody> for Error {
    fn from(body: ErrorBody) -> Self {
        // A daemon newer than this client may know kinds that we do not: then its message must do.
        let kind = KINDS.into_iter().find(|&kind| kind_name(kind) == body.error.kind).unwrap_or(ErrorKind::Unsupported);
        Error::new(kind, body.error.message)
    }
}

/// Every kind, to find one by its name.
pub const KINDS: [ErrorKind; 13] = [
    ErrorKind::Invalid,
    ErrorKind::NotFound,
    ErrorKind::Conflict,
    ErrorKind::Busy,
    ErrorKind::Fenced,
    ErrorKind::Stopping,
    ErrorKind::Damaged,
    ErrorKind::Unavailable,
    ErrorKind::Denied,
    ErrorKind::Full,
    ErrorKind::ReadOnly,
    ErrorKind::Unsupported,
    ErrorKind::Io,
];

/// The name of a kind in JSON.
pub fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Invalid => "invalid",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Conflict => "conflict",
        ErrorKind::Busy => "busy",
        ErrorKind::Fenced => "fenced",
        ErrorKind::Stopping => "stopping",
        ErrorKind::Damaged => "damaged",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Denied => "denied",
        ErrorKind::Full => "full",
        ErrorKind::ReadOnly => "read_only",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Io => "io",
    }
}

/// The HTTP status of a kind.
pub fn http_status(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Invalid => 400,
        ErrorKind::NotFound => 404,
        ErrorKind::Conflict => 409,
        ErrorKind::Busy => 423,
        ErrorKind::Fenced => 410,
        ErrorKind::Stopping | ErrorKind::Unavailable => 503,
        ErrorKind::Damaged | ErrorKind::Io => 500,
        ErrorKind::Denied => 502,
        ErrorKind::Full => 507,
        ErrorKind::ReadOnly => 403,
        ErrorKind::Unsupported => 501,
    }
}

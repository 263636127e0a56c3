//! What can go wrong, sorted by what the one who meets it must do.
//!
//! An [`Error`] has a kind, which decides the reaction (retry, fail the request, stop), and a message for
//! a person: what happened, to which object, and what can be done. Messages are built where the
//! object is known; context is added on the way up with [`Context::context`].

use std::fmt;

/// The result of almost everything in varve.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the one who receives the error must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request makes no sense: fix it. NBD: EINVAL.
    Invalid,
    /// What was named does not exist. NBD: EINVAL on a request, ERR_UNKNOWN on an option.
    NotFound,
    /// It exists already, or somebody else changed it first: look again, then decide.
    Conflict,
    /// Somebody else owns the volume, or it is in use: wait, or take it over knowingly.
    Busy,
    /// Ownership was lost to a newer epoch: stop for good. NBD: ESHUTDOWN.
    Fenced,
    /// The daemon or the volume is stopping. NBD: ESHUTDOWN.
    Stopping,
    /// Bytes are not what was written: fail just what depends on them. NBD: EIO.
    Damaged,
    /// The store (or a server) cannot be reached just now: retry. NBD: EIO.
    Unavailable,
    /// The store refuses us: credentials or permissions must be fixed. NBD: EIO.
    Denied,
    /// No space left where it is needed. NBD: ENOSPC.
    Full,
    /// The device is read-only. NBD: EPERM.
    ReadOnly,
    /// Valid, but this version cannot do it or read it: upgrade. NBD: ENOTSUP.
    Unsupported,
    /// The local disk failed. NBD: EIO.
    Io,
}

/// An error: its kind and the message for a person. Cheap to clone, since one failure often
/// answers many waiting requests.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into() }
    }

    /// [`ErrorKind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid, message)
    }

    /// [`ErrorKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::NotFound, message)
    }

    /// [`ErrorKind::Damaged`].
    pub fn damaged(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Damaged, message)
    }

    /// [`ErrorKind::Io`] or [`ErrorKind::Full`], from what the operating system said of `what`.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Full,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("{what}: {error}"))
    }

    /// Whether something that must be there is not, or cannot be read.
    pub fn is_damage(&self) -> bool {
        matches!(self.kind, ErrorKind::Damaged | ErrorKind::NotFound)
    }

    /// What the receiver must do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message, without the kind.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Error {}

/// Adds what was being done to an error on its way up.
pub trait Context<T> {
    /// Puts `what()` and a colon before the message; the kind stays.
    ///
    /// # Errors
    /// The error it was called on.
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Error { kind: error.kind, message: format!("{}: {}", what(), error.message) })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Error::io(what(), &error))
    }
}

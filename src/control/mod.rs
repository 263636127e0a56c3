//! How a person, through `varve`, reaches a running daemon: an HTTP API with JSON bodies, over a Unix socket, and over TCP if the settings say so.
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `GET /v1/status` | | [`DaemonStatus`](crate::service::DaemonStatus) |
//! | `GET /v1/volumes` | | a list of [`AttachedStatus`](crate::service::AttachedStatus) |
//! | `GET /v1/volumes/{id}` | | [`AttachedStatus`](crate::service::AttachedStatus) |
//! | `POST /v1/volumes/{id}/attach` | `{"takeover": bool}` | [`AttachReport`](crate::service::AttachReport) |
//! | `POST /v1/volumes/{id}/detach` | `{"force": bool}` | `{}` |
//! | `POST /v1/volumes/{id}/sync` | | [`AttachedStatus`](crate::service::AttachedStatus) |
//! | `PATCH /v1/volumes/{id}` | [`VolumeChange`](crate::service::VolumeChange) | [`AttachedStatus`](crate::service::AttachedStatus) |
//! | `POST /v1/volumes/{id}/snapshots` | [`NewSnapshot`](crate::service::NewSnapshot) | [`SnapshotSummary`](crate::service::SnapshotSummary) |
//! | `POST /v1/volumes/{id}/forks` | [`NewForks`](crate::service::NewForks) | a list of [`VolumeSummary`](crate::service::VolumeSummary) |
//!
//! Any failure: `{"error": {"kind": "...", "message": "..."}}` with the status of its kind (`wire`). A body that is left out
//! means all defaults; a field that is not known is refused.
//!
//! | file | what |
//! | --- | --- |
//! | `listen` | the socket file: who may connect, stale files, removal |
//! | `remote` | the door over TCP: TLS, tokens, bounds |
//! | `tokens` | the file of tokens: who has one, and what it may do |
//! | `server` | requests to calls of a [`Service`](crate::service::Service) |
//! | `client` | the same from the other end |
//! | `wire` | bodies, and errors as JSON and HTTP status |
//!
//! Guarantees: on the socket, only the user who runs the daemon (and root) can connect: the socket has mode 0600 from its first moment on. The socket
//! file of a living daemon is never replaced. Over TCP, only who shows a token that is good now is answered, within TLS. An operation that has begun is finished even if the client goes away meanwhile. No
//! request is retried here, by neither end.
//!
//! After a crash the socket file is left behind; the next daemon finds that nobody answers on it, and replaces it.

pub mod client;
mod listen;
mod remote;
mod server;
#[cfg(test)]
mod tests;
mod tokens;
mod wire;

pub use listen::ControlSocket;
pub use remote::RemoteDoor;
pub use server::serve;
pub use tokens::{Scope, Token, TokenFile};

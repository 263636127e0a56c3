//! The NBD door: disks for clients that speak the network block device protocol.
//!
//! # Owns
//! Sockets, threads of connections, and what is in flight on them. It knows disks only as
//! [`BlockDevice`](crate::block_device::BlockDevice) and [`Exports`](crate::block_device::Exports).
//!
//! # The parts
//! Pure: `protocol` (constants, integers to bytes and back), `options` (the handshake's data), `request` (cutting the
//! stream into requests, judging each), `reply` (encoding), `certificate` (a client's names). With effects: `listen` and `tls`
//! (ways in), `permission` (what a client may open),
//! `transport` (bytes, bare or under TLS), `handshake`, `connection` (the loop), `buffers` (its two buffers), `session`
//! (slower requests), `writer` (the shared way out), `flow` and `budget` (bounds on what is in flight, of one connection and of all), `pace` (clients that stall), `crowd` (who is
//! connected), `server` (all of it).
//!
//! # Guarantees
//! - A request is answered once, or its connection ends. Only a success that the device gave is answered as one.
//! - A FLUSH covers every change whose reply was sent before it arrived, on any connection, and every change of the same
//!   round that was made at once.
//! - Memory for one connection: the receive buffer (what has arrived of one round, at most one request of 32 MiB), the reply
//!   buffer (1 MiB, or one reply), and [`NBD_INFLIGHT_BYTES_MAX`](crate::limits::NBD_INFLIGHT_BYTES_MAX).
//!   Nothing is allocated for what is only announced.
//! - A client that does not read its replies, does not send the rest of a request, or does not finish its handshake, harms only itself: it is
//!   cut off once others wait for what it holds.
//!
//! # Errors
//! [`ErrorKind`](crate::error::ErrorKind) becomes an errno in one place, `protocol`. With structured replies the message goes
//! along. A device that is fenced or stopping answers ESHUTDOWN to everything; the connection stays until the client
//! goes. Nothing is retried here.
//!
//! # Metadata contexts
//! `base:allocation`: 0 allocated, 3 hole that reads as zero. `varve:residence`: 0 in the write log, 1 in the read cache,
//! 2 in the store only, 3 hole.
//!
//! # After a crash
//! Nothing to recover: clients connect again. A Unix socket file left behind is replaced.

mod budget;
mod buffers;
mod certificate;
mod connection;
mod crowd;
mod flow;
mod handshake;
mod listen;
pub mod options;
mod pace;
mod permission;
pub mod protocol;
pub mod reply;
pub mod request;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod watch;
mod writer;

pub use permission::Rules;
pub use server::{NbdSettings, Server};
pub use tls::{TlsMode, TlsSettings};

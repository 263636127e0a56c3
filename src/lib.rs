//! varve: a log-structured virtual disk whose durable home is an object store.
//!
//! # The house
//! Imports point down only, and rooms on one floor do not know each other; `tests/tidy.rs` checks it.
//!
//! | floor | room | what it owns |
//! | --- | --- | --- |
//! | 0 words | [`units`] [`limits`] [`error`] [`block_device`] [`service`] [`clock`] [`work`] [`compression`] [`settings`] | quantities, bounds, errors, the seams to the doors, time and chance, tasks and threads, zstd, settings |
//! | 1 pure | [`map`] | where a block's newest content is: extents, pages, places |
//! | 1 pure | [`seal`] | keys of volumes, sealing and opening |
//! | 1 edge | [`tls`] | what a TLS server needs, from files |
//! | 2 pure | [`format`] | bytes to values and back, nothing else |
//! | 2 edge | [`keys`] | key files, passphrases and key commands; the keys that are open |
//! | 3 edges | [`disk`] | files, syncs, the simulated and the failing disk |
//! | 3 edges | [`store`] | S3, directory and memory, and the wrappers around them |
//! | 4 organs | [`log`] | the write log: ring, append, group commit, recovery scan |
//! | 4 organs | [`segment`] | packing segments and reading them back |
//! | 4 organs | [`cache`] | the read cache: on disk and in memory |
//! | 4 organs | [`index`] | RocksDB: map pages and segment indexes kept locally |
//! | 5 keepers | [`checkpoint`] | the block map in the store |
//! | 5 keepers | [`ownership`] | manifests, epochs, sealing |
//! | 5 keepers | [`clean`] | what a volume has in the store, what of it is in use, what may go |
//! | 6 family | [`lineage`] | snapshots, forks and pins: what volumes share |
//! | 7 owner | [`volume`] | one attached volume |
//! | 8 store | [`admin`] | what needs no owner: volumes as the store has them |
//! | 9 daemon | [`fleet`] | the attached volumes of a daemon, and what the doors ask of them |
//! | 10 doors | [`nbd`] [`control`] | the NBD server; the control socket, and the control door over TCP |
//!
//! # A write
//! ```text
//! nbd -> volume -> log (append, one system call a batch) -> map (log overlay) -> acknowledged
//!                   | commit: one sync for all who wait
//!                   v
//!        packer: a run of the sequence -> segment -> store (in parallel; takes effect in order)
//!                   -> map pages -> checkpoint, now and then -> manifest (compare-and-swap)
//! ```
//! # A read
//! ```text
//! nbd -> volume -> map: log overlay, then map pages (memory, RocksDB, checkpoint in the store)
//!                   -> log | read cache (memory, disk) | store (one range request for neighbours)
//! ```

#![forbid(unsafe_code)]

pub mod admin;
pub mod block_device;
pub mod cache;
pub mod checkpoint;
pub mod clean;
pub mod clock;
pub mod compression;
pub mod control;
pub mod disk;
pub mod error;
pub mod fleet;
pub mod format;
pub mod index;
pub mod keys;
pub mod limits;
pub mod lineage;
pub mod log;
pub mod map;
pub mod nbd;
pub mod ownership;
pub mod seal;
pub mod segment;
pub mod service;
pub mod settings;
pub mod store;
pub mod tls;
pub mod units;
pub mod volume;
pub mod work;

//! Bytes to values and back: every format of varve, on the local disk and in the store, and nothing else. No I/O, no
//! clocks, no locks. This is the only room (with the NBD protocol's own codec) that turns integers into bytes.
//!
//! Every format carries a version and two words of feature bits: a reader refuses an object with a version or an
//! *incompatible* feature it does not know, and may ignore *compatible* ones. Every decoder takes bytes
//! that may be hostile: what a length field announces is checked against what is there before it is believed.
//! The byte tables are in `design/formats.md`.

pub mod cache;
pub mod census;
pub mod codec;
pub mod envelope;
pub mod index;
pub mod lineage;
pub mod log;
pub mod manifest;
pub mod map_object;
pub mod page;
pub mod segment;
pub mod trace;

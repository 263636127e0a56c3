//! The format room.
pub mod log;

//! The format room.
pub mod cache;
pub mod index;

//! The nbd room.

//! The ownership room.

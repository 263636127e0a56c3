//! The map room.

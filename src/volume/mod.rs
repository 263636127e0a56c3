//! The volume room.

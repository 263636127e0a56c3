//! What only a directory store has: files, locks, left-overs.

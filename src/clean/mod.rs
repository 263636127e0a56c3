//! Cleaning: what objects a volume has in the store, how much of each is in use, which are worth emptying, and which may be deleted.
//!
//! Purpose: a log-structured disk that only appends eats its bucket. This room keeps the books and decides; it is pure. The owner
//! (`volume/cleaning`) moves the data and deletes.
//!
//! Owns: the census of a volume's own objects. Objects of the volumes that it was forked from are none of its business.
//!
//! Guarantees: what [`condemn`] names is needed by nobody once a manifest says so: not by the newest map, not by recovery, and by no pin.
//! Rules and their reasons stand in `design/cleaning.md`.

mod audit;
mod census;
mod choice;
mod condemn;

pub use audit::{Audit, Look};
pub use census::{Census, Totals};
pub use choice::{Goal, choose};
pub use condemn::{Needs, condemn, condemnable_bytes, keys, note_condemned};

#[cfg(test)]
mod tests;

//! Lineage: snapshots, forks and pins. What the volumes of a family share, and how long it must stay.
//!
//! Purpose: a snapshot or a fork is a pointer to a moment of a volume; this room makes, finds, compares and lets go of them. Rules
//! and their reasons stand in `design/lineage.md`.
//!
//! Owns: the `pins` of manifests, the objects of snapshots, and the traces beside them.
//!
//! Guarantees: a snapshot exists if, and only if, the manifest of its volume pins it. What a manifest or a snapshot refers to is
//! pinned before anybody can see the reference.
//!
//! Order of effects: object, then pin, and the other way round when a snapshot goes; pin, then the fork's manifest.
//!
//! Errors and retries: changes of manifests are made by compare-and-swap and decided anew if somebody else was faster.
//!
//! After a crash in between, a snapshot's object without a pin, or a pin for a fork that does not exist, is left. Neither does
//! harm, and `check` names them.

mod current;
mod diff;
mod forks;
mod frozen;
mod history;
mod leftovers;
mod pins;
mod replay;
mod snapshots;
mod traces;
mod usage;

pub use current::current_moment;
pub use diff::{ChangedExtent, MapView, changes_within, diff};
pub use forks::{ForksToMake, create_forks, region_to_make_in};
pub use frozen::{FrozenMap, FrozenPages, OccupiedPage};
pub use history::{forget_past, moment_at, note_present, past_before, reaches_back_to};
pub use leftovers::{GRACE, Remnant, put_right, remnants};
pub use pins::{
    expired, find_snapshot, fork_of, only_if_complete, only_if_usable, pin, release_fork, roll_back, snapshots,
    summary, unpin_snapshots,
};
pub use replay::replayed_indexes;
pub use snapshots::{FoundSnapshot, delete_objects, destroy, find, forget_expired, put_object, record};
pub use traces::{put_trace, trace, trace_for};
pub use usage::{DiskUsage, UsageCounter};

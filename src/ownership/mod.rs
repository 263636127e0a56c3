//! Ownership: manifests, epochs and seals. Who may write a volume's history, decided without clocks.
//!
//! Purpose: at any time one attachment at most can add to a volume's history, and it learns of its end.
//!
//! Owns: the manifest object (changed by compare-and-swap only) and the seal objects.
//!
//! The protocol, and why it is safe, is argued in `design/ownership.md`; in short:
//! 1. [`claim`] raises the epoch in the manifest by compare-and-swap. Of two claimants one wins.
//! 2. [`discover`] walks the segments that follow the checkpoint, epoch by epoch, and puts a seal at the first free number of
//!    every epoch before its own. Segments and seals are created only if absent, so from then on the next
//!    segment of an older owner meets the seal, and it knows that it is fenced.
//! 3. Only then does the new owner accept writes.
//!
//! Errors and retries: the store's wrappers retry and settle. A lost race is `Conflict` (somebody changed the manifest: look again) or
//! `Fenced` (a newer epoch exists: stop for good).
//!
//! After a crash between any two steps: a claimed epoch without a seal before it is found and sealed by the
//! next claimant; nothing has to be undone.

mod claim;
mod discover;
mod keys;
mod manifests;
mod seals;

pub use claim::{Attachment, Permit, claim, may_claim};
pub use discover::{History, Sealing, discover, only_unused, seal_epoch};
pub use keys::{change_unlocked, encrypt_fork, load_unlocked, prepare_new, rotate, unlock, without_origins};
pub use manifests::{
    Loaded, change, change_loaded, create, ensure_here, leftovers, list, load, only_named, resolve_name, update,
};

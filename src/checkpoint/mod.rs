//! Checkpoints: the block map as of one position, in the store.
//!
//! Three levels, copy on write: the root names directories (one for each GiB of the volume), a directory names pages (one for
//! each MiB). Writing one costs what changed since the last: the changed pages, their directories, and the
//! root. Opening one costs a single request, for the root; directories and pages come on demand, neighbours together. A fork's
//! checkpoint goes on naming the objects of its origin.
//!
//! Order: pages, directories, root, all in one object unless it grows long, and in that order if there are several; a
//! checkpoint is in force only once a manifest names its root. Errors: a wrong checksum is fetched once more, then `Damaged`.
//! After a crash: objects that no manifest names, under numbers of an epoch that is over.

mod reader;
mod writer;

pub use reader::{Checkpoint, KnownDirectories, read_census};
pub use writer::{NewCheckpoint, PageSource, Position, Written, WrittenStats, write};

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

//! The block map: where the newest content of each block is. Pure: no I/O, no locks, no clocks.
//!
//! It has two layers. The **overlay** ([`LogOverlay`]) holds every block whose newest content lies in the write
//! log; it is bounded by the length of the log and rebuilt by the log's recovery scan. The **pages**
//! ([`MapPage`]) hold what segments that have taken effect say; they are kept in memory within a budget, in
//! RocksDB, and in the checkpoints of the store. A read asks the overlay first.
//!
//! Why two layers: pages then change only when a segment takes effect, in big ordered steps that are
//! simple to checkpoint and to replay, and the write path touches one in-memory tree.

mod changed;
mod overlay;
mod page;

pub use changed::{ChangedDirectory, ChangedPages};
pub use overlay::{EXTENT_BYTES, LogOverlay, LogPlace, OverlayPlace};
pub use page::{MapPage, PageExtent, PageIndex, PagePlace, SegmentPlace, join_places};

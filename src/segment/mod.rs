//! Segments: building them from a run of the sequence, and reading them back from the store.
//!
//! Owns the way between blocks and segment objects. Guarantees: what [`open_frame`] returns was verified against its
//! checksum, or its tag where it has one; a built segment's bytes never change. Knows nothing of the log it is filled from or the
//! cache its frames may go to.

mod apply;
mod builder;
mod cut;
mod reader;

pub use apply::apply_entry;
pub use builder::{BuiltSegment, SegmentBuilder, build_seal};
pub use reader::{
    FrameOpener, INDEX_SUFFIX_BYTES, fetch_each, fetch_frames, fetch_index, is_intact, lost, open_frame,
    parse_object_tail,
};

#[cfg(test)]
mod tests;

//! What takes bytes from strangers, one function each: `fn(&[u8])`, which must return whatever the bytes are. The tests here run
//! them over seeded mutations, `tests/fuzz` over what libFuzzer thinks of.

#![allow(dead_code, reason = "each fuzz target uses one of them")]

mod bucket;
mod control;
mod formats;
mod log;
#[path = "../../support/memory_device.rs"]
mod memory_device;
mod nbd;

pub use bucket::{bucket, frame_objects, objects_in};
pub use control::control_request;
pub use formats::{
    SEGMENT, SNAPSHOT, VOLUME, cache_chunk, cache_superblock, key, local_page, local_segment_index, local_state,
    manifest, map_directory, map_header, map_page, map_root, map_stored, sealed, segment, settings_file,
    snapshot_object, store_root, trace,
};
pub use log::{OneFile, log_file};
pub use nbd::{nbd_option, nbd_requests, nbd_session};

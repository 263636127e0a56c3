//! libFuzzer over the body `snapshot_object`.
#![no_main]

#[path = "../../hostile/bodies/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::snapshot_object(bytes));

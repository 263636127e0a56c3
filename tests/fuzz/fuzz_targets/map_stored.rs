//! libFuzzer over the body `map_stored`.
#![no_main]

#[path = "../../hostile/bodies/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::map_stored(bytes));

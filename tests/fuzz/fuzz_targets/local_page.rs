//! libFuzzer over the body `local_page`.
#![no_main]

#[path = "../../hostile/bodies/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::local_page(bytes));

//! libFuzzer over the body `log_file`.
#![no_main]

#[path = "../../hostile/bodies/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::log_file(bytes));

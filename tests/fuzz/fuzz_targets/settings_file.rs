//! libFuzzer over the body `settings_file`.
#![no_main]

#[path = "../../hostile/bodies/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::settings_file(bytes));

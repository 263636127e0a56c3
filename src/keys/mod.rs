//! Where the keys come from that the keys of volumes are wrapped with, and the keys that this process has opened.
//!
//! | file | what |
//! | --- | --- |
//! | `source` | key files, environment variables, passphrases, commands: read when they are needed, never kept in settings or shown |
//! | `command` | running the command of a source |
//! | `keyring` | the open keys by volume; wrapping and unwrapping |
//!
//! Errors say which source was tried and which key is wanted, by fingerprint; never a secret.

mod command;
mod keyring;
mod source;
#[cfg(test)]
mod tests;

pub use keyring::Keyring;
pub use source::{KeySource, create_key_file};

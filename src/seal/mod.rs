//! Keys of volumes, and sealing: what leaves this process for a disk or a store is unreadable without the key of its volume, and cannot be
//! changed or put elsewhere unnoticed.
//!
//! | file | what |
//! | --- | --- |
//! | `key` | the key of a volume, and the keys derived from it, each for one object |
//! | `item` | small things that are sealed alone: map pages, indexes, traces, and the keys of other volumes |
//! | `log` | records of the write log |
//! | `bundle` | the keys that open a volume, and how a manifest holds them |
//!
//! AES-256-GCM and HKDF-SHA256, both by `ring`. Why no nonce is ever used twice is argued in `design/encryption.md`: every object, item and start of
//! a write log has a key of its own, derived from random bits that stand beside it. Pure: random bits are handed in.

mod bundle;
mod item;
mod key;
mod log;

pub use bundle::{Bundle, Cipher, Encryption, KEYS_MAX, Wrapping};
pub use item::{ITEM_OVERHEAD_BYTES, ItemPlace};
pub use key::{FrameSeal, KEY_BYTES, ObjectSealer, Salt, TAG_BYTES, VolumeKey};
pub use log::LogSealer;

/// The key of volumes in tests.
#[cfg(test)]
pub(crate) fn test_key() -> Option<std::sync::Arc<VolumeKey>> {
    Some(std::sync::Arc::new(VolumeKey::new([0x5a; KEY_BYTES])))
}

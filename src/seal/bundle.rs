//! The keys that open a volume, wrapped for its manifest.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::item::ItemPlace;
use super::key::{KEY_BYTES, Salt, VolumeKey};
use crate::error::{Error, Result};
use crate::units::VolumeId;

const VERSION: u8 = 1;
const ENTRY_BYTES: usize = 8 + KEY_BYTES;
const HEADER_BYTES: usize = 11;
/// Keys of one volume: its own, and those of its origins.
pub const KEYS_MAX: usize = 4096;

/// How the data of a volume is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cipher {
    /// AES-256-GCM with keys derived by HKDF-SHA256.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

/// What the keys of a volume are wrapped with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Wrapping {
    /// A key of 256 bits that is kept elsewhere.
    Key {
        /// Its fingerprint.
        id: String,
    },
    /// A passphrase, by Argon2id.
    Passphrase {
        /// 16 random bytes in hexadecimal.
        salt: String,
        /// Memory that it takes, in KiB.
        memory_kib: u32,
        /// Passes over that.
        passes: u32,
        /// Fingerprint of the key that comes of it.
        id: String,
    },
    /// A command that wraps and unwraps.
    Command,
}

/// What a manifest says of the encryption of its volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// How data is sealed.
    pub cipher: Cipher,
    /// What opens the keys.
    pub wrapping: Wrapping,
    /// The wrapped keys, in base64; `None` once they were destroyed, and the data with them.
    pub keys: Option<String>,
}

impl Encryption {
    /// With keys that were wrapped.
    pub fn new(wrapping: Wrapping, wrapped: &[u8]) -> Self {
        Encryption { cipher: Cipher::Aes256Gcm, wrapping, keys: Some(STANDARD.encode(wrapped)) }
    }

    /// The wrapped keys.
    ///
    /// # Errors
    /// `NotFound` if they were destroyed; `Damaged`. Both name the volume.
    pub fn wrapped(&self, volume: VolumeId) -> Result<Vec<u8>> {
        let Some(keys) = &self.keys else {
            return Err(Error::not_found(format!(
                "the keys of volume {volume} were destroyed ('varve volumes destroy --shred'): what it held cannot be read any more, by anyone"
            )));
        };
        STANDARD.decode(keys).map_err(|_| damaged(volume))
    }
}

/// The keys that open a volume: its own, and those of the origins whose segments it still reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// By volume.
    pub keys: BTreeMap<VolumeId, Arc<VolumeKey>>,
}

impl Bundle {
    /// The keys of `volume` as bytes, not wrapped yet.
    pub fn encode(&self, volume: VolumeId) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEADER_BYTES + self.keys.len() * ENTRY_BYTES));
        bytes.push(VERSION);
        bytes.extend_from_slice(&volume.0.to_le_bytes());
        // Whoever adds keys bounds them.
        bytes.extend_from_slice(&(self.keys.len() as u16).to_le_bytes());
        for (volume, key) in &self.keys {
            bytes.extend_from_slice(&volume.0.to_le_bytes());
            bytes.extend_from_slice(key.bytes());
        }
        bytes
    }

    /// Reads keys that were unwrapped for `volume`.
    ///
    /// # Errors
    /// `Damaged`; `Unsupported` for those of a newer version.
    pub fn decode(volume: VolumeId, bytes: &[u8]) -> Result<Self> {
        let (&version, rest) = bytes.split_first().ok_or_else(|| damaged(volume))?;
        if version != VERSION {
            let message =
                format!("the keys of volume {volume} have version {version}: use the newer varve that wrote them");
            return Err(Error::new(crate::error::ErrorKind::Unsupported, message));
        }
        let (of, rest) = rest.split_first_chunk::<8>().ok_or_else(|| damaged(volume))?;
        if VolumeId(u64::from_le_bytes(*of)) != volume {
            return Err(Error::damaged(format!("the manifest of {volume} has the keys of another volume")));
        }
        let (count, entries) = rest.split_first_chunk::<2>().ok_or_else(|| damaged(volume))?;
        let count = usize::from(u16::from_le_bytes(*count));
        if count > KEYS_MAX || entries.len() != count * ENTRY_BYTES {
            return Err(damaged(volume));
        }
        let mut keys = BTreeMap::new();
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let (Some(id), Some(key)) = (entry.first_chunk::<8>(), entry.last_chunk::<KEY_BYTES>()) else {
                return Err(damaged(volume));
            };
            keys.insert(VolumeId(u64::from_le_bytes(*id)), Arc::new(VolumeKey::new(*key)));
        }
        Ok(Bundle { keys })
    }

    /// The keys of `volume`, wrapped with a key.
    pub fn wrap(&self, volume: VolumeId, with: &VolumeKey, salt: Salt) -> Vec<u8> {
        with.seal_item(ItemPlace::Keys(volume), salt, &self.encode(volume))
    }

    /// Unwraps the keys of `volume`; `None` if they were wrapped with another key, for another volume, or changed.
    ///
    /// # Errors
    /// As [`Bundle::decode`].
    pub fn unwrap(volume: VolumeId, with: &VolumeKey, wrapped: &[u8]) -> Result<Option<Self>> {
        let bytes = with.open_item(ItemPlace::Keys(volume), wrapped).map(Zeroizing::new);
        bytes.map(|bytes| Bundle::decode(volume, &bytes)).transpose()
    }
}

fn damaged(volume: VolumeId) -> Error {
    Error::damaged(format!("the keys in the manifest of {volume} are damaged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> Bundle {
        let key = |byte| Arc::new(VolumeKey::new([byte; KEY_BYTES]));
        Bundle { keys: BTreeMap::from([(VolumeId(1), key(1)), (VolumeId(2), key(2))]) }
    }

    #[test]
    fn keys_come_back_for_their_volume_and_with_their_key_alone() {
        let with = VolumeKey::new([9; KEY_BYTES]);
        let wrapped = bundle().wrap(VolumeId(1), &with, Salt(3));
        assert_eq!(Bundle::unwrap(VolumeId(1), &with, &wrapped).unwrap(), Some(bundle()));
        assert_eq!(Bundle::unwrap(VolumeId(2), &with, &wrapped).unwrap(), None);
        assert_eq!(Bundle::unwrap(VolumeId(1), &VolumeKey::new([8; KEY_BYTES]), &wrapped).unwrap(), None);
        assert!(!wrapped.windows(8).any(|window| window == [1; 8] || window == [2; 8]));
    }

    #[test]
    fn nonsense_is_refused() {
        let bytes = bundle().encode(VolumeId(1));
        assert!(Bundle::decode(VolumeId(2), &bytes).unwrap_err().message().contains("of another volume"));
        for end in 0..bytes.len() {
            assert!(Bundle::decode(VolumeId(1), &bytes[..end]).is_err(), "cut at {end}");
        }
        let mut newer = bytes.to_vec();
        newer[0] = 2;
        assert!(Bundle::decode(VolumeId(1), &newer).unwrap_err().message().contains("newer varve"));
        let encryption = Encryption::new(Wrapping::Command, b"wrapped");
        assert_eq!(encryption.wrapped(VolumeId(1)).unwrap(), b"wrapped");
        let shredded = Encryption { keys: None, ..encryption.clone() };
        assert!(shredded.wrapped(VolumeId(1)).unwrap_err().message().contains("destroyed"));
        assert!(Encryption { keys: Some("?".into()), ..encryption }.wrapped(VolumeId(1)).is_err());
    }
}

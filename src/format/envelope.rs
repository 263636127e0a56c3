//! The envelope of the small objects that people may want to read: JSON with a version, feature bits and a checksum.
//!
//! ```json
//! {"varve":"manifest","version":1,"incompatible_features":0,"compatible_features":0,
//!  "crc32c":"89abcdef","body":{...}}
//! ```
//! The checksum is CRC32C over the exact text of `body`, as eight hexadecimal digits. Unknown fields of a body are a
//! compatible change: an older reader ignores them, and so must not be let to rewrite the object if
//! losing them would hurt; such a change sets an incompatible feature instead.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::format::codec::check_version;
use crate::limits::JSON_OBJECT_BYTES_MAX;

/// The version of every enveloped format so far.
pub const VERSION: u16 = 1;

#[derive(Serialize)]
struct EnvelopeOut<'a> {
    varve: &'a str,
    version: u16,
    incompatible_features: u32,
    compatible_features: u32,
    crc32c: String,
    body: &'a RawValue,
}

#[derive(Deserialize)]
struct EnvelopeIn<'a> {
    varve: String,
    version: u16,
    incompatible_features: u32,
    #[serde(rename = "compatible_features")]
    _compatible_features: u32,
    crc32c: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// Puts `body` into an envelope of the given kind.
///
/// # Errors
/// `Invalid` if it is too long to be read again, or cannot be written as JSON, which only a bug can cause.
pub fn encode<T: Serialize>(kind: &str, body: &T) -> Result<Vec<u8>> {
    encode_with(kind, 0, body)
}

/// As [`encode`], for a body that only readers who know these features may read.
///
/// # Errors
/// As [`encode`].
pub fn encode_with<T: Serialize>(kind: &str, incompatible_features: u32, body: &T) -> Result<Vec<u8>> {
    let unwritable = |error: serde_json::Error| Error::invalid(format!("a {kind} cannot be written as JSON: {error}"));
    let body = serde_json::value::to_raw_value(body).map_err(unwritable)?;
    let crc32c = format!("{:08x}", crc32c::crc32c(body.get().as_bytes()));
    let envelope = EnvelopeOut {
        varve: kind,
        version: VERSION,
        incompatible_features,
        compatible_features: 0,
        crc32c,
        body: &body,
    };
    let bytes = serde_json::to_vec(&envelope).map_err(unwritable)?;
    if bytes.len() as u64 > JSON_OBJECT_BYTES_MAX {
        return Err(Error::invalid(format!("not written: {} bytes are too long for a {kind}", bytes.len())));
    }
    Ok(bytes)
}

/// Takes a body of the given kind out of its envelope; `what` names the object in messages.
///
/// # Errors
/// `Damaged` if it is not intact, `Unsupported` if it is of a newer format.
pub fn decode<T: DeserializeOwned>(kind: &str, what: &str, bytes: &[u8]) -> Result<T> {
    decode_with(kind, what, 0, bytes).map(|(body, _)| body)
}

/// As [`decode`], for a body of which features of `known` are understood, and with those that it has.
///
/// # Errors
/// As [`decode`].
pub fn decode_with<T: DeserializeOwned>(kind: &str, what: &str, known: u32, bytes: &[u8]) -> Result<(T, u32)> {
    if bytes.len() as u64 > JSON_OBJECT_BYTES_MAX {
        return Err(Error::damaged(format!("{what} is damaged: {} bytes are too long for a {kind}", bytes.len())));
    }
    let malformed =
        |error: serde_json::Error| Error::damaged(format!("{what} is damaged: not a varve {kind}: {error}"));
    let envelope: EnvelopeIn<'_> = serde_json::from_slice(bytes).map_err(malformed)?;
    if envelope.varve != kind {
        let found = envelope.varve.escape_default().to_string();
        return Err(Error::damaged(format!("{what} is damaged: it holds a {found:.40} where a {kind} belongs")));
    }
    check_version(what, envelope.version, VERSION, envelope.incompatible_features & !known)?;
    let crc32c = format!("{:08x}", crc32c::crc32c(envelope.body.get().as_bytes()));
    if envelope.crc32c != crc32c {
        return Err(Error::damaged(format!("{what} is damaged: its checksum is wrong")));
    }
    let body = serde_json::from_str(envelope.body.get());
    let body = body.map_err(|error| Error::damaged(format!("{what} has a field that makes no sense: {error}")))?;
    Ok((body, envelope.incompatible_features))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = encode("manifest", &serde_json::json!({"name": "demo", "size": 4096})).unwrap();
        let intact: serde_json::Value = decode("manifest", "m", &bytes).unwrap();
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1 << bit;
                if let Ok(value) = decode::<serde_json::Value>("manifest", "m", &flipped) {
                    assert_eq!(value, intact, "byte {position}");
                }
            }
        }
    }

    #[test]
    fn a_newer_version_is_refused_and_says_so() {
        let bytes = encode("manifest", &1).unwrap();
        let newer = String::from_utf8(bytes).unwrap().replace("\"version\":1", "\"version\":2");
        let error = decode::<u32>("manifest", "manifest of vol_x", newer.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("newer varve"));
        let featured = newer
            .replace("\"version\":2", "\"version\":1")
            .replace("\"incompatible_features\":0", "\"incompatible_features\":4");
        assert_eq!(decode::<u32>("manifest", "m", featured.as_bytes()).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

//! The key of a volume, and what is derived from it.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use ring::{digest, hkdf, hmac};
use zeroize::Zeroizing;

use crate::units::SegmentId;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of an authentication tag.
pub const TAG_BYTES: usize = 16;
/// Nonces of a segment's frames begin with this, the nonce of its index with the other.
const FRAME_NONCE: u32 = 1;
const INDEX_NONCE: u32 = 2;

/// Random bits from which, and from the key of the volume, the key of one object is derived. They stand beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt(pub u128);

/// What a frame of a segment needs to be opened, besides the key of its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSeal {
    /// That of the segment.
    pub salt: Salt,
    /// Authenticates the stored bytes and their place.
    pub tag: u128,
}

/// The key of one volume: 256 random bits. It is forgotten when nobody has it any more, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct VolumeKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey(..)")
    }
}

impl Salt {
    /// As 32 hexadecimal digits.
    pub fn digits(self) -> String {
        format!("{:032x}", self.0)
    }

    /// Of 32 hexadecimal digits.
    pub fn of_digits(digits: &str) -> Option<Self> {
        u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32).map(Salt)
    }

    /// As bytes, in the order of its digits.
    pub fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl VolumeKey {
    /// The key with these bits.
    pub fn of_words(words: [u64; 4]) -> Self {
        let mut bytes = [0; KEY_BYTES];
        for (part, word) in bytes.chunks_exact_mut(8).zip(words) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        VolumeKey::new(bytes)
    }

    /// The key of which a file holds the 64 hexadecimal digits, with white space around them or not.
    pub fn of_digits(digits: &[u8]) -> Option<Self> {
        let digits = digits.trim_ascii();
        if digits.len() != 2 * KEY_BYTES {
            return None;
        }
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
        }
        Some(VolumeKey::new(*bytes))
    }

    /// Its 64 hexadecimal digits, for a file that keeps it.
    pub fn digits(&self) -> Zeroizing<String> {
        let mut digits = Zeroizing::new(String::with_capacity(2 * KEY_BYTES + 1));
        for byte in self.0.iter() {
            digits.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(u32::from(digit), 16).unwrap_or('0')));
        }
        digits
    }

    /// The key with these bits.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        VolumeKey(Zeroizing::new(bytes))
    }

    /// Its bits, for wrapping.
    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// A short name of it that says nothing of its bits: 16 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let mut bytes = [0; 8];
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"varve fingerprint").extract(&*self.0);
        let digest = prk.expand(&[b"name"], FingerprintLength).and_then(|okm| okm.fill(&mut bytes));
        // Eight bytes are always to be had of HKDF; were they not, all keys would have the same name and fail to open all the same.
        debug_assert!(digest.is_ok());
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The key of what is named by `purpose` and `place`, with these random bits.
    pub(super) fn derive(&self, purpose: &[u8], place: &[u8], salt: &[u8; 16]) -> LessSafeKey {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&*self.0);
        let derived = prk.expand(&[b"varve 1 ", purpose, b" ", place], &AES_256_GCM).map(UnboundKey::from);
        match derived {
            Ok(key) => LessSafeKey::new(key),
            // HKDF refuses only keys that are longer than 255 digests.
            Err(_) => unreachable!("{} bytes are fewer than {}", KEY_BYTES, 255 * digest::SHA256_OUTPUT_LEN),
        }
    }

    /// A seal of bytes that are not secret: nobody without the key can make one. In base64.
    pub fn authenticate(&self, bytes: &[u8]) -> String {
        STANDARD_NO_PAD.encode(hmac::sign(&self.authenticator(), bytes))
    }

    /// True if this is the seal of these bytes.
    pub fn is_authentic(&self, bytes: &[u8], seal: &str) -> bool {
        let seal = STANDARD_NO_PAD.decode(seal);
        seal.is_ok_and(|seal| hmac::verify(&self.authenticator(), bytes, &seal).is_ok())
    }

    fn authenticator(&self) -> hmac::Key {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"varve authenticator").extract(&*self.0);
        match prk.expand(&[b"varve 1 manifest"], hmac::HMAC_SHA256).map(hmac::Key::from) {
            Ok(key) => key,
            // HKDF refuses only keys that are longer than 255 digests.
            Err(_) => unreachable!("a digest is shorter than 255 of them"),
        }
    }

    /// What seals and opens a segment.
    pub fn segment(&self, id: SegmentId, salt: Salt) -> ObjectSealer {
        ObjectSealer { key: self.derive(b"segment", &segment_place(id), &salt.0.to_le_bytes()) }
    }
}

struct FingerprintLength;

impl hkdf::KeyType for FingerprintLength {
    fn len(&self) -> usize {
        8
    }
}

fn segment_place(id: SegmentId) -> [u8; 20] {
    let mut place = [0; 20];
    place[..8].copy_from_slice(&id.volume.0.to_le_bytes());
    place[8..16].copy_from_slice(&id.number.0.to_le_bytes());
    place[16..].copy_from_slice(&id.epoch.0.to_le_bytes());
    place
}

/// Seals and opens the parts of one segment. Each part is sealed once.
pub struct ObjectSealer {
    key: LessSafeKey,
}

impl ObjectSealer {
    /// Seals a frame in place and returns its tag.
    pub fn seal_frame(&self, number: u32, bytes: &mut [u8]) -> u128 {
        seal(&self.key, nonce(FRAME_NONCE, u64::from(number)), &number.to_le_bytes(), bytes)
    }

    /// Opens a frame in place. False if it is not what was sealed as this frame.
    #[must_use]
    pub fn open_frame(&self, number: u32, tag: u128, bytes: &mut [u8]) -> bool {
        open(&self.key, nonce(FRAME_NONCE, u64::from(number)), &number.to_le_bytes(), tag, bytes)
    }

    /// Seals the index, given what the trailer says of it, and appends its tag.
    pub fn seal_index(&self, trailer: &[u8], bytes: &mut Vec<u8>) {
        let tag = seal(&self.key, nonce(INDEX_NONCE, 0), trailer, bytes);
        bytes.extend_from_slice(&tag.to_le_bytes());
    }

    /// Opens an index with its tag; `None` if it is not what was sealed.
    pub fn open_index(&self, trailer: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (bytes, tag) = split_tag(sealed)?;
        let mut bytes = bytes.to_vec();
        open(&self.key, nonce(INDEX_NONCE, 0), trailer, tag, &mut bytes).then_some(bytes)
    }
}

/// The bytes before a tag, and the tag.
pub(super) fn split_tag(sealed: &[u8]) -> Option<(&[u8], u128)> {
    let (bytes, tag) = sealed.split_last_chunk::<TAG_BYTES>()?;
    Some((bytes, u128::from_le_bytes(*tag)))
}

pub(super) fn nonce(first: u32, rest: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[..4].copy_from_slice(&first.to_le_bytes());
    nonce[4..].copy_from_slice(&rest.to_le_bytes());
    nonce
}

pub(super) fn seal(key: &LessSafeKey, nonce: [u8; NONCE_LEN], place: &[u8], bytes: &mut [u8]) -> u128 {
    let nonce = Nonce::assume_unique_for_key(nonce);
    match key.seal_in_place_separate_tag(nonce, Aad::from(place), bytes) {
        Ok(tag) => tag_of(&tag),
        // GCM refuses only what is longer than 64 GiB.
        Err(_) => unreachable!("nothing of {} bytes is sealed in one piece", bytes.len()),
    }
}

#[must_use]
pub(super) fn open(key: &LessSafeKey, nonce: [u8; NONCE_LEN], place: &[u8], tag: u128, bytes: &mut [u8]) -> bool {
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = Tag::from(tag.to_le_bytes());
    key.open_in_place_separate_tag(nonce, Aad::from(place), tag, bytes, 0..).is_ok()
}

fn tag_of(tag: &Tag) -> u128 {
    tag.as_ref().first_chunk().map_or(0, |tag| u128::from_le_bytes(*tag))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, SegmentNumber, VolumeId};

    fn id(number: u64) -> SegmentId {
        SegmentId { volume: VolumeId(1), epoch: Epoch(2), number: SegmentNumber(number) }
    }

    #[test]
    fn a_frame_opens_only_as_what_it_was_sealed_as() {
        let key = VolumeKey::new([7; KEY_BYTES]);
        let mut bytes = vec![5; 1000];
        let tag = key.segment(id(3), Salt(9)).seal_frame(4, &mut bytes);
        assert!(!bytes.contains(&5) || bytes != vec![5; 1000]);
        let opens = |key: &VolumeKey, id, salt, number, tag| {
            let mut copy = bytes.clone();
            key.segment(id, salt).open_frame(number, tag, &mut copy) && copy == vec![5; 1000]
        };
        assert!(opens(&key, id(3), Salt(9), 4, tag));
        assert!(!opens(&key, id(2), Salt(9), 4, tag), "another segment");
        assert!(!opens(&key, id(3), Salt(8), 4, tag), "another salt");
        assert!(!opens(&key, id(3), Salt(9), 5, tag), "another frame");
        assert!(!opens(&key, id(3), Salt(9), 4, tag ^ 1), "another tag");
        assert!(!opens(&VolumeKey::new([8; KEY_BYTES]), id(3), Salt(9), 4, tag), "another key");
        for at in [0, 500, 999] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(!key.segment(id(3), Salt(9)).open_frame(4, tag, &mut flipped), "byte {at}");
        }
    }

    #[test]
    fn a_seal_is_of_its_bytes_and_key() {
        let key = VolumeKey::new([7; KEY_BYTES]);
        let seal = key.authenticate(b"a manifest");
        assert!(key.is_authentic(b"a manifest", &seal));
        assert!(!key.is_authentic(b"a Manifest", &seal) && !key.is_authentic(b"a manifest", "?"));
        assert!(!VolumeKey::new([8; KEY_BYTES]).is_authentic(b"a manifest", &seal));
    }

    #[test]
    fn an_index_is_bound_to_its_trailer() {
        let sealer = VolumeKey::new([7; KEY_BYTES]).segment(id(3), Salt(9));
        let mut bytes = vec![1, 2, 3];
        sealer.seal_index(b"trailer", &mut bytes);
        assert_eq!(bytes.len(), 3 + TAG_BYTES);
        assert_eq!(sealer.open_index(b"trailer", &bytes).as_deref(), Some(&[1, 2, 3][..]));
        assert_eq!(sealer.open_index(b"Trailer", &bytes), None);
        assert_eq!(sealer.open_index(b"trailer", &bytes[1..]), None);
        assert_eq!(sealer.open_index(b"trailer", &[]), None);
    }

    #[test]
    fn a_fingerprint_names_a_key_and_nothing_shows_its_bits() {
        let key = VolumeKey::new([0xab; KEY_BYTES]);
        assert_eq!(key.fingerprint().len(), 16);
        assert_ne!(key.fingerprint(), VolumeKey::new([0xac; KEY_BYTES]).fingerprint());
        assert!(!format!("{key:?}").contains("ab") && !key.fingerprint().contains("abababab"));
    }
}

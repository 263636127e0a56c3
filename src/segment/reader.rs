//! Reading segments: their indexes (one request for the last bytes of the object) and frames (one range request
//! for neighbours). Damaged bytes are fetched once more before they are believed to be damaged in the store.

use std::sync::OnceLock;

use bytes::Bytes;

use crate::compression;
use crate::error::{Error, ErrorKind, Result};
use crate::format::segment::{Codec, FrameEntry, IndexSeal, SegmentIndex, decode_index, decode_trailer};
use crate::seal::{ObjectSealer, Salt, VolumeKey};
use crate::segment::cut::Cutter;
use crate::store::{ByteRange, ObjectKey, Store};
use crate::units::{BLOCK_SIZE, SegmentId};

/// How many of a segment's last bytes are asked for at first: enough for the index of almost any.
pub const INDEX_SUFFIX_BYTES: u64 = 128 << 10;

/// Fetches the index of a segment (or a seal).
///
/// # Errors
/// `NotFound`, `Damaged`, `Unsupported`, and what the store says.
pub async fn fetch_index(store: &dyn Store, id: SegmentId) -> Result<SegmentIndex> {
    if id.is_lost() {
        return Err(lost());
    }
    match fetch_index_once(store, id).await {
        Err(error) if error.kind() == ErrorKind::Damaged => {
            tracing::warn!(segment = %id, %error, "fetching a damaged index again");
            fetch_index_once(store, id).await
        }
        other => other,
    }
}

/// What is said of blocks whose place is lost.
pub fn lost() -> Error {
    Error::damaged(
        "the page of the block map that leads there is damaged, or was for good: write these blocks anew, or bring them back from a snapshot",
    )
}

async fn fetch_index_once(store: &dyn Store, id: SegmentId) -> Result<SegmentIndex> {
    let volume_key = store.key_of(id.volume)?;
    let key = ObjectKey::segment(id);
    let tail = store.get(&key, ByteRange::Suffix(INDEX_SUFFIX_BYTES)).await?;
    let length = tail.object_length;
    let trailer = decode_trailer(id, &tail.bytes, length)?;
    let mut bytes = tail.bytes;
    if trailer.tail_length() > bytes.len() as u64 {
        bytes = store.get(&key, ByteRange::Suffix(trailer.tail_length())).await?.bytes;
    }
    decode_index(id, &trailer, &bytes, IndexSeal::of(volume_key.as_deref()))
}

/// Reads the index from the last bytes of an object, kept locally, for instance.
///
/// # Errors
/// `Damaged` or `Unsupported`.
pub fn parse_object_tail(id: SegmentId, tail: &[u8], object_length: u64, seal: IndexSeal<'_>) -> Result<SegmentIndex> {
    decode_index(id, &decode_trailer(id, tail, object_length)?, tail, seal)
}

/// Fetches the stored bytes of frames, which are in order, with one request: what lies between them comes with it.
///
/// # Errors
/// `NotFound` and what the store says; the bytes are not verified yet.
pub async fn fetch_frames(store: &dyn Store, id: SegmentId, frames: &[FrameEntry]) -> Result<Vec<Bytes>> {
    let mut fetched = Vec::with_capacity(frames.len());
    fetch_each(store, id, frames, |_, stored| fetched.push(stored)).await?;
    Ok(fetched)
}

/// As [`fetch_frames`], giving each to `each` as soon as all of it has arrived, with its position among `frames`. After an error, those
/// before it were given.
///
/// # Errors
/// As [`fetch_frames`].
pub async fn fetch_each(
    store: &dyn Store,
    id: SegmentId,
    frames: &[FrameEntry],
    each: impl FnMut(usize, Bytes) + Send,
) -> Result<()> {
    let (Some(first), Some(last)) = (frames.first(), frames.last()) else {
        return Ok(());
    };
    let length = u64::from(last.offset) + u64::from(last.stored_length) - u64::from(first.offset);
    let cutter = Cutter::new(frames, first.offset, each);
    store.get_in_pieces(&ObjectKey::segment(id), u64::from(first.offset), length, &cutter).await?;
    match cutter.given() {
        given if given == frames.len() => Ok(()),
        given => Err(Error::damaged(format!("segment {id}: the store returned {given} frames of {}", frames.len()))),
    }
}

/// True if the stored bytes of a frame are those that were written.
pub fn is_intact(frame: &FrameEntry, stored: &Bytes) -> bool {
    stored.len() == frame.stored_length as usize && crc32c::crc32c(stored) == frame.crc
}

/// Verifies the stored bytes of a frame and returns its blocks. `key` is that of its volume, if it has one.
///
/// # Errors
/// `Damaged` if they are not what was written, or sealed otherwise than with this key.
pub fn open_frame(
    id: SegmentId,
    number: u32,
    frame: &FrameEntry,
    stored: &Bytes,
    key: Option<&VolumeKey>,
) -> Result<Bytes> {
    FrameOpener::new(id, key).open(number, frame, stored)
}

/// Opens frames of one segment. What is derived from its salt is derived once.
pub struct FrameOpener<'a> {
    id: SegmentId,
    key: Option<&'a VolumeKey>,
    sealer: OnceLock<(Salt, ObjectSealer)>,
}

impl<'a> FrameOpener<'a> {
    /// `key` is that of the segment's volume, if it has one.
    pub fn new(id: SegmentId, key: Option<&'a VolumeKey>) -> Self {
        FrameOpener { id, key, sealer: OnceLock::new() }
    }

    /// As [`open_frame`].
    ///
    /// # Errors
    /// As [`open_frame`].
    pub fn open(&self, number: u32, frame: &FrameEntry, stored: &Bytes) -> Result<Bytes> {
        let damaged = |why: &str| Error::damaged(format!("frame {number} of segment {} is damaged: {why}", self.id));
        let length = usize::from(frame.blocks) * BLOCK_SIZE as usize;
        let opened = self.unseal(number, frame, stored).map_err(damaged)?;
        let plain = match (frame.codec, opened) {
            (Codec::Raw, Some(opened)) => Bytes::from(opened),
            // A copy of its own: a slice would keep the whole fetched range alive in the cache.
            (Codec::Raw, None) => Bytes::copy_from_slice(stored),
            (Codec::Zstd, opened) => {
                let packed = opened.as_deref().unwrap_or(stored);
                let plain = compression::decompress(packed, length).map_err(|error| damaged(&error.to_string()))?;
                Bytes::from(plain)
            }
        };
        if plain.len() != length {
            return Err(damaged("it holds fewer blocks than its index says"));
        }
        Ok(plain)
    }

    /// The bytes of a frame without their seal; `None` if they have none, as in a volume without a key. A seal says all that the checksum
    /// says, so that one is looked at only where there is no seal, or to tell rot from forgery.
    fn unseal(
        &self,
        number: u32,
        frame: &FrameEntry,
        stored: &Bytes,
    ) -> std::result::Result<Option<Vec<u8>>, &'static str> {
        let checked = || if is_intact(frame, stored) { Ok(()) } else { Err("its checksum is wrong") };
        match (frame.seal, self.key) {
            (None, None) => checked().map(|()| None),
            (Some(seal), Some(key)) => {
                let mut bytes = stored.to_vec();
                let derive = || key.segment(self.id, seal.salt);
                let known = self.sealer.get_or_init(|| (seal.salt, derive()));
                let is_open = match known {
                    (salt, sealer) if *salt == seal.salt => sealer.open_frame(number, seal.tag, &mut bytes),
                    _ => derive().open_frame(number, seal.tag, &mut bytes),
                };
                if is_open {
                    return Ok(Some(bytes));
                }
                checked()?;
                Err("it was changed, or sealed with another key or for another place")
            }
            (None, Some(_)) => checked().and(Err("it is not encrypted, though its volume is")),
            (Some(_), None) => checked().and(Err("it is encrypted, though its volume is not")),
        }
    }
}

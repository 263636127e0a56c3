//! Reading segments: their indexes (one request for the last bytes of the object) and frames (one range request
//! for neighbours). Damaged bytes are fetched once more before they are believed to be damaged in the store.

use bytes::Bytes;

use crate::compression;
use crate::error::{Error, ErrorKind, Result};
use crate::format::segment::{Codec, FrameEntry, IndexSeal, SegmentIndex, decode_index, decode_trailer};
use crate::seal::VolumeKey;
use crate::store::{ByteRange, Fetched, ObjectKey, Store};
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
    let (Some(first), Some(last)) = (frames.first(), frames.last()) else {
        return Ok(Vec::new());
    };
    let length = u64::from(last.offset) + u64::from(last.stored_length) - u64::from(first.offset);
    let range = ByteRange::Part { offset: u64::from(first.offset), length };
    let Fetched { bytes, .. } = store.get(&ObjectKey::segment(id), range).await?;
    let cut = |frame: &FrameEntry| {
        let start = (frame.offset - first.offset) as usize;
        bytes.slice(start..start + frame.stored_length as usize)
    };
    if bytes.len() as u64 != length {
        return Err(Error::damaged(format!("segment {id}: the store returned {} bytes for {length}", bytes.len())));
    }
    Ok(frames.iter().map(cut).collect())
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
    let damaged = |why: &str| Error::damaged(format!("frame {number} of segment {id} is damaged: {why}"));
    if !is_intact(frame, stored) {
        return Err(damaged("its checksum is wrong"));
    }
    let length = usize::from(frame.blocks) * BLOCK_SIZE as usize;
    let opened = unseal(id, number, frame, stored, key).map_err(damaged)?;
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

/// The bytes of a frame without their seal; `None` if they have none, as in a volume without a key.
fn unseal(
    id: SegmentId,
    number: u32,
    frame: &FrameEntry,
    stored: &Bytes,
    key: Option<&VolumeKey>,
) -> std::result::Result<Option<Vec<u8>>, &'static str> {
    match (frame.seal, key) {
        (None, None) => Ok(None),
        (Some(seal), Some(key)) => {
            let mut bytes = stored.to_vec();
            let is_open = key.segment(id, seal.salt).open_frame(number, seal.tag, &mut bytes);
            if is_open {
                Ok(Some(bytes))
            } else {
                Err("it was changed, or sealed with another key or for another place")
            }
        }
        (None, Some(_)) => Err("it is not encrypted, though its volume is"),
        (Some(_), None) => Err("it is encrypted, though its volume is not"),
    }
}

//! Makes the checksums of a mutated input right again, so that the mutation gets past them.

fn put(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}

fn field(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |field| u32::from_le_bytes([field[0], field[1], field[2], field[3]]))
}

/// For formats without a checksum of their own.
pub fn nothing(_: &mut [u8]) {}

/// A checksum at `at` over all before it.
fn covered_by(bytes: &mut [u8], at: usize) {
    if bytes.len() >= at + 4 {
        let crc = crc32c::crc32c(&bytes[..at]);
        put(bytes, at, crc);
    }
}

/// Header, index (with its own header, if it is not compressed) and trailer of a segment, and the lengths that say where they are.
pub fn segment(bytes: &mut [u8]) {
    covered_by(bytes, 92);
    tail(bytes, true);
}

/// The same for the copy of the tail in the local index.
pub fn segment_tail(bytes: &mut [u8]) {
    tail(bytes, false);
}

fn tail(bytes: &mut [u8], is_whole: bool) {
    let length = bytes.len();
    let Some(trailer) = length.checked_sub(64) else { return };
    let stored = field(bytes, trailer + 24) as usize;
    if let Some(index) = trailer.checked_sub(stored) {
        if bytes[trailer + 6] == 0 {
            covered_by(&mut bytes[index..trailer], 92);
            put(bytes, trailer + 28, stored as u32);
        }
        let crc = crc32c::crc32c(&bytes[index..trailer]);
        put(bytes, trailer + 32, crc);
        if is_whole {
            bytes[trailer + 16..trailer + 24].copy_from_slice(&(index as u64).to_le_bytes());
            bytes[trailer + 36..trailer + 44].copy_from_slice(&(length as u64).to_le_bytes());
        }
    }
    covered_by(&mut bytes[trailer..], 60);
}

/// Both superblocks of a write log, and all records that are recognised.
pub fn log(bytes: &mut [u8]) {
    for copy in [0, 4096] {
        if let Some(superblock) = bytes.get_mut(copy..copy + 4096) {
            let crc = crc32c::crc32c(&superblock[12..]);
            put(superblock, 8, crc);
        }
    }
    let mut at = 8192;
    while at + 64 <= bytes.len() {
        if &bytes[at..at + 4] == b"vrec" {
            let blocks = u64::from(field(bytes, at + 40)).min(64);
            let extension = match bytes[at + 8] {
                1 => (blocks.saturating_sub(1) * 4).next_multiple_of(64) as usize,
                3 => 64,
                _ => 0,
            };
            if let Some(covered) = bytes.get(at + 8..at + 64 + extension) {
                let crc = crc32c::crc32c(covered);
                put(bytes, at + 4, crc);
            }
        }
        at += 64;
    }
}

/// The entries of a chunk of the read cache.
pub fn cache_chunk(bytes: &mut [u8]) {
    for at in (0..bytes.len().saturating_sub(64)).step_by(64) {
        let length = field(bytes, at + 48) as usize;
        if &bytes[at..at + 4] == b"vslt"
            && let Some(payload) = bytes.get(at + 64..(at + 64).saturating_add(length))
        {
            let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[at..at + 60]), payload);
            put(bytes, at + 60, crc);
        }
    }
}

/// A superblock of the read cache.
pub fn cache_superblock(bytes: &mut [u8]) {
    covered_by(bytes, 60);
}

/// The header of an object with pages.
pub fn map_header(bytes: &mut [u8]) {
    covered_by(bytes, 36);
}

/// A checksum in front of all the rest.
pub fn in_front(bytes: &mut [u8]) {
    if let Some(rest) = bytes.get(4..) {
        let crc = crc32c::crc32c(rest);
        put(bytes, 0, crc);
    }
}

/// A checksum behind all the rest.
pub fn behind(bytes: &mut [u8]) {
    if let Some(at) = bytes.len().checked_sub(4) {
        covered_by(bytes, at);
    }
}

/// What a reference names: its length and checksum.
pub fn map_stored(bytes: &mut [u8]) {
    if let Some(stored) = bytes.get(20..) {
        let (length, crc) = (stored.len() as u32, crc32c::crc32c(stored));
        put(bytes, 8, length);
        put(bytes, 16, crc);
    }
}

/// The checksum of a JSON object's body.
pub fn envelope(bytes: &mut [u8]) {
    let find = |what: &[u8]| bytes.windows(what.len()).position(|window| window == what).map(|at| at + what.len());
    let (Some(crc_at), Some(body)) = (find(b"\"crc32c\":\""), find(b"\"body\":")) else { return };
    let Some(end) = bytes.iter().rposition(|&byte| byte == b'}').filter(|&end| end > body) else { return };
    let crc = format!("{:08x}", crc32c::crc32c(&bytes[body..end]));
    if let Some(place) = bytes.get_mut(crc_at..crc_at + 8) {
        place.copy_from_slice(crc.as_bytes());
    }
}

pub fn object_named(name: &str, object: &mut [u8]) {
    if name.contains("/segments/") {
        segment(object);
    } else if name.contains("/map/") {
        map_header(object);
    } else {
        envelope(object);
    }
}

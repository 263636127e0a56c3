//! zstd, as varve uses it everywhere: at its fastest ordinary level, since whoever packs shares a few cores with whoever waits.
//!
//! To make what zstd needs costs more than to compress a page or to open a frame with it. So a few contexts are kept, and whoever needs one
//! borrows it; more than [`KEPT`] are made if as many work at once, and dropped afterwards. What comes out does not depend on which it was.

use std::io;

use parking_lot::Mutex;
use zstd::bulk::{Compressor, Decompressor};

/// zstd's fastest ordinary level.
const LEVEL: i32 = 1;
/// So many contexts of each kind stay: of about 1 MiB to compress with, and 100 KiB to decompress with.
const KEPT: usize = 4;

static COMPRESSORS: Mutex<Vec<Compressor<'static>>> = Mutex::new(Vec::new());
static DECOMPRESSORS: Mutex<Vec<Decompressor<'static>>> = Mutex::new(Vec::new());

/// The most that [`compress_to`] can need for so many bytes.
pub fn bound(length: usize) -> usize {
    zstd::zstd_safe::compress_bound(length)
}

/// Compresses.
///
/// # Errors
/// What zstd says: there was no memory.
pub fn compress(raw: &[u8]) -> io::Result<Vec<u8>> {
    with(&COMPRESSORS, || Compressor::new(LEVEL), |compressor| compressor.compress(raw))
}

/// Compresses into a buffer, and says how many bytes of it were taken.
///
/// # Errors
/// What zstd says: the buffer is shorter than [`bound`] and it does not fit, or there was no memory.
pub fn compress_to(raw: &[u8], packed: &mut [u8]) -> io::Result<usize> {
    with(&COMPRESSORS, || Compressor::new(LEVEL), |compressor| compressor.compress_to_buffer(raw, packed))
}

/// Decompresses what comes to `length_max` bytes or fewer. No more than that is allocated, whatever `packed` says.
///
/// # Errors
/// What zstd says: it is not what a compressor wrote, or comes to more.
pub fn decompress(packed: &[u8], length_max: usize) -> io::Result<Vec<u8>> {
    with(&DECOMPRESSORS, Decompressor::new, |decompressor| decompressor.decompress(packed, length_max))
}

/// Works with a context from the shelf, or with a new one, and puts it (back) there.
fn with<C, T>(
    shelf: &Mutex<Vec<C>>,
    make: impl FnOnce() -> io::Result<C>,
    work: impl FnOnce(&mut C) -> io::Result<T>,
) -> io::Result<T> {
    let kept = shelf.lock().pop();
    let mut context = kept.map_or_else(make, Ok)?;
    // zstd begins anew with each call, also after one that failed.
    let done = work(&mut context);
    let mut shelf = shelf.lock();
    if shelf.len() < KEPT {
        shelf.push(context);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_compressed_comes_back_from_any_context() {
        let threads: Vec<_> = (0..3 * KEPT as u32)
            .map(|seed| {
                std::thread::spawn(move || {
                    for length in [0, 1, 4096, 65_536, 300_000] {
                        let raw: Vec<u8> = (0..length).map(|at: u32| (at.wrapping_mul(seed) >> 5) as u8).collect();
                        let packed = compress(&raw).unwrap();
                        let mut buffer = vec![0; bound(raw.len())];
                        let taken = compress_to(&raw, &mut buffer).unwrap();
                        assert_eq!(buffer[..taken], packed[..]);
                        assert_eq!(decompress(&packed, raw.len()).unwrap(), raw);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(COMPRESSORS.lock().len() <= KEPT && DECOMPRESSORS.lock().len() <= KEPT);
    }

    #[test]
    fn a_context_that_met_garbage_is_as_good_as_before() {
        let packed = compress(&[7; 9000]).unwrap();
        for _ in 0..2 * KEPT {
            assert!(decompress(b"no zstd", 100).is_err());
            assert!(decompress(&packed, 8999).is_err());
            assert!(decompress(&packed[..packed.len() - 1], 9000).is_err());
            assert_eq!(decompress(&packed, 9000).unwrap(), [7; 9000]);
        }
    }
}

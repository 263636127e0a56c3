//! Cuts what arrives of a segment into its frames.

use bytes::{Buf, Bytes};
use parking_lot::Mutex;

use crate::format::segment::FrameEntry;
use crate::store::Arrivals;

/// Gives frames, which are in order, to `each` as soon as all of one has arrived. A frame that came in one piece is a part of that piece, and keeps
/// all of it in memory.
pub(super) struct Cutter<'a, F> {
    frames: &'a [FrameEntry],
    cutting: Mutex<Cutting<F>>,
}

struct Cutting<F> {
    /// Where in the object the next byte lies.
    at: u32,
    /// The frame that is next.
    next: usize,
    /// What has arrived of it.
    begun: Vec<u8>,
    each: F,
}

impl<'a, F: FnMut(usize, Bytes) + Send> Cutter<'a, F> {
    /// What arrives begins at `at` in the object.
    pub fn new(frames: &'a [FrameEntry], at: u32, each: F) -> Self {
        Cutter { frames, cutting: Mutex::new(Cutting { at, next: 0, begun: Vec::new(), each }) }
    }

    /// How many frames have arrived.
    pub fn given(&self) -> usize {
        self.cutting.lock().next
    }
}

impl<F: FnMut(usize, Bytes) + Send> Arrivals for Cutter<'_, F> {
    fn take(&self, mut bytes: Bytes) {
        let mut cutting = self.cutting.lock();
        while let Some(frame) = self.frames.get(cutting.next) {
            // What lies between frames is of no interest.
            let gap = (frame.offset.saturating_sub(cutting.at) as usize).min(bytes.len());
            cutting.advance(&mut bytes, gap);
            let length = frame.stored_length as usize;
            let missing = length - cutting.begun.len();
            if bytes.len() < missing {
                let left = bytes.len();
                if left > 0 {
                    cutting.begun.reserve_exact(missing);
                    cutting.begun.extend_from_slice(&bytes);
                    cutting.advance(&mut bytes, left);
                }
                return;
            }
            let stored = if cutting.begun.is_empty() {
                bytes.slice(..length)
            } else {
                let mut begun = std::mem::take(&mut cutting.begun);
                begun.extend_from_slice(&bytes[..missing]);
                begun.into()
            };
            cutting.advance(&mut bytes, missing);
            let position = cutting.next;
            cutting.next += 1;
            (cutting.each)(position, stored);
        }
    }
}

impl<F> Cutting<F> {
    /// Steps over bytes that have arrived.
    fn advance(&mut self, bytes: &mut Bytes, count: usize) {
        bytes.advance(count);
        // An object's length has 32 bits.
        self.at = self.at.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::segment::Codec;

    fn frame(offset: u32, stored_length: u32) -> FrameEntry {
        FrameEntry { offset, stored_length, blocks: 8, codec: Codec::Zstd, crc: 0, seal: None }
    }

    #[test]
    fn frames_are_cut_from_pieces_of_any_length() {
        let object: Vec<u8> = (0..200u8).collect();
        // Neighbours, a gap, and one of a single byte at the end.
        let frames = [frame(10, 30), frame(40, 5), frame(60, 100), frame(160, 1)];
        for piece in 1..=151 {
            let mut given = Vec::new();
            let cutter = Cutter::new(&frames, 10, |position, stored: Bytes| given.push((position, stored)));
            for piece in object[10..161].chunks(piece) {
                cutter.take(Bytes::copy_from_slice(piece));
            }
            assert_eq!(cutter.given(), frames.len());
            drop(cutter);
            for (number, (frame, (position, stored))) in frames.iter().zip(&given).enumerate() {
                let place = frame.offset as usize..(frame.offset + frame.stored_length) as usize;
                assert_eq!((*position, &stored[..]), (number, &object[place]), "pieces of {piece}");
            }
        }
    }

    #[test]
    fn what_has_not_arrived_is_not_given() {
        let frames = [frame(10, 30), frame(40, 5)];
        let mut given = 0;
        let cutter = Cutter::new(&frames, 10, |_, _| given += 1);
        cutter.take(Bytes::from(vec![0; 34]));
        assert_eq!(cutter.given(), 1);
        cutter.take(Bytes::new());
        assert_eq!(cutter.given(), 1);
        cutter.take(Bytes::from(vec![0; 10]));
        assert_eq!(cutter.given(), 2, "and what comes behind the last is left alone");
        drop(cutter);
        assert_eq!(given, 2);
    }
}

//! Sealing records of the write log: the blocks, each alone so that each can be read alone, and where they belong.

use ring::aead::LessSafeKey;

use super::key::{VolumeKey, nonce, open, seal};
use crate::units::{Epoch, Lba, LogOffset};

/// In the place of a block's number: the record's header.
const HEADER_NONCE: u32 = u32::MAX;

/// Seals and opens the records that one start of a write log wrote. No two of them have the same offset: it only grows.
pub struct LogSealer {
    key: LessSafeKey,
}

impl VolumeKey {
    /// For the start of a log in this epoch that these 64 random bits name.
    pub fn log(&self, epoch: Epoch, incarnation: u64) -> LogSealer {
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&incarnation.to_le_bytes());
        salt[8..12].copy_from_slice(&epoch.0.to_le_bytes());
        LogSealer { key: self.derive(b"log", b"", &salt) }
    }
}

impl LogSealer {
    /// Seals the blocks of the record at `offset` in place, each of `block_bytes`, and calls `tag` with that of each.
    pub fn seal_blocks(&self, offset: LogOffset, blocks: &mut [u8], block_bytes: usize, mut tag: impl FnMut(u128)) {
        for (number, block) in (0..).zip(blocks.chunks_exact_mut(block_bytes)) {
            tag(seal(&self.key, nonce(number, offset.0), b"block", block));
        }
    }

    /// Opens a block of the record at `offset` in place. False if it is not what was sealed there.
    #[must_use]
    pub fn open_block(&self, offset: LogOffset, number: u32, tag: u128, block: &mut [u8]) -> bool {
        open(&self.key, nonce(number, offset.0), b"block", tag, block)
    }

    /// Seals where the blocks of the record at `offset` belong, together with the rest of its header; returns what stands in its place, and the
    /// tag.
    pub fn seal_start(&self, offset: LogOffset, header: &[u8], start: Lba) -> (u64, u128) {
        let mut bytes = start.0.to_le_bytes();
        let tag = seal(&self.key, nonce(HEADER_NONCE, offset.0), header, &mut bytes);
        (u64::from_le_bytes(bytes), tag)
    }

    /// Where the blocks of the record at `offset` belong; `None` if its header is not what was sealed.
    pub fn open_start(&self, offset: LogOffset, header: &[u8], sealed: u64, tag: u128) -> Option<Lba> {
        let mut bytes = sealed.to_le_bytes();
        let is_open = open(&self.key, nonce(HEADER_NONCE, offset.0), header, tag, &mut bytes);
        is_open.then(|| Lba(u64::from_le_bytes(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::KEY_BYTES;
    use super::*;

    #[test]
    fn a_record_opens_at_its_place_alone() {
        let key = VolumeKey::new([3; KEY_BYTES]);
        let (sealer, offset) = (key.log(Epoch(1), 2), LogOffset(64));
        let (mut blocks, mut tags) = (vec![7; 300], Vec::new());
        sealer.seal_blocks(offset, &mut blocks, 100, |tag| tags.push(tag));
        assert_eq!(tags.len(), 3);
        assert_ne!(blocks[..100], blocks[100..200], "equal blocks look different");
        let (sealed, tag) = sealer.seal_start(offset, b"header", Lba(5));
        assert_eq!(sealer.open_start(offset, b"header", sealed, tag), Some(Lba(5)));
        assert_eq!(sealer.open_start(offset, b"Header", sealed, tag), None);
        let others = [(Epoch(2), 2, offset), (Epoch(1), 3, offset), (Epoch(1), 2, LogOffset(128))];
        for number in 0..3 {
            let at = 100 * number as usize;
            let opens = |sealer: &LogSealer, offset, as_number, tag| {
                let mut block = blocks[at..at + 100].to_vec();
                sealer.open_block(offset, as_number, tag, &mut block) && block == [7; 100]
            };
            let tag = tags[number as usize];
            assert!(opens(&sealer, offset, number, tag));
            assert!(!opens(&sealer, offset, number ^ 1, tag) && !opens(&sealer, offset, number, tag ^ 1));
            assert!(others.iter().all(|(epoch, start, at)| !opens(&key.log(*epoch, *start), *at, number, tag)));
        }
        let opens = |(epoch, start, at)| key.log(epoch, start).open_start(at, b"header", sealed, tag).is_some();
        assert!(!others.into_iter().any(opens));
    }
}

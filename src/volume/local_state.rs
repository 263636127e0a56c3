//! What the local index remembers of a volume: up to which position its pages are complete.

use crate::error::Result;
use crate::format::codec::{Reader, Writer};
use crate::format::manifest::Position;
use crate::units::{Epoch, SegmentNumber, Sequence};

const VERSION: u8 = 1;

/// The position up to which RocksDB holds every page that differs from the checkpoint before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalState {
    /// The first segment that the pages do not include.
    pub position: Position,
    /// The same as a place in the sequence.
    pub sequence: Sequence,
}

impl LocalState {
    /// As bytes: version, epoch, number, sequence, CRC32C.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(25);
        out.u8(VERSION).u32(self.position.epoch.0).u64(self.position.number.0).u64(self.sequence.0).crc();
        out.bytes
    }

    /// From bytes; `None` if they are not intact, which only costs time.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let parse = || -> Result<Option<Self>> {
            let mut input = Reader::new("the local state", bytes);
            let version = input.u8()?;
            let position = Position { epoch: Epoch(input.u32()?), number: SegmentNumber(input.u64()?) };
            let sequence = Sequence(input.u64()?);
            let intact = crc32c::crc32c(&bytes[..bytes.len() - input.remaining()]) == input.u32()?;
            Ok((version == VERSION && intact).then_some(LocalState { position, sequence }))
        };
        parse().ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_way_through_bytes_and_notices_damage() {
        let position = Position { epoch: Epoch(3), number: SegmentNumber(9) };
        let state = LocalState { position, sequence: Sequence(77) };
        let bytes = state.encode();
        assert_eq!(LocalState::decode(&bytes), Some(state));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(LocalState::decode(&damaged), None);
        }
        assert_eq!(LocalState::decode(&[]), None);
    }
}

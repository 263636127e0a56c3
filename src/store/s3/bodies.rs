//! Memory for the bodies of answers, used again and again: memory fresh from the system costs more than what is copied into it.
//!
//! Guarantees: no more than a few buffers rest here, and none of more than a few MiB.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Buffers that rest, at most.
const RESTING_MAX: usize = 4;
/// Longest buffer that rests, in bytes: what a read of neighbouring frames fetches at once.
const RESTING_BYTES_MAX: usize = (4 << 20) + (64 << 10);
/// Shorter bodies are not worth it, in bytes.
const POOLED_BYTES_MIN: usize = 256 << 10;

/// The buffers that rest. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Bodies(Arc<Mutex<Vec<Vec<u8>>>>);

impl Bodies {
    /// An empty buffer for a body of `length` bytes.
    pub fn buffer(&self, length: usize) -> Body {
        let rests = (POOLED_BYTES_MIN..=RESTING_BYTES_MAX).contains(&length);
        let rested = if rests { self.0.lock().pop() } else { None };
        let mut bytes = rested.unwrap_or_default();
        // All that rest have room for any of their kind, so that none of them grows.
        bytes.reserve_exact(if rests { RESTING_BYTES_MAX } else { length });
        Body { bytes, home: rests.then(|| self.clone()) }
    }
}

/// A body that comes in; its memory goes back to rest when the last reader has gone.
pub(super) struct Body {
    bytes: Vec<u8>,
    home: Option<Bodies>,
}

impl Body {
    pub fn extend(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let mut resting = home.0.lock();
        if resting.len() < RESTING_MAX {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            resting.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_once_nobody_reads_it() {
        let bodies = Bodies::default();
        let mut body = bodies.buffer(1 << 20);
        body.extend(&[7; 1 << 20]);
        let bytes = body.into_bytes();
        let (address, slice) = (bytes.as_ptr(), bytes.slice(10..20));
        drop(bytes);
        assert_ne!(bodies.buffer(1 << 20).bytes.as_ptr(), address, "somebody still reads it");
        assert_eq!(slice, [7; 10].as_slice());
        drop(slice);
        assert!(bodies.0.lock().iter().any(|resting| resting.as_ptr() == address && resting.is_empty()));
    }

    #[test]
    fn what_rests_is_bounded() {
        let bodies = Bodies::default();
        drop((0..20).map(|_| bodies.buffer(1 << 20)).collect::<Vec<_>>());
        assert_eq!(bodies.0.lock().len(), RESTING_MAX);
        assert!(bodies.0.lock().iter().all(|resting| resting.capacity() <= RESTING_BYTES_MAX));
        drop((bodies.buffer(RESTING_BYTES_MAX + 1), bodies.buffer(10)));
        assert_eq!(bodies.0.lock().len(), RESTING_MAX);
    }
}

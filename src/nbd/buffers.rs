//! The two buffers of a connection: what came in, and the replies going out.
//!
//! Both stay initialised and are sliced, so that no byte is cleared that will be overwritten. They grow with what
//! really arrives or is really answered, never with what is merely announced, and shrink again.

use std::ops::Range;

use super::protocol::Put;

/// Bytes that a buffer starts with, and that one read takes in at most unless a longer request is under way.
pub const BASE_BYTES: usize = 256 << 10;
/// Above this a buffer shrinks as soon as it is empty; below, only after some quiet time.
pub const KEEP_BYTES: usize = 2 << 20;
/// Uses in a row that would have fitted into the base, after which a buffer shrinks.
const QUIET_USES: u32 = 256;
/// A request longer than this is read to its end exactly, so that nothing behind it has to be moved.
const LONG_REQUEST_BYTES: usize = 64 << 10;

/// Decides when a buffer has been larger than needed for long enough.
#[derive(Debug, Default)]
struct Quiet(u32);

impl Quiet {
    fn should_shrink(&mut self, length: usize, used: usize) -> bool {
        if length <= BASE_BYTES {
            return false;
        }
        self.0 = if used > BASE_BYTES { 0 } else { self.0 + 1 };
        let shrink = length > KEEP_BYTES || self.0 >= QUIET_USES;
        if shrink {
            self.0 = 0;
        }
        shrink
    }
}

/// Bytes received and not yet consumed, in one piece.
#[derive(Debug)]
pub struct ReceiveBuffer {
    bytes: Vec<u8>,
    filled: Range<usize>,
    /// Length of the request at the front, as far as is known.
    needed: usize,
    peak: usize,
    quiet: Quiet,
}

impl ReceiveBuffer {
    /// An empty buffer.
    pub fn new() -> Self {
        ReceiveBuffer { bytes: vec![0; BASE_BYTES], filled: 0..0, needed: 0, peak: 0, quiet: Quiet::default() }
    }

    /// What is there.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.filled.clone()]
    }

    /// Drops `count` bytes from the front.
    pub fn consume(&mut self, count: usize) {
        self.filled.start += count;
        assert!(self.filled.start <= self.filled.end, "more was consumed than had been received");
        if self.filled.is_empty() {
            self.filled = 0..0;
            if self.quiet.should_shrink(self.bytes.len(), self.peak) {
                self.bytes = vec![0; BASE_BYTES];
            }
            self.peak = 0;
        }
    }

    /// Says that what is there is the front of something `needed` bytes long.
    pub fn expect(&mut self, needed: usize) {
        self.needed = needed;
    }

    /// Room to receive into; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        let have = self.filled.len();
        let missing = self.needed.saturating_sub(have);
        let end = self.filled.start.saturating_add(self.needed.max(BASE_BYTES));
        if end > self.bytes.len() && self.filled.start > 0 {
            self.bytes.copy_within(self.filled.clone(), 0);
            self.filled = 0..have;
        }
        if self.filled.end == self.bytes.len() {
            // Full with a part of one request: it has earned twice the room.
            let length = self.needed.max(BASE_BYTES).min(2 * self.bytes.len()).max(have + 1);
            let mut larger = vec![0; length];
            larger[..have].copy_from_slice(&self.bytes[self.filled.clone()]);
            self.bytes = larger;
            self.filled = 0..have;
        }
        let wanted = if self.needed > LONG_REQUEST_BYTES { missing.max(1) } else { BASE_BYTES };
        let end = self.filled.end.saturating_add(wanted).min(self.bytes.len());
        &mut self.bytes[self.filled.end..end]
    }

    /// Says that `count` bytes have been received into [`ReceiveBuffer::space`].
    pub fn received(&mut self, count: usize) {
        self.filled.end += count;
        assert!(self.filled.end <= self.bytes.len(), "more was received than there was room for");
        self.peak = self.peak.max(self.filled.len());
        self.needed = 0;
    }
}

impl Default for ReceiveBuffer {
    fn default() -> Self {
        ReceiveBuffer::new()
    }
}

/// Replies gathered to be sent by one call.
#[derive(Debug, Default)]
pub struct ReplyBuffer {
    bytes: Vec<u8>,
    used: usize,
    quiet: Quiet,
}

impl ReplyBuffer {
    /// What is to be sent.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// Room for `length` bytes behind what is there; its content is arbitrary.
    pub fn room(&mut self, length: usize) -> &mut [u8] {
        let end = self.used + length;
        if end > self.bytes.len() {
            let mut larger = vec![0; end.max(2 * self.bytes.len()).max(4096)];
            larger[..self.used].copy_from_slice(&self.bytes[..self.used]);
            self.bytes = larger;
        }
        &mut self.bytes[self.used..end]
    }

    /// Says that `length` bytes of [`ReplyBuffer::room`] are a reply.
    pub fn keep(&mut self, length: usize) {
        self.used += length;
        assert!(self.used <= self.bytes.len(), "a reply is longer than its room");
    }

    /// Forgets what has been sent.
    pub fn clear(&mut self) {
        if self.quiet.should_shrink(self.bytes.len(), self.used) {
            self.bytes = Vec::new();
        }
        self.used = 0;
    }
}

impl Put for ReplyBuffer {
    fn put(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.keep(bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announced_length_earns_no_memory() {
        let mut buffer = ReceiveBuffer::new();
        buffer.space()[..28].fill(1);
        buffer.received(28);
        buffer.expect(32 << 20);
        assert!(buffer.space().len() <= BASE_BYTES);
        assert_eq!(buffer.bytes.len(), BASE_BYTES);
    }

    #[test]
    fn a_long_request_is_kept_whole_and_the_room_given_back() {
        let mut buffer = ReceiveBuffer::new();
        let needed = 3_000_000;
        let mut sent = 0usize;
        while sent < needed {
            buffer.expect(needed);
            let space = buffer.space();
            assert!(!space.is_empty() && space.len() <= needed - sent);
            for (index, byte) in space.iter_mut().enumerate() {
                *byte = ((sent + index) % 251) as u8;
            }
            let count = space.len();
            buffer.received(count);
            sent += count;
        }
        assert_eq!(buffer.filled().len(), needed);
        assert!(buffer.filled().iter().enumerate().all(|(index, &byte)| byte == (index % 251) as u8));
        buffer.consume(needed);
        assert_eq!(buffer.bytes.len(), BASE_BYTES);
    }

    #[test]
    fn a_reply_buffer_shrinks_after_a_quiet_time() {
        let mut buffer = ReplyBuffer::default();
        buffer.room(1 << 20);
        buffer.keep(1 << 20);
        buffer.clear();
        assert!(buffer.bytes.len() >= 1 << 20);
        for _ in 0..QUIET_USES {
            buffer.put(&[0; 16]);
            buffer.clear();
        }
        assert!(buffer.bytes.len() <= BASE_BYTES);
        buffer.room(32 << 20);
        buffer.keep(32 << 20);
        buffer.clear();
        assert!(buffer.bytes.is_empty());
    }
}

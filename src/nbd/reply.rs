//! Encodes the replies of the transmission phase. Pure.
//!
//! The head of a read's reply is written in front of content that is already in its place
//! ([`read_head`]); everything else is appended to a growing message.

use super::protocol::{
    EXTENDED_REPLY_MAGIC, Errno, Filler, Put, SIMPLE_REPLY_MAGIC, STATE_DIRTY, STATE_HOLE, STATE_ZERO,
    STRUCTURED_REPLY_MAGIC, Style, chunk,
};
use crate::block_device::{ChangeExtent, Residence, ResidenceExtent};
use crate::limits::NBD_STRING_BYTES_MAX;
use crate::units::SnapshotId;

/// Which request a reply belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// What the client called it.
    pub cookie: u64,
    /// The offset of the request; extended headers repeat it.
    pub offset: u64,
}

/// A metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaContext {
    /// `base:allocation`: 3 (hole and zero) for a hole, 0 for everything else.
    Allocation,
    /// `varve:residence`: 0 in the write log, 1 in the read cache, 2 in the store only, 3 nowhere (a hole).
    Residence,
    /// `qemu:dirty-bitmap:vs_...`: 1 where the content may differ from that snapshot, 0 elsewhere.
    Changes {
        /// The snapshot.
        since: SnapshotId,
        /// Which of those that the client chose, counted from 0.
        position: u32,
    },
}

/// What the names of contexts of changes begin with; QEMU and backup programs know it.
pub const CHANGES_PREFIX: &str = "qemu:dirty-bitmap:";

impl MetaContext {
    /// The name by which clients choose it.
    pub fn name(self) -> String {
        match self {
            MetaContext::Allocation => "base:allocation".to_owned(),
            MetaContext::Residence => "varve:residence".to_owned(),
            MetaContext::Changes { since, .. } => format!("{CHANGES_PREFIX}{since}"),
        }
    }

    /// The number by which replies refer to it.
    pub fn id(self) -> u32 {
        match self {
            MetaContext::Allocation => 1,
            MetaContext::Residence => 2,
            MetaContext::Changes { position, .. } => 3 + position,
        }
    }

    /// The status of an extent in this context, as far as its residence tells.
    fn status(self, residence: Residence) -> u32 {
        match (self, residence) {
            (MetaContext::Allocation, Residence::Hole) => STATE_HOLE | STATE_ZERO,
            (MetaContext::Allocation, Residence::Log | Residence::Cache | Residence::Store) => 0,
            (MetaContext::Residence, Residence::Log) => 0,
            (MetaContext::Residence, Residence::Cache) => 1,
            (MetaContext::Residence, Residence::Store) => 2,
            (MetaContext::Residence, Residence::Hole) => 3,
            (MetaContext::Changes { .. }, _) => STATE_DIRTY,
        }
    }
}

/// Runs of bytes and their status in one context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The context's number.
    pub id: u32,
    /// Bytes and status, in order; neighbours differ.
    pub runs: Vec<(u64, u32)>,
}

impl Status {
    /// Where extents are, as one context sees it, cut to `length` bytes.
    pub fn of_residence(context: MetaContext, extents: &[ResidenceExtent], length: u64) -> Self {
        let runs = extents.iter().map(|extent| (extent.length, context.status(extent.residence)));
        Status { id: context.id(), runs: joined(runs, length) }
    }

    /// What may have changed, cut to `length` bytes.
    pub fn of_changes(context: MetaContext, extents: &[ChangeExtent], length: u64) -> Self {
        let runs = extents.iter().map(|extent| (extent.length, if extent.changed { STATE_DIRTY } else { 0 }));
        Status { id: context.id(), runs: joined(runs, length) }
    }
}

/// Appends the head of a chunk whose payload of `length` bytes follows.
fn chunk_head(out: &mut impl Put, style: Style, flags: u16, kind: u16, to: Address, length: u32) {
    let extended = style == Style::Extended;
    out.put_u32(if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC });
    out.put_u16(flags);
    out.put_u16(kind);
    out.put_u64(to.cookie);
    if extended {
        out.put_u64(to.offset);
        out.put_u64(u64::from(length));
    } else {
        out.put_u32(length);
    }
}

fn simple(out: &mut impl Put, errno: u32, to: Address) {
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(errno);
    out.put_u64(to.cookie);
}

/// Writes the head of a successful read of `length` bytes into `head`, which is [`Style::read_head_bytes`] long.
pub fn read_head(head: &mut [u8], style: Style, to: Address, length: u32) {
    let mut out = Filler(head);
    match style {
        Style::Simple => simple(&mut out, 0, to),
        Style::Structured | Style::Extended => {
            chunk_head(&mut out, style, chunk::FLAG_DONE, chunk::OFFSET_DATA, to, length + 8);
            out.put_u64(to.offset);
        }
    }
}

/// Appends a success that carries nothing.
pub fn success(out: &mut impl Put, style: Style, to: Address) {
    match style {
        Style::Simple | Style::Structured => simple(out, 0, to),
        Style::Extended => chunk_head(out, style, chunk::FLAG_DONE, chunk::NONE, to, 0),
    }
}

/// Appends an error, with its message where the style has room for one.
pub fn error(out: &mut impl Put, style: Style, to: Address, errno: Errno, message: &str) {
    if style == Style::Simple {
        return simple(out, errno as u32, to);
    }
    let message = &message.as_bytes()[..message.floor_char_boundary(NBD_STRING_BYTES_MAX)];
    let length = u16::try_from(message.len()).unwrap_or(0);
    chunk_head(out, style, chunk::FLAG_DONE, chunk::ERROR, to, 6 + u32::from(length));
    out.put_u32(errno as u32);
    out.put_u16(length);
    out.put(&message[..usize::from(length)]);
}

/// Appends a chunk for each context, with one run only for `only_one`. Appends nothing and returns false if there is nothing to tell of one.
pub fn block_status(out: &mut Vec<u8>, style: Style, to: Address, statuses: &[Status], only_one: bool) -> bool {
    if statuses.is_empty() || statuses.iter().any(|status| status.runs.is_empty()) {
        return false;
    }
    for (position, status) in statuses.iter().enumerate() {
        let runs = &status.runs[..if only_one { 1 } else { status.runs.len() }];
        // The device was asked for some thousand extents at most.
        let count = u32::try_from(runs.len()).unwrap_or(u32::MAX);
        let flags = if position + 1 == statuses.len() { chunk::FLAG_DONE } else { 0 };
        if style == Style::Extended {
            chunk_head(out, style, flags, chunk::BLOCK_STATUS_EXT, to, 8 + 16 * count);
            out.put_u32(status.id);
            out.put_u32(count);
            for &(length, status) in runs {
                out.put_u64(length);
                out.put_u64(u64::from(status));
            }
        } else {
            chunk_head(out, style, flags, chunk::BLOCK_STATUS, to, 4 + 8 * count);
            out.put_u32(status.id);
            for &(length, status) in runs {
                // A compact request is no longer than 32 bits can say, and runs are cut to the request.
                out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
                out.put_u32(status);
            }
        }
    }
    true
}

/// The first `length` bytes of these runs; neighbours of the same status are one.
fn joined(runs: impl Iterator<Item = (u64, u32)>, length: u64) -> Vec<(u64, u32)> {
    let mut joined: Vec<(u64, u32)> = Vec::new();
    let mut left = length;
    for (length, status) in runs {
        let take = length.min(left);
        left -= take;
        match joined.last_mut() {
            _ if take == 0 => {}
            Some(last) if last.1 == status => last.0 += take,
            _ => joined.push((take, status)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: Address = Address { cookie: 0x0102_0304_0506_0708, offset: 4096 };

    #[test]
    fn heads_of_reads_have_the_announced_length() {
        for style in [Style::Simple, Style::Structured, Style::Extended] {
            let mut head = vec![0xee; style.read_head_bytes()];
            read_head(&mut head, style, TO, 512);
            assert_ne!(head.last(), Some(&0xee), "{style:?}");
        }
        let mut head = [0; 28];
        read_head(&mut head, Style::Structured, TO, 512);
        let expected =
            [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0x10, 0];
        assert_eq!(head, expected);
    }

    #[test]
    fn a_message_is_cut_between_letters() {
        let mut out = Vec::new();
        error(&mut out, Style::Structured, TO, Errno::Io, &"\u{e4}".repeat(4000));
        assert_eq!(out.len(), 20 + 6 + NBD_STRING_BYTES_MAX);
        out.clear();
        error(&mut out, Style::Simple, TO, Errno::Io, "not sent");
        assert_eq!(out.len(), 16);
    }

    #[test]
    fn neighbours_of_one_status_are_joined_and_cut() {
        let extents = [
            ResidenceExtent { length: 4096, residence: Residence::Log },
            ResidenceExtent { length: 4096, residence: Residence::Store },
            ResidenceExtent { length: 1 << 40, residence: Residence::Hole },
        ];
        assert_eq!(Status::of_residence(MetaContext::Allocation, &extents, 10_000).runs, [(8192, 0), (1808, 3)]);
        assert_eq!(
            Status::of_residence(MetaContext::Residence, &extents, 10_000).runs,
            [(4096, 0), (4096, 2), (1808, 3)]
        );
        let changes = [(4096, true), (4096, true), (1 << 40, false)];
        let changes = changes.map(|(length, changed)| ChangeExtent { length, changed });
        let context = MetaContext::Changes { since: SnapshotId(7), position: 1 };
        assert_eq!(Status::of_changes(context, &changes, 10_000), Status { id: 4, runs: vec![(8192, 1), (1808, 0)] });
        let mut out = Vec::new();
        let nothing = [Status::of_changes(context, &changes, 1), Status { id: 1, runs: Vec::new() }];
        assert!(!block_status(&mut out, Style::Extended, TO, &nothing, false));
        assert!(out.is_empty());
    }
}

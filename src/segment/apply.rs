//! What a segment's entries do to pages of the block map.

use crate::format::segment::{EntryKind, IndexEntry};
use crate::map::{MapPage, PageIndex, SegmentPlace};
use crate::units::{BlockRange, SegmentId};
use crate::work::simulated::{self, Mutation};

/// Makes the change that `entry` of segment `id` says for `part`, the blocks of it that lie in page `index`.
pub fn apply_entry(page: &mut MapPage, index: PageIndex, part: BlockRange, entry: &IndexEntry, id: SegmentId) {
    let offset = (part.start.0 - index.range().start.0) as u16;
    let count = part.count.0 as u16;
    let skipped = (part.start.0 - entry.range.start.0) as u32;
    let place = |block: u32| SegmentPlace { segment: id, block: block + skipped };
    match entry.kind {
        EntryKind::Data { block } => page.set(offset, count, Some(place(block))),
        EntryKind::Zero => page.set(offset, count, None),
        EntryKind::Moved { block, .. } if simulated::has(Mutation::MoveOverNewer) => {
            page.set(offset, count, Some(place(block)));
        }
        EntryKind::Moved { block, old } => {
            page.move_if_at(offset, count, old.plus(skipped), place(block));
        }
    }
}

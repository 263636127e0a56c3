//! Inputs that once broke something, or would have: each with intact checksums, so that only what they say gives them away.

use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use varve::format::manifest::Manifest;
use varve::format::segment::{EntryKind, IndexEntry, IndexSeal, encode_tail};
use varve::log::recover;
use varve::map::SegmentPlace;
use varve::segment::parse_object_tail;
use varve::units::{BlockCount, BlockRange, Lba};

use super::bodies::{self, OneFile, SEGMENT, VOLUME};
use super::{repair, samples};

fn zero(start: u64, count: u64) -> IndexEntry {
    IndexEntry { range: BlockRange::new(Lba(start), BlockCount(count)), kind: EntryKind::Zero }
}

/// Says why a segment without frames and with these entries is refused.
fn refusal(entries: &[IndexEntry]) -> String {
    let tail = encode_tail(&samples::header(false), &[], entries, 96, IndexSeal::Plain).unwrap();
    let parsed = parse_object_tail(SEGMENT, &tail, 96 + tail.len() as u64, IndexSeal::Plain);
    parsed.expect_err("no writer makes such entries").message().to_owned()
}

/// Entries that overlapped ended in a subtraction below zero where a snapshot was read.
pub fn entries_that_overlap() {
    let entries = [zero(0, 100), zero(10, 10), zero(15, 300)];
    assert!(refusal(&entries).contains("overlap"));
    let apart = encode_tail(&samples::header(false), &[], &[zero(500, 5), zero(0, 500)], 96, IndexSeal::Plain).unwrap();
    assert!(parse_object_tail(SEGMENT, &apart, 96 + apart.len() as u64, IndexSeal::Plain).is_ok(), "in any order");
}

/// A moved entry whose old place was at the end of all numbers overflowed where it was applied, and a zero of 2^52 blocks kept an
/// attach busy for ever.
pub fn places_that_nothing_has() {
    assert!(refusal(&[zero(0, 1 << 33)]).contains("range"));
    assert!(refusal(&[zero(1 << 51, 1)]).contains("range"));
    // A real one of two blocks, with the number of the old block changed.
    let mut object = samples::segments().remove(3);
    let moved = SegmentPlace { segment: SEGMENT, block: 12 };
    let pattern: Vec<u8> = 2_u32.to_le_bytes().into_iter().chain(moved.block.to_le_bytes()).collect();
    let at = object.windows(8).position(|window| window == pattern).expect("epoch 2, block 12");
    object[at + 4..at + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    repair::segment(&mut object);
    let error = parse_object_tail(SEGMENT, &object, object.len() as u64, IndexSeal::Plain)
        .expect_err("no segment has that place");
    assert!(error.message().contains("moved from"), "{error}");
    bodies::segment(&object);
}

/// A few bytes that announced an index of 100 MiB were given them.
pub fn an_index_that_announces_much() {
    let mut object = samples::segments().remove(1);
    let trailer = object.len() - 64;
    object[trailer + 28..trailer + 32].copy_from_slice(&(100_u32 << 20).to_le_bytes());
    repair::segment(&mut object);
    let error = parse_object_tail(SEGMENT, &object, object.len() as u64, IndexSeal::Plain).expect_err("it is too much");
    assert!(error.message().contains("announces"), "{error}");
}

/// Counts at the end of their type overflowed where the next one was asked for; a checkpoint two thousand million epochs ago would have
/// been looked for, and sealed, epoch by epoch.
pub fn manifests_beyond_all_counts() {
    let text = String::from_utf8(samples::manifests().remove(1)).unwrap();
    for (was, becomes) in [
        ("\"generation\":12", "\"generation\":18446744073709551615"),
        ("\"sequence\":50", "\"sequence\":18446744073709551615"),
        ("\"number\":4", "\"number\":18446744073709551615"),
        ("\"stored_bytes\":1048576", "\"stored_bytes\":18446744073709551615"),
        ("\"epoch\":3,", "\"epoch\":2147483647,"),
    ] {
        assert!(text.contains(was), "{was}: {text}");
        let mut bytes = text.replacen(was, becomes, 1).into_bytes();
        repair::envelope(&mut bytes);
        let error = Manifest::decode(VOLUME, &bytes).expect_err("nothing counts so far");
        assert!(error.message().contains("is damaged"), "{becomes}: {error}");
    }
}

/// The same in the superblock of a write log: version, and the place of its first record, which is never 0.
pub fn logs_beyond_all_counts() {
    for (at, value) in [(24, u64::MAX), (104, u64::MAX), (104, 0), (128, u64::MAX)] {
        let mut bytes = samples::logs().remove(1);
        for copy in [0, 4096] {
            bytes[copy + at..copy + at + 8].copy_from_slice(&value.to_le_bytes());
        }
        repair::log(&mut bytes);
        let found = recover(&OneFile(Arc::new(RwLock::new(bytes))), Path::new("/log"), &|_| Ok(None));
        let error = found.err().expect("no log has this");
        assert!(error.message().contains("make no sense"), "{error}");
    }
}

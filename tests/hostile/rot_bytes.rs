//! A million flipped bits, and a hundred thousand cuts and swaps, in the bytes of every structure: each must be refused or give just what
//! was written, and where parts stand for themselves only the damaged part may be lost.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use varve::format::cache::{Superblock, entries_of_chunk};
use varve::format::lineage::SnapshotObject;
use varve::format::manifest::{Manifest, StoreRoot};
use varve::format::map_object::{self, PageRef};
use varve::format::page::{encode_page, page_of_row};
use varve::format::segment::{IndexSeal, announced_length, decode_header};
use varve::log::{Ending, RecordKind, recover};
use varve::segment::{open_frame, parse_object_tail};
use varve::volume::LocalState;

use super::bodies::{OneFile, SEGMENT, SNAPSHOT, VOLUME};
use super::samples;

/// What a reader made of damaged bytes.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It refused them, or the part that was hit.
    Refused,
    /// It took them for what they were.
    Same,
}

/// Says what a reader makes of bytes, and of which byte was hit, if it was one alone.
type Reader = Box<dyn Fn(&[u8], Option<usize>) -> Verdict + Send>;

/// A kind of bytes, and what its reader says of a damaged copy.
struct Structure {
    name: &'static str,
    bytes: Vec<u8>,
    /// Another good one, to be swapped with.
    other: Vec<u8>,
    flips: u64,
    read: Reader,
}

/// The verdict of a reader that takes all or nothing.
fn whole<T: PartialEq + std::fmt::Debug>(found: Option<T>, wanted: &T) -> Verdict {
    match found {
        None => Verdict::Refused,
        Some(found) => {
            assert_eq!(&found, wanted, "damage was taken for content");
            Verdict::Same
        }
    }
}

fn structure<T: PartialEq + std::fmt::Debug + Send + 'static>(
    name: &'static str,
    bytes: Vec<u8>,
    other: Vec<u8>,
    flips: u64,
    read: impl Fn(&[u8]) -> Option<T> + Send + 'static,
) -> Structure {
    let wanted = read(&bytes).expect("what is whole is read");
    Structure { name, bytes, other, flips, read: Box::new(move |bytes, _| whole(read(bytes), &wanted)) }
}

/// The same segment, but of another number: names are never used again.
fn of_another(mut object: Vec<u8>) -> Vec<u8> {
    let trailer = object.len() - 64;
    let stored = u32::from_le_bytes(object[trailer + 24..trailer + 28].try_into().unwrap()) as usize;
    for at in [0, trailer - stored] {
        object[at + 24] = 6;
    }
    super::repair::segment(&mut object);
    object
}

fn of_another_tail(mut tail: Vec<u8>) -> Vec<u8> {
    tail[24] = 6;
    super::repair::segment_tail(&mut tail);
    tail
}

fn segment() -> Structure {
    let built = samples::built(&[(3, 9, false), (40, 4, true), (100, 12, false)]);
    let other = of_another(samples::segments().remove(4));
    let (index, header) = (built.index, samples::header(false));
    let frame = |number: usize, bytes: &[u8]| {
        let frame = index.frames[number];
        let stored = bytes.get(frame.offset as usize..(frame.offset + frame.stored_length) as usize)?;
        open_frame(SEGMENT, number as u32, &frame, &Bytes::copy_from_slice(stored), None).ok()
    };
    let plain: Vec<Bytes> = (0..index.frames.len()).map(|number| frame(number, &built.bytes).unwrap()).collect();
    let read = move |bytes: &[u8], hit: Option<usize>| {
        let found = parse_object_tail(SEGMENT, bytes, bytes.len() as u64, IndexSeal::Plain).ok();
        let mut verdict = whole(found, &index);
        let header = whole(decode_header(SEGMENT, bytes).ok(), &header);
        if header == Verdict::Refused {
            verdict = Verdict::Refused;
        }
        for (number, plain) in plain.iter().enumerate() {
            let place = index.frames[number];
            let stored = bytes.get(place.offset as usize..(place.offset + place.stored_length) as usize);
            let stored = Bytes::copy_from_slice(stored.unwrap_or_default());
            let opened = whole(open_frame(SEGMENT, number as u32, &place, &stored, None).ok(), plain);
            if let Some(hit) = hit {
                let is_hit = (place.offset as usize..(place.offset + place.stored_length) as usize).contains(&hit);
                assert_eq!(opened == Verdict::Refused, is_hit, "byte {hit}, frame {number}");
            }
            if opened == Verdict::Refused {
                verdict = Verdict::Refused;
            }
        }
        verdict
    };
    Structure { name: "segment", bytes: built.bytes.to_vec(), other, flips: 200_000, read: Box::new(read) }
}

fn cache_chunk() -> Structure {
    let (bytes, other) = (samples::cache_chunk(8), samples::cache_chunk(3));
    let entries = |bytes: &[u8]| -> Vec<_> {
        let found = entries_of_chunk(5, 3, bytes);
        found.map(|(at, entry)| (entry.frame, at, bytes[at..][entry.payload].to_vec())).collect()
    };
    let wanted = entries(&bytes);
    assert_eq!(wanted.len(), 8);
    let read = move |bytes: &[u8], hit: Option<usize>| {
        let found = entries(bytes);
        assert!(found.iter().all(|entry| wanted.contains(entry)), "damage was taken for an entry");
        for (number, entry) in wanted.iter().enumerate().filter(|(_, entry)| !found.contains(entry)) {
            let end = wanted.get(number + 1).map_or(bytes.len(), |(_, at, _)| *at);
            assert!(hit.is_none_or(|hit| (entry.1..end).contains(&hit)), "{hit:?} cost entry {number}");
        }
        if found.len() == wanted.len() { Verdict::Same } else { Verdict::Refused }
    };
    Structure { name: "cache chunk", bytes, other, flips: 80_000, read: Box::new(read) }
}

/// A record that was found: sequence, kind, blocks and their content.
type Record = (u64, RecordKind, u64, Vec<u8>);

fn records(bytes: &[u8]) -> Option<(Vec<Record>, Ending)> {
    let disk = OneFile(Arc::new(RwLock::new(bytes.to_vec())));
    let found = recover(&disk, Path::new("/log"), &|_| Ok(None)).ok()?;
    // Whoever attaches looks whose log it is.
    if found.identity() != samples::log_identity(9) {
        return None;
    }
    let mut records = Vec::new();
    for view in found.records() {
        let view = view.expect("recovery has verified it");
        let mut content = Vec::new();
        if view.kind == RecordKind::Write {
            content.resize(view.range.count.0 as usize * 4096, 0);
            found.read_blocks(view.place.record, 0, &mut content).expect("recovery has verified it");
        }
        records.push((view.place.sequence.0, view.kind, view.range.start.0, content));
    }
    Some((records, found.ending()))
}

fn log() -> Structure {
    let (bytes, other) = (samples::log(64 << 10, 9, &[1, 0, 2, 1, 0, 1]), samples::log(64 << 10, 8, &[2, 1]));
    let (wanted, ending) = records(&bytes).unwrap();
    assert_eq!((wanted.len(), ending), (6, Ending::Clean));
    let read = move |bytes: &[u8], hit: Option<usize>| {
        let Some((found, ending)) = records(bytes) else {
            assert!(hit.is_none(), "byte {hit:?} cost the whole log");
            return Verdict::Refused;
        };
        // Only a first part may be left, and what is lost must be told, but for a tail that nothing proves to have been durable.
        assert_eq!(found[..], wanted[..found.len().min(wanted.len())], "damage was taken for a record");
        if found.len() < wanted.len() {
            assert!(hit.is_none_or(|hit| hit >= 8192), "a superblock has a second copy");
            let told = !matches!(ending, Ending::Clean);
            assert!(told || hit.is_none_or(|_| found.len() + 1 >= wanted.len()), "{hit:?}: {ending:?}");
            return Verdict::Refused;
        }
        Verdict::Same
    };
    Structure { name: "write log", bytes, other, flips: 60_000, read: Box::new(read) }
}

fn stored_page() -> Structure {
    let raw = encode_page(&samples::page());
    let reference = PageRef {
        object: samples::map_object_id(1),
        offset: 40,
        stored_length: raw.len() as u32,
        raw_length: raw.len() as u32,
        crc: crc32c::crc32c(&raw),
    };
    let other = samples::directories().remove(0)[..raw.len()].to_vec();
    structure("map page, directory or root", raw, other, 120_000, move |bytes| {
        map_object::open(&reference, bytes, None).ok()
    })
}

fn structures() -> Vec<Structure> {
    let mut tails = samples::segment_tails();
    let (tail, other_tail) = (tails.remove(1), tails.remove(2));
    // An index alone: its header is at the front.
    let other_tail = of_another_tail(other_tail);
    let manifest = samples::manifests().remove(0);
    let mut pages = samples::local_pages();
    let read_manifest = |bytes: &[u8]| Manifest::decode(VOLUME, bytes).ok();
    let read_tail = |bytes: &[u8]| parse_object_tail(SEGMENT, bytes, announced_length(bytes)?, IndexSeal::Plain).ok();
    let read_root = |bytes: &[u8]| StoreRoot::decode("memory:", bytes).ok();
    let read_snapshot = |bytes: &[u8]| SnapshotObject::decode(SNAPSHOT, bytes).ok();
    let first = |mut examples: Vec<Vec<u8>>| examples.remove(0);
    let roots = first(samples::store_roots());
    vec![
        segment(),
        cache_chunk(),
        log(),
        stored_page(),
        structure("local segment index", tail, other_tail, 120_000, read_tail),
        structure("manifest", manifest, samples::snapshots().remove(0), 120_000, read_manifest),
        structure("snapshot object", first(samples::snapshots()), roots.clone(), 60_000, read_snapshot),
        structure("store header", roots, first(samples::snapshots()), 40_000, read_root),
        structure("local page", pages.remove(0), vec![7; 100], 100_000, |bytes: &[u8]| page_of_row(bytes).ok()),
        structure("local state", first(samples::local_states()), vec![7; 25], 40_000, LocalState::decode),
        structure("map header", first(samples::map_headers()), vec![7; 40], 40_000, |bytes: &[u8]| {
            map_object::decode_header(bytes).ok()
        }),
        structure(
            "cache superblock",
            first(samples::cache_superblocks())[..64].to_vec(),
            vec![7; 64],
            40_000,
            Superblock::decode,
        ),
    ]
}

/// What was done to one structure.
#[derive(Debug, Default)]
pub struct Tally {
    pub flips: u64,
    pub cuts_and_swaps: u64,
    pub refused: u64,
    pub same: u64,
}

impl Tally {
    fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Refused => self.refused += 1,
            Verdict::Same => self.same += 1,
        }
    }
}

/// Cuts and swaps for each structure.
const CUTS: u64 = 9_000;

fn damage(structure: &Structure) -> Tally {
    let mut random = SmallRng::seed_from_u64(u64::from(crc32c::crc32c(structure.name.as_bytes())));
    let (whole, mut tally) = (&structure.bytes, Tally::default());
    let mut bytes = whole.clone();
    while tally.flips < structure.flips {
        // Every other flip hits the edges, where headers and trailers are.
        let at = match random.random_range(0..4) {
            0 => random.random_range(0..whole.len().min(128)),
            1 => whole.len() - 1 - random.random_range(0..whole.len().min(300)),
            _ => random.random_range(0..whole.len()),
        };
        bytes[at] ^= 1 << random.random_range(0..8);
        tally.count(&(structure.read)(&bytes, Some(at)));
        tally.flips += 1;
        bytes[at] = whole[at];
    }
    while tally.cuts_and_swaps < CUTS {
        let mut bytes = whole.clone();
        let start = random.random_range(0..whole.len());
        let length = random.random_range(0..=(whole.len() - start).min(700));
        match random.random_range(0..4) {
            0 => bytes.truncate(start),
            1 => drop(bytes.drain(start..start + length)),
            2 => {
                let to = random.random_range(0..=whole.len() - length);
                let part = whole[start..start + length].to_vec();
                bytes[to..to + length].copy_from_slice(&part);
            }
            _ => {
                let end = (start + length).min(structure.other.len());
                if start < end {
                    bytes[start..end].copy_from_slice(&structure.other[start..end]);
                } else {
                    bytes.clone_from(&structure.other);
                }
            }
        }
        tally.count(&(structure.read)(&bytes, None));
        tally.cuts_and_swaps += 1;
    }
    tally
}

/// Damages every structure, on two threads.
pub fn damage_all() -> Tally {
    let mut all = structures();
    let half = all.split_off(2);
    let run = |structures: Vec<Structure>| -> Vec<(&'static str, Tally)> {
        structures.iter().map(|structure| (structure.name, damage(structure))).collect()
    };
    let second = std::thread::Builder::new().name("rot::second".into()).spawn(move || run(half)).unwrap();
    let tallies = run(all).into_iter().chain(second.join().expect("no damage was taken for content"));
    let mut sum = Tally::default();
    for (name, tally) in tallies {
        println!("{name}: {tally:?}");
        // Most of the log's ring is unused: what hits it does no harm.
        assert!(tally.refused > tally.same / 8, "{name}: hardly any damage is noticed");
        sum.flips += tally.flips;
        sum.cuts_and_swaps += tally.cuts_and_swaps;
        sum.refused += tally.refused;
        sum.same += tally.same;
    }
    sum
}

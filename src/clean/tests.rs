//! The rules of what is needed, case by case, and against histories of which every moment is remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::format::census::{Condemned, MapChanges, ObjectAt};
use crate::format::lineage::{Moment, PastMoment, Pin, PinHolder, SegmentRun, push_segment};
use crate::format::manifest::{Manifest, Position};
use crate::format::map_object::{CheckpointRef, MapObjectId, PageRef};
use crate::units::{ByteLen, Epoch, SegmentId, SegmentNumber, Sequence, Token, UnixMillis, VolumeId};

const VOLUME: VolumeId = VolumeId(1);

fn position(number: u64) -> Position {
    Position { epoch: Epoch(1), number: SegmentNumber(number) }
}

fn at(number: u64) -> ObjectAt {
    ObjectAt { epoch: Epoch(1), number }
}

fn segment(number: u64) -> SegmentId {
    SegmentId { volume: VOLUME, epoch: Epoch(1), number: SegmentNumber(number) }
}

fn checkpoint(number: u64) -> Option<CheckpointRef> {
    let object = MapObjectId { volume: VOLUME, epoch: Epoch(1), number };
    Some(CheckpointRef { root: PageRef { object, offset: 40, stored_length: 1, raw_length: 1, crc: 0 } })
}

fn manifest(replay_from: u64) -> Manifest {
    let first = Manifest::first(VOLUME, "disk".into(), ByteLen(1 << 30), UnixMillis(1), Token(1));
    Manifest { epoch: Epoch(1), replay_from: position(replay_from), complete: false, ..first }
}

/// A moment at a position, over the checkpoint whose root is in map object `root`, with these segments replayed.
fn moment(number: u64, root: u64, replayed: &[u64]) -> Moment {
    let mut replay = Vec::new();
    replayed.iter().for_each(|number| push_segment(&mut replay, segment(*number)));
    let (size, stored_bytes) = (ByteLen(1 << 30), ByteLen(0));
    Moment {
        position: position(number),
        sequence: Sequence(number),
        size,
        stored_bytes,
        checkpoint: checkpoint(root),
        replay,
    }
}

fn pin(moment: Moment, fork: u64) -> Pin {
    let holder = PinHolder::Fork { volume: VolumeId(fork), created_at: UnixMillis(1), region: None };
    Pin { moment, holders: vec![holder], seal: None }
}

fn segments(condemned: &Condemned) -> Vec<u64> {
    condemned.segments.iter().flat_map(|run| run.objects()).map(|at| at.number).collect()
}

fn maps(condemned: &Condemned) -> Vec<u64> {
    condemned.map_objects.iter().flat_map(|run| run.objects()).map(|at| at.number).collect()
}

/// Segments 0 to 9, of which 3 is dead from position 6 on.
fn ten() -> Census {
    let mut census = Census::default();
    (0..10).for_each(|number| census.add_segment(at(number), 100, 10, 10));
    census.bury(at(3), at(6));
    census
}

#[test]
fn a_dead_segment_goes_once_a_checkpoint_does_without_it() {
    let census = ten();
    for (replay_from, goes) in [(2, false), (3, false), (4, false), (5, false), (6, true), (9, true)] {
        let condemned = condemn(&census, &manifest(replay_from), &[]);
        assert_eq!(segments(&condemned), if goes { vec![3] } else { vec![] }, "checkpoint at {replay_from}");
        assert_eq!(condemnable_bytes(&census, &manifest(replay_from)), if goes { 100 } else { 0 });
    }
}

#[test]
fn a_pin_keeps_what_its_moment_leads_to_or_replays_and_nothing_else() {
    let census = ten();
    let with = |moment: Moment| {
        let pinned = Manifest { pins: vec![pin(moment.clone(), 5)], ..manifest(9) };
        let by_pin = condemn(&census, &pinned, &[]);
        assert_eq!(condemn(&census, &manifest(9), &[Arc::new(moment)]), by_pin, "held is as good as pinned");
        segments(&by_pin) == [3]
    };
    for (pinned_at, goes) in [(2, true), (3, true), (4, false), (5, false), (6, true), (8, true)] {
        assert_eq!(with(moment(pinned_at, 0, &[])), goes, "pinned at {pinned_at}");
    }
    assert!(!with(moment(8, 0, &[2, 3, 4])), "it is dead in that moment, but recovery reads its index");
    assert!(with(moment(8, 0, &[4, 5])));
    let run = SegmentRun { volume: VOLUME, epoch: Epoch(1), first: SegmentNumber(1), count: 5 };
    let inherits = |volume| Manifest { inherited: vec![SegmentRun { volume, ..run }], ..manifest(9) };
    assert!(segments(&condemn(&census, &inherits(VOLUME), &[])).is_empty());
    assert_eq!(segments(&condemn(&census, &inherits(VolumeId(7)), &[])), [3], "a segment of another volume");
}

#[test]
fn the_history_keeps_what_any_moment_since_its_beginning_leads_to() {
    let census = ten();
    for (begins, goes) in [(0, false), (4, false), (5, false), (6, true), (8, true)] {
        let past =
            |number| PastMoment { at: UnixMillis(number), moment: moment(number, 0, &[]), is_jump: false, seal: None };
        let history = vec![past(begins), past(9)];
        let goes_with = condemn(&census, &Manifest { history, ..manifest(9) }, &[]);
        assert_eq!(segments(&goes_with), if goes { vec![3] } else { vec![] }, "history from {begins}");
    }
    let replays = PastMoment { at: UnixMillis(8), moment: moment(8, 0, &[2, 3]), is_jump: true, seal: None };
    let history = vec![replays];
    assert!(condemn(&census, &Manifest { history, ..manifest(9) }, &[]).is_empty(), "its first moment replays it");
}

#[test]
fn a_map_object_stays_for_the_checkpoints_that_were_pinned_while_it_was_in_use() {
    let mut census = Census::default();
    let written = |number| MapChanges { written: vec![(at(number), 100, 90)], released: BTreeMap::new() };
    (0..3).for_each(|number| census.note_checkpoint(&written(number)));
    let released = BTreeMap::from([(at(1), 90)]);
    census.note_checkpoint(&MapChanges { written: vec![(at(5), 100, 90)], released });
    for (root, goes) in [(0, true), (1, false), (2, false), (4, false), (5, true), (6, true)] {
        let pinned = Manifest { pins: vec![pin(moment(9, root, &[]), 5)], ..manifest(9) };
        assert_eq!(maps(&condemn(&census, &pinned, &[])), if goes { vec![1] } else { vec![] }, "root in {root}");
    }
    let mut other = moment(9, 2, &[]);
    other.checkpoint.as_mut().unwrap().root.object.volume = VolumeId(7);
    let pinned = Manifest { pins: vec![pin(other, 5)], ..manifest(9) };
    assert_eq!(maps(&condemn(&census, &pinned, &[])), [1], "the checkpoint of another volume");
}

#[test]
fn a_manifest_names_no_more_than_it_may() {
    let mut census = Census::default();
    let many = crate::limits::CONDEMNED_MAX + 10;
    for number in 0..many {
        census.add_segment(at(number), 100, 10, 0);
        census.bury(at(number), at(many));
    }
    let mut next = manifest(many);
    next.condemned = condemn(&census, &next, &[]);
    assert_eq!((next.condemned.count(), next.condemned.segments.len()), (many - 10, 1));
    next.condemned.check("it").unwrap();
    assert!(condemn(&census, &next, &[]).is_empty(), "it is full");
    census.remove(&next.condemned);
    next.condemned = Condemned::default();
    assert_eq!(condemn(&census, &next, &[]).count(), 10);
}

/// Blocks of the modelled disk.
const BLOCKS: usize = 12;

/// Random histories: each segment writes some blocks or moves those of an old one; checkpoints, pins that come and go. What was condemned
/// must be in no pinned map, not in the newest one, and not among what anybody replays; and in the end nothing dead is left that nobody needs.
#[test]
fn nothing_that_any_moment_needs_is_ever_condemned() {
    for seed in 0..300 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut census = Census::default();
        let mut current = manifest(0);
        let mut map: [Option<u64>; BLOCKS] = [None; BLOCKS];
        let mut behind: Vec<u64> = Vec::new();
        let mut needs: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        let mut next = 0;
        for step in 0..200 {
            match random.random_range(0..10) {
                0..=5 => {
                    let first = random.random_range(0..BLOCKS);
                    let count = random.random_range(1..=4.min(BLOCKS - first));
                    census.add_segment(at(next), 100, 10, 10);
                    map[first..first + count].fill(Some(next));
                    behind.push(next);
                    next += 1;
                    let dead: Vec<ObjectAt> = census.segments().map(|(at, _)| at).collect();
                    for known in dead.into_iter().filter(|at| !map.contains(&Some(at.number))) {
                        if random.random_bool(0.7) {
                            census.bury(known, at(next));
                        }
                    }
                }
                6 | 7 => {
                    let leads: BTreeSet<u64> = map.iter().flatten().copied().collect();
                    let moment = moment(next, step, &behind);
                    needs.insert(step, leads.into_iter().chain(behind.iter().copied()).collect());
                    current.pins.push(pin(moment, step));
                }
                8 => {
                    if !current.pins.is_empty() {
                        let gone = current.pins.swap_remove(random.random_range(0..current.pins.len()));
                        let PinHolder::Fork { volume, .. } = gone.holders[0] else {
                            unreachable!("only forks pin here")
                        };
                        needs.remove(&volume.0);
                    }
                }
                _ => {
                    current.replay_from = position(next);
                    behind.clear();
                    let condemned = condemn(&census, &current, &[]);
                    for number in segments(&condemned) {
                        assert!(!map.contains(&Some(number)), "seed {seed}: segment {number} is in use");
                        let needed = needs.iter().find(|(_, needed)| needed.contains(&number));
                        assert!(needed.is_none(), "seed {seed}: segment {number} is needed by {needed:?}");
                    }
                    census.remove(&condemned);
                }
            }
        }
        let dead: Vec<ObjectAt> =
            census.segments().map(|(at, _)| at).filter(|at| !map.contains(&Some(at.number))).collect();
        dead.into_iter().for_each(|known| census.bury(known, at(next)));
        (current.replay_from, current.pins) = (position(next), Vec::new());
        census.remove(&condemn(&census, &current, &[]));
        let left: BTreeSet<Option<u64>> = census.segments().map(|(at, _)| Some(at.number)).collect();
        assert_eq!(left, map.iter().copied().filter(Option::is_some).collect(), "seed {seed}");
    }
}

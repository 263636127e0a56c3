//! The books: every object of a volume, and how much of it is in use.

use std::collections::BTreeMap;

use crate::format::census::{Condemned, Counted, MapChanges, ObjectAt, ObjectKind, Row};

/// The objects that a volume has in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    segments: BTreeMap<ObjectAt, Counted>,
    map_objects: BTreeMap<ObjectAt, Counted>,
}

/// Sums over the segments, in bytes as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Segments of which something may be in use.
    pub held: u64,
    /// The part of them that is in use; a hint.
    pub live: u64,
    /// Segments to which the newest map does not lead any more.
    pub dead: u64,
}

impl Census {
    /// The census that these rows say.
    pub fn from_rows(rows: impl IntoIterator<Item = Row>) -> Self {
        let mut census = Census::default();
        for Row { kind, at, counted } in rows {
            match kind {
                ObjectKind::Segment => census.segments.insert(at, counted),
                ObjectKind::Map => census.map_objects.insert(at, counted),
            };
        }
        census
    }

    /// The census as rows, in order.
    pub fn rows(&self) -> Vec<Row> {
        let segments = self.segments.iter().map(|(at, counted)| (ObjectKind::Segment, at, counted));
        let maps = self.map_objects.iter().map(|(at, counted)| (ObjectKind::Map, at, counted));
        segments.chain(maps).map(|(kind, at, counted)| Row { kind, at: *at, counted: *counted }).collect()
    }

    /// Notes a segment of `blocks` blocks and `bytes` bytes, of which `live` blocks are in use.
    pub fn add_segment(&mut self, at: ObjectAt, bytes: u64, blocks: u64, live: u64) {
        let units = narrow(blocks);
        let counted = Counted { bytes: narrow(bytes), units, live: narrow(live).min(units), dead_at: None };
        self.segments.insert(at, counted);
    }

    /// Notes an object with pages of checkpoints.
    pub fn add_map_object(&mut self, at: ObjectAt, bytes: u64, live: u64) {
        let units = narrow(bytes);
        self.map_objects.insert(at, Counted { bytes: units, units, live: narrow(live).min(units), dead_at: None });
    }

    /// True if it names this object.
    pub fn contains(&self, kind: ObjectKind, at: ObjectAt) -> bool {
        match kind {
            ObjectKind::Segment => self.segments.contains_key(&at),
            ObjectKind::Map => self.map_objects.contains_key(&at),
        }
    }

    /// A segment's entry.
    pub fn segment(&self, at: ObjectAt) -> Option<&Counted> {
        self.segments.get(&at)
    }

    /// The segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = (ObjectAt, &Counted)> {
        self.segments.iter().map(|(at, counted)| (*at, counted))
    }

    /// The map objects, in order.
    pub fn map_objects(&self) -> impl Iterator<Item = (ObjectAt, &Counted)> {
        self.map_objects.iter().map(|(at, counted)| (*at, counted))
    }

    /// The first segment behind `at` that is not known to be dead, or else the first of all.
    pub fn next_held(&self, at: ObjectAt) -> Option<ObjectAt> {
        let behind = self.segments.range((std::ops::Bound::Excluded(at), std::ops::Bound::Unbounded));
        let is_held = |(_, counted): &(&ObjectAt, &Counted)| counted.dead_at.is_none();
        behind.chain(self.segments.iter()).find(is_held).map(|(at, _)| *at)
    }

    /// Takes in all that another census knows: of what is in both, it is right.
    pub fn add_all(&mut self, newer: &Census) {
        self.segments.extend(&newer.segments);
        self.map_objects.extend(&newer.map_objects);
    }

    /// Notes that so many more blocks of a segment are in use, or fewer. A segment that is not counted is passed over.
    pub fn shift(&mut self, at: ObjectAt, blocks: i64) {
        if let Some(counted) = self.segments.get_mut(&at) {
            let live = i64::from(counted.live).saturating_add(blocks).clamp(0, i64::from(counted.units));
            counted.live = live as u32;
        }
    }

    /// Notes that nothing leads to a map object from the checkpoint on whose root is at `dead_at`.
    pub fn bury_map_object(&mut self, at: ObjectAt, dead_at: ObjectAt) {
        if let Some(counted) = self.map_objects.get_mut(&at) {
            counted.live = 0;
            counted.dead_at.get_or_insert(dead_at);
        }
    }

    /// Notes how many blocks a segment was found to have, and how many of them to be in use.
    pub fn set_live(&mut self, at: ObjectAt, blocks: u64, live: u64) {
        if let Some(counted) = self.segments.get_mut(&at) {
            counted.units = narrow(blocks);
            counted.live = narrow(live).min(counted.units);
        }
    }

    /// Notes that nothing leads to a segment from `dead_at` on.
    pub fn bury(&mut self, at: ObjectAt, dead_at: ObjectAt) {
        if let Some(counted) = self.segments.get_mut(&at) {
            counted.live = 0;
            counted.dead_at.get_or_insert(dead_at);
        }
    }

    /// Notes what a checkpoint has written, its root last, and let go of.
    pub fn note_checkpoint(&mut self, changes: &MapChanges) {
        for (at, bytes, live) in &changes.written {
            self.add_map_object(*at, u64::from(*bytes), u64::from(*live));
        }
        let Some((root, ..)) = changes.written.last() else { return };
        for (at, bytes) in &changes.released {
            if let Some(counted) = self.map_objects.get_mut(at) {
                counted.live = counted.live.saturating_sub(narrow(*bytes));
                if counted.live == 0 {
                    counted.dead_at.get_or_insert(*root);
                }
            }
        }
    }

    /// Takes out what a manifest has condemned.
    pub fn remove(&mut self, condemned: &Condemned) {
        for at in condemned.map_objects.iter().flat_map(|run| run.objects()) {
            self.map_objects.remove(&at);
        }
        for at in condemned.segments.iter().flat_map(|run| run.objects()) {
            self.segments.remove(&at);
        }
    }

    /// Bytes of the segments among these.
    pub fn segment_bytes(&self, condemned: &Condemned) -> u64 {
        let objects = condemned.segments.iter().flat_map(|run| run.objects());
        objects.filter_map(|at| self.segments.get(&at)).map(|counted| u64::from(counted.bytes)).sum()
    }

    /// Sums over the segments.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for counted in self.segments.values() {
            match counted.dead_at {
                Some(_) => totals.dead += u64::from(counted.bytes),
                None => {
                    totals.held += u64::from(counted.bytes);
                    totals.live += live_bytes(counted);
                }
            }
        }
        totals
    }

    /// Sums over the map objects: bytes of those that the newest checkpoint leads to, and of these the bytes to which it does.
    pub fn map_totals(&self) -> (u64, u64) {
        let held = self.map_objects.values().filter(|counted| counted.dead_at.is_none());
        held.fold((0, 0), |(bytes, live), counted| (bytes + u64::from(counted.bytes), live + u64::from(counted.live)))
    }
}

/// Bytes of a segment, as stored, that are in use, if its blocks were all alike.
pub(super) fn live_bytes(counted: &Counted) -> u64 {
    u64::from(counted.bytes) * u64::from(counted.live) / u64::from(counted.units.max(1))
}

/// Objects and their parts are far shorter than 4 GiB.
fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::census::ObjectRun;
    use crate::units::Epoch;

    fn at(number: u64) -> ObjectAt {
        ObjectAt { epoch: Epoch(1), number }
    }

    #[test]
    fn hints_stay_within_what_a_segment_has() {
        let mut census = Census::default();
        census.add_segment(at(0), 1000, 10, 10);
        census.shift(at(0), -3);
        census.shift(at(9), -3);
        assert_eq!(census.totals(), Totals { held: 1000, live: 700, dead: 0 });
        census.shift(at(0), -30);
        assert_eq!(census.totals().live, 0);
        census.shift(at(0), 99);
        assert_eq!(census.totals().live, 1000);
        census.bury(at(0), at(5));
        census.bury(at(0), at(8));
        assert_eq!(census.totals(), Totals { held: 0, live: 0, dead: 1000 });
        assert_eq!(census.segment(at(0)).unwrap().dead_at, Some(at(5)), "it was dead before");
        assert_eq!(Census::from_rows(census.rows()), census);
    }

    #[test]
    fn a_map_object_dies_with_the_checkpoint_that_does_without_it() {
        let mut census = Census::default();
        let first = MapChanges { written: vec![(at(0), 150, 100)], ..MapChanges::default() };
        census.note_checkpoint(&first);
        let released = BTreeMap::from([(at(0), 60)]);
        census.note_checkpoint(&MapChanges { written: vec![(at(1), 80, 60)], released });
        assert_eq!(census.map_totals(), (230, 100));
        let released = BTreeMap::from([(at(0), 40)]);
        census.note_checkpoint(&MapChanges { written: vec![(at(3), 60, 40)], released });
        assert_eq!(census.map_totals(), (140, 100));
        let dead: Vec<_> = census.map_objects().filter_map(|(at, counted)| Some((at, counted.dead_at?))).collect();
        assert_eq!(dead, [(at(0), at(3))]);
    }

    #[test]
    fn a_walk_over_the_segments_comes_round_and_passes_over_the_dead() {
        let mut census = Census::default();
        for number in [1, 4, 7] {
            census.add_segment(at(number), 10, 1, 1);
        }
        census.bury(at(4), at(8));
        assert_eq!(census.next_held(at(1)), Some(at(7)));
        assert_eq!(census.next_held(at(7)), Some(at(1)));
        let condemned =
            Condemned { segments: vec![ObjectRun { epoch: Epoch(1), first: 1, count: 9 }], map_objects: vec![] };
        assert_eq!(census.segment_bytes(&condemned), 30);
        census.remove(&condemned);
        assert_eq!(census.next_held(at(0)), None);
    }
}

//! Which dead objects may be deleted, given what a manifest says that somebody needs.
//!
//! A segment at `S` to which nothing leads from position `Q` on is needed
//! - by the newest map, as long as its checkpoint does not include `Q`;
//! - by recovery, as long as it replays it: it lies behind the checkpoint, or among what was inherited;
//! - by a pin at `P`, if `S < P < Q`, or if the pin's moment replays it over a checkpoint of its own;
//! - by the history that begins at `H`, if `H < Q`: some moment between may be gone back to.
//!
//! With map objects it is the same, a pin standing where the root of its checkpoint lies.

use std::sync::Arc;

use crate::clean::census::Census;
use crate::format::census::{Condemned, ObjectAt, ObjectRun, push_object};
use crate::format::lineage::{Moment, SegmentRun};
use crate::format::manifest::Manifest;
use crate::limits::CONDEMNED_MAX;
use crate::store::ObjectKey;
use crate::units::{SegmentId, SegmentNumber, VolumeId};
use crate::work::simulated::{self, Mutation};

/// Who needs what.
pub struct Needs {
    /// Where recovery begins.
    replay_from: ObjectAt,
    /// Where the history begins that can be gone back to.
    history_from: Option<ObjectAt>,
    /// Runs that somebody replays over a checkpoint, by their first.
    replayed: Vec<ObjectRun>,
    /// Positions that are pinned, in order.
    pins: Vec<ObjectAt>,
    /// Where the roots of their checkpoints lie, in order.
    roots: Vec<ObjectAt>,
}

impl Needs {
    /// What somebody needs once `manifest` is in force, moments that are `held` included.
    pub fn of(manifest: &Manifest, held: &[Arc<Moment>]) -> Self {
        let own = |run: &SegmentRun| {
            (run.volume == manifest.volume).then_some(ObjectRun {
                epoch: run.epoch,
                first: run.first.0,
                count: run.count,
            })
        };
        let pins = if simulated::has(Mutation::CleanPinned) { &[][..] } else { &manifest.pins[..] };
        let history = if simulated::has(Mutation::ForgetHistory) { &[][..] } else { &manifest.history[..] };
        let past = || history.iter().map(|past| &past.moment);
        let moments = || pins.iter().map(|pin| &pin.moment).chain(held.iter().map(|held| &**held)).chain(past());
        let replayed = moments().flat_map(|moment| &moment.replay).chain(&manifest.inherited);
        let mut replayed: Vec<ObjectRun> = replayed.filter_map(own).collect();
        replayed.sort_unstable_by_key(|run| (run.epoch, run.first));
        let mut positions: Vec<ObjectAt> = moments().map(|moment| moment.position.into()).collect();
        positions.sort_unstable();
        let roots = moments().filter_map(|moment| Some(moment.checkpoint?.root.object));
        let mut roots: Vec<ObjectAt> =
            roots.filter(|object| object.volume == manifest.volume).map(ObjectAt::from).collect();
        roots.sort_unstable();
        let history_from = past().next().map(|first| first.position.into());
        Needs { replay_from: manifest.replay_from.into(), history_from, replayed, pins: positions, roots }
    }

    fn segment(&self, at: ObjectAt, dead_at: ObjectAt) -> bool {
        let before = self.pins.partition_point(|pin| *pin <= at);
        let is_pinned = self.pins.get(before).is_some_and(|pin| *pin < dead_at);
        let is_new = at >= self.replay_from || dead_at > self.replay_from;
        let is_past = self.history_from.is_some_and(|from| from < dead_at);
        is_new || is_past || is_pinned || self.is_replayed(at)
    }

    /// True if somebody replays this segment over a checkpoint that is not the newest.
    pub fn is_replayed(&self, at: ObjectAt) -> bool {
        // Runs of different moments may overlap, but are few.
        let end = self.replayed.partition_point(|run| (run.epoch, run.first) <= (at.epoch, at.number));
        self.replayed[..end].iter().any(|run| run.epoch == at.epoch && at.number < run.first + run.count)
    }

    fn map_object(&self, at: ObjectAt, dead_at: ObjectAt) -> bool {
        let before = self.roots.partition_point(|root| *root < at);
        self.roots.get(before).is_some_and(|root| *root < dead_at)
    }
}

/// The dead objects that nobody needs any more once `manifest` is in force, and that no moment which is `held` needs; no more than a
/// manifest names.
pub fn condemn(census: &Census, manifest: &Manifest, held: &[Arc<Moment>]) -> Condemned {
    let needs = Needs::of(manifest, held);
    let mut condemned = Condemned::default();
    let mut room = CONDEMNED_MAX.saturating_sub(manifest.condemned.count()) as usize;
    let segments =
        census.segments().filter(|(at, counted)| counted.dead_at.is_some_and(|dead| !needs.segment(*at, dead)));
    for (at, _) in segments.take(room) {
        push_object(&mut condemned.segments, at);
        room -= 1;
    }
    let maps =
        census.map_objects().filter(|(at, counted)| counted.dead_at.is_some_and(|dead| !needs.map_object(*at, dead)));
    for (at, _) in maps.take(room) {
        push_object(&mut condemned.map_objects, at);
    }
    condemned
}

/// Adds to what a manifest condemns objects of this census.
pub fn note_condemned(manifest: &mut Manifest, census: &Census, dead: Condemned) {
    let freed = census.segment_bytes(&dead);
    manifest.stored_bytes.0 = manifest.stored_bytes.0.saturating_sub(freed);
    manifest.condemned.segments.extend(dead.segments);
    manifest.condemned.map_objects.extend(dead.map_objects);
}

/// The objects of `volume` that are condemned, by name.
pub fn keys(volume: VolumeId, condemned: &Condemned) -> Vec<ObjectKey> {
    let segments = condemned.segments.iter().flat_map(|run| run.objects());
    let segments = segments.map(|at| SegmentId { volume, epoch: at.epoch, number: SegmentNumber(at.number) });
    let maps = condemned.map_objects.iter().flat_map(|run| run.objects());
    let maps = maps.map(|at| ObjectKey::map_object(volume, at.epoch, at.number));
    segments.map(ObjectKey::segment).chain(maps).collect()
}

/// Bytes of the dead segments that nobody would need once `manifest` were in force, apart from moments that are held.
pub fn condemnable_bytes(census: &Census, manifest: &Manifest) -> u64 {
    let needs = Needs::of(manifest, &[]);
    let dead = census.segments().filter_map(|(at, counted)| Some((at, counted.dead_at?, counted.bytes)));
    dead.filter(|(at, dead_at, _)| !needs.segment(*at, *dead_at)).map(|(_, _, bytes)| u64::from(bytes)).sum()
}

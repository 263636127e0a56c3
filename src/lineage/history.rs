//! A volume's past: which moments of it can be gone back to.
//!
//! Nothing is written for it but a line in the manifest with each checkpoint. Segments never change, so a moment of the past is a checkpoint
//! of then, and the segments that followed until then. The cleaner keeps what the window needs (`clean/condemn.rs`).
//!
//! Wall clocks decide how long, and which moment is meant. A clock that was put back makes moments of the future; these count as now.

use std::time::{Duration, UNIX_EPOCH};

use futures_util::stream::{self, StreamExt};

use crate::error::{Error, Result};
use crate::format::lineage::{Moment, PastMoment, REPLAY_SEGMENTS_MAX, count_segments, push_segment};
use crate::format::manifest::{Manifest, Position};
use crate::lineage::current::segments_from;
use crate::segment::fetch_index;
use crate::store::Store;
use crate::units::{SegmentId, SegmentNumber, UnixMillis};

/// Moments that a manifest keeps. Between two of them segments are replayed, so with fewer going back takes longer, and with more every
/// change of the manifest.
const PAST_MOMENTS_MAX: usize = 64;
/// Indexes fetched at the same time.
const FETCHES_AT_ONCE: usize = 32;

/// Notes that what the manifest leads to is the present, and lets go of what lies behind the window.
pub fn note_present(manifest: &mut Manifest, now: UnixMillis) {
    note(manifest, now, false);
}

/// As [`note_present`], where the present does not follow from what was before.
pub fn note_jump(manifest: &mut Manifest, now: UnixMillis) {
    note(manifest, now, true);
}

fn note(manifest: &mut Manifest, now: UnixMillis, is_jump: bool) {
    for past in &mut manifest.history {
        past.at = past.at.min(now);
    }
    let moment = manifest.moment();
    let is_new = manifest.history.last().is_none_or(|last| last.moment.position < moment.position);
    if is_new && manifest.history_seconds > 0 {
        manifest.history.push(PastMoment { at: now, moment, is_jump, seal: None });
    }
    forget_past(manifest, now);
    while manifest.history.len() > PAST_MOMENTS_MAX {
        // Of those in between, the one without which the least has to be replayed. A jump cannot be reached by replaying.
        let history = &manifest.history;
        let gap = |at: &usize| history[at + 1].moment.sequence.0.saturating_sub(history[at - 1].moment.sequence.0);
        let spare =
            (1..history.len() - 1).filter(|at| !history[*at].is_jump && !history[at + 1].is_jump).min_by_key(gap);
        manifest.history.remove(spare.unwrap_or(0));
    }
}

/// Lets go of what lies behind the window: the newest moment that is as old as the window, or older, is the first that is kept.
pub fn forget_past(manifest: &mut Manifest, now: UnixMillis) {
    if manifest.history_seconds == 0 {
        manifest.history.clear();
        return;
    }
    let since = window_start(manifest, now);
    let behind = manifest.history.iter().rposition(|past| past.at <= since).unwrap_or(0);
    manifest.history.drain(..behind);
}

fn window_start(manifest: &Manifest, now: UnixMillis) -> UnixMillis {
    UnixMillis(now.0.saturating_sub(manifest.history_seconds.saturating_mul(1000)))
}

fn written(time: UnixMillis) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(time.0)).to_string()
}

/// The oldest time that the volume can go back to, if any.
pub fn reaches_back_to(manifest: &Manifest, now: UnixMillis) -> Option<UnixMillis> {
    let first = manifest.history.first()?;
    Some(first.at.max(window_start(manifest, now)))
}

/// The moment of the past from which the content at `time` is found by replaying what follows.
///
/// # Errors
/// `Invalid` if the volume cannot go back to `time`, saying to which it can.
pub fn past_before(manifest: &Manifest, time: UnixMillis, now: UnixMillis) -> Result<&PastMoment> {
    let id = manifest.volume;
    let Some(since) = reaches_back_to(manifest, now) else {
        return Err(Error::invalid(format!(
            "volume {id} keeps no history to go back to: 'varve volumes update {id} --history 24h' has it keep one from now on"
        )));
    };
    if time > now {
        return Err(Error::invalid(format!("{} lies in the future: a volume can only go back", written(time))));
    }
    let past = manifest.history.iter().rfind(|past| past.at <= time).filter(|_| time >= since);
    past.ok_or_else(|| {
        Error::invalid(format!(
            "volume {id} can go back to any moment since {}, and not to {}: what came before is not kept",
            written(since),
            written(time)
        ))
    })
}

/// The content of a volume at `time`: that of the last segment that was closed by then. A listing of what follows `past`, which is what
/// [`past_before`] says, and one request for each segment up to then.
///
/// # Errors
/// `Damaged` if a segment is missing; `Invalid` if there are more than a manifest may name; what the store says.
pub async fn moment_at(store: &dyn Store, manifest: &Manifest, past: &PastMoment, time: UnixMillis) -> Result<Moment> {
    let mut moment = past.moment.clone();
    // The next moment is of a later time, so what is wanted lies before it.
    let next = manifest.history.iter().find(|other| other.moment.position > past.moment.position);
    let end = next.map(|next| next.moment.position);
    // Of a volume that grew meanwhile nobody knows when; what lies behind its end then reads as zero.
    moment.size = next.map_or(manifest.size, |next| next.moment.size);
    for (epoch, ids) in segments_from(store, manifest.volume, past.moment.position).await? {
        let is_before_end = |position: Position| end.is_none_or(|end| position < end);
        let first = ids.first().map_or(SegmentNumber(0), |id| id.number);
        if !is_before_end(Position { epoch, number: first }) {
            break;
        }
        let ids = ids.into_iter().filter(|id| is_before_end(Position { epoch: id.epoch, number: id.number }));
        let mut is_sealed = false;
        let mut indexes = stream::iter(ids.map(|id| fetch_index(store, id))).buffered(FETCHES_AT_ONCE);
        while let Some(index) = indexes.next().await {
            let header = index?.header;
            if header.created_at > time {
                return Ok(moment);
            }
            // What lies behind a seal was put by an owner that had been put out.
            is_sealed = header.seal;
            if is_sealed {
                break;
            }
            moment.sequence = moment.sequence.max(header.last);
            moment.position = Position { epoch, number: header.id.number.next() };
            push_segment(&mut moment.replay, header.id);
            if count_segments(&moment.replay) > REPLAY_SEGMENTS_MAX {
                return Err(Error::invalid(format!(
                    "volume {} cannot go back to {}: too much was written between the moments that it kept around it; it can go back to {}, and to \
                     what was written soon after that",
                    manifest.volume,
                    written(time),
                    written(past.at)
                )));
            }
        }
        if !is_sealed && end.is_some_and(|end| moment.position < end) {
            let missing = SegmentId { volume: manifest.volume, epoch, number: moment.position.number };
            return Err(Error::damaged(format!("segment {missing}, which the history needs, is missing in the store")));
        }
    }
    Ok(moment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::format::lineage::SegmentRun;
    use crate::format::segment::SegmentHeader;
    use crate::segment::SegmentBuilder;
    use crate::store::{Condition, MemoryStore, ObjectKey};
    use crate::units::{BlockCount, BlockRange, ByteLen, Epoch, Lba, Sequence, Token, VolumeId};

    const SECOND: u64 = 1000;

    /// A volume that keeps an hour of its past, at its beginning.
    fn begun() -> Manifest {
        let first = Manifest::first(VolumeId(1), "disk".into(), ByteLen(1 << 30), UnixMillis(0), Token(1));
        let mut manifest = Manifest { history_seconds: 3600, ..first };
        note_present(&mut manifest, UnixMillis(0));
        manifest
    }

    /// A checkpoint at this segment, after so many seconds and writes.
    fn checkpoint(manifest: &mut Manifest, number: u64, seconds: u64, writes: u64) {
        manifest.replay_from = Position { epoch: Epoch(1), number: SegmentNumber(number) };
        manifest.sequence = Sequence(writes);
        note_present(manifest, UnixMillis(seconds * SECOND));
    }

    fn numbers(manifest: &Manifest) -> Vec<u64> {
        manifest.history.iter().map(|past| past.moment.position.number.0).collect()
    }

    fn found(manifest: &Manifest, seconds: u64, now: u64) -> Result<u64> {
        let past = past_before(manifest, UnixMillis(seconds * SECOND), UnixMillis(now * SECOND));
        past.map(|past| past.moment.position.number.0)
    }

    #[test]
    fn the_newest_moment_before_a_time_leads_to_it_within_the_window() {
        let mut manifest = begun();
        for number in 1..=4 {
            checkpoint(&mut manifest, number, number * 1000, number * 10);
        }
        assert_eq!(numbers(&manifest), [0, 1, 2, 3, 4], "from 400 s on is the window, and the first leads there");
        for (seconds, expected) in [(400, 0), (999, 0), (1000, 1), (2500, 2), (4000, 4)] {
            assert_eq!(found(&manifest, seconds, 4000).ok(), Some(expected), "{seconds}");
        }
        for (seconds, part) in [(399, "since 1970-01-01T00:06:40"), (4001, "future")] {
            let error = found(&manifest, seconds, 4000).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.message().contains(part), "{error}");
        }
        checkpoint(&mut manifest, 5, 6000, 50);
        assert_eq!(numbers(&manifest), [2, 3, 4, 5], "2400 s is between the second and the third");
        manifest.history_seconds = 0;
        checkpoint(&mut manifest, 6, 6001, 60);
        assert!(manifest.history.is_empty());
        assert!(found(&manifest, 6000, 6001).unwrap_err().message().contains("--history"));
    }

    #[test]
    fn of_many_moments_those_stay_between_which_most_was_written() {
        let mut manifest = begun();
        for number in 1..=200 {
            let writes = if number <= 150 { number } else { number * 1000 };
            checkpoint(&mut manifest, number, number, writes);
        }
        let numbers = numbers(&manifest);
        assert_eq!(numbers.len(), PAST_MOMENTS_MAX);
        assert!(numbers.is_sorted() && numbers[0] == 0, "{numbers:?}");
        assert!((152..=200).all(|number| numbers.contains(&number)), "{numbers:?}");
    }

    #[test]
    fn what_was_rolled_back_to_is_reached_by_itself_alone() {
        let mut manifest = begun();
        for number in 1..=200 {
            manifest.replay_from = Position { epoch: Epoch(number), number: SegmentNumber(0) };
            match number {
                70 => note_jump(&mut manifest, UnixMillis(70)),
                _ => note_present(&mut manifest, UnixMillis(u64::from(number))),
            }
        }
        let at = manifest.history.iter().position(|past| past.is_jump).expect("it stays");
        let epochs: Vec<u32> = manifest.history.iter().map(|past| past.moment.position.epoch.0).collect();
        assert_eq!(epochs[at - 1..=at], [69, 70], "what was before it is reached from the one before");
    }

    #[test]
    fn a_clock_that_was_put_back_makes_no_future() {
        let mut manifest = begun();
        checkpoint(&mut manifest, 1, 9_000_000, 1);
        checkpoint(&mut manifest, 2, 100, 2);
        let times: Vec<u64> = manifest.history.iter().map(|past| past.at.0 / SECOND).collect();
        assert_eq!(times, [0, 100, 100], "what was the future is now");
        checkpoint(&mut manifest, 3, 3800, 3);
        assert_eq!(numbers(&manifest), [2, 3]);
    }

    #[tokio::test]
    async fn a_moment_that_nobody_could_name_is_refused() {
        let store = MemoryStore::new();
        let id = SegmentId { volume: VolumeId(1), epoch: Epoch(1), number: SegmentNumber(1 << 20) };
        let created_at = UnixMillis(5);
        let header = SegmentHeader {
            id,
            token: Token(1),
            first: Sequence(1),
            last: Sequence(1),
            created_at,
            seal: false,
            salt: None,
        };
        let mut builder = SegmentBuilder::new(header, BlockCount(1), None);
        builder.push_zero(BlockRange::new(Lba(0), BlockCount(1)));
        store.put(&ObjectKey::segment(id), builder.finish().unwrap().bytes, Condition::IfAbsent).await.unwrap();
        let mut manifest = begun();
        manifest.epoch = Epoch(1);
        for (count, is_refused) in [(REPLAY_SEGMENTS_MAX - 1, false), (REPLAY_SEGMENTS_MAX, true)] {
            let run = SegmentRun { volume: id.volume, epoch: Epoch(0), first: SegmentNumber(0), count };
            let position = Position { epoch: id.epoch, number: id.number };
            let moment = Moment { position, replay: vec![run], ..manifest.moment() };
            let past = PastMoment { moment, ..manifest.history[0].clone() };
            let found = moment_at(&store, &manifest, &past, created_at).await;
            assert_eq!(found.as_ref().err().map(Error::kind), is_refused.then_some(ErrorKind::Invalid), "{found:?}");
        }
    }
}

//! Finding what follows a checkpoint, by name, and sealing the epochs that are over.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::Position;
use crate::format::segment::{SegmentHeader, SegmentIndex};
use crate::limits::UPLOADS_AT_ONCE;
use crate::segment::{build_seal, fetch_index};
use crate::store::{Condition, ObjectKey, Store, StoreErrorKind};
use crate::units::{Epoch, SegmentId, SegmentNumber, Sequence, Token, VolumeId};

/// Indexes of an epoch asked for in the first round; each further round asks for four times as many.
const FIRST_WINDOW: u64 = 28;
const WINDOW_MAX: u64 = 512;
/// Epochs looked at together: a host that was restarted often leaves many behind, with little in each.
const EPOCHS_AT_ONCE: u32 = 16;

/// What the store holds of a volume behind its checkpoint.
#[derive(Clone, Debug)]
pub struct History {
    /// The segments in the order in which they take effect.
    pub segments: Vec<Arc<SegmentIndex>>,
    /// The last place of the sequence that is in the store.
    pub last: Sequence,
}

/// Walks the history from `from` to the end of the epoch before `mine`, sealing every epoch that is over.
/// `base` is the place in the sequence that `from` follows.
///
/// # Errors
/// `Damaged` if the segments do not follow each other, and what the store says.
pub async fn discover(
    store: &dyn Store,
    volume: VolumeId,
    from: Position,
    mine: Epoch,
    token: Token,
    base: Sequence,
) -> Result<History> {
    let mut history = History { segments: Vec::new(), last: base };
    let mut next = from;
    while next.epoch < mine {
        let count = (mine.0 - next.epoch.0).min(EPOCHS_AT_ONCE);
        for step in look_ahead(store, volume, next, count).await {
            walk_epoch(store, step, token, &mut history).await?;
        }
        next = Position { epoch: Epoch(next.epoch.0 + count), number: SegmentNumber(0) };
    }
    Ok(history)
}

/// What there is of one epoch, from `first` on.
struct Seen {
    first: SegmentId,
    found: Vec<Result<SegmentIndex>>,
}

impl Seen {
    /// True if the end was found, and it was looked far enough behind it to tell it from a loss.
    fn is_ended(&self) -> bool {
        let end = self.found.iter().position(|index| index.as_ref().map_or(true, |index| index.header.seal));
        end.is_some_and(|end| self.found[end].is_ok() || self.found.len() > end + UPLOADS_AT_ONCE)
    }

    /// True if what is behind the free place `hole` could not be there had nothing ever been at that place: a segment whose upload
    /// began when the one at that place had taken effect, or a seal.
    fn proves_loss(&self, hole: usize) -> bool {
        let mut behind = self.found.iter().enumerate().skip(hole + 1);
        behind.any(|(at, index)| index.as_ref().is_ok_and(|index| index.header.seal || at - hole >= UPLOADS_AT_ONCE))
    }
}

/// Fetches the indexes of `count` epochs, of all at the same time: as many round trips as the longest takes.
async fn look_ahead(store: &dyn Store, volume: VolumeId, from: Position, count: u32) -> Vec<Seen> {
    let mut epochs: Vec<Seen> = (0..count)
        .map(|step| {
            let number = if step == 0 { from.number } else { SegmentNumber(0) };
            let first = SegmentId { volume, epoch: Epoch(from.epoch.0 + step), number };
            Seen { first, found: Vec::new() }
        })
        .collect();
    let mut window = FIRST_WINDOW;
    while epochs.iter().any(|seen| !seen.is_ended()) {
        let fetches = epochs.iter_mut().filter(|seen| !seen.is_ended()).map(|seen| async move {
            let start = seen.first.number.0 + seen.found.len() as u64;
            let ids = (start..start + window).map(|number| SegmentId { number: SegmentNumber(number), ..seen.first });
            seen.found.extend(join_all(ids.map(|id| fetch_index(store, id))).await);
        });
        join_all(fetches).await;
        window = (window * 4).min(WINDOW_MAX);
    }
    epochs
}

/// Takes the segments of an epoch into the history, and seals it behind the last of them if nobody has.
async fn walk_epoch(store: &dyn Store, seen: Seen, token: Token, history: &mut History) -> Result<()> {
    let mut id = seen.first;
    for at in 0.. {
        let index = match seen.found.get(at) {
            Some(Err(error)) if error.kind() != ErrorKind::NotFound => return Err(error.clone()),
            Some(Ok(index)) => index.clone(),
            // Nothing was there when we looked, but there must be: the old owner may have gone on while we did.
            _ if seen.proves_loss(at) => fetch_index(store, id).await.map_err(|error| lost(id, error))?,
            // Nothing was there when we looked, or we did not look that far.
            _ => match seal_epoch(store, id, token, history.last).await? {
                Sealing::Sealed => return Ok(()),
                // The old owner was faster by a hair: its segment counts.
                Sealing::Occupied => {
                    tracing::debug!(segment = %id, "the old owner was faster, or another claimant");
                    fetch_index(store, id).await?
                }
            },
        };
        if index.header.seal {
            return Ok(());
        }
        // What cleaning has moved holds no place of the sequence: its last is the one before its first.
        if index.header.first != history.last.next() || index.header.last < history.last {
            return Err(Error::damaged(format!(
                "segment {id} holds places {} to {} of the sequence where {} should follow",
                index.header.first,
                index.header.last,
                history.last.next()
            )));
        }
        history.last = index.header.last;
        history.segments.push(Arc::new(index));
        id.number = id.number.next();
    }
    Ok(())
}

/// The error for a segment that is not there, though the store shows that it was. To take the place for the end of the history would lose
/// everything behind it without a word.
fn lost(id: SegmentId, error: Error) -> Error {
    if error.kind() != ErrorKind::NotFound {
        return error;
    }
    Error::damaged(format!(
        "segment {id} is missing in the store, though what was stored after it is there: bring the object back (an older version of the \
         bucket may have it), or go back to a snapshot with 'varve volumes create NAME --snapshot-id VS'"
    ))
}

/// Refuses an epoch that was just claimed if somebody has written in it: then the manifest that it was claimed in is an older one that was put
/// back. One request, which finds nothing otherwise.
///
/// # Errors
/// `Damaged`; `Fenced` if another host has ended the epoch already; what the store says.
pub async fn only_unused(store: &dyn Store, volume: VolumeId, epoch: Epoch) -> Result<()> {
    let first = SegmentId { volume, epoch, number: SegmentNumber(0) };
    match fetch_index(store, first).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(index) if index.header.seal => {
            let message = format!("volume {volume} was taken over by another host while it was attached here");
            Err(Error::new(ErrorKind::Fenced, message))
        }
        Ok(_) => Err(Error::damaged(format!(
            "the manifest of {volume} was put back to an older version: epoch {epoch} is new by it, and has segments. Put the newest version back, \
             then attach again"
        ))),
    }
}

/// How an attempt to seal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealing {
    /// The seal is in place, whoever put it there first with our token.
    Sealed,
    /// Something else has that name: a segment, or the seal of another claimant.
    Occupied,
}

/// Tries to put a seal at `id`, the first free place of its epoch; `last` is the last place of the sequence that the
/// epoch reached.
///
/// # Errors
/// What the store says.
pub async fn seal_epoch(store: &dyn Store, id: SegmentId, token: Token, last: Sequence) -> Result<Sealing> {
    let header =
        SegmentHeader { id, token, first: last.next(), last, created_at: clock::now(), seal: true, salt: None };
    let key = store.key_of(id.volume)?;
    match store.put(&ObjectKey::segment(id), build_seal(header, key.as_deref())?, Condition::IfAbsent).await {
        Ok(_) => Ok(Sealing::Sealed),
        Err(error) if error.kind == StoreErrorKind::PreconditionFailed => Ok(Sealing::Occupied),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::segment::SegmentBuilder;
    use crate::store::{ByteRange, Effect, Faults, Matching, MemoryStore, Operation};
    use crate::units::{BlockCount, BlockRange, Lba, UnixMillis};

    const VOLUME: VolumeId = VolumeId(7);

    fn id(number: u64) -> SegmentId {
        SegmentId { volume: VOLUME, epoch: Epoch(1), number: SegmentNumber(number) }
    }

    /// A segment of epoch 1 that holds this place of the sequence.
    fn segment(number: u64, place: u64) -> Bytes {
        let (place, token, created_at) = (Sequence(place), Token(1), UnixMillis(0));
        let header =
            SegmentHeader { id: id(number), token, first: place, last: place, created_at, seal: false, salt: None };
        let mut builder = SegmentBuilder::new(header, BlockCount(1), None);
        builder.push_zero(BlockRange::new(Lba(number), BlockCount(1)));
        builder.finish().unwrap().bytes
    }

    /// A store with these segments of epoch 1; each holds one place of the sequence.
    async fn store_of(numbers: impl IntoIterator<Item = u64>) -> MemoryStore {
        let store = MemoryStore::new();
        for number in numbers {
            let body = segment(number, number + 1);
            store.put(&ObjectKey::segment(id(number)), body, Condition::IfAbsent).await.unwrap();
        }
        store
    }

    async fn discovered(store: &dyn Store) -> Result<usize> {
        let from = Position { epoch: Epoch(1), number: SegmentNumber(0) };
        let history = discover(store, VOLUME, from, Epoch(2), Token(2), Sequence(0)).await?;
        Ok(history.segments.len())
    }

    #[tokio::test]
    async fn what_was_under_way_behind_a_hole_is_no_part_of_the_history() {
        // The last owner had four uploads under way, and the first of them never arrived.
        let store = store_of([0, 1, 2, 4, 5, 6]).await;
        assert_eq!(discovered(&store).await.unwrap(), 3);
        assert!(store.get(&ObjectKey::segment(id(3)), ByteRange::Full).await.is_ok(), "the hole is sealed");
        assert_eq!(discovered(&store).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_segment_that_is_gone_is_not_taken_for_the_end() {
        for (gone, count) in [(0, 5), (3, 8), (24, 40), (27, 32), (100, 130)] {
            let store = store_of((0..count).filter(|number| *number != gone)).await;
            let refused = discovered(&store).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Damaged, "{refused}");
            assert!(refused.to_string().contains(&id(gone).to_string()), "{refused}");
            let place = store.get(&ObjectKey::segment(id(gone)), ByteRange::Full).await;
            assert!(place.is_err(), "nothing was put in its place");
        }
    }

    #[tokio::test]
    async fn of_an_epoch_that_is_over_no_segment_may_be_missing() {
        let store = store_of(0..3).await;
        assert_eq!(discovered(&store).await.unwrap(), 3);
        store.delete(&ObjectKey::segment(id(1))).await.unwrap();
        assert_eq!(discovered(&store).await.unwrap_err().kind(), ErrorKind::Damaged);
    }

    #[tokio::test]
    async fn nothing_is_sealed_where_something_cannot_be_read() {
        let is_free = async |store: &MemoryStore, number| {
            store.get(&ObjectKey::segment(id(number)), ByteRange::Full).await.is_err()
        };
        for unreadable in [0, 2, 3, 6] {
            let store = Arc::new(store_of([0, 1, 2]).await);
            let faults = Faults::new();
            let wrapped = faults.wrap(store.clone());
            let matching = Matching::operation(Operation::Get).on(ObjectKey::segment(id(unreadable)).as_str());
            faults.inject(matching, Effect::FailBefore(StoreErrorKind::Unavailable), usize::MAX);
            let found = discovered(&*wrapped).await;
            if unreadable <= 3 {
                assert_eq!(found.unwrap_err().kind(), ErrorKind::Unavailable, "segment {unreadable}");
                assert!(is_free(&store, 3).await, "segment {unreadable}");
            } else {
                assert_eq!(found.unwrap(), 3, "what lies behind a free place cannot add to the history");
            }
        }
    }

    #[tokio::test]
    async fn what_does_not_follow_is_refused_and_not_sealed_over() {
        for (body, part) in [(segment(2, 5), "should follow"), (segment(2, 2), "should follow"), (segment(3, 3), "")] {
            let store = store_of([0, 1]).await;
            store.put(&ObjectKey::segment(id(2)), body, Condition::IfAbsent).await.unwrap();
            let refused = discovered(&store).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Damaged, "{refused}");
            assert!(
                refused.to_string().contains(&id(2).to_string()) && refused.to_string().contains(part),
                "{refused}"
            );
            assert!(store.get(&ObjectKey::segment(id(3)), ByteRange::Full).await.is_err(), "nothing is sealed");
        }
    }

    #[tokio::test]
    async fn a_seal_that_cannot_be_put_ends_the_attempt() {
        let store = Arc::new(store_of([0]).await);
        for (kind, expected) in [
            (StoreErrorKind::Denied, ErrorKind::Denied),
            (StoreErrorKind::Full, ErrorKind::Full),
            (StoreErrorKind::OutcomeUnknown, ErrorKind::Unavailable),
        ] {
            let faults = Faults::new();
            let wrapped = faults.wrap(store.clone());
            faults.inject(Matching::operation(Operation::Put), Effect::FailBefore(kind), 1);
            assert_eq!(discovered(&*wrapped).await.unwrap_err().kind(), expected);
        }
        assert_eq!(discovered(&*store).await.unwrap(), 1);
    }
}

//! Finding what follows a checkpoint, by name, and sealing the epochs that are over.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::Position;
use crate::format::segment::{SegmentHeader, SegmentIndex};
use crate::segment::{build_seal, fetch_index};
use crate::store::{Condition, ObjectKey, Store, StoreErrorKind};
use crate::units::{Epoch, SegmentId, SegmentNumber, Sequence, Token, VolumeId};

/// Indexes of an epoch asked for in the first round; each further round asks for four times as many.
const FIRST_WINDOW: u64 = 24;
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
    /// True if what was asked for last is not all there: nothing that counts comes behind it.
    fn is_ended(&self) -> bool {
        self.found.iter().any(|index| index.as_ref().map_or(true, |index| index.header.seal))
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
    let mut found = seen.found.into_iter();
    loop {
        let index = match found.next() {
            Some(Err(error)) if error.kind() != ErrorKind::NotFound => return Err(error),
            Some(Ok(index)) => index,
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
        if index.header.first != history.last.next() || index.header.last < index.header.first {
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
    let header = SegmentHeader { id, token, first: last.next(), last, created_at: clock::now(), seal: true };
    match store.put(&ObjectKey::segment(id), build_seal(header)?, Condition::IfAbsent).await {
        Ok(_) => Ok(Sealing::Sealed),
        Err(error) if error.kind == StoreErrorKind::PreconditionFailed => Ok(Sealing::Occupied),
        Err(error) => Err(error.into()),
    }
}

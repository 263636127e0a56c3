//! Finding what follows a checkpoint, by name, and sealing the epochs that are over.

use futures_util::future::join_all;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::Position;
use crate::format::segment::{SegmentHeader, SegmentIndex};
use crate::segment::{build_seal, fetch_index};
use crate::store::{Condition, ObjectKey, Store, StoreErrorKind};
use crate::units::{Epoch, SegmentId, SegmentNumber, Sequence, Token, VolumeId};

/// Indexes asked for at once in the first round; each further round asks for four times as many.
const FIRST_WINDOW: u64 = 24;
const WINDOW_MAX: u64 = 512;

/// What the store holds of a volume behind its checkpoint.
#[derive(Clone, Debug)]
pub struct History {
    /// The segments in the order in which they take effect.
    pub segments: Vec<SegmentIndex>,
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
    let mut epoch = from.epoch;
    let mut number = from.number;
    while epoch < mine {
        walk_epoch(store, volume, epoch, number, token, &mut history).await?;
        epoch = epoch.next();
        number = SegmentNumber(0);
    }
    Ok(history)
}

async fn walk_epoch(
    store: &dyn Store,
    volume: VolumeId,
    epoch: Epoch,
    first: SegmentNumber,
    token: Token,
    history: &mut History,
) -> Result<()> {
    let mut number = first;
    let mut window = FIRST_WINDOW;
    loop {
        let ids = (0..window).map(|step| SegmentId { volume, epoch, number: SegmentNumber(number.0 + step) });
        let fetched = join_all(ids.map(|id| async move { (id, fetch_index(store, id).await) })).await;
        for (id, index) in fetched {
            let index = match index {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    match seal_epoch(store, id, token, history.last).await? {
                        Sealing::Sealed => return Ok(()),
                        // The old owner was faster by a hair: its segment counts.
                        Sealing::Occupied => fetch_index(store, id).await?,
                    }
                }
                other => other?,
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
            history.segments.push(index);
            number = id.number.next();
        }
        window = (window * 4).min(WINDOW_MAX);
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

//! Writing checkpoints, and the orderly end of an attachment.
//!
//! Order: the changed pages go to the store; then all pages and the position to RocksDB, which is flushed; then the manifest is
//! swapped, and from then on recovery starts here. A crash in between leaves the old checkpoint in force, and pages in the
//! store that nothing names, under numbers of an epoch that is over.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::checkpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::Position;
use crate::ownership::{Sealing, seal_epoch};
use crate::units::{ByteLen, SegmentId, SegmentNumber, Sequence};
use crate::volume::core::Volume;
use crate::volume::local_state::LocalState;

impl Volume {
    /// Writes a checkpoint of everything that has taken effect, up to `sequence`; replay would go on with `next`. With `complete`
    /// the attachment ends with it.
    ///
    /// # Errors
    /// `Fenced`; what the store or RocksDB say. It may be tried again.
    pub(super) async fn write_checkpoint(&self, next: Position, sequence: Sequence, complete: bool) -> Result<()> {
        let changed = self.pages.changed();
        let base = self.pages.base();
        let mut number = self.next_map_object.load(Ordering::Acquire);
        let position = checkpoint::Position { epoch: next.epoch, number: next.number, sequence };
        let size = ByteLen(self.size_bytes());
        let written = checkpoint::write(
            self.shared.store.clone(),
            self.id,
            self.epoch,
            &mut number,
            &base,
            position,
            size,
            &changed,
            &self.pages,
        )
        .await;
        // A number that may have been used is never used again, also after an error.
        self.next_map_object.store(number, Ordering::Release);
        let (reference, checkpoint, _) = written?;
        self.pages.write_back()?;
        // The end of an attachment is the beginning of the next: its pages are of use to it.
        let replay_from = if complete { Position { epoch: self.epoch.next(), number: SegmentNumber(0) } } else { next };
        let state = LocalState { position: replay_from, sequence };
        self.shared.index.put_volume_state(self.id, &state.encode())?;
        let index = self.shared.index.clone();
        let flushed = self.shared.runtime.spawn_blocking(move || index.flush()).await;
        flushed.map_err(|_| Error::new(ErrorKind::Stopping, "the daemon is stopping"))??;
        let stored_bytes = self.newest.lock().stored_bytes;
        self.change_manifest(move |manifest| {
            manifest.checkpoint = Some(reference);
            manifest.replay_from = replay_from;
            manifest.inherited.clear();
            manifest.sequence = sequence;
            manifest.stored_bytes = stored_bytes;
            if complete {
                manifest.owner = None;
                manifest.complete = true;
            }
            Ok(())
        })
        .await?;
        self.pages.rebase(Arc::new(checkpoint));
        self.note_checkpoint(reference);
        Ok(())
    }

    /// Ends the attachment once everything is uploaded: seals its epoch, writes the last checkpoint and hands the volume back.
    ///
    /// # Errors
    /// As [`Volume::write_checkpoint`], and `Io` if not everything is uploaded. It may be tried again.
    pub(super) async fn hand_back(&self) -> Result<()> {
        let (stored, accepted) = {
            let progress = self.progress.lock();
            (progress.stored(), progress.accepted())
        };
        if stored.sequence < accepted.sequence {
            return Err(Error::new(
                ErrorKind::Io,
                format!(
                    "only {} of {} writes of volume {} are in the store",
                    stored.sequence, accepted.sequence, self.id
                ),
            ));
        }
        let number = SegmentNumber(self.next_segment.load(Ordering::Acquire));
        let id = SegmentId { volume: self.id, epoch: self.epoch, number };
        if seal_epoch(&*self.shared.store, id, self.token, stored.sequence).await? == Sealing::Occupied {
            let seal = crate::segment::fetch_index(&*self.shared.store, id).await?;
            if seal.header.token != self.token {
                let error = self.fenced(&format!("segment {id} is the seal of another"));
                self.fail(&error);
                return Err(error);
            }
        }
        let next = Position { epoch: self.epoch, number };
        self.write_checkpoint(next, stored.sequence, true).await
    }
}

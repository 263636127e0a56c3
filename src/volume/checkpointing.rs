//! Writing checkpoints, and the orderly end of an attachment.
//!
//! Order: the changed pages go to the store; then all pages and the position to RocksDB, which is flushed; then the manifest is
//! swapped, and from then on recovery starts here. A crash in between leaves the old checkpoint in force, and pages in the
//! store that nothing names, under numbers of an epoch that is over.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::checkpoint::{self, NewCheckpoint, Written};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::census::{MapChanges, ObjectAt};
use crate::format::manifest::Position;
use crate::lineage;
use crate::ownership::{Sealing, seal_epoch};
use crate::units::{ByteLen, SegmentId, SegmentNumber, Sequence};
use crate::volume::cleaning::Sorting;
use crate::volume::core::Volume;
use crate::volume::local_state::LocalState;
use crate::volume::pages::{OnDamage, PagesToWrite};

impl Volume {
    /// Writes a checkpoint of everything that has taken effect, up to `sequence`; replay would go on with `next`. With `complete`
    /// the attachment ends with it.
    ///
    /// # Errors
    /// `Fenced`; what the store or RocksDB say. It may be tried again.
    pub(super) async fn write_checkpoint(&self, next: Position, sequence: Sequence, complete: bool) -> Result<()> {
        let _alone = self.checkpointing.lock().await;
        self.read_books().await?;
        let position = checkpoint::Position { epoch: next.epoch, number: next.number, sequence };
        let (written, sorting) = self.despite_damage(|on_damage| self.write_map(position, on_damage)).await?;
        self.pages.write_back()?;
        // The end of an attachment is the beginning of the next: its pages are of use to it.
        let replay_from = if complete { Position { epoch: self.epoch.next(), number: SegmentNumber(0) } } else { next };
        let state = LocalState { position: replay_from, sequence };
        self.shared.index.put_volume_state(self.id, &state.encode())?;
        let index = self.shared.index.clone();
        let flushed = self.shared.runtime.spawn_blocking(move || index.flush()).await;
        flushed.map_err(|_| Error::new(ErrorKind::Stopping, "the daemon is stopping"))??;
        let stored_bytes = self.newest.lock().stored_bytes;
        let manifest = self.swap_manifest(complete, |manifest| {
            manifest.checkpoint = Some(written.reference);
            manifest.replay_from = replay_from;
            manifest.inherited.clear();
            manifest.sequence = sequence;
            manifest.stored_bytes = stored_bytes;
            lineage::note_present(manifest, clock::now());
            if let Some(sorting) = &sorting {
                sorting.condemn(manifest, &written.census, &self.books.lock());
            }
            if complete {
                manifest.owner = None;
                manifest.complete = true;
            }
            Ok(())
        });
        let manifest = match manifest.await {
            Ok(manifest) => manifest,
            Err(error) => {
                let number = self.next_map_object.load(Ordering::Acquire);
                self.books.lock().note_abandoned(&written.changes, ObjectAt { epoch: self.epoch, number });
                return Err(error);
            }
        };
        self.books.lock().note_checkpoint(&written.changes, &manifest.condemned);
        self.pages.rebase(Arc::new(written.checkpoint));
        self.note_checkpoint(written.reference, manifest.stored_bytes);
        if !manifest.condemned.is_empty() {
            self.clean_wake.notify_one();
        }
        Ok(())
    }

    /// Writes the map of a position to the store, and what the census says with it.
    async fn write_map(
        &self,
        position: checkpoint::Position,
        on_damage: OnDamage,
    ) -> Result<(Written, Option<Sorting>)> {
        if on_damage != OnDamage::Fail {
            self.pages.give_up_directories(on_damage).await?;
        }
        let changed = self.pages.changed();
        let new = NewCheckpoint {
            volume: self.id,
            epoch: self.epoch,
            position,
            size: ByteLen(self.size_bytes()),
            changed: &changed,
            source: &PagesToWrite { pages: &self.pages, on_damage },
            replaced: self.newest.lock().checkpoint,
        };
        let base = self.pages.base();
        let mut number = self.next_map_object.load(Ordering::Acquire);
        let mut sorting = None;
        let mut take_census = |changes: &MapChanges| {
            let has_given_up = self.pages.has_given_up();
            let mut books = self.books.lock();
            if has_given_up {
                books.begin_audit();
            }
            sorting.insert(books.sorting(changes)).parts()
        };
        let written = checkpoint::write(&self.shared.store, &base, &mut number, new, &mut take_census).await;
        // A number that may have been used is never used again, also after an error.
        self.next_map_object.store(number, Ordering::Release);
        Ok((written?, sorting))
    }

    /// Ends the attachment once everything is uploaded: seals its epoch, writes the last checkpoint and hands the volume back.
    ///
    /// # Errors
    /// As [`Volume::write_checkpoint`], and `Io` if not everything is uploaded. It may be tried again.
    pub(crate) async fn hand_back(&self) -> Result<()> {
        let handed_back = self.seal_and_release().await;
        self.unless_put_out(handed_back).await
    }

    async fn seal_and_release(&self) -> Result<()> {
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
        self.write_checkpoint(next, stored.sequence, true).await?;
        // Whoever owns it next does what is left of this.
        if let Err(error) = self.delete_condemned().await {
            tracing::info!(volume = %self.id, %error, "what nobody needs any more is left to the next owner");
        }
        Ok(())
    }

    /// Writes a checkpoint for those who asked for one, if anybody did.
    pub(super) async fn write_asked_checkpoint(&self) -> Result<()> {
        let asked = std::mem::take(&mut *self.checkpoint_asked.lock());
        if asked.is_empty() {
            return Ok(());
        }
        let (next, sequence) = {
            let newest = self.newest.lock();
            (newest.position, newest.sequence)
        };
        let written =
            self.retry_while_unavailable("writing a checkpoint", || self.write_checkpoint(next, sequence, false)).await;
        match written {
            Ok(()) => {
                for sender in asked {
                    // Whoever asked may have gone away.
                    let _ = sender.send(());
                }
            }
            // They wait on until the gate says why nothing comes of it.
            Err(_) => self.checkpoint_asked.lock().extend(asked),
        }
        written
    }
}

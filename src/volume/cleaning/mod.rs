//! The cleaner of one volume: empties segments that are mostly dead, has the books put right, and deletes what nobody needs any more.
//!
//! What is copied from origins goes behind it ([`hydrate`]). One task for each attached volume, which sleeps while nothing is written; what a late owner left to be deleted waits for that, too. Order of effects for each segment that goes, and why:
//! 1. what is live in it was moved, and that has taken effect (or nothing in it was live): from here on the map does without it;
//! 2. a checkpoint includes that: from here on recovery does without it;
//! 3. the manifest of that checkpoint condemns it, unless a pin needs it: a pin that comes meanwhile makes the swap fail;
//! 4. only then it is deleted.
//!
//! Errors: a store that is away is asked again later. A segment that is damaged is left where it is, and named in the log.
//!
//! After a crash: what was condemned is deleted by the next owner; all else is as recovery finds it. `design/cleaning.md` argues why
//! this is enough.

mod aside;
mod books;
mod hydrate;
mod relocate;
mod survey;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::sync::oneshot;

use crate::clean::{self, Goal, condemnable_bytes};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::census::{Condemned, ObjectAt};
use crate::limits::SEGMENT_BYTES_TARGET;
use crate::lineage;
use crate::service::CleanReport;
use crate::store::ObjectKey;
use crate::units::{BLOCK_SIZE, ByteLen};
use crate::volume::core::Volume;
use crate::volume::fetch::segment_index;
use crate::work::simulated::{self, Mutation};

pub use books::{Books, Sorting};
pub use hydrate::Hydrating;
pub use relocate::Relocation;

/// Blocks moved at a time: bounds memory, and makes a whole segment.
const BLOCKS_AT_ONCE: u64 = SEGMENT_BYTES_TARGET / BLOCK_SIZE;
/// Segments looked at again for each step, after a crash.
const AUDITS_AT_ONCE: usize = 4;
/// Objects deleted at the same time.
const DELETES_AT_ONCE: usize = 8;
/// Pause between steps, in which what is written goes first; none when space runs away.
const BREATH: Duration = Duration::from_millis(500);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(15);
/// What a person asks for: everything that is worth it.
const THOROUGH: Goal = Goal { percent: 100, slack: 0, fullest: 95 };
/// Space that dead segments may take while they wait for a checkpoint, as a part of what is live.
const WAITING_PART: u64 = 20;
/// Segments may take so many hundredths of what the goal allows before the cleaner takes no more breath,
const URGENT: u64 = 125;
/// and so many before each segment of new writes waits for one of moved blocks. Such a step frees more than it and a run of writes take,
/// so whoever writes without pause cannot make space run away further.
const PRESSING: u64 = 150;

/// What a step of cleaning came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The goal is reached.
    Clean,
    /// There is more to do.
    More,
    /// There is, and no time to lose.
    Urgent,
    /// What is written has to wait for it.
    Pressing,
}

impl Step {
    /// What is to be done where segments take `held` bytes, and `allowed` are.
    fn after(held: u64, allowed: u64) -> Step {
        match held.saturating_mul(100) / allowed.max(1) {
            part if part > PRESSING => Step::Pressing,
            part if part > URGENT => Step::Urgent,
            _ => Step::More,
        }
    }
}

impl Volume {
    /// Runs until the attachment ends.
    pub(crate) async fn run_cleaner(self: Arc<Self>) {
        if self.is_hydrating.load(Ordering::Acquire) {
            self.clean_wake.notify_one();
        }
        loop {
            self.clean_wake.notified().await;
            loop {
                if self.gate.closed().is_some() {
                    return;
                }
                let step = match self.clean_step(self.shared.settings.cleaning).await {
                    Ok(Step::Clean) => self.hydrate_step().await,
                    other => other,
                };
                let step = self.unless_put_out(step).await;
                self.press(matches!(step, Ok(Step::Pressing)));
                match step {
                    Ok(Step::Clean) => break,
                    Ok(Step::More) => clock::sleep(BREATH).await,
                    Ok(Step::Urgent | Step::Pressing) => {}
                    Err(error) if error.kind() == ErrorKind::Fenced => return,
                    Err(error) => {
                        tracing::warn!(volume = %self.id, %error, "cleaning is put off");
                        clock::sleep(RETRY).await;
                        if error.is_damage() {
                            // That does not heal by itself: it is looked at again when something was written.
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Has new writes wait for cleaning, or not any more.
    fn press(&self, is_pressing: bool) {
        if self.is_cleaning_pressing.swap(is_pressing, Ordering::AcqRel) != is_pressing {
            tracing::debug!(volume = %self.id, is_pressing, "writes wait for cleaning");
            self.upload_wake.notify_one();
        }
    }

    /// Cleans all that is worth it now, and waits until what is dead is deleted, unless a pin needs it.
    ///
    /// # Errors
    /// `Damaged`; `Fenced`; what the store says.
    pub(crate) async fn clean_now(&self) -> Result<CleanReport> {
        self.pass_gate().await?;
        let cleaned = self.clean_thoroughly().await;
        self.unless_put_out(cleaned).await
    }

    async fn clean_thoroughly(&self) -> Result<CleanReport> {
        let before = self.newest.lock().stored_bytes.0;
        while self.clean_step(THOROUGH).await? != Step::Clean {}
        self.ask_for_checkpoint().await?;
        self.delete_condemned().await?;
        let totals = self.books.lock().census.totals();
        let stored = self.newest.lock().stored_bytes;
        Ok(CleanReport {
            freed: ByteLen(before.saturating_sub(stored.0)),
            stored,
            live: ByteLen(totals.live),
            pinned: ByteLen(totals.dead),
        })
    }

    async fn clean_step(&self, goal: Goal) -> Result<Step> {
        let _turn = self.cleaning.lock().await;
        self.read_books().await?;
        if !self.books.lock().are_whole() {
            self.survey().await?;
        }
        self.delete_condemned().await?;
        self.audit_some().await?;
        self.rewrite_maps().await?;
        let (chosen, totals) = {
            let books = self.books.lock();
            let is_barred = |at: ObjectAt| books.stuck.contains(&at);
            (clean::choose(&books.census, goal, BLOCKS_AT_ONCE, is_barred), books.census.totals())
        };
        if chosen.is_empty() {
            self.reclaim(goal, true).await?;
            return Ok(if self.books.lock().audit.is_over() { Step::Clean } else { Step::More });
        }
        self.empty_segments(&chosen).await?;
        self.reclaim(goal, false).await?;
        Ok(Step::after(totals.held, goal.allowed(totals.live)))
    }

    /// Moves what is live out of these segments, and notes that they are dead.
    async fn empty_segments(&self, chosen: &[ObjectAt]) -> Result<()> {
        // Of the whole daemon only one volume at a time has a segment's worth of blocks in memory for this.
        let _room = self.shared.cleaners.acquire().await.map_err(|_| Error::new(ErrorKind::Stopping, "stopping"))?;
        let (mut relocation, mut emptied) = (Relocation::default(), Vec::new());
        for &at in chosen {
            if relocation.blocks() >= BLOCKS_AT_ONCE {
                break;
            }
            match self.gather_live(at, &mut relocation).await {
                Ok(()) => emptied.push(at),
                Err(error) if error.kind() == ErrorKind::Damaged => {
                    self.confirm_ownership().await?;
                    tracing::error!(volume = %self.id, %error, "a segment cannot be emptied, and stays as it is");
                    self.books.lock().stuck.insert(at);
                }
                Err(error) => return Err(error),
            }
        }
        if relocation.blocks() > 0 {
            tracing::debug!(volume = %self.id, segments = emptied.len(), blocks = relocation.blocks(), "moving");
            self.relocate(relocation).await?;
        }
        // Whatever was live in them when they were gathered was moved or overwritten by now, and nothing comes to lie there again.
        let dead_at = self.dead_from();
        if simulated::has(Mutation::DeleteEarly) {
            for at in &emptied {
                self.shared.store.delete(&ObjectKey::segment(self.own_segment(*at))).await?;
            }
        }
        let mut books = self.books.lock();
        emptied.into_iter().for_each(|at| books.census.bury(at, dead_at));
        Ok(())
    }

    /// From here on, nothing leads to what a look at the map, made before this was asked, has not found there. A moment before it may.
    pub(super) fn dead_from(&self) -> ObjectAt {
        let mut at = ObjectAt::from(*self.shown_to.lock());
        // A snapshot of this very moment rests on the checkpoint of before, and may find what was given up whole again.
        at.number += u64::from(self.pages.has_given_up());
        at
    }

    /// Looks at some segments again, as long as the hints may be wrong.
    async fn audit_some(&self) -> Result<()> {
        for _ in 0..AUDITS_AT_ONCE {
            let next = {
                let mut books = self.books.lock();
                let Books { audit, census, .. } = &mut *books;
                audit.next(census)
            };
            let Some(look) = next else { return Ok(()) };
            self.look_again(look.at).await?;
            self.books.lock().audit.note_done(look);
        }
        Ok(())
    }

    /// Counts what of a segment is in use.
    async fn look_again(&self, at: ObjectAt) -> Result<()> {
        let before = self.books.lock().census.segment(at).map(|counted| counted.live);
        let index = match segment_index(&self.shared, self.own_segment(at)).await {
            Err(error) if error.kind() == ErrorKind::Damaged => {
                self.confirm_ownership().await?;
                self.books.lock().stuck.insert(at);
                return Ok(());
            }
            other => other?,
        };
        let places = match self.live_places(&index).await {
            // Nobody can say, until somebody writes where the block map is damaged.
            Err(error) if error.kind() == ErrorKind::Damaged => {
                self.confirm_ownership().await?;
                self.books.lock().stuck.insert(at);
                return Ok(());
            }
            places => places?,
        };
        let live: u64 = places.iter().map(|(range, _)| range.count.0).sum();
        let dead_at = self.dead_from();
        let mut books = self.books.lock();
        if live == 0 {
            books.census.bury(at, dead_at);
        } else if books.census.segment(at).map(|counted| counted.live) == before {
            books.census.set_live(at, index.block_count(), live);
        }
        Ok(())
    }

    /// Asks for a checkpoint if enough waits for one to be deleted, or anything worth it once there is nothing else to do.
    async fn reclaim(&self, goal: Goal, is_last: bool) -> Result<()> {
        let mut next = self.manifest.lock().await.manifest.clone();
        next.replay_from = self.newest.lock().position;
        next.inherited.clear();
        lineage::forget_past(&mut next, clock::now());
        let (waiting, live) = {
            let books = self.books.lock();
            (condemnable_bytes(&books.census, &next), books.census.totals().live)
        };
        let enough = if is_last { goal.slack / 4 } else { (live / WAITING_PART).max(goal.slack / 2) };
        if waiting > 0 && waiting >= enough {
            self.ask_for_checkpoint().await?;
            self.delete_condemned().await?;
        }
        Ok(())
    }

    /// Has the uploader write a checkpoint, and waits for it.
    async fn ask_for_checkpoint(&self) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.checkpoint_asked.lock().push(sender);
        self.upload_wake.notify_one();
        self.answered(receiver).await
    }

    /// Deletes what the manifest condemns. What is deleted already may be deleted again.
    ///
    /// # Errors
    /// What the store says; the rest is tried again.
    pub(in crate::volume) async fn delete_condemned(&self) -> Result<()> {
        let condemned = self.books.lock().condemned.clone();
        if condemned.is_empty() {
            return Ok(());
        }
        let store = &self.shared.store;
        let deletes = clean::keys(self.id, &condemned).into_iter();
        let deletes = deletes.map(|key| async move { store.delete(&key).await });
        let mut deletes = stream::iter(deletes).buffer_unordered(DELETES_AT_ONCE);
        while let Some(deleted) = deletes.next().await {
            deleted?;
        }
        for id in condemned.segments.iter().flat_map(|run| run.objects()).map(|at| self.own_segment(at)) {
            self.shared.segment_indexes.remove(&id);
            self.shared.index.delete_segment_index(id)?;
        }
        tracing::info!(volume = %self.id, objects = condemned.count(), "deleted what nobody needs any more");
        // Nothing else adds to it but a checkpoint, which would have replaced it as a whole.
        let mut books = self.books.lock();
        if books.condemned == condemned {
            books.condemned = Condemned::default();
        }
        Ok(())
    }
}

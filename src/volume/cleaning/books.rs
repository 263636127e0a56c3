//! The books of an attached volume: its census, in memory, between one checkpoint that keeps it and the next.
//!
//! Invariants: once they are whole, every object of the volume that a position before the newest one needs is in the census; what is dead
//! there is dead. How much of a segment is in use is a hint: exact as long as everything was counted, too high or too low after a crash,
//! until all segments have been looked at again.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use crate::checkpoint;
use crate::clean::{self, Audit, Census};
use crate::error::Result;
use crate::format::census::{Condemned, Making, MapChanges, ObjectAt, encode_rows};
use crate::format::lineage::Moment;
use crate::format::manifest::Manifest;
use crate::format::map_object::PageRef;
use crate::format::segment::SegmentIndex;
use crate::ownership::History;
use crate::volume::core::Volume;
use crate::volume::pages::Shifts;

/// How much of the census is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// What the checkpoint keeps was not read yet.
    Unread(Vec<PageRef>),
    /// Nobody knows what objects there are.
    Unknown,
    /// All of it.
    Whole,
}

/// What a volume knows of its objects.
pub struct Books {
    pub(in crate::volume) census: Census,
    state: State,
    /// The census began with a listing.
    is_listed: bool,
    /// Until it is over, the hints may be wrong.
    pub(super) audit: Audit,
    /// Segments that cannot be emptied, since they are damaged.
    pub(super) stuck: BTreeSet<ObjectAt>,
    /// What the manifest condemns and may still be there.
    pub(super) condemned: Condemned,
    /// Moments that are about to be pinned.
    held: Vec<Weak<Moment>>,
}

impl Books {
    /// The books at the beginning of an attachment.
    pub fn open(manifest: &Manifest, history: &History) -> Self {
        let state = match &manifest.census {
            None => State::Unknown,
            Some(parts) if parts.is_empty() => State::Whole,
            Some(parts) => State::Unread(parts.clone()),
        };
        let mut books = Books {
            census: Census::default(),
            state,
            is_listed: false,
            audit: Audit::over(),
            stuck: BTreeSet::new(),
            condemned: manifest.condemned.clone(),
            held: Vec::new(),
        };
        for index in &history.segments {
            // How much of it was overwritten since is found out when it is looked at.
            books.add(index, index.block_count());
        }
        if !history.segments.is_empty() {
            books.begin_audit();
        }
        books
    }

    /// Notes a segment that has taken effect, and what that did to others.
    pub fn note_segment(&mut self, index: &SegmentIndex, shifts: Shifts) {
        self.add(index, 0);
        self.audit.note_added();
        let volume = index.header.id.volume;
        for (id, blocks) in shifts.blocks.into_iter().filter(|(id, _)| id.volume == volume) {
            self.census.shift(id.into(), blocks);
        }
        if shifts.is_short {
            self.begin_audit();
        }
    }

    fn add(&mut self, index: &SegmentIndex, live: u64) {
        self.census.add_segment(index.header.id.into(), index.object_length, index.block_count(), live);
    }

    /// True if every object is in them.
    pub fn are_whole(&self) -> bool {
        self.state == State::Whole
    }

    /// Says that every object that a listing and the map have shown is in them now.
    pub fn make_whole(&mut self) {
        self.state = State::Whole;
        self.is_listed = true;
    }

    /// What a checkpoint with these changes says of the volume's objects.
    pub fn sorting(&self, changes: &MapChanges) -> Sorting {
        let mut census = self.are_whole().then(|| self.census.clone());
        if let Some(census) = &mut census {
            census.note_checkpoint(changes);
        }
        let making = Making { is_exact: self.audit.is_over(), is_listed: self.is_listed };
        Sorting { census, making }
    }

    /// Keeps what a moment needs for as long as anybody has what this returns.
    pub fn hold(&mut self, moment: Moment) -> Arc<Moment> {
        let held = Arc::new(moment);
        self.held.retain(|known| known.strong_count() > 0);
        self.held.push(Arc::downgrade(&held));
        held
    }

    /// Moments that are about to be pinned.
    pub fn held(&self) -> Vec<Arc<Moment>> {
        self.held.iter().filter_map(Weak::upgrade).collect()
    }

    /// Notes that a checkpoint is in force, with a manifest that condemns these objects.
    pub fn note_checkpoint(&mut self, changes: &MapChanges, condemned: &Condemned) {
        self.census.note_checkpoint(changes);
        self.census.remove(condemned);
        self.condemned = condemned.clone();
    }

    /// Notes what a checkpoint has written of which nobody can say whether it ever was in force. If it was, the history has it, and needs these
    /// objects for as long; so they are dead only from `next` on, the map object after them.
    pub fn note_abandoned(&mut self, changes: &MapChanges, next: ObjectAt) {
        for (at, bytes, _) in &changes.written {
            self.census.add_map_object(*at, u64::from(*bytes), 0);
            self.census.bury_map_object(*at, next);
        }
    }

    /// Begins to look at all segments again. How many that is, is known when all of the books has been read; somebody else may have done
    /// so while the one who asks for this could not.
    pub fn begin_audit(&mut self) {
        let held = self.census.segments().filter(|(_, counted)| counted.dead_at.is_none());
        let held = if self.are_whole() { held.count() } else { usize::MAX };
        self.audit.begin(held);
    }
}

/// What a new checkpoint says of the volume's objects.
pub struct Sorting {
    /// `None` if it is not known what objects there are.
    census: Option<Census>,
    making: Making,
}

impl Sorting {
    /// The census as the checkpoint keeps it; none if it is not known.
    pub fn parts(&self) -> Vec<Vec<u8>> {
        self.census.as_ref().map_or_else(Vec::new, |census| encode_rows(&census.rows(), self.making))
    }

    /// Puts into the checkpoint's manifest where its census is, and what nobody needs once it is in force; besides what is condemned and may
    /// still be there.
    pub fn condemn(&self, manifest: &mut Manifest, parts: &[PageRef], books: &Books) {
        manifest.condemned = books.condemned.clone();
        manifest.census = self.census.as_ref().map(|_| parts.to_vec());
        if let Some(census) = &self.census {
            let dead = clean::condemn(census, manifest, &books.held());
            clean::note_condemned(manifest, census, dead);
        }
    }
}

impl Volume {
    /// Notes a segment that has taken effect.
    pub(in crate::volume) async fn note_in_books(&self, index: &SegmentIndex) {
        let shifts = self.pages.take_shifts();
        if let Err(error) = self.read_books().await {
            tracing::info!(volume = %self.id, %error, "what objects the volume has is read later");
            self.books.lock().begin_audit();
        }
        self.books.lock().note_segment(index, shifts);
    }

    /// Sees to it that what the checkpoint keeps of the census is in memory. One request for most, once an attachment; none for a volume
    /// that is new. If that is damaged, nobody knows what objects there are, and the cleaner counts them.
    ///
    /// # Errors
    /// What the store says.
    pub(in crate::volume) async fn read_books(&self) -> Result<()> {
        let State::Unread(parts) = self.books.lock().state.clone() else { return Ok(()) };
        let read = checkpoint::read_census(&*self.shared.store, &parts).await;
        let (rows, making) = match self.unless_put_out(read).await {
            Err(error) if error.is_damage() => {
                tracing::error!(volume = %self.id, %error, "what the checkpoint says of the volume's objects is damaged: they are counted anew");
                let mut books = self.books.lock();
                if matches!(books.state, State::Unread(_)) {
                    books.state = State::Unknown;
                }
                return Ok(());
            }
            read => read?,
        };
        let mut books = self.books.lock();
        if !matches!(books.state, State::Unread(_)) {
            return Ok(());
        }
        let mut census = Census::from_rows(rows);
        // What was condemned with that checkpoint is still in its census.
        census.remove(&books.condemned);
        census.add_all(&books.census);
        books.census = census;
        books.state = State::Whole;
        books.is_listed = making.is_listed;
        if !books.audit.is_over() || !making.is_exact {
            books.begin_audit();
        }
        Ok(())
    }
}

//! Hydration: copying what a volume has of its origins into segments of its own, and letting go of the origin once nothing leads there any
//! more. The cleaner's task does it, behind cleaning.
//!
//! Order of effects, and why: blocks are moved as cleaning moves them, so that no newer write is undone; the map's own objects follow with a
//! checkpoint; one swap forgets the origins, unless a pin still needs them; only then the origin's pin goes.
//!
//! After a crash: what was moved leads to the volume's own segments, so the next walk passes it over. An origin that was forgotten and not
//! let go of is named in the manifest (`letting_go`). `design/regions.md` argues why this is enough.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::census::ObjectAt;
use crate::format::lineage::Moment;
use crate::format::manifest::{Hydration, Manifest, Origin};
use crate::limits::{DIRECTORY_PAGES, PAGE_BLOCKS};
use crate::lineage::{self, MapView};
use crate::map::{PageIndex, SegmentPlace};
use crate::ownership;
use crate::service::HydrationStatus;
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange, ByteLen, Lba, SegmentId, VolumeId};
use crate::volume::cleaning::relocate::Relocation;
use crate::volume::cleaning::{BLOCKS_AT_ONCE, Step};
use crate::volume::core::Volume;
use crate::volume::fetch::segment_index;
use crate::work::simulated::{self, Mutation};

/// How far hydration has come.
#[derive(Default)]
pub struct Hydrating {
    walk: Option<Walk>,
    /// True once the map leads to nothing of other volumes.
    is_copied: bool,
    /// The root of the checkpoint with which that began; `None` for an empty map.
    root: Option<ObjectAt>,
    /// Something of before needs the origins.
    waits: bool,
}

/// A walk over the map.
struct Walk {
    /// Where it goes on; `None` at its end.
    next: Option<PageIndex>,
    /// Blocks of other volumes that it began with, those that it has passed, and those that could not be read.
    total: u64,
    passed: u64,
    damaged: u64,
    /// When it began.
    since: Duration,
}

/// Blocks that lie in the segment of another volume.
type Foreign = BTreeMap<SegmentId, Vec<(BlockRange, SegmentPlace)>>;

impl Volume {
    /// Has the volume copy what it needs of its origins, and let go of them.
    ///
    /// # Errors
    /// `Invalid` if it has none; as for a change of the manifest.
    pub(crate) async fn hydrate(&self) -> Result<()> {
        self.change_manifest(|manifest| {
            if manifest.origins.is_empty() {
                return Err(Error::invalid(format!("volume {} has no origin: all that it needs is its own", self.id)));
            }
            manifest.hydration.get_or_insert(Hydration { since: clock::now() });
            Ok(())
        })
        .await?;
        // What it waited for may be gone.
        self.hydrating.lock().waits = false;
        self.is_hydrating.store(true, Ordering::Release);
        self.clean_wake.notify_one();
        Ok(())
    }

    /// How far that has come; `None` if it is not asked for, or done.
    pub(in crate::volume) fn hydration(&self) -> Option<HydrationStatus> {
        if !self.is_hydrating.load(Ordering::Acquire) {
            return None;
        }
        let hydrating = self.hydrating.lock();
        let status = HydrationStatus { waits_for_pins: hydrating.waits, ..HydrationStatus::default() };
        let Some(walk) = &hydrating.walk else { return Some(status) };
        let bytes = |blocks: u64| ByteLen(blocks * BLOCK_SIZE);
        let taken = clock::uptime().saturating_sub(walk.since).as_secs_f64();
        let seconds_left = (walk.passed > 0).then(|| taken * (walk.total - walk.passed) as f64 / walk.passed as f64);
        let (done, total, damaged) = (bytes(walk.passed), bytes(walk.total), bytes(walk.damaged));
        Some(HydrationStatus { done, total, damaged, seconds_left, ..status })
    }

    /// One step of it. `Clean` if there is nothing to do, or nothing can be done now.
    ///
    /// # Errors
    /// What RocksDB and the stores say.
    pub(super) async fn hydrate_step(&self) -> Result<Step> {
        let _turn = self.cleaning.lock().await;
        let (is_asked, late) = {
            let loaded = self.manifest.lock().await;
            (loaded.manifest.hydration.is_some(), loaded.manifest.letting_go.clone())
        };
        if let Some(late) = late {
            self.let_go_of(&late).await?;
        }
        self.is_hydrating.store(is_asked, Ordering::Release);
        if !is_asked {
            return Ok(Step::Clean);
        }
        let (is_copied, is_walking) = {
            let hydrating = self.hydrating.lock();
            (hydrating.is_copied, hydrating.walk.is_some())
        };
        if is_copied {
            return self.let_go_of_origins().await;
        }
        if is_walking {
            return self.copy_some().await;
        }
        let total = self.count_foreign().await?;
        if total == 0 || simulated::has(Mutation::LetGoEarly) {
            return self.finish_copying().await;
        }
        tracing::info!(volume = %self.id, blocks = total, "copying what the volume has of its origins");
        let (next, since) = (Some(PageIndex(0)), clock::uptime());
        self.hydrating.lock().walk = Some(Walk { next, total, passed: 0, damaged: 0, since });
        Ok(Step::More)
    }

    /// Copies the next blocks of the walk.
    async fn copy_some(&self) -> Result<Step> {
        let _room = self.shared.cleaners.acquire().await.map_err(|_| Error::new(ErrorKind::Stopping, "stopping"))?;
        let Some(next) = self.hydrating.lock().walk.as_ref().and_then(|walk| walk.next) else {
            // What cannot be read now may be readable to the next attachment.
            return Ok(Step::Clean);
        };
        let (foreign, blocks, end) = self.next_foreign(next).await?;
        let (mut relocation, mut damaged) = (Relocation::default(), 0);
        for (id, mut places) in foreign {
            places.sort_unstable_by_key(|(_, place)| place.block);
            let gathered = match segment_index(&self.shared, id).await {
                Ok(index) => self.gather_places(&index, &places, &mut relocation).await,
                Err(error) => Err(error),
            };
            match gathered {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Damaged => {
                    self.confirm_ownership().await?;
                    tracing::error!(volume = %self.id, %error, "blocks of an origin cannot be copied, and stay there");
                    damaged += places.iter().map(|(range, _)| range.count.0).sum::<u64>();
                }
                Err(error) => return Err(error),
            }
        }
        if relocation.blocks() > 0 {
            self.relocate(relocation).await?;
        }
        let mut hydrating = self.hydrating.lock();
        if let Some(walk) = &mut hydrating.walk {
            // What was overwritten meanwhile need not be copied any more.
            walk.passed = if end.is_some() { (walk.passed + blocks).min(walk.total) } else { walk.total };
            walk.damaged += damaged;
            walk.next = end;
        }
        // At its end another walk looks whether anything is left.
        hydrating.walk.take_if(|walk| walk.next.is_none() && walk.damaged == 0);
        Ok(Step::More)
    }

    /// The next blocks of other volumes' segments from a page on, how many they are, and where to go on; `None` at the end of the map.
    async fn next_foreign(&self, from: PageIndex) -> Result<(Foreign, u64, Option<PageIndex>)> {
        let (mut foreign, mut blocks) = (Foreign::new(), 0);
        for which in self.pages.directories() {
            if (u64::from(which) + 1) * DIRECTORY_PAGES <= from.0 {
                continue;
            }
            for occupied in MapView::occupied(&self.pages, which).await? {
                if occupied.index < from {
                    continue;
                }
                if blocks >= BLOCKS_AT_ONCE {
                    return Ok((foreign, blocks, Some(occupied.index)));
                }
                for (offset, count, place) in MapView::page(&self.pages, occupied.index).await?.places() {
                    if self.is_foreign(place.segment) {
                        let start = Lba(occupied.index.0 * PAGE_BLOCKS + u64::from(offset));
                        let range = BlockRange::new(start, BlockCount(u64::from(count)));
                        foreign.entry(place.segment).or_default().push((range, place));
                        blocks += u64::from(count);
                    }
                }
            }
        }
        Ok((foreign, blocks, None))
    }

    /// True of a segment of another volume. Lost blocks are nobody's.
    fn is_foreign(&self, id: SegmentId) -> bool {
        id.volume != self.id && !id.is_lost()
    }

    async fn count_foreign(&self) -> Result<u64> {
        let mut foreign = 0;
        self.each_extent(|id, blocks| foreign += if self.is_foreign(id) { blocks } else { 0 }).await?;
        Ok(foreign)
    }

    /// Has the map's own objects follow what was copied.
    async fn finish_copying(&self) -> Result<Step> {
        // Also where all pages are the volume's own by now: the newest checkpoint may be of before the last blocks were copied, and moments
        // that have it need the origins.
        self.pages.write_again(self.foreign_pages().await?);
        self.ask_for_checkpoint().await?;
        // What is looked at now, and the root, are of one checkpoint.
        let _still = self.checkpointing.lock().await;
        // The uploader may have rebased the pages between the look and the wish.
        if !self.foreign_pages().await?.is_empty() {
            return Ok(Step::More);
        }
        let root = self.newest.lock().checkpoint.map(|checkpoint| ObjectAt::from(checkpoint.root.object));
        *self.hydrating.lock() = Hydrating { walk: None, is_copied: true, root, waits: false };
        Ok(Step::More)
    }

    /// Forgets the origins, to which nothing of the present leads any more, unless something of the past needs them.
    async fn let_go_of_origins(&self) -> Result<Step> {
        let root = self.hydrating.lock().root;
        let is_own = |moment: &Moment| is_own(self.id, moment, root);
        let is_free = |manifest: &Manifest| {
            let held = self.books.lock().held();
            manifest.pins.iter().all(|pin| is_own(&pin.moment)) && held.iter().all(|moment| is_own(moment))
        };
        // No request as long as something holds it.
        if !is_free(&self.manifest.lock().await.manifest) {
            self.hydrating.lock().waits = true;
            return Ok(Step::Clean);
        }
        self.change_manifest(|manifest| {
            // A try before this one may have had effect: then there is somebody to let go of already.
            if !manifest.origins.is_empty() && is_free(manifest) {
                manifest.letting_go = manifest.origins.first().cloned();
                manifest.origins.clear();
                manifest.hydration = None;
                let foreign = manifest.history.iter().rposition(|past| !is_own(&past.moment));
                manifest.history.drain(..foreign.map_or(0, |at| at + 1));
            }
            Ok(())
        })
        .await?;
        // The next step lets go of the late origin.
        Ok(Step::More)
    }

    /// Takes the pin for this volume out of the manifest of an origin that it has forgotten.
    async fn let_go_of(&self, origin: &Origin) -> Result<()> {
        let released = ownership::change(&*self.shared.store, origin.volume, |parent| {
            lineage::release_fork(parent, self.id);
            Ok(())
        });
        match released.await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let known = self.manifest.lock().await.manifest.clone();
        let without = ownership::without_origins(&*self.shared.store, &known).await?;
        self.change_manifest(|manifest| {
            manifest.letting_go = None;
            // Somebody may have wrapped the keys anew meanwhile; then those of the origins stay with them.
            if manifest.encryption == known.encryption {
                manifest.encryption.clone_from(&without);
            }
            Ok(())
        })
        .await?;
        tracing::info!(volume = %self.id, origin = %origin.volume, "the volume needs its origin no more");
        Ok(())
    }

    async fn foreign_pages(&self) -> Result<Vec<PageIndex>> {
        self.pages_in(|reference| reference.object.volume != self.id).await
    }
}

/// True if all that leads to a moment is the volume's own: its checkpoint is the one with this root, or a later one.
fn is_own(volume: VolumeId, moment: &Moment, root: Option<ObjectAt>) -> bool {
    let checkpoint = moment.checkpoint.map(|checkpoint| checkpoint.root.object);
    let is_late = match (checkpoint, root) {
        (Some(object), Some(root)) => object.volume == volume && ObjectAt::from(object) >= root,
        (Some(_), None) => false,
        (None, _) => true,
    };
    is_late && moment.replay.iter().all(|run| run.volume == volume)
}

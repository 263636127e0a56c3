//! Sweeping a store: what crashes left among the objects of volumes that live on, and what is dead in volumes that nobody owns.
//!
//! Safe beside running daemons. An object is left over if it stands before where recovery begins, and the census, which names everything
//! that is needed of what stands there, does not name it; and such an object never comes to be needed, since histories only grow at their
//! end. Seals are in no census, and stay. A census that began with a listing may lack what the listing missed, so of such a volume nothing is
//! taken for left over. What is younger than [`GRACE`](lineage::GRACE) is passed over: it costs nothing to wait.
//!
//! What is dead in a volume that nobody owns is condemned by a swap of its manifest, as its owner would do it: whoever attaches it meanwhile
//! makes the swap fail.

use std::collections::BTreeSet;

use crate::admin::volumes::Admin;
use crate::checkpoint;
use crate::clean::{self, Census, Needs};
use crate::clock;
use crate::error::{ErrorKind, Result};
use crate::format::census::{Condemned, ObjectAt, ObjectKind};
use crate::format::manifest::Manifest;
use crate::lineage::{self, GRACE};
use crate::ownership::{self, Loaded};
use crate::segment::fetch_index;
use crate::service::{SweepReport, SweptObject};
use crate::store::{Listed, ObjectKey, list_all};
use crate::units::{ByteLen, UnixMillis};

/// Seals are shorter than this.
const SEAL_BYTES_MAX: u64 = 1024;

impl Admin {
    /// Removes what is left over among the objects of all volumes; only lists it, if `is_dry`.
    ///
    /// # Errors
    /// What the store says to the listing of volumes; what fails for one volume is in the answer.
    pub async fn sweep(&self, is_dry: bool) -> Result<SweepReport> {
        self.sweep_at(is_dry, clock::now()).await
    }

    /// As [`Admin::sweep`], at another time.
    pub(crate) async fn sweep_at(&self, is_dry: bool, now: UnixMillis) -> Result<SweepReport> {
        let mut report = SweepReport::default();
        for (id, loaded) in ownership::list(&*self.store).await? {
            let swept = match loaded {
                Ok(loaded) => self.sweep_volume(loaded, is_dry, now, &mut report).await,
                Err(error) => Err(error),
            };
            match swept {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => report.failures.push(format!("volume {id}: {error}")),
            }
        }
        Ok(report)
    }

    async fn sweep_volume(
        &self,
        mut loaded: Loaded,
        is_dry: bool,
        now: UnixMillis,
        report: &mut SweepReport,
    ) -> Result<()> {
        let is_free = loaded.manifest.owner.is_none() && loaded.manifest.complete;
        if is_free {
            lineage::forget_past(&mut loaded.manifest, now);
        }
        let manifest = &loaded.manifest;
        // What is being made or removed is the business of whoever does that, and of `purge`.
        let (Some(parts), false, None) = (&manifest.census, manifest.being_made, manifest.destroyed_at) else {
            return Ok(());
        };
        ownership::unlock(&*self.store, manifest).await?;
        let (rows, making) = checkpoint::read_census(&*self.store, parts).await?;
        let mut census = Census::from_rows(rows);
        census.remove(&manifest.condemned);
        let dead = if is_free { clean::condemn(&census, manifest, &[]) } else { Condemned::default() };
        let dead_keys: BTreeSet<ObjectKey> = clean::keys(manifest.volume, &dead).into_iter().collect();
        let needs = Needs::of(manifest, &[]);
        let mut going = Vec::new();
        for object in list_all(&*self.store, &ObjectKey::volume(manifest.volume)).await? {
            if dead_keys.contains(&object.key) {
                going.push((object, "nothing leads to it, and no snapshot or fork needs it"));
            } else if is_old(&object, now)
                && !making.is_listed
                && let Some(why) = self.left_over(manifest, &census, &needs, &object).await?
            {
                going.push((object, why));
            }
        }
        if !is_dry && !dead.is_empty() {
            let condemn = |manifest: &mut Manifest| clean::note_condemned(manifest, &census, dead);
            ownership::update(&*self.store, &loaded, condemn).await?;
        }
        for (object, why) in going {
            if !is_dry {
                self.store.delete(&object.key).await?;
            }
            report.bytes.0 += object.length;
            let (key, bytes) = (object.key.to_string(), ByteLen(object.length));
            report.objects.push(SweptObject { key, bytes, why: why.to_owned() });
        }
        Ok(())
    }

    /// Why an object is left over, if it is.
    async fn left_over(
        &self,
        manifest: &Manifest,
        census: &Census,
        needs: &Needs,
        object: &Listed,
    ) -> Result<Option<&'static str>> {
        if let Some(id) = object.key.parse_segment() {
            let at = ObjectAt::from(id);
            if at >= manifest.replay_from.into() || census.contains(ObjectKind::Segment, at) || needs.is_replayed(at) {
                return Ok(None);
            }
            if object.length < SEAL_BYTES_MAX {
                match fetch_index(&*self.store, id).await {
                    Ok(index) if !index.header.seal => {}
                    Ok(_) => return Ok(None),
                    Err(error) if error.is_damage() => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
            return Ok(Some("a segment that is no part of the volume's history, or not any more"));
        }
        let Some((_, epoch, number)) = object.key.parse_map_object() else { return Ok(None) };
        let at = ObjectAt { epoch, number };
        let root = manifest.checkpoint.map(|checkpoint| checkpoint.root.object);
        let is_before_root = root.is_some_and(|root| root.volume == manifest.volume && at < root.into());
        let is_settled = epoch < manifest.epoch || is_before_root || manifest.owner.is_none();
        let is_needed = census.contains(ObjectKind::Map, at) || root.is_some_and(|root| at == root.into());
        Ok((is_settled && !is_needed).then_some("a part of a checkpoint that was never completed"))
    }
}

fn is_old(object: &Listed, now: UnixMillis) -> bool {
    now.0.saturating_sub(object.modified.0) >= GRACE.as_millis() as u64
}

//! What volumes and their snapshots take in the store, family by family.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::admin::volumes::{Admin, is_shredded};
use crate::checkpoint;
use crate::clean::{self, Census};
use crate::clock;
use crate::error::{ErrorKind, Result};
use crate::format::lineage::{Moment, SnapshotRecord};
use crate::format::manifest::Manifest;
use crate::lineage::{self, UsageCounter};
use crate::ownership;
use crate::service::{DiskUsageSummary, UsageReport};
use crate::store::{self, ObjectKey};
use crate::units::{ByteLen, SegmentId, VolumeId};

/// A disk to be counted.
struct Counted<'a> {
    manifest: &'a Manifest,
    snapshot: Option<&'a SnapshotRecord>,
    moment: Moment,
}

impl Admin {
    /// What the volumes take: all of them, or the family of one. `progress` is called with each disk that was counted, and how many there
    /// are.
    ///
    /// # Errors
    /// `NotFound`; `Damaged`; what the store says.
    pub async fn usage(
        &self,
        of: Option<VolumeId>,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<UsageReport> {
        let mut manifests = BTreeMap::new();
        for (id, loaded) in ownership::list(&*self.store).await? {
            match loaded {
                Ok(loaded) if loaded.manifest.being_made => {}
                Ok(loaded) => drop(manifests.insert(id, loaded.manifest)),
                // It was purged meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let mut families: BTreeMap<VolumeId, Vec<&Manifest>> = BTreeMap::new();
        for manifest in manifests.values() {
            families.entry(root_of(manifest)).or_default().push(manifest);
        }
        if let Some(id) = of {
            let manifest = ownership::load(&*self.store, id).await?.manifest;
            families.retain(|root, _| *root == root_of(&manifest));
        }
        let total = families.values().flatten().map(|manifest| 1 + manifest.pins.len() as u64).sum();
        let mut done = 0;
        let mut report = UsageReport::default();
        for family in families.values() {
            self.family_usage(family, &mut report, &mut || {
                done += 1;
                progress(done, total);
            })
            .await?;
        }
        Ok(report)
    }

    async fn family_usage(
        &self,
        family: &[&Manifest],
        report: &mut UsageReport,
        step: &mut (dyn FnMut() + Send),
    ) -> Result<()> {
        let history_before = report.history.0;
        let mut counter = UsageCounter::default();
        let mut counted: Vec<Counted<'_>> = Vec::new();
        for &manifest in family {
            // Nobody can tell any more what it holds; its objects are counted.
            if is_shredded(manifest) {
                continue;
            }
            ownership::unlock(&*self.store, manifest).await?;
            let moment = lineage::current_moment(&*self.store, manifest).await?;
            counted.push(Counted { manifest, snapshot: None, moment });
            let now = clock::now();
            let snapshots = lineage::snapshots(manifest).into_iter().filter(|(record, _)| !record.is_expired(now));
            counted.extend(snapshots.map(|(record, moment)| Counted {
                manifest,
                snapshot: Some(record),
                moment: moment.clone(),
            }));
        }
        for disk in &counted {
            counter.add(&self.store, &disk.moment).await?;
            step();
        }
        let mut segments: HashMap<SegmentId, u64> = HashMap::new();
        let mut volumes = BTreeSet::new();
        for manifest in family.iter().filter(|manifest| volumes.insert(manifest.volume)) {
            for object in store::list_all(&*self.store, &ObjectKey::volume(manifest.volume)).await? {
                report.stored.0 += object.length;
                match object.key.parse_segment() {
                    Some(id) => drop(segments.insert(id, object.length)),
                    None => report.metadata.0 += object.length,
                }
            }
        }
        let (usages, mut dead) = counter.finish(&segments);
        for manifest in family {
            let history = self.history_bytes(manifest).await?.min(dead.0);
            report.history.0 += history;
            dead.0 -= history;
        }
        let unique: u64 = usages.iter().map(|usage| usage.unique.0).sum();
        report.dead.0 += dead.0;
        report.unique.0 += unique;
        let unneeded = dead.0 + report.history.0 - history_before;
        report.shared.0 += segments.values().sum::<u64>().saturating_sub(unneeded + unique);
        for (disk, usage) in counted.into_iter().zip(usages) {
            let Counted { manifest, snapshot, moment } = disk;
            if snapshot.is_none() {
                report.provisioned.0 += moment.size.0;
                report.written.0 += usage.written.0;
            }
            report.disks.push(DiskUsageSummary {
                volume: manifest.volume,
                snapshot: snapshot.map(|record| record.id),
                name: snapshot.map_or_else(|| Some(manifest.name.clone()), |record| record.name.clone()),
                destroyed: manifest.destroyed_at.is_some(),
                provisioned: moment.size,
                written: usage.written,
                stored: ByteLen(usage.unique.0 + usage.shared.0),
                unique: usage.unique,
                shared: usage.shared,
            });
        }
        Ok(())
    }
}

impl Admin {
    /// Bytes of a volume's segments that only its history needs, as far as its newest checkpoint tells.
    async fn history_bytes(&self, manifest: &Manifest) -> Result<u64> {
        let is_readable = !manifest.history.is_empty() && !is_shredded(manifest);
        let Some(parts) = manifest.census.as_ref().filter(|_| is_readable) else { return Ok(0) };
        let census = Census::from_rows(checkpoint::read_census(&*self.store, parts).await?.0);
        let without = Manifest { history: Vec::new(), ..manifest.clone() };
        let (all, others) = (clean::condemnable_bytes(&census, &without), clean::condemnable_bytes(&census, manifest));
        Ok(all.saturating_sub(others))
    }
}

/// The volume that a family began with.
fn root_of(manifest: &Manifest) -> VolumeId {
    manifest.origins.last().map_or(manifest.volume, |origin| origin.volume)
}

//! Checking volumes and snapshots, and putting right what interrupted commands left.

use std::collections::BTreeMap;

use crate::admin::volumes::Admin;
use crate::admin::{purge, verify};
use crate::clock;
use crate::error::{ErrorKind, Result};
use crate::format::manifest::Manifest;
use crate::lineage;
use crate::ownership;
use crate::service::{CheckProgress, CheckReport, Leftover};
use crate::units::{SnapshotId, VolumeId};

impl Admin {
    /// Verifies everything that a volume refers to, calling `progress` as it goes on, and names what interrupted commands left around it; with
    /// `clean` that is put right, if it is older than an hour.
    ///
    /// # Errors
    /// `NotFound`, and what the store says; what is wrong with the volume is in the report.
    pub async fn check(
        &self,
        id: VolumeId,
        clean: bool,
        progress: &mut (dyn FnMut(CheckProgress) + Send),
    ) -> Result<CheckReport> {
        let mut report = match ownership::load(&*self.store, id).await {
            Ok(loaded) if loaded.manifest.destroyed_at == Some(purge::MARK) => {
                verify::remains(&*self.store, id).await?
            }
            Ok(loaded) => {
                let manifest = &loaded.manifest;
                ownership::unlock(&*self.store, manifest).await?;
                verify::check(&self.store, &id.to_string(), &manifest.moment(), Some(manifest), progress).await?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => match verify::remains(&*self.store, id).await? {
                report if report.problems.is_empty() => return Err(error),
                report => report,
            },
            Err(error) => return Err(error),
        };
        report.leftovers = self.leftovers(Some(id), clean).await?;
        Ok(report)
    }

    /// Verifies everything that a snapshot refers to, calling `progress` as it goes on.
    ///
    /// # Errors
    /// `NotFound`, and what the store says; what is wrong with the snapshot is in the report.
    pub async fn check_snapshot(
        &self,
        id: SnapshotId,
        progress: &mut (dyn FnMut(CheckProgress) + Send),
    ) -> Result<CheckReport> {
        let found = lineage::find(&*self.store, id).await?;
        ownership::unlock(&*self.store, &found.volume.manifest).await?;
        verify::check(&self.store, &id.to_string(), &found.moment, None, progress).await
    }

    /// What interrupted commands left in the store, or around one volume. With `clean` it is put right, if it is older than an hour.
    ///
    /// # Errors
    /// What the store says.
    pub async fn leftovers(&self, of: Option<VolumeId>, clean: bool) -> Result<Vec<Leftover>> {
        let mut manifests: BTreeMap<VolumeId, Manifest> = BTreeMap::new();
        for (id, loaded) in ownership::list(&*self.store).await? {
            match loaded {
                Ok(loaded) => drop(manifests.insert(id, loaded.manifest)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // What it pins is not known, so nothing may be taken for left over.
                Err(error) if clean => return Err(error),
                Err(error) => tracing::warn!(volume = %id, %error, "passed over while looking for leftovers"),
            }
        }
        let now = clock::now();
        let mut leftovers = Vec::new();
        for remnant in lineage::remnants(&*self.store, &manifests, of).await? {
            let removed = clean && lineage::put_right(&*self.store, &remnant, now).await?;
            let (what, why) = remnant.describe();
            let age_seconds = now.0.saturating_sub(remnant.since().0) / 1000;
            leftovers.push(Leftover { what, why, age_seconds, removed });
        }
        Ok(leftovers)
    }
}

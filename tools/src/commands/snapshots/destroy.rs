//! `varve volumes snapshots destroy`

use clap::Args;
use serde::Serialize;
use varve::error::{Error, Result};
use varve::service::SnapshotSummary;
use varve::units::SnapshotId;

use crate::commands::Command;
use crate::context::Context;
use crate::render;
use crate::target::parse_snapshot;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Ids of the snapshots
    #[arg(value_name = "VS", required = true, value_parser = parse_snapshot)]
    snapshots: Vec<SnapshotId>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Every snapshot destroyed, also if one of them failed.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Destroyed {
    snapshots: Vec<SnapshotSummary>,
    #[serde(skip)]
    failure: Option<String>,
}

impl Command for Arguments {
    type Output = Destroyed;

    /// Looks at all of them first, so that a mistake in one destroys none.
    async fn run(self, context: &Context) -> Result<Destroyed> {
        let mut found: Vec<SnapshotSummary> = Vec::new();
        for id in self.snapshots {
            if found.iter().all(|other| other.id != id) {
                found.push(context.store().await?.snapshot_summary(id).await?);
            }
        }
        if !self.yes {
            let names: Vec<_> = found.iter().map(described).collect();
            if !(context.ask)(&format!("Destroy {}? A snapshot cannot be brought back.", names.join(", ")))? {
                return Err(Error::invalid("nothing was destroyed"));
            }
        }
        let (mut destroyed, mut failure) = (Vec::new(), None);
        for snapshot in found {
            match context.store().await?.destroy_snapshot(snapshot.id).await {
                Ok(snapshot) => destroyed.push(snapshot),
                Err(error) => {
                    failure = Some(format!("{} was not destroyed: {error}", snapshot.id));
                    break;
                }
            }
        }
        Ok(Destroyed { snapshots: destroyed, failure })
    }

    fn text(destroyed: &Destroyed) -> String {
        destroyed.snapshots.iter().map(|snapshot| format!("Destroyed {}\n", described(snapshot))).collect()
    }

    fn failure(destroyed: &Destroyed) -> Option<String> {
        destroyed.failure.clone()
    }
}

fn described(snapshot: &SnapshotSummary) -> String {
    let name = snapshot.name.as_ref().map(|name| format!("{}, ", render::harmless(name))).unwrap_or_default();
    format!("{} ({name}of {} at {})", snapshot.id, snapshot.volume, render::moment(snapshot.created_at))
}

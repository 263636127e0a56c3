//! `varve volumes restore`

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::service::{SnapshotSummary, VolumeSummary};
use varve::units::SnapshotId;

use crate::commands::Command;
use crate::context::Context;
use crate::render::{self, Block};
use crate::target::{Target, parse_snapshot};

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume, which nobody may have attached
    #[arg(value_name = "ID")]
    volume: Target,
    /// The snapshot of this volume to go back to
    #[arg(long, value_name = "VS", value_parser = parse_snapshot)]
    to: SnapshotId,
}

/// What it is now.
#[derive(Serialize)]
pub struct Restored {
    #[serde(flatten)]
    volume: VolumeSummary,
    /// The snapshot whose content it has now.
    restored_to: SnapshotId,
    /// What it was before.
    kept: SnapshotSummary,
}

impl Command for Arguments {
    type Output = Restored;

    async fn run(self, context: &Context) -> Result<Restored> {
        let id = self.volume.id(context).await?;
        let (volume, kept) = context.store().await?.roll_back(id, self.to).await?;
        Ok(Restored { volume, restored_to: self.to, kept })
    }

    fn text(restored: &Restored) -> String {
        let Restored { volume, restored_to, kept } = restored;
        Block::default()
            .line("ID", volume.id)
            .line("Name", &volume.name)
            .line("Restored to", restored_to)
            .line("Kept as", format!("{} ({})", kept.id, kept.name.as_deref().unwrap_or_default()))
            .line("Size", render::size(volume.size))
            .finish()
    }
}

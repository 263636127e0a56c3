//! `varve volumes snapshots show`

use clap::Args;
use varve::error::Result;
use varve::service::SnapshotSummary;
use varve::units::SnapshotId;

use crate::commands::{Command, snapshots};
use crate::context::Context;
use crate::target::parse_snapshot;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id of the snapshot
    #[arg(value_name = "VS", value_parser = parse_snapshot)]
    snapshot: SnapshotId,
}

impl Command for Arguments {
    type Output = SnapshotSummary;

    async fn run(self, context: &Context) -> Result<SnapshotSummary> {
        context.store().await?.snapshot_summary(self.snapshot).await
    }

    fn text(snapshot: &SnapshotSummary) -> String {
        snapshots::block(snapshot)
    }
}

//! `varve volumes snapshots create`

use clap::Args;
use varve::admin::Admin;
use varve::error::Result;
use varve::service::{NewSnapshot, SnapshotSummary};
use varve::settings::parse_name;

use crate::commands::{Command, snapshots};
use crate::context::Context;
use crate::owner;
use crate::schedule::parse_seconds;
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume
    #[arg(value_name = "ID")]
    volume: Target,
    /// Name of the snapshot; need not be unique
    #[arg(long, value_parser = parse_name)]
    name: Option<String>,
    /// How long it is kept, such as 5d; for ever, if not given
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_seconds)]
    retention: Option<u64>,
}

impl Command for Arguments {
    type Output = SnapshotSummary;

    /// Asks the owner if it is here; else takes one of a volume that nobody owns.
    async fn run(self, context: &Context) -> Result<SnapshotSummary> {
        let id = self.volume.id(context).await?;
        let new = NewSnapshot { name: self.name, retention_seconds: self.retention };
        let asked = context.daemon.snapshot(id, &new);
        let detached = async |store: &Admin| store.snapshot(id, new.clone()).await;
        owner::or_change(context, id, "snapshots create", asked, detached).await
    }

    fn text(snapshot: &SnapshotSummary) -> String {
        snapshots::block(snapshot)
    }
}

//! `varve volumes snapshots list`

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::service::SnapshotSummary;
use varve::units::UnixMillis;

use crate::commands::Command;
use crate::context::Context;
use crate::render;
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume
    #[arg(value_name = "ID")]
    volume: Target,
}

/// Snapshots of one volume, oldest first.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Listed {
    snapshots: Vec<SnapshotSummary>,
    #[serde(skip)]
    now: UnixMillis,
}

impl Command for Arguments {
    type Output = Listed;

    async fn run(self, context: &Context) -> Result<Listed> {
        let id = self.volume.id(context).await?;
        let snapshots = context.store().await?.snapshots(id).await?;
        Ok(Listed { snapshots, now: context.now })
    }

    fn text(listed: &Listed) -> String {
        let rows = listed.snapshots.iter().map(|snapshot| {
            [
                snapshot.id.to_string(),
                snapshot.name.clone().unwrap_or_default(),
                render::snapshot_status(snapshot.status).to_owned(),
                render::size(snapshot.size),
                render::size(snapshot.stored_bytes),
                render::ago(listed.now, snapshot.created_at),
                render::expiry(snapshot.expires_at),
            ]
        });
        let header = ["ID", "NAME", "STATUS", "VOLUME SIZE", "STORED", "CREATED AT", "KEPT UNTIL"];
        render::table(header, &[3, 4], rows)
    }
}

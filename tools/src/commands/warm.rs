//! `varve volumes warm`

use clap::Args;
use serde::Serialize;
use varve::admin::Admin;
use varve::error::Result;
use varve::service::{AttachedStatus, WarmReport, WarmRequest};
use varve::units::{SnapshotId, VolumeId};

use crate::commands::Command;
use crate::context::Context;
use crate::owner;
use crate::progress;
use crate::render::{self, Block};
use crate::target::{Target, parse_snapshot};

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume
    #[arg(value_name = "ID")]
    volume: Target,
    /// Bring what was read first before this snapshot was taken, in that order, instead of everything
    #[arg(long, value_name = "VS", value_parser = parse_snapshot)]
    from: Option<SnapshotId>,
}

/// What came of it.
#[derive(Serialize)]
pub struct Warmed {
    id: VolumeId,
    #[serde(flatten)]
    report: WarmReport,
}

impl Command for Arguments {
    type Output = Warmed;

    /// Only an owner has a cache: a volume that nobody has is attached for it, and handed back; what the cache has stays.
    async fn run(self, context: &Context) -> Result<Warmed> {
        let id = self.volume.id(context).await?;
        let request = WarmRequest { from: self.from };
        let bar = progress::bar("warming [{bar:40}] {bytes} of {total_bytes}")?;
        let warming = || progress::watched(context, id, &bar, warmed_so_far, context.daemon.warm(id, request));
        let detached = async |_: &Admin| {
            let failed = |error| owner::no_daemon(context, &error);
            context.daemon.attach(id, false).await.map_err(failed)?;
            let warmed = warming().await.map_err(failed);
            context.daemon.detach(id, false).await.map_err(failed)?;
            warmed
        };
        let report = owner::or_store(context, id, "warm", warming(), detached).await;
        bar.finish_and_clear();
        Ok(Warmed { id, report: report? })
    }

    fn text(warmed: &Warmed) -> String {
        let WarmReport { fetched, present, complete } = warmed.report;
        Block::default()
            .line("ID", warmed.id)
            .line("Fetched", render::size(fetched))
            .line("There already", render::size(present))
            .line("Complete", if complete { "yes" } else { "no: the cache has no room for more" })
            .finish()
    }
}

fn warmed_so_far(status: &AttachedStatus) -> Option<(u64, u64)> {
    status.warming.map(|progress| (progress.done.0, progress.total.0))
}

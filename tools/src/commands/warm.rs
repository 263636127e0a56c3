//! `varve volumes warm`

use std::convert::Infallible;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use varve::error::{Error, Result};
use varve::service::{WarmReport, WarmRequest};
use varve::units::{SnapshotId, VolumeId};
use varve::volume::Admin;

use crate::commands::Command;
use crate::context::Context;
use crate::owner;
use crate::render::{self, Block};
use crate::target::{Target, parse_snapshot};

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(200);

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
        let style = ProgressStyle::with_template("warming [{bar:40}] {bytes} of {total_bytes}");
        let bar = ProgressBar::new(0).with_style(style.map_err(|error| Error::invalid(error.to_string()))?);
        let asked = async {
            tokio::select! {
                report = context.daemon.warm(id, request) => report,
                never = show_progress(context, id, &bar) => match never {},
            }
        };
        let detached = async |_: &Admin| {
            let failed = |error| owner::no_daemon(context, &error);
            context.daemon.attach(id, false).await.map_err(failed)?;
            let warmed = tokio::select! {
                report = context.daemon.warm(id, request) => report.map_err(failed),
                never = show_progress(context, id, &bar) => match never {},
            };
            context.daemon.detach(id, false).await.map_err(failed)?;
            warmed
        };
        let report = owner::or_store(context, id, "warm", asked, detached).await;
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

/// Shows how far it has come, for as long as it is waited for; nothing if nobody looks.
async fn show_progress(context: &Context, id: VolumeId, bar: &ProgressBar) -> Infallible {
    loop {
        if !bar.is_hidden()
            && let Ok(status) = context.daemon.volume(id).await
            && let Some(progress) = status.warming
        {
            bar.set_length(progress.total.0);
            bar.set_position(progress.done.0);
        }
        tokio::time::sleep(LOOK).await;
    }
}

//! `varve volumes clean`

use clap::Args;
use serde::Serialize;
use varve::admin::Admin;
use varve::error::Result;
use varve::service::{AttachedStatus, CleanReport};
use varve::units::VolumeId;

use crate::commands::Command;
use crate::context::Context;
use crate::owner;
use crate::progress;
use crate::render::{self, Block};
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume
    #[arg(value_name = "ID")]
    volume: Target,
}

/// What came of it.
#[derive(Serialize)]
pub struct Cleaned {
    id: VolumeId,
    #[serde(flatten)]
    report: CleanReport,
}

impl Command for Arguments {
    type Output = Cleaned;

    /// Only an owner cleans: one that nobody has is attached for it, and handed back.
    async fn run(self, context: &Context) -> Result<Cleaned> {
        let id = self.volume.id(context).await?;
        let bar = progress::bar("cleaning [{bar:40}] {bytes} of {total_bytes} freed")?;
        let mut first = None;
        // How much of what is dead is gone.
        let freed = |status: &AttachedStatus| {
            let (stored, live) = (status.stored_bytes.0, status.live_bytes.0);
            let begun = *first.get_or_insert(stored);
            Some((begun.saturating_sub(stored), begun.saturating_sub(live)))
        };
        let asked = progress::watched(context, id, &bar, freed, context.daemon.clean(id));
        let detached = async |_: &Admin| {
            let failed = |error| owner::no_daemon(context, &error);
            context.daemon.attach(id, false).await.map_err(failed)?;
            let cleaned = context.daemon.clean(id).await.map_err(failed);
            context.daemon.detach(id, false).await.map_err(failed)?;
            cleaned
        };
        let report = owner::or_store(context, id, "clean", asked, detached).await;
        bar.finish_and_clear();
        Ok(Cleaned { id, report: report? })
    }

    fn text(cleaned: &Cleaned) -> String {
        let CleanReport { freed, stored, live, pinned } = cleaned.report;
        Block::default()
            .line("ID", cleaned.id)
            .line("Freed", render::size(freed))
            .line("Stored", render::size(stored))
            .line("In use", render::size(live))
            .line("Kept for the past", render::size(pinned))
            .finish()
    }
}

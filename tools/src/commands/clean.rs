//! `varve volumes clean`

use std::convert::Infallible;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use varve::error::{Error, Result};
use varve::service::CleanReport;
use varve::units::VolumeId;
use varve::volume::Admin;

use crate::commands::Command;
use crate::context::Context;
use crate::owner;
use crate::render::{self, Block};
use crate::target::Target;

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(500);

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
        let style = ProgressStyle::with_template("cleaning [{bar:40}] {bytes} of {total_bytes} freed");
        let style = style.map_err(|error| Error::invalid(error.to_string()))?;
        let bar = ProgressBar::new(0).with_style(style);
        let asked = async {
            tokio::select! {
                report = context.daemon.clean(id) => report,
                never = show_progress(context, id, &bar) => match never {},
            }
        };
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

/// Shows how much of what is dead is gone, for as long as it is waited for; nothing if nobody looks.
async fn show_progress(context: &Context, id: VolumeId, bar: &ProgressBar) -> Infallible {
    let mut first = None;
    loop {
        if !bar.is_hidden()
            && let Ok(status) = context.daemon.volume(id).await
        {
            let (stored, live) = (status.stored_bytes.0, status.live_bytes.0);
            let begun = *first.get_or_insert(stored);
            bar.set_length(begun.saturating_sub(live));
            bar.set_position(begun.saturating_sub(stored));
        }
        tokio::time::sleep(LOOK).await;
    }
}

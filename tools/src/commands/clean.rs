//! `varve volumes clean`

use std::convert::Infallible;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use varve::error::Result;
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
const BAR: usize = 40;

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
        let asked = async {
            tokio::select! {
                report = context.daemon.clean(id) => report,
                never = show_progress(context, id) => match never {},
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
        if std::io::stderr().is_terminal() {
            // Only for the eye: a result does not depend on it.
            let _ = write!(std::io::stderr(), "\r{:1$}\r", "", BAR + 60);
        }
        Ok(Cleaned { id, report: report? })
    }

    fn text(cleaned: &Cleaned) -> String {
        let CleanReport { freed, stored, live, pinned } = cleaned.report;
        Block::default()
            .line("ID", cleaned.id)
            .line("Freed", render::size(freed))
            .line("Stored", render::size(stored))
            .line("In use", render::size(live))
            .line("Kept for pins", render::size(pinned))
            .finish()
    }
}

/// Shows how much of what is dead is gone, for as long as it is waited for.
async fn show_progress(context: &Context, id: VolumeId) -> Infallible {
    let mut first = None;
    loop {
        if std::io::stderr().is_terminal()
            && let Ok(status) = context.daemon.volume(id).await
        {
            let (stored, live) = (status.stored_bytes, status.live_bytes);
            let begun = *first.get_or_insert(stored.0);
            let (done, total) = (begun.saturating_sub(stored.0), begun.saturating_sub(live.0).max(1));
            let filled = (done.min(total) as usize * BAR) / total as usize;
            let bar: String = (0..BAR).map(|at| if at < filled { '#' } else { '.' }).collect();
            let text = format!("{} stored, {} in use", render::size(stored), render::size(live));
            // Only for the eye: a result does not depend on it.
            let _ = write!(std::io::stderr(), "\rcleaning [{bar}] {text:<40}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

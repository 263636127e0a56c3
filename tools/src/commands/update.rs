//! `varve volumes update`

use clap::{ArgGroup, Args};
use serde::Serialize;
use varve::admin::Admin;
use varve::error::{Context as _, Result};
use varve::service::{Durability, SnapshotSchedule, VolumeChange, VolumeSummary};
use varve::units::VolumeId;

use crate::commands::Command;
use crate::context::Context;
use crate::history::{self, parse_window};
use crate::owner;
use crate::render::{self, Block};
use crate::schedule::{self, ScheduleArguments};
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args([
    "durability", "snapshot_interval", "snapshot_retention", "no_scheduled_snapshots", "history",
]))]
pub struct Arguments {
    /// Id or name of the volume
    #[arg(value_name = "ID")]
    volume: Target,
    /// What FLUSH promises: 'local' survives power loss, 'store' loss of the host
    #[arg(long, value_parser = render::parse_durability)]
    durability: Option<Durability>,
    #[command(flatten)]
    schedule: ScheduleArguments,
    /// How much of its past the volume can go back to, such as 7d, or 'off'
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_window)]
    history: Option<u64>,
}

/// What it is now.
#[derive(Serialize)]
pub struct Updated {
    id: VolumeId,
    name: String,
    durability: Durability,
    /// Null for none.
    schedule: Option<SnapshotSchedule>,
    history_seconds: u64,
}

impl Command for Arguments {
    type Output = Updated;

    /// Asks the owner if it is here; else changes the manifest of a volume that nobody owns.
    async fn run(self, context: &Context) -> Result<Updated> {
        let id = self.volume.id(context).await?;
        let (durability, schedule) = (self.durability, self.schedule.change());
        let change = VolumeChange { durability, schedule, history_seconds: self.history, ..VolumeChange::default() };
        let asked = async { context.daemon.update(id, &change).await.map(|_| None) };
        let detached = async |store: &Admin| store.update_volume(id, change.clone()).await.map(Some);
        let volume = match owner::or_change(context, id, "update", asked, detached).await? {
            Some(volume) => volume,
            // The owner changes the manifest before it answers.
            None => {
                let found = async { context.store().await?.volume(id).await };
                found.await.context(|| format!("{id} was changed, but cannot be shown"))?
            }
        };
        let VolumeSummary { name, durability, schedule, history_seconds, .. } = volume;
        Ok(Updated { id, name, durability, schedule, history_seconds })
    }

    fn text(updated: &Updated) -> String {
        Block::default()
            .line("ID", updated.id)
            .line("Name", &updated.name)
            .line("Durability", render::durability(updated.durability))
            .line("Snapshots", schedule::words(updated.schedule))
            .line("History", history::words(updated.history_seconds, None))
            .finish()
    }
}

//! `varve store sweep`

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::service::{Leftover, SweepReport, Swept};

use crate::commands::Command;
use crate::context::Context;
use crate::render::{self, Block};

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Only list what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// What was found, in the order in which it is looked for.
#[derive(Serialize)]
pub struct StoreSwept {
    dry_run: bool,
    /// Destroyed volumes whose day is over; none is looked for in a dry run.
    purged: Swept,
    /// What interrupted commands left around volumes.
    leftovers: Vec<Leftover>,
    /// Objects of volumes that live on.
    objects: SweepReport,
}

impl Command for Arguments {
    type Output = StoreSwept;

    async fn run(self, context: &Context) -> Result<StoreSwept> {
        let store = context.store().await?;
        let purged = if self.dry_run { Swept::default() } else { store.purge().await? };
        let leftovers = store.leftovers(None, !self.dry_run).await?;
        let objects = store.sweep(self.dry_run).await?;
        Ok(StoreSwept { dry_run: self.dry_run, purged, leftovers, objects })
    }

    fn text(swept: &StoreSwept) -> String {
        let verb = if swept.dry_run { "Would remove" } else { "Removed" };
        let mut text = Block::default()
            .line("Volumes purged", swept.purged.purged.len())
            .line("Left by commands", swept.leftovers.len())
            .line(verb, format!("{} objects, {}", swept.objects.objects.len(), render::size(swept.objects.bytes)))
            .finish();
        let left = swept.leftovers.iter().map(|left| [left.what.clone(), String::new(), left.why.clone()]);
        let objects = swept.objects.objects.iter();
        let rows: Vec<[String; 3]> = objects
            .map(|object| [object.key.clone(), render::size(object.bytes), object.why.clone()])
            .chain(left)
            .collect();
        if !rows.is_empty() {
            text += "\n";
            text += &render::table(["OBJECT", "SIZE", "WHY"], &[], rows.into_iter());
        }
        text
    }

    fn failure(swept: &StoreSwept) -> Option<String> {
        let failures: Vec<&str> =
            swept.purged.failures.iter().chain(&swept.objects.failures).map(String::as_str).collect();
        (!failures.is_empty()).then(|| format!("not everything could be looked at or removed: {}", failures.join("; ")))
    }
}

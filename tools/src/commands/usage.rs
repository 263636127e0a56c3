//! `varve volumes usage`

use std::io::{IsTerminal, Write};

use clap::Args;
use varve::error::Result;
use varve::service::{DiskUsageSummary, UsageReport};

use crate::commands::Command;
use crate::context::Context;
use crate::render::{self, Block};
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of a volume: only its family is counted
    #[arg(value_name = "ID")]
    volume: Option<Target>,
}

impl Command for Arguments {
    type Output = UsageReport;

    async fn run(self, context: &Context) -> Result<UsageReport> {
        let of = match &self.volume {
            Some(volume) => Some(volume.id(context).await?),
            None => None,
        };
        let shown = std::io::stderr().is_terminal();
        let mut progress = |done: u64, total: u64| {
            if shown {
                // Only for the eye: a result does not depend on it.
                let _ = write!(std::io::stderr(), "\rcounting: {done} of {total} disks");
            }
        };
        let report = context.store().await?.usage(of, &mut progress).await;
        if shown {
            let _ = writeln!(std::io::stderr());
        }
        report
    }

    fn text(report: &UsageReport) -> String {
        let rows = report.disks.iter().map(|disk| {
            [
                if disk.snapshot.is_some() { format!("  {}", name_of(disk)) } else { name_of(disk) },
                disk.name.clone().unwrap_or_default(),
                render::size(disk.provisioned),
                render::size(disk.written),
                render::size(disk.stored),
                render::size(disk.unique),
                render::size(disk.shared),
            ]
        });
        let head = ["DISK", "NAME", "PROVISIONED", "WRITTEN", "STORED", "UNIQUE", "SHARED"];
        let mut text = render::table(head, &[2, 3, 4, 5, 6], rows);
        text += "\n";
        text += &Block::default()
            .line("Provisioned", render::size(report.provisioned))
            .line("Written", render::size(report.written))
            .line("Stored", render::size(report.stored))
            .line("Of that unique", render::size(report.unique))
            .line("Of that shared", render::size(report.shared))
            .line("Of that history", render::size(report.history))
            .line("Of that dead", render::size(report.dead))
            .line("Of that metadata", render::size(report.metadata))
            .finish();
        text
    }
}

fn name_of(disk: &DiskUsageSummary) -> String {
    let id = disk.snapshot.map_or_else(|| disk.volume.to_string(), |snapshot| snapshot.to_string());
    if disk.destroyed { format!("{id} (destroyed)") } else { id }
}

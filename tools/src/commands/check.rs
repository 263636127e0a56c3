//! `varve check`

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::service::{CheckProgress, CheckReport};

use crate::commands::Command;
use crate::context::Context;
use crate::image::Source;
use crate::render::{self, Block};

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of a volume, or id of a snapshot
    #[arg(value_name = "ID")]
    disk: Source,
    /// Also put right what interrupted commands left around a volume, if it is older than an hour
    #[arg(long)]
    clean: bool,
}

/// What was looked at, and what was found.
#[derive(Serialize)]
pub struct Checked {
    id: String,
    #[serde(flatten)]
    report: CheckReport,
}

impl Command for Arguments {
    type Output = Checked;

    async fn run(self, context: &Context) -> Result<Checked> {
        let store = context.store().await?;
        let shown = std::io::stderr().is_terminal();
        let mut last_percent = None;
        let mut progress = |at: CheckProgress| {
            let percent = at.done.saturating_mul(100).checked_div(at.total);
            if shown && percent != last_percent {
                last_percent = percent;
                // Only for the eye: a result does not depend on it.
                let _ = write!(std::io::stderr(), "\rchecking: {} of {} objects", at.done, at.total);
            }
        };
        let (id, outcome) = match &self.disk {
            Source::Volume(volume) => {
                let id = volume.id(context).await?;
                (id.to_string(), store.check(id, self.clean, &mut progress).await)
            }
            Source::Snapshot(id) => (id.to_string(), store.check_snapshot(*id, &mut progress).await),
        };
        if last_percent.is_some() {
            let _ = writeln!(std::io::stderr());
        }
        Ok(Checked { id, report: outcome? })
    }

    /// Problems make the command fail, but are a result.
    fn failure(checked: &Checked) -> Option<String> {
        let problems = checked.report.problems.len();
        (problems != 0).then(|| format!("{} is damaged: {problems} problems were found", checked.id))
    }

    fn text(checked: &Checked) -> String {
        let report = &checked.report;
        let mut text = Block::default()
            .line("ID", &checked.id)
            .line("Segments", report.segments)
            .line("Verified", render::size(report.bytes))
            .line("Problems", report.problems.len())
            .line("Left over", report.leftovers.len())
            .finish();
        if !report.problems.is_empty() {
            let rows = report.problems.iter().map(|problem| {
                [
                    problem.object.clone(),
                    problem.blocks.clone().unwrap_or_else(|| "unknown".to_owned()),
                    problem.what.clone(),
                ]
            });
            text += "\n";
            text += &render::table(["OBJECT", "BLOCKS", "PROBLEM"], &[], rows);
        }
        if !report.leftovers.is_empty() {
            let rows = report.leftovers.iter().map(|left| {
                let age = humantime::format_duration(Duration::from_secs(left.age_seconds)).to_string();
                [left.what.clone(), age, if left.removed { "put right" } else { "left" }.to_owned(), left.why.clone()]
            });
            text += "\n";
            text += &render::table(["LEFT OVER", "AGE", "NOW", "WHY"], &[], rows);
        }
        text
    }
}

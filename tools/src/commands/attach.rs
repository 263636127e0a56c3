//! `varve volumes attach`

use clap::Args;
use varve::control::client::CallError;
use varve::error::{Error, ErrorKind, Result};
use varve::service::AttachReport;

use crate::commands::Command;
use crate::context::Context;
use crate::owner;
use crate::render::{self, Block};
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume
    #[arg(value_name = "ID")]
    volume: Target,
    /// Put out an owner that is gone for good; what only its write log holds is lost
    #[arg(long)]
    takeover: bool,
}

impl Command for Arguments {
    type Output = AttachReport;

    /// # Errors
    /// `Busy` if somebody else owns it and `takeover` is not set; what the daemon and the store say.
    async fn run(self, context: &Context) -> Result<AttachReport> {
        let id = self.volume.id(context).await?;
        match context.daemon.attach(id, self.takeover).await {
            Ok(report) => Ok(report),
            Err(error @ CallError::NoDaemon(_)) => Err(owner::no_daemon(context, &error)),
            Err(CallError::Failed(error)) if error.kind() == ErrorKind::Busy && !self.takeover => {
                let hint =
                    "if that owner is gone for good, --takeover puts it out; what only its write log holds is lost";
                Err(Error::new(ErrorKind::Busy, format!("{error} ({hint})")))
            }
            Err(CallError::Failed(error)) => Err(error),
        }
    }

    fn text(report: &AttachReport) -> String {
        let status = &report.status;
        let rescued = report.rescued_log.as_ref().map(|log| {
            let since = render::moment(log.since);
            format!(
                "{}: {} records, {}, since {since}, are not part of the volume's history",
                log.path,
                log.records,
                render::size(log.bytes)
            )
        });
        Block::default()
            .line("ID", status.volume)
            .line("Name", &status.name)
            .line("State", "attached")
            .line("Size", render::size(status.size))
            .line("Epoch", status.epoch)
            .line("Resumed from", format!("position {}", report.resumed))
            .line("Replayed", format!("{} records of this host's write log", report.replayed_records))
            .maybe(
                if report.taken_over { "Taken over from" } else { "Owned before by" },
                report.previous_owner.as_ref(),
            )
            .maybe("Log kept aside", rescued)
            .line("Lag", render::lag(&status.lag))
            .finish()
    }
}

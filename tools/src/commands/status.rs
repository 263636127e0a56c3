//! `varve status`

use clap::Args;
use serde::Serialize;
use varve::control::client::CallError;
use varve::error::Result;
use varve::service::{AttachedStatus, DaemonStatus};
use varve::units::ByteLen;

use crate::commands::Command;
use crate::context::Context;
use crate::owner;
use crate::render::{self, Block};

/// There is nothing to give.
#[derive(Args, Debug)]
pub struct Arguments {}

/// The daemon, and what it has.
#[derive(Serialize)]
pub struct Status {
    daemon: DaemonStatus,
    volumes: Vec<AttachedStatus>,
}

impl Command for Arguments {
    type Output = Status;

    async fn run(self, context: &Context) -> Result<Status> {
        let explained = |error: CallError| owner::no_daemon(context, &error);
        let daemon = context.daemon.status().await.map_err(explained)?;
        let volumes = context.daemon.volumes().await.map_err(explained)?;
        Ok(Status { daemon, volumes })
    }

    fn text(status: &Status) -> String {
        let Status { daemon, volumes } = status;
        let counts = &daemon.store_counts;
        let mut text = Block::default()
            .line("Version", &daemon.version)
            .line("Process", daemon.pid)
            .line("Store", &daemon.store)
            .line("NBD", daemon.nbd.join(", "))
            .line("Control", daemon.control_tcp.as_deref().unwrap_or("on its socket only"))
            .line("Fetched", format!("{} in {} requests", render::size(ByteLen(counts.get_bytes)), counts.gets))
            .line("Uploaded", format!("{} in {} requests", render::size(ByteLen(counts.put_bytes)), counts.puts))
            .line(
                "Other requests",
                format!("{} deletes, {} lists, {} retries", counts.deletes, counts.lists, counts.retries),
            )
            .line("Attached", volumes.len())
            .finish();
        if !volumes.is_empty() {
            let rows = volumes.iter().map(|volume| {
                [
                    volume.volume.to_string(),
                    volume.name.clone(),
                    render::size(volume.size),
                    volume.clients.to_string(),
                    render::lag(&volume.lag),
                    render::durability(volume.durability).to_owned(),
                    volume.failed.clone().unwrap_or_else(|| "serving".to_owned()),
                ]
            });
            text += "\n";
            text +=
                &render::table(["ID", "NAME", "SIZE", "CLIENTS", "LAG", "DURABILITY", "CONDITION"], &[2, 3, 4], rows);
        }
        text
    }
}

//! `varve volumes list`

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::service::VolumeSummary;
use varve::units::UnixMillis;

use crate::commands::Command;
use crate::context::Context;
use crate::render;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Also list destroyed volumes that can still be brought back
    #[arg(long, short)]
    all: bool,
}

/// Volumes, oldest first.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Listed {
    volumes: Vec<VolumeSummary>,
    #[serde(skip)]
    now: UnixMillis,
}

impl Command for Arguments {
    type Output = Listed;

    async fn run(self, context: &Context) -> Result<Listed> {
        let mut volumes = context.store().await?.list_volumes(self.all).await?;
        volumes.sort_by_key(|volume| (volume.created_at, volume.id));
        Ok(Listed { volumes, now: context.now })
    }

    fn text(listed: &Listed) -> String {
        let rows = listed.volumes.iter().map(|volume| {
            [
                volume.id.to_string(),
                volume.name.clone(),
                render::state(volume.state).to_owned(),
                render::size(volume.size),
                render::size(volume.stored_bytes),
                volume.owner.as_ref().map(|owner| owner.host.clone()).unwrap_or_default(),
                render::ago(listed.now, volume.created_at),
            ]
        });
        render::table(["ID", "NAME", "STATE", "SIZE", "STORED", "OWNER", "CREATED AT"], &[3, 4], rows)
    }
}

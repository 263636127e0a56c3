//! `varve volumes list`

use clap::Args;
use varve::error::Result;
use varve::service::VolumeSummary;
use varve::units::UnixMillis;

use crate::backend::Backend;
use crate::context::Context;
use crate::render::{self, Report};

/// As given; there is nothing to check.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Also list destroyed volumes that can still be brought back
    #[arg(long, short)]
    all: bool,
}

/// As checked.
#[derive(Debug)]
pub struct Request {
    all: bool,
}

impl Arguments {
    /// # Errors
    /// None.
    pub fn check(self) -> Result<Request> {
        Ok(Request { all: self.all })
    }
}

impl Request {
    /// # Errors
    /// What the store says.
    pub async fn run<B: Backend>(self, context: &Context<B>) -> Result<Report> {
        let mut volumes = context.store().await?.list_volumes(self.all).await?;
        volumes.sort_by_key(|volume| (volume.created_at, volume.id));
        Report::new(context.json, &volumes, || table(&volumes, context.now))
    }
}

fn table(volumes: &[VolumeSummary], now: UnixMillis) -> String {
    let rows = volumes.iter().map(|volume| {
        [
            volume.id.to_string(),
            volume.name.clone(),
            render::state(volume.state).to_owned(),
            render::size(volume.size),
            render::size(volume.stored_bytes),
            volume.owner.as_ref().map(|owner| owner.host.clone()).unwrap_or_default(),
            render::ago(now, volume.created_at),
        ]
    });
    render::table(["ID", "NAME", "STATE", "SIZE", "STORED", "OWNER", "CREATED AT"], &[3, 4], rows)
}

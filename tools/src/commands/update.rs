//! `varve volumes update`

use clap::Args;
use serde::Serialize;
use varve::control::client::CallError;
use varve::error::Result;
use varve::service::Durability;
use varve::units::VolumeId;

use crate::backend::Backend;
use crate::context::Context;
use crate::owner;
use crate::render::{self, Block, Report};
use crate::target::{Target, VALUE_NAME};

/// As given.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume
    #[arg(value_name = VALUE_NAME)]
    volume: String,
    /// What FLUSH promises: 'local' survives power loss, 'store' loss of the host
    #[arg(long)]
    durability: String,
}

/// As checked.
#[derive(Debug)]
pub struct Request {
    volume: Target,
    durability: Durability,
}

#[derive(Serialize)]
struct Updated {
    id: VolumeId,
    name: String,
    durability: Durability,
}

impl Arguments {
    /// # Errors
    /// `Invalid`.
    pub fn check(self) -> Result<Request> {
        Ok(Request { volume: Target::parse(&self.volume)?, durability: render::parse_durability(&self.durability)? })
    }
}

impl Request {
    /// Asks the owner if it is here; else changes the manifest of a volume that nobody owns.
    ///
    /// # Errors
    /// `Busy` if the owner cannot be reached from here; what the daemon and the store say.
    pub async fn run<B: Backend>(self, context: &Context<B>) -> Result<Report> {
        let id = self.volume.id(context).await?;
        let updated = match context.daemon.set_durability(id, self.durability).await {
            Ok(status) => Updated { id, name: status.name, durability: status.durability },
            Err(error @ CallError::Failed(_)) if !error.is_not_found() => return Err(error.into()),
            Err(error) => {
                owner::only_if_detached(context, id, error, "update").await?;
                let volume = context.store().await?.set_durability(id, self.durability).await?;
                Updated { id, name: volume.name, durability: volume.durability }
            }
        };
        Report::new(context.json, &updated, || {
            let durability = render::durability(updated.durability);
            Block::default().line("ID", id).line("Name", &updated.name).line("Durability", durability).finish()
        })
    }
}

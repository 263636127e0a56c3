//! `varve volumes update`

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::service::{Durability, VolumeChange};
use varve::units::VolumeId;

use crate::backend::Backend;
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
    /// What FLUSH promises: 'local' survives power loss, 'store' loss of the host
    #[arg(long, value_parser = render::parse_durability)]
    durability: Durability,
}

/// What it is now.
#[derive(Serialize)]
pub struct Updated {
    id: VolumeId,
    name: String,
    durability: Durability,
}

impl Command for Arguments {
    type Output = Updated;

    /// Asks the owner if it is here; else changes the manifest of a volume that nobody owns.
    async fn run<B: Backend>(self, context: &Context<B>) -> Result<Updated> {
        let id = self.volume.id(context).await?;
        let change = VolumeChange { durability: Some(self.durability), ..VolumeChange::default() };
        let asked = async {
            let status = context.daemon.update(id, &change).await?;
            Ok(Updated { id, name: status.name, durability: status.durability })
        };
        let detached = async |store: &B| {
            let volume = store.update_volume(id, change.clone()).await?;
            Ok(Updated { id, name: volume.name, durability: volume.durability })
        };
        owner::or_store(context, id, "update", asked, detached).await
    }

    fn text(updated: &Updated) -> String {
        let durability = render::durability(updated.durability);
        Block::default().line("ID", updated.id).line("Name", &updated.name).line("Durability", durability).finish()
    }
}

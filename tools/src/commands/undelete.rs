//! `varve volumes undelete`

use clap::Args;
use varve::error::Result;
use varve::service::{VolumeState, VolumeSummary};

use crate::commands::Command;
use crate::context::Context;
use crate::render::{self, Block};
use crate::target::{Target, only_one};

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the destroyed volume
    #[arg(value_name = "ID")]
    volume: Target,
}

impl Command for Arguments {
    type Output = VolumeSummary;

    /// A name means a destroyed volume here, also if living ones have it too.
    async fn run(self, context: &Context) -> Result<VolumeSummary> {
        let store = context.store().await?;
        let id = match &self.volume {
            Target::Id(id) => *id,
            Target::Name(name) => {
                let mut volumes = store.list_volumes(true).await?;
                volumes.retain(|volume| volume.state == VolumeState::Destroyed && volume.name == *name);
                let ids: Vec<_> = volumes.iter().map(|volume| volume.id).collect();
                only_one("destroyed volume", name, &ids)?
            }
        };
        store.undelete_volume(id).await
    }

    fn text(volume: &VolumeSummary) -> String {
        Block::default()
            .line("ID", volume.id)
            .line("Name", &volume.name)
            .line("State", render::state(volume.state))
            .line("Size", render::size(volume.size))
            .finish()
    }
}

//! `varve keys rotate`

use clap::Args;
use varve::error::Result;
use varve::keys::KeySource;
use varve::service::VolumeSummary;

use crate::commands::Command;
use crate::context::Context;
use crate::render::{self, Block};
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume, which may be in use
    #[arg(value_name = "ID")]
    volume: Target,
    /// What its keys are to be wrapped with from now on: file:PATH, env:NAME, passphrase-file:PATH, passphrase-env:NAME or command:PROGRAM
    #[arg(long, value_name = "SOURCE")]
    to: KeySource,
}

impl Command for Arguments {
    type Output = VolumeSummary;

    async fn run(self, context: &Context) -> Result<VolumeSummary> {
        let id = self.volume.id(context).await?;
        context.store().await?.rotate_keys(id, &self.to).await
    }

    fn text(volume: &VolumeSummary) -> String {
        Block::default()
            .line("ID", volume.id)
            .line("Name", &volume.name)
            .line("Encryption", render::encryption(volume.encryption.as_ref()))
            .finish()
    }
}

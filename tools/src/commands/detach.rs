//! `varve volumes detach`

use clap::Args;
use serde::Serialize;
use varve::admin::Admin;
use varve::error::Result;
use varve::service::VolumeState;
use varve::units::VolumeId;

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
    /// Also if clients are connected: what they ask from then on fails
    #[arg(long, short)]
    force: bool,
}

/// What it is now.
#[derive(Serialize)]
pub struct Detached {
    id: VolumeId,
    state: VolumeState,
}

impl Command for Arguments {
    type Output = Detached;

    /// A volume that nobody owns is detached already, which is no error.
    async fn run(self, context: &Context) -> Result<Detached> {
        let id = self.volume.id(context).await?;
        owner::or_store(context, id, "detach", context.daemon.detach(id, self.force), async |_: &Admin| Ok(())).await?;
        Ok(Detached { id, state: VolumeState::Detached })
    }

    fn text(detached: &Detached) -> String {
        Block::default().line("ID", detached.id).line("State", render::state(detached.state)).finish()
    }
}

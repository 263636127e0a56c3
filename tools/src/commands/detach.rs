//! `varve volumes detach`

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::service::VolumeState;
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
    /// Also if clients are connected: disconnects them
    #[arg(long, short)]
    force: bool,
}

/// As checked.
#[derive(Debug)]
pub struct Request {
    volume: Target,
    force: bool,
}

#[derive(Serialize)]
struct Detached {
    id: VolumeId,
    state: VolumeState,
}

impl Arguments {
    /// # Errors
    /// `Invalid`.
    pub fn check(self) -> Result<Request> {
        Ok(Request { volume: Target::parse(&self.volume)?, force: self.force })
    }
}

impl Request {
    /// A volume that nobody owns is detached already, which is no error.
    ///
    /// # Errors
    /// `Busy` if clients are connected and `force` is not set, or if the owner cannot be reached from here; what the daemon says.
    pub async fn run<B: Backend>(self, context: &Context<B>) -> Result<Report> {
        let id = self.volume.id(context).await?;
        if let Err(error) = context.daemon.detach(id, self.force).await {
            owner::only_if_detached(context, id, error, "detach").await?;
        }
        let detached = Detached { id, state: VolumeState::Detached };
        Report::new(context.json, &detached, || {
            Block::default().line("ID", id).line("State", render::state(detached.state)).finish()
        })
    }
}

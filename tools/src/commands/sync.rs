//! `varve volumes sync`

use clap::Args;
use serde::Serialize;
use varve::admin::Admin;
use varve::error::Result;
use varve::service::Lag;
use varve::units::{Sequence, VolumeId};

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
}

/// Where the volume is.
#[derive(Serialize)]
pub struct Synced {
    id: VolumeId,
    /// Newest position in the store; null for a detached volume, all of which is there.
    stored: Option<Sequence>,
    /// What was written since.
    lag: Lag,
}

impl Command for Arguments {
    type Output = Synced;

    /// A detached volume is in the store as a whole: there is nothing to wait for.
    async fn run(self, context: &Context) -> Result<Synced> {
        let id = self.volume.id(context).await?;
        let asked = async {
            let status = context.daemon.sync(id).await?;
            Ok(Synced { id, stored: Some(status.stored), lag: status.lag })
        };
        let detached = async |_: &Admin| Ok(Synced { id, stored: None, lag: Lag::default() });
        owner::or_store(context, id, "sync", asked, detached).await
    }

    fn text(synced: &Synced) -> String {
        let stored =
            synced.stored.map_or_else(|| "everything".to_owned(), |position| format!("up to position {position}"));
        Block::default().line("ID", synced.id).line("Stored", stored).line("Lag", render::lag(&synced.lag)).finish()
    }
}

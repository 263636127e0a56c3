//! `varve volumes sync`

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::service::Lag;
use varve::units::{Sequence, VolumeId};

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
}

/// As checked.
#[derive(Debug)]
pub struct Request {
    volume: Target,
}

#[derive(Serialize)]
struct Synced {
    id: VolumeId,
    /// Newest position in the store; null for a detached volume, all of which is there.
    stored: Option<Sequence>,
    /// What was written since.
    lag: Lag,
}

impl Arguments {
    /// # Errors
    /// `Invalid`.
    pub fn check(self) -> Result<Request> {
        Ok(Request { volume: Target::parse(&self.volume)? })
    }
}

impl Request {
    /// A detached volume is in the store as a whole: there is nothing to wait for.
    ///
    /// # Errors
    /// `Busy` if the owner cannot be reached from here; what the daemon and the store say.
    pub async fn run<B: Backend>(self, context: &Context<B>) -> Result<Report> {
        let id = self.volume.id(context).await?;
        let synced = match context.daemon.sync(id).await {
            Ok(status) => Synced { id, stored: Some(status.stored), lag: status.lag },
            Err(error) => {
                owner::only_if_detached(context, id, error, "sync").await?;
                Synced { id, stored: None, lag: Lag::default() }
            }
        };
        Report::new(context.json, &synced, || {
            let stored =
                synced.stored.map_or_else(|| "everything".to_owned(), |position| format!("up to position {position}"));
            Block::default().line("ID", id).line("Stored", stored).line("Lag", render::lag(&synced.lag)).finish()
        })
    }
}

//! `varve volumes undelete`

use clap::Args;
use varve::error::{Error, Result};
use varve::service::{VolumeState, VolumeSummary};
use varve::units::VolumeId;

use crate::backend::Backend;
use crate::context::Context;
use crate::render::{self, Block, Report};
use crate::target::{Target, VALUE_NAME};

/// As given.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the destroyed volume
    #[arg(value_name = VALUE_NAME)]
    volume: String,
}

/// As checked.
#[derive(Debug)]
pub struct Request {
    volume: Target,
}

impl Arguments {
    /// # Errors
    /// `Invalid`.
    pub fn check(self) -> Result<Request> {
        Ok(Request { volume: Target::parse(&self.volume)? })
    }
}

impl Request {
    /// # Errors
    /// `NotFound` if there is no such destroyed volume; what the store says.
    pub async fn run<B: Backend>(self, context: &Context<B>) -> Result<Report> {
        let store = context.store().await?;
        let id = match &self.volume {
            Target::Id(id) => *id,
            Target::Name(name) => destroyed_named(store.list_volumes(true).await?, name)?,
        };
        let volume = store.undelete_volume(id).await?;
        Report::new(context.json, &volume, || {
            Block::default()
                .line("ID", volume.id)
                .line("Name", &volume.name)
                .line("State", render::state(volume.state))
                .line("Size", render::size(volume.size))
                .finish()
        })
    }
}

/// A name means a destroyed volume here, also if living ones have it too.
fn destroyed_named(volumes: Vec<VolumeSummary>, name: &str) -> Result<VolumeId> {
    let matches = volumes.into_iter().filter(|volume| volume.state == VolumeState::Destroyed && volume.name == name);
    let ids: Vec<VolumeId> = matches.map(|volume| volume.id).collect();
    match ids[..] {
        [id] => Ok(id),
        [] => Err(Error::not_found(format!("no destroyed volume is named '{name}': see varve volumes list --all"))),
        _ => {
            let ids: Vec<_> = ids.iter().map(VolumeId::to_string).collect();
            Err(Error::invalid(format!(
                "{} destroyed volumes are named '{name}': name one by its id: {}",
                ids.len(),
                ids.join(", ")
            )))
        }
    }
}

//! `varve volumes destroy`

use clap::Args;
use serde::Serialize;
use varve::error::{Error, ErrorKind, Result};
use varve::service::{VolumeState, VolumeSummary};

use crate::commands::Command;
use crate::context::Context;
use crate::render;
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Ids or names of the volumes
    #[arg(value_name = "ID", required = true)]
    volumes: Vec<Target>,
    /// Destroy the keys of the volumes too, so that nothing can bring back what they held: at once, also of volumes that are destroyed already
    #[arg(long)]
    shred: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// Every volume destroyed, also if one of them failed.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Destroyed {
    volumes: Vec<VolumeSummary>,
    #[serde(skip)]
    failure: Option<String>,
}

impl Command for Arguments {
    type Output = Destroyed;

    /// Looks at all of them first, so that a mistake in one destroys none.
    async fn run(self, context: &Context) -> Result<Destroyed> {
        let mut found: Vec<VolumeSummary> = Vec::new();
        for target in &self.volumes {
            let volume = context.store().await?.volume(target.id(context).await?).await?;
            may_be_destroyed(&volume, self.shred)?;
            if found.iter().all(|other| other.id != volume.id) {
                found.push(volume);
            }
        }
        if !self.yes {
            let names: Vec<_> =
                found.iter().map(|volume| format!("{} ({})", volume.id, render::harmless(&volume.name))).collect();
            let what = if self.shred { "Destroy for ever" } else { "Destroy" };
            if !(context.ask)(&format!("{what} {}?", names.join(", ")))? {
                return Err(Error::invalid("nothing was destroyed"));
            }
        }
        let (mut destroyed, mut failure) = (Vec::new(), None);
        for volume in found {
            match context.store().await?.destroy_volume(volume.id, self.shred).await {
                Ok(volume) => destroyed.push(volume),
                Err(error) => {
                    failure = Some(format!("{} was not destroyed: {error}", volume.id));
                    break;
                }
            }
        }
        Ok(Destroyed { volumes: destroyed, failure })
    }

    fn text(destroyed: &Destroyed) -> String {
        destroyed.volumes.iter().map(line).collect()
    }

    fn failure(destroyed: &Destroyed) -> Option<String> {
        destroyed.failure.clone()
    }
}

/// Says beforehand what the store would say, and what can be done about it.
fn may_be_destroyed(volume: &VolumeSummary, shred: bool) -> Result<()> {
    let id = volume.id;
    match (volume.state, &volume.owner) {
        (VolumeState::Detached, _) => Ok(()),
        (VolumeState::Destroyed, _) if shred => Ok(()),
        (VolumeState::Destroyed, _) => Err(Error::not_found(format!("{id} is destroyed already"))),
        (VolumeState::Attached, owner) => {
            let by =
                owner.as_ref().map_or_else(|| "somebody".to_owned(), |owner| render::harmless(&render::owner(owner)));
            Err(Error::new(
                ErrorKind::Busy,
                format!("{id} is attached by {by}: nothing was destroyed; detach it first: varve volumes detach {id}"),
            ))
        }
    }
}

fn line(volume: &VolumeSummary) -> String {
    if volume.encryption.as_ref().is_some_and(|encryption| encryption.shredded) {
        let name = render::harmless(&volume.name);
        return format!("Destroyed {} ({name}) and its keys: nothing can bring back what it held\n", volume.id);
    }
    let until = volume.purge_after.map(|at| format!(" until {}", render::moment(at))).unwrap_or_default();
    let name = render::harmless(&volume.name);
    format!("Destroyed {} ({name}). It can be brought back{until}: varve volumes undelete {}\n", volume.id, volume.id)
}

//! `varve volumes show`

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::service::{AttachedStatus, Lag, VolumeState, VolumeSummary};

use crate::commands::Command;
use crate::context::Context;
use crate::history;
use crate::render::{self, Block};
use crate::schedule;
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume
    #[arg(value_name = "ID")]
    volume: Target,
}

/// A volume as the store knows it, and as its owner does if it can be asked here.
#[derive(Debug, Serialize)]
pub struct Shown {
    #[serde(flatten)]
    volume: VolumeSummary,
    /// What is not in the store yet; null if only an owner elsewhere knows.
    lag: Option<Lag>,
    /// What the owner says, if it can be asked here.
    attached: Option<AttachedStatus>,
}

impl Command for Arguments {
    type Output = Shown;

    /// A daemon that does not answer is no error.
    async fn run(self, context: &Context) -> Result<Shown> {
        let id = self.volume.id(context).await?;
        let volume = context.store().await?.volume(id).await?;
        let attached = match volume.state {
            // A daemon of an older epoch has lost the volume and only does not know it yet: it can tell nothing.
            VolumeState::Attached => context.daemon.volume(id).await.ok().filter(|live| live.epoch >= volume.epoch),
            VolumeState::Detached | VolumeState::Destroyed => None,
        };
        let lag = match (&attached, volume.state) {
            (Some(live), _) => Some(live.lag),
            (None, VolumeState::Attached) => None,
            (None, VolumeState::Detached | VolumeState::Destroyed) => Some(Lag::default()),
        };
        Ok(Shown { volume: current(volume, attached.as_ref()), lag, attached })
    }

    fn text(shown: &Shown) -> String {
        block(shown)
    }
}

/// The owner knows better than the manifest, which it writes only now and then.
fn current(volume: VolumeSummary, attached: Option<&AttachedStatus>) -> VolumeSummary {
    match attached {
        None => volume,
        Some(live) => VolumeSummary {
            size: live.size,
            epoch: live.epoch,
            durability: live.durability,
            stored_bytes: live.stored_bytes,
            ..volume
        },
    }
}

/// How far it is with copying from its origins, if it does that.
fn hydration(shown: &Shown) -> Option<String> {
    let status = shown.attached.as_ref().and_then(|live| live.hydration.as_ref()).map(render::hydration);
    status.or_else(|| shown.volume.is_hydrating.then(|| "goes on when it is attached".to_owned()))
}

fn block(shown: &Shown) -> String {
    let volume = &shown.volume;
    let live = shown.attached.as_ref();
    let lag = shown.lag.as_ref().map_or_else(|| "unknown: only its owner can tell".to_owned(), render::lag);
    Block::default()
        .line("ID", volume.id)
        .line("Name", &volume.name)
        .line("State", if volume.is_hydrating { "hydrating" } else { render::state(volume.state) })
        .line("Region", &volume.region)
        .line("Encryption", render::encryption(volume.encryption.as_ref()))
        .line("Size", render::size(volume.size))
        .line("Stored", render::size(volume.stored_bytes))
        .line("Durability", render::durability(volume.durability))
        .line("Epoch", volume.epoch)
        .maybe("Owner", volume.owner.as_ref().map(render::owner))
        .maybe("Attached at", volume.owner.as_ref().map(|owner| render::moment(owner.attached_at)))
        .line("Lag", lag)
        .maybe("Clients", live.map(|live| live.clients))
        .maybe(
            "Write log",
            live.map(|live| format!("{} of {}", render::size(live.log_used), render::size(live.log_length))),
        )
        .maybe("Hydration", hydration(shown))
        .maybe("Failed", live.and_then(|live| live.failed.as_ref()))
        .maybe("Origin", volume.origin)
        .line("Snapshots", format!("{}; {}", volume.snapshots, schedule::words(volume.schedule)))
        .line("History", history::words(volume.history_seconds, volume.history_since))
        .line("Created at", render::moment(volume.created_at))
        .maybe("Destroyed at", volume.destroyed_at.map(render::moment))
        .maybe("Kept until", volume.purge_after.map(render::moment))
        .finish()
}

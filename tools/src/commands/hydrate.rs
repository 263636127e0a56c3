//! `varve volumes hydrate`

use clap::Args;
use serde::Serialize;
use varve::error::{Error, ErrorKind, Result};
use varve::service::HydrationStatus;
use varve::units::VolumeId;

use crate::commands::Command;
use crate::context::Context;
use crate::owner;
use crate::progress;
use crate::render::{self, Block};
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume
    #[arg(value_name = "ID")]
    volume: Target,
    /// Wait until all is copied and the origin is let go of
    #[arg(long)]
    wait: bool,
}

/// How far it is.
#[derive(Serialize)]
pub struct Hydrated {
    id: VolumeId,
    /// Null once the origin is let go of.
    hydration: Option<HydrationStatus>,
}

impl Command for Arguments {
    type Output = Hydrated;

    /// Only an owner copies: a volume that nobody has is attached for it, and stays so until it has no clients for a while.
    async fn run(self, context: &Context) -> Result<Hydrated> {
        let id = self.volume.id(context).await?;
        let failed = |error| owner::no_daemon(context, &error);
        let status = owner::or_store(context, id, "hydrate", context.daemon.hydrate(id), async |_| {
            context.daemon.attach(id, false).await.map_err(failed)?;
            context.daemon.hydrate(id).await.map_err(failed)
        });
        let mut hydration = status.await?.hydration;
        if self.wait {
            let bar = progress::bar("copying [{bar:40}] {bytes} of {total_bytes}, {msg}")?;
            while let Some(status) = hydration {
                refuse_to_wait(id, &status)?;
                bar.set_length(status.total.0);
                bar.set_position(status.done.0);
                bar.set_message(render::hydration(&status));
                tokio::time::sleep(progress::LOOK).await;
                hydration = context.daemon.volume(id).await.map_err(failed)?.hydration;
            }
            bar.finish_and_clear();
        }
        Ok(Hydrated { id, hydration })
    }

    fn text(hydrated: &Hydrated) -> String {
        let state = hydrated.hydration.as_ref();
        let state = state.map_or_else(|| "done: all that it needs is its own".to_owned(), render::hydration);
        Block::default().line("ID", hydrated.id).line("Hydration", state).finish()
    }
}

/// Waiting does not help where something else has to be done first.
fn refuse_to_wait(id: VolumeId, status: &HydrationStatus) -> Result<()> {
    if status.waits_for_pins {
        return Err(Error::new(
            ErrorKind::Busy,
            format!(
                "volume {id} has copied all it needs, but snapshots or forks of it, made before that, need the origin: \
                 'varve volumes snapshots list {id}'; the origin is let go of once they are gone"
            ),
        ));
    }
    if status.damaged.0 > 0 && status.done == status.total {
        return Err(Error::damaged(format!(
            "{} of what volume {id} has of its origin cannot be read, and the origin is not let go of: 'varve check {id}' names it",
            render::size(status.damaged)
        )));
    }
    Ok(())
}

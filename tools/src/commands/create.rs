//! `varve volumes create`

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::service::{Durability, NewVolume};
use varve::settings::{parse_name, parse_volume_size};
use varve::units::{ByteLen, SnapshotId, UnixMillis};

use crate::commands::Command;
use crate::commands::created::Volumes;
use crate::context::Context;
use crate::history::{parse_time, parse_window};
use crate::render;
use crate::schedule::ScheduleArguments;
use crate::target::{Target, parse_snapshot};

/// Volumes that one command creates at most.
const COUNT_MAX: i64 = 100;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Name of the volume; need not be unique
    #[arg(value_parser = parse_name)]
    name: String,
    /// Size in GB (2^30 bytes), or with a unit: 512MiB; that of the snapshot, if one is given and this is not
    #[arg(long, value_name = "GB", allow_hyphen_values = true, required_unless_present_any = ["snapshot_id", "from"], value_parser = parse_volume_size)]
    size: Option<ByteLen>,
    /// Begin with the content of this snapshot
    #[arg(long, value_name = "VS", value_parser = parse_snapshot)]
    snapshot_id: Option<SnapshotId>,
    /// Begin with the content that this volume had at the time --at
    #[arg(long, value_name = "VOL", requires = "at", conflicts_with = "snapshot_id")]
    from: Option<Target>,
    /// The moment of --from: 2026-11-21T04:23:58Z, or how long ago, such as 15m
    #[arg(long, value_name = "TIME", requires = "from", allow_hyphen_values = true, value_parser = parse_time)]
    at: Option<UnixMillis>,
    /// Region of the volume, named in the settings file; that of the store, if not given
    #[arg(long, value_parser = parse_name)]
    region: Option<String>,
    /// What FLUSH promises: 'local' survives power loss, 'store' loss of the host
    #[arg(long, default_value = "local", value_parser = render::parse_durability)]
    durability: Durability,
    /// How many volumes to create
    #[arg(short = 'n', long, default_value = "1", allow_hyphen_values = true, value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    count: u32,
    /// Do not encrypt it; what begins with the content of another volume is encrypted if that is
    #[arg(long, conflicts_with_all = ["snapshot_id", "from"])]
    no_encryption: bool,
    #[command(flatten)]
    schedule: ScheduleArguments,
    /// How much of its past the volume can go back to, such as 7d, or 'off'
    #[arg(long, value_name = "TIME", default_value = "24h", allow_hyphen_values = true, value_parser = parse_window)]
    history: u64,
}

/// Every volume created, also if one of them failed.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Created {
    volumes: Volumes,
    #[serde(skip)]
    failure: Option<String>,
}

impl Command for Arguments {
    type Output = Created;

    async fn run(self, context: &Context) -> Result<Created> {
        let Arguments {
            name,
            size,
            snapshot_id,
            from,
            at,
            region,
            durability,
            count,
            no_encryption,
            schedule,
            history,
        } = self;
        let schedule = schedule.change().unwrap_or_default().apply(None);
        // Without a size there is something to begin with, whose own is meant then.
        let size = size.unwrap_or_default();
        let region = context.region(region);
        let new =
            NewVolume { name, size, region, durability, schedule, history_seconds: history, encrypted: !no_encryption };
        let made = match (snapshot_id, from.zip(at)) {
            (Some(snapshot), _) => context.store().await?.create_from_snapshot(snapshot, new, count).await?,
            (None, Some((from, at))) => {
                let id = from.id(context).await?;
                context.store().await?.create_from_past(id, at, new, count).await?
            }
            (None, None) => return empty(context, new, count).await,
        };
        Ok(Created { volumes: Volumes::new(count, made), failure: None })
    }

    fn text(created: &Created) -> String {
        created.volumes.text()
    }

    fn failure(created: &Created) -> Option<String> {
        created.failure.clone()
    }
}

async fn empty(context: &Context, new: NewVolume, count: u32) -> Result<Created> {
    if new.encrypted {
        context.ready_key()?;
    }
    let store = context.store_or_new().await?;
    let mut created = vec![store.create_volume(new.clone()).await?];
    let mut failure = None;
    for number in 2..=count {
        match store.create_volume(new.clone()).await {
            Ok(volume) => created.push(volume),
            Err(error) => {
                failure = Some(format!("volume {number} of {count}: {error}"));
                break;
            }
        }
    }
    Ok(Created { volumes: Volumes::new(count, created), failure })
}

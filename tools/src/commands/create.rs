//! `varve volumes create`

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::service::{Durability, NewVolume};
use varve::settings::{parse_name, parse_volume_size};
use varve::units::{ByteLen, SnapshotId};

use crate::commands::Command;
use crate::commands::created::Volumes;
use crate::context::Context;
use crate::render;
use crate::schedule::ScheduleArguments;
use crate::target::parse_snapshot;

/// Volumes that one command creates at most.
const COUNT_MAX: i64 = 100;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Name of the volume; need not be unique
    #[arg(value_parser = parse_name)]
    name: String,
    /// Size in GB (2^30 bytes), or with a unit: 512MiB; that of the snapshot, if one is given and this is not
    #[arg(long, value_name = "GB", allow_hyphen_values = true, required_unless_present = "snapshot_id", value_parser = parse_volume_size)]
    size: Option<ByteLen>,
    /// Begin with the content of this snapshot
    #[arg(long, value_name = "VS", value_parser = parse_snapshot)]
    snapshot_id: Option<SnapshotId>,
    /// Region of the volume
    #[arg(long, default_value = "default", value_parser = parse_name)]
    region: String,
    /// What FLUSH promises: 'local' survives power loss, 'store' loss of the host
    #[arg(long, default_value = "local", value_parser = render::parse_durability)]
    durability: Durability,
    /// How many volumes to create
    #[arg(short = 'n', long, default_value = "1", allow_hyphen_values = true, value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    count: u32,
    #[command(flatten)]
    schedule: ScheduleArguments,
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
        let Arguments { name, size, snapshot_id, region, durability, count, schedule } = self;
        let schedule = schedule.change().unwrap_or_default().apply(None);
        // Without a size there is a snapshot, whose own is meant then.
        let new = NewVolume { name, size: size.unwrap_or_default(), region, durability, schedule };
        match snapshot_id {
            Some(snapshot) => {
                let made = context.store().await?.create_from_snapshot(snapshot, new, count).await?;
                Ok(Created { volumes: Volumes::new(count, made), failure: None })
            }
            None => empty(context, new, count).await,
        }
    }

    fn text(created: &Created) -> String {
        created.volumes.text()
    }

    fn failure(created: &Created) -> Option<String> {
        created.failure.clone()
    }
}

async fn empty(context: &Context, new: NewVolume, count: u32) -> Result<Created> {
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

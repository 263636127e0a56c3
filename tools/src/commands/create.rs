//! `varve volumes create`

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::service::{Durability, NewVolume, SnapshotSchedule, VolumeSummary};
use varve::settings::{parse_name, parse_volume_size};
use varve::units::ByteLen;

use crate::backend::Backend;
use crate::commands::Command;
use crate::context::Context;
use crate::render::{self, Block};

/// Volumes that one command creates at most.
const COUNT_MAX: i64 = 100;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Name of the volume; need not be unique
    #[arg(value_parser = parse_name)]
    name: String,
    /// Size in GB (2^30 bytes), or with a unit: 512MiB
    #[arg(long, value_name = "GB", allow_hyphen_values = true, value_parser = parse_volume_size)]
    size: ByteLen,
    /// Region of the volume
    #[arg(long, default_value = "default", value_parser = parse_name)]
    region: String,
    /// What FLUSH promises: 'local' survives power loss, 'store' loss of the host
    #[arg(long, default_value = "local", value_parser = render::parse_durability)]
    durability: Durability,
    /// How many volumes to create
    #[arg(short = 'n', long, default_value = "1", allow_hyphen_values = true, value_parser = clap::value_parser!(u32).range(1..=COUNT_MAX))]
    count: u32,
}

/// Every volume created, also if one of them failed. JSON: an object for one, a list for several.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Created {
    volumes: OneOrMore,
    #[serde(skip)]
    failure: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum OneOrMore {
    One(VolumeSummary),
    More(Vec<VolumeSummary>),
}

impl Command for Arguments {
    type Output = Created;

    async fn run<B: Backend>(self, context: &Context<B>) -> Result<Created> {
        let store = context.store_or_new().await?;
        let Arguments { name, size, region, durability, count } = self;
        let new = || NewVolume {
            name: name.clone(),
            size,
            region: region.clone(),
            durability,
            schedule: Some(SnapshotSchedule::default()),
        };
        let first = store.create_volume(new()).await?;
        if count == 1 {
            return Ok(Created { volumes: OneOrMore::One(first), failure: None });
        }
        let mut created = vec![first];
        let mut failure = None;
        for number in 2..=count {
            match store.create_volume(new()).await {
                Ok(volume) => created.push(volume),
                Err(error) => {
                    failure = Some(format!("volume {number} of {count}: {error}"));
                    break;
                }
            }
        }
        Ok(Created { volumes: OneOrMore::More(created), failure })
    }

    fn text(created: &Created) -> String {
        match &created.volumes {
            OneOrMore::One(volume) => block(volume),
            OneOrMore::More(volumes) => volumes.iter().map(block).collect::<Vec<_>>().join("\n"),
        }
    }

    fn failure(created: &Created) -> Option<String> {
        created.failure.clone()
    }
}

/// What is known of a volume that nobody has used yet. Exactly one line has "ID" in it: scripts count on that.
fn block(volume: &VolumeSummary) -> String {
    Block::default()
        .line("ID", volume.id)
        .line("Name", &volume.name)
        .line("Region", &volume.region)
        .line("Size", render::size(volume.size))
        .line("Durability", render::durability(volume.durability))
        .line("Created at", render::moment(volume.created_at))
        .finish()
}

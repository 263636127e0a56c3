//! `varve volumes create`

use clap::Args;
use varve::error::{Context as _, Error, Result};
use varve::service::{Durability, NewVolume, VolumeSummary};
use varve::settings::{parse_name, parse_volume_size};
use varve::units::ByteLen;

use crate::backend::Backend;
use crate::context::Context;
use crate::render::{self, Block, Report};

/// Volumes that one command creates at most.
const COUNT_MAX: u32 = 100;

/// As given.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Name of the volume; need not be unique
    name: String,
    /// Size in GB (2^30 bytes), or with a unit: 512MiB
    #[arg(long, value_name = "GB", allow_hyphen_values = true)]
    size: String,
    /// Region of the volume
    #[arg(long, default_value = "default")]
    region: String,
    /// What FLUSH promises: 'local' survives power loss, 'store' loss of the host
    #[arg(long, default_value = "local")]
    durability: String,
    /// How many volumes to create
    #[arg(short = 'n', long, default_value = "1", allow_hyphen_values = true)]
    count: String,
}

/// As checked.
#[derive(Debug)]
pub struct Request {
    name: String,
    size: ByteLen,
    region: String,
    durability: Durability,
    count: u32,
}

impl Arguments {
    /// # Errors
    /// `Invalid`.
    pub fn check(self) -> Result<Request> {
        let count = self.count.parse().ok().filter(|count| (1..=COUNT_MAX).contains(count)).ok_or_else(|| {
            Error::invalid(format!(
                "'{}' is not a number of volumes: --count takes 1 to {COUNT_MAX}",
                self.count.escape_default()
            ))
        })?;
        Ok(Request {
            name: parse_name(&self.name)?,
            size: parse_volume_size(&self.size).context(|| "--size")?,
            region: parse_name(&self.region).context(|| "--region")?,
            durability: render::parse_durability(&self.durability)?,
            count,
        })
    }
}

impl Request {
    /// Prints every volume created, also if one of them fails. JSON: an object for one, a list for several.
    ///
    /// # Errors
    /// What the store says, if nothing was created.
    pub async fn run<B: Backend>(self, context: &Context<B>) -> Result<Report> {
        let store = context.store_or_new().await?;
        let mut created = Vec::new();
        let mut failure = None;
        for number in 1..=self.count {
            let Request { name, size, region, durability, .. } = &self;
            let new = NewVolume { name: name.clone(), size: *size, region: region.clone(), durability: *durability };
            match store.create_volume(new).await {
                Ok(volume) => created.push(volume),
                Err(error) if created.is_empty() => return Err(error),
                Err(error) => {
                    failure = Some(format!("volume {number} of {}: {error}", self.count));
                    break;
                }
            }
        }
        let text = || created.iter().map(block).collect::<Vec<_>>().join("\n");
        let report = match (&created[..], self.count) {
            ([volume], 1) => Report::new(context.json, volume, text)?,
            _ => Report::new(context.json, &created, text)?,
        };
        Ok(Report { failure, ..report })
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

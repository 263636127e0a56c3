//! `varve volumes import`

use std::path::PathBuf;

use clap::Args;
use varve::disk::image::ImageReader;
use varve::error::Result;
use varve::service::{Durability, NewVolume, SnapshotSchedule};
use varve::settings::{parse_name, parse_volume_size};
use varve::units::ByteLen;

use crate::commands::Command;
use crate::commands::created::Volumes;
use crate::context::Context;
use crate::history::parse_window;
use crate::image::{Progress, interrupted};
use crate::render;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Name of the new volume; need not be unique
    #[arg(value_parser = parse_name)]
    name: String,
    /// Raw disk image; '-' for standard input
    file: PathBuf,
    /// Size in GB (2^30 bytes), or with a unit: 512MiB; the image's own, if not given
    #[arg(long, value_name = "GB", allow_hyphen_values = true, value_parser = parse_volume_size)]
    size: Option<ByteLen>,
    /// Region of the volume
    #[arg(long, value_parser = parse_name)]
    region: Option<String>,
    /// Do not encrypt it
    #[arg(long)]
    no_encryption: bool,
    /// What FLUSH promises: 'local' survives power loss, 'store' loss of the host
    #[arg(long, default_value = "local", value_parser = render::parse_durability)]
    durability: Durability,
    /// How much of its past the volume can go back to, such as 7d, or 'off'
    #[arg(long, value_name = "TIME", default_value = "24h", allow_hyphen_values = true, value_parser = parse_window)]
    history: u64,
}

impl Command for Arguments {
    type Output = Volumes;

    /// Goes straight to the store: no daemon is needed.
    async fn run(self, context: &Context) -> Result<Volumes> {
        let image = if self.file.as_os_str() == "-" {
            ImageReader::of_stream("standard input", std::io::stdin())
        } else {
            ImageReader::open(&self.file)?
        };
        let new = NewVolume {
            name: self.name,
            size: self.size.unwrap_or(ByteLen(0)),
            region: context.region(self.region),
            durability: self.durability,
            schedule: Some(SnapshotSchedule::default()),
            history_seconds: self.history,
            encrypted: !self.no_encryption,
        };
        if new.encrypted {
            context.ready_key()?;
        }
        let store = context.store_or_new().await?;
        let mut progress = Progress::new("importing");
        let made = store.import(new, image, &mut |at| progress.show(at), interrupted()).await;
        progress.finish();
        Ok(Volumes::new(1, vec![made?]))
    }

    fn text(volumes: &Volumes) -> String {
        volumes.text()
    }
}

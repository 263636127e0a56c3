//! `varve dump`

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use serde::Serialize;
use varve::error::{Error, Result};
use varve::service::DumpTarget;
use varve::units::{Epoch, SegmentId, SegmentNumber};

use crate::commands::Command;
use crate::context::Context;
use crate::target::Target;

/// Arguments.
#[derive(Args, Debug)]
#[command(after_help = "What contains a '/' and is no VOLUME/EPOCH/NUMBER is the path of a local file: ./manifest")]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The manifest of a volume, or in a file
    Manifest {
        /// Id or name of the volume, or path of a file
        #[arg(value_name = "ID")]
        volume: Place<Target>,
    },
    /// The newest checkpoint of a volume, or one in a file
    Checkpoint {
        /// Id or name of the volume, or path of a file
        #[arg(value_name = "ID")]
        volume: Place<Target>,
    },
    /// A segment or seal, in the store or in a file
    Segment {
        /// VOLUME/EPOCH/NUMBER, or path of a file
        #[arg(value_parser = parse_segment)]
        segment: Place<SegmentId>,
    },
    /// A write log
    Log {
        /// Path of the file
        file: PathBuf,
    },
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place<T> {
    /// In the store.
    Store(T),
    /// In a file here: what contains a `/`, which names and ids do not.
    File(PathBuf),
}

/// Text.
#[derive(Serialize)]
pub struct Dumped {
    text: String,
}

impl FromStr for Place<Target> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.contains('/') { Ok(Place::File(text.into())) } else { text.parse().map(Place::Store) }
    }
}

fn parse_segment(text: &str) -> Result<Place<SegmentId>> {
    match segment_id(text) {
        Some(id) => Ok(Place::Store(id)),
        None if text.contains('/') => Ok(Place::File(text.into())),
        None => Err(Error::invalid(format!(
            "'{}' is no segment: write it as VOLUME/EPOCH/NUMBER, such as vol_0000000000007/1/0, or as the path of a file, such as ./0",
            text.escape_default()
        ))),
    }
}

fn segment_id(text: &str) -> Option<SegmentId> {
    let mut parts = text.split('/');
    let volume = parts.next()?.parse().ok()?;
    let epoch = Epoch(parts.next()?.parse().ok()?);
    let number = SegmentNumber(parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(SegmentId { volume, epoch, number })
}

impl Command for Arguments {
    type Output = Dumped;

    async fn run(self, context: &Context) -> Result<Dumped> {
        let what = match self.what {
            What::Manifest { volume: Place::Store(volume) } => DumpTarget::Manifest(volume.id(context).await?),
            What::Manifest { volume: Place::File(file) } => DumpTarget::ManifestFile(file),
            What::Checkpoint { volume: Place::Store(volume) } => DumpTarget::Checkpoint(volume.id(context).await?),
            What::Checkpoint { volume: Place::File(file) } => DumpTarget::CheckpointFile(file),
            What::Segment { segment: Place::Store(id) } => DumpTarget::Segment(id),
            What::Segment { segment: Place::File(file) } => DumpTarget::SegmentFile(file),
            What::Log { file } => DumpTarget::LogFile(file),
        };
        let mut text = context.store().await?.dump(what).await?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        Ok(Dumped { text })
    }

    fn text(dumped: &Dumped) -> String {
        dumped.text.clone()
    }
}

#[cfg(test)]
mod tests {
    use varve::units::VolumeId;

    use super::*;

    #[test]
    fn ids_names_and_files_are_told_apart() {
        let volume = |text: &str| text.parse::<Place<Target>>().ok();
        assert_eq!(volume("demo"), Some(Place::Store(Target::Name("demo".into()))));
        assert_eq!(volume("vol_0000000000007"), Some(Place::Store(Target::Id(VolumeId(7)))));
        assert_eq!(volume("./demo"), Some(Place::File("./demo".into())));
        assert_eq!(volume("vol_7"), None);

        let id = SegmentId { volume: VolumeId(7), epoch: Epoch(1), number: SegmentNumber(12) };
        let segment = |text: &str| parse_segment(text).ok();
        assert_eq!(segment("vol_0000000000007/1/12"), Some(Place::Store(id)));
        assert_eq!(segment("vol_0000000000007/0000000001/00000000000000000012"), Some(Place::Store(id)));
        assert_eq!(segment("/tmp/12"), Some(Place::File("/tmp/12".into())));
        assert!(parse_segment("12").is_err_and(|error| error.message().contains("VOLUME/EPOCH/NUMBER")));
    }
}

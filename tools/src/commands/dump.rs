//! `varve dump`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use varve::error::{Error, Result};
use varve::service::DumpTarget;
use varve::units::{Epoch, SegmentId, SegmentNumber};

use crate::backend::Backend;
use crate::context::Context;
use crate::render::Report;
use crate::target::{Target, VALUE_NAME};

/// As given.
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
        #[arg(value_name = VALUE_NAME)]
        volume: String,
    },
    /// The newest checkpoint of a volume, or one in a file
    Checkpoint {
        /// Id or name of the volume, or path of a file
        #[arg(value_name = VALUE_NAME)]
        volume: String,
    },
    /// A segment or seal, in the store or in a file
    Segment {
        /// VOLUME/EPOCH/NUMBER, or path of a file
        #[arg(value_name = "SEGMENT")]
        segment: String,
    },
    /// A write log
    Log {
        /// Path of the file
        file: PathBuf,
    },
}

/// As checked.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// The manifest of a volume.
    Manifest(Target),
    /// The checkpoint of a volume.
    Checkpoint(Target),
    /// What is known without asking the store.
    Exactly(DumpTarget),
}

#[derive(Serialize)]
struct Dumped {
    text: String,
}

impl Arguments {
    /// # Errors
    /// `Invalid`.
    pub fn check(self) -> Result<Request> {
        match self.what {
            What::Manifest { volume } if is_path(&volume) => {
                Ok(Request::Exactly(DumpTarget::ManifestFile(volume.into())))
            }
            What::Manifest { volume } => Target::parse(&volume).map(Request::Manifest),
            What::Checkpoint { volume } if is_path(&volume) => {
                Ok(Request::Exactly(DumpTarget::CheckpointFile(volume.into())))
            }
            What::Checkpoint { volume } => Target::parse(&volume).map(Request::Checkpoint),
            What::Segment { segment } => match parse_segment(&segment) {
                Some(id) => Ok(Request::Exactly(DumpTarget::Segment(id))),
                None if is_path(&segment) => Ok(Request::Exactly(DumpTarget::SegmentFile(segment.into()))),
                None => Err(Error::invalid(format!(
                    "'{}' is no segment: write it as VOLUME/EPOCH/NUMBER, such as vol_0000000000007/1/0, or as the path of a file, such as ./0",
                    segment.escape_default()
                ))),
            },
            What::Log { file } => Ok(Request::Exactly(DumpTarget::LogFile(file))),
        }
    }
}

/// Names and ids have no slash.
fn is_path(text: &str) -> bool {
    text.contains('/')
}

fn parse_segment(text: &str) -> Option<SegmentId> {
    let mut parts = text.split('/');
    let volume = parts.next()?.parse().ok()?;
    let epoch = Epoch(parts.next()?.parse().ok()?);
    let number = SegmentNumber(parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(SegmentId { volume, epoch, number })
}

impl Request {
    /// # Errors
    /// `NotFound`, `Damaged`, or what the store says.
    pub async fn run<B: Backend>(self, context: &Context<B>) -> Result<Report> {
        let what = match self {
            Request::Manifest(volume) => DumpTarget::Manifest(volume.id(context).await?),
            Request::Checkpoint(volume) => DumpTarget::Checkpoint(volume.id(context).await?),
            Request::Exactly(what) => what,
        };
        let mut text = context.store().await?.dump(what).await?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let dumped = Dumped { text };
        Report::new(context.json, &dumped, || dumped.text.clone())
    }
}

#[cfg(test)]
mod tests {
    use varve::units::VolumeId;

    use super::*;

    fn request(what: What) -> Result<Request> {
        Arguments { what }.check()
    }

    #[test]
    fn ids_names_and_files_are_told_apart() {
        let manifest = |text: &str| request(What::Manifest { volume: text.into() });
        assert_eq!(manifest("demo").ok(), Some(Request::Manifest(Target::Name("demo".into()))));
        assert_eq!(manifest("vol_0000000000007").ok(), Some(Request::Manifest(Target::Id(VolumeId(7)))));
        assert_eq!(manifest("./demo").ok(), Some(Request::Exactly(DumpTarget::ManifestFile("./demo".into()))));
        assert!(manifest("vol_7").is_err());

        let segment = |text: &str| request(What::Segment { segment: text.into() });
        let id = SegmentId { volume: VolumeId(7), epoch: Epoch(1), number: SegmentNumber(12) };
        let exactly = Some(Request::Exactly(DumpTarget::Segment(id)));
        assert_eq!(segment("vol_0000000000007/1/12").ok(), exactly);
        assert_eq!(segment("vol_0000000000007/0000000001/00000000000000000012").ok(), exactly);
        assert_eq!(segment("/tmp/12").ok(), Some(Request::Exactly(DumpTarget::SegmentFile("/tmp/12".into()))));
        assert!(segment("12").is_err_and(|error| error.message().contains("VOLUME/EPOCH/NUMBER")));
    }
}

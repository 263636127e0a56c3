//! `varve volumes rescue`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use varve::admin::export_log;
use varve::error::Result;
use varve::service::LogContent;
use varve::units::ByteLen;

use crate::commands::Command;
use crate::context::Context;
use crate::render::{self, Block};

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Path of the write log, as the takeover reported it
    #[arg(value_name = "LOG")]
    log: PathBuf,
    /// New file for the content, at the offsets that it has in the volume; without it, what there is is only listed
    #[arg(value_name = "IMAGE")]
    image: Option<PathBuf>,
}

/// What the log holds, and where its content is now.
#[derive(Serialize)]
pub struct Rescued {
    #[serde(flatten)]
    content: LogContent,
    image: Option<PathBuf>,
    damage: Option<String>,
}

impl Command for Arguments {
    type Output = Rescued;

    async fn run(self, context: &Context) -> Result<Rescued> {
        let log = context.log(&self.log).await?;
        let (content, damage) = export_log(&log, self.image.as_deref())?;
        Ok(Rescued { content, image: self.image, damage })
    }

    fn text(rescued: &Rescued) -> String {
        let content = &rescued.content;
        let (first, last) = content.records;
        let sum = |zero| ByteLen(content.extents.iter().filter(|run| run.zero == zero).map(|run| run.length).sum());
        let mut text = Block::default()
            .line("Volume", content.volume)
            .line("Epoch", content.epoch)
            .line("Attached at", render::moment(content.since))
            .line("Records", if last < first { "none".to_owned() } else { format!("{first} to {last}") })
            .line("Data", render::size(sum(false)))
            .line("Zeroed", render::size(sum(true)))
            .maybe("Written to", rescued.image.as_ref().map(|image| image.display()))
            .finish();
        if !content.extents.is_empty() {
            let rows = content.extents.iter().map(|run| {
                [run.offset.to_string(), run.length.to_string(), if run.zero { "zero" } else { "data" }.to_owned()]
            });
            text += "\n";
            text += &render::table(["OFFSET", "LENGTH", "CONTENT"], &[0, 1], rows);
        }
        text
    }

    fn failure(rescued: &Rescued) -> Option<String> {
        rescued.damage.clone()
    }
}

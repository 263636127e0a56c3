//! `varve volumes export`

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use varve::disk::image::ImageWriter;
use varve::error::{Error, Result};
use varve::units::ByteLen;

use crate::commands::Command;
use crate::context::Context;
use crate::image::{Frozen, Progress, Source, interrupted};
use crate::render::{self, Block};

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Id or name of the volume, or id of the snapshot
    #[arg(value_name = "ID")]
    source: Source,
    /// Raw disk image to be written; '-' for standard output
    file: PathBuf,
    /// Replace the file if there is one
    #[arg(long)]
    force: bool,
}

/// What was written.
#[derive(Serialize)]
pub struct Exported {
    id: String,
    file: PathBuf,
    size: ByteLen,
    #[serde(skip)]
    is_silent: bool,
}

impl Command for Arguments {
    type Output = Exported;

    async fn run(self, context: &Context) -> Result<Exported> {
        let to_pipe = self.file.as_os_str() == "-";
        if to_pipe && (context.json || std::io::stdout().is_terminal()) {
            let why = if context.json { "--json needs standard output for itself" } else { "that is a terminal" };
            return Err(Error::invalid(format!("the image cannot go to standard output: {why}")));
        }
        // Before anything is asked of the store: a name that is taken is the likeliest mistake.
        let image = if to_pipe {
            ImageWriter::of_stream("standard output", std::io::stdout())
        } else {
            ImageWriter::create(&self.file, self.force)?
        };
        let frozen = self.source.freeze(context, "export").await?;
        let outcome = write(context, &frozen, image).await;
        let (id, size) = (frozen.id.clone(), frozen.map.size());
        frozen.release(context).await;
        outcome.map(|()| Exported { id, file: self.file, size, is_silent: to_pipe })
    }

    fn text(exported: &Exported) -> String {
        if exported.is_silent {
            return String::new();
        }
        Block::default()
            .line("ID", &exported.id)
            .line("File", exported.file.display())
            .line("Size", render::size(exported.size))
            .finish()
    }
}

async fn write(context: &Context, frozen: &Frozen, image: ImageWriter) -> Result<()> {
    let mut progress = Progress::new("exporting");
    let store = context.store().await?;
    let written = store.export(&frozen.map, image, &mut |at| progress.show(at), interrupted()).await;
    progress.finish();
    written
}

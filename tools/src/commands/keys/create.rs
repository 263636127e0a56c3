//! `varve keys create`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use varve::error::Result;
use varve::keys::create_key_file;

use crate::commands::Command;
use crate::context::Context;
use crate::render::Block;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// New file for the key
    file: PathBuf,
}

/// A key that was made.
#[derive(Serialize)]
pub struct Made {
    /// Fingerprint.
    key: String,
    file: PathBuf,
}

impl Command for Arguments {
    type Output = Made;

    async fn run(self, _context: &Context) -> Result<Made> {
        let key = create_key_file(&self.file)?;
        Ok(Made { key, file: self.file })
    }

    fn text(made: &Made) -> String {
        let mut text = Block::default().line("Key", &made.key).line("File", made.file.display()).finish();
        text += "\nKeep a copy where it outlives this machine: nobody can read what is encrypted with it without it.\n";
        text
    }
}

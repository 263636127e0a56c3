//! `varve tokens revoke`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use varve::control::TokenFile;
use varve::error::Result;

use crate::commands::Command;
use crate::context::Context;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The daemon's file of tokens
    file: PathBuf,
    /// Whose token is to open nothing any more
    name: String,
}

/// Whose token it was.
#[derive(Serialize)]
pub struct Revoked {
    name: String,
}

impl Command for Arguments {
    type Output = Revoked;

    async fn run(self, _context: &Context) -> Result<Revoked> {
        TokenFile::new(&self.file).revoke(&self.name)?;
        Ok(Revoked { name: self.name })
    }

    fn text(revoked: &Revoked) -> String {
        format!("The token of {} opens nothing any more.\n", revoked.name)
    }
}

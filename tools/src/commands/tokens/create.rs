//! `varve tokens create`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use varve::control::{Scope, TokenFile};
use varve::error::Result;

use crate::commands::Command;
use crate::context::Context;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The daemon's file of tokens; made if there is none
    file: PathBuf,
    /// Who is to have it
    name: String,
    /// It allows to look, and to change nothing
    #[arg(long)]
    read_only: bool,
}

/// A token that was made.
#[derive(Serialize)]
pub struct Made {
    name: String,
    scope: &'static str,
    /// The token itself, which is kept nowhere else.
    token: String,
}

impl Command for Arguments {
    type Output = Made;

    async fn run(self, _context: &Context) -> Result<Made> {
        let scope = if self.read_only { Scope::Read } else { Scope::All };
        let token = TokenFile::new(&self.file).create(&self.name, scope)?;
        Ok(Made { name: self.name, scope: scope.name(), token })
    }

    /// Nothing but the token, for a file or a variable.
    fn text(made: &Made) -> String {
        format!("{}\n", made.token)
    }
}

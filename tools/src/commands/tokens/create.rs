//! `varve tokens create`

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use varve::control::{Scope, TokenFile};
use varve::error::{Context as _, Result};

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
    /// New file for the token, which only its owner may read [default: print it]
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// A token that was made.
#[derive(Serialize)]
pub struct Made {
    name: String,
    scope: &'static str,
    /// The token itself, which is kept nowhere else; none if it was written to a file.
    token: Option<String>,
    file: Option<PathBuf>,
}

impl Command for Arguments {
    type Output = Made;

    async fn run(self, _context: &Context) -> Result<Made> {
        let scope = if self.read_only { Scope::Read } else { Scope::All };
        // The file first: a token that nobody gets to see should not be made.
        let file = self.to.as_ref().map(|path| new_file(path).context(|| path.display())).transpose()?;
        let token = TokenFile::new(&self.file).create(&self.name, scope)?;
        let (name, scope) = (self.name, scope.name());
        let Some(mut file) = file else { return Ok(Made { name, scope, token: Some(token), file: None }) };
        let written = writeln!(file, "{token}").and_then(|()| file.sync_all());
        written.context(|| format!("the token of {name} was made and could not be written: revoke it"))?;
        Ok(Made { name, scope, token: None, file: self.to })
    }

    /// Nothing but the token, for a variable, if it is printed.
    fn text(made: &Made) -> String {
        match (&made.token, &made.file) {
            (Some(token), _) => format!("{token}\n"),
            (None, Some(file)) => format!("The token of {} is in {}.\n", made.name, file.display()),
            (None, None) => String::new(),
        }
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

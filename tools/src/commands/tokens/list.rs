//! `varve tokens list`

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use varve::control::TokenFile;
use varve::error::Result;

use crate::commands::Command;
use crate::context::Context;
use crate::render;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// The daemon's file of tokens
    file: PathBuf,
}

/// A token, without itself.
#[derive(Serialize)]
pub struct Listed {
    name: String,
    scope: &'static str,
}

impl Command for Arguments {
    type Output = Vec<Listed>;

    async fn run(self, _context: &Context) -> Result<Vec<Listed>> {
        let tokens = TokenFile::new(&self.file).read()?;
        Ok(tokens.into_iter().map(|token| Listed { name: token.name, scope: token.scope.name() }).collect())
    }

    fn text(tokens: &Vec<Listed>) -> String {
        let rows = tokens.iter().map(|token| [token.name.clone(), token.scope.to_owned()]);
        render::table(["NAME", "SCOPE"], &[], rows)
    }
}

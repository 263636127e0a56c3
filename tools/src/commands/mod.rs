//! One file a command: its arguments, what it does, and what it prints.
//!
//! A new command is a struct that clap fills, with [`Command`] for it, and a line in [`arguments`](crate::arguments). Arguments are
//! checked while they are read, by their types or by a `value_parser`: nothing is done of a request that makes no sense. A field of type
//! [`Target`](crate::target::Target) takes a volume by id or name; [`owner::or_change`](crate::owner::or_change) asks the daemon here, or
//! changes the store if nobody owns the volume.

use serde::Serialize;
use varve::error::Result;

use crate::context::Context;
use crate::render::Report;

pub mod attach;
pub mod check;
pub mod clean;
pub mod create;
pub mod created;
pub mod destroy;
pub mod detach;
pub mod diff;
pub mod dump;
pub mod export;
pub mod extend;
pub mod fork;
pub mod hydrate;
pub mod import;
pub mod keys;
pub mod list;
pub mod purge;
pub mod rescue;
pub mod restore;
pub mod show;
pub mod snapshots;
pub mod status;
pub mod sweep;
pub mod sync;
pub mod tokens;
pub mod torture;
pub mod undelete;
pub mod update;
pub mod usage;
pub mod warm;

/// A command: its arguments, which make sense.
pub trait Command: Sized {
    /// What `--json` prints.
    type Output: Serialize;

    /// Does it.
    ///
    /// # Errors
    /// Whatever the store and the daemon say.
    async fn run(self, context: &Context) -> Result<Self::Output>;

    /// What is printed for people.
    fn text(output: &Self::Output) -> String;

    /// What did not go well although there is an output: it makes the command fail after its output is printed.
    fn failure(_output: &Self::Output) -> Option<String> {
        None
    }

    /// Does it, and says how it went in the form that was asked for.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    async fn report(self, context: &Context) -> Result<Report> {
        let output = self.run(context).await?;
        let report = Report::new(context.json, &output, || Self::text(&output))?;
        Ok(Report { failure: Self::failure(&output), ..report })
    }
}

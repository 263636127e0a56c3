//! varve: creates, lists, shows, attaches, checks and destroys volumes.
//!
//! | file | what |
//! | --- | --- |
//! | `arguments` | the command line as clap reads it |
//! | `commands/` | one file a command: its arguments, what it does, what it prints |
//! | `context` | what every command works with: settings, the store, the daemon |
//! | `target` | a volume or snapshot as people name it |
//! | `history` | how much of a volume's past is kept, and which moment of it is meant |
//! | `owner` | who has a volume, and what can be done about it |
//! | `progress` | bars that show how far a daemon has come |
//! | `schedule` | when snapshots are taken by themselves, in words |
//! | `torture/` | daemons that are killed, paused and lose their disks, and the judgement of what is left |
//! | `image` | what import, export and diff have in common |
//! | `render` | blocks, tables, JSON, sizes and times |
//!
//! What needs no owner goes straight to the store; the rest goes to the control socket of the daemon that owns the volume. Results
//! go to standard output; errors, questions and progress to standard error. The exit status is 0 if all went well, 1 if not, 2 for a command
//! line that makes no sense.

#![forbid(unsafe_code)]

mod arguments;
mod commands;
mod context;
mod history;
mod image;
mod owner;
mod progress;
mod render;
mod schedule;
mod target;
#[cfg(test)]
mod tests;
mod torture;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use varve::error::{Error, Result};
use varve::settings::Places;

use crate::arguments::CommandLine;
use crate::context::Context;
use crate::render::Report;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match CommandLine::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::WARN.into())
        .with_env_var("VARVE_LOG")
        .from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(arguments).await {
        Ok(report) => finish(&report),
        Err(error) => fail(error.message()),
    }
}

async fn run(arguments: CommandLine) -> Result<Report> {
    let CommandLine { shared, json, command } = arguments;
    let context = Context::new(shared.resolve(&Places::from_environment())?, json)?;
    command.report(&context).await
}

fn finish(report: &Report) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(report.text.as_bytes()).and_then(|()| out.flush()) {
        // The reader has seen enough: `varve volumes list | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        Err(error) => return fail(&format!("standard output: {error}")),
        Ok(()) => {}
    }
    report.failure.as_deref().map_or(ExitCode::SUCCESS, fail)
}

fn fail(message: &str) -> ExitCode {
    // There is nobody left to tell if this fails too.
    let _ = writeln!(std::io::stderr(), "Error: {message}");
    ExitCode::FAILURE
}

/// Prints what clap has to say: help and version as they are, errors in our form.
fn refuse(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return error.print().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let _ = writeln!(std::io::stderr(), "Error: {}", arguments::explained(error));
    ExitCode::from(2)
}

/// Asks a question that only `y` or `yes` affirms.
fn ask(question: &str) -> Result<bool> {
    let mut error = std::io::stderr();
    if !std::io::stdin().is_terminal() || !error.is_terminal() {
        return Err(Error::invalid(format!("{question} Nobody is there to ask: give --yes to say so")));
    }
    let mut answer = String::new();
    write!(error, "{question} [y/N] ")
        .and_then(|()| error.flush())
        .and_then(|()| std::io::stdin().read_line(&mut answer))
        .map_err(|error| Error::io("terminal", &error))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

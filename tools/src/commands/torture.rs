//! `varve torture`

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use varve::error::{Error, ErrorKind, Result};

use crate::commands::Command;
use crate::context::Context;
use crate::render::{self, Block};
use crate::torture::{Done, Scratch, Torture};

/// Rounds if nothing is said about them.
const ROUNDS: u64 = 3;

/// Arguments.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Go through the volume's life so many times [default: 3]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "minutes")]
    rounds: Option<u64>,
    /// Go on for so many minutes, and to the end of the round then
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: Option<u64>,
}

/// What was done and verified, and what was found.
#[derive(Serialize)]
pub struct Report {
    store: String,
    state: PathBuf,
    seconds: f64,
    #[serde(flatten)]
    done: Done,
    /// What cannot be tried from here.
    not_tried: &'static str,
    /// The promise that was broken, and how.
    broken: Option<String>,
    /// Objects that were removed at the end; null if everything was left for somebody to look at.
    removed: Option<u64>,
}

impl Arguments {
    fn more(&self, began: Instant, rounds: u64) -> bool {
        match self.minutes {
            Some(minutes) => began.elapsed() < Duration::from_secs(minutes * 60),
            None => rounds < self.rounds.unwrap_or(ROUNDS),
        }
    }

    /// Goes through the rounds; what was done until an error comes with it.
    fn torture(&self, scratch: &Scratch, stop: &AtomicBool) -> (Done, Result<()>) {
        let began = Instant::now();
        let mut torture = match Torture::begin(scratch, stop, say) {
            Ok(torture) => torture,
            Err(error) => return (Done::default(), Err(error)),
        };
        while self.more(began, torture.done.rounds) {
            say(&format!("round {}", torture.done.rounds + 1));
            if let Err(error) = torture.round() {
                return (torture.done, Err(error));
            }
        }
        (torture.done, Ok(()))
    }
}

fn say(words: &str) {
    // For a person who watches: if nobody does, nothing is lost.
    let _ = writeln!(std::io::stderr(), "{words}");
}

/// Does blocking work until it is done, or told to stop by Ctrl-C.
async fn run_until_interrupted<T: Send + 'static>(work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Result<T> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let mut working = tokio::task::spawn_blocking(move || work(&seen));
    tokio::select! {
        done = &mut working => return done.map_err(|error| Error::invalid(format!("torture failed: {error}"))),
        _ = tokio::signal::ctrl_c() => say("stopping, and cleaning up"),
    }
    stop.store(true, Ordering::SeqCst);
    working.await.map_err(|error| Error::invalid(format!("torture failed: {error}")))
}

impl Command for Arguments {
    type Output = Report;

    /// # Errors
    /// What kept the promises from being tried: the store, the disk, a daemon that does not start. A broken promise is part of the report.
    async fn run(self, context: &Context) -> Result<Report> {
        let settings = &context.settings;
        let existed = settings.state.exists();
        let scratch = Arc::new(Scratch::make(&settings.store, &settings.state)?);
        let (store, state) = (scratch.url.clone(), scratch.folder.clone());
        say(&format!("scratch store {store}, scratch folder {}", state.display()));
        let began = Instant::now();
        let place = scratch.clone();
        let (done, result) = run_until_interrupted(move |stop| self.torture(&place, stop)).await?;
        let broken = match result {
            Ok(()) => None,
            Err(error) if error.kind() == ErrorKind::Damaged => Some(error.message().to_owned()),
            Err(error) => {
                clean(&scratch, existed, &settings.state).await?;
                return Err(error);
            }
        };
        let removed = match &broken {
            None => Some(clean(&scratch, existed, &settings.state).await?),
            Some(_) => None,
        };
        Ok(Report {
            store,
            state,
            seconds: began.elapsed().as_secs_f64(),
            done,
            not_tried: "loss of power (only the operating system knows what its disk had kept)",
            broken,
            removed,
        })
    }

    fn text(report: &Report) -> String {
        let Done { rounds, writes, bytes, verified, kills, hosts_lost, .. } = report.done;
        let done = &report.done;
        Block::default()
            .line("Store", &report.store)
            .line("Folder", report.state.display())
            .line("Rounds", format!("{rounds}, in {:.0} s", report.seconds))
            .line("Acknowledged", format!("{writes} writes, {}", render::size(bytes)))
            .line("Read and judged", render::size(verified))
            .line("Accepted is kept", format!("{kills} kills under load, nothing acknowledged was missing"))
            .line(
                "Loss has a shape",
                format!(
                    "{hosts_lost} hosts lost with their disks, each volume as at one moment after the last sync; {} later writes went with them",
                    done.lost_with_hosts
                ),
            )
            .line("One owner", format!("{} replaced owners acknowledged nothing and harmed nothing", done.owners_fenced))
            .line("Snapshots are exact", format!("{} snapshots and {} forks", done.snapshots, done.forks))
            .line("Moved", format!("{} times, complete", done.moves))
            .line("Checked", format!("{} volumes and snapshots", done.checks))
            .line("Not tried", report.not_tried)
            .maybe("BROKEN", report.broken.as_ref())
            .maybe("Removed", report.removed.map(|objects| format!("{objects} objects, and the folder")))
            .finish()
    }

    fn failure(report: &Report) -> Option<String> {
        let broken = report.broken.as_ref()?;
        Some(format!(
            "a promise was broken: {broken}. Everything is left as it is, in {} and {}: please report it with the logs of the daemons there",
            report.store,
            report.state.display()
        ))
    }
}

/// Removes the scratch space, and the state directory if it was made for this.
async fn clean(scratch: &Scratch, existed: bool, state: &Path) -> Result<u64> {
    let removed = scratch.clean().await?;
    if !existed {
        // Only if nothing else is in it by now.
        let _ = std::fs::remove_dir(state);
    }
    Ok(removed)
}

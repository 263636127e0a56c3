//! What import, export and diff have in common: a volume or snapshot whose content stands still, progress on the terminal, and Ctrl-C.

use std::io::{IsTerminal, Write};
use std::str::FromStr;
use std::time::{Duration, Instant};

use varve::admin::Admin;
use varve::control::client::CallError;
use varve::error::{Error, Result};
use varve::lineage::FrozenMap;
use varve::service::{ImageProgress, NewSnapshot, SnapshotSummary};
use varve::units::{ByteLen, SnapshotId};

use crate::context::Context;
use crate::owner;
use crate::render;
use crate::target::Target;

/// Seconds after which a snapshot that only serves one command goes by itself, should the command not come to destroy it.
const RETENTION_SECONDS: u64 = 24 * 60 * 60;
/// How often progress is shown.
const REDRAW: Duration = Duration::from_millis(200);

/// A volume or a snapshot. As an argument: `#[arg(value_name = "ID")] source: Source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A volume, by id or name.
    Volume(Target),
    /// A snapshot, by id.
    Snapshot(SnapshotId),
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.starts_with("vs_") { text.parse().map(Source::Snapshot) } else { text.parse().map(Source::Volume) }
    }
}

/// Content that stands still.
pub struct Frozen {
    /// The id that it goes by.
    pub id: String,
    /// The content.
    pub map: FrozenMap,
    /// The snapshot that was taken for it.
    temporary: Option<SnapshotId>,
}

enum Taken {
    Snapshot(SnapshotSummary),
    Map(FrozenMap),
}

impl Source {
    /// The content as it is now. Of a volume in use a snapshot called `purpose` is taken, which [`Frozen::release`] destroys.
    ///
    /// # Errors
    /// `NotFound`; `Busy` if the volume has an owner that cannot be asked here; what the daemon and the store say.
    pub async fn freeze(&self, context: &Context, purpose: &str) -> Result<Frozen> {
        let volume = match self {
            Source::Volume(volume) => volume.id(context).await?,
            Source::Snapshot(id) => {
                let map = context.store().await?.frozen_snapshot(*id).await?;
                return Ok(Frozen { id: id.to_string(), map, temporary: None });
            }
        };
        let new = NewSnapshot { name: Some(purpose.to_owned()), retention_seconds: Some(RETENTION_SECONDS) };
        let asked = async { Ok::<_, CallError>(Taken::Snapshot(context.daemon.snapshot(volume, &new).await?)) };
        let detached = async |store: &Admin| store.frozen_volume(volume).await.map(Taken::Map);
        let id = volume.to_string();
        match owner::or_change(context, volume, "detach", asked, detached).await? {
            Taken::Map(map) => Ok(Frozen { id, map, temporary: None }),
            Taken::Snapshot(taken) => match context.store().await?.frozen_snapshot(taken.id).await {
                Ok(map) => Ok(Frozen { id, map, temporary: Some(taken.id) }),
                Err(error) => {
                    destroy(context, taken.id).await;
                    Err(error)
                }
            },
        }
    }
}

impl Frozen {
    /// Lets go of it.
    pub async fn release(self, context: &Context) {
        if let Some(id) = self.temporary {
            destroy(context, id).await;
        }
    }
}

/// Destroys a snapshot that served this command only. If that fails, the command has done its work all the same.
async fn destroy(context: &Context, id: SnapshotId) {
    let destroyed = async { context.store().await?.destroy_snapshot(id).await };
    if let Err(error) = destroyed.await {
        // There is nobody left to tell if this fails too.
        let _ = writeln!(
            std::io::stderr(),
            "Snapshot {id}, taken for this command, was not destroyed, and goes by itself within a day: {error}"
        );
    }
}

/// Ends when the person or the system wants the command to end.
pub async fn interrupted() {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    let terminated = async {
        match terminate {
            Ok(mut signals) => drop(signals.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        Ok(()) = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

/// Progress on the terminal, if there is one; none otherwise.
pub struct Progress {
    what: &'static str,
    is_shown: bool,
    began: Instant,
    drawn: Option<Instant>,
}

impl Progress {
    /// Nothing is done yet.
    pub fn new(what: &'static str) -> Self {
        Progress { what, is_shown: std::io::stderr().is_terminal(), began: Instant::now(), drawn: None }
    }

    /// Shows how far it has come, unless that was shown just now.
    pub fn show(&mut self, at: ImageProgress) {
        if self.is_shown && self.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW) {
            self.drawn = Some(Instant::now());
            // Only for the eye: a result does not depend on it. The code clears the rest of the line.
            let _ = write!(std::io::stderr(), "\r{}: {}\x1b[K", self.what, line(at, self.began.elapsed()));
        }
    }

    /// Ends the line.
    pub fn finish(self) {
        if self.drawn.is_some() {
            let _ = writeln!(std::io::stderr());
        }
    }
}

fn line(at: ImageProgress, elapsed: Duration) -> String {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = ByteLen(at.done.0.saturating_mul(1000) / millis);
    let done = render::size(at.done);
    let Some(total) = at.total else { return format!("{done}, {}/s", render::size(rate)) };
    let percent = (u128::from(at.done.0) * 100).checked_div(u128::from(total.0)).unwrap_or(100);
    let left = total.0.saturating_sub(at.done.0).checked_div(rate.0);
    let left = left.map_or_else(String::new, |seconds| {
        format!(", {} left", humantime::format_duration(Duration::from_secs(seconds)))
    });
    format!("{done} of {} ({percent} %), {}/s{left}", render::size(total), render::size(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_rate_and_time_left() {
        let at = |done, total| ImageProgress { done: ByteLen(done), total };
        let known = line(at(1 << 30, Some(ByteLen(4 << 30))), Duration::from_secs(10));
        assert_eq!(known, "1 GB of 4 GB (25 %), 102.3 MB/s, 30s left");
        assert_eq!(line(at(1 << 30, None), Duration::from_secs(1)), "1 GB, 1 GB/s");
        assert_eq!(line(at(0, Some(ByteLen(0))), Duration::ZERO), "0 bytes of 0 bytes (100 %), 0 bytes/s");
    }

    #[test]
    fn volumes_and_snapshots_are_told_apart() {
        let snapshot = SnapshotId(7);
        assert_eq!(snapshot.to_string().parse::<Source>().ok(), Some(Source::Snapshot(snapshot)));
        assert_eq!("disk".parse::<Source>().ok(), Some(Source::Volume(Target::Name("disk".into()))));
        assert!("vs_7".parse::<Source>().is_err());
    }
}

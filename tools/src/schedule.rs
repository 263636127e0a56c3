//! Scheduled snapshots as people give and read them: how often, and how long each is kept.

use std::time::Duration;

use clap::Args;
use varve::error::{Error, Result};
use varve::service::{ScheduleChange, SnapshotSchedule};

/// The longest span that makes sense, in seconds: a thousand years.
const SECONDS_MAX: u64 = 1000 * 365 * 86_400;

/// The flags of a schedule, for `#[command(flatten)]`.
#[derive(Args, Clone, Debug)]
pub struct ScheduleArguments {
    /// Time from one scheduled snapshot to the next, such as 1d, 12h or 30m
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_seconds)]
    snapshot_interval: Option<u64>,
    /// How long each scheduled snapshot is kept, such as 5d
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_seconds)]
    snapshot_retention: Option<u64>,
    /// Take no scheduled snapshots
    #[arg(long, conflicts_with_all = ["snapshot_interval", "snapshot_retention"])]
    no_scheduled_snapshots: bool,
}

impl ScheduleArguments {
    /// What they change, if any was given.
    pub fn change(&self) -> Option<ScheduleChange> {
        let change = ScheduleChange {
            off: self.no_scheduled_snapshots,
            interval_seconds: self.snapshot_interval,
            retention_seconds: self.snapshot_retention,
        };
        (change != ScheduleChange::default()).then_some(change)
    }
}

/// Reads a span of time in whole seconds: `5d`, `1h 30m`.
///
/// # Errors
/// `Invalid` for what is no span, less than a second, no whole number of seconds, or more than a thousand years.
pub fn parse_seconds(text: &str) -> Result<u64> {
    let refuse = |why: &str| Err(Error::invalid(format!("'{}' is {why}", text.escape_default())));
    let Ok(span) = humantime::parse_duration(text) else {
        return refuse("not a span of time: write a number with a unit, such as 5d, 12h, 30m or 10s");
    };
    match (span.as_secs(), span.subsec_nanos()) {
        (0, _) => refuse("too short: the shortest span is 1s"),
        (_, 1..) => refuse("no whole number of seconds"),
        (seconds, 0) if seconds > SECONDS_MAX => refuse("too long: the longest span is 1000 years"),
        (seconds, 0) => Ok(seconds),
    }
}

/// A span of time: `5days`, `1h 30m`.
pub fn span(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// A schedule in words.
pub fn words(schedule: Option<SnapshotSchedule>) -> String {
    match schedule {
        None => "no scheduled snapshots".to_owned(),
        Some(SnapshotSchedule { interval_seconds, retention_seconds }) => {
            format!("every {}, each kept for {}", span(interval_seconds), span(retention_seconds))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        for (text, seconds) in [("1s", 1), ("5d", 432_000), ("1h 30m", 5400), ("1day", 86_400)] {
            assert_eq!(parse_seconds(text).ok(), Some(seconds), "{text}");
        }
        for text in ["", "5", "-5d", "0s", "999ms", "1500ms", "5 parsecs", "99999999999999999999d", "2000y"] {
            let error = parse_seconds(text).unwrap_err();
            assert!(error.message().starts_with(&format!("'{text}' is ")), "{error}");
        }
        assert_eq!(words(Some(SnapshotSchedule::default())), "every 1day, each kept for 5days");
    }
}

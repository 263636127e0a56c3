//! How results look: `Label: value` blocks and tables in the manner of flyctl, or JSON; sizes and times for people.

use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;
use varve::error::{Error, ErrorKind, Result};
use varve::service::{Durability, EncryptionSummary, HydrationStatus, Lag, OwnerSummary, SnapshotStatus, VolumeState};
use varve::units::{ByteLen, UnixMillis};

/// Columns that labels are right-aligned in.
const LABEL_COLUMNS: usize = 20;

/// What a command has to say at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// For standard output.
    pub text: String,
    /// What did not go well, although there is a result.
    pub failure: Option<String>,
}

impl Report {
    /// Text, or JSON if that was asked for.
    ///
    /// # Errors
    /// `Unsupported` if the value cannot be JSON.
    pub fn new<T: Serialize + ?Sized>(json: bool, value: &T, text: impl FnOnce() -> String) -> Result<Self> {
        let text = if json {
            let json = serde_json::to_string_pretty(value).map_err(|error| {
                Error::new(ErrorKind::Unsupported, format!("the result cannot be written as JSON: {error}"))
            })?;
            json + "\n"
        } else {
            text()
        };
        Ok(Report { text, failure: None })
    }
}

/// A block of `Label: value` lines.
#[derive(Default)]
pub struct Block(String);

impl Block {
    /// Adds a line. Values are made harmless for a terminal.
    pub fn line(mut self, label: &str, value: impl std::fmt::Display) -> Self {
        self.0 += &format!("{label:>LABEL_COLUMNS$}: {}\n", harmless(&value.to_string()));
        self
    }

    /// Adds a line if there is a value.
    pub fn maybe(self, label: &str, value: Option<impl std::fmt::Display>) -> Self {
        match value {
            Some(value) => self.line(label, value),
            None => self,
        }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

/// A table without borders; columns named in `right` are aligned to the right.
pub fn table<const N: usize>(
    header: [&str; N],
    right: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| harmless(&cell)));
    }
    for (position, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&position) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// The text with everything escaped that could steer a terminal or break a line: what a store holds was written by others.
pub fn harmless(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { letter.escape_default().to_string() } else { letter.to_string() })
        .collect()
}

/// A number of bytes for people, with units that are powers of two: `10 GB`, `1.5 MB`, `0 bytes`.
pub fn size(bytes: ByteLen) -> String {
    let unit = [(40, "TB"), (30, "GB"), (20, "MB"), (10, "KB")].into_iter().find(|(shift, _)| bytes.0 >> shift != 0);
    let Some((shift, unit)) = unit else {
        return if bytes.0 == 1 { "1 byte".to_owned() } else { format!("{} bytes", bytes.0) };
    };
    let tenths = (u128::from(bytes.0) * 10) >> shift;
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {unit}"),
        (whole, tenth) => format!("{whole}.{tenth} {unit}"),
    }
}

/// A moment: `2026-11-21T04:23:58Z`.
pub fn moment(at: UnixMillis) -> String {
    at.date()
}

/// How long ago something was: `just now`, `3 minutes ago`.
pub fn ago(now: UnixMillis, at: UnixMillis) -> String {
    let seconds = now.0.saturating_sub(at.0) / 1000;
    let units = [(365 * 86_400, "year"), (30 * 86_400, "month"), (86_400, "day"), (3600, "hour"), (60, "minute")];
    match units.into_iter().find(|(length, _)| seconds >= *length) {
        None => "just now".to_owned(),
        Some((length, unit)) => match seconds / length {
            1 => format!("1 {unit} ago"),
            count => format!("{count} {unit}s ago"),
        },
    }
}

/// What is not in the store yet: bytes, and seconds.
pub fn lag(lag: &Lag) -> String {
    format!("{} bytes, {:.1} s", lag.bytes, lag.seconds)
}

/// How far copying from an origin has come.
pub fn hydration(status: &HydrationStatus) -> String {
    if status.waits_for_pins {
        return "all is copied; waits for snapshots or forks of the time before to go".to_owned();
    }
    if status.total.0 == 0 {
        return "counting what is to be copied".to_owned();
    }
    let percent = status.done.0 * 100 / status.total.0;
    let left = status.seconds_left.map_or_else(String::new, |seconds| {
        format!(", {} left", humantime::format_duration(std::time::Duration::from_secs(seconds as u64)))
    });
    format!("{percent} % ({} of {}){left}", size(status.done), size(status.total))
}

/// An owner: who, and how to reach it.
pub fn owner(owner: &OwnerSummary) -> String {
    format!("{} (process {}, control socket {})", owner.host, owner.pid, owner.control)
}

/// As in JSON.
pub fn state(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Detached => "detached",
        VolumeState::Attached => "attached",
        VolumeState::Destroyed => "destroyed",
    }
}

/// As in JSON.
pub fn snapshot_status(status: SnapshotStatus) -> &'static str {
    match status {
        SnapshotStatus::Ready => "ready",
        SnapshotStatus::Expired => "expired",
    }
}

/// Until when something is kept.
pub fn expiry(at: Option<UnixMillis>) -> String {
    at.map_or_else(|| "destroyed".to_owned(), moment)
}

/// How a volume is encrypted.
pub fn encryption(encryption: Option<&EncryptionSummary>) -> String {
    let Some(encryption) = encryption else { return "none".to_owned() };
    let by = encryption
        .key
        .as_ref()
        .map_or_else(|| encryption.wrapping.clone(), |key| format!("{} {key}", encryption.wrapping));
    let lost = if encryption.shredded { "; its keys are destroyed" } else { "" };
    format!("{}, {by}{lost}", encryption.cipher)
}

/// As in JSON.
pub fn durability(durability: Durability) -> &'static str {
    match durability {
        Durability::Local => "local",
        Durability::Store => "store",
    }
}

/// Reads a durability.
///
/// # Errors
/// `Invalid`.
pub fn parse_durability(text: &str) -> Result<Durability> {
    match text {
        "local" => Ok(Durability::Local),
        "store" => Ok(Durability::Store),
        _ => Err(Error::invalid(format!(
            "'{}' is not a durability: 'local' (flushed writes survive power loss) or 'store' (they survive loss of the host)",
            text.escape_default()
        ))),
    }
}

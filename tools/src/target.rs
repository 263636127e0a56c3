//! A volume as people name it: by id, or by a name that only one volume has.

use std::fmt::Display;
use std::str::FromStr;

use varve::error::{Error, Result};
use varve::limits::NAME_BYTES_MAX;
use varve::settings::parse_name;
use varve::units::{SnapshotId, VolumeId};

use crate::context::Context;

/// What was given for a volume. As an argument: `#[arg(value_name = "ID")] volume: Target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Its id.
    Id(VolumeId),
    /// Its name.
    Name(String),
}

impl FromStr for Target {
    type Err = Error;

    /// Reads an id or a name. What begins like an id must be one: names cannot.
    fn from_str(text: &str) -> Result<Self> {
        if text.starts_with("vol_") {
            return text.parse().map(Target::Id);
        }
        if text.starts_with("vs_") {
            return Err(Error::invalid(format!(
                "'{}' is the id of a snapshot: this takes a volume",
                text.escape_default()
            )));
        }
        parse_name(text).map(Target::Name)
    }
}

impl Target {
    /// The id; asks the store only if a name was given.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` if several volumes have the name; what the store says.
    pub async fn id(&self, context: &Context) -> Result<VolumeId> {
        match self {
            Target::Id(id) => Ok(*id),
            Target::Name(name) => context.store().await?.resolve(name).await,
        }
    }
}

/// Reads the id of a snapshot. Snapshots go by their ids only.
///
/// # Errors
/// `Invalid`, saying where ids are to be had.
pub fn parse_snapshot(text: &str) -> Result<SnapshotId> {
    if text.starts_with("vs_") {
        return text.parse();
    }
    let what = if text.starts_with("vol_") { "is the id of a volume" } else { "is not the id of a snapshot" };
    let shown: String = text.chars().take(NAME_BYTES_MAX).collect();
    Err(Error::invalid(format!(
        "'{}' {what}: this takes the id of a snapshot, vs_..., as 'varve volumes snapshots list' shows it",
        shown.escape_debug()
    )))
}

/// The one thing that has a name; `what` is what such things are called, such as `destroyed volume`.
///
/// # Errors
/// `NotFound`; `Invalid` if several have it, listing their ids.
pub fn only_one<I: Copy + Display>(what: &str, name: &str, ids: &[I]) -> Result<I> {
    let name = name.escape_default();
    match ids {
        [id] => Ok(*id),
        [] => Err(Error::not_found(format!("no {what} is named '{name}'"))),
        _ => {
            let listed: Vec<_> = ids.iter().map(ToString::to_string).collect();
            Err(Error::invalid(format!(
                "{} {what}s are named '{name}': use the id of one: {}",
                ids.len(),
                listed.join(", ")
            )))
        }
    }
}

//! A volume as people name it: by id, or by a name that only one volume has.

use varve::error::{Error, Result};
use varve::settings::parse_name;
use varve::units::VolumeId;

use crate::backend::Backend;
use crate::context::Context;

/// Help text of arguments that take one.
pub const VALUE_NAME: &str = "ID";

/// What was given for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Its id.
    Id(VolumeId),
    /// Its name.
    Name(String),
}

impl Target {
    /// Reads an id or a name. What begins like an id must be one: names cannot.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn parse(text: &str) -> Result<Self> {
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

    /// The id; asks the store only if a name was given.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` if several volumes have the name; what the store says.
    pub async fn id<B: Backend>(&self, context: &Context<B>) -> Result<VolumeId> {
        match self {
            Target::Id(id) => Ok(*id),
            Target::Name(name) => context.store().await?.resolve(name).await,
        }
    }
}

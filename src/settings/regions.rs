//! Regions: what others call the one that the store is in, and the stores of the others.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::parse_name;
use crate::error::Result;

/// How the store of a region is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RegionSettings {
    /// Its URL.
    pub store: String,
    /// URL of the S3 server; as the environment says, if not given.
    pub endpoint: Option<String>,
    /// The region that requests are signed for; as the environment says, if not given.
    pub aws_region: Option<String>,
    /// The profile of the AWS configuration files that has the credentials; as the environment says, if not given.
    pub profile: Option<String>,
}

/// The regions that this host knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Regions {
    /// What others call the region of the store.
    pub own: Option<String>,
    /// All that are named, the own one too if it is.
    pub named: BTreeMap<String, RegionSettings>,
}

impl Regions {
    /// The regions of these names.
    ///
    /// # Errors
    /// `Invalid` for a name that makes none.
    pub(super) fn new(own: Option<String>, named: BTreeMap<String, RegionSettings>) -> Result<Self> {
        for name in own.iter().chain(named.keys()) {
            parse_name(name)?;
        }
        Ok(Regions { own, named })
    }

    /// What is said of the own region, if it is named.
    pub fn home(&self) -> Option<&RegionSettings> {
        self.named.get(self.own.as_ref()?)
    }

    /// The other regions.
    pub fn others(&self) -> impl Iterator<Item = (&str, &RegionSettings)> {
        self.named.iter().filter(|(name, _)| Some(*name) != self.own.as_ref()).map(|(name, there)| (&**name, there))
    }
}

//! Warm starts: what can be asked for and told about bringing a volume's content into the cache.

use serde::{Deserialize, Serialize};

use crate::units::{ByteLen, SnapshotId};

/// What is to be brought into the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WarmRequest {
    /// What the trace of this snapshot names, in its order; everything, in the order of the volume, if not said.
    pub from: Option<SnapshotId>,
}

/// How far the warming of a volume has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmProgress {
    /// Bytes of the volume, or of what the trace names, that were looked at.
    pub done: ByteLen,
    /// All of them.
    pub total: ByteLen,
}

/// What the warming of a volume came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmReport {
    /// Bytes brought from the store, as stored.
    pub fetched: ByteLen,
    /// Bytes that the cache had already.
    pub present: ByteLen,
    /// False if the cache had no room for all of it.
    pub complete: bool,
}

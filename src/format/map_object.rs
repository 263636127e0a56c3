//! Temporary: to be replaced by the checkpoint branch's file.
use crate::units::{Epoch, SegmentNumber, Sequence};
use serde::{Deserialize, Serialize};
/// Placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointRef {
    pub epoch: Epoch,
    pub number: SegmentNumber,
    pub sequence: Sequence,
}

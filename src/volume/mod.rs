//! The owner: one attached volume and the fleet of them, over everything below.
//!
//! | file | what |
//! | --- | --- |
//! | `core` | the parts of a volume and what they agree on |
//! | `write`, `read` | the two paths |
//! | `progress` | how far the sequence has come; when a segment is cut |
//! | `upload` | cutting, packing, uploading, taking effect, releasing log space |
//! | `checkpointing` | checkpoints, and the end of an attachment |
//! | `cleaning` | emptying segments, deleting what nobody needs, and knowing what there is |
//! | `open`, `claims`, `rescue` | attaching, again after a crash meanwhile, and logs that are no longer part of the history |
//! | `gate`, `places` | may requests be taken? is there memory for more of them? |
//! | `family`, `schedule` | moments, snapshots, forks, growth; snapshots by themselves |
//! | `pages`, `fetch`, `near`, `read_ahead` | map pages and frames, near and far |
//! | `first_reads`, `warm`, `warm_walk` | what is read first, and bringing it before it is asked for |
//! | `frozen_device` | snapshots as disks |
//! | `fleet`, `serve`, `catalog`, `stop` | volumes that come and go; the fleet behind the doors, and the names it is asked for |
//! | `import`, `export`, `export_log` | raw disk images, without an owner |
//! | `admin` and its parts, `check`, `dump`, `purge`, `root` | what needs no owner |
//! | `shared`, `state_directory` | what all volumes of a daemon share, and where it lies |

mod admin;
mod admin_check;
mod admin_family;
mod admin_usage;
mod catalog;
mod check;
mod checkpointing;
mod claims;
mod cleaning;
mod core;
mod device;
mod dump;
mod export;
mod export_log;
mod family;
mod fetch;
mod first_reads;
mod fleet;
mod frozen_device;
mod gate;
mod import;
mod local_state;
mod near;
mod open;
mod pages;
mod places;
mod progress;
mod purge;
mod read;
mod read_ahead;
mod rescue;
pub mod root;
mod schedule;
mod serve;
mod shared;
pub mod state_directory;
mod stop;
#[cfg(test)]
mod tests;
mod upload;
mod warm;
mod warm_walk;
mod write;

pub use admin::Admin;
pub use core::Volume;
pub use device::VolumeDevice;
pub use export_log::export_log;
pub use fetch::SegmentIndexCache;
pub use fleet::Fleet;
pub use local_state::LocalState;
pub use open::{Opened, attach};
pub use pages::PageBudget;
pub use purge::{PurgeTimer, UNDELETE_MILLIS};
pub use serve::{FleetExports, FleetService};
pub use shared::{CLEANING, EngineSettings, IndexWeight, Packers, Shared};

//! The owner: one attached volume, over everything below.
//!
//! | file | what |
//! | --- | --- |
//! | `core` | the parts of a volume and what they agree on |
//! | `write`, `read` | the two paths |
//! | `progress` | how far the sequence has come; when a segment is cut |
//! | `upload`, `release` | cutting, packing, uploading, taking effect; giving back log space |
//! | `packers` | the threads that pack, and how urgent that is |
//! | `checkpointing`, `stop` | checkpoints, and the end of an attachment |
//! | `damage` | going on with a block map that is damaged |
//! | `cleaning` | emptying segments, deleting what nobody needs, and knowing what there is |
//! | `open`, `claims`, `rescue` | attaching, again after a crash meanwhile, and logs that are no longer part of the history |
//! | `gate`, `places` | may requests be taken? is there memory for more of them? |
//! | `family`, `schedule` | moments, snapshots, forks, growth; snapshots by themselves |
//! | `pages`, `fetch`, `near`, `read_ahead` | map pages and frames, near and far |
//! | `keep` | fetched frames on their way into the disk part of the cache |
//! | `first_reads`, `warm`, `warm_walk` | what is read first, and bringing it before it is asked for |
//! | `device`, `frozen_device` | volumes and snapshots as disks |
//! | `shared`, `state_directory`, `local_state` | what all volumes of a daemon share, where it lies, and what it says of each |

mod checkpointing;
mod claims;
mod cleaning;
mod core;
mod damage;
mod device;
mod family;
mod fetch;
mod first_reads;
mod frozen_device;
mod gate;
mod keep;
mod local_state;
mod near;
mod open;
mod packers;
mod pages;
mod places;
mod progress;
mod read;
mod read_ahead;
mod release;
mod rescue;
mod schedule;
mod shared;
pub mod state_directory;
mod stop;
mod upload;
mod warm;
mod warm_walk;
mod write;

pub use core::Volume;
pub use device::VolumeDevice;
pub(crate) use family::{apply_change, check_count, owned_by_another};
pub use fetch::SegmentIndexCache;
pub(crate) use fetch::new_segment_index_cache;
pub(crate) use frozen_device::{FrozenDevice, frozen_geometry};
pub(crate) use gate::PULSE;
pub use local_state::LocalState;
pub(crate) use open::log_path;
pub use open::{Opened, attach};
pub use packers::Packers;
pub use pages::PageBudget;
pub(crate) use schedule::LOOK;
pub use shared::{CLEANING, EngineSettings, IndexWeight, Shared};

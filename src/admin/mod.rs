//! What needs no owner: everything that `varve` does straight on the store, for volumes that may be attached anywhere or nowhere.
//!
//! | file | what |
//! | --- | --- |
//! | `volumes` | creating, listing, showing, destroying and bringing back volumes |
//! | `family` | snapshots, forks, growth and settings of volumes that nobody owns |
//! | `usage` | what volumes take, and what of it only they need |
//! | `check`, `verify` | what is wrong around a volume, and in what it refers to |
//! | `purge`, `sweep` | the end of destroyed volumes, and of what nobody needs |
//! | `dump` | objects and logs, for people |
//! | `import`, `export`, `export_log` | raw disk images, and writes that only a log has |
//! | `root` | the header of a store |

mod check;
mod dump;
mod export;
mod export_log;
mod family;
mod import;
pub(crate) mod purge;
pub mod root;
mod sweep;
mod usage;
mod verify;
mod volumes;

pub use export_log::export_log;
pub use purge::{PurgeTimer, UNDELETE_MILLIS};
pub use volumes::Admin;
pub(crate) use volumes::summary;

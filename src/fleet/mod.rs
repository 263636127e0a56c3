//! All the volumes of a daemon: how they come and go, and what the doors ask of them.
//!
//! | file | what |
//! | --- | --- |
//! | `volumes` | attaching, counting clients, detaching; the pulse of the gates |
//! | `serve` | the fleet behind the doors: NBD exports and the control API |
//! | `catalog` | the names that clients ask for |

mod catalog;
mod serve;
#[cfg(test)]
mod tests;
mod volumes;

pub use serve::{FleetExports, FleetService};
pub use volumes::Fleet;

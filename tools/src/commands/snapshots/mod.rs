//! `varve volumes snapshots`: one file a command.

use varve::service::SnapshotSummary;

use crate::render::{self, Block};

pub mod create;
pub mod destroy;
pub mod list;
pub mod show;

/// A snapshot. Exactly one line has "ID" in it, since scripts count on that: a name that has it too is left out.
fn block(snapshot: &SnapshotSummary) -> String {
    Block::default()
        .line("ID", snapshot.id)
        .maybe("Name", snapshot.name.as_ref().filter(|name| !name.contains("ID")))
        .line("Volume", snapshot.volume)
        .line("Status", render::snapshot_status(snapshot.status))
        .line("Volume size", render::size(snapshot.size))
        .line("Stored", render::size(snapshot.stored_bytes))
        .line("Taken by", if snapshot.scheduled { "schedule" } else { "command" })
        .line("Created at", render::moment(snapshot.created_at))
        .line("Kept until", render::expiry(snapshot.expires_at))
        .finish()
}

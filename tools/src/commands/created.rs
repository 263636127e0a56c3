//! What is printed of volumes that were just made: an object or a block for one, a list or several blocks for more.

use serde::Serialize;
use varve::service::VolumeSummary;

use crate::render::{self, Block};

/// Volumes that were made. JSON: an object for one, a list for several.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Volumes {
    /// One was asked for.
    One(Box<VolumeSummary>),
    /// Several were asked for, and so many were made.
    More(Vec<VolumeSummary>),
}

impl Volumes {
    /// `made` of `asked`.
    pub fn new(asked: u32, mut made: Vec<VolumeSummary>) -> Self {
        match made.pop() {
            Some(only) if asked == 1 => Volumes::One(Box::new(only)),
            last => {
                made.extend(last);
                Volumes::More(made)
            }
        }
    }

    /// A block for each.
    pub fn text(&self) -> String {
        match self {
            Volumes::One(volume) => block(volume),
            Volumes::More(volumes) => volumes.iter().map(block).collect::<Vec<_>>().join("\n"),
        }
    }
}

/// What is known of a volume that nobody has used yet. Exactly one line has "ID" in it, since scripts count on that: a name or region
/// that has it too is left out.
fn block(volume: &VolumeSummary) -> String {
    let without_id = |text: &str| (!text.contains("ID")).then(|| text.to_owned());
    Block::default()
        .line("ID", volume.id)
        .maybe("Name", without_id(&volume.name))
        .maybe("Origin", volume.origin)
        .maybe("Region", without_id(&volume.region))
        .line("Size", render::size(volume.size))
        .line("Encryption", render::encryption(volume.encryption.as_ref()))
        .line("Durability", render::durability(volume.durability))
        .line("Created at", render::moment(volume.created_at))
        .finish()
}

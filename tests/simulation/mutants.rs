//! Who watches the watchers: worlds with a deliberate bug, which some history must find.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use varve::work::simulated::Mutation;

use super::runs::history_with;
use super::world::Broken;
use super::{disk, network};

/// Histories within which every bug must be found.
const HISTORIES: u64 = 1500;

/// A deliberate bug.
pub struct Mutant {
    pub name: &'static str,
    mutation: Option<Mutation>,
    broken: Broken,
}

fn engine(name: &'static str, mutation: Mutation) -> Mutant {
    Mutant { name, mutation: Some(mutation), broken: Broken::default() }
}

fn edge(name: &'static str, broken: Broken) -> Mutant {
    Mutant { name, mutation: None, broken }
}

pub fn all() -> Vec<Mutant> {
    let on_disk = |broken| Broken { disk: Some(broken), ..Broken::default() };
    let on_store = |broken| Broken { network: Some(broken), ..Broken::default() };
    vec![
        edge("a sync of the log is skipped", on_disk(disk::Broken::SkipSync)),
        edge("a write is acknowledged before it is appended", on_disk(disk::Broken::AckBeforeAppend)),
        edge("segments are published out of order", on_store(network::Broken::PublishOutOfOrder)),
        edge("a segment is deleted early", on_store(network::Broken::DeleteEarly)),
        edge("a trim is acknowledged and forgotten", Broken { trims: true, ..Broken::default() }),
        engine("zeros are left out of segments", Mutation::ForgetTrim),
        engine("the log's space is reused early", Mutation::ReuseSlotEarly),
        engine("a checksum is ignored", Mutation::IgnoreChecksum),
        engine("a pin is forgotten", Mutation::ForgetPin),
        engine("a seal is taken for one's own segment", Mutation::DropSealCheck),
        engine("cleaning deletes what only a pin needs", Mutation::CleanPinned),
        engine("cleaning deletes what only the history needs", Mutation::ForgetHistory),
        engine("a fork lets go of its origin early", Mutation::LetGoEarly),
        engine("cleaning deletes a segment before a checkpoint does without it", Mutation::DeleteEarly),
        engine("what was moved takes effect over what is newer", Mutation::MoveOverNewer),
        engine("what a trim of a whole directory took comes back", Mutation::ReviveTrimmed),
    ]
}

impl Mutant {
    /// The first seed, by number, that was found to fail, and why.
    pub fn hunt(&self) -> Option<(u64, String)> {
        let (next, is_found) = (AtomicU64::new(0), AtomicBool::new(false));
        let found = std::sync::Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= HISTORIES || is_found.load(Ordering::Relaxed) {
                            return;
                        }
                        if let Some(failure) = history_with(seed, false, self.mutation, self.broken).failure {
                            is_found.store(true, Ordering::Relaxed);
                            found.lock().unwrap().get_or_insert((seed, failure));
                        }
                    }
                });
            }
        });
        found.into_inner().unwrap()
    }
}

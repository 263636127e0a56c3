//! The journal of a history: a digest of everything that happened, how often which fault and which branch was met, and, when somebody
//! wants to read it, a line for each event.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span;
use varve::work::simulated;

/// What the engine says when it takes a branch, and the name under which that is counted.
const BRANCHES: &[(&str, &str)] = &[
    ("the write log ends in a torn write", "recovery: torn tail"),
    ("this host died while it attached", "recovery: a claim without a log"),
    ("the local pages are older than the checkpoint", "recovery: stale index"),
    ("took the volume over from another owner", "recovery: takeover without the log"),
    ("what only this host's log holds is kept aside", "recovery: a foreign log kept aside"),
    ("attaching anew", "recovery: attached anew after a failure"),
    ("an earlier try took effect", "store: settled after an unknown outcome"),
    ("this process was suspended", "owner: in doubt after a pause"),
    ("was taken over by another owner", "owner: fenced"),
    ("the old owner was faster", "owner: a segment beat the seal"),
    ("fetching a damaged frame again", "read: a damaged frame fetched again"),
    ("a damaged entry of the read cache", "read: cache miss after damage"),
    ("an upload failed", "upload: tried again"),
    ("writing a checkpoint failed", "checkpoint: tried again"),
    ("poisoned", "log: poisoned"),
    ("writers wait for the full log", "log: full, writers wait"),
    ("took a snapshot", "family: snapshot"),
    ("moving ", "clean: blocks are moved"),
    ("deleted what nobody needs any more", "clean: objects are deleted"),
    ("counted what the volume has in the store", "clean: a census is made by looking"),
    ("needs its origin no more", "family: a fork needs its origin no more"),
    ("cleaning is put off", "clean: put off after a failure"),
];

#[derive(Default)]
struct Inner {
    digest: u64,
    events: u64,
    shows: bool,
    line: String,
    hits: BTreeMap<&'static str, u64>,
}

/// Clones are the same journal.
#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<Inner>>);

impl Journal {
    pub fn new(shows: bool) -> Journal {
        let inner = Inner { digest: 0xcbf2_9ce4_8422_2325, shows, ..Inner::default() };
        Journal(Arc::new(Mutex::new(inner)))
    }

    /// Notes an event.
    pub fn note(&self, event: fmt::Arguments<'_>) {
        let mut inner = self.0.lock().unwrap();
        let inner = &mut *inner;
        inner.line.clear();
        let host = simulated::host().unwrap_or_default().0;
        let at = simulated::elapsed().unwrap_or_default().as_secs_f64();
        // Writing to a string does not fail.
        let _ = write!(inner.line, "{at:11.6} {host:>5} {event}");
        for byte in inner.line.bytes() {
            inner.digest = (inner.digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        inner.events += 1;
        if inner.shows {
            println!("{}", inner.line);
        }
    }

    /// Counts a fault or a branch.
    pub fn hit(&self, what: &'static str) {
        *self.0.lock().unwrap().hits.entry(what).or_default() += 1;
    }

    pub fn digest(&self) -> (u64, u64) {
        let inner = self.0.lock().unwrap();
        (inner.digest, inner.events)
    }

    pub fn hits(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap().hits.clone()
    }
}

/// All names of branches that the engine can tell of.
pub fn branches() -> impl Iterator<Item = &'static str> {
    BRANCHES.iter().map(|(_, name)| *name)
}

/// Listens to what the engine says while a history runs.
pub struct Listener(pub Journal);

#[derive(Default)]
struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?} "),
            name => write!(self.0, "{name}={value:?} "),
        };
    }
}

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("varve") && *metadata.level() <= tracing::Level::DEBUG
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut words = Words::default();
        event.record(&mut words);
        for (_, name) in BRANCHES.iter().filter(|(part, _)| words.0.contains(part)) {
            self.0.hit(name);
        }
        self.0.note(format_args!("says: {}", words.0.trim_end()));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

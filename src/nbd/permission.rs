//! Which exports a client may open: rules by the names in its certificate, and the exports as that client sees them.
//!
//! # Guarantees
//! - What no rule allows is denied. A client learns nothing of an export that it may not open, not even that it exists: it gets the same
//!   answer as for one that does not.
//! - The export that is opened is the one that was judged: a name is turned into an id once.
//!
//! Whoever may open a volume may open its snapshots, which are its past. A fork is a volume of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use crate::block_device::{ExportEntry, Exports, Geometry, OpenDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::units::SnapshotId;

/// For each pattern of names of clients, patterns of the exports that they may open. In a pattern `*` is any text; all else is itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(pub BTreeMap<String, Vec<String>>);

impl Rules {
    /// True if a client with one of `names` may open what is known by one of `exports`.
    fn allow(&self, names: &[String], exports: &[&str]) -> bool {
        let is_meant = |pattern: &str| names.iter().any(|name| matches(pattern, name));
        let is_allowed = |pattern: &String| exports.iter().any(|export| matches(pattern, export));
        self.0.iter().any(|(client, allowed)| is_meant(client) && allowed.iter().any(is_allowed))
    }
}

/// True if `text` is of the form that `pattern` says. Takes time in proportion to the product of both lengths at most.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut place) = (0, 0);
    // Behind the newest star, and where the text goes on if that takes one byte more.
    let mut again = None;
    while place < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                at += 1;
                again = Some((at, place));
            }
            Some(&byte) if byte == text[place] => {
                at += 1;
                place += 1;
            }
            _ => {
                let Some((behind, begin)) = again else { return false };
                (at, place) = (behind, begin + 1);
                again = Some((behind, begin + 1));
            }
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

/// The exports as one client sees them.
pub struct Permitted {
    exports: Arc<dyn Exports>,
    rules: Arc<Rules>,
    /// The names in the client's certificate; none if it has shown none.
    names: Vec<String>,
}

impl Permitted {
    /// What of `exports` a client with these names may see.
    pub fn new(exports: Arc<dyn Exports>, rules: Arc<Rules>, names: Vec<String>) -> Self {
        Permitted { exports, rules, names }
    }

    fn may_open(&self, entry: &ExportEntry) -> bool {
        let known_as: Vec<&str> = std::iter::once(&entry.name).chain(&entry.other_names).map(String::as_str).collect();
        self.rules.allow(&self.names, &known_as)
    }

    /// The id of an export that the client may open.
    async fn id_of(&self, name: &str) -> Result<String> {
        self.entry_of(name).await.map(|entry| entry.name)
    }

    /// What an export is called that the client may open.
    async fn entry_of(&self, name: &str) -> Result<ExportEntry> {
        match self.exports.identify(name).await {
            Ok(entry) if self.may_open(&entry) => return Ok(entry),
            Ok(entry) => {
                tracing::warn!(client = ?self.names, export = entry.name, "a client asked for an export that it may not open");
            }
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Stopping) => {
                tracing::warn!(%error, "an export could not be looked up for a client");
                return Err(Error::new(error.kind(), "exports cannot be looked up just now: try again"));
            }
            Err(error) => {
                tracing::info!(client = ?self.names, %error, "a client asked for an export that cannot be had")
            }
        }
        let export = name.escape_debug();
        Err(Error::not_found(match self.names.as_slice() {
            [] => format!("no export '{export}' for a client that has shown no certificate with a name"),
            names => format!("no export '{export}' for a client with the certificate of {}", listed(names)),
        }))
    }
}

fn listed(names: &[String]) -> String {
    let names: Vec<String> = names.iter().take(4).map(|name| format!("'{}'", name.escape_debug())).collect();
    names.join(", ")
}

#[async_trait]
impl Exports for Permitted {
    async fn list(&self) -> Result<Vec<ExportEntry>> {
        let mut entries = self.exports.list().await?;
        entries.retain(|entry| self.may_open(entry));
        Ok(entries)
    }

    async fn identify(&self, name: &str) -> Result<ExportEntry> {
        self.entry_of(name).await
    }

    async fn inspect(&self, name: &str) -> Result<Geometry> {
        let id = self.id_of(name).await?;
        self.exports.inspect(&id).await
    }

    async fn open(&self, name: &str) -> Result<OpenDevice> {
        let id = self.id_of(name).await?;
        self.exports.open(&id).await
    }

    async fn bitmaps(&self, name: &str, asked: Option<Vec<SnapshotId>>) -> Result<Vec<SnapshotId>> {
        let id = self.id_of(name).await?;
        let Some(asked) = asked else { return self.exports.bitmaps(&id, None).await };
        let mut permitted = Vec::new();
        for snapshot in asked {
            if self.id_of(&snapshot.to_string()).await.is_ok() {
                permitted.push(snapshot);
            }
        }
        self.exports.bitmaps(&id, Some(permitted)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, text, expected) in [
            ("build-*", "build-7", true),
            ("build-*", "build-", true),
            ("build-*", "rebuild-7", false),
            ("build", "build-7", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*.ci.example", "a.b.ci.example", true),
            ("*.ci.example", "ci.example", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("**a", "ba", true),
            ("build-7", "Build-7", false),
            ("build-7", "build-*", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        // What a naive matcher needs longer for than anybody lives.
        assert!(!matches(&"a*".repeat(40), &format!("{}b", "c".repeat(4000))));
    }

    #[test]
    fn what_no_rule_allows_is_denied() {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let rules = Rules(BTreeMap::from([
            ("build-*".to_owned(), owned(&["cache-*", "vol_1"])),
            ("db.example".to_owned(), owned(&["shop"])),
            ("nobody".to_owned(), Vec::new()),
        ]));
        for (names, exports, expected) in [
            (&["build-1"][..], &["vol_9", "cache-1"][..], true),
            (&["build-1"], &["vol_1", "anything"], true),
            (&["build-1"], &["vol_2", "shop"], false),
            (&["x", "db.example"], &["vol_2", "shop"], true),
            (&["nobody"], &["vol_1"], false),
            (&[], &["vol_1", "cache-1"], false),
        ] {
            assert_eq!(rules.allow(&owned(names), exports), expected, "{names:?} {exports:?}");
        }
        assert!(!Rules::default().allow(&owned(&["build-1"]), &["vol_1"]));
    }
}

//! What every command works with: settings, the store (opened when it is first needed), and the daemon's socket.

use std::io::Write;
use std::path::Path;

use tokio::sync::OnceCell;
use varve::admin::Admin;
use varve::control::client::Client;
use varve::disk::host::HostDisk;
use varve::error::{ErrorKind, Result};
use varve::keys::{KeySource, create_key_file};
use varve::log::{self, Recovered};
use varve::settings::SharedSettings;
use varve::units::UnixMillis;

/// The surroundings of one command.
pub struct Context {
    /// Settings.
    pub settings: SharedSettings,
    /// True if the output is to be JSON.
    pub json: bool,
    /// The time that ages are told from.
    pub now: UnixMillis,
    /// The daemon.
    pub daemon: Client,
    /// Asks the person a yes-or-no question.
    pub ask: fn(&str) -> Result<bool>,
    store: OnceCell<Admin>,
}

impl Context {
    /// Surroundings from settings; nothing is opened or connected yet.
    pub fn new(settings: SharedSettings, json: bool) -> Result<Self> {
        let daemon = Client::new(&settings.control);
        Ok(Context { settings, json, now: varve::clock::now(), daemon, ask: crate::ask, store: OnceCell::new() })
    }

    /// The same with a store that is open already.
    #[cfg(test)]
    pub fn with_store(mut self, store: Admin) -> Self {
        self.store = OnceCell::new_with(Some(store));
        self
    }

    /// The store, which must exist.
    pub async fn store(&self) -> Result<&Admin> {
        self.store.get_or_try_init(|| Admin::open(&self.settings, false)).await
    }

    /// The store, created if its place is empty.
    pub async fn store_or_new(&self) -> Result<&Admin> {
        self.store.get_or_try_init(|| Admin::open(&self.settings, true)).await
    }

    /// A write log, wherever it lies. The store is asked only if it is encrypted.
    pub async fn log(&self, path: &Path) -> Result<Recovered> {
        if !log::peek(&HostDisk, path)?.sealed {
            return log::recover(&HostDisk, path, &|_| Ok(None));
        }
        self.store().await?.open_log(path).await
    }

    /// Makes the default key if it is to be used for the first time, and tells the person what that means.
    pub fn ready_key(&self) -> Result<()> {
        let Some(path) = self.settings.default_key.as_deref().filter(|path| !path.exists()) else { return Ok(()) };
        match create_key_file(path) {
            Ok(id) => {
                let path = path.display();
                let message = format!(
                    "Made the key {id} in {path}. Volumes are encrypted with it, and nobody can read them without it: keep a copy where it outlives this machine.\n"
                );
                // Nobody can be told if this fails.
                let _ = std::io::stderr().write_all(message.as_bytes());
                Ok(())
            }
            // Another command was faster.
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The region of a new volume for which this one was asked.
    pub fn region(&self, asked: Option<String>) -> String {
        asked.or_else(|| self.settings.regions.own.clone()).unwrap_or_else(|| "default".to_owned())
    }

    /// The command that starts a daemon with these settings.
    pub fn start_command(&self) -> String {
        let SharedSettings { store, state, control, regions: _, keys, default_key } = &self.settings;
        let mut command = format!("varved --store {} --state {}", quoted(store), quoted(&state.display().to_string()));
        if let Some(path) = control.socket().filter(|path| **path != state.join("control.sock")) {
            command += &format!(" --control {}", quoted(&path.display().to_string()));
        }
        if default_key.is_none() {
            // As a source shows itself: without what may be secret in it.
            let sources = keys.iter().filter_map(|key| key.parse::<KeySource>().ok());
            sources.for_each(|source| command += &format!(" --key {}", quoted(&source.to_string())));
        }
        command
    }
}

/// As a shell takes it for one word.
pub fn quoted(text: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "/:._-+@%=,~".contains(letter);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(super::quoted("s3://bucket/a-b_c.d"), "s3://bucket/a-b_c.d");
        assert_eq!(super::quoted("/my disk's"), r"'/my disk'\''s'");
        assert_eq!(super::quoted(""), "''");
    }
}

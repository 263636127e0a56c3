//! What every command works with: settings, the store (opened when it is first needed), and the daemon's socket.

use tokio::sync::OnceCell;
use varve::control::client::Client;
use varve::error::Result;
use varve::settings::SharedSettings;
use varve::units::UnixMillis;
use varve::volume::Admin;

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
        let daemon = Client::new(&settings.control)?;
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

    /// The region of a new volume for which this one was asked.
    pub fn region(&self, asked: Option<String>) -> String {
        asked.or_else(|| self.settings.regions.own.clone()).unwrap_or_else(|| "default".to_owned())
    }

    /// The command that starts a daemon with these settings.
    pub fn start_command(&self) -> String {
        let SharedSettings { store, state, control, regions: _ } = &self.settings;
        let mut command = format!("varved --store {} --state {}", quoted(store), quoted(&state.display().to_string()));
        if *control != state.join("control.sock") {
            command += &format!(" --control {}", quoted(&control.display().to_string()));
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

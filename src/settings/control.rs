//! Where the daemon is asked, and where it lets itself be asked over TCP.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::absolute;
use crate::error::{Error, Result};

/// Where the daemon is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAddress {
    /// On its control socket, which has this path.
    Socket(PathBuf),
    /// At its control door, over TCP.
    Remote(RemoteControl),
}

/// How a daemon is asked over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteControl {
    /// `https://host:port`, without anything behind it.
    pub url: String,
    /// PEM file with the authority that the daemon's certificate must come from; without it, those that the system trusts.
    pub authority: Option<PathBuf>,
    /// Where the token is kept that is shown to the daemon.
    pub token: TokenSource,
}

/// Where a token is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// In a file, alone.
    File(PathBuf),
    /// In a variable of the environment.
    Environment(String),
}

/// The control door of a daemon over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlDoor {
    /// Where it listens.
    pub address: SocketAddr,
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// The file that says which tokens are good.
    pub tokens: PathBuf,
}

impl ControlAddress {
    /// From what was given: an address that begins with `https://`, or a path.
    ///
    /// # Errors
    /// `Invalid`.
    pub(super) fn new(given: &str, authority: Option<PathBuf>, token: Option<TokenSource>) -> Result<Self> {
        let Some(place) = given.strip_prefix("https://") else {
            if given.contains("://") {
                return Err(Error::invalid(
                    "--control takes the path of a socket, or an address as https://host:port: nothing else is encrypted",
                ));
            }
            return absolute(given.into(), "--control").map(ControlAddress::Socket);
        };
        let place = place.trim_end_matches('/');
        if place.is_empty() || place.contains(|letter: char| "/@?#\\".contains(letter) || letter.is_whitespace()) {
            return Err(Error::invalid("--control is not an address: write it as https://host:port"));
        }
        let token = token.ok_or_else(|| {
            Error::invalid(
                "a daemon that is asked over TCP wants a token: say where it is kept, with --control-token file:PATH or env:NAME",
            )
        })?;
        Ok(ControlAddress::Remote(RemoteControl { url: format!("https://{place}"), authority, token }))
    }

    /// The path of the socket, if it is one.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            ControlAddress::Socket(path) => Some(path),
            ControlAddress::Remote(_) => None,
        }
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlAddress::Socket(path) => path.display().fmt(f),
            ControlAddress::Remote(remote) => remote.url.fmt(f),
        }
    }
}

impl FromStr for TokenSource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // What was given is not repeated: it may be the token itself.
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(TokenSource::File(path.into())),
            Some(("env", name)) if !name.is_empty() => Ok(TokenSource::Environment(name.to_owned())),
            _ => Err(Error::invalid(
                "the place of a token is written as file:PATH or env:NAME; a token itself is never an argument",
            )),
        }
    }
}

impl fmt::Display for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenSource::File(path) => write!(f, "file:{}", path.display()),
            TokenSource::Environment(name) => write!(f, "env:{name}"),
        }
    }
}

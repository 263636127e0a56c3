//! The settings file: TOML with the keys of the table in the [parent module](super), each checked by the parser of its flag.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{
    Prefetch, RegionSettings, SpaceTarget, TlsMode, TokenSource, parse_address, parse_connections, parse_duration,
    parse_log_size, parse_size, parse_space_target, parse_transfer_size,
};
use crate::error::{Error, Result};
use crate::units::ByteLen;

/// Longest settings file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a settings file says; whatever it leaves out is `None` or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct FileSettings {
    pub(super) store: Option<String>,
    pub(super) region: Option<String>,
    pub(super) regions: BTreeMap<String, RegionSettings>,
    pub(super) state: Option<PathBuf>,
    pub(super) control: Option<String>,
    pub(super) control_ca: Option<PathBuf>,
    #[serde(deserialize_with = "token_source")]
    pub(super) control_token: Option<TokenSource>,
    #[serde(deserialize_with = "address")]
    pub(super) control_tcp: Option<SocketAddr>,
    pub(super) control_tokens: Option<PathBuf>,
    pub(super) key: Vec<String>,
    #[serde(deserialize_with = "addresses")]
    pub(super) nbd: Vec<SocketAddr>,
    pub(super) nbd_unix: Option<PathBuf>,
    #[serde(deserialize_with = "log_size")]
    pub(super) log_size: Option<ByteLen>,
    #[serde(deserialize_with = "size")]
    pub(super) cache_size: Option<ByteLen>,
    #[serde(deserialize_with = "size")]
    pub(super) memory_size: Option<ByteLen>,
    #[serde(deserialize_with = "duration")]
    pub(super) detach_after: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    pub(super) segment_age: Option<Duration>,
    #[serde(deserialize_with = "space_target")]
    pub(super) space_target: Option<SpaceTarget>,
    pub(super) prefetch: Option<Prefetch>,
    pub(super) tls: Option<TlsMode>,
    pub(super) tls_certificate: Option<PathBuf>,
    pub(super) tls_key: Option<PathBuf>,
    pub(super) tls_client_ca: Option<PathBuf>,
    pub(super) allow_insecure_tcp: bool,
    #[serde(deserialize_with = "clients")]
    pub(super) clients: Option<BTreeMap<String, Vec<String>>>,
    #[serde(deserialize_with = "connections")]
    pub(super) connections_max: Option<u32>,
    #[serde(deserialize_with = "connections")]
    pub(super) client_connections_max: Option<u32>,
    #[serde(deserialize_with = "duration")]
    pub(super) handshake_time: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    pub(super) idle_time: Option<Duration>,
    #[serde(deserialize_with = "transfer_size")]
    pub(super) transfer_size: Option<ByteLen>,
}

impl FileSettings {
    /// Reads the settings file at `path`.
    ///
    /// # Errors
    /// `NotFound` if there is none, `Io` if it cannot be read, `Invalid` for what it says, with line and key.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(format!("there is no settings file {}", path.display())),
            std::io::ErrorKind::InvalidData => {
                Error::invalid(format!("settings file {}: it is not UTF-8 text", path.display()))
            }
            _ => Error::io(format!("settings file {}", path.display()), &error),
        };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > FILE_BYTES_MAX {
            return Err(Error::invalid(format!(
                "settings file {}: {length} bytes are too many for one",
                path.display()
            )));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(failed)?, path)
    }

    /// Takes `text` for the content of the settings file at `path`, which is only used in messages.
    ///
    /// # Errors
    /// `Invalid`, with line and key.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        toml::from_str(text).map_err(|error| {
            let (line, content) = located(text, error.span().map_or(0, |span| span.start));
            Error::invalid(format!("settings file {}, line {line} ({content}): {}", path.display(), error.message()))
        })
    }
}

/// The number of the line at a byte offset, and its content up to the value, since values may be secrets or long.
fn located(text: &str, offset: usize) -> (usize, &str) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count();
    let content = text.lines().nth(line).unwrap_or_default();
    (line + 1, content.split('=').next().unwrap_or_default().trim())
}

/// A number or a text: `cache-size = 10` and `cache-size = "10"` are the same.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number or a text in quotes")]
enum Scalar {
    Integer(i64),
    Float(f64),
    Text(String),
}

fn scalar<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Result<T>,
) -> Result<Option<T>, D::Error> {
    let text = match Scalar::deserialize(deserializer)? {
        Scalar::Integer(number) => number.to_string(),
        Scalar::Float(number) => number.to_string(),
        Scalar::Text(text) => text,
    };
    parse(&text).map(Some).map_err(custom::<D>)
}

fn custom<'de, D: Deserializer<'de>>(error: impl Display) -> D::Error {
    D::Error::custom(error)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteLen>, D::Error> {
    scalar(deserializer, parse_size)
}

fn log_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteLen>, D::Error> {
    scalar(deserializer, parse_log_size)
}

fn transfer_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteLen>, D::Error> {
    scalar(deserializer, parse_transfer_size)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    scalar(deserializer, parse_duration)
}

fn connections<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    scalar(deserializer, parse_connections)
}

fn space_target<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SpaceTarget>, D::Error> {
    scalar(deserializer, parse_space_target)
}

fn token_source<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TokenSource>, D::Error> {
    scalar(deserializer, str::parse)
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    scalar(deserializer, parse_address)
}

/// The table of clients. A name that is empty means nobody, and whoever wrote it meant something else.
fn clients<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeMap<String, Vec<String>>>, D::Error> {
    let table = BTreeMap::<String, Vec<String>>::deserialize(deserializer)?;
    if table.iter().any(|(client, exports)| client.is_empty() || exports.iter().any(String::is_empty)) {
        return Err(D::Error::custom("an empty name: write a name, an id, or * for all"));
    }
    Ok(Some(table))
}

/// One address, or a list of them.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected an address in quotes, or a list of them")]
enum Addresses {
    One(String),
    Many(Vec<String>),
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let texts = match Addresses::deserialize(deserializer)? {
        Addresses::One(text) => vec![text],
        Addresses::Many(texts) => texts,
    };
    texts.iter().map(|text| parse_address(text)).collect::<Result<_>>().map_err(custom::<D>)
}

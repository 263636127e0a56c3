//! Settings of both binaries: from flags, then the environment (`VARVE_STORE`, `VARVE_STATE`, `VARVE_CONTROL`, `VARVE_CONTROL_CA`,
//! `VARVE_CONTROL_TOKEN`, `VARVE_KEY`, `VARVE_CONFIG`), then the settings file (TOML), then defaults.
//!
//! | key | default | what |
//! | --- | --- | --- |
//! | `store` | `file://DATA/varve/store` | where volumes live: `file:///path` or `s3://bucket/prefix` |
//! | `region` | none | what other regions call the one of the store: the name of a table `[regions.NAME]`, say, whose `store` is then the default |
//! | `[regions.NAME]` | none | another region: `store`, and `endpoint`, `aws-region`, `profile` where they differ from what the environment says |
//! | `state` | `DATA/varve/state` | local directory: write logs, map, read cache |
//! | `control` | `STATE/control.sock` | the control socket; for `varve` also `https://host:port`, the control door of a daemon elsewhere |
//! | `control-ca`, `control-token` | those of the system; none | for `https://`: PEM file with the authority of the daemon's certificate; where the token is kept, `file:PATH` or `env:NAME` |
//! | `control-tcp`, `control-tokens` | none | address of the daemon's control door over TCP, which shows `tls-certificate`; the file of the tokens that open it (`varve tokens`) |
//! | `key` | `file:CONFIG/varve/key` | where the keys are kept that volumes are encrypted with, the first for new ones: `file:PATH`, `env:NAME`, `passphrase-file:PATH`, `passphrase-env:NAME`, `command:PROGRAM` |
//! | `nbd` | `127.0.0.1:10809` | TCP addresses for NBD clients; the default holds if no address and no Unix socket is given |
//! | `nbd-unix` | none | Unix socket for NBD clients |
//! | `log-size` | 2 GiB | write log of each attached volume |
//! | `cache-size` | 10 GiB | read cache on disk, for all volumes together |
//! | `memory-size` | 256 MiB | read cache and map pages in memory, for all volumes together |
//! | `detach-after` | 5m | time without clients after which a volume is detached |
//! | `space-target` | 135 | segments of a volume take at most so many percent of what is in use in them, 110 to 1000; `off`: only `varve volumes clean` cleans |
//! | `prefetch` | on | what is read first of a volume is noted and kept beside its snapshots, and brought when a fork is first attached; `off` |
//! | `segment-age` | 3s | age at which a write is uploaded even if little has gathered |
//! | `tls` | off | TLS for NBD over TCP: `off`, `allow`, `require` |
//! | `tls-certificate`, `tls-key` | none | PEM files, needed unless `tls` is `off` |
//! | `tls-client-ca` | none | PEM file: clients must show a certificate that it has signed |
//! | `allow-insecure-tcp` | false | listen for NBD where other machines can connect though TLS is not required |
//! | `clients` | none | table of the file only: for each name in a client's certificate the exports that it may open (`design/doors.md`) |
//! | `connections-max` | 256 | NBD connections at a time |
//! | `client-connections-max` | half of `connections-max` | of those, from one address |
//! | `handshake-time` | 10s | time in which an NBD client must have asked for its export |
//! | `idle-time` | none | time without requests after which an NBD connection is closed |
//! | `transfer-size` | 256 MiB | long requests, and requests not answered at once, of all NBD connections in memory |
//!
//! DATA is `$XDG_DATA_HOME`, or `$HOME/.local/share`; CONFIG is `$XDG_CONFIG_HOME`, or `$HOME/.config`, or `/etc`. The keys are those of the file; the flags have the same names with
//! `--` before them. Both binaries read the same file. A key that is not in the table is an error.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::units::ByteLen;

mod control;
mod file;
mod regions;
mod size;
#[cfg(test)]
mod tests;

pub use control::{ControlAddress, ControlDoor, RemoteControl, TokenSource};
pub use file::FileSettings;
pub use regions::{RegionSettings, Regions};
pub use size::{parse_log_size, parse_name, parse_size, parse_transfer_size, parse_volume_size};

const NBD_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10809);
const LOG_BYTES_DEFAULT: ByteLen = ByteLen(2 << 30);
const CACHE_BYTES_DEFAULT: ByteLen = ByteLen(10 << 30);
const MEMORY_BYTES_DEFAULT: ByteLen = ByteLen(256 << 20);
const DETACH_AFTER_DEFAULT: Duration = Duration::from_mins(5);
const SEGMENT_AGE_DEFAULT: Duration = Duration::from_secs(3);
const SPACE_TARGET_DEFAULT: SpaceTarget = SpaceTarget::Percent(135);
const CONNECTIONS_DEFAULT: u32 = 256;
const HANDSHAKE_TIME_DEFAULT: Duration = Duration::from_secs(10);
const TRANSFER_BYTES_DEFAULT: ByteLen = ByteLen(256 << 20);
const CONNECTIONS_MAX: u32 = 65_536;
/// Longest time that makes sense anywhere: a year.
const DURATION_MAX: Duration = Duration::from_hours(365 * 24);

/// The flags that both binaries take.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedArguments {
    /// Where volumes live: file:///path or s3://bucket/prefix
    #[arg(long, value_name = "URL", env = "VARVE_STORE", hide_env_values = true, global = true)]
    pub store: Option<String>,
    /// Local directory of the daemon: write logs, map, read cache
    #[arg(long, value_name = "DIR", env = "VARVE_STATE", hide_env_values = true, global = true)]
    pub state: Option<PathBuf>,
    /// Control socket of the daemon [default: control.sock in the state directory]; varve also takes https://host:port
    #[arg(long, value_name = "PATH", env = "VARVE_CONTROL", hide_env_values = true, global = true)]
    pub control: Option<String>,
    /// For https://: authority that the daemon's certificate must come from (PEM) [default: those of the system]
    #[arg(long, value_name = "FILE", env = "VARVE_CONTROL_CA", hide_env_values = true, global = true)]
    pub control_ca: Option<PathBuf>,
    /// For https://: where the token is kept that the daemon wants: file:PATH or env:NAME
    #[arg(long, value_name = "SOURCE", env = "VARVE_CONTROL_TOKEN", hide_env_values = true, global = true)]
    pub control_token: Option<String>,
    /// Where a key is kept that volumes are encrypted with: file:PATH, env:NAME, passphrase-file:PATH, passphrase-env:NAME or command:PROGRAM; may be repeated [default: file:.config/varve/key]
    #[arg(long, value_name = "SOURCE", env = "VARVE_KEY", hide_env_values = true, global = true)]
    pub key: Vec<String>,
    /// Settings file (TOML)
    #[arg(long, value_name = "FILE", env = "VARVE_CONFIG", hide_env_values = true, global = true)]
    pub config: Option<PathBuf>,
}

/// The flags of varved.
#[derive(Parser, Clone, Debug, Default, PartialEq, Eq)]
#[command(name = "varved", version, about = "Serves the volumes of a store over NBD")]
pub struct DaemonArguments {
    #[command(flatten)]
    shared: SharedArguments,
    #[command(flatten)]
    own: OwnArguments,
}

/// What only varved takes; the settings file is turned into the same.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
struct OwnArguments {
    /// Address for NBD clients; may be repeated [default: 127.0.0.1:10809]
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_address)]
    nbd: Vec<SocketAddr>,
    /// Unix socket for NBD clients
    #[arg(long, value_name = "PATH")]
    nbd_unix: Option<PathBuf>,
    /// Write log of each attached volume [default: 2GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_log_size, allow_hyphen_values = true)]
    log_size: Option<ByteLen>,
    /// Read cache on disk, for all volumes together [default: 10GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_hyphen_values = true)]
    cache_size: Option<ByteLen>,
    /// Read cache and map pages in memory, for all volumes together [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_hyphen_values = true)]
    memory_size: Option<ByteLen>,
    /// Time without clients after which a volume is detached [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    detach_after: Option<Duration>,
    /// Age at which a write is uploaded even if little has gathered [default: 3s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    segment_age: Option<Duration>,
    /// Segments of a volume take at most so many percent of what is in use in them, or off [default: 135]
    #[arg(long, value_name = "PERCENT", value_parser = parse_space_target, allow_hyphen_values = true)]
    space_target: Option<SpaceTarget>,
    /// Bring what is read first of a volume before it is asked for [default: on]
    #[arg(long, value_enum, value_name = "MODE")]
    prefetch: Option<Prefetch>,
    /// TLS for NBD over TCP [default: off]
    #[arg(long, value_enum, value_name = "MODE")]
    tls: Option<TlsMode>,
    /// Let the daemon be asked over TCP as on its control socket, by who has a token; shows the certificate
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_address)]
    control_tcp: Option<SocketAddr>,
    /// File of the tokens that open it, made with varve tokens
    #[arg(long, value_name = "FILE")]
    control_tokens: Option<PathBuf>,
    /// Certificate chain (PEM)
    #[arg(long, value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// Private key (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Clients must show a certificate signed by this one (PEM)
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Listen for NBD where other machines can connect though TLS is not required
    #[arg(long)]
    allow_insecure_tcp: bool,
    /// NBD connections at a time [default: 256]
    #[arg(long, value_name = "COUNT", value_parser = parse_connections, allow_hyphen_values = true)]
    connections_max: Option<u32>,
    /// NBD connections at a time from one address [default: half of connections-max]
    #[arg(long, value_name = "COUNT", value_parser = parse_connections, allow_hyphen_values = true)]
    client_connections_max: Option<u32>,
    /// Time in which an NBD client must have asked for its export [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    handshake_time: Option<Duration>,
    /// Time without requests after which an NBD connection is closed [default: none]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    idle_time: Option<Duration>,
    /// Long requests, and requests not answered at once, of all NBD connections in memory [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_transfer_size, allow_hyphen_values = true)]
    transfer_size: Option<ByteLen>,
}

/// Whether NBD clients over TCP use TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Never.
    #[default]
    Off,
    /// If the client asks for it.
    Allow,
    /// Always.
    Require,
}

/// How clean a volume is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceTarget {
    /// Nothing is cleaned but when somebody asks for it.
    Off,
    /// Its segments take at most so many hundredths of what is in use in them.
    Percent(u32),
}

/// Whether what is read first of volumes is brought before it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefetch {
    /// It is.
    #[default]
    On,
    /// It is not, and neither is it noted.
    Off,
}

/// TLS with the files it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// True if a client that does not ask for TLS is refused.
    pub required: bool,
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Clients must show a certificate that this one (PEM) has signed.
    pub client_ca: Option<PathBuf>,
}

/// What both binaries need to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSettings {
    /// URL of the store.
    pub store: String,
    /// Local directory of the daemon.
    pub state: PathBuf,
    /// Where the daemon is asked.
    pub control: ControlAddress,
    /// The region of the store, and the stores of others.
    pub regions: Regions,
    /// Where keys are kept, as text; the first for new volumes.
    pub keys: Vec<String>,
    /// The key file that stands in `keys` because nobody named another.
    pub default_key: Option<PathBuf>,
}

/// All that varved needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What both binaries know.
    pub shared: SharedSettings,
    /// Path of the control socket.
    pub control_socket: PathBuf,
    /// The control door over TCP, if there is to be one.
    pub control_door: Option<ControlDoor>,
    /// TCP addresses for NBD clients.
    pub nbd: Vec<SocketAddr>,
    /// True if nobody named an address or socket, and `nbd` is the default.
    pub nbd_is_default: bool,
    /// Unix socket for NBD clients.
    pub nbd_unix: Option<PathBuf>,
    /// Write log of each attached volume, in bytes.
    pub log_size: ByteLen,
    /// Read cache on disk, in bytes.
    pub cache_size: ByteLen,
    /// Read cache and map pages in memory together, in bytes.
    pub memory_size: ByteLen,
    /// Time without clients after which a volume is detached.
    pub detach_after: Duration,
    /// Age at which a write is uploaded even if little has gathered.
    pub segment_age: Duration,
    /// How clean volumes are kept.
    pub space_target: SpaceTarget,
    /// Whether what is read first is brought before it is asked for.
    pub prefetch: Prefetch,
    /// TLS for NBD over TCP; none if off.
    pub tls: Option<TlsSettings>,
    /// Listen for NBD where other machines can connect though TLS is not required.
    pub allow_insecure_tcp: bool,
    /// For each pattern of names in certificates, the exports that such a client may open; without a table, all.
    pub clients: Option<BTreeMap<String, Vec<String>>>,
    /// NBD connections at a time.
    pub connections_max: u32,
    /// NBD connections at a time from one address.
    pub client_connections_max: u32,
    /// Time in which an NBD client must have asked for its export.
    pub handshake_time: Duration,
    /// Time without requests after which an NBD connection is closed.
    pub idle_time: Option<Duration>,
    /// Long requests, and requests not answered at once, of all NBD connections in memory, in bytes.
    pub transfer_size: ByteLen,
}

/// Where the defaults lie: what the environment says of the user's directories.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// `$XDG_DATA_HOME`.
    pub data_home: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`.
    pub config_home: Option<PathBuf>,
    /// `$HOME`.
    pub home: Option<PathBuf>,
}

impl Places {
    /// From the environment of this process. Relative paths are ignored, as the XDG specification demands.
    pub fn from_environment() -> Self {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let (data_home, config_home) = (absolute("XDG_DATA_HOME"), absolute("XDG_CONFIG_HOME"));
        Places { data_home, config_home, home: absolute("HOME") }
    }

    fn key_file(&self) -> PathBuf {
        let config = self.config_home.clone().or_else(|| Some(self.home.as_ref()?.join(".config")));
        config.unwrap_or_else(|| PathBuf::from("/etc")).join("varve").join("key")
    }

    fn data(&self, flag: &str) -> Result<PathBuf> {
        let data_home = self.data_home.clone().or_else(|| Some(self.home.as_ref()?.join(".local/share")));
        data_home.map(|path| path.join("varve")).ok_or_else(|| {
            Error::invalid(format!(
                "neither HOME nor XDG_DATA_HOME is set, so there is no default for {flag}: give it as a flag"
            ))
        })
    }
}

impl SharedArguments {
    /// The settings of `varve`: reads the settings file if one is named.
    ///
    /// # Errors
    /// `Invalid`, `NotFound` or `Io` for the settings file; `Invalid` where there is no default.
    pub fn resolve(&self, places: &Places) -> Result<SharedSettings> {
        let file = self.file()?;
        self.over(&file, places)
    }

    fn file(&self) -> Result<FileSettings> {
        self.config.as_deref().map_or_else(|| Ok(FileSettings::default()), FileSettings::read)
    }

    fn over(&self, file: &FileSettings, places: &Places) -> Result<SharedSettings> {
        let regions = Regions::new(file.region.clone(), file.regions.clone())?;
        let home = || regions.home().map(|home| home.store.clone());
        let store = self.store.clone().or_else(|| file.store.clone()).or_else(home);
        let store = match store {
            Some(url) if url.trim().is_empty() => {
                return Err(Error::invalid("--store is empty: give file:///path or s3://bucket/prefix"));
            }
            Some(url) => url,
            None => format!("file://{}", places.data("--store")?.join("store").display()),
        };
        let state = self.state.clone().or_else(|| file.state.clone());
        let state =
            state.map_or_else(|| Ok(places.data("--state")?.join("state")), |path| absolute(path, "--state"))?;
        let control = self.control.clone().or_else(|| file.control.clone());
        let authority = self.control_ca.clone().or_else(|| file.control_ca.clone());
        // Not by clap, which repeats what it refuses: somebody may have given the token itself.
        let token = self.control_token.as_deref().map(str::parse).transpose()?.or_else(|| file.control_token.clone());
        let control = match control {
            Some(given) => ControlAddress::new(&given, authority, token)?,
            None => ControlAddress::Socket(state.join("control.sock")),
        };
        let named = if self.key.is_empty() { &file.key } else { &self.key };
        let default_key = named.is_empty().then(|| places.key_file());
        let keys = default_key.as_ref().map_or_else(|| named.clone(), |path| vec![format!("file:{}", path.display())]);
        Ok(SharedSettings { store, state, control, regions, keys, default_key })
    }
}

impl DaemonArguments {
    /// The settings of `varved`: reads the settings file if one is named.
    ///
    /// # Errors
    /// `Invalid`, `NotFound` or `Io` for the settings file; `Invalid` where there is no default, or for settings that
    /// contradict each other.
    pub fn resolve(&self, places: &Places) -> Result<Settings> {
        let file = self.shared.file()?;
        let shared = self.shared.over(&file, places)?;
        let own = &self.own;
        let given_nbd = if own.nbd.is_empty() { &file.nbd } else { &own.nbd };
        let nbd_unix = own.nbd_unix.clone().or(file.nbd_unix.clone());
        let nbd_is_default = given_nbd.is_empty() && nbd_unix.is_none();
        let connections_max = own.connections_max.or(file.connections_max).unwrap_or(CONNECTIONS_DEFAULT);
        let client_connections_max = own.client_connections_max.or(file.client_connections_max);
        let control_socket = shared.control.socket().map(PathBuf::from).ok_or_else(|| {
            Error::invalid("--control is the path of a socket for varved: it listens on TCP with --control-tcp")
        })?;
        let control_door = control_door(own, &file)?;
        Ok(Settings {
            shared,
            control_socket,
            nbd: if nbd_is_default { vec![NBD_DEFAULT] } else { given_nbd.clone() },
            nbd_is_default,
            nbd_unix,
            log_size: own.log_size.or(file.log_size).unwrap_or(LOG_BYTES_DEFAULT),
            cache_size: own.cache_size.or(file.cache_size).unwrap_or(CACHE_BYTES_DEFAULT),
            memory_size: own.memory_size.or(file.memory_size).unwrap_or(MEMORY_BYTES_DEFAULT),
            detach_after: own.detach_after.or(file.detach_after).unwrap_or(DETACH_AFTER_DEFAULT),
            segment_age: own.segment_age.or(file.segment_age).unwrap_or(SEGMENT_AGE_DEFAULT),
            space_target: own.space_target.or(file.space_target).unwrap_or(SPACE_TARGET_DEFAULT),
            prefetch: own.prefetch.or(file.prefetch).unwrap_or_default(),
            tls: tls_settings(own, &file, control_door.is_some())?,
            control_door,
            allow_insecure_tcp: own.allow_insecure_tcp || file.allow_insecure_tcp,
            clients: file.clients.clone(),
            connections_max,
            client_connections_max: client_connections_max.unwrap_or(connections_max.div_ceil(2)),
            handshake_time: own.handshake_time.or(file.handshake_time).unwrap_or(HANDSHAKE_TIME_DEFAULT),
            idle_time: own.idle_time.or(file.idle_time),
            transfer_size: own.transfer_size.or(file.transfer_size).unwrap_or(TRANSFER_BYTES_DEFAULT),
        })
    }
}

fn control_door(own: &OwnArguments, file: &FileSettings) -> Result<Option<ControlDoor>> {
    let tokens = own.control_tokens.clone().or(file.control_tokens.clone());
    let Some(address) = own.control_tcp.or(file.control_tcp) else {
        return match tokens {
            Some(_) => Err(Error::invalid("--control-tokens is given, but no --control-tcp: name an address")),
            None => Ok(None),
        };
    };
    let certificate = own.tls_certificate.clone().or(file.tls_certificate.clone());
    let key = own.tls_key.clone().or(file.tls_key.clone());
    match (certificate, key, tokens) {
        (Some(certificate), Some(key), Some(tokens)) => Ok(Some(ControlDoor { address, certificate, key, tokens })),
        _ => Err(Error::invalid("--control-tcp needs --tls-certificate, --tls-key and --control-tokens")),
    }
}

/// `has_door`: the certificate serves the control door in any case.
fn tls_settings(own: &OwnArguments, file: &FileSettings, has_door: bool) -> Result<Option<TlsSettings>> {
    let mode = own.tls.or(file.tls).unwrap_or_default();
    let certificate = own.tls_certificate.clone().or(file.tls_certificate.clone());
    let key = own.tls_key.clone().or(file.tls_key.clone());
    let client_ca = own.tls_client_ca.clone().or(file.tls_client_ca.clone());
    let required = match mode {
        // Somebody who names a certificate expects encryption; serving without it must be asked for.
        TlsMode::Off if client_ca.is_some() || (!has_door && (certificate.is_some() || key.is_some())) => {
            return Err(Error::invalid(
                "TLS files are given, but tls is off: add --tls allow or --tls require, or leave them out",
            ));
        }
        TlsMode::Off => return Ok(None),
        TlsMode::Allow => false,
        TlsMode::Require => true,
    };
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsSettings { required, certificate, key, client_ca })),
        _ => Err(Error::invalid("TLS needs both --tls-certificate and --tls-key (PEM files)")),
    }
}

/// A path that means the same wherever it is read: the manifest names the control socket for others, and messages name both.
fn absolute(path: PathBuf, flag: &str) -> Result<PathBuf> {
    if path.as_os_str().is_empty() {
        return Err(Error::invalid(format!("{flag} is empty: give a path")));
    }
    std::path::absolute(&path).map_err(|error| Error::io(format_args!("{flag} {}", path.display()), &error))
}

fn parse_address(text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| {
        Error::invalid(format!(
            "'{}' is not an address and port: write it as 127.0.0.1:10809, 0.0.0.0:10809 or [::1]:10809",
            text.escape_default()
        ))
    })
}

fn parse_duration(text: &str) -> Result<Duration> {
    let duration = humantime::parse_duration(text).map_err(|_| {
        Error::invalid(format!("'{}' is not a time: write it as 500ms, 3s, 5m or 2h", text.escape_default()))
    })?;
    if duration.is_zero() || duration > DURATION_MAX {
        return Err(Error::invalid(format!(
            "'{}' makes no sense: the time must be more than 0 and at most a year",
            text.escape_default()
        )));
    }
    Ok(duration)
}

fn parse_space_target(text: &str) -> Result<SpaceTarget> {
    if text == "off" {
        return Ok(SpaceTarget::Off);
    }
    let percent = text.trim_end_matches('%').parse().ok().filter(|percent| (110..=1000).contains(percent));
    percent.map(SpaceTarget::Percent).ok_or_else(|| {
        Error::invalid(format!("'{}' is not a space target: 110 to 1000 (percent), or off", text.escape_default()))
    })
}

fn parse_connections(text: &str) -> Result<u32> {
    text.parse().ok().filter(|count| (1..=CONNECTIONS_MAX).contains(count)).ok_or_else(|| {
        Error::invalid(format!("'{}' is not a number of connections: 1 to {CONNECTIONS_MAX}", text.escape_default()))
    })
}

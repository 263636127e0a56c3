//! The client of a daemon: on its control socket, or at its control door over TCP.
//!
//! Looking takes a few seconds at most. What changes something may take as long as an upload takes, and has no time limit: the person
//! who waits decides.

use std::error::Error as _;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Certificate, ClientBuilder, Method, RequestBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{AttachBody, DetachBody, ErrorBody};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::service::{
    AttachReport, AttachedStatus, CleanReport, DaemonStatus, NewForks, NewSnapshot, SnapshotSummary, VolumeChange,
    VolumeSummary, WarmReport, WarmRequest,
};
use crate::settings::{ControlAddress, RemoteControl, TokenSource};
use crate::units::VolumeId;

/// How long a daemon may take to say how it is.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection over TCP may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest token that is read.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Why a call did not succeed.
#[derive(Clone, Debug)]
pub enum CallError {
    /// No daemon listens at this path or address.
    NoDaemon(String),
    /// The daemon, or the way to it, failed.
    Failed(Error),
}

impl CallError {
    /// True if a daemon answered, but does not know the volume or the resource.
    pub fn is_not_found(&self) -> bool {
        matches!(self, CallError::Failed(error) if error.kind() == ErrorKind::NotFound)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::NoDaemon(place) => write!(f, "no daemon listens at {place}"),
            CallError::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CallError {}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NoDaemon(_) => Error::new(ErrorKind::Unavailable, error.to_string()),
            CallError::Failed(error) => error,
        }
    }
}

/// A client of one daemon. Nothing is read or connected before the first call.
#[derive(Clone, Debug)]
pub struct Client {
    address: ControlAddress,
    http: OnceLock<reqwest::Client>,
}

impl Client {
    /// A client for the daemon at `address`.
    pub fn new(address: &ControlAddress) -> Self {
        Client { address: address.clone(), http: OnceLock::new() }
    }

    fn http(&self) -> Result<&reqwest::Client> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        // An error means that it was done before. A client without TLS wants it, too.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let builder = match &self.address {
            // Whom the system trusts need not be read for a socket.
            ControlAddress::Socket(path) => builder.unix_socket(path.clone()).tls_certs_only([]),
            ControlAddress::Remote(remote) => over_tls(builder, remote)?,
        };
        let built = builder.build();
        let http =
            built.map_err(|error| Error::new(ErrorKind::Io, format!("control client: {}", innermost(&error))))?;
        Ok(self.http.get_or_init(|| http))
    }

    /// How the daemon is.
    ///
    /// # Errors
    /// `NoDaemon`, or what went wrong.
    pub async fn status(&self) -> Result<DaemonStatus, CallError> {
        self.call(self.request(Method::GET, "status")?.timeout(LOOK_TIMEOUT)).await
    }

    /// The volumes attached there.
    ///
    /// # Errors
    /// `NoDaemon`, or what went wrong.
    pub async fn volumes(&self) -> Result<Vec<AttachedStatus>, CallError> {
        self.call(self.request(Method::GET, "volumes")?.timeout(LOOK_TIMEOUT)).await
    }

    /// One volume attached there.
    ///
    /// # Errors
    /// `NoDaemon`; `NotFound` if it is not attached there; or what went wrong.
    pub async fn volume(&self, id: VolumeId) -> Result<AttachedStatus, CallError> {
        self.call(self.request(Method::GET, &format!("volumes/{id}"))?.timeout(LOOK_TIMEOUT)).await
    }

    /// Attaches a volume there. Takes as long as it takes.
    ///
    /// # Errors
    /// `NoDaemon`, or what [`Service::attach`](crate::service::Service::attach) says.
    pub async fn attach(&self, id: VolumeId, takeover: bool) -> Result<AttachReport, CallError> {
        self.call(self.with_body(Method::POST, &format!("volumes/{id}/attach"), &AttachBody { takeover })?).await
    }

    /// Detaches a volume there. Takes as long as it takes.
    ///
    /// # Errors
    /// `NoDaemon`, or what [`Service::detach`](crate::service::Service::detach) says.
    pub async fn detach(&self, id: VolumeId, force: bool) -> Result<(), CallError> {
        let request = self.with_body(Method::POST, &format!("volumes/{id}/detach"), &DetachBody { force })?;
        self.call::<serde_json::Map<String, serde_json::Value>>(request).await.map(|_| ())
    }

    /// Waits until everything accepted before the call is in the store.
    ///
    /// # Errors
    /// `NoDaemon`, or what [`Service::sync`](crate::service::Service::sync) says.
    pub async fn sync(&self, id: VolumeId) -> Result<AttachedStatus, CallError> {
        self.call(self.request(Method::POST, &format!("volumes/{id}/sync"))?).await
    }

    /// Has a volume copy what it has of its origins, in the background.
    ///
    /// # Errors
    /// `NoDaemon`, or what [`Service::hydrate`](crate::service::Service::hydrate) says.
    pub async fn hydrate(&self, id: VolumeId) -> Result<AttachedStatus, CallError> {
        self.call(self.request(Method::POST, &format!("volumes/{id}/hydrate"))?).await
    }

    /// Cleans a volume now. Takes as long as it takes.
    ///
    /// # Errors
    /// `NoDaemon`, or what [`Service::clean`](crate::service::Service::clean) says.
    pub async fn clean(&self, id: VolumeId) -> Result<CleanReport, CallError> {
        self.call(self.request(Method::POST, &format!("volumes/{id}/clean"))?).await
    }

    /// Brings a volume's content into the cache. Takes as long as it takes.
    ///
    /// # Errors
    /// `NoDaemon`, or what [`Service::warm`](crate::service::Service::warm) says.
    pub async fn warm(&self, id: VolumeId, request: WarmRequest) -> Result<WarmReport, CallError> {
        self.call(self.with_body(Method::POST, &format!("volumes/{id}/warm"), &request)?).await
    }

    /// Changes what can be changed of a volume in use.
    ///
    /// # Errors
    /// `NoDaemon`, or what [`Service::update`](crate::service::Service::update) says.
    pub async fn update(&self, id: VolumeId, change: &VolumeChange) -> Result<AttachedStatus, CallError> {
        self.call(self.with_body(Method::PATCH, &format!("volumes/{id}"), change)?).await
    }

    /// Takes a snapshot. Takes as long as the upload of the lag.
    ///
    /// # Errors
    /// `NoDaemon`, or what [`Service::snapshot`](crate::service::Service::snapshot) says.
    pub async fn snapshot(&self, id: VolumeId, new: &NewSnapshot) -> Result<SnapshotSummary, CallError> {
        self.call(self.with_body(Method::POST, &format!("volumes/{id}/snapshots"), new)?).await
    }

    /// Makes forks. Takes as long as the upload of the lag.
    ///
    /// # Errors
    /// `NoDaemon`, or what [`Service::fork`](crate::service::Service::fork) says.
    pub async fn fork(&self, id: VolumeId, new: &NewForks) -> Result<Vec<VolumeSummary>, CallError> {
        self.call(self.with_body(Method::POST, &format!("volumes/{id}/forks"), new)?).await
    }

    fn request(&self, method: Method, resource: &str) -> Result<RequestBuilder, CallError> {
        let base = match &self.address {
            // The host is for the form only: the socket decides who answers.
            ControlAddress::Socket(_) => "http://varved",
            ControlAddress::Remote(remote) => &remote.url,
        };
        Ok(self.http().map_err(CallError::Failed)?.request(method, format!("{base}/v1/{resource}")))
    }

    fn with_body<T: Serialize>(&self, method: Method, resource: &str, body: &T) -> Result<RequestBuilder, CallError> {
        let bytes = serde_json::to_vec(body).map_err(|error| self.failed(ErrorKind::Invalid, &error.to_string()))?;
        Ok(self.request(method, resource)?.header(reqwest::header::CONTENT_TYPE, "application/json").body(bytes))
    }

    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, CallError> {
        let response = request.send().await.map_err(|error| self.unreached(&error))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.unreached(&error))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                self.failed(
                    ErrorKind::Unsupported,
                    &format!("the answer makes no sense to this version of varve: {error}"),
                )
            });
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => Err(CallError::Failed(body.into())),
            Err(_) => {
                Err(self
                    .failed(ErrorKind::Unsupported, &format!("what answers there is no varved (HTTP status {status})")))
            }
        }
    }

    fn failed(&self, kind: ErrorKind, what: &str) -> CallError {
        let door = if self.address.socket().is_some() { "control socket" } else { "daemon at" };
        CallError::Failed(Error::new(kind, format!("{door} {}: {what}", self.address)))
    }

    fn unreached(&self, error: &reqwest::Error) -> CallError {
        if error.is_builder() {
            return self.failed(ErrorKind::Invalid, &format!("that is no address: {}", innermost(error)));
        }
        if error.is_connect() && error.is_timeout() {
            return CallError::NoDaemon(self.address.to_string());
        }
        if error.is_timeout() {
            return self.failed(
                ErrorKind::Unavailable,
                &format!("the daemon did not answer within {} s", LOOK_TIMEOUT.as_secs()),
            );
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
        let mut innermost = error.to_string();
        while let Some(source) = cause {
            innermost = source.to_string();
            match source.downcast_ref::<io::Error>().map(io::Error::kind) {
                Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) if error.is_connect() => {
                    return CallError::NoDaemon(self.address.to_string());
                }
                Some(io::ErrorKind::PermissionDenied) if self.address.socket().is_some() => {
                    return self
                        .failed(ErrorKind::Denied, "it belongs to another user: run this as the user who runs varved");
                }
                _ => cause = source.source(),
            }
        }
        let what = if error.is_connect() {
            innermost
        } else {
            format!("the daemon went away before it had answered: {innermost}")
        };
        self.failed(ErrorKind::Unavailable, &what)
    }
}

/// A client that believes only a daemon with a certificate of the authority, and shows it the token.
fn over_tls(builder: ClientBuilder, remote: &RemoteControl) -> Result<ClientBuilder> {
    let mut token = HeaderValue::try_from(format!("Bearer {}", read_token(&remote.token)?))
        .map_err(|_| Error::invalid(format!("{} holds no token", remote.token)))?;
    token.set_sensitive(true);
    let builder = builder
        .https_only(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .default_headers(HeaderMap::from_iter([(AUTHORIZATION, token)]));
    let Some(path) = &remote.authority else { return Ok(builder) };
    let pem = std::fs::read(path).context(|| path.display())?;
    let certificates = Certificate::from_pem_bundle(&pem).ok().filter(|found| !found.is_empty());
    let certificates =
        certificates.ok_or_else(|| Error::invalid(format!("{}: no certificate in PEM form", path.display())))?;
    Ok(builder.tls_certs_only(certificates))
}

fn read_token(source: &TokenSource) -> Result<String> {
    let text = match source {
        TokenSource::Environment(name) => {
            std::env::var(name).map_err(|_| Error::not_found(format!("there is no token at {source}")))?
        }
        TokenSource::File(path) => {
            let file = File::open(path).context(|| format!("cannot read the token at {source}"))?;
            if file.metadata().is_ok_and(|about| about.mode() & 0o077 != 0) {
                tracing::warn!(%source, "others than its owner may read this token: chmod 600 would end that");
            }
            let mut text = String::new();
            file.take(TOKEN_BYTES_MAX)
                .read_to_string(&mut text)
                .context(|| format!("cannot read the token at {source}"))?;
            text
        }
    };
    let token = text.trim();
    if token.is_empty() {
        return Err(Error::invalid(format!("{source} holds no token")));
    }
    Ok(token.to_owned())
}

/// What is at the bottom of an error.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

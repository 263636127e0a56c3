//! TLS for NBD: whether it is offered or asked for, and with which certificates.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;

use crate::error::{Error, Result};
use crate::tls::server_config;

/// Whether TLS is offered or asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// STARTTLS is refused.
    #[default]
    Off,
    /// Clients may use it.
    Allow,
    /// Nothing is told or done without it.
    Require,
}

/// How TLS is set up.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    /// Whether.
    pub mode: TlsMode,
    /// PEM file with the server's certificate, and those between it and its authority.
    pub certificate: Option<PathBuf>,
    /// PEM file with the private key of that certificate.
    pub key: Option<PathBuf>,
    /// PEM file with the authorities that a client's certificate must come from; without it, clients need none.
    pub client_authority: Option<PathBuf>,
}

/// TLS, ready for use.
#[derive(Clone)]
pub struct Tls {
    /// Whether.
    pub mode: TlsMode,
    /// Present unless the mode is [`TlsMode::Off`].
    pub config: Option<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files that `settings` name.
    ///
    /// # Errors
    /// `Invalid`, `Io`: a file is missing, cannot be read, or does not hold what it should.
    pub fn load(settings: &TlsSettings) -> Result<Tls> {
        if settings.mode == TlsMode::Off {
            return Ok(Tls { mode: TlsMode::Off, config: None });
        }
        let (Some(certificate), Some(key)) = (&settings.certificate, &settings.key) else {
            return Err(Error::invalid(
                "TLS for NBD needs a certificate and a key: name both files, or set TLS to off",
            ));
        };
        let config = server_config(certificate, key, settings.client_authority.as_deref())?;
        Ok(Tls { mode: settings.mode, config: Some(Arc::new(config)) })
    }
}

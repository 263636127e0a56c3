//! TLS for NBD: whether it is offered or asked for, and with which certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::error::{Context, Error, Result};

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
        let chain = certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read(key)?)
            .map_err(|error| Error::invalid(format!("{}: no private key in PEM form: {error}", key.display())))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::invalid(format!("TLS for NBD: {error}")))?;
        let builder = match &settings.client_authority {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    let unfit = |error| Error::invalid(format!("{}: not an authority: {error}", path.display()));
                    roots.add(authority).map_err(unfit)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| Error::invalid(format!("{}: {error}", path.display())))?,
                )
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            Error::invalid(format!("{}: certificate and key do not serve: {error}", certificate.display()))
        })?;
        // A session that is resumed is not verified again, and its certificate may have expired.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Tls { mode: settings.mode, config: Some(Arc::new(config)) })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).context(|| path.display())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| Error::invalid(format!("{}: not in PEM form: {error}", path.display())))?;
    if chain.is_empty() {
        return Err(Error::invalid(format!("{}: no certificate in PEM form", path.display())));
    }
    Ok(chain)
}

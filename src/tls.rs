//! TLS for the doors: what a server needs, from PEM files.
//!
//! TLS 1.2 and 1.3 of rustls with ring. Sessions are not resumed: one that is resumed is not verified again, and its certificate may have
//! expired meanwhile.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use crate::error::{Context, Error, Result};

/// Reads what a server needs: its certificate with those between it and its authority, the private key of that certificate, and, if clients must
/// show certificates, the authorities that these must come from.
///
/// # Errors
/// `Invalid`, `NotFound`, `Io`: a file is missing, cannot be read, or does not hold what it should.
pub fn server_config(certificate: &Path, key: &Path, client_authority: Option<&Path>) -> Result<ServerConfig> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|error| Error::invalid(format!("{}: no private key in PEM form: {error}", key.display())))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::invalid(format!("TLS: {error}")))?;
    let builder = match client_authority {
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
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
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

//! Certificates for tests, made by openssl in a scratch directory: an authority, a server, and a client.

use std::path::Path;
use std::process::Command;

use varve::nbd::{TlsMode, TlsSettings};

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl").current_dir(directory).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes the files, named as libnbd looks for them, and settings for them.
pub fn settings(directory: &Path, mode: TlsMode, ask_clients: bool) -> TlsSettings {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(directory, &format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca-key.pem -out ca-cert.pem"));
    std::fs::write(directory.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    for who in ["server", "client"] {
        openssl(directory, &format!("req -new {key} -subj /CN={who} -keyout {who}-key.pem -out {who}.csr"));
        let signed = "-CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile names";
        openssl(directory, &format!("x509 -req -in {who}.csr {signed} -out {who}-cert.pem"));
    }
    TlsSettings {
        mode,
        certificate: Some(directory.join("server-cert.pem")),
        key: Some(directory.join("server-key.pem")),
        client_authority: ask_clients.then(|| directory.join("ca-cert.pem")),
    }
}

//! Certificates for tests, made by openssl in a scratch directory: an authority, a server, and clients.

use std::path::{Path, PathBuf};
use std::process::Command;

use varve::nbd::{TlsMode, TlsSettings};

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl").current_dir(directory).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a certificate that the authority in `directory` has signed.
fn sign(directory: &Path, who: &str, names: &str, days: i32) {
    std::fs::write(directory.join("names"), names).unwrap();
    openssl(directory, &format!("req -new {KEY} -subj /CN={who} -keyout {who}-key.pem -out {who}.csr"));
    let signed = format!("-CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days {days} -extfile names");
    openssl(directory, &format!("x509 -req -in {who}.csr {signed} -out {who}-cert.pem"));
}

/// Makes the files, named as libnbd looks for them, and settings for them. The client is called `client`.
pub fn settings(directory: &Path, mode: TlsMode, ask_clients: bool) -> TlsSettings {
    openssl(directory, &format!("req -x509 {KEY} -days 2 -subj /CN=authority -keyout ca-key.pem -out ca-cert.pem"));
    sign(directory, "server", "subjectAltName=DNS:localhost,IP:127.0.0.1\n", 2);
    sign(directory, "client", "basicConstraints=CA:FALSE\n", 2);
    TlsSettings {
        mode,
        certificate: Some(directory.join("server-cert.pem")),
        key: Some(directory.join("server-key.pem")),
        client_authority: ask_clients.then(|| directory.join("ca-cert.pem")),
    }
}

/// Makes a folder of files for a client with this common name, and a DNS name if one is given, whose certificate is good for so many days
/// from now on. It trusts the authority in `directory`.
pub fn client(directory: &Path, who: &str, dns: Option<&str>, days: i32) -> PathBuf {
    let names =
        dns.map_or_else(|| "basicConstraints=CA:FALSE\n".to_owned(), |dns| format!("subjectAltName=DNS:{dns}\n"));
    sign(directory, who, &names, days);
    let folder = directory.join(format!("of-{who}"));
    std::fs::create_dir(&folder).unwrap();
    for part in ["cert", "key"] {
        let (from, to) = (format!("{who}-{part}.pem"), format!("client-{part}.pem"));
        std::fs::rename(directory.join(from), folder.join(to)).unwrap();
    }
    std::fs::copy(directory.join("ca-cert.pem"), folder.join("ca-cert.pem")).unwrap();
    folder
}

//! A store over TLS: its certificate is checked, and a server that is not who it says gets nothing.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod minio;
    pub mod process;
    pub mod tls_files;
}

use std::fs;
use std::path::Path;
use std::process::Command;

use support::minio::Minio;
use support::process::{Outcome, binary, run};
use varve::nbd::TlsMode;

/// `varve volumes create` at the bucket of a MinIO, with further variables of the environment.
fn create(minio: &Minio, endpoint: &str, more: &[(&str, &Path)]) -> Outcome {
    let mut command = Command::new(binary("varve"));
    command.args(["volumes", "create", "disk", "--size", "1", "--store", "s3://bucket/disks"]);
    command.envs(minio.env()).env("AWS_ENDPOINT_URL", endpoint).envs(more.iter().copied());
    run(&mut command)
}

#[test]
fn a_store_with_a_certificate_that_is_not_trusted_is_refused() {
    let files = tempfile::tempdir().unwrap();
    support::tls_files::settings(files.path(), TlsMode::Require, false);
    let file = |name: &str| files.path().join(name);
    let minio = Minio::start_with_tls(&file("server-key.pem"), &file("server-cert.pem"));
    fs::create_dir(minio.data().join("bucket")).unwrap();
    let authority = file("ca-cert.pem");
    let trusting: &[(&str, &Path)] = &[("SSL_CERT_FILE", &authority)];
    create(&minio, &minio.endpoint(), &[]).refused(&["UnknownIssuer", "not who it says", "SSL_CERT_FILE"]);
    assert!(fs::read_dir(minio.data().join("bucket")).unwrap().next().is_none(), "something was written");
    create(&minio, &minio.endpoint(), trusting).succeeded();
    assert!(minio.data().join("bucket/disks/varve.json").is_dir());
}

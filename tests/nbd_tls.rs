//! NBD over TLS with the clients that people use: whose certificate lets in whom, and to what.

#![expect(clippy::unwrap_used, reason = "a test may end where its tools fail")]

#[path = "support/memory_device.rs"]
mod memory_device;
#[path = "support/nbd_fixture.rs"]
mod nbd_fixture;
#[path = "support/tls_files.rs"]
mod tls_files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nbd_fixture::{Fixture, SIZE};
use tempfile::TempDir;
use varve::nbd::{NbdSettings, Rules, Server, TlsMode, TlsSettings};

/// Runs a program: what it said, and whether it ended well.
fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[track_caller]
fn succeeds(program: &str, arguments: &[&str]) -> String {
    let (well, said) = run(program, arguments);
    assert!(well, "{program} {arguments:?}: {said}");
    said
}

#[track_caller]
fn fails(program: &str, arguments: &[&str]) -> String {
    let (well, said) = run(program, arguments);
    assert!(!well, "{program} {arguments:?} should have failed: {said}");
    said
}

fn rules(table: &[(&str, &[&str])]) -> Rules {
    let owned = |exports: &[&str]| exports.iter().map(|&export| export.to_owned()).collect();
    Rules(table.iter().map(|&(client, exports)| (client.to_owned(), owned(exports))).collect::<BTreeMap<_, _>>())
}

/// A server that asks for certificates, and the files for them.
struct Guarded {
    files: TempDir,
    tls: TlsSettings,
    fixture: Fixture,
    port: String,
}

impl Guarded {
    fn new(rules: Option<Rules>) -> Self {
        Guarded::with(|settings| settings.rules = rules)
    }

    fn with(change: impl FnOnce(&mut NbdSettings)) -> Self {
        let files = tempfile::tempdir().unwrap();
        let tls = tls_files::settings(files.path(), TlsMode::Require, true);
        let fixture = Fixture::with(|settings| {
            settings.tls = tls.clone();
            change(settings);
        });
        let port = fixture.address().rsplit(':').next().unwrap().to_owned();
        Guarded { files, tls, fixture, port }
    }

    fn client(&self, who: &str, dns: Option<&str>) -> PathBuf {
        tls_files::client(self.files.path(), who, dns, 2)
    }

    /// For libnbd's tools.
    fn uri(&self, export: &str, files: &Path) -> String {
        format!("nbds://localhost:{}/{export}?tls-certificates={}", self.port, files.display())
    }

    /// For QEMU's: the credentials, and the image.
    fn qemu(&self, export: &str, files: &Path) -> [String; 2] {
        let credentials = format!("tls-creds-x509,id=tls,endpoint=client,dir={}", files.display());
        let server = format!("file.server.type=inet,file.server.host=localhost,file.server.port={}", self.port);
        let image = format!("driver=raw,file.driver=nbd,{server},file.export={export},file.tls-creds=tls");
        [credentials, image]
    }
}

#[test]
fn libnbd_qemu_and_fio_work_with_their_certificates() {
    let guarded = Guarded::new(Some(rules(&[("build-*", &["disk", "big"])])));
    let files = guarded.client("build-7", None);
    let said = succeeds("nbdinfo", &[&guarded.uri("disk", &files)]);
    assert!(said.contains("with TLS") && said.contains("export-size: 8388608"), "{said}");
    let (source, target) = (guarded.files.path().join("in"), guarded.files.path().join("out"));
    let bytes: Vec<u8> = (0..SIZE).map(|place| ((place * 7919) >> 12) as u8).collect();
    std::fs::write(&source, &bytes).unwrap();
    let uri = guarded.uri("disk", &files);
    succeeds("nbdcopy", &["--connections=4", "--flush", source.to_str().unwrap(), &uri]);
    assert!(guarded.fixture.disk.snapshot() == bytes, "the disk differs from what was copied in");
    succeeds("nbdcopy", &["--connections=4", &uri, target.to_str().unwrap()]);
    assert!(std::fs::read(&target).unwrap() == bytes, "what was copied out differs");

    let [credentials, image] = guarded.qemu("disk", &files);
    let said = succeeds("qemu-img", &["info", "--object", &credentials, "--image-opts", &image]);
    assert!(said.contains("virtual size: 8 MiB"), "{said}");
    let mut arguments = vec!["--object", &credentials, "--image-opts", &image];
    for command in ["write -P 5 4095 70000", "read -P 5 4095 70000", "discard 1M 1M", "read -P 0 1M 1M", "flush"] {
        arguments.extend(["-c", command]);
    }
    let said = succeeds("qemu-io", &arguments);
    assert!(!said.contains("failed") && !said.contains("error"), "{said}");
    fio(&guarded, &files);
    guarded.fixture.wait_until_left();
}

/// fio cannot be told where the certificates are: libnbd looks for them in the home of a user who is not root.
const FIO_SCRIPT: &str = r#"
set -eu
home=$1 uri=$2
set --
if [ "$(id -u)" = 0 ]; then
    chown -R 65534 "$home"
    set -- setpriv --reuid=65534 --clear-groups
fi
cd "$home"
HOME=$home "$@" fio --name=tls --ioengine=nbd --rw=randwrite --bsrange=512-256k --blockalign=512 --iodepth=16 --numjobs=2 \
    --size=8m --offset_increment=8m --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=32 --group_reporting --uri="$uri"
"#;

fn fio(guarded: &Guarded, files: &Path) {
    let home = guarded.files.path();
    let pki = home.join(".pki");
    std::fs::create_dir(&pki).unwrap();
    std::fs::rename(files, pki.join("libnbd")).unwrap();
    let uri = format!("nbds://localhost:{}/big", guarded.port);
    succeeds("bash", &["-c", FIO_SCRIPT, "test", home.to_str().unwrap(), &uri]);
}

#[test]
fn a_client_sees_what_its_certificate_may_open_and_nothing_else() {
    let guarded = Guarded::new(Some(rules(&[
        ("build-*", &["disk"]),
        ("ops.example", &["*"]),
        ("other", &["alias of b*"]),
        ("nobody", &[]),
    ])));
    let build = guarded.client("build-7", None);
    let said = succeeds("nbdinfo", &["--list", &guarded.uri("", &build)]);
    // It repeats where the certificate is, and that name is drawn.
    let said = said.replace(build.to_str().unwrap(), "");
    assert!(said.contains("export=\"disk\"") && !said.contains("big") && !said.contains("read-only"), "{said}");
    let denied = fails("nbdinfo", &[&guarded.uri("read-only", &build)]);
    let missing = fails("nbdinfo", &[&guarded.uri("no-such-x", &build)]);
    assert_eq!(denied.replace("read-only", "no-such-x"), missing, "the answer tells what exists");
    // QEMU repeats the server's words.
    let by_qemu = |export| {
        let [credentials, image] = guarded.qemu(export, &build);
        fails("qemu-img", &["info", "--object", &credentials, "--image-opts", &image])
    };
    let said = by_qemu("big");
    assert!(said.contains("no export 'big' for a client with the certificate of 'build-7'"), "{said}");
    assert_eq!(said.replace("big", "gib"), by_qemu("gib"), "the answer tells what exists");
    // EXPORT_NAME allows no answer.
    let old = "import nbd,sys; h=nbd.NBD(); h.set_uri_allow_local_file(True); h.set_handshake_flags(0); h.connect_uri(sys.argv[1])";
    fails("/usr/bin/python3", &["-c", old, &guarded.uri("big", &build)]);

    let ops = guarded.client("no-rule-has-this", Some("OPS.example"));
    let said = succeeds("nbdinfo", &["--list", &guarded.uri("", &ops)]);
    assert!(said.contains("export=\"disk\"") && said.contains("export=\"big\""), "{said}");
    succeeds("nbdinfo", &[&guarded.uri("secret", &ops)]);
    let other = guarded.client("other", None);
    succeeds("nbdinfo", &[&guarded.uri("big", &other)]);
    fails("nbdinfo", &[&guarded.uri("disk", &other)]);
    for who in ["nobody", "rebuild-7", "stranger"] {
        let files = guarded.client(who, None);
        let said = succeeds("nbdinfo", &["--list", &guarded.uri("", &files)]);
        assert!(!said.contains("export="), "{who} sees {said}");
        fails("nbdinfo", &[&guarded.uri("disk", &files)]);
    }
    guarded.fixture.wait_until_left();
}

#[test]
fn wrong_expired_and_missing_certificates_get_nowhere() {
    let guarded = Guarded::new(None);
    let good = guarded.client("good", None);
    let expired = tls_files::client(guarded.files.path(), "expired", None, -1);
    let stranger = tempfile::tempdir().unwrap();
    tls_files::settings(stranger.path(), TlsMode::Require, true);
    let wrong = tls_files::client(stranger.path(), "good", None, 2);
    std::fs::copy(guarded.files.path().join("ca-cert.pem"), wrong.join("ca-cert.pem")).unwrap();
    let missing = guarded.files.path().join("missing");
    std::fs::create_dir(&missing).unwrap();
    std::fs::copy(good.join("ca-cert.pem"), missing.join("ca-cert.pem")).unwrap();
    for files in [&expired, &wrong, &missing] {
        fails("nbdinfo", &[&guarded.uri("disk", files)]);
        fails("nbdinfo", &["--list", &guarded.uri("", files)]);
        let [credentials, image] = guarded.qemu("disk", files);
        fails("qemu-img", &["info", "--object", &credentials, "--image-opts", &image]);
    }
    succeeds("nbdinfo", &[&guarded.uri("disk", &good)]);
    guarded.fixture.wait_until_left();

    // The server's own certificate is looked at by the clients.
    std::fs::copy(stranger.path().join("ca-cert.pem"), good.join("ca-cert.pem")).unwrap();
    fails("nbdinfo", &[&guarded.uri("disk", &good)]);
    guarded.fixture.wait_until_left();
}

#[test]
fn plain_clients_get_nothing_where_tls_is_required() {
    let guarded = Guarded::new(None);
    let plain = format!("nbd://localhost:{}", guarded.port);
    let said = fails("nbdinfo", &[&format!("{plain}/disk")]);
    assert!(said.contains("TLS"), "{said}");
    fails("nbdinfo", &["--list", &plain]);
    fails("qemu-img", &["info", &format!("{plain}/disk")]);
    fails("qemu-io", &["-f", "raw", "-c", "write 0 512", &format!("{plain}/disk")]);
    let fio = ["--name=plain", "--ioengine=nbd", "--rw=write", "--size=1m"];
    fails("fio", &[&fio[..], &[&format!("--uri={plain}/disk")]].concat());
    guarded.fixture.wait_until_left();
    assert!(guarded.fixture.disk.snapshot().iter().all(|&byte| byte == 0));

    // A client that prefers TLS and would go on without is not led astray, nor does it get any further where there is none.
    let optional = "import nbd,sys; h=nbd.NBD(); h.set_tls(nbd.TLS_ALLOW); h.set_tls_certificates(sys.argv[2]); \
                    h.set_export_name('disk'); h.connect_tcp('localhost', sys.argv[1]); print(h.get_tls_negotiated())";
    let good = guarded.client("good", None);
    let said = succeeds("/usr/bin/python3", &["-c", optional, &guarded.port, good.to_str().unwrap()]);
    assert_eq!(said.trim(), "True");
    let bare = Fixture::new();
    let address = bare.address().replace("nbd://127.0.0.1", "nbds://localhost");
    fails("nbdinfo", &[&format!("{address}/disk?tls-certificates={}", good.display())]);
}

#[test]
fn who_waits_for_an_answer_is_not_idle() {
    let idle = Duration::from_secs(6);
    let guarded = Guarded::with(|settings| settings.idle_time = Some(idle));
    let uri = guarded.uri("disk", &guarded.client("patient", None));
    guarded.fixture.disk.slow.store(true, Ordering::Relaxed);
    let held = guarded.fixture.disk.gate.blocking_write();
    let script = "import nbd,sys; h=nbd.NBD(); h.set_uri_allow_local_file(True); h.connect_uri(sys.argv[1]); print(len(h.pread(512, 0)))";
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| succeeds("/usr/bin/python3", &["-c", script, &uri]));
        guarded.fixture.wait_for(|fixture| fixture.exports.clients.load(Ordering::SeqCst) == 1);
        // The socket's time runs out more than once.
        std::thread::sleep(2 * idle + idle / 2);
        drop(held);
        assert_eq!(reader.join().unwrap().trim(), "512");
    });
}

#[test]
fn a_unix_socket_is_guarded_by_its_permissions_alone() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("nbd.sock");
    let tls = tls_files::settings(files.path(), TlsMode::Require, true);
    let fixture = Fixture::with(|settings| {
        settings.unix.push(path.clone());
        settings.tls = tls;
        settings.rules = Some(rules(&[("nobody", &[])]));
    });
    let [remote, local] = &fixture.server.addresses()[..] else { panic!("two addresses") };
    assert!(remote.starts_with("nbds://") && local.starts_with("nbd+unix://"));
    succeeds("nbdinfo", &[&local.replace("///", "///disk")]);
    let files = files.path().display();
    let encrypted = local.replace("nbd+unix:///", "nbds+unix://localhost/disk");
    succeeds("nbdinfo", &[&format!("{encrypted}&tls-certificates={files}&tls-hostname=localhost")]);
}

#[test]
fn other_machines_need_tls_or_a_word_for_it() {
    let files = tempfile::tempdir().unwrap();
    let tls = tls_files::settings(files.path(), TlsMode::Require, true);
    let (fixture, guarded) = (Fixture::new(), Guarded::new(None));
    let start = |change: &dyn Fn(&mut NbdSettings)| {
        let mut settings = NbdSettings { tcp: vec!["0.0.0.0:0".parse().unwrap()], ..NbdSettings::default() };
        change(&mut settings);
        Server::start(settings, fixture.exports.clone(), fixture._runtime.handle().clone())
    };
    for mode in [TlsMode::Off, TlsMode::Allow] {
        let error = start(&|settings| settings.tls = TlsSettings { mode, ..tls.clone() }).err().unwrap();
        let message = error.message();
        for word in ["0.0.0.0", "--tls require", "127.0.0.1", "--allow-insecure-tcp"] {
            assert!(message.contains(word), "{mode:?}: {message}");
        }
    }
    drop(start(&|settings| settings.allow_insecure_tcp = true).unwrap());
    drop(start(&|settings| settings.tls = tls.clone()).unwrap());
    // Rules that nothing would enforce are refused wherever the server listens.
    for tls in [
        TlsSettings::default(),
        TlsSettings { mode: TlsMode::Allow, ..tls.clone() },
        TlsSettings { client_authority: None, ..guarded.tls.clone() },
    ] {
        let settings = NbdSettings { rules: Some(Rules::default()), tls, ..NbdSettings::default() };
        let settings = NbdSettings { tcp: vec!["127.0.0.1:0".parse().unwrap()], ..settings };
        let exports: Arc<_> = fixture.exports.clone();
        let error = Server::start(settings, exports, fixture._runtime.handle().clone()).err().unwrap();
        assert!(error.message().contains("tls-client-ca"), "{error}");
    }
}

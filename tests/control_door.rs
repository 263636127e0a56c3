//! The control door over TCP of a real daemon: who has a token may do what it says, and nobody else anything.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod daemon;
    pub mod minio;
    pub mod process;
    pub mod tls_files;
}

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use support::daemon::{Host, StoreKind, World, both_stores};
use support::process::{shell, text_of};
use support::tls_files;
use varve::nbd::TlsMode;

both_stores!(
    a_door_that_is_not_whole_is_not_opened,
    who_has_a_token_works_as_on_the_socket_and_who_may_look_only_looks,
    who_has_none_learns_nothing,
    who_is_struck_off_the_file_is_shut_out_at_once,
    who_says_nothing_keeps_nobody_out,
);

/// A daemon with a control door, and what is needed to come in.
struct Guarded {
    world: World,
    host: Host,
    files: PathBuf,
}

impl Guarded {
    fn new(kind: StoreKind) -> Self {
        let world = World::new(kind);
        let files = world.path().join("tls");
        std::fs::create_dir(&files).unwrap();
        tls_files::settings(&files, TlsMode::Off, false);
        let path = |name: &str| files.join(name).display().to_string();
        let config = world.path().join("varve.toml");
        let settings = format!(
            "control-tcp = '127.0.0.1:0'\ncontrol-tokens = '{}'\ntls-certificate = '{}'\ntls-key = '{}'\n",
            path("tokens"),
            path("server-cert.pem"),
            path("server-key.pem"),
        );
        std::fs::write(&config, settings).unwrap();
        let host = world.host("a").with(&["--config", config.to_str().unwrap()]).with_environment("VARVE_LOG", "trace");
        Guarded { world, host, files }
    }

    fn tokens(&self) -> String {
        self.files.join("tokens").display().to_string()
    }

    /// Makes a token for somebody.
    fn token(&self, who: &str, more: &[&str]) -> String {
        let tokens = self.tokens();
        let arguments = [&["tokens", "create", &tokens, who], more].concat();
        self.host.varve(&arguments).succeeded().trim().to_owned()
    }

    fn port(&self) -> u16 {
        let status = self.host.varve_json(&["status"]);
        let address = status["daemon"]["control_tcp"].as_str().unwrap_or_else(|| panic!("no address in {status}"));
        address.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Somebody on another machine, who has this token.
    fn visitor(&self, token: &str) -> Host {
        self.world
            .host("elsewhere")
            .with_environment("VARVE_CONTROL", &format!("https://localhost:{}", self.port()))
            .with_environment("VARVE_CONTROL_CA", self.files.join("ca-cert.pem").to_str().unwrap())
            .with_environment("VARVE_CONTROL_TOKEN", "env:THE_TOKEN")
            .with_environment("THE_TOKEN", token)
    }
}

fn who_has_a_token_works_as_on_the_socket_and_who_may_look_only_looks(kind: StoreKind) {
    let guarded = Guarded::new(kind);
    let (full, look) = (guarded.token("ada", &[]), guarded.token("eve", &["--read-only"]));
    let volume = guarded.host.create("disk", "64MiB");
    let daemon = guarded.host.start();
    let (ada, eve) = (guarded.visitor(&full), guarded.visitor(&look));

    let text = eve.varve(&["status"]).succeeded();
    assert!(text.contains(&format!("Control: https://127.0.0.1:{}", guarded.port())), "{text}");
    eve.varve(&["volumes", "attach", &volume]).refused(&["the token of eve may look, and change nothing"]);
    assert_eq!(guarded.host.varve_json(&["volumes", "show", &volume])["state"], "detached");

    ada.varve(&["volumes", "attach", &volume]).succeeded();
    assert_eq!(eve.varve_json(&["volumes", "show", &volume])["state"], "attached");
    assert_eq!(eve.varve_json(&["status"])["volumes"].as_array().unwrap().len(), 1);
    eve.varve(&["volumes", "detach", &volume]).refused(&["may look"]);
    ada.varve(&["volumes", "extend", &volume, "--size", "128MiB"]).succeeded();
    ada.varve(&["volumes", "snapshots", "create", &volume]).succeeded();
    ada.varve(&["volumes", "detach", &volume]).succeeded();
    assert_eq!(guarded.host.varve_json(&["volumes", "show", &volume])["state"], "detached");

    let client = ada.clone().with_environment("VARVE_LOG", "trace").varve(&["status"]);
    daemon.stop();
    let log = text_of(&guarded.world.path().join("a").join("varved.log"));
    let asked: Vec<&str> = log.lines().filter(|line| line.contains("asked over TCP")).collect();
    assert!(asked.len() == 4 && asked.iter().all(|line| line.contains("ada")), "{asked:?}");
    for secret in [&full, &look] {
        assert!(!log.contains(secret.as_str()) && !client.report().contains(secret.as_str()), "a token shows");
    }
}

fn who_has_none_learns_nothing(kind: StoreKind) {
    let guarded = Guarded::new(kind);
    let good = guarded.token("ada", &[]);
    let volume = guarded.host.create("disk", "64MiB");
    let daemon = guarded.host.start();
    guarded.host.varve(&["volumes", "attach", &volume]).succeeded();
    let visitor = guarded.visitor(&good);
    visitor.varve(&["status"]).succeeded();

    let wrong = format!("{}0", &good[..good.len() - 1]);
    let wrong = if wrong == good { format!("{}1", &good[..good.len() - 1]) } else { wrong };
    // Given by mistake where its place is to be named, to either of the two.
    let mistaken = visitor.clone().with_environment("VARVE_CONTROL_TOKEN", &good).varve(&["status"]);
    assert!(!mistaken.report().contains(&good), "a token shows: {}", mistaken.report());
    mistaken.refused(&["never an argument"]);
    let mistaken = guarded.world.host("b").with_environment("VARVE_CONTROL_TOKEN", &good).daemon_that_refuses();
    assert!(!mistaken.report().contains(&good), "a token shows: {}", mistaken.report());
    mistaken.refused(&["never an argument"]);

    let outcome = visitor.clone().with_environment("THE_TOKEN", &wrong).varve(&["status"]);
    assert!(!outcome.report().contains(&wrong[..wrong.len() - 1]), "a token shows: {}", outcome.report());
    outcome.refused(&["wants a token that it knows"]);
    visitor.clone().with_environment("THE_TOKEN", " ").varve(&["status"]).refused(&["env:THE_TOKEN holds no token"]);
    visitor.clone().with_environment("VARVE_CONTROL_TOKEN", "env:NO_SUCH").varve(&["status"]).refused(&["env:NO_SUCH"]);

    // Another authority: the daemon is not believed.
    let others = guarded.world.path().join("others");
    std::fs::create_dir(&others).unwrap();
    tls_files::settings(&others, TlsMode::Off, false);
    let authority = others.join("ca-cert.pem");
    let doubtful = visitor.clone().with_environment("VARVE_CONTROL_CA", authority.to_str().unwrap());
    doubtful.varve(&["status"]).refused(&["daemon at https://localhost", "certificate"]);

    // Other clients than ours: without TLS, without a token, with a token in another form.
    let (port, ca) = (guarded.port().to_string(), guarded.files.join("ca-cert.pem"));
    let mut plain = TcpStream::connect(("127.0.0.1", guarded.port())).unwrap();
    plain.write_all(b"GET /v1/status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // The end of the connection is an answer, too, however it comes.
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    let script =
        r#"curl --silent --max-time 120 --cacert "$2" --write-out '\n%{http_code}' "${@:4}" "https://localhost:$1$3""#;
    let asked = |path: &str, more: &[&str]| {
        let all = [&[port.as_str(), ca.to_str().unwrap(), path], more].concat();
        shell(script, &all).succeeded()
    };
    let bearer = format!("Authorization: Bearer {good}");
    for scheme in ["Bearer", "bearer"] {
        assert!(asked("/v1/volumes", &["--header", &bearer.replace("Bearer", scheme)]).ends_with("\n200"));
    }
    for path in ["/v1/volumes", "/v1/status", "/v1/nothing", "/"] {
        for header in ["X: y", "Authorization: Bearer", "Authorization: Basic abc", &bearer.replace("Bearer", "Basic")]
        {
            let said = asked(path, &["--header", header]);
            assert!(said.ends_with("\n401") && !said.contains("vol_"), "{path} {header}: {said}");
        }
    }
    // A body is not even read.
    let said = asked(&format!("/v1/volumes/{volume}/detach"), &["--data", "{\"force\": true}"]);
    assert!(said.ends_with("\n401"), "{said}");
    assert_eq!(guarded.host.varve_json(&["volumes", "show", &volume])["state"], "attached");

    daemon.stop();
}

fn who_is_struck_off_the_file_is_shut_out_at_once(kind: StoreKind) {
    let guarded = Guarded::new(kind);
    let good = guarded.token("ada", &[]);
    guarded.host.create("disk", "64MiB");
    let daemon = guarded.host.start();
    let visitor = guarded.visitor(&good);
    visitor.varve(&["status"]).succeeded();
    let tokens = guarded.tokens();
    guarded.host.varve(&["tokens", "revoke", &tokens, "ada"]).succeeded();
    visitor.varve(&["status"]).refused(&["wants a token that it knows"]);
    // A token in a file is for its owner alone.
    let file = guarded.files.join("of-bob");
    guarded.host.varve(&["tokens", "create", &tokens, "bob", "--to", file.to_str().unwrap()]).succeeded();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let source = format!("file:{}", file.display());
    visitor.clone().with_environment("VARVE_CONTROL_TOKEN", &source).varve(&["status"]).succeeded();
    guarded.host.varve(&["tokens", "create", &tokens, "eve", "--to", file.to_str().unwrap()]).refused(&["of-bob"]);
    let names = guarded.host.varve(&["tokens", "list", &tokens]).succeeded();
    assert!(names.contains("bob") && !names.contains("eve"), "{names}");
    // The file became somebody else's to write: nobody comes in.
    let again = guarded.token("ada", &[]);
    let visitor = guarded.visitor(&again);
    visitor.varve(&["status"]).succeeded();
    std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o666)).unwrap();
    visitor.varve(&["status"]).refused(&["cannot read its tokens"]);
    guarded.host.varve(&["status"]).succeeded();
    daemon.stop();
}

fn a_door_that_is_not_whole_is_not_opened(kind: StoreKind) {
    let guarded = Guarded::new(kind);
    guarded.host.create("disk", "64MiB");
    guarded.host.daemon_that_refuses().refused(&["there is no token file", "varve tokens create"]);
    guarded.token("ada", &[]);
    std::fs::set_permissions(guarded.tokens(), std::fs::Permissions::from_mode(0o622)).unwrap();
    guarded.host.daemon_that_refuses().refused(&["can be written by others"]);
    std::fs::set_permissions(guarded.tokens(), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(guarded.files.join("server-key.pem"), "no key").unwrap();
    guarded.host.daemon_that_refuses().refused(&["no private key"]);
}

fn who_says_nothing_keeps_nobody_out(kind: StoreKind) {
    let guarded = Guarded::new(kind);
    let token = guarded.token("ada", &[]);
    guarded.host.create("disk", "64MiB");
    let daemon = guarded.host.start();
    let visitor = guarded.visitor(&token);
    let port = guarded.port();
    // More than there are places, which come free after ten seconds.
    let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    guarded.host.varve(&["status"]).succeeded();
    support::process::until("the door answers again", || visitor.varve(&["status"]).status.success());
    drop(silent);
    daemon.stop();
}

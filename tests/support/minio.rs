//! A real MinIO for tests: on a free port, with its data in a temporary directory, gone when its owner is.
//!
//! `Minio::shared` is one server for the whole test binary; a test that stops or kills its server starts one of its own.
//! A watcher process holds the other end of a pipe from this process: when that breaks, for whatever reason, it kills the
//! server by its own pid and removes the data. So neither a panic nor a kill leaves anything behind.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use varve::store::S3Access;

/// Access key id of the test server.
pub const KEY_ID: &str = "varve-test";
/// Secret access key of the test server.
pub const SECRET: &str = "varve-test-secret";
/// The region that requests are signed for.
pub const REGION: &str = "us-east-1";

/// Starting takes less than a second on an idle machine.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Ports that are tried.
const STARTS_MAX: usize = 5;
const POLL: Duration = Duration::from_millis(20);

/// A running MinIO.
pub struct Minio {
    server: Mutex<Child>,
    watcher: Child,
    port: u16,
    directory: PathBuf,
    scheme: &'static str,
}

impl Minio {
    /// The server of this test binary.
    pub fn shared() -> &'static Minio {
        static SHARED: OnceLock<Minio> = OnceLock::new();
        SHARED.get_or_init(Minio::start)
    }

    /// Starts a server of one's own.
    pub fn start() -> Minio {
        Minio::start_in(fresh_directory(), "http")
    }

    /// Starts a server that speaks TLS, with the key and the certificate in these PEM files.
    pub fn start_with_tls(key: &Path, certificate: &Path) -> Minio {
        let directory = fresh_directory();
        let certificates = directory.join("certs");
        std::fs::create_dir(&certificates).unwrap();
        std::fs::copy(key, certificates.join("private.key")).unwrap();
        std::fs::copy(certificate, certificates.join("public.crt")).unwrap();
        Minio::start_in(directory, "https")
    }

    fn start_in(directory: PathBuf, scheme: &'static str) -> Minio {
        let port = free_port();
        let watcher = watch(&directory);
        let server = serve(&directory, port);
        let mut minio = Minio { server: Mutex::new(server), watcher, port, directory, scheme };
        // Somebody else may have been given the port before the server has it.
        for _ in 1..STARTS_MAX {
            if minio.becomes_ready() {
                return minio;
            }
            minio.port = free_port();
            *minio.server.get_mut().unwrap() = serve(&minio.directory, minio.port);
        }
        minio.wait_until_ready();
        minio
    }

    /// The URL of the server.
    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Where the server keeps its files: a directory for each bucket, in it one for each object.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Access with the right credentials.
    pub fn access(&self) -> S3Access {
        S3Access { endpoint: self.endpoint(), region: REGION.into(), key_id: KEY_ID.into(), secret: SECRET.into() }
    }

    /// The environment by which a child process reaches this server.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ACCESS_KEY_ID", KEY_ID.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.into()),
            ("AWS_REGION", REGION.into()),
            ("AWS_EC2_METADATA_DISABLED", "true".into()),
        ]
    }

    /// Makes a bucket with a fresh name and returns the name.
    pub async fn fresh_bucket(&self) -> String {
        let name = format!("test-{:016x}", varve::clock::random_u64());
        self.client().create_bucket().bucket(&name).send().await.unwrap();
        name
    }

    /// A plain client, for what varve itself never does.
    pub fn client(&self) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .region(Region::new(REGION))
            .credentials_provider(Credentials::new(KEY_ID, SECRET, None, None, "test"))
            .endpoint_url(self.endpoint())
            .force_path_style(true)
            .build();
        aws_sdk_s3::Client::from_conf(config)
    }

    /// Stops the server in its tracks (SIGSTOP): connections stay, nothing answers.
    pub fn pause(&self) {
        let server = self.signal(Signal::STOP);
        // The signal is only sent by then; this waits until each of its threads has stopped.
        let (_, status) = waitpid(Some(server), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the server (SIGKILL) and waits for its end.
    pub fn kill(&self) {
        let mut server = self.server.lock().unwrap();
        // Before the end is awaited, so that the watcher never meets the pid of somebody else.
        std::fs::remove_file(self.directory.join("pid")).unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Starts it again after `kill`, on the same data and port.
    pub fn restart(&self) {
        *self.server.lock().unwrap() = serve(&self.directory, self.port);
        self.wait_until_ready();
    }

    fn signal(&self, signal: Signal) -> Pid {
        let server = Pid::from_child(&self.server.lock().unwrap());
        kill_process(server, signal).unwrap();
        server
    }

    fn wait_until_ready(&self) {
        assert!(self.becomes_ready(), "MinIO ended: {}", self.log());
    }

    /// Waits until it is ready. False if it has ended.
    fn becomes_ready(&self) -> bool {
        let began = Instant::now();
        while !self.is_ready() {
            if self.server.lock().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            assert!(began.elapsed() < READY_DEADLINE, "MinIO does not become ready: {}", self.log());
            std::thread::sleep(POLL);
        }
        true
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// How it begins to answer a plain request for its health.
    fn ready_answer(&self) -> &'static str {
        if self.scheme == "http" { " 200 " } else { "sent an HTTP request to an HTTPS server" }
    }

    fn is_ready(&self) -> bool {
        let Ok(mut connection) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let asked = connection.write_all(b"GET /minio/health/cluster HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let mut answer = String::new();
        asked.is_ok() && connection.read_to_string(&mut answer).is_ok() && answer.contains(self.ready_answer())
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        // Closing the pipe is all that it takes; waiting makes sure that it has happened.
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
        let _ = self.server.lock().map(|mut server| server.wait());
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn fresh_directory() -> PathBuf {
    tempfile::Builder::new().prefix("varve-minio-").tempdir().unwrap().keep()
}

fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo test says where the package is");
        let tool = Path::new(&folder).join("tools/minio");
        let output = Command::new(tool).arg("path").stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "tools/minio path failed: {}", output.status);
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

fn serve(directory: &Path, port: u16) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(directory.join("log")).unwrap();
    let server = Command::new(binary())
        .args(["server", "--quiet", "--address", &format!("127.0.0.1:{port}")])
        .arg("--certs-dir")
        .arg(directory.join("certs"))
        .arg(directory.join("data"))
        .env("MINIO_ROOT_USER", KEY_ID)
        .env("MINIO_ROOT_PASSWORD", SECRET)
        .env("MINIO_BROWSER", "off")
        .env("MINIO_UPDATE", "off")
        .env("HOME", directory)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    std::fs::write(directory.join("pid"), server.id().to_string()).unwrap();
    server
}

fn watch(directory: &Path) -> Child {
    let script = r#"cat >/dev/null; if [ -s "$1/pid" ]; then kill -KILL "$(cat "$1/pid")"; fi; rm -rf -- "$1" || { sleep 1; rm -rf -- "$1"; }"#;
    Command::new("sh")
        .args(["-c", script, "watcher"])
        .arg(directory)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

//! A world for end-to-end tests: one store (a directory or a real MinIO), any number of hosts with their own state, and on each host a
//! real `varved` that can be killed, paused and started again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::minio::Minio;
pub use super::process::binary;
use super::process::{self, Outcome, PATIENCE, tail, text_of};

/// Every test is run on both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    Directory,
    Minio,
}

/// Turns `fn name(kind: StoreKind)` into two tests: `name::directory` and `name::minio`.
#[allow(unused_macros, reason = "a test for which the store does not matter has one of its own")]
macro_rules! both_stores {
    ($($name:ident),+ $(,)?) => {
        $(
            mod $name {
                #[test]
                fn directory() {
                    super::$name($crate::support::daemon::StoreKind::Directory);
                }

                #[test]
                fn minio() {
                    super::$name($crate::support::daemon::StoreKind::Minio);
                }
            }
        )+
    };
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use both_stores;

/// A store and the folder that everything of a test lies in; gone when dropped.
pub struct World {
    pub kind: StoreKind,
    pub store: String,
    pub environment: Vec<(String, String)>,
    /// The server, if this world has one of its own.
    minio: Option<Minio>,
    directory: TempDir,
}

impl World {
    /// An empty store of the given kind; tests share one MinIO, each with a bucket of its own.
    pub fn new(kind: StoreKind) -> World {
        match kind {
            StoreKind::Directory => World::of_directory(),
            StoreKind::Minio => World::of_minio(Minio::shared()),
        }
    }

    /// An empty store that nobody shares, so that it may go away.
    pub fn alone(kind: StoreKind) -> World {
        match kind {
            StoreKind::Directory => World::of_directory(),
            StoreKind::Minio => {
                let minio = Minio::start();
                let world = World::of_minio(&minio);
                World { minio: Some(minio), ..world }
            }
        }
    }

    fn of_directory() -> World {
        let directory = tempfile::Builder::new().prefix("varve-").tempdir().unwrap();
        let path = directory.path().join("store");
        std::fs::create_dir(&path).unwrap();
        let store = format!("file://{}", path.display());
        World { kind: StoreKind::Directory, store, environment: Vec::new(), minio: None, directory }
    }

    fn of_minio(minio: &Minio) -> World {
        let directory = tempfile::Builder::new().prefix("varve-").tempdir().unwrap();
        let bucket = block_on(minio.fresh_bucket());
        let environment = minio.env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        World { kind: StoreKind::Minio, store: format!("s3://{bucket}/disks"), environment, minio: None, directory }
    }

    /// The folder of the test.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Puts an object of the test's choice into the store, named relative to the store's prefix. S3 only: the files of a directory store
    /// can be changed as files.
    pub fn put(&self, key: &str, body: &[u8]) {
        let (bucket, prefix) = self.bucket();
        let request = self.s3().put_object().bucket(bucket).key(format!("{prefix}/{key}")).body(body.to_vec().into());
        block_on(async { request.send().await.unwrap() });
    }

    /// The content of an object.
    pub fn get(&self, key: &str) -> Vec<u8> {
        if self.kind == StoreKind::Directory {
            return std::fs::read(self.path().join("store").join(key)).unwrap();
        }
        let (bucket, prefix) = self.bucket();
        let request = self.s3().get_object().bucket(bucket).key(format!("{prefix}/{key}"));
        block_on(async { request.send().await.unwrap().body.collect().await.unwrap().to_vec() })
    }

    /// The names of all objects; those of a directory store are files.
    pub fn names(&self) -> Vec<String> {
        if self.kind == StoreKind::Directory {
            let store = self.path().join("store").display().to_string();
            let found = process::shell("cd \"$1\" && find . -mindepth 1", &[&store]).succeeded();
            return found.lines().map(str::to_owned).collect();
        }
        let request = self.s3().list_objects_v2().bucket(self.bucket().0);
        let page = block_on(async { request.send().await.unwrap() });
        page.contents().iter().filter_map(|object| object.key().map(str::to_owned)).collect()
    }

    fn bucket(&self) -> (&str, &str) {
        self.store.trim_start_matches("s3://").split_once('/').unwrap()
    }

    fn s3(&self) -> aws_sdk_s3::Client {
        self.minio.as_ref().unwrap_or_else(|| Minio::shared()).client()
    }

    /// A host with this name: its own state, its own sockets.
    pub fn host(&self, name: &str) -> Host {
        let folder = self.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let mut environment = self.environment.clone();
        environment.push(("VARVE_STORE".into(), self.store.clone()));
        // All hosts of a world have the same key: the default one, made with the first volume.
        environment.push(("XDG_CONFIG_HOME".into(), self.path().join("config").display().to_string()));
        environment.push(("VARVE_STATE".into(), folder.join("state").display().to_string()));
        environment.push(("VARVE_CONTROL".into(), folder.join("control.sock").display().to_string()));
        Host { folder, environment, arguments: Vec::new() }
    }

    /// Makes the store unreachable: MinIO stopped, the directory made immutable. (Giving it another name would change nothing:
    /// the daemon holds it open.)
    pub fn store_away(&self) {
        match (&self.minio, self.kind) {
            (Some(minio), _) => minio.kill(),
            (None, StoreKind::Minio) => panic!("others use this server too: take World::alone"),
            (None, StoreKind::Directory) => self.set_immutable(true),
        }
    }

    /// The end of [`World::store_away`].
    pub fn store_back(&self) {
        match &self.minio {
            Some(minio) => minio.restart(),
            None => self.set_immutable(false),
        }
    }

    fn set_immutable(&self, immutable: bool) {
        let flag = if immutable { "+i" } else { "-i" };
        let status = std::process::Command::new("chattr").arg("-R").arg(flag).arg(self.path().join("store")).status();
        assert!(status.unwrap().success(), "chattr {flag} failed: the tests need root on a file system that knows it");
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

/// A machine that may run a daemon: where its state is, and how its daemon is started.
#[derive(Clone, Debug)]
pub struct Host {
    folder: PathBuf,
    pub environment: Vec<(String, String)>,
    arguments: Vec<String>,
}

impl Host {
    /// Adds arguments for the daemon.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Host {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Sets an environment variable for the daemon and for `varve`.
    #[must_use]
    pub fn with_environment(mut self, name: &str, value: &str) -> Host {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub fn control(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    pub fn nbd(&self) -> PathBuf {
        self.folder.join("nbd.sock")
    }

    /// The URI of an export, as libnbd, QEMU and fio take it.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.nbd().display())
    }

    /// Runs `varve` on this host.
    #[track_caller]
    pub fn varve(&self, arguments: &[&str]) -> Outcome {
        process::run(Command::new(binary("varve")).args(arguments).envs(self.environment.clone()))
    }

    /// Runs `varve ... --json` and parses what it prints.
    #[track_caller]
    pub fn varve_json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        let text = self.varve(&all).succeeded();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("varve {all:?} printed no JSON ({error}):\n{text}"))
    }

    /// Creates a volume and returns its id, read as a script reads it.
    #[track_caller]
    pub fn create(&self, name: &str, size: &str) -> String {
        let text = self.varve(&["volumes", "create", name, "--size", size]).succeeded();
        id_in(&text)
    }

    fn daemon_command(&self) -> Command {
        let mut command = Command::new(binary("varved"));
        command
            .arg("--nbd-unix")
            .arg(self.nbd())
            .args(&self.arguments)
            .args(small_cache(&self.arguments))
            .envs(self.environment.clone())
            .stdin(Stdio::null());
        command
    }

    /// Runs a daemon that is expected to refuse its start.
    #[track_caller]
    pub fn daemon_that_refuses(&self) -> Outcome {
        process::run_within(&mut self.daemon_command(), Duration::from_secs(60))
    }

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub fn start(&self) -> Daemon {
        let log = self.folder.join("varved.log");
        let output = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        // A group of its own: a Ctrl-C at the terminal is for the test runner.
        let mut command = self.daemon_command();
        command.stdout(output.try_clone().unwrap()).stderr(output).process_group(0);
        let mut daemon = Daemon { child: command.spawn().unwrap(), host: self.clone(), log };
        process::until("varved answers on its control socket", || {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("varved ended at its start with {status}:\n{}", daemon.said());
            }
            daemon.host.answers()
        });
        daemon
    }

    /// What the daemon has asked of the store so far.
    #[track_caller]
    pub fn store_counts(&self) -> serde_json::Value {
        self.varve_json(&["status"])["daemon"]["store_counts"].clone()
    }

    /// The port on which the daemon takes NBD clients over TCP, if it was told to choose one; `scheme` is `nbd`, or `nbds` with TLS.
    #[track_caller]
    pub fn nbd_port(&self, scheme: &str) -> u16 {
        let status = self.varve_json(&["status"]);
        let prefix = format!("{scheme}://127.0.0.1:");
        let addresses = status["daemon"]["nbd"].as_array().unwrap();
        let mut ports = addresses.iter().filter_map(|address| address.as_str()?.strip_prefix(&prefix));
        let port = ports.next().and_then(|port| port.trim_end_matches('/').parse().ok());
        port.unwrap_or_else(|| panic!("no TCP address in {status}"))
    }

    /// Waits until the daemon has left the store alone for so long. A pause of the machine between two looks is not the daemon's silence:
    /// no more than a little is counted for each look.
    #[track_caller]
    pub fn silence(&self, time: Duration) {
        const LOOK_MAX: Duration = Duration::from_millis(50);
        let (mut counts, mut looked, mut silent) = (self.store_counts(), Instant::now(), Duration::ZERO);
        process::until("the daemon leaves the store alone", || {
            let now = self.store_counts();
            if now == counts {
                silent += looked.elapsed().min(LOOK_MAX);
            } else {
                (counts, silent) = (now, Duration::ZERO);
            }
            looked = Instant::now();
            silent > time
        });
    }

    /// True if a daemon answers `GET /v1/status` on the control socket.
    pub fn answers(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut stream = UnixStream::connect(self.control())?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: varved\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.starts_with("HTTP/1.1 200"))
        };
        ask().unwrap_or(false)
    }
}

/// The id in the output of create and fork: the second word of the one line that has "ID" in it.
#[track_caller]
pub fn id_in(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("ID")).collect();
    assert_eq!(lines.len(), 1, "exactly one line has 'ID' in it:\n{text}");
    lines[0].split_whitespace().nth(1).unwrap_or_else(|| panic!("no id after 'ID':\n{text}")).to_owned()
}

/// A running `varved`. Dropping it kills it.
pub struct Daemon {
    pub host: Host,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what the daemon wrote.
    pub fn said(&self) -> String {
        format!("-- {}\n{}", self.log.display(), tail(&text_of(&self.log)))
    }

    /// Kills it without warning; returns when it is gone. Its sockets may still hold answers that it gave before.
    #[track_caller]
    pub fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it as an operator would, and checks that it ends well.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = process::wait(&mut self.child, PATIENCE);
        let status =
            status.unwrap_or_else(|| panic!("varved did not stop within {PATIENCE:?} of SIGTERM:\n{}", self.said()));
        assert!(status.success(), "varved stopped with {status}:\n{}", self.said());
    }

    /// Asks it to stop, and does not wait.
    #[track_caller]
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Waits for its end, whatever the reason.
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        process::wait(&mut self.child, PATIENCE)
            .unwrap_or_else(|| panic!("varved did not end within {PATIENCE:?}:\n{}", self.said()))
    }

    /// Pauses every thread of it; returns when all have stopped, so that no answer comes any more.
    #[track_caller]
    pub fn pause(&self) {
        self.signal("STOP");
        process::until("varved is paused", || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            threads.flatten().all(|thread| {
                let stat = text_of(&thread.path().join("stat"));
                stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
            })
        });
    }

    /// The end of [`Daemon::pause`].
    #[track_caller]
    pub fn resume(&self) {
        self.signal("CONT");
    }

    #[track_caller]
    fn signal(&self, name: &str) {
        process::run(Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()])).succeeded();
    }

    /// Resident memory now and at its highest, in KiB.
    pub fn memory_kib(&self) -> (u64, u64) {
        let status = text_of(Path::new(&format!("/proc/{}/status", self.pid())));
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
        };
        (field("VmRSS:"), field("VmHWM:"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The default cache takes 10 GB of disk for each host, which is more than tests that run side by side can have.
fn small_cache(given: &[String]) -> &'static [&'static str] {
    if given.iter().any(|argument| argument == "--cache-size") { &[] } else { &["--cache-size", "256MiB"] }
}

//! Scratch space in the store and on the disk, and hosts of our own in it: each a real `varved` with its own state directory, that can be
//! killed, paused and wiped.
//!
//! Owns a prefix below the store's URL, a folder in the state directory, and a folder for sockets where paths are short; all three have a
//! random name that nobody else has, and are removed at the end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use varve::clock;
use varve::error::{Context as _, Error, ErrorKind, Result};
use varve::store::{self, ObjectKey};

use crate::torture::client::Client;

/// How long a daemon may take to answer after its start, and to stop.
const PATIENCE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(10);
/// What a daemon may take of the disk.
const LIMITS: [&str; 6] = ["--log-size", "128MiB", "--cache-size", "256MiB", "--segment-age", "500ms"];

/// Where everything of one run lies.
pub struct Scratch {
    /// The URL of the scratch store.
    pub url: String,
    /// The scratch folder on the disk.
    pub folder: PathBuf,
    sockets: PathBuf,
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("cannot remove {}", folder.display()), &error))
        }
        _ => Ok(()),
    }
}

impl Scratch {
    /// Makes scratch space below a store and below a folder. The store itself is made by its first volume.
    ///
    /// # Errors
    /// What the disk says.
    pub fn make(store: &str, state: &Path) -> Result<Scratch> {
        let name = format!("torture-{:016x}", clock::random_u64());
        let folder = state.join(&name);
        let sockets = std::env::temp_dir().join(format!("varve-{name}"));
        for folder in [&folder, &sockets] {
            fs::create_dir_all(folder).context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(Scratch { url: format!("{}/{name}", store.trim_end_matches('/')), folder, sockets })
    }

    /// A machine of this name, with nothing on it.
    pub fn host(&self, name: &str) -> Host {
        Host {
            url: self.url.clone(),
            config: self.folder.join("config"),
            state: self.folder.join(name),
            log: self.folder.join(format!("{name}.log")),
            control: self.sockets.join(format!("{name}.control")),
            nbd: self.sockets.join(format!("{name}.nbd")),
        }
    }

    /// Removes everything, and makes sure that it is gone. Returns how many objects there were.
    ///
    /// # Errors
    /// What the store and the disk say.
    pub async fn clean(&self) -> Result<u64> {
        remove(&self.folder)?;
        remove(&self.sockets)?;
        let mut removed = 0;
        if let Ok(opened) = store::open(&self.url, false).await {
            for object in store::list_all(&*opened.store, &ObjectKey::everything()).await? {
                opened.store.delete(&object.key).await?;
                removed += 1;
            }
            if let Some(left) = store::list_all(&*opened.store, &ObjectKey::everything()).await?.first() {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("{} is still in {}: remove it by hand", left.key, self.url),
                ));
            }
        }
        if let Some(path) = self.url.strip_prefix("file://") {
            remove(Path::new(path))?;
        }
        Ok(removed)
    }
}

/// A machine: where its daemon has its state and its sockets.
#[derive(Clone)]
pub struct Host {
    url: String,
    config: PathBuf,
    state: PathBuf,
    log: PathBuf,
    control: PathBuf,
    nbd: PathBuf,
}

/// A binary that was installed with this one.
fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context(|| "cannot find this binary")?;
    let path = own.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::not_found(format!("there is no {}: install varved beside varve", path.display())))
}

impl Host {
    fn command(&self, binary: &str) -> Result<Command> {
        let mut command = Command::new(beside(binary)?);
        for name in ["VARVE_STORE", "VARVE_STATE", "VARVE_CONTROL", "VARVE_KEY", "VARVE_CONFIG", "LISTEN_FDS"] {
            command.env_remove(name);
        }
        command.arg("--store").arg(&self.url).arg("--state").arg(&self.state).arg("--control").arg(&self.control);
        // A key of their own, which goes with the scratch space.
        command.env("XDG_CONFIG_HOME", &self.config);
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Runs `varve ... --json` on this host.
    ///
    /// # Errors
    /// `Invalid` with the command's own words if it fails.
    pub fn varve(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = self.command("varve")?;
        let output = command.args(arguments).arg("--json").output().context(|| "cannot run varve")?;
        let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !output.status.success() {
            let said = format!("{} {}", words(&output.stderr), words(&output.stdout));
            return Err(Error::invalid(format!("varve {}: {}", arguments.join(" "), said.trim())));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| {
            Error::invalid(format!("varve {}: its output makes no sense: {error}", arguments.join(" ")))
        })
    }

    /// Connects to an export of the daemon.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect(&self, export: &str) -> Result<Client> {
        Client::connect(&self.nbd, export)
    }

    /// Starts the daemon, and waits until it listens.
    ///
    /// # Errors
    /// What it says if it ends, and `Unavailable` if it never listens.
    pub fn start(&self) -> Result<Daemon> {
        let failed = || format!("cannot write {}", self.log.display());
        let output = fs::OpenOptions::new().create(true).append(true).open(&self.log).context(failed)?;
        let mut command = self.command("varved")?;
        command.arg("--nbd-unix").arg(&self.nbd).args(LIMITS);
        command.stderr(output.try_clone().context(failed)?).stdout(output);
        let child = command.spawn().context(|| "cannot start varved")?;
        let mut daemon = Daemon { child, host: self.clone() };
        let end = Instant::now() + PATIENCE;
        while self.varve(&["status"]).is_err() {
            let ended = daemon.child.try_wait().context(|| "cannot wait for varved")?;
            if ended.is_some() || Instant::now() > end {
                let message = format!("varved does not start: {}", self.last_words());
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
            std::thread::sleep(POLL);
        }
        Ok(daemon)
    }

    /// The end of what the daemon wrote.
    pub fn last_words(&self) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join(" | ")
    }

    /// The host is lost with all that was on its disk.
    ///
    /// # Errors
    /// What the disk says.
    pub fn wipe(&self) -> Result<()> {
        remove(&self.state)
    }
}

/// A running daemon; dropping it kills it.
pub struct Daemon {
    child: Child,
    /// Where it runs.
    pub host: Host,
}

impl Daemon {
    fn signal(&self, signal: Signal) -> Result<()> {
        // Our own child, and not reaped yet: the number is nobody else's.
        kill_process(Pid::from_child(&self.child), signal)
            .map_err(|errno| Error::io("cannot send a signal to varved", &errno.into()))
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().and_then(|()| self.child.wait()).map(drop).context(|| "cannot kill varved")
    }

    /// SIGSTOP; returns when it has stopped.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let end = Instant::now() + PATIENCE;
        let stat = format!("/proc/{}/task", self.child.id());
        loop {
            let threads = fs::read_dir(&stat).context(|| format!("cannot read {stat}"))?;
            let runs = threads.flatten().any(|thread| {
                let text = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                text.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('T'))
            });
            if !runs {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(Error::new(ErrorKind::Unavailable, "varved cannot be paused"));
            }
            std::thread::sleep(POLL);
        }
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGTERM; returns when it has uploaded what was left and handed its volumes back.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let end = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().context(|| "cannot wait for varved")? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    let message = format!("varved stopped with {status}: {}", self.host.last_words());
                    return Err(Error::new(ErrorKind::Unavailable, message));
                }
                None if Instant::now() > end => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        format!("varved does not stop within {PATIENCE:?}"),
                    ));
                }
                None => std::thread::sleep(POLL),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! System calls of a running daemon that fail on demand, by strace.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::daemon::Daemon;
use super::process::{self, PATIENCE, text_of};

/// While it lives, calls of one kind on one file (or on any) fail.
pub struct Injection(Child);

impl Injection {
    /// Makes `call` fail with `error` as `when` says (`1+`: always; `1..4`: the first four), on `path` only if there is one.
    #[track_caller]
    pub fn start(daemon: &Daemon, call: &str, error: &str, when: &str, path: Option<&Path>) -> Injection {
        Injection::trace(daemon, call, &format!("error={error}:when={when}"), path)
    }

    /// Kills the daemon as one of its threads begins its `nth` such call: what the call does is not done any more.
    #[track_caller]
    pub fn kill_at(daemon: &Daemon, call: &str, nth: u64, path: Option<&Path>) -> Injection {
        Injection::trace(daemon, call, &format!("signal=SIGKILL:when={nth}"), path)
    }

    /// Makes each such call take this much longer.
    #[track_caller]
    pub fn slow(daemon: &Daemon, call: &str, microseconds: u64, path: Option<&Path>) -> Injection {
        Injection::trace(daemon, call, &format!("delay_enter={microseconds}"), path)
    }

    #[track_caller]
    fn trace(daemon: &Daemon, call: &str, deed: &str, path: Option<&Path>) -> Injection {
        let pid = daemon.pid();
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-p", &pid.to_string(), "-e", &format!("trace={call}")]);
        command.args(["-e", &format!("inject={call}:{deed}")]);
        if let Some(path) = path {
            command.arg("-P").arg(path);
        }
        let mut strace = command.stdin(Stdio::null()).spawn().expect("strace: run tools/test once, which installs it");
        let state = Path::new("/proc").join(pid.to_string()).join("stat");
        process::until("strace holds every thread of varved", || {
            // Looked at first: it also ends with the daemon.
            let ended = strace.try_wait().unwrap();
            // What was to happen may have happened already.
            if deed.contains("SIGKILL") && text_of(&state).contains(") Z ") {
                return true;
            }
            assert!(ended.is_none(), "strace ended: may this container trace processes?");
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            threads.flatten().all(|thread| {
                let status = text_of(&thread.path().join("status"));
                !status.contains("TracerPid:\t0\n")
            })
        });
        Injection(strace)
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // Terminated, it lets go of the daemon; killed, it might take it along.
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        if process::wait(&mut self.0, PATIENCE).is_none() {
            let _ = self.0.kill();
        }
    }
}

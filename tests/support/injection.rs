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
        let pid = daemon.pid();
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-p", &pid.to_string(), "-e", &format!("trace={call}")]);
        command.args(["-e", &format!("inject={call}:error={error}:when={when}")]);
        if let Some(path) = path {
            command.arg("-P").arg(path);
        }
        let mut strace = command.stdin(Stdio::null()).spawn().expect("strace: run tools/test once, which installs it");
        process::until("strace holds every thread of varved", || {
            assert!(strace.try_wait().unwrap().is_none(), "strace ended: may this container trace processes?");
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

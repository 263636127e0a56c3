//! Runs other programs so that nothing hangs: every wait has an end, and a failure shows what the program said.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The repository that is tested. Asked for at run time: a build that is kept may have been made from another clone.
pub fn repository() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo test says where the package is"))
}

/// The folder of the built binaries: `varve` lies beside `varved`.
pub fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_varved")).with_file_name(name);
    assert!(path.exists(), "{} is not built: cargo build --release --workspace", path.display());
    path
}

/// Longer than anything a test runs takes on two busy cores.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Fails the test, with everything the program said, unless it ended well. Returns what it printed.
    #[track_caller]
    pub fn succeeded(self) -> String {
        assert!(self.status.success(), "{}", self.report());
        self.stdout
    }

    /// Fails the test unless the program ended badly, without a panic, and its message has all these words. Returns the message.
    #[track_caller]
    pub fn refused(self, words: &[&str]) -> String {
        assert!(!self.status.success(), "it should have been refused: {}", self.report());
        let message = format!("{}{}", self.stdout, self.stderr);
        assert!(!message.contains("panicked at"), "it panicked: {}", self.report());
        assert!(self.status.code().is_some(), "a signal ended it: {}", self.report());
        for word in words {
            assert!(message.contains(word), "the message does not name '{word}': {}", self.report());
        }
        message
    }

    /// Everything, for a failed assertion.
    pub fn report(&self) -> String {
        format!(
            "\n$ {}\n{}\n-- stdout\n{}\n-- stderr\n{}",
            self.command,
            self.status,
            tail(&self.stdout),
            tail(&self.stderr)
        )
    }
}

/// The end of a long text.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

fn words(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let _ = write!(text, " {}", argument.to_string_lossy());
    }
    text
}

/// Runs a program to its end, at most [`PATIENCE`].
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    run_within(command, PATIENCE)
}

/// Runs a program to its end; kills it and fails the test if it takes longer than `limit`.
#[track_caller]
pub fn run_within(command: &mut Command, limit: Duration) -> Outcome {
    let mut stdout = tempfile::tempfile().unwrap();
    let mut stderr = tempfile::tempfile().unwrap();
    let words = words(command);
    command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{words}: {error}: run tools/test once, which installs it"));
    let status = wait(&mut child, limit);
    if status.is_none() {
        let _ = child.kill();
    }
    let outcome = Outcome {
        command: words,
        status: status.unwrap_or_default(),
        stdout: rewound(&mut stdout),
        stderr: rewound(&mut stderr),
    };
    assert!(status.is_some(), "not done after {limit:?}: {}", outcome.report());
    outcome
}

fn rewound(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for the end of a child, at most `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until something is so; fails the test after [`PATIENCE`].
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sets a flag when it is dropped, by a panic too: then whoever waits for the flag on another thread ends, and the failure shows.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs a shell script with `set -eu`, its arguments as `$1`, `$2`, ...
#[track_caller]
pub fn shell(script: &str, arguments: &[&str]) -> Outcome {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "test"]).args(arguments);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    run(&mut command)
}

/// A file's content as text; empty if it is not there.
pub fn text_of(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

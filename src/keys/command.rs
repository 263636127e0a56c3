//! Commands that wrap and unwrap keys: the way to a KMS, a vault, or a token.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use zeroize::Zeroizing;

use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::units::VolumeId;

/// A command that has not ended by then is stopped.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
const LOOK: Duration = Duration::from_millis(10);
/// What a command that failed has said is waited for so long: what it has left behind may keep its standard error open.
const SAID: Duration = Duration::from_secs(1);

/// What is asked of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Wrap,
    Unwrap,
}

/// Runs `command` (words between spaces; no shell) with what is asked as its last argument and the volume in `VARVE_VOLUME`, and returns what it
/// wrote to its standard output.
///
/// # Errors
/// `Denied` if it cannot be run, fails, says nothing or takes longer than a minute; with the end of what it said to its standard error.
pub(super) fn run(command: &str, ask: Ask, volume: VolumeId, input: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    let mut words = command.split_whitespace();
    let program = words.next().ok_or_else(|| Error::invalid("a key command needs a program"))?;
    let word = if ask == Ask::Wrap { "wrap" } else { "unwrap" };
    let doing = || format!("running '{program} ... {word}' for the keys of {volume}");
    let deadline = clock::running() + PATIENCE;
    let mut child = Command::new(program)
        .args(words)
        .arg(word)
        .env("VARVE_VOLUME", volume.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that what it has started ends with it.
        .process_group(0)
        .spawn()
        .context(doing)?;
    let (output, errors) = (collect(child.stdout.take()), collect(child.stderr.take()));
    if let Some(mut stdin) = child.stdin.take() {
        let input = Zeroizing::new(input.to_vec());
        // One that does not read says why it failed.
        std::thread::spawn(move || drop(stdin.write_all(&input)));
    }
    let status = wait(&mut child, deadline).context(doing)?;
    let left = deadline.saturating_sub(clock::running()).max(LOOK);
    let failed = |why: String| {
        let said = errors.recv_timeout(SAID).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let said = said.trim().lines().last().unwrap_or_default().to_owned();
        Error::new(ErrorKind::Denied, format!("{}: {why}: {said:.200}", doing()))
    };
    match status {
        None => Err(failed(format!("it was stopped, for it did not end within {} s", PATIENCE.as_secs()))),
        Some(status) if !status.success() => Err(failed(status.to_string())),
        Some(_) => match output.recv_timeout(left) {
            Ok(output) if !output.is_empty() => Ok(output),
            _ => Err(failed("it wrote nothing".to_owned())),
        },
    }
}

/// Reads to the end, on a thread of its own: whoever started the command need not wait for those that it has left behind.
fn collect(from: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Zeroizing<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Zeroizing::new(Vec::new());
        if let Some(from) = from {
            // What came before an error is what there is.
            let _ = from.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes);
        }
        // Nobody may want it any more.
        let _ = sender.send(bytes);
    });
    receiver
}

/// Waits until it has ended; one that has not by then is stopped with all that it has started.
fn wait(child: &mut Child, deadline: Duration) -> std::io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if clock::running() > deadline {
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            if let Some(group) = group {
                kill_process_group(group, Signal::KILL)?;
            }
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

//! Commands that wrap and unwrap keys: the way to a KMS, a vault, or a token.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::clock;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::units::VolumeId;

/// A command that has not ended by then is stopped.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
const LOOK: Duration = Duration::from_millis(10);

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
    let mut child = Command::new(program)
        .args(words)
        .arg(word)
        .env("VARVE_VOLUME", volume.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(doing)?;
    // Keys fit into a pipe, so this does not wait for a command that reads late; one that does not read says why it failed.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input);
    }
    let output = collect(child.stdout.take());
    let errors = collect(child.stderr.take());
    let status = wait(&mut child).context(doing)?;
    let (output, errors) = (output.join().unwrap_or_default(), errors.join().unwrap_or_default());
    let failed = |why: String| {
        let said = String::from_utf8_lossy(&errors);
        let said = said.trim().lines().last().unwrap_or_default().to_owned();
        Error::new(ErrorKind::Denied, format!("{}: {why}: {said:.200}", doing()))
    };
    match status {
        None => Err(failed(format!("it was stopped, for it did not end within {} s", PATIENCE.as_secs()))),
        Some(status) if !status.success() => Err(failed(status.to_string())),
        Some(_) if output.is_empty() => Err(failed("it wrote nothing".to_owned())),
        Some(_) => Ok(output),
    }
}

fn collect(from: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Zeroizing<Vec<u8>>> {
    std::thread::spawn(move || {
        let mut bytes = Zeroizing::new(Vec::new());
        if let Some(from) = from {
            // What came before an error is what there is.
            let _ = from.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait(child: &mut Child) -> std::io::Result<Option<std::process::ExitStatus>> {
    let begun = clock::running();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if clock::running().saturating_sub(begun) > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

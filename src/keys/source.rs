//! Sources of keys: how settings name them, and reading them.

use std::fmt;
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::clock;
use crate::error::{Context, Error, Result};
use crate::seal::{KEY_BYTES, VolumeKey};

/// Longest key file or passphrase that is read, in bytes.
const SECRET_BYTES_MAX: u64 = 4096;

/// Where a key is kept, as settings name it. Not the key.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// `file:PATH`: 64 hexadecimal digits in a file.
    File(PathBuf),
    /// `env:NAME`: 64 hexadecimal digits in an environment variable.
    Environment(String),
    /// `passphrase-file:PATH`: a passphrase, the first line of a file.
    PassphraseFile(PathBuf),
    /// `passphrase-env:NAME`: a passphrase in an environment variable.
    PassphraseEnvironment(String),
    /// `command:PROGRAM ARGUMENTS...`: run with `wrap` or `unwrap` as its last argument, from standard input to standard output.
    Command(String),
    /// The key itself, of a program that has varve as a library.
    Given(VolumeKey),
}

impl FromStr for KeySource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let rest = |prefix: &str| text.strip_prefix(prefix).filter(|rest| !rest.is_empty());
        let path = |prefix: &str| rest(prefix).map(PathBuf::from);
        let name = |prefix: &str| rest(prefix).filter(|name| !name.contains(['=', '\0'])).map(str::to_owned);
        let source = path("file:").map(KeySource::File);
        let source = source.or_else(|| name("env:").map(KeySource::Environment));
        let source = source.or_else(|| path("passphrase-file:").map(KeySource::PassphraseFile));
        let source = source.or_else(|| name("passphrase-env:").map(KeySource::PassphraseEnvironment));
        let source = source.or_else(|| rest("command:").map(|command| KeySource::Command(command.to_owned())));
        // What was given may be the key itself, so it is not repeated.
        source.ok_or_else(|| {
            Error::invalid(
                "what was given as --key says no place of a key: write file:PATH, env:NAME, passphrase-file:PATH, passphrase-env:NAME or \
                 command:PROGRAM",
            )
        })
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySource::File(path) => write!(f, "file:{}", path.display()),
            KeySource::Environment(name) => write!(f, "env:{name}"),
            KeySource::PassphraseFile(path) => write!(f, "passphrase-file:{}", path.display()),
            KeySource::PassphraseEnvironment(name) => write!(f, "passphrase-env:{name}"),
            // Its arguments may hold secrets, though they should not.
            KeySource::Command(command) => {
                write!(f, "command:{}", command.split_whitespace().next().unwrap_or_default())
            }
            KeySource::Given(_) => f.write_str("a key of this program"),
        }
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl KeySource {
    /// The key that the source holds; `None` if it holds a passphrase or is a command.
    ///
    /// # Errors
    /// `NotFound` if there is nothing; `Invalid` for what is no key; `Io`.
    pub(super) fn key(&self) -> Result<Option<VolumeKey>> {
        let digits = match self {
            KeySource::Given(key) => return Ok(Some(key.clone())),
            KeySource::File(path) => read_secret(path, self)?,
            KeySource::Environment(name) => variable(name, self)?,
            _ => return Ok(None),
        };
        VolumeKey::of_digits(&digits).map(Some).ok_or_else(|| {
            Error::invalid(format!(
                "{self} holds no key: a key is {} hexadecimal digits, as 'varve keys create FILE' writes them",
                2 * KEY_BYTES
            ))
        })
    }

    /// The passphrase that the source holds; `None` if it holds something else.
    ///
    /// # Errors
    /// `NotFound` if there is nothing; `Invalid` if it is empty; `Io`.
    pub(super) fn passphrase(&self) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let text = match self {
            KeySource::PassphraseFile(path) => read_secret(path, self)?,
            KeySource::PassphraseEnvironment(name) => variable(name, self)?,
            _ => return Ok(None),
        };
        let line = text.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
        if line.is_empty() {
            return Err(Error::invalid(format!("{self} holds an empty passphrase")));
        }
        Ok(Some(Zeroizing::new(line.to_vec())))
    }
}

fn read_secret(path: &Path, source: &KeySource) -> Result<Zeroizing<Vec<u8>>> {
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        IoErrorKind::NotFound => Error::not_found(format!("there is no key at {source}")),
        _ => Error::io(format_args!("cannot read {source}"), &error),
    })?;
    if let Ok(about) = file.metadata()
        && about.mode() & 0o077 != 0
    {
        tracing::warn!(%source, "others than its owner may read this key: chmod 600 would end that");
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX as usize));
    file.take(SECRET_BYTES_MAX).read_to_end(&mut bytes).context(|| format!("cannot read {source}"))?;
    Ok(bytes)
}

fn variable(name: &str, source: &KeySource) -> Result<Zeroizing<Vec<u8>>> {
    use std::os::unix::ffi::OsStringExt;
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    let value =
        value.ok_or_else(|| Error::not_found(format!("there is no key at {source}: the variable is not set")))?;
    Ok(Zeroizing::new(value.into_vec()))
}

/// Writes a new random key into a new file that only its owner can read, and returns its fingerprint.
///
/// # Errors
/// `Conflict` if there is a file already; `Io`.
pub fn create_key_file(path: &Path) -> Result<String> {
    let shown = path.display();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .context(|| format!("cannot create {}", directory.display()))?;
    let key = VolumeKey::of_words(clock::random_words());
    let mut digits = key.digits();
    digits.push('\n');
    // Under another name first, so that nobody ever finds half a key.
    let draft = PathBuf::from(format!("{shown}.{:x}", clock::random_u64()));
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&draft);
    let mut file = file.context(|| format!("cannot create {}", draft.display()))?;
    let written = file.write_all(digits.as_bytes()).and_then(|()| file.sync_all());
    // A link never takes the place of what is there.
    let named = written.and_then(|()| std::fs::hard_link(&draft, path));
    let removed = std::fs::remove_file(&draft);
    named.map_err(|error| match error.kind() {
        IoErrorKind::AlreadyExists => Error::new(
            crate::error::ErrorKind::Conflict,
            format!("there is a file {shown} already, and a key is never overwritten"),
        ),
        _ => Error::io(format_args!("cannot write {shown}"), &error),
    })?;
    removed.context(|| format!("cannot remove {}", draft.display()))?;
    let synced = std::fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.context(|| format!("cannot sync {}", directory.display()))?;
    Ok(key.fingerprint())
}

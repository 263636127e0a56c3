//! Claims under which nothing can be lost: what lets a host that dies while it attaches a volume attach it again by itself.
//!
//! An owner is known by the token in its write log. Between the change of the manifest that makes an attachment the owner and the
//! creation of its log there is no such log, and a host that dies then could not tell its own claim from one of another. So it notes
//! the token first, as the name of an empty file `claim-<token>` beside the log.
//!
//! Guarantee: while the file is there, nothing was acknowledged under this token that the store does not hold. An attachment that carries on
//! with a log which holds more than the store notes nothing: that log itself says whose it is.
//!
//! Order: note, sync, then the manifest; log, sync, then the notes are removed and synced; only then are requests taken. After a crash the
//! note is there, or the log is, or both.

use std::io::ErrorKind;
use std::path::PathBuf;

use crate::disk::OpenMode;
use crate::error::{Context, Error, Result};
use crate::units::{Token, VolumeId};
use crate::volume::shared::Shared;

const PREFIX: &str = "claim-";

fn directory(shared: &Shared, volume: VolumeId) -> PathBuf {
    shared.volumes_directory.join(volume.to_string())
}

/// Notes a claim before the manifest has it.
///
/// # Errors
/// What the local disk says; then the claim must not be made.
pub fn note(shared: &Shared, volume: VolumeId, token: Token) -> Result<()> {
    let directory = directory(shared, volume);
    let path = directory.join(format!("{PREFIX}{token}"));
    shared.disk.create_directory(&directory).context(|| format!("cannot create {}", directory.display()))?;
    match shared.disk.open(&path, OpenMode::CreateNew) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(Error::io(path.display(), &error)),
        _ => {}
    }
    let synced =
        shared.disk.sync_directory(&directory).and_then(|()| shared.disk.sync_directory(&shared.volumes_directory));
    synced.context(|| format!("cannot note a claim in {}", directory.display()))
}

/// True if this claim was noted, and nothing was acknowledged under it that the store does not hold.
///
/// # Errors
/// What the local disk says.
pub fn is_noted(shared: &Shared, volume: VolumeId, token: Token) -> Result<bool> {
    let path = directory(shared, volume).join(format!("{PREFIX}{token}"));
    match shared.disk.open(&path, OpenMode::Existing) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path.display(), &error)),
    }
}

/// Removes all notes, once a durable log says whose the volume is, and before anything is acknowledged. None of the earlier
/// claims can still come into the manifest: the newest one has replaced the version that they were made for.
///
/// # Errors
/// What the local disk says; then nothing may be acknowledged.
pub fn clear(shared: &Shared, volume: VolumeId) -> Result<()> {
    let directory = directory(shared, volume);
    let failed = || format!("cannot remove the notes of claims in {}", directory.display());
    let paths = shared.disk.list(&directory).context(failed)?;
    let is_note =
        |path: &&PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX));
    let mut removed = false;
    for path in paths.iter().filter(is_note) {
        shared.disk.remove(path).context(failed)?;
        removed = true;
    }
    if removed { shared.disk.sync_directory(&directory).context(failed) } else { Ok(()) }
}

//! Making a new log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::commit::Committer;
use super::sealing::Sealing;
use super::shared::{Ends, Ring, Shared};
use super::{Appender, LOG_RESERVE_BYTES, LogReader, WriteLog};
use crate::clock;
use crate::disk::{Disk, OpenMode};
use crate::error::{Context, Error, Result};
use crate::format::log::{LogIdentity, RING_START, Superblock};
use crate::seal::VolumeKey;
use crate::units::{BLOCK_SIZE, ByteLen, LogOffset, Sequence};

/// Zeros written when a log is created; those further on follow as it fills. Takes some 30 ms.
const CREATE_WARM_BYTES: u64 = 8 << 20;
/// The smallest ring, in bytes. Far below what settings allow: tests like small rings.
const RING_BYTES_MIN: u64 = 64 << 10;

/// Creates an empty log at `path` for a volume whose next write gets `next_sequence`. The file appears under its name
/// only when it is complete and durable. The directory must exist. With the key of the volume, if it has one, its records are sealed.
///
/// # Errors
/// `Conflict` if there is a file already; `Invalid` for a length that is too small or no multiple of the block size; `Full`; `Io`.
pub fn create(
    disk: &dyn Disk,
    path: &Path,
    ring_length: ByteLen,
    identity: LogIdentity,
    next_sequence: Sequence,
    key: Option<Arc<VolumeKey>>,
) -> Result<WriteLog> {
    if ring_length.0 < RING_BYTES_MIN || !ring_length.0.is_multiple_of(BLOCK_SIZE) || ring_length.0 >= 1 << 62 {
        let message = format!(
            "a write log cannot be {ring_length} bytes long: it takes a multiple of {BLOCK_SIZE} from {RING_BYTES_MIN} on"
        );
        return Err(Error::invalid(message));
    }
    let shown = path.display();
    let Some(directory) = path.parent() else {
        return Err(Error::invalid(format!("{shown} cannot be the path of a write log")));
    };
    match disk.open(path, OpenMode::Existing) {
        Ok(_) => {
            let message = format!("there is a write log at {shown} already; move it away if it is not wanted");
            return Err(Error::new(crate::error::ErrorKind::Conflict, message));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(format_args!("looking for the write log {shown}"), &error)),
    }
    let draft = PathBuf::from(format!("{shown}.new"));
    match disk.remove(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(format_args!("removing the unfinished write log {}", draft.display()), &error));
        }
        _ => {}
    }
    let file = disk.open(&draft, OpenMode::CreateNew).context(|| format!("creating the write log {shown}"))?;
    let made = file.allocate(RING_START + ring_length.0);
    made.context(|| format!("reserving {ring_length} bytes for the write log {shown}"))?;
    let incarnation = clock::random_u64();
    let superblock = Superblock {
        generation: 2,
        identity,
        created_at: clock::now(),
        ring_length,
        tail: LogOffset(0),
        tail_sequence: next_sequence,
        tail_incarnation: incarnation,
        incarnation,
        durable_to: LogOffset(0),
        sealed: key.is_some(),
    };
    let sealing = key.map(|key| Arc::new(Sealing::new(key)));
    let ring = Ring { file, name: shown.to_string().into(), length: ring_length, sealing };
    let warm_to = CREATE_WARM_BYTES.min((ring_length.0 / 8).next_multiple_of(BLOCK_SIZE));
    ring.write_superblock(&Superblock { generation: 1, ..superblock })?;
    ring.write_superblock(&superblock)?;
    ring.write_zeros(LogOffset(0), warm_to)?;
    ring.sync()?;
    disk.rename(&draft, path).context(|| format!("naming the write log {shown}"))?;
    disk.sync_directory(directory).context(|| format!("syncing the directory of the write log {shown}"))?;
    open(ring, superblock, Ends { head: LogOffset(0), next_sequence }, warm_to)
}

/// Puts the parts of a log together.
pub(super) fn open(ring: Ring, superblock: Superblock, ends: Ends, warm_to: u64) -> Result<WriteLog> {
    debug_assert!(ring.length.0 > LOG_RESERVE_BYTES);
    let shared = Arc::new(Shared::new(ring, &superblock, ends, warm_to));
    let reader = LogReader::new(shared.clone());
    let committer = Committer::start(shared.clone(), reader.clone(), superblock)?;
    let appender = Appender::new(shared, committer.poke());
    Ok(WriteLog { appender, reader, committer })
}

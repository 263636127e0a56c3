//! A write log that somebody else may have written: recovery, reading, and carrying on with it.

use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use parking_lot::RwLock;
use varve::disk::{Disk, DiskFile, OpenMode};
use varve::log::{LogIdentity, NewRecord, RecordKind, recover};
use varve::units::{Epoch, Lba, Token};

/// Records whose blocks are read.
const RECORDS_READ: usize = 64;

/// One file in memory.
#[derive(Clone, Default)]
pub struct OneFile(pub Arc<RwLock<Vec<u8>>>);

impl DiskFile for OneFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.read().len() as u64)
    }

    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        let bytes = self.0.read();
        let mut at = usize::try_from(offset).map_err(io::Error::other)?;
        for buffer in buffers {
            let end = at.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes.get(at..end).ok_or(io::ErrorKind::UnexpectedEof)?);
            at = end;
        }
        Ok(())
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = self.0.write();
        let mut at = usize::try_from(offset).map_err(io::Error::other)?;
        for buffer in buffers {
            // The file has its length: what would make it longer is a mistake of the log.
            let place = bytes.get_mut(at..at + buffer.len()).expect("a log writes within its file");
            place.copy_from_slice(buffer);
            at += buffer.len();
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.0.write().resize(usize::try_from(length).map_err(io::Error::other)?, 0);
        Ok(())
    }
}

impl Disk for OneFile {
    fn open(&self, _: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        if mode == OpenMode::Existing && self.0.read().is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Arc::new(self.clone()))
    }

    fn create_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// The file of a write log.
pub fn log_file(bytes: &[u8]) {
    let disk = OneFile(Arc::new(RwLock::new(bytes.to_vec())));
    let path = Path::new("/state/log");
    let Ok(found) = recover(&disk, path, &|_| Ok(None)) else { return };
    let before = disk.0.read().clone();
    let mut buffer = vec![0; 4096];
    for view in found.records().take(RECORDS_READ) {
        let Ok(view) = view else { break };
        if view.kind == RecordKind::Write {
            found.read_blocks(view.place.record, 0, &mut buffer).expect("recovery has verified it");
            assert!(found.read_blocks(view.place.record, view.range.count.0 as u32, &mut buffer).is_err());
        }
    }
    assert!(*disk.0.read() == before, "recovery changes nothing");
    let last = found.last_sequence();
    let late = found.identity();
    let identity = LogIdentity { epoch: Epoch(late.epoch.0.saturating_add(1)), token: Token(1), ..late };
    let Ok(mut log) = found.resume(identity, true) else { return };
    let mut places = Vec::new();
    let appended = log.appender.append(&[NewRecord::Write { lba: Lba(3), data: &buffer }], &mut places);
    let (sender, receiver) = mpsc::channel();
    log.committer.commit(Box::new(move |done| sender.send(done).unwrap_or(())));
    receiver.recv().expect("every commit is answered").expect("the disk does not fail");
    drop(log);
    let again = recover(&disk, path, &|_| Ok(None)).expect("a log that was carried on with is whole");
    if appended.is_ok_and(|count| count == 1) {
        assert_eq!(again.last_sequence(), last.next());
    }
}

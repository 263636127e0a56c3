//! What happens while a sync or the writing of zeros is under way, held there by a gate.

use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;

use super::tests::{commit, identity, key, key_of, path, write};
use super::*;
use crate::disk::simulated::SimulatedDisk;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::units::ByteLen;

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Sync,
    Zeros,
}

/// The operation to hold, whom to tell, and who lets it go.
type Held = (At, mpsc::Sender<()>, mpsc::Receiver<()>);

/// Stops the next operation of a kind: tells that it has arrived, and waits until told to go on.
#[derive(Default)]
struct Gate {
    next: Mutex<Option<Held>>,
}

impl Gate {
    fn close(&self, at: At) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (arrived, arrival) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        *self.next.lock() = Some((at, arrived, gone));
        (arrival, go)
    }

    fn pass(&self, at: At) {
        let held = self.next.lock().take_if(|held| held.0 == at);
        if let Some((_, arrived, gone)) = held {
            arrived.send(()).unwrap();
            gone.recv().unwrap();
        }
    }
}

struct GatedFile(Arc<dyn DiskFile>, Arc<Gate>);

impl DiskFile for GatedFile {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read_at(&self, buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        self.0.read_at(buffers, offset)
    }

    fn write_at(&self, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        if buffers.iter().all(|buffer| buffer.iter().all(|&byte| byte == 0)) {
            self.1.pass(At::Zeros);
        }
        self.0.write_at(buffers, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        // The sync has happened; its caller does not know yet.
        let result = self.0.sync_data();
        self.1.pass(At::Sync);
        result
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.0.allocate(length)
    }
}

struct GatedDisk(SimulatedDisk, Arc<Gate>);

impl Disk for GatedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(GatedFile(self.0.open(path, mode)?, self.1.clone())))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.0.create_directory(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        self.0.list(directory)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.0.sync_directory(path)
    }
}

fn gated() -> (GatedDisk, Arc<Gate>, WriteLog) {
    let gate = Arc::new(Gate::default());
    let disk = GatedDisk(SimulatedDisk::new(), gate.clone());
    let log = create(&disk, &path(), ByteLen(1 << 20), identity(1), Sequence(1), key()).unwrap();
    (disk, gate, log)
}

#[test]
fn a_sync_covers_only_what_was_appended_before_it_began() {
    let (disk, gate, mut log) = gated();
    let covered = write(&mut log, 1);
    let (arrival, go) = gate.close(At::Sync);
    let (sender, first) = mpsc::channel();
    log.committer.commit(Box::new(move |result| sender.send(result).unwrap()));
    arrival.recv().unwrap();
    let late = write(&mut log, 1);
    let (second_arrival, second_go) = gate.close(At::Sync);
    let (sender, second) = mpsc::channel();
    log.committer.commit(Box::new(move |result| sender.send(result).unwrap()));
    go.send(()).unwrap();
    first.recv().unwrap().unwrap();
    second_arrival.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(log.committer.synced_to(), covered.end, "the second commit got a sync of its own");
    assert!(second.try_recv().is_err());
    second_go.send(()).unwrap();
    second.recv().unwrap().unwrap();
    assert_eq!(log.committer.synced_to(), late.end);
    disk.0.power_loss(3);
    drop(log);
    assert_eq!(recover(&disk, &path(), &key_of).unwrap().end(), late.end);
}

#[test]
fn zeros_written_ahead_never_fall_on_a_record() {
    let (_disk, gate, mut log) = gated();
    let mut places = vec![write(&mut log, 1)];
    let (arrival, go) = gate.close(At::Zeros);
    let (sender, committed) = mpsc::channel();
    log.committer.commit(Box::new(move |result| sender.send(result).unwrap()));
    arrival.recv().unwrap();
    // The zeros go to the second eighth of the ring and beyond; this append wants to go there too.
    let (appended, done) = mpsc::channel();
    let appender = std::thread::spawn(move || {
        places.extend((0..5).map(|_| write(&mut log, 20)));
        appended.send(()).unwrap();
        (log, places)
    });
    let early = done.recv_timeout(Duration::from_millis(200)).is_ok();
    go.send(()).unwrap();
    assert!(!early, "the append waits for the zeros");
    done.recv().unwrap();
    committed.recv().unwrap().unwrap();
    let (log, places) = appender.join().unwrap();
    commit(&log).unwrap();
    let mut buffer = [0; 4096];
    for place in places {
        assert_eq!(log.reader.read_blocks(place.record, 0, &mut buffer).unwrap(), LogRead::Done);
    }
}

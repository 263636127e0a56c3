use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use super::*;
use crate::disk::Disk;
use crate::disk::fault::{FaultDisk, Operation};
use crate::disk::host::HostDisk;
use crate::disk::simulated::SimulatedDisk;
use crate::error::{ErrorKind, Result};
use crate::seal::VolumeKey;
pub(super) use crate::seal::test_key as key;
use crate::units::{BlockCount, ByteLen, Lba, StoreId, Token, UnixMillis, VolumeId};

pub(super) const RING: ByteLen = ByteLen(256 << 10);

pub(super) fn identity(epoch: u32) -> LogIdentity {
    LogIdentity {
        store: StoreId(1),
        volume: VolumeId(2),
        epoch: Epoch(epoch),
        token: Token(u128::from(epoch) << 64 | 9),
        attached_at: UnixMillis(3),
    }
}

pub(super) fn path() -> PathBuf {
    PathBuf::from("/state/volume.log")
}

pub(super) fn new_log(disk: &dyn Disk) -> WriteLog {
    create(disk, &path(), RING, identity(1), Sequence(1), key()).unwrap()
}

/// `blocks` blocks of which each tells the sequence it was written as.
pub(super) fn content(sequence: u64, blocks: u64) -> Vec<u8> {
    (0..blocks)
        .flat_map(|block| (0..512).flat_map(move |word| (sequence << 20 | block << 10 | word).to_le_bytes()))
        .collect()
}

pub(super) fn write(log: &mut WriteLog, blocks: u64) -> LogPlace {
    let sequence = log.appender.next_sequence().0;
    let mut places = Vec::new();
    let data = content(sequence, blocks);
    assert_eq!(log.appender.append(&[NewRecord::Write { lba: Lba(sequence), data: &data }], &mut places).unwrap(), 1);
    places[0]
}

pub(super) fn commit(log: &WriteLog) -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    log.committer.commit(Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap()
}

/// Waits until a release is durable.
pub(super) fn release(log: &WriteLog, to: LogOffset, next: Sequence) {
    let (sender, receiver) = mpsc::channel();
    log.committer.on_space_freed(Arc::new(move || sender.send(()).unwrap_or(())));
    log.committer.release(to, next).unwrap();
    receiver.recv().unwrap();
}

/// The logs of these tests are sealed.
#[allow(clippy::unnecessary_wraps, reason = "it stands for one that may fail")]
pub(super) fn key_of(_volume: VolumeId) -> Result<Option<Arc<VolumeKey>>> {
    Ok(key())
}

fn read(log: &WriteLog, place: LogPlace, first: u32, blocks: u64) -> Result<(LogRead, Vec<u8>)> {
    let mut buffer = vec![0; (blocks * 4096) as usize];
    let read = log.reader.read_blocks(place.record, first, &mut buffer)?;
    Ok((read, buffer))
}

#[test]
fn what_was_appended_is_read_back_in_any_part() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut log = create(&HostDisk, &path, ByteLen(16 << 20), identity(1), Sequence(5), key()).unwrap();
    let data = content(6, 1200);
    let one = content(5, 1);
    let records = [
        NewRecord::Write { lba: Lba(7), data: &one },
        NewRecord::Write { lba: Lba(8), data: &data },
        NewRecord::Zero { lba: Lba(0), blocks: BlockCount(1 << 32) },
    ];
    let mut places = Vec::new();
    assert_eq!(log.appender.append(&records, &mut places).unwrap(), 3);
    assert_eq!(places[0].sequence, Sequence(5));
    assert_eq!(read(&log, places[0], 0, 1).unwrap(), (LogRead::Done, one));
    for (first, blocks) in [(0, 1), (0, 1200), (1, 2), (1199, 1), (600, 300)] {
        let (done, bytes) = read(&log, places[1], first, blocks).unwrap();
        assert_eq!(done, LogRead::Done);
        assert!(bytes[..] == data[first as usize * 4096..(first as usize + blocks as usize) * 4096]);
    }
    assert_eq!(read(&log, places[1], 1199, 2).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(read(&log, places[2], 0, 1).unwrap_err().kind(), ErrorKind::Damaged);
    let view = log.reader.header_at(places[2].record).unwrap().unwrap();
    assert_eq!((view.kind, view.range.count), (RecordKind::Zero, BlockCount(1 << 32)));
    commit(&log).unwrap();
    assert_eq!(log.committer.synced_to(), places[2].end);
    drop(log);
    let recovered = recover(&HostDisk, &path, &key_of).unwrap();
    assert_eq!((recovered.ending(), recovered.end(), recovered.record_count()), (Ending::Clean, places[2].end, 3));
    assert_eq!(
        create(&HostDisk, &path, RING, identity(1), Sequence(1), key()).err().unwrap().kind(),
        ErrorKind::Conflict
    );
}

#[test]
fn a_full_log_goes_on_when_space_is_freed_and_old_places_are_gone() {
    let disk = SimulatedDisk::new();
    let mut log = new_log(&disk);
    let mut kept: Vec<LogPlace> = Vec::new();
    for _ in 0..40 {
        let data = content(log.appender.next_sequence().0, 5);
        let record = NewRecord::Write { lba: Lba(1), data: &data };
        let mut places = Vec::new();
        while log.appender.append(&[record, record, record], &mut places).unwrap() > 0 {}
        assert!(!places.is_empty());
        assert!(log.committer.free().0 < 2 * 5 * 4160);
        kept.extend(places);
        let to = kept[kept.len() / 2];
        let old = kept[0];
        release(&log, to.record, to.sequence);
        assert_eq!(read(&log, old, 0, 1).unwrap().0, LogRead::Gone);
        assert_eq!(log.reader.header_at(old.record).unwrap(), None);
        kept.retain(|place| place.record >= to.record);
        assert_eq!(log.committer.used().0, log.appender.head().0 - to.record.0);
        for place in &kept {
            assert_eq!(read(&log, *place, 0, 5).unwrap().0, LogRead::Done);
        }
        let views: Vec<RecordView> = log.reader.headers(to.record, log.appender.head()).collect::<Result<_>>().unwrap();
        let writes: Vec<LogPlace> =
            views.iter().filter(|view| view.kind == RecordKind::Write).map(|view| view.place).collect();
        assert_eq!(writes, kept);
    }
    let head = log.appender.head();
    let next = log.appender.next_sequence();
    assert_eq!(log.committer.release(head, Sequence(1)).unwrap_err().kind(), ErrorKind::Invalid);
    release(&log, head, next);
    assert_eq!(log.committer.used(), ByteLen(0));
    log.committer.release(LogOffset(0), Sequence(1)).unwrap();
}

#[test]
fn records_that_fit_no_log_are_refused_and_change_nothing() {
    let disk = SimulatedDisk::new();
    let mut log = new_log(&disk);
    let mut places = Vec::new();
    for data in [&[][..], &[0; 4095][..], &[0; 160 << 10][..]] {
        let error = log.appender.append(&[NewRecord::Write { lba: Lba(0), data }], &mut places).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let zero = NewRecord::Zero { lba: Lba(u64::MAX), blocks: BlockCount(2) };
    assert_eq!(log.appender.append(&[zero], &mut places).unwrap_err().kind(), ErrorKind::Invalid);
    assert!(places.is_empty());
    assert_eq!(write(&mut log, 1).record, LogOffset(0));
}

#[test]
fn l4_a_failed_sync_poisons_and_is_never_repeated() {
    let disk = FaultDisk::new(Arc::new(SimulatedDisk::new()));
    let mut log = new_log(&disk);
    let place = write(&mut log, 1);
    commit(&log).unwrap();
    disk.fail(Operation::Sync, 1, std::io::ErrorKind::Other);
    write(&mut log, 1);
    let error = commit(&log).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.message().contains("poisoned until the volume is reopened"), "{error}");
    let syncs = disk.counts().syncs;
    assert_eq!(commit(&log).unwrap_err().kind(), ErrorKind::Io);
    let zero = NewRecord::Zero { lba: Lba(1), blocks: BlockCount(1) };
    assert_eq!(log.appender.append(&[zero], &mut Vec::new()).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(log.committer.release(place.end, Sequence(2)).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(read(&log, place, 0, 1).unwrap().0, LogRead::Done);
    assert!(log.committer.last_error().is_some());
    assert_eq!(log.committer.synced_to(), place.end);
    drop(log);
    assert_eq!(disk.counts().syncs, syncs, "no sync after the one that failed");
    let recovered = recover(&disk, &path(), &key_of).unwrap();
    assert_eq!(recovered.last_sequence(), Sequence(2));
    let log = recovered.resume(identity(2), false).unwrap();
    commit(&log).unwrap();
}

#[test]
fn who_waits_for_space_is_told_that_none_comes() {
    let disk = FaultDisk::new(Arc::new(SimulatedDisk::new()));
    let mut log = new_log(&disk);
    let place = write(&mut log, 1);
    commit(&log).unwrap();
    disk.fail(Operation::Sync, 1, std::io::ErrorKind::Other);
    // Returns when it is told, and nobody commits.
    release(&log, place.end, Sequence(2));
    assert!(log.committer.last_error().is_some());
    let zero = NewRecord::Zero { lba: Lba(1), blocks: BlockCount(1) };
    assert_eq!(log.appender.append(&[zero], &mut Vec::new()).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn l5_a_failed_or_short_write_poisons_and_nothing_of_it_is_promised() {
    for short in [0, 100, 4096, 6000] {
        let disk = FaultDisk::new(Arc::new(SimulatedDisk::new()));
        let mut log = new_log(&disk);
        let place = write(&mut log, 2);
        disk.fail_short(1, short, std::io::ErrorKind::StorageFull);
        let data = content(2, 2);
        let mut places = vec![place];
        let record = NewRecord::Write { lba: Lba(0), data: &data };
        let error = log.appender.append(&[record], &mut places).unwrap_err();
        assert_eq!((error.kind(), places.len()), (ErrorKind::Io, 1));
        assert_eq!(commit(&log).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(read(&log, place, 1, 1).unwrap().0, LogRead::Done);
        drop(log);
        let recovered = recover(&disk, &path(), &key_of).unwrap();
        assert_eq!((recovered.last_sequence(), recovered.end()), (Sequence(1), place.end));
    }
}

#[test]
fn commits_that_wait_together_share_a_sync() {
    let disk = FaultDisk::new(Arc::new(SimulatedDisk::new()));
    let mut log = new_log(&disk);
    write(&mut log, 1);
    let before = disk.counts().syncs;
    let (sender, receiver) = mpsc::channel();
    let (go, gate) = mpsc::channel::<()>();
    let first = sender.clone();
    // Holds the committing thread in a callback until all the others have come.
    log.committer.commit(Box::new(move |result| {
        gate.recv().unwrap();
        first.send(result).unwrap();
    }));
    while disk.counts().syncs == before {
        std::thread::yield_now();
    }
    write(&mut log, 1);
    for _ in 0..50 {
        let sender = sender.clone();
        log.committer.commit(Box::new(move |result| sender.send(result).unwrap()));
    }
    go.send(()).unwrap();
    for _ in 0..51 {
        receiver.recv().unwrap().unwrap();
    }
    assert_eq!(disk.counts().syncs, before + 2);
    commit(&log).unwrap();
    assert_eq!(disk.counts().syncs, before + 2, "nothing new: nothing to sync");
}

#[test]
fn dropping_the_committer_answers_all_who_wait() {
    let disk = SimulatedDisk::new();
    let mut log = new_log(&disk);
    let place = write(&mut log, 1);
    let (sender, receiver) = mpsc::channel();
    log.committer.commit(Box::new(move |result| sender.send(result).unwrap()));
    drop(log);
    receiver.recv().unwrap().unwrap();
    disk.power_loss(1);
    assert_eq!(recover(&disk, &path(), &key_of).unwrap().end(), place.end);
}

fn file_byte(offset: LogOffset) -> u64 {
    crate::format::log::RING_START + offset.0 % RING.0
}

/// A synced log of three records after each of which a commit was made; the last one marks the ones before.
fn synced_log() -> (SimulatedDisk, Vec<LogPlace>) {
    let disk = SimulatedDisk::new();
    let mut log = new_log(&disk);
    let places = (0..3)
        .map(|index| {
            let place = write(&mut log, 1 + index % 2);
            commit(&log).unwrap();
            place
        })
        .collect();
    disk.kill();
    drop(log);
    (disk, places)
}

#[test]
fn l6_rot_in_every_byte_class_is_told_from_a_torn_tail() {
    let (disk, places) = synced_log();
    let bad = places[1];
    // Every byte of header and table, and bytes of both blocks of the payload.
    let payload = [128, 129, 4095, 4224, 128 + 8191];
    for byte in (0..128).chain(payload) {
        disk.flip_bit(&path(), file_byte(bad.record) + byte, (byte % 8) as u8).unwrap();
        let before = disk.content(&path()).unwrap();
        let recovered = recover(&disk, &path(), &key_of).unwrap();
        let Ending::Damaged { at, blocks, records_beyond } = recovered.ending() else {
            panic!("byte {byte}: {:?}", recovered.ending())
        };
        assert_eq!((at, records_beyond), (bad.record, 1), "byte {byte}");
        assert_eq!(blocks.is_some(), byte >= 128);
        assert_eq!(recovered.last_sequence(), Sequence(1));
        assert_eq!(recovered.resume(identity(2), false).err().unwrap().kind(), ErrorKind::Damaged);
        assert!(disk.content(&path()).unwrap() == before, "a refusal changes nothing");
        disk.flip_bit(&path(), file_byte(bad.record) + byte, (byte % 8) as u8).unwrap();
    }
    assert_eq!(recover(&disk, &path(), &key_of).unwrap().ending(), Ending::Clean);
    disk.flip_bit(&path(), file_byte(bad.record) + 200, 0).unwrap();
    let log = recover(&disk, &path(), &key_of).unwrap().resume(identity(2), true).unwrap();
    assert_eq!(log.appender.next_sequence(), Sequence(2));
    drop(log);
    assert_ne!(recover(&disk, &path(), &key_of).unwrap().last_sequence(), Sequence(3));
}

#[test]
fn l6_rot_in_the_last_records_is_damage_after_a_clean_stop() {
    let disk = SimulatedDisk::new();
    let mut log = new_log(&disk);
    let place = write(&mut log, 1);
    drop(log);
    disk.flip_bit(&path(), file_byte(place.record) + 77, 3).unwrap();
    assert!(matches!(recover(&disk, &path(), &key_of).unwrap().ending(), Ending::Damaged { .. }));
}

#[test]
fn l6_rot_is_reported_to_a_reader_as_long_as_the_record_is_kept() {
    let disk = SimulatedDisk::new();
    let mut log = new_log(&disk);
    let place = write(&mut log, 2);
    disk.flip_bit(&path(), file_byte(place.record) + 128 + 4096, 3).unwrap();
    assert_eq!(read(&log, place, 0, 1).unwrap().0, LogRead::Done);
    assert_eq!(read(&log, place, 1, 1).unwrap_err().kind(), ErrorKind::Damaged);
    assert_eq!(read(&log, place, 0, 2).unwrap_err().kind(), ErrorKind::Damaged);
    release(&log, place.end, Sequence(2));
    assert_eq!(read(&log, place, 1, 1).unwrap().0, LogRead::Gone);
}

/// Copies bytes of a file, as a misdirected write would.
fn misdirect(disk: &SimulatedDisk, from: u64, to: u64, length: usize) {
    let bytes = disk.content(&path()).unwrap();
    let file = disk.open(&path(), crate::disk::OpenMode::Existing).unwrap();
    let from = from as usize;
    file.write_at(&[std::io::IoSlice::new(&bytes[from..from + length])], to).unwrap();
    file.sync_data().unwrap();
}

#[test]
fn l9_a_misdirected_record_is_not_taken_for_another() {
    let (disk, places) = synced_log();
    misdirect(&disk, file_byte(places[0].record), file_byte(places[2].record), 4160);
    let recovered = recover(&disk, &path(), &key_of).unwrap();
    assert_eq!(recovered.last_sequence(), Sequence(2));
    let log = recovered.resume(identity(2), true).unwrap();
    let mut buffer = [0; 4096];
    let error = log.reader.read_blocks(places[2].record, 0, &mut buffer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

#[test]
fn l8_a_log_of_another_volume_or_a_newer_epoch_is_refused() {
    let disk = SimulatedDisk::new();
    let log = create(&disk, &path(), RING, identity(5), Sequence(1), key()).unwrap();
    drop(log);
    let other = LogIdentity { volume: VolumeId(99), ..identity(6) };
    assert_eq!(recover(&disk, &path(), &key_of).unwrap().identity(), identity(5));
    for wrong in [other, identity(4)] {
        let error = recover(&disk, &path(), &key_of).unwrap().resume(wrong, false).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}

#[test]
fn l8_records_of_another_volumes_log_are_not_followed() {
    let disk = SimulatedDisk::new();
    let mut ours = new_log(&disk);
    let place = write(&mut ours, 1);
    let theirs = PathBuf::from("/state/other.log");
    let mut log =
        create(&disk, &theirs, RING, LogIdentity { volume: VolumeId(3), ..identity(1) }, Sequence(1), key()).unwrap();
    write(&mut log, 1);
    write(&mut log, 1);
    drop((ours, log));
    let bytes = disk.content(&theirs).unwrap();
    let at = file_byte(place.end);
    let file = disk.open(&path(), crate::disk::OpenMode::Existing).unwrap();
    file.write_at(&[std::io::IoSlice::new(&bytes[at as usize..at as usize + 4160])], at).unwrap();
    let recovered = recover(&disk, &path(), &key_of).unwrap();
    assert_eq!((recovered.end(), recovered.ending()), (place.end, Ending::Clean));
}

#[test]
fn l3_a_record_behind_a_lost_one_never_comes_back() {
    let disk = SimulatedDisk::new();
    let mut log = new_log(&disk);
    for _ in 0..2 {
        write(&mut log, 1);
    }
    commit(&log).unwrap();
    let lost = write(&mut log, 1);
    let stale = write(&mut log, 1);
    disk.kill();
    drop(log);
    let file = disk.open(&path(), crate::disk::OpenMode::Existing).unwrap();
    file.write_at(&[std::io::IoSlice::new(&[0; 4160])], file_byte(lost.record)).unwrap();
    let recovered = recover(&disk, &path(), &key_of).unwrap();
    assert_eq!((recovered.end(), recovered.ending()), (lost.record, Ending::Torn { records_beyond: 1 }));
    let mut log = recovered.resume(identity(2), false).unwrap();
    // As long as the lost record was, with the fence before it: the next place is the old record's.
    let zero = NewRecord::Zero { lba: Lba(0), blocks: BlockCount(1) };
    let mut places = Vec::new();
    while log.appender.head() < stale.record {
        assert_eq!(log.appender.append(&[zero], &mut places).unwrap(), 1);
    }
    assert_eq!(log.appender.head(), stale.record);
    commit(&log).unwrap();
    disk.kill();
    drop(log);
    let recovered = recover(&disk, &path(), &key_of).unwrap();
    assert_eq!((recovered.end(), recovered.ending()), (stale.record, Ending::Clean));
}

#[test]
fn a_host_that_crashes_on_every_start_does_not_fill_its_log() {
    let disk = SimulatedDisk::new();
    let mut log = new_log(&disk);
    let data = content(1, 3);
    while log.appender.append(&[NewRecord::Write { lba: Lba(0), data: &data }], &mut Vec::new()).unwrap() == 1 {}
    let zero = NewRecord::Zero { lba: Lba(0), blocks: BlockCount(1) };
    while log.appender.append(&[zero], &mut Vec::new()).unwrap() == 1 {}
    let last = log.appender.next_sequence();
    drop(log);
    for epoch in 2..200 {
        let log = recover(&disk, &path(), &key_of).unwrap().resume(identity(epoch), false).unwrap();
        assert_eq!(log.appender.next_sequence(), last);
        disk.kill();
        drop(log);
        let recovered = recover(&disk, &path(), &key_of).unwrap();
        assert_eq!((recovered.identity(), recovered.ending()), (identity(epoch), Ending::Clean));
    }
}

#[test]
fn what_is_no_log_is_refused_with_a_clear_error() {
    let disk = SimulatedDisk::new();
    assert_eq!(recover(&disk, &path(), &key_of).err().unwrap().kind(), ErrorKind::NotFound);
    let file = disk.open(Path::new("/state/x"), crate::disk::OpenMode::CreateNew).unwrap();
    assert_eq!(recover(&disk, Path::new("/state/x"), &key_of).err().unwrap().kind(), ErrorKind::Damaged);
    file.allocate(1 << 20).unwrap();
    assert_eq!(recover(&disk, Path::new("/state/x"), &key_of).err().unwrap().kind(), ErrorKind::Damaged);
    assert!(create(&disk, &path(), ByteLen(4097), identity(1), Sequence(1), key()).is_err());
}

#[test]
fn l6_rot_in_either_superblock_costs_nothing() {
    for slot in [0, 4096] {
        let disk = SimulatedDisk::new();
        let mut log = new_log(&disk);
        for _ in 0..60 {
            write(&mut log, 5);
            let (head, next) = (log.appender.head(), log.appender.next_sequence());
            release(&log, head, next);
        }
        let last = write(&mut log, 5);
        commit(&log).unwrap();
        disk.kill();
        drop(log);
        disk.flip_bit(&path(), slot + 100, 1).unwrap();
        let recovered = recover(&disk, &path(), &key_of).unwrap();
        assert_eq!((recovered.tail_sequence(), recovered.last_sequence()), (last.sequence, last.sequence));
        disk.flip_bit(&path(), (slot + 4096) % 8192 + 100, 1).unwrap();
        assert_eq!(recover(&disk, &path(), &key_of).err().unwrap().kind(), ErrorKind::Damaged);
    }
}

#[test]
fn a_log_that_was_closed_writes_nothing_any_more_while_the_next_carries_on_with_its_file() {
    let disk = SimulatedDisk::new();
    let mut old = new_log(&disk);
    let data = content(1, 2);
    let mut places = Vec::new();
    old.appender.append(&[NewRecord::Write { lba: Lba(0), data: &data }], &mut places).unwrap();
    old.committer.close();
    let mut new = recover(&disk, &path(), &key_of).unwrap().resume(identity(2), false).unwrap();
    for sequence in 2..8 {
        let data = content(sequence, 2);
        new.appender.append(&[NewRecord::Write { lba: Lba(sequence), data: &data }], &mut places).unwrap();
    }
    commit(&new).unwrap();
    let refused = old.appender.append(&[NewRecord::Zero { lba: Lba(9), blocks: BlockCount(1) }], &mut places);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Stopping);
    assert_eq!(commit(&old).unwrap_err().kind(), ErrorKind::Stopping);
    // With this its zeros and its superblock would follow.
    drop(old);
    drop(new);
    let recovered = recover(&disk, &path(), &key_of).unwrap();
    assert_eq!(recovered.ending(), Ending::Clean);
    assert_eq!(recovered.last_sequence(), Sequence(7));
}

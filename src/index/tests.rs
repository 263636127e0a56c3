use std::fs;

use super::*;
use crate::units::{Epoch, SegmentNumber};

const MEMORY: ByteLen = ByteLen(8 << 20);

impl Index {
    fn db(&self) -> &DB {
        match &self.rows {
            Rows::RocksDb(db) => db,
            Rows::Twin(_) => panic!("an index of the simulated world"),
        }
    }
}

fn segment(number: u64) -> SegmentId {
    SegmentId { volume: VolumeId(number % 3), epoch: Epoch(1), number: SegmentNumber(number) }
}

fn frame(number: u64) -> FrameId {
    FrameId { segment: segment(number / 10), frame: (number % 10) as u32 }
}

/// The database as a crash at this moment would leave it: what the process holds in memory is not in its files.
fn copy_as_after_a_crash(index: &Index, to: &Path) {
    fs::create_dir_all(to).unwrap();
    // The manifest is copied first, and the data files it names, which never change, are held back from removal: so the
    // copy is of the moment of the manifest, whatever works in the background.
    index.db().disable_file_deletions().unwrap();
    let list = || fs::read_dir(&index.path).unwrap().map(|entry| entry.unwrap().path());
    let roots = list().filter(|path| path.extension().is_none()).collect::<Vec<_>>();
    // Listed only after the roots were copied: the manifest may name a file that is younger than the first list.
    let data = std::iter::once_with(list).flatten().filter(|path| path.extension().is_some());
    for file in roots.into_iter().chain(data).filter(|path| !path.ends_with("LOCK")) {
        let target = to.join(file.file_name().unwrap());
        // A file that the manifest no longer named may still vanish; one that it names cannot, or the open would tell.
        match fs::copy(&file, target) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{}: {error}", file.display()),
            _ => {}
        }
    }
    index.db().enable_file_deletions().unwrap();
}

/// Changes every byte of the middle of every file whose name ends so.
fn damage(path: &Path, suffix: &str) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().ends_with(suffix) || path.to_string_lossy().contains(&format!("/{suffix}")) {
            let mut bytes = fs::read(&path).unwrap();
            let (from, to) = (bytes.len() / 8, bytes.len() * 7 / 8);
            bytes[from..=to].iter_mut().for_each(|byte| *byte ^= 0x55);
            fs::write(&path, bytes).unwrap();
        }
    }
}

#[test]
fn what_is_put_is_found_until_it_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let index = Index::open(&directory.path().join("index"), MEMORY).unwrap();
    for volume in [1, 2, u64::MAX].map(VolumeId) {
        index.put_pages(volume, (0..100).map(|page| (PageIndex(page), vec![page as u8; 50]))).unwrap();
        index.put_pages_and_state(volume, [(PageIndex(u64::MAX), b"last")], b"state").unwrap();
    }
    assert_eq!(index.page(VolumeId(1), PageIndex(7)).unwrap().as_deref(), Some(&[7; 50][..]));
    assert_eq!(index.page(VolumeId(1), PageIndex(100)).unwrap(), None);
    index.drop_volume(VolumeId(1)).unwrap();
    index.drop_volume(VolumeId(u64::MAX)).unwrap();
    for volume in [1, u64::MAX].map(VolumeId) {
        assert_eq!(index.page(volume, PageIndex(0)).unwrap(), None);
        assert_eq!(index.page(volume, PageIndex(u64::MAX)).unwrap(), None);
        assert_eq!(index.volume_state(volume).unwrap(), None);
    }
    assert_eq!(index.page(VolumeId(2), PageIndex(u64::MAX)).unwrap().as_deref(), Some(&b"last"[..]));
    assert_eq!(index.volume_state(VolumeId(2)).unwrap().as_deref(), Some(&b"state"[..]));
    index.put_volume_state(VolumeId(2), b"newer").unwrap();
    assert_eq!(index.volume_state(VolumeId(2)).unwrap().as_deref(), Some(&b"newer"[..]));
    index.put_pages(VolumeId(1), [(PageIndex(3), b"again")]).unwrap();
    assert_eq!(index.page(VolumeId(1), PageIndex(3)).unwrap().as_deref(), Some(&b"again"[..]));

    index.put_segment_index(segment(1), b"first").unwrap();
    index.put_segment_index(segment(2), b"second").unwrap();
    index.delete_segment_index(segment(1)).unwrap();
    assert_eq!(index.segment_index(segment(1)).unwrap(), None);
    assert_eq!(index.segment_index(segment(2)).unwrap().as_deref(), Some(&b"second"[..]));
}

#[test]
fn slots_are_put_and_deleted_in_batches() {
    let directory = tempfile::tempdir().unwrap();
    let index = Index::open(&directory.path().join("index"), MEMORY).unwrap();
    let puts: Vec<_> = (0..100).map(|number| (frame(number), number * 3)).collect();
    index.apply_slots(&puts, &[]).unwrap();
    index.apply_slots(&[(frame(5), 77)], &[frame(5), frame(6)]).unwrap();
    assert_eq!(index.slot(frame(5)).unwrap(), Some(77), "deletes come first");
    assert_eq!(index.slots(&[frame(6), frame(99), frame(7)]).unwrap(), [None, Some(297), Some(21)]);
    assert_eq!(index.slots(&[]).unwrap(), []);
    index.clear_slots().unwrap();
    assert_eq!(index.slots(&[frame(5), frame(99)]).unwrap(), [None, None]);
    index.apply_slots(&[(frame(5), 78)], &[]).unwrap();
    assert_eq!(index.slot(frame(5)).unwrap(), Some(78));
}

#[test]
fn a_drop_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index");
    let index = Index::open(&path, MEMORY).unwrap();
    index.put_volume_state(VolumeId(1), b"kept").unwrap();
    drop(index);
    let index = Index::open(&path, MEMORY).unwrap();
    assert_eq!(index.volume_state(VolumeId(1)).unwrap().as_deref(), Some(&b"kept"[..]));
    assert!(!open::aside_path(&path).exists());
}

#[test]
fn a_crash_comes_back_to_one_moment_not_before_the_last_flush() {
    let directory = tempfile::tempdir().unwrap();
    let index = Index::open(&directory.path().join("index"), MEMORY).unwrap();
    let (volume, mut flushed) = (VolumeId(1), 0u8);
    for step in 1..=60u8 {
        // A page, a slot and the state in three families say the same number, the state last.
        index.put_segment_index(segment(0), &[step]).unwrap();
        index.apply_slots(&[(frame(0), u64::from(step))], &[]).unwrap();
        let filler = (0..40).map(|page| (PageIndex(page), vec![step; 4000]));
        index.put_pages_and_state(volume, filler, &[step]).unwrap();
        if step % 20 == 7 {
            index.flush().unwrap();
            flushed = step;
        }
        if step % 20 == 17 {
            let copy = directory.path().join(format!("crashed-{step}"));
            copy_as_after_a_crash(&index, &copy);
            let found = Index::open(&copy, MEMORY).unwrap();
            let state = found.volume_state(volume).unwrap().unwrap()[0];
            assert!(state >= flushed && state <= step, "{flushed} <= {state} <= {step}");
            for page in [0, 39] {
                assert_eq!(found.page(volume, PageIndex(page)).unwrap().unwrap()[..], vec![state; 4000]);
            }
            for earlier in
                [found.segment_index(segment(0)).unwrap().unwrap()[0], found.slot(frame(0)).unwrap().unwrap() as u8]
            {
                assert!(earlier == state || earlier == state + 1, "written before the state: {earlier} and {state}");
            }
        }
    }
}

#[test]
fn a_damaged_database_is_moved_aside_and_made_anew() {
    for suffix in ["CURRENT", "MANIFEST-"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        for _ in 0..2 {
            let index = Index::open(&path, MEMORY).unwrap();
            assert_eq!(index.volume_state(VolumeId(1)).unwrap(), None);
            index.put_volume_state(VolumeId(1), b"state").unwrap();
            drop(index);
            damage(&path, suffix);
        }
        drop(Index::open(&path, MEMORY).unwrap());
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "one is kept aside: {names:?}");
        assert!(open::aside_path(&path).exists());
    }
}

#[test]
fn a_database_that_misses_a_file_is_moved_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index");
    let index = Index::open(&path, MEMORY).unwrap();
    index.put_volume_state(VolumeId(1), b"state").unwrap();
    drop(index);
    for entry in fs::read_dir(&path).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "sst") {
            fs::remove_file(file).unwrap();
        }
    }
    let index = Index::open(&path, MEMORY).unwrap();
    assert_eq!(index.volume_state(VolumeId(1)).unwrap(), None);
    assert!(open::aside_path(&path).exists());
}

#[test]
fn damage_met_while_running_is_an_error_and_the_next_open_starts_afresh() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index");
    let index = Index::open(&path, MEMORY).unwrap();
    index.put_pages(VolumeId(1), (0..500).map(|page| (PageIndex(page), vec![page as u8; 4000]))).unwrap();
    drop(index);
    // Only the data blocks in the middle are hit, so that the database opens.
    damage(&path, ".sst");
    let index = Index::open(&path, MEMORY).unwrap();
    assert!(!open::aside_path(&path).exists());
    let error = (0..500).find_map(|page| index.page(VolumeId(1), PageIndex(page)).err()).unwrap();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    drop(index);
    let index = Index::open(&path, MEMORY).unwrap();
    assert_eq!(index.page(VolumeId(1), PageIndex(250)).unwrap(), None);
    index.put_pages(VolumeId(1), [(PageIndex(250), b"rebuilt")]).unwrap();
    assert!(open::aside_path(&path).exists());
}

#[test]
fn a_second_opener_is_refused_and_harms_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index");
    let index = Index::open(&path, MEMORY).unwrap();
    index.put_volume_state(VolumeId(1), b"state").unwrap();
    let Err(error) = Index::open(&path, MEMORY) else { panic!("it is open already") };
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(!open::aside_path(&path).exists());
    assert!(index.volume_state(VolumeId(1)).unwrap().is_some());
}

#[test]
fn a_place_that_cannot_be_used_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, b"not a directory").unwrap();
    let Err(error) = Index::open(&file.join("index"), MEMORY) else { panic!("a file holds no directories") };
    assert!(error.message().contains("file/index"), "{error}");
}

#[test]
fn memory_stays_within_its_bound() {
    let directory = tempfile::tempdir().unwrap();
    let index = Index::open(&directory.path().join("index"), MEMORY).unwrap();
    for round in 0..100u64 {
        let pages = (0..256).map(|page| (PageIndex(page * 97 + round), vec![round as u8; 2000]));
        index.put_pages(VolumeId(1), pages).unwrap();
        index.apply_slots(&(0..500).map(|at| (frame(round * 500 + at), at)).collect::<Vec<_>>(), &[]).unwrap();
        for page in 0..256 {
            index.page(VolumeId(1), PageIndex(page * 97)).unwrap();
        }
        // The write buffers are charged to the block cache, so that its use is the use of both.
        let property =
            |name: &str| index.db().property_int_value_cf(index.family(index.db(), Family::Pages).unwrap(), name);
        let cache = property("rocksdb.block-cache-usage").unwrap().unwrap();
        assert!(cache <= MEMORY.0, "{cache}");
        let buffers: u64 = Family::ALL
            .iter()
            .map(|&family| {
                let family = index.family(index.db(), family).unwrap();
                index.db().property_int_value_cf(family, "rocksdb.size-all-mem-tables").unwrap().unwrap()
            })
            .sum();
        assert!(buffers <= MEMORY.0 / 2, "{buffers}");
    }
}

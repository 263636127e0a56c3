//! What only a directory store has: files, modes, left-overs, strangers, and several processes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::io::Errno;

use super::super::{ByteRange, Condition, ETag, ObjectKey, Store, StoreErrorKind};
use super::DirectoryStore;
use super::files::failure;
use crate::units::{SnapshotId, VolumeId};

struct World {
    directory: tempfile::TempDir,
    store: DirectoryStore,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(directory.path(), false).await.unwrap();
        World { directory, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn create(&self, key: &ObjectKey, body: &'static str) -> ETag {
        self.store.put(key, Bytes::from_static(body.as_bytes()), Condition::IfAbsent).await.unwrap()
    }

    async fn names(&self) -> Vec<String> {
        let listing = self.store.list(&ObjectKey::everything(), None).await.unwrap();
        listing.objects.into_iter().map(|object| object.key.to_string()).collect()
    }
}

fn key() -> ObjectKey {
    ObjectKey::manifest(VolumeId(1))
}

#[tokio::test]
async fn an_object_is_a_private_file_with_just_its_body() {
    let world = World::new().await;
    let etag = world.create(&key(), "body").await;
    // File systems keep times in steps of some milliseconds, and below one they are drawn.
    let before = SystemTime::now() - Duration::from_secs(1);
    world.store.put(&key(), Bytes::from_static(b"other"), Condition::IfMatch(etag)).await.unwrap();
    let path = world.path(key().as_str());
    assert_eq!(fs::read(&path).unwrap(), b"other");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(world.path(".tmp")).unwrap().count(), 0);
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    assert!(before <= modified && modified <= SystemTime::now() + Duration::from_millis(1), "{modified:?}");
}

#[tokio::test]
async fn a_failed_write_leaves_nothing_behind() {
    let world = World::new().await;
    world.create(&key(), "body").await;
    for condition in [Condition::IfAbsent, Condition::IfMatch(ETag("another".into()))] {
        let refused = world.store.put(&key(), Bytes::from_static(b"x"), condition).await;
        assert_eq!(refused.unwrap_err().kind, StoreErrorKind::PreconditionFailed);
    }
    assert_eq!(fs::read_dir(world.path(".tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn left_overs_are_removed_once_they_are_old() {
    let world = World::new().await;
    world.create(&key(), "body").await;
    let (old, young) = (world.path(".tmp/00000000000000aa"), world.path(".tmp/00000000000000bb"));
    for path in [&old, &young] {
        fs::write(path, b"half a bo").unwrap();
    }
    let days_ago = SystemTime::now() - Duration::from_secs(2 * 24 * 60 * 60);
    fs::File::options().write(true).open(&old).unwrap().set_modified(days_ago).unwrap();
    DirectoryStore::open(world.directory.path(), false).await.unwrap();
    assert!(!old.exists() && young.exists());
    assert_eq!(world.names().await, [key().as_str()]);
}

#[tokio::test]
async fn strangers_are_not_objects() {
    let world = World::new().await;
    world.create(&key(), "body").await;
    world.create(&ObjectKey::snapshot(SnapshotId(1)), "body").await;
    fs::write(world.path("secret"), b"elsewhere").unwrap();
    symlink(world.path("secret"), world.path("snapshots/link")).unwrap();
    symlink("..", world.path("snapshots/up")).unwrap();
    fs::remove_file(world.path("secret")).unwrap();
    fs::write(world.path("volumes/.hidden"), b"").unwrap();
    fs::write(world.path("volumes/with space"), b"").unwrap();
    fs::write(world.path("volumes/\u{fc}"), b"").unwrap();
    assert_eq!(world.names().await, [ObjectKey::snapshot(SnapshotId(1)).as_str(), key().as_str()]);

    let get = async |name: &str| {
        let result = world.store.get(&ObjectKey::from_listing(name.into()), ByteRange::Full).await;
        result.map(|found| found.bytes).unwrap_err().kind
    };
    assert_eq!(get("snapshots/link").await, StoreErrorKind::Malformed);
    assert_eq!(get("snapshots").await, StoreErrorKind::Malformed);
    assert_eq!(get("varve.json/x").await, StoreErrorKind::NotFound);
    for name in ["../secret", "a/../b", "/etc/passwd", "a//b", "", ".lock", ".tmp/x", "a\0b", "a/./b"] {
        assert_eq!(get(name).await, StoreErrorKind::Rejected, "{name:?}");
    }
}

#[tokio::test]
async fn a_version_never_comes_back_even_if_the_clock_does() {
    let world = World::new().await;
    world.create(&key(), "1").await;
    let path = world.path(key().as_str());
    // As if written by a host whose clock is a year ahead.
    let ahead = SystemTime::now() + Duration::from_secs(365 * 24 * 60 * 60);
    fs::File::options().write(true).open(&path).unwrap().set_modified(ahead).unwrap();
    let mut etag = world.store.get(&key(), ByteRange::Full).await.unwrap().etag;
    let mut modified = fs::metadata(&path).unwrap().modified().unwrap();
    for _ in 0..10 {
        etag = world.store.put(&key(), Bytes::from_static(b"1"), Condition::IfMatch(etag)).await.unwrap();
        let now = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(now > modified);
        modified = now;
    }
}

#[tokio::test]
async fn a_directory_that_vanishes_is_not_an_empty_store() {
    let world = World::new().await;
    let etag = world.create(&key(), "body").await;
    fs::remove_dir_all(world.directory.path()).unwrap();
    fs::create_dir(world.directory.path()).unwrap();
    let body = Bytes::from_static(b"x");
    let errors = [
        world.store.get(&key(), ByteRange::Full).await.map(|_| ()).unwrap_err(),
        world.store.put(&key(), body.clone(), Condition::IfAbsent).await.map(|_| ()).unwrap_err(),
        world.store.put(&key(), body, Condition::IfMatch(etag)).await.map(|_| ()).unwrap_err(),
        world.store.delete(&key()).await.unwrap_err(),
        world.store.list(&ObjectKey::everything(), None).await.map(|_| ()).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, StoreErrorKind::NoStore, "{error}");
    }
}

#[tokio::test]
async fn removed_subdirectories_are_made_again() {
    let world = World::new().await;
    world.create(&key(), "body").await;
    fs::remove_dir_all(world.path("volumes")).unwrap();
    let body = Bytes::from_static(b"x");
    let first = world.store.put(&key(), body.clone(), Condition::IfAbsent).await.unwrap_err();
    assert_eq!(first.kind, StoreErrorKind::Unavailable, "{first}");
    world.store.put(&key(), body, Condition::IfAbsent).await.unwrap();
}

#[test]
fn what_the_file_system_says_is_understood() {
    for (errno, kind) in [
        (Errno::NOSPC, StoreErrorKind::Full),
        (Errno::DQUOT, StoreErrorKind::Full),
        (Errno::ACCESS, StoreErrorKind::Denied),
        (Errno::PERM, StoreErrorKind::Denied),
        (Errno::ROFS, StoreErrorKind::Denied),
        (Errno::NOENT, StoreErrorKind::NotFound),
        (Errno::IO, StoreErrorKind::Unavailable),
        (Errno::MFILE, StoreErrorKind::Unavailable),
    ] {
        let error = failure("write", "/srv/varve".as_ref(), errno);
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains("/srv/varve"), "{error}");
    }
}

/// Each with descriptors of its own, as two processes have them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_who_opened_the_directory_exclude_each_other() {
    const UPDATES: usize = 50;
    let world = World::new().await;
    world.create(&key(), "").await;
    let writers = (0..2).map(|_| {
        let path = world.directory.path().to_owned();
        tokio::spawn(async move {
            let store = DirectoryStore::open(&path, false).await.unwrap();
            let mut done = 0;
            while done < UPDATES {
                let found = store.get(&key(), ByteRange::Full).await.unwrap();
                let body = Bytes::from([&found.bytes[..], b"x"].concat());
                match store.put(&key(), body, Condition::IfMatch(found.etag)).await {
                    Ok(_) => done += 1,
                    Err(error) => assert_eq!(error.kind, StoreErrorKind::PreconditionFailed, "{error}"),
                }
            }
        })
    });
    for writer in futures_util::future::join_all(writers).await {
        writer.unwrap();
    }
    assert_eq!(world.store.get(&key(), ByteRange::Full).await.unwrap().object_length, 2 * UPDATES as u64);
}

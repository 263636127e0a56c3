//! The contract of a store, case by case. Each runs on an empty store.

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use varve::clock;
use varve::store::{ByteRange, Condition, ETag, ObjectKey, StoreErrorKind, StoreResult, probe};
use varve::units::{Epoch, SegmentId, SegmentNumber, SnapshotId, VolumeId};

use crate::pieces::Gathered;
use crate::rig::Rig;

const WRITERS: u64 = 8;

fn some_key() -> ObjectKey {
    ObjectKey::manifest(VolumeId(1))
}

fn segment(volume: u64, epoch: u32, number: u64) -> ObjectKey {
    ObjectKey::segment(SegmentId { volume: VolumeId(volume), epoch: Epoch(epoch), number: SegmentNumber(number) })
}

/// Bytes that differ at every place from those of other seeds, more or less.
fn body(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(format!("{state:x}").as_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

fn kind<T: std::fmt::Debug>(result: StoreResult<T>) -> StoreErrorKind {
    result.unwrap_err().kind
}

pub async fn a_missing_object_is_not_found(rig: &Rig) {
    for range in [ByteRange::Full, ByteRange::Part { offset: 0, length: 1 }, ByteRange::Suffix(1)] {
        assert_eq!(kind(rig.store.get(&some_key(), range).await), StoreErrorKind::NotFound);
    }
    let listing = rig.store.list(&ObjectKey::everything(), None).await.unwrap();
    assert_eq!((listing.objects.len(), listing.next), (0, None));
}

pub async fn a_name_is_taken_once(rig: &Rig) {
    let etag = rig.store.put(&some_key(), body(1, 100), Condition::IfAbsent).await.unwrap();
    let again = rig.store.put(&some_key(), body(2, 100), Condition::IfAbsent).await;
    assert_eq!(kind(again), StoreErrorKind::PreconditionFailed);
    let found = rig.store.get(&some_key(), ByteRange::Full).await.unwrap();
    assert_eq!((found.bytes, found.object_length, found.etag), (body(1, 100), 100, etag));
}

pub async fn only_the_right_version_is_replaced(rig: &Rig) {
    let first = rig.store.put(&some_key(), body(1, 100), Condition::IfAbsent).await.unwrap();
    let second = rig.store.put(&some_key(), body(2, 100), Condition::IfMatch(first.clone())).await.unwrap();
    assert_ne!(first, second);
    for stale in [first, ETag("\"00000000000000000000000000000000\"".into())] {
        let refused = rig.store.put(&some_key(), body(3, 100), Condition::IfMatch(stale)).await;
        assert_eq!(kind(refused), StoreErrorKind::PreconditionFailed);
    }
    let found = rig.store.get(&some_key(), ByteRange::Full).await.unwrap();
    assert_eq!((found.bytes, found.etag), (body(2, 100), second));
}

pub async fn nothing_is_created_by_replacing(rig: &Rig) {
    let etag = rig.store.put(&some_key(), body(1, 100), Condition::IfAbsent).await.unwrap();
    rig.store.delete(&some_key()).await.unwrap();
    let refused = rig.store.put(&some_key(), body(2, 100), Condition::IfMatch(etag)).await;
    assert_eq!(kind(refused), StoreErrorKind::PreconditionFailed);
    assert_eq!(kind(rig.store.get(&some_key(), ByteRange::Full).await), StoreErrorKind::NotFound);
}

pub async fn versions_never_repeat(rig: &Rig) {
    let mut etag = rig.store.put(&some_key(), body(0, 100), Condition::IfAbsent).await.unwrap();
    let mut seen = HashSet::from([etag.clone()]);
    for round in 1..30 {
        etag = rig.store.put(&some_key(), body(round, 100), Condition::IfMatch(etag)).await.unwrap();
        assert!(seen.insert(etag.clone()), "{etag:?} was given twice");
    }
}

/// Lets eight writers put different bodies at once under the condition, and returns the one who won. S3 names a version
/// by its content, so no two bodies of a test are the same (as no two objects of varve are).
async fn race(rig: &Rig, key: &ObjectKey, condition: &Condition, round: u64) -> (Bytes, ETag) {
    let racing = move |writer: u64| body(1 + round * WRITERS + writer, 5000);
    let writers = (0..WRITERS).map(|writer| {
        let (store, key, condition) = (rig.store.clone(), key.clone(), condition.clone());
        tokio::spawn(async move { store.put(&key, racing(writer), condition).await })
    });
    let mut winners = Vec::new();
    for (writer, result) in futures_util::future::join_all(writers).await.into_iter().enumerate() {
        match result.unwrap() {
            Ok(etag) => winners.push((racing(writer as u64), etag)),
            // S3 may say 409 when two meet; a bare store passes that on as something to try again.
            Err(error) => assert!(
                matches!(error.kind, StoreErrorKind::PreconditionFailed | StoreErrorKind::Unavailable),
                "{error:?}"
            ),
        }
    }
    assert_eq!(winners.len(), 1, "exactly one writer must win");
    winners.remove(0)
}

pub async fn of_eight_creators_one_wins(rig: &Rig) {
    for round in 0..10 {
        let key = segment(1, 1, round);
        let (body, etag) = race(rig, &key, &Condition::IfAbsent, round).await;
        let found = rig.store.get(&key, ByteRange::Full).await.unwrap();
        assert_eq!((found.bytes, found.etag), (body, etag));
    }
}

pub async fn of_eight_changers_one_wins(rig: &Rig) {
    let mut etag = rig.store.put(&some_key(), body(0, 5000), Condition::IfAbsent).await.unwrap();
    for round in 0..10 {
        let (body, next) = race(rig, &some_key(), &Condition::IfMatch(etag), round).await;
        let found = rig.store.get(&some_key(), ByteRange::Full).await.unwrap();
        assert_eq!((&found.bytes, &found.etag), (&body, &next));
        etag = next;
    }
}

pub async fn no_update_is_lost(rig: &Rig) {
    const UPDATES: u64 = 5;
    let counter = |count: u64| Bytes::from(format!("{count} {}", clock::random_token()));
    rig.store.put(&some_key(), counter(0), Condition::IfAbsent).await.unwrap();
    let read =
        |bytes: &Bytes| -> u64 { std::str::from_utf8(bytes).unwrap().split(' ').next().unwrap().parse().unwrap() };
    let writers = (0..WRITERS).map(|_| {
        let store = rig.store.clone();
        tokio::spawn(async move {
            let mut done = 0;
            while done < UPDATES {
                let found = store.get(&some_key(), ByteRange::Full).await.unwrap();
                let body = counter(read(&found.bytes) + 1);
                match store.put(&some_key(), body, Condition::IfMatch(found.etag)).await {
                    Ok(_) => done += 1,
                    Err(error) => assert!(
                        matches!(error.kind, StoreErrorKind::PreconditionFailed | StoreErrorKind::Unavailable),
                        "{error:?}"
                    ),
                }
            }
        })
    });
    for writer in futures_util::future::join_all(writers).await {
        writer.unwrap();
    }
    let found = rig.store.get(&some_key(), ByteRange::Full).await.unwrap();
    assert_eq!(read(&found.bytes), WRITERS * UPDATES);
}

pub async fn readers_see_whole_versions(rig: &Rig) {
    const LENGTH: usize = 300_000;
    let filled = |round: u8| Bytes::from(vec![round; LENGTH]);
    let mut versions = vec![rig.store.put(&some_key(), filled(0), Condition::IfAbsent).await.unwrap()];
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (store, stopped) = (rig.store.clone(), stopped.clone());
            tokio::spawn(async move {
                let mut seen = Vec::new();
                loop {
                    let last = *stopped.borrow();
                    let found = store.get(&some_key(), ByteRange::Full).await.unwrap();
                    assert_eq!(found.bytes.len(), LENGTH);
                    assert!(found.bytes.iter().all(|byte| *byte == found.bytes[0]), "a mixture of two versions");
                    seen.push((found.bytes[0], found.etag));
                    if last {
                        return seen;
                    }
                }
            })
        })
        .collect();
    for round in 1..20 {
        let replaced = Condition::IfMatch(versions.last().unwrap().clone());
        versions.push(rig.store.put(&some_key(), filled(round), replaced).await.unwrap());
    }
    stop.send(true).unwrap();
    for reader in readers {
        let seen = reader.await.unwrap();
        assert!(seen.iter().all(|(round, etag)| versions[usize::from(*round)] == *etag));
        assert_eq!(seen.last().unwrap().0, 19, "a read that began after the last write must see it");
    }
}

pub async fn ranges_hold_what_was_asked_for(rig: &Rig) {
    let whole = body(1, 10_000);
    let etag = rig.store.put(&some_key(), whole.clone(), Condition::IfAbsent).await.unwrap();
    let part = |offset, length| ByteRange::Part { offset, length };
    for (range, expected) in [
        (ByteRange::Full, 0..10_000),
        (part(0, 1), 0..1),
        (part(9_999, 1), 9_999..10_000),
        (part(4_096, 4_096), 4_096..8_192),
        (part(0, 10_000), 0..10_000),
        (ByteRange::Suffix(1), 9_999..10_000),
        (ByteRange::Suffix(512), 9_488..10_000),
        (ByteRange::Suffix(10_000), 0..10_000),
        (ByteRange::Suffix(1 << 40), 0..10_000),
    ] {
        let found = rig.store.get(&some_key(), range).await.unwrap();
        assert_eq!(found.bytes, whole.slice(expected), "{range:?}");
        assert_eq!((found.object_length, found.etag), (10_000, etag.clone()), "{range:?}");
    }
    for outside in [part(10_000, 1), part(9_999, 2), part(u64::MAX, 1), part(1, u64::MAX), part(5, 0)] {
        assert_eq!(kind(rig.store.get(&some_key(), outside).await), StoreErrorKind::Malformed, "{outside:?}");
    }
}

pub async fn pieces_hold_what_was_asked_for(rig: &Rig) {
    let whole = body(1, 3 << 20);
    rig.store.put(&some_key(), whole.clone(), Condition::IfAbsent).await.unwrap();
    let end = whole.len() as u64;
    for (offset, length) in [(0, 1), (0, end), (1, end - 1), (end - 1, 1), (1 << 20, 1 << 20)] {
        let gathered = Gathered::default();
        rig.store.get_in_pieces(&some_key(), offset, length, &gathered).await.unwrap();
        let expected = whole.slice(offset as usize..(offset + length) as usize);
        assert!(gathered.bytes() == expected, "{length} bytes at {offset}");
    }
    let nothing = Gathered::default();
    for (offset, length) in [(end, 1), (end - 1, 2), (u64::MAX, 1)] {
        let outside = rig.store.get_in_pieces(&some_key(), offset, length, &nothing).await;
        assert_eq!(kind(outside), StoreErrorKind::Malformed, "{length} bytes at {offset}");
    }
    let missing = rig.store.get_in_pieces(&segment(9, 9, 9), 0, 10, &nothing).await;
    assert_eq!(kind(missing), StoreErrorKind::NotFound);
    assert!(nothing.bytes().is_empty());
}

pub async fn an_empty_object_is_an_object(rig: &Rig) {
    let etag = rig.store.put(&some_key(), Bytes::new(), Condition::IfAbsent).await.unwrap();
    for range in [ByteRange::Full, ByteRange::Suffix(1), ByteRange::Suffix(4096)] {
        let found = rig.store.get(&some_key(), range).await.unwrap();
        assert_eq!((found.bytes.len(), found.object_length, found.etag), (0, 0, etag.clone()), "{range:?}");
    }
    let outside = rig.store.get(&some_key(), ByteRange::Part { offset: 0, length: 1 }).await;
    assert_eq!(kind(outside), StoreErrorKind::Malformed);
    let again = rig.store.put(&some_key(), body(1, 1), Condition::IfAbsent).await;
    assert_eq!(kind(again), StoreErrorKind::PreconditionFailed);
}

pub async fn long_bodies_survive(rig: &Rig) {
    let whole = body(1, 24 << 20);
    rig.store.put(&some_key(), whole.clone(), Condition::IfAbsent).await.unwrap();
    let found = rig.store.get(&some_key(), ByteRange::Full).await.unwrap();
    assert!(found.bytes == whole, "a body of 24 MiB came back changed");
    let end = rig.store.get(&some_key(), ByteRange::Suffix(5 << 20)).await.unwrap();
    assert!(end.bytes == whole.slice(19 << 20..), "its end came back changed");
}

pub async fn deleting_twice_is_deleting_once(rig: &Rig) {
    rig.store.put(&some_key(), body(1, 10), Condition::IfAbsent).await.unwrap();
    for _ in 0..2 {
        rig.store.delete(&some_key()).await.unwrap();
        assert_eq!(kind(rig.store.get(&some_key(), ByteRange::Full).await), StoreErrorKind::NotFound);
    }
    rig.store.delete(&segment(9, 9, 9)).await.unwrap();
    rig.store.put(&some_key(), body(2, 10), Condition::IfAbsent).await.unwrap();
    assert_eq!(rig.store.get(&some_key(), ByteRange::Full).await.unwrap().bytes, body(2, 10));
}

pub async fn listings_are_sorted_and_complete(rig: &Rig) {
    let mut keys: Vec<ObjectKey> = (0..1040).map(|number| segment(1, 1 + number as u32 % 2, number)).collect();
    keys.extend([ObjectKey::manifest(VolumeId(1)), ObjectKey::manifest(VolumeId(2)), ObjectKey::store_root()]);
    keys.extend([ObjectKey::snapshot(SnapshotId(1)), ObjectKey::map_object(VolumeId(1), Epoch(1), 1)]);
    let puts = keys.iter().enumerate().map(|(place, key)| async move {
        rig.store.put(key, body(1, place % 50), Condition::IfAbsent).await.map(|_| (key.clone(), place as u64 % 50))
    });
    let mut expected: Vec<(ObjectKey, u64)> =
        stream::iter(puts).buffer_unordered(16).map(|result| result.unwrap()).collect().await;
    expected.sort();

    for prefix in [
        ObjectKey::everything(),
        ObjectKey::volumes(),
        ObjectKey::segments(VolumeId(1)),
        ObjectKey::volume(VolumeId(2)),
        ObjectKey::snapshots(),
        ObjectKey::from_listing("volumes/vol_000000000000".into()),
        ObjectKey::segments(VolumeId(2)),
    ] {
        let (mut found, mut pages, mut after) = (Vec::new(), 0, None);
        loop {
            let page = rig.store.list(&prefix, after.as_ref()).await.unwrap();
            assert!(page.objects.len() <= 1000);
            assert!(page.objects.iter().all(|object| object.modified.0.abs_diff(clock::now().0) < 3_600_000));
            found.extend(page.objects.into_iter().map(|object| (object.key, object.length)));
            pages += 1;
            let Some(next) = page.next else { break };
            after = Some(next);
        }
        let wanted: Vec<_> =
            expected.iter().filter(|(key, _)| key.as_str().starts_with(prefix.as_str())).cloned().collect();
        assert_eq!(found, wanted, "below '{prefix}'");
        assert!(pages > 1 || wanted.len() <= 1000, "'{prefix}' needed {pages} pages");
    }
}

pub async fn the_probe_is_content(rig: &Rig) {
    probe(&*rig.store).await.unwrap();
    let left = rig.store.list(&ObjectKey::everything(), None).await.unwrap();
    assert_eq!(left.objects, [], "the probe must clean up");
}

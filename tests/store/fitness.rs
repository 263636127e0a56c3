//! The probe finds out stores that cannot be trusted; opening says what is wrong with a URL or a directory.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use varve::error::ErrorKind;
use varve::store::{
    ByteRange, Condition, ETag, Effect, Faults, Fetched, Listing, Matching, MemoryStore, ObjectKey, Operation, Store,
    StoreErrorKind, StoreResult, open, probe, wrap,
};

/// In what way a store is not fit.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    IgnoresIfAbsent,
    IgnoresIfMatch,
    CreatesByReplacing,
    RefusesEveryChange,
    OneVersionForAll,
}

struct Flawed {
    inner: MemoryStore,
    flaw: Flaw,
}

#[async_trait]
impl Store for Flawed {
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        let mut found = self.inner.get(key, range).await?;
        if self.flaw == Flaw::OneVersionForAll {
            found.etag = ETag("one".into());
        }
        Ok(found)
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag> {
        let present = self.inner.get(key, ByteRange::Full).await.ok().map(|found| found.etag);
        let as_it_is = present.map_or(Condition::IfAbsent, Condition::IfMatch);
        let condition = match (self.flaw, condition) {
            (Flaw::IgnoresIfAbsent, Condition::IfAbsent) | (Flaw::IgnoresIfMatch, Condition::IfMatch(_)) => as_it_is,
            (Flaw::CreatesByReplacing, Condition::IfMatch(_)) if as_it_is == Condition::IfAbsent => as_it_is,
            (Flaw::RefusesEveryChange, Condition::IfMatch(_)) => Condition::IfMatch(ETag("none".into())),
            (Flaw::OneVersionForAll, Condition::IfMatch(_)) => as_it_is,
            (_, condition) => condition,
        };
        let etag = self.inner.put(key, body, condition).await?;
        Ok(if self.flaw == Flaw::OneVersionForAll { ETag("one".into()) } else { etag })
    }

    async fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        self.inner.delete(key).await
    }

    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing> {
        self.inner.list(prefix, after).await
    }

    fn address(&self) -> &str {
        "s3://flawed"
    }
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_refused() {
    for (flaw, said) in [
        (Flaw::IgnoresIfAbsent, "both succeeded"),
        (Flaw::IgnoresIfMatch, "outdated version was accepted"),
        (Flaw::CreatesByReplacing, "created an object that did not exist"),
        (Flaw::RefusesEveryChange, "right version was refused"),
        (Flaw::OneVersionForAll, "the same version"),
    ] {
        let open = wrap(Arc::new(Flawed { inner: MemoryStore::new(), flaw }));
        let error = probe(&*open.store).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("s3://flawed") && error.message().contains(said), "{error}");
        let left = open.store.list(&ObjectKey::everything(), None).await.unwrap();
        assert_eq!(left.objects, [], "the probe must clean up also when it refuses");
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_asked_is_not_called_unfit() {
    for (kind, expected) in [
        (StoreErrorKind::Denied, ErrorKind::Denied),
        (StoreErrorKind::NoStore, ErrorKind::Denied),
        (StoreErrorKind::Full, ErrorKind::Full),
        (StoreErrorKind::Rejected, ErrorKind::Unsupported),
    ] {
        let faults = Faults::new();
        faults.inject(Matching::operation(Operation::Put), Effect::FailBefore(kind), 100);
        let open = wrap(faults.wrap(Arc::new(MemoryStore::new())));
        assert_eq!(probe(&*open.store).await.unwrap_err().kind(), expected);
    }
}

#[tokio::test]
async fn a_directory_is_made_only_when_asked_for() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("some/where");
    let url = format!("file://{}", path.display());
    let error = open(&url, false).await.map(|open| open.store.address().to_owned()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.message().contains("there is no directory"), "{error}");
    assert!(!path.exists());
    let made = open(&url, true).await.unwrap();
    assert_eq!(made.store.address(), url);
    probe(&*made.store).await.unwrap();
    assert!(made.counts.snapshot().puts >= 5);
    open(path.to_str().unwrap(), false).await.unwrap();
}

#[tokio::test]
async fn a_file_is_not_a_store() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = open(file.path().to_str().unwrap(), false).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
}

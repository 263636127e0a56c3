//! Is this store fit to be trusted with fencing? Asked once, when a daemon starts: everything about ownership
//! rests on conditional writes, and a store that ignores the conditions would let two owners write the same
//! volume without either noticing.
//!
//! Owns the objects below `probe/` for as long as it runs. They are removed at the end; after a crash they stay,
//! and are in nobody's way.
//!
//! Errors: `Unsupported` if the store does not do what is needed, saying what; otherwise what the store said.

use bytes::Bytes;

use super::{ByteRange, Condition, ETag, ObjectKey, Store, StoreErrorKind};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};

/// Tries whether `store` honours the conditions of writes.
///
/// # Errors
/// `Unsupported` if it does not; `Unavailable`, `Denied` and so on if that could not be found out.
pub async fn probe(store: &dyn Store) -> Result<()> {
    let key = ObjectKey::probe(clock::random_u64());
    let absent = ObjectKey::probe(clock::random_u64());
    let verdict = try_conditions(store, &key, &absent).await;
    // Left-overs do no harm, so failing to remove them decides nothing.
    for key in [&key, &absent] {
        if let Err(error) = store.delete(key).await {
            tracing::debug!(%key, %error, "cannot remove an object of the probe");
        }
    }
    verdict
}

async fn try_conditions(store: &dyn Store, key: &ObjectKey, absent: &ObjectKey) -> Result<()> {
    let body = |what: &str| Bytes::from(format!("varve probe {what} {}", clock::random_token()));
    let create = |body: &Bytes| store.put(key, body.clone(), Condition::IfAbsent);
    let change = |body: &Bytes, version: &ETag| store.put(key, body.clone(), Condition::IfMatch(version.clone()));

    let (left, right, late) = (body("left"), body("right"), body("late"));
    let (left_result, right_result) = tokio::join!(create(&left), create(&right));
    let (winner, first) = match (applied(store, left_result)?, applied(store, right_result)?) {
        (Some(version), None) => (left, version),
        (None, Some(version)) => (right, version),
        (Some(_), Some(_)) => {
            return Err(unfit(store, "of two concurrent creations (If-None-Match: *) both succeeded"));
        }
        (None, None) => return Err(unfit(store, "of two concurrent creations (If-None-Match: *) neither succeeded")),
    };
    if applied(store, create(&late).await)?.is_some() {
        return Err(unfit(store, "a creation (If-None-Match: *) overwrote an existing object"));
    }
    expect_content(store, key, &winner, &first).await?;

    let (second_body, stale) = (body("second"), body("stale"));
    let Some(second) = applied(store, change(&second_body, &first).await)? else {
        return Err(unfit(store, "a change (If-Match) with the right version was refused"));
    };
    if second == first {
        return Err(unfit(store, "two different objects have the same version (ETag)"));
    }
    if applied(store, change(&stale, &first).await)?.is_some() {
        return Err(unfit(store, "a change (If-Match) with an outdated version was accepted"));
    }
    expect_content(store, key, &second_body, &second).await?;

    let orphan = store.put(absent, stale, Condition::IfMatch(second)).await;
    if applied(store, orphan)?.is_some() {
        return Err(unfit(store, "a change (If-Match) created an object that did not exist"));
    }
    Ok(())
}

/// The new version if the write was applied, `None` if its condition did not hold.
fn applied(store: &dyn Store, result: super::StoreResult<ETag>) -> Result<Option<ETag>> {
    match result {
        Ok(version) => Ok(Some(version)),
        Err(error) if error.kind == StoreErrorKind::PreconditionFailed => Ok(None),
        Err(error) if error.kind == StoreErrorKind::Rejected => {
            Err(unfit(store, &format!("it refuses a conditional write as such ({error})")))
        }
        Err(error) => Err(error.into()),
    }
}

async fn expect_content(store: &dyn Store, key: &ObjectKey, body: &Bytes, version: &ETag) -> Result<()> {
    let found = match store.get(key, ByteRange::Full).await {
        Ok(found) => found,
        Err(error) if error.kind == StoreErrorKind::NotFound => {
            return Err(unfit(store, "an object that was just written cannot be read yet"));
        }
        Err(error) => return Err(error.into()),
    };
    if found.bytes != *body {
        return Err(unfit(store, "a read did not return what the last successful write left"));
    }
    if found.etag != *version {
        return Err(unfit(store, "a read names another version (ETag) than the write did"));
    }
    Ok(())
}

fn unfit(store: &dyn Store, reason: &str) -> Error {
    let address = store.address();
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "the store {address} cannot be used, because it does not honour conditional writes: {reason}. Two hosts \
             could own one volume without noticing. Use a store with If-None-Match, If-Match and strong consistency \
             (AWS S3, MinIO, Tigris in a single-region or multi-region bucket), or a directory"
        ),
    )
}

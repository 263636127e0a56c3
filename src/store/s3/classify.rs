//! What may be concluded from a failed request, by what S3-compatible servers really answer.
//!
//! | answer | kind |
//! | --- | --- |
//! | 412 | `PreconditionFailed` |
//! | 409 (two conditional writes met), 429, 503 SlowDown | `Unavailable`: tried again |
//! | 404 NoSuchBucket | `NoStore`; also a 404 that names nothing: that is not an S3 server |
//! | 404 NoSuchKey | `NotFound`; for a write, whose version to replace is gone: `PreconditionFailed` |
//! | 401, 403, and codes that concern keys, signatures and clocks | `Denied`, with a remedy |
//! | quota (MinIO: 400), disk full (MinIO: 500 or 507) | `Full` |
//! | other 4xx, 3xx, 501 | `Rejected` |
//! | other 5xx, no answer | a write: `OutcomeUnknown`; else `Unavailable` |
//! | could not connect, or not even begin | `Unavailable`, or `Denied` without credentials or with a certificate that is not trusted |

use std::error::Error as StdError;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::super::{ObjectKey, Operation, StoreError, StoreErrorKind};

const DAMAGED_ON_THE_WAY: [&str; 5] =
    ["RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"];

/// The operation in words.
pub(super) fn verb(operation: Operation) -> &'static str {
    match operation {
        Operation::Get => "read",
        Operation::Put => "write",
        Operation::Delete => "delete",
        Operation::List => "list",
    }
}

/// What became of a failed request: the kind, and what a person can do.
fn kind_of_answer(operation: Operation, status: u16, code: &str, message: &str) -> (StoreErrorKind, &'static str) {
    use StoreErrorKind as Kind;
    let lower = message.to_ascii_lowercase();
    if code == "XMinioAdminBucketQuotaExceeded" || code == "QuotaExceeded" {
        return (Kind::Full, "raise the quota of the bucket, or delete something");
    }
    if status == 507 || code == "XMinioStorageFull" || lower.contains("no space left") || lower.contains("disk full") {
        return (Kind::Full, "the store has no space left: add some, or delete something");
    }
    match code {
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidSecurity" | "AuthorizationHeaderMalformed" => {
            return (Kind::Denied, "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or the profile");
        }
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "RequestExpired" => {
            return (Kind::Denied, "the credentials have expired: provide fresh ones");
        }
        "RequestTimeTooSkewed" => {
            return (Kind::Denied, "the clocks of this host and of the store differ too much: set this host's clock");
        }
        "NoSuchBucket" => return (Kind::NoStore, "check the name of the bucket; varve never creates one"),
        _ => {}
    }
    match status {
        412 => (Kind::PreconditionFailed, ""),
        409 | 425 | 429 => (Kind::Unavailable, ""),
        401 | 403 => (Kind::Denied, "allow these credentials to get, put, delete and list objects of the bucket"),
        404 if code == "NoSuchKey" && operation == Operation::Put => (Kind::PreconditionFailed, ""),
        404 if code == "NoSuchKey" => (Kind::NotFound, ""),
        404 => (Kind::NoStore, "is AWS_ENDPOINT_URL the address of an S3 server?"),
        301 | 302 | 307 | 308 => (Kind::Rejected, "the bucket is in another region: set AWS_REGION"),
        // The request arrived late, cut or damaged, and was dropped.
        400 if DAMAGED_ON_THE_WAY.contains(&code) => (Kind::Unavailable, ""),
        408 => (Kind::Unavailable, ""),
        501 => (Kind::Rejected, "the store lacks what varve needs"),
        // Put off before anything was done. MinIO's SlowDownWrite is another matter: some of its disks may have written.
        503 if code == "SlowDown" => (Kind::Unavailable, ""),
        500.. if operation == Operation::Put => (Kind::OutcomeUnknown, ""),
        500.. => (Kind::Unavailable, ""),
        _ => (Kind::Rejected, ""),
    }
}

/// The store's failure from the SDK's.
pub(super) fn sdk_failure<E>(
    operation: Operation,
    address: &str,
    key: &ObjectKey,
    error: &SdkError<E, HttpResponse>,
) -> StoreError
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    let (kind, said, remedy) = match error {
        SdkError::ServiceError(answer) => {
            let (code, message) = (answer.err().code().unwrap_or(""), answer.err().message().unwrap_or(""));
            let status = answer.raw().status().as_u16();
            let (kind, remedy) = kind_of_answer(operation, status, code, message);
            (kind, format!("status {status} {code} {message}").trim_end().to_owned(), remedy)
        }
        SdkError::ConstructionFailure(_) | SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) => {
            let (kind, remedy) = kind_of_no_answer(operation, error);
            (kind, chain(error), remedy)
        }
        // An answer came, but not one that could be understood.
        _ => (no_answer(operation), chain(error), ""),
    };
    let remedy = if remedy.is_empty() { String::new() } else { format!(" ({remedy})") };
    let target = if key.as_str().is_empty() { address.to_owned() } else { format!("{key} in {address}") };
    StoreError::new(kind, format!("cannot {} {target}: {said}{remedy}", verb(operation)))
}

fn no_answer(operation: Operation) -> StoreErrorKind {
    match operation {
        Operation::Put | Operation::Delete => StoreErrorKind::OutcomeUnknown,
        Operation::Get | Operation::List => StoreErrorKind::Unavailable,
    }
}

fn kind_of_no_answer<E>(operation: Operation, error: &SdkError<E, HttpResponse>) -> (StoreErrorKind, &'static str)
where
    E: StdError + 'static,
{
    if sources(error).any(|source| source.to_string().contains("credential")) {
        let remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile with AWS_PROFILE";
        return (StoreErrorKind::Denied, remedy);
    }
    if sources(error).any(|source| source.to_string().contains("invalid peer certificate")) {
        let remedy = "the server is not who it says, by its certificate: check AWS_ENDPOINT_URL, and name the file of its authority with \
                      SSL_CERT_FILE if that is one of your own";
        return (StoreErrorKind::Denied, remedy);
    }
    if sources(error).any(never_connected) {
        return (StoreErrorKind::Unavailable, "check AWS_ENDPOINT_URL, and that the server runs");
    }
    match error {
        SdkError::ConstructionFailure(_) => (StoreErrorKind::Rejected, ""),
        _ => (no_answer(operation), ""),
    }
}

/// True if this is a failure to connect, so that no byte of the request left. The types are private to crates of the
/// SDK, so their words are all there is; when the words change, the answer is the cautious one.
fn never_connected(error: &(dyn StdError + 'static)) -> bool {
    if let Some(io) = error.downcast_ref::<std::io::Error>() {
        let refused = io.kind() == std::io::ErrorKind::ConnectionRefused;
        return refused || io.kind() == std::io::ErrorKind::NetworkUnreachable;
    }
    let words = error.to_string();
    words.contains("client error (Connect)") || words.contains("HTTP connect") || words.contains("dns error")
}

fn sources<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The whole chain of reasons in one line.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut reasons: Vec<String> = sources(error).map(|source| source.to_string()).collect();
    reasons.dedup();
    reasons.join(": ")
}

/// A body broke off.
pub(super) fn stream_failure(address: &str, key: &ObjectKey, error: &(dyn StdError + 'static)) -> StoreError {
    let message = format!("cannot read {key} in {address}: the body broke off: {}", chain(error));
    StoreError::new(StoreErrorKind::Unavailable, message)
}

/// True if the range asked for lies outside of the object.
pub(super) fn is_range_outside<E>(error: &SdkError<E, HttpResponse>) -> bool {
    error.raw_response().is_some_and(|answer| answer.status().as_u16() == 416)
}

#[cfg(test)]
mod tests {
    use super::*;
    use StoreErrorKind as Kind;

    fn put(status: u16, code: &str) -> Kind {
        kind_of_answer(Operation::Put, status, code, "").0
    }

    fn get(status: u16, code: &str) -> Kind {
        kind_of_answer(Operation::Get, status, code, "").0
    }

    #[test]
    fn conditions_conflicts_and_missing_things_are_told_apart() {
        assert_eq!(put(412, "PreconditionFailed"), Kind::PreconditionFailed);
        assert_eq!(put(409, "ConditionalRequestConflict"), Kind::Unavailable);
        assert_eq!(put(404, "NoSuchKey"), Kind::PreconditionFailed);
        assert_eq!(get(404, "NoSuchKey"), Kind::NotFound);
        assert_eq!(get(404, "NoSuchBucket"), Kind::NoStore);
        assert_eq!(put(404, "NoSuchBucket"), Kind::NoStore);
        assert_eq!(get(404, ""), Kind::NoStore);
    }

    #[test]
    fn refusals_name_a_remedy() {
        for (status, code) in [
            (403, "AccessDenied"),
            (403, "InvalidAccessKeyId"),
            (403, "SignatureDoesNotMatch"),
            (403, "RequestTimeTooSkewed"),
            (400, "ExpiredToken"),
            (400, "AuthorizationHeaderMalformed"),
        ] {
            let (kind, remedy) = kind_of_answer(Operation::Put, status, code, "");
            assert_eq!(kind, Kind::Denied, "{code}");
            assert!(!remedy.is_empty(), "{code}");
        }
    }

    #[test]
    fn a_full_store_is_told_from_a_failing_one() {
        assert_eq!(put(400, "XMinioAdminBucketQuotaExceeded"), Kind::Full);
        assert_eq!(put(507, "XMinioStorageFull"), Kind::Full);
        let (kind, _) = kind_of_answer(Operation::Put, 500, "InternalError", "write /data: no space left on device");
        assert_eq!(kind, Kind::Full);
        assert_eq!(put(500, "InternalError"), Kind::OutcomeUnknown);
        assert_eq!(get(500, "InternalError"), Kind::Unavailable);
    }

    #[test]
    fn only_a_write_that_the_server_put_off_certainly_had_no_effect() {
        assert_eq!(put(503, "SlowDown"), Kind::Unavailable);
        assert_eq!(put(400, "BadDigest"), Kind::Unavailable);
        assert_eq!(put(503, "SlowDownWrite"), Kind::OutcomeUnknown);
        assert_eq!(put(503, ""), Kind::OutcomeUnknown);
        assert_eq!(put(502, ""), Kind::OutcomeUnknown);
        assert_eq!(put(501, "NotImplemented"), Kind::Rejected);
        assert_eq!(get(503, "SlowDownRead"), Kind::Unavailable);
    }
}

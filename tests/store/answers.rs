//! Answers that a real server gives rarely: what is concluded from each of them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use bytes::Bytes;
use varve::store::{ByteRange, Condition, ETag, ObjectKey, S3Access, S3Store, Store, StoreErrorKind as Kind};
use varve::units::VolumeId;

fn key() -> ObjectKey {
    ObjectKey::manifest(VolumeId(1))
}

/// A store whose server gives this answer to the next request, and then hangs up.
fn answering(answer: &str) -> S3Store {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let answer = answer.to_owned();
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut request = BufReader::new(connection.try_clone().unwrap());
        let mut length = 0;
        loop {
            let mut line = String::new();
            request.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        request.read_exact(&mut vec![0; length]).unwrap();
        connection.write_all(answer.as_bytes()).unwrap();
    });
    let access = S3Access { endpoint, region: "us-east-1".into(), key_id: "id".into(), secret: "secret".into() };
    S3Store::with_access("some-bucket", "", &access)
}

fn error(status: &str, code: &str, message: &str) -> String {
    let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\r\n{body}")
}

async fn put(answer: &str) -> Kind {
    let result =
        answering(answer).put(&key(), Bytes::from_static(b"body"), Condition::IfMatch(ETag("\"1\"".into()))).await;
    result.unwrap_err().kind
}

async fn get(answer: &str, range: ByteRange) -> Kind {
    answering(answer).get(&key(), range).await.map(|found| found.bytes).unwrap_err().kind
}

#[tokio::test]
async fn errors_are_understood_over_the_wire() {
    for (status, code, message, of_put, of_get) in [
        ("409 Conflict", "ConditionalRequestConflict", "", Kind::Unavailable, Kind::Unavailable),
        ("412 Precondition Failed", "PreconditionFailed", "", Kind::PreconditionFailed, Kind::PreconditionFailed),
        ("404 Not Found", "NoSuchKey", "", Kind::PreconditionFailed, Kind::NotFound),
        ("404 Not Found", "NoSuchBucket", "", Kind::NoStore, Kind::NoStore),
        ("403 Forbidden", "RequestTimeTooSkewed", "", Kind::Denied, Kind::Denied),
        ("400 Bad Request", "ExpiredToken", "", Kind::Denied, Kind::Denied),
        ("400 Bad Request", "XMinioAdminBucketQuotaExceeded", "", Kind::Full, Kind::Full),
        ("500 Internal Server Error", "InternalError", "no space left on device", Kind::Full, Kind::Full),
        ("500 Internal Server Error", "InternalError", "", Kind::OutcomeUnknown, Kind::Unavailable),
        ("503 Service Unavailable", "SlowDown", "", Kind::Unavailable, Kind::Unavailable),
        ("503 Service Unavailable", "SlowDownRead", "", Kind::OutcomeUnknown, Kind::Unavailable),
        ("301 Moved Permanently", "PermanentRedirect", "", Kind::Rejected, Kind::Rejected),
        ("501 Not Implemented", "NotImplemented", "", Kind::Rejected, Kind::Rejected),
    ] {
        let answer = error(status, code, message);
        assert_eq!(put(&answer).await, of_put, "PUT: {answer}");
        assert_eq!(get(&answer, ByteRange::Full).await, of_get, "GET: {answer}");
    }
}

#[tokio::test]
async fn what_is_no_s3_server_is_no_store() {
    let page = "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>";
    assert_eq!(get(page, ByteRange::Full).await, Kind::NoStore);
    assert_eq!(put(page).await, Kind::NoStore);
}

#[tokio::test]
async fn a_write_without_a_usable_answer_is_in_doubt() {
    for answer in [
        "",
        "HTTP/1.1 200",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
    ] {
        assert_eq!(put(answer).await, Kind::OutcomeUnknown, "{answer:?}");
    }
    let good = "HTTP/1.1 200 OK\r\nETag: \"2\"\r\nContent-Length: 0\r\n\r\n";
    let written = answering(good).put(&key(), Bytes::from_static(b"body"), Condition::IfAbsent).await.unwrap();
    assert_eq!(written, ETag("\"2\"".into()));
}

#[tokio::test]
async fn a_body_that_is_not_what_was_asked_for_is_refused() {
    let part = ByteRange::Part { offset: 4, length: 4 };
    let answer = |status: &str, range: &str, length: usize, body: &str| {
        format!("HTTP/1.1 {status}\r\nETag: \"1\"\r\n{range}Content-Length: {length}\r\n\r\n{body}")
    };
    let ranged = "Content-Range: bytes 4-7/10\r\n";
    let right = answering(&answer("206 Partial Content", ranged, 4, "efgh"));
    let found = right.get(&key(), part).await.unwrap();
    assert_eq!((&found.bytes[..], found.object_length), (&b"efgh"[..], 10));
    for (what, kind) in [
        (answer("206 Partial Content", ranged, 0, ""), Kind::Malformed),
        (answer("206 Partial Content", ranged, 3, "efg"), Kind::Malformed),
        (answer("206 Partial Content", "Content-Range: bytes 5-8/10\r\n", 4, "fghi"), Kind::Malformed),
        (answer("206 Partial Content", "Content-Range: rubbish\r\n", 4, "efgh"), Kind::Malformed),
        (answer("200 OK", "", 10, "abcdefghij"), Kind::Malformed),
        (answer("206 Partial Content", ranged, 4, "ef"), Kind::Unavailable),
        (answer("416 Range Not Satisfiable", "", 0, ""), Kind::Malformed),
    ] {
        assert_eq!(get(&what, part).await, kind, "{what}");
    }
    let giant = answer("200 OK", "", 1 << 50, "abc");
    assert_eq!(get(&giant, ByteRange::Full).await, Kind::Malformed, "nothing may be allocated for a giant");
}

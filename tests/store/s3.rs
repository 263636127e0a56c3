//! What only a server over the network can do: refuse, vanish, hang, crash and rot.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use varve::store::{
    ByteRange, Condition, ObjectKey, RetryPolicy, S3Access, S3Store, Store, StoreError, StoreErrorKind, open, wrap,
};
use varve::units::VolumeId;

use crate::support::minio::Minio;

fn key() -> ObjectKey {
    ObjectKey::manifest(VolumeId(1))
}

/// The error of each of the four operations.
async fn all_errors(store: &dyn Store) -> [StoreError; 4] {
    [
        store.get(&key(), ByteRange::Full).await.map(|_| ()).unwrap_err(),
        store.put(&key(), Bytes::from_static(b"body"), Condition::IfAbsent).await.map(|_| ()).unwrap_err(),
        store.delete(&key()).await.unwrap_err(),
        store.list(&ObjectKey::everything(), None).await.map(|_| ()).unwrap_err(),
    ]
}

#[tokio::test]
async fn wrong_credentials_are_denied_with_a_remedy() {
    let bucket = Minio::shared().fresh_bucket().await;
    let right = Minio::shared().access();
    for wrong in [
        S3Access { key_id: "nobody".into(), ..right.clone() },
        S3Access { secret: "not-the-secret".into(), ..right.clone() },
    ] {
        let store = S3Store::with_access(&bucket, "", &wrong);
        for error in all_errors(&store).await {
            assert_eq!(error.kind, StoreErrorKind::Denied, "{error}");
            assert!(error.message.contains("AWS_ACCESS_KEY_ID"), "{error}");
            assert!(!error.message.contains("not-the-secret"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_missing_bucket_is_not_an_empty_store() {
    let store = S3Store::with_access("there-is-no-such-bucket", "prefix", &Minio::shared().access());
    for error in all_errors(&store).await {
        assert_eq!(error.kind, StoreErrorKind::NoStore, "{error}");
        assert!(error.message.contains("s3://there-is-no-such-bucket/prefix"), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_was_certainly_not_changed() {
    let access = S3Access { endpoint: "http://127.0.0.1:1".into(), ..Minio::shared().access() };
    let store = S3Store::with_access("some-bucket", "", &access);
    for error in all_errors(&store).await {
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    }
}

#[tokio::test]
async fn prefixes_are_stores_of_their_own() {
    let bucket = Minio::shared().fresh_bucket().await;
    let stores: Vec<S3Store> = ["", "a", "a/b", "ab"]
        .iter()
        .map(|prefix| S3Store::with_access(&bucket, prefix, &Minio::shared().access()))
        .collect();
    for store in &stores {
        let body = Bytes::from(store.address().to_owned());
        store.put(&key(), body, Condition::IfAbsent).await.unwrap();
    }
    for store in &stores[1..] {
        assert_eq!(store.get(&key(), ByteRange::Full).await.unwrap().bytes, store.address().as_bytes());
        let listing = store.list(&ObjectKey::volumes(), None).await.unwrap();
        assert_eq!(listing.objects.len(), 1, "{}", store.address());
        assert_eq!(listing.objects[0].key, key());
    }
}

#[tokio::test]
async fn the_server_knows_the_checksum_of_what_it_keeps() {
    let bucket = Minio::shared().fresh_bucket().await;
    let store = S3Store::with_access(&bucket, "", &Minio::shared().access());
    store.put(&key(), Bytes::from_static(b"123456789"), Condition::IfAbsent).await.unwrap();
    let head = Minio::shared().client().head_object().bucket(&bucket).key(key().as_str());
    let head = head.checksum_mode(aws_sdk_s3::types::ChecksumMode::Enabled).send().await.unwrap();
    assert_eq!(head.checksum_crc32_c(), Some("4waSgw=="));
}

#[tokio::test]
async fn a_hanging_server_leaves_no_wrong_conclusion() {
    let minio = Minio::start();
    let store = S3Store::with_access(&minio.fresh_bucket().await, "", &minio.access());
    let policy = RetryPolicy {
        try_deadline: Duration::from_millis(300),
        patience: Some(Duration::from_secs(1)),
        ..RetryPolicy::default()
    };
    let open = wrap(Arc::new(store));
    let impatient = open.with_policy(policy.clone());
    let patient = open.with_policy(RetryPolicy { patience: None, ..policy });
    let put = |store: &Arc<dyn Store>, text: &'static str| {
        let (store, body) = (store.clone(), Bytes::from_static(text.as_bytes()));
        tokio::spawn(async move { store.put(&key(), body, Condition::IfAbsent).await })
    };
    // A server that has just started may be slow at first.
    open.with_policy(RetryPolicy::default()).list(&ObjectKey::everything(), None).await.unwrap();
    minio.pause();
    let error = impatient.get(&key(), ByteRange::Full).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    let error = put(&impatient, "one").await.unwrap().unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::OutcomeUnknown, "{error}");
    let before = open.counts.snapshot().puts;
    let two = put(&patient, "two");
    while open.counts.snapshot().puts < before + 3 {
        tokio::task::yield_now().await;
    }
    minio.resume();
    // Whichever arrived first is there now, and the second writer knows which.
    let result = two.await.unwrap();
    let found = patient.get(&key(), ByteRange::Full).await.unwrap();
    match result {
        Ok(etag) => assert_eq!((&found.bytes[..], found.etag), (&b"two"[..], etag)),
        Err(error) => {
            assert_eq!(error.kind, StoreErrorKind::PreconditionFailed, "{error}");
            assert_eq!(&found.bytes[..], b"one");
        }
    }
}

#[tokio::test]
async fn a_killed_server_is_ridden_out_and_keeps_what_it_acknowledged() {
    let minio = Minio::start();
    let store = S3Store::with_access(&minio.fresh_bucket().await, "", &minio.access());
    let open = wrap(Arc::new(store));
    let patient = open.with_policy(RetryPolicy::unlimited());
    let before = ObjectKey::store_root();
    patient.put(&before, Bytes::from_static(b"before"), Condition::IfAbsent).await.unwrap();
    minio.kill();
    let writer = {
        let patient = patient.clone();
        tokio::spawn(async move { patient.put(&key(), Bytes::from_static(b"during"), Condition::IfAbsent).await })
    };
    while open.counts.snapshot().retries < 2 {
        tokio::task::yield_now().await;
    }
    minio.restart();
    let etag = writer.await.unwrap().unwrap();
    let found = patient.get(&key(), ByteRange::Full).await.unwrap();
    assert_eq!((&found.bytes[..], found.etag), (&b"during"[..], etag));
    assert_eq!(&patient.get(&before, ByteRange::Full).await.unwrap().bytes[..], b"before");
}

#[tokio::test]
async fn rot_in_the_server_is_reported_and_never_returned() {
    let bucket = Minio::shared().fresh_bucket().await;
    let store = S3Store::with_access(&bucket, "", &Minio::shared().access());
    let length = 2 << 20;
    store.put(&key(), vec![7; length].into(), Condition::IfAbsent).await.unwrap();
    let mut parts = Vec::new();
    let mut directories = vec![Minio::shared().data().join(&bucket)];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.ends_with("part.1") {
                parts.push(path);
            }
        }
    }
    assert_eq!(parts.len(), 1, "MinIO keeps a long object in one file");
    let mut content = std::fs::read(&parts[0]).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&parts[0], content).unwrap();
    let policy = RetryPolicy { patience: Some(Duration::from_secs(2)), ..RetryPolicy::default() };
    let store = wrap(Arc::new(store)).with_policy(policy);
    for range in [ByteRange::Full, ByteRange::Part { offset: length as u64 / 2, length: 100 }] {
        let error = store.get(&key(), range).await.map(|found| found.bytes.len()).unwrap_err();
        assert!(matches!(error.kind, StoreErrorKind::Unavailable | StoreErrorKind::Malformed), "{error:?}");
    }
}

/// A child of this test, in an environment of its own, opens the store and says what happened.
async fn child(url: &str) {
    let outcome = match open(url, false).await {
        Ok(open) => {
            let open =
                open.with_policy(RetryPolicy { patience: Some(Duration::from_secs(60)), ..RetryPolicy::default() });
            open.put(&key(), Bytes::from_static(b"body"), Condition::IfAbsent)
                .await
                .map(|_| ())
                .map_err(varve::error::Error::from)
        }
        Err(error) => Err(error),
    };
    println!("outcome: {outcome:?}");
}

#[tokio::test]
async fn the_usual_environment_is_understood() {
    const URL: &str = "VARVE_TEST_CHILD_URL";
    if let Ok(url) = std::env::var(URL) {
        return child(&url).await;
    }
    let bucket = Minio::shared().fresh_bucket().await;
    let home = tempfile::tempdir().unwrap();
    let run = |prefix: &str, without: &[&str]| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture", "s3::the_usual_environment_is_understood"]);
        command.env_clear().env("HOME", home.path()).env(URL, format!("s3://{bucket}/{prefix}"));
        command.envs(Minio::shared().env().into_iter().filter(|(name, _)| !without.contains(name)));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let output = run("all", &[]);
    assert!(output.contains("outcome: Ok(())"), "{output}");
    let output = run("no-region", &["AWS_REGION"]);
    assert!(output.contains("outcome: Ok(())"), "{output}");
    let output = run("no-keys", &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]);
    assert!(output.contains("outcome: Err(Denied") && output.contains("AWS_PROFILE"), "{output}");

    std::fs::create_dir(home.path().join(".aws")).unwrap();
    let (key_id, secret) = (crate::support::minio::KEY_ID, crate::support::minio::SECRET);
    let credentials = format!("[default]\naws_access_key_id = {key_id}\naws_secret_access_key = {secret}\n");
    std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
    let config = format!("[default]\nregion = us-east-1\nendpoint_url = {}\n", Minio::shared().endpoint());
    std::fs::write(home.path().join(".aws/config"), config).unwrap();
    let output = run("profile", &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"]);
    assert!(output.contains("outcome: Ok(())"), "{output}");
}

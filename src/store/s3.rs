//! An S3-compatible store, over the AWS SDK: AWS itself, MinIO, Tigris and whatever else has conditional writes.
//!
//! Owns the connection pool and nothing in the store: objects are at `<prefix>/<name>` in the bucket. Credentials, region
//! and endpoint come from the usual AWS environment and profiles, or from the caller.
//!
//! # Guarantees
//! One request per call: the SDK's own retries and deadlines are off, since a wrapper above decides about both and has
//! to know what each try did. A body is returned only if its length is what was announced and asked for: a MinIO with rot on
//! its disk answers 206 with no bytes. With each body goes its CRC32C, which the server verifies before it stores anything;
//! where neither TLS nor the loopback device protects the way, the body is signed as well. Fetches have a bound together, and so have the connections
//! that they leave open. Conditions are the store's (`If-None-Match: *`, `If-Match`); whether it honours
//! them is found out by the probe. DELETE is unconditional, since MinIO ignores its conditions. To Tigris every request
//! carries the header that asks for the one consistent answer.
//!
//! Errors: see `classify`. A write without a clear answer is `OutcomeUnknown`, unless it certainly never left.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, ConfigBag, Credentials, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    RuntimeComponents, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::{Builder, tls};
use bytes::Bytes;
use tokio::sync::Semaphore;

use super::{
    Arrivals, ByteRange, Condition, ETag, Fetched, Listed, Listing, ObjectKey, Operation, Store, StoreError,
    StoreErrorKind, StoreResult,
};
use crate::limits::{OBJECT_BYTES_MAX, STORE_FETCHES_AT_ONCE};
use crate::settings::RegionSettings;
use crate::units::UnixMillis;

mod checksum;
mod classify;
mod range;

use classify::{sdk_failure, stream_failure};
use range::expected_part;

/// Objects in one page of a listing: the most that S3 gives.
const PAGE_OBJECTS: i32 = 1000;
/// Connecting takes one or two round trips; after this the host is away.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Region of a store with an endpoint of its own, if nobody names one: MinIO accepts it as it is.
const REGION_FALLBACK: &str = "us-east-1";

/// How to reach a store, if not as the environment says.
#[derive(Clone)]
pub struct S3Access {
    /// The URL of the server, such as `http://127.0.0.1:9000`.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// Access key id.
    pub key_id: String,
    /// Secret access key.
    pub secret: String,
}

/// A prefix of a bucket as a store.
pub struct S3Store {
    client: aws_sdk_s3::Client,
    bucket: String,
    /// Empty, or ending in a slash.
    prefix: String,
    /// Whether the bodies of writes are part of the signature.
    sign_bodies: bool,
    address: String,
    fetches: Semaphore,
}

impl S3Store {
    /// Reaches `bucket` as the AWS environment and profiles say, unless `there` says otherwise. No request is made yet, except for what finding out
    /// region and credentials takes on a cloud host.
    pub async fn from_environment(bucket: &str, prefix: &str, there: &RegionSettings) -> Self {
        let environment =
            || ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].iter().find_map(|name| std::env::var(name).ok());
        let endpoint = there.endpoint.clone().or_else(environment);
        let named = RegionProviderChain::first_try(there.aws_region.clone().map(Region::new))
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new());
        let region = match (named.region().await, &endpoint) {
            (Some(region), _) => Some(region),
            // Do not search for a cloud's metadata service when the store is not in the cloud.
            (None, Some(_)) => Some(Region::new(REGION_FALLBACK)),
            (None, None) => {
                let found = RegionProviderChain::default_provider().or_else(Region::new(REGION_FALLBACK));
                found.region().await
            }
        };
        let mut shared = aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(http_client()).region(region);
        if let Some(endpoint) = &there.endpoint {
            shared = shared.endpoint_url(endpoint);
        }
        if let Some(profile) = &there.profile {
            shared = shared.profile_name(profile);
        }
        let shared = shared.load().await;
        let endpoint = endpoint.or_else(|| shared.endpoint_url().map(str::to_owned));
        Self::build(aws_sdk_s3::config::Builder::from(&shared), endpoint.as_deref(), bucket, prefix)
    }

    /// Reaches `bucket` as `access` says.
    pub fn with_access(bucket: &str, prefix: &str, access: &S3Access) -> Self {
        let credentials = Credentials::new(&access.key_id, &access.secret, None, None, "varve");
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(http_client())
            .region(Region::new(access.region.clone()))
            .credentials_provider(credentials)
            .endpoint_url(&access.endpoint);
        Self::build(config, Some(&access.endpoint), bucket, prefix)
    }

    fn build(mut config: aws_sdk_s3::config::Builder, endpoint: Option<&str>, bucket: &str, prefix: &str) -> Self {
        if let Some(endpoint) = endpoint {
            config = config.force_path_style(true);
            if is_tigris(endpoint) {
                config = config.interceptor(ConsistentReads);
            }
        }
        let config = config
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_DEADLINE).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        let prefix = prefix.trim_matches('/');
        let address = format!("s3://{bucket}{}{prefix}", if prefix.is_empty() { "" } else { "/" });
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let sign_bodies = endpoint.is_some_and(is_open_to_tampering);
        S3Store {
            client: aws_sdk_s3::Client::from_conf(config),
            bucket: bucket.into(),
            prefix,
            sign_bodies,
            address,
            fetches: Semaphore::new(STORE_FETCHES_AT_ONCE),
        }
    }

    fn name(&self, key: &ObjectKey) -> String {
        format!("{}{key}", self.prefix)
    }

    fn malformed(&self, operation: Operation, key: &ObjectKey, what: &str) -> StoreError {
        let message = format!("cannot {} {key} in {}: {what}", classify::verb(operation), self.address);
        StoreError::new(StoreErrorKind::Malformed, message)
    }

    fn outside(&self, key: &ObjectKey, range: ByteRange) -> StoreError {
        self.malformed(Operation::Get, key, &format!("it does not hold {range:?}"))
    }

    /// Asks for a range. `None` if it does not lie within the object.
    async fn ask(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Option<GetObjectOutput>> {
        let header = match range {
            ByteRange::Full => None,
            ByteRange::Part { length: 0, .. } | ByteRange::Suffix(0) => {
                return Err(self.malformed(Operation::Get, key, "a range of no bytes"));
            }
            ByteRange::Part { offset, length } => Some(format!("bytes={offset}-{}", offset.saturating_add(length - 1))),
            ByteRange::Suffix(length) => Some(format!("bytes=-{length}")),
        };
        let request = self.client.get_object().bucket(&self.bucket).key(self.name(key)).set_range(header);
        match request.send().await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if classify::is_range_outside(&error) => Ok(None),
            Err(error) => Err(sdk_failure(Operation::Get, &self.address, key, &error)),
        }
    }

    /// Hands on a body of exactly `length` bytes as it arrives.
    async fn receive(
        &self,
        key: &ObjectKey,
        mut body: ByteStream,
        length: u64,
        mut take: impl FnMut(Bytes),
    ) -> StoreResult<()> {
        let wrong = |arrived: u64| {
            self.malformed(Operation::Get, key, &format!("{arrived} bytes of the body arrived instead of {length}"))
        };
        let mut arrived = 0;
        loop {
            let next = body.try_next().await.map_err(|error| stream_failure(&self.address, key, &error))?;
            let Some(chunk) = next else { break };
            arrived += chunk.len() as u64;
            if arrived > length {
                return Err(wrong(arrived));
            }
            take(chunk);
        }
        if arrived == length { Ok(()) } else { Err(wrong(arrived)) }
    }

    /// Collects a body of exactly `length` bytes.
    async fn collect(&self, key: &ObjectKey, body: ByteStream, length: u64) -> StoreResult<Bytes> {
        let room = usize::try_from(length).unwrap_or(usize::MAX);
        let mut first = Bytes::new();
        let mut collected = Vec::new();
        let collect = |chunk: Bytes| {
            // A body that comes in one piece is passed on as it is.
            if first.is_empty() && collected.is_empty() {
                first = chunk;
                return;
            }
            if collected.is_empty() {
                collected.reserve_exact(room);
                collected.extend_from_slice(&std::mem::take(&mut first));
            }
            collected.extend_from_slice(&chunk);
        };
        self.receive(key, body, length, collect).await?;
        Ok(if collected.is_empty() { first } else { collected.into() })
    }

    /// Checks what a get was answered, before its body is fetched: where it lies, and the version.
    fn check_answer(
        &self,
        key: &ObjectKey,
        range: ByteRange,
        answer: &GetObjectOutput,
    ) -> StoreResult<(u64, u64, ETag)> {
        let malformed = |what: &str| self.malformed(Operation::Get, key, what);
        let announced = answer.content_length().and_then(|length| u64::try_from(length).ok());
        let announced = announced.ok_or_else(|| malformed("the answer does not say how long it is"))?;
        let (object_length, length) =
            expected_part(range, announced, answer.content_range()).map_err(|what| malformed(&what))?;
        if range == ByteRange::Full && length > OBJECT_BYTES_MAX {
            return Err(malformed(&format!("it has {length} bytes, more than any object of varve")));
        }
        let etag = answer.e_tag().ok_or_else(|| malformed("the answer has no ETag"))?;
        Ok((object_length, length, ETag(etag.to_owned())))
    }
}

fn http_client() -> SharedHttpClient {
    Builder::new().tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring)).build_https()
}

fn host_of(endpoint: &str) -> &str {
    let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn is_tigris(endpoint: &str) -> bool {
    [".tigris.dev", ".storage.dev"].iter().any(|domain| host_of(endpoint).ends_with(domain))
}

/// True if nothing but a signature protects what is sent: neither TLS, nor that it stays on this host. Signing a body
/// (SHA-256) costs both sides more than everything else about it.
fn is_open_to_tampering(endpoint: &str) -> bool {
    let host = host_of(endpoint);
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    !endpoint.to_ascii_lowercase().starts_with("https://") && !local
}

/// Asks Tigris for the newest state instead of the nearest.
#[derive(Debug)]
struct ConsistentReads;

impl Intercept for ConsistentReads {
    fn name(&self) -> &'static str {
        "ConsistentReads"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        context.request_mut().headers_mut().insert("x-tigris-consistent", "true");
        Ok(())
    }
}

#[async_trait]
impl Store for S3Store {
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        // It is never closed, so there is always a place in the end.
        let place = self.fetches.acquire().await.ok();
        let Some(answer) = self.ask(key, range).await? else {
            // The end of an empty object is nothing; anything else that is outside of an object is an error.
            if let ByteRange::Suffix(_) = range {
                drop(place);
                let whole = self.get(key, ByteRange::Full).await?;
                if whole.object_length == 0 {
                    return Ok(whole);
                }
            }
            return Err(self.outside(key, range));
        };
        let (object_length, length, etag) = self.check_answer(key, range, &answer)?;
        let bytes = self.collect(key, answer.body, length).await?;
        Ok(Fetched { bytes, object_length, etag })
    }

    async fn get_in_pieces(
        &self,
        key: &ObjectKey,
        offset: u64,
        length: u64,
        arrivals: &dyn Arrivals,
    ) -> StoreResult<()> {
        let range = ByteRange::Part { offset, length };
        let _place = self.fetches.acquire().await.ok();
        let answer = self.ask(key, range).await?.ok_or_else(|| self.outside(key, range))?;
        let (_, length, _) = self.check_answer(key, range, &answer)?;
        self.receive(key, answer.body, length, |bytes| arrivals.take(bytes)).await
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag> {
        let sum = checksum::crc32c_header(&body);
        let request = self.client.put_object().bucket(&self.bucket).key(self.name(key));
        let request = request.checksum_crc32_c(sum).body(ByteStream::from(body));
        let request = match condition {
            Condition::IfAbsent => request.if_none_match("*"),
            Condition::IfMatch(etag) => request.if_match(etag.0),
        };
        let request = request.customize();
        let request = if self.sign_bodies { request } else { request.disable_payload_signing() };
        let answer = request.send().await.map_err(|error| sdk_failure(Operation::Put, &self.address, key, &error))?;
        answer.e_tag.map(ETag).ok_or_else(|| {
            let message = format!("{} wrote {key} without naming its version (ETag)", self.address);
            StoreError::new(StoreErrorKind::OutcomeUnknown, message)
        })
    }

    async fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        let request = self.client.delete_object().bucket(&self.bucket).key(self.name(key));
        match request.send().await.map_err(|error| sdk_failure(Operation::Delete, &self.address, key, &error)) {
            Ok(_) => Ok(()),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing> {
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.name(prefix))
            .set_start_after(after.map(|after| self.name(after)))
            .max_keys(PAGE_OBJECTS);
        let answer =
            request.send().await.map_err(|error| sdk_failure(Operation::List, &self.address, prefix, &error))?;
        let mut listing = Listing::default();
        let mut last = after.cloned();
        for object in answer.contents() {
            let Some(key) = object.key().and_then(|name| name.strip_prefix(&self.prefix)) else { continue };
            let key = ObjectKey::from_listing(key.to_owned());
            // Whatever is out of order is not what was asked for, and would make the paging go round in circles.
            if !key.as_str().starts_with(prefix.as_str()) || last.as_ref().is_some_and(|last| key <= *last) {
                return Err(self.malformed(Operation::List, prefix, "the names in the listing are out of order"));
            }
            last = Some(key.clone());
            let length = object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
            let modified = object.last_modified().and_then(|time| time.to_millis().ok());
            let modified = UnixMillis(modified.and_then(|millis| u64::try_from(millis).ok()).unwrap_or(0));
            listing.objects.push(Listed { key, length, modified });
        }
        if answer.is_truncated() == Some(true) {
            if listing.objects.is_empty() {
                return Err(self.malformed(
                    Operation::List,
                    prefix,
                    "a page of the listing is empty, but not the last",
                ));
            }
            listing.next = last;
        }
        Ok(listing)
    }

    fn address(&self) -> &str {
        &self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_told_apart() {
        for tigris in ["https://t3.storage.dev", "https://fly.storage.tigris.dev/", "https://x.storage.dev:443/path"] {
            assert!(is_tigris(tigris), "{tigris}");
        }
        for other in ["https://s3.amazonaws.com", "http://127.0.0.1:9000", "https://storage.dev.example.com"] {
            assert!(!is_tigris(other), "{other}");
        }
        for safe in
            ["https://s3.example.com", "HTTPS://x", "http://127.0.0.1:9000", "http://localhost", "http://[::1]:1"]
        {
            assert!(!is_open_to_tampering(safe), "{safe}");
        }
        for open in ["http://minio:9000", "http://10.0.0.1", "http://localhost.example.com", "http://[fe80::1]:9000"] {
            assert!(is_open_to_tampering(open), "{open}");
        }
    }
}

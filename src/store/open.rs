//! From a URL to a store in its wrappers.
//!
//! ```text
//! Regions (if there are any) -> Retry (policy, settling) -> Meter (each try counts) -> S3 | directory
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::{Counts, DirectoryStore, Keyed, Meter, Regions, Retry, RetryPolicy, S3Store, Store};
use crate::error::{Error, Result};
use crate::keys::Keyring;
use crate::settings::{RegionSettings, SharedSettings};

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// `file:///path`: a directory, by its absolute path.
    Directory(PathBuf),
    /// `s3://bucket/prefix`; the prefix may be empty and has no slash at either end.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix.
        prefix: String,
    },
}

impl FromStr for StoreUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: &str| {
            Error::invalid(format!(
                "'{}' is not the URL of a store: {why}. It is file:///path or s3://bucket/prefix",
                without_secrets(text).escape_default()
            ))
        };
        let path = text.strip_prefix("file://").or_else(|| text.starts_with('/').then_some(text));
        if let Some(path) = path {
            if !path.starts_with('/') {
                return Err(invalid("the path must be absolute"));
            }
            if path.contains('\0') {
                return Err(invalid("a path cannot hold a zero byte"));
            }
            return Ok(StoreUrl::Directory(PathBuf::from(path)));
        }
        let Some(rest) = text.strip_prefix("s3://") else {
            return Err(invalid("it does not begin with file:/// or s3://"));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(letter) {
            return Err(invalid("a bucket has 3 to 63 small letters, digits, dots and hyphens"));
        }
        let prefix = prefix.trim_end_matches('/');
        let ordinary = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'=');
        let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(ordinary);
        if !prefix.is_empty() && !prefix.split('/').all(part) {
            return Err(invalid("a prefix has letters, digits, dots, hyphens and underscores between its slashes"));
        }
        Ok(StoreUrl::S3 { bucket: bucket.into(), prefix: prefix.into() })
    }
}

/// The text of a URL without what stands before an `@`: people put keys there, and messages end in logs.
fn without_secrets(text: &str) -> Cow<'_, str> {
    match text.rsplit_once('@') {
        Some((before, rest)) => {
            let scheme = before.find("://").map_or("", |end| &before[..end + 3]);
            format!("{scheme}...@{rest}").into()
        }
        None => text.into(),
    }
}

/// An open store.
#[derive(Clone)]
pub struct OpenStore {
    /// The store.
    pub store: Arc<dyn Store>,
    /// What was requested so far, by all who share this store.
    pub counts: Arc<Counts>,
    metered: Arc<dyn Store>,
}

impl OpenStore {
    /// The store alone, without those of other regions, counted together, but tried again as `policy` says.
    pub fn with_policy(&self, policy: RetryPolicy) -> Arc<dyn Store> {
        Arc::new(Retry::new(self.metered.clone(), policy, self.counts.clone()))
    }
}

/// Opens the store at `url`. With `create`, a missing directory is made; a bucket never is.
///
/// # Errors
/// `Invalid` for a URL that is none; `Denied` if the directory is missing or closed to us. An S3 store is not asked yet.
pub async fn open(url: &str, create: bool) -> Result<OpenStore> {
    let there = RegionSettings { store: url.to_owned(), ..RegionSettings::default() };
    Ok(wrap(open_bare(&there, create).await?))
}

/// Opens the store that the settings name with the keys that they name, and behind it those of the other regions. One of these that cannot be opened is an error for
/// those who need something there.
///
/// # Errors
/// As [`open`].
pub async fn open_with_regions(settings: &SharedSettings, create: bool) -> Result<OpenStore> {
    let regions = &settings.regions;
    let named = regions.home().filter(|home| home.store == settings.store).cloned();
    let home = named.unwrap_or_else(|| RegionSettings { store: settings.store.clone(), ..RegionSettings::default() });
    let keyring = Keyring::new(settings.keys.iter().map(|source| source.parse()).collect::<Result<_>>()?);
    let home = wrap(open_bare(&home, create).await?);
    if regions.own.is_none() && regions.named.is_empty() {
        let store = Arc::new(Keyed::new(home.store.clone(), Arc::new(keyring)));
        return Ok(OpenStore { store, ..home });
    }
    let mut others = BTreeMap::new();
    for (name, there) in regions.others() {
        let opened = open_bare(there, false).await;
        let opened = opened.map(|bare| counted(bare, home.counts.clone()).store).map_err(|error| error.to_string());
        others.insert(name.to_owned(), opened);
    }
    let store = Arc::new(Regions::new(home.store.clone(), regions.own.clone(), others));
    Ok(OpenStore { store: Arc::new(Keyed::new(store, Arc::new(keyring))), ..home })
}

async fn open_bare(there: &RegionSettings, create: bool) -> Result<Arc<dyn Store>> {
    Ok(match there.store.parse()? {
        StoreUrl::Directory(path) => Arc::new(DirectoryStore::open(Path::new(&path), create).await?),
        StoreUrl::S3 { bucket, prefix } => Arc::new(S3Store::from_environment(&bucket, &prefix, there).await),
    })
}

/// Puts a store into the wrappers that [`open`] uses.
pub fn wrap(bare: Arc<dyn Store>) -> OpenStore {
    counted(bare, Arc::new(Counts::default()))
}

fn counted(bare: Arc<dyn Store>, counts: Arc<Counts>) -> OpenStore {
    let metered: Arc<dyn Store> = Arc::new(Meter::new(bare, counts.clone()));
    let store = Arc::new(Retry::new(metered.clone(), RetryPolicy::default(), counts.clone()));
    OpenStore { store, counts, metered }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood() {
        let s3 = |bucket: &str, prefix: &str| StoreUrl::S3 { bucket: bucket.into(), prefix: prefix.into() };
        assert_eq!("s3://bucket".parse::<StoreUrl>().ok(), Some(s3("bucket", "")));
        assert_eq!("s3://bucket/".parse::<StoreUrl>().ok(), Some(s3("bucket", "")));
        assert_eq!("s3://my-bucket/a/b/".parse::<StoreUrl>().ok(), Some(s3("my-bucket", "a/b")));
        for text in ["file:///srv/varve", "/srv/varve"] {
            assert_eq!(text.parse::<StoreUrl>().ok(), Some(StoreUrl::Directory("/srv/varve".into())));
        }
    }

    #[test]
    fn what_is_no_url_is_refused_with_the_right_form() {
        for text in [
            "",
            "srv",
            "file://srv",
            "file:srv",
            "http://x",
            "s3://",
            "s3:///p",
            "s3://Bucket",
            "s3://ab",
            "s3://bucket//p",
            "s3://bucket/../p",
            "s3://bucket/a b",
            "s3://user:secret@bucket/p",
        ] {
            let error = text.parse::<StoreUrl>().map(|url| format!("{text}: {url:?}")).unwrap_err();
            assert!(error.message().contains("file:///path or s3://bucket/prefix"), "{error}");
            assert!(!error.message().contains("secret"), "{error}");
        }
    }
}

//! The header of a store, `varve.json`: what makes a place a varve store, and tells one from another.

use bytes::Bytes;

use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::StoreRoot;
use crate::store::{ByteRange, Condition, ObjectKey, Store, StoreErrorKind};
use crate::units::StoreId;

/// Reads the header of a store.
///
/// # Errors
/// `NotFound` if the place is empty, `Invalid` if it holds something else, `Unsupported` if it is of a newer format, and what the store says.
pub async fn read(store: &dyn Store) -> Result<StoreRoot> {
    match store.get(&ObjectKey::store_root(), ByteRange::Full).await {
        Ok(fetched) => StoreRoot::decode(store.address(), &fetched.bytes),
        Err(error) if error.kind == StoreErrorKind::NotFound => {
            let found = store.list(&ObjectKey::everything(), None).await?;
            match found.objects.first() {
                None => Err(Error::not_found(format!(
                    "{} holds no varve store yet: 'varve volumes create' makes one there",
                    store.address()
                ))),
                Some(object) => Err(Error::invalid(format!(
                    "{} is not a varve store: it has no varve.json, but holds '{}': choose an empty place or another prefix",
                    store.address(),
                    object.key.as_str().escape_default()
                ))),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads the header of a store, and writes one if the place is empty.
///
/// # Errors
/// As [`read`].
pub async fn read_or_create(store: &dyn Store) -> Result<StoreRoot> {
    match read(store).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    let root = StoreRoot { store: StoreId(clock::random_u64()), created_at: clock::now() };
    match store.put(&ObjectKey::store_root(), Bytes::from(root.encode()?), Condition::IfAbsent).await {
        Ok(_) => Ok(root),
        Err(error) if error.kind == StoreErrorKind::PreconditionFailed => read(store).await,
        Err(error) => Err(error.into()),
    }
}

//! The stores of several regions behind the one at home: a volume's objects are where the volume is.
//!
//! Everything is at home but volumes of which somebody said that they are elsewhere. Names of objects begin with the id of their volume, so
//! the name decides. A region that is not known, or cannot be opened, is an error for those who need something there, and for nobody else.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;

use super::{
    Arrivals, ByteRange, Condition, ETag, Fetched, Listing, ObjectKey, Store, StoreError, StoreErrorKind, StoreResult,
};
use crate::units::VolumeId;

/// The store at home, and those of other regions.
pub struct Regions {
    home: Arc<dyn Store>,
    /// What others call the region of the store at home.
    name: Option<String>,
    /// The other regions: their stores, or why they cannot be used.
    others: BTreeMap<String, Result<Arc<dyn Store>, String>>,
    /// Volumes that are elsewhere, with the names of their regions.
    elsewhere: RwLock<HashMap<VolumeId, String>>,
}

impl Regions {
    /// The store at home, which other regions know by `name`, and the others by theirs; or why one of them cannot be used.
    pub fn new(
        home: Arc<dyn Store>,
        name: Option<String>,
        others: BTreeMap<String, Result<Arc<dyn Store>, String>>,
    ) -> Self {
        Regions { home, name, others, elsewhere: RwLock::default() }
    }

    /// Where the object of this name is, or objects whose names begin so.
    fn store_of(&self, key: &ObjectKey) -> StoreResult<Arc<dyn Store>> {
        let region = key.parse_volume().and_then(|volume| self.elsewhere.read().get(&volume).cloned());
        let Some(region) = region else { return Ok(self.home.clone()) };
        let why = match self.others.get(&region) {
            Some(Ok(store)) => return Ok(store.clone()),
            Some(Err(why)) => why.as_str(),
            None => "the settings file does not name it",
        };
        Err(StoreError::new(
            StoreErrorKind::Denied,
            format!(
                "{key} is in the region '{region}', which cannot be used here: {why}. Put [regions.{region}] with its store into the settings file"
            ),
        ))
    }
}

#[async_trait]
impl Store for Regions {
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> StoreResult<Fetched> {
        self.store_of(key)?.get(key, range).await
    }

    async fn get_in_pieces(
        &self,
        key: &ObjectKey,
        offset: u64,
        length: u64,
        arrivals: &dyn Arrivals,
    ) -> StoreResult<()> {
        self.store_of(key)?.get_in_pieces(key, offset, length, arrivals).await
    }

    async fn put(&self, key: &ObjectKey, body: Bytes, condition: Condition) -> StoreResult<ETag> {
        self.store_of(key)?.put(key, body, condition).await
    }

    async fn delete(&self, key: &ObjectKey) -> StoreResult<()> {
        self.store_of(key)?.delete(key).await
    }

    async fn list(&self, prefix: &ObjectKey, after: Option<&ObjectKey>) -> StoreResult<Listing> {
        self.store_of(prefix)?.list(prefix, after).await
    }

    fn address(&self) -> &str {
        self.home.address()
    }

    fn region(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn store_in(&self, region: &str) -> Option<Arc<dyn Store>> {
        self.others.get(region)?.as_ref().ok().cloned()
    }

    fn place(&self, volume: VolumeId, region: &str) {
        if self.name.as_deref() != Some(region) {
            self.elsewhere.write().insert(volume, region.to_owned());
        }
    }

    fn elsewhere(&self, volume: VolumeId) -> Option<String> {
        self.elsewhere.read().get(&volume).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn a_volumes_objects_are_where_the_volume_is() {
        let (home, other) = (Arc::new(MemoryStore::new()), Arc::new(MemoryStore::new()));
        let others = BTreeMap::from([
            ("nyc".to_owned(), Ok(other.clone() as Arc<dyn Store>)),
            ("fra".to_owned(), Err("no such directory".to_owned())),
        ]);
        let regions = Regions::new(home.clone(), Some("ams".into()), others);
        let (here, there) = (VolumeId(1), VolumeId(2));
        regions.place(there, "nyc");
        regions.place(here, "ams");
        assert_eq!([here, there].map(|volume| regions.elsewhere(volume)), [None, Some("nyc".to_owned())]);
        for volume in [here, there] {
            regions.put(&ObjectKey::manifest(volume), Bytes::from_static(b"x"), Condition::IfAbsent).await.unwrap();
        }
        assert!(home.get(&ObjectKey::manifest(here), ByteRange::Full).await.is_ok());
        assert!(home.get(&ObjectKey::manifest(there), ByteRange::Full).await.is_err());
        assert!(other.get(&ObjectKey::manifest(there), ByteRange::Full).await.is_ok());
        let listed = async |prefix| regions.list(&prefix, None).await.unwrap().objects.len();
        assert_eq!((listed(ObjectKey::volume(there)).await, listed(ObjectKey::volumes()).await), (1, 1));
        assert!(regions.store_in("nyc").is_some() && regions.store_in("fra").is_none());
        for (volume, region, part) in
            [(VolumeId(3), "fra", "no such directory"), (VolumeId(4), "mars", "[regions.mars]")]
        {
            regions.place(volume, region);
            let refused = regions.get(&ObjectKey::manifest(volume), ByteRange::Full).await.unwrap_err();
            assert_eq!(refused.kind, StoreErrorKind::Denied);
            assert!(refused.message.contains(part), "{}", refused.message);
        }
    }
}

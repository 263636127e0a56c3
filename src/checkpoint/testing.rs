//! Damage to map objects, for the tests of those who must live with it.

use crate::format::map_object::{MapObjectId, PageRef};
use crate::store::{ByteRange, Condition, ObjectKey, Store};

/// Replaces an object by what `damage` makes of it.
pub async fn damage_object(store: &dyn Store, object: MapObjectId, damage: impl FnOnce(&mut Vec<u8>)) {
    let key = ObjectKey::map_object(object.volume, object.epoch, object.number);
    let fetched = store.get(&key, ByteRange::Full).await.unwrap();
    let mut body = fetched.bytes.to_vec();
    damage(&mut body);
    store.put(&key, body.into(), Condition::IfMatch(fetched.etag)).await.unwrap();
}

/// Flips a bit in the midst of a page, a directory, a root or a part of a census. Doing it again puts it right.
pub async fn flip_a_bit(store: &dyn Store, part: PageRef) {
    let at = part.offset + part.stored_length / 2;
    damage_object(store, part.object, |body| body[at as usize] ^= 4).await;
}

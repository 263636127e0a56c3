//! Damage to map objects, for the tests of those who must live with it.

use crate::format::map_object::PageRef;
use crate::store::{ByteRange, Condition, ObjectKey, Store};

/// Flips a bit in the midst of a page, a directory, a root or a part of a census. Doing it again puts it right.
pub async fn flip_a_bit(store: &dyn Store, part: PageRef) {
    let key = ObjectKey::map_object(part.object.volume, part.object.epoch, part.object.number);
    let mut bytes = store.get(&key, ByteRange::Full).await.unwrap().bytes.to_vec();
    bytes[(part.offset + part.stored_length / 2) as usize] ^= 4;
    store.delete(&key).await.unwrap();
    store.put(&key, bytes.into(), Condition::IfAbsent).await.unwrap();
}

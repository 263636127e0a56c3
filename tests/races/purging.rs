//! A destroyed volume whose day is over, one snapshot that keeps it, and at the same time: somebody destroys the snapshot, somebody purges, and
//! somebody makes a volume of the snapshot. Whoever was told that there is a new volume must be able to read it, now and after further purges.

use std::ops::AddAssign;
use std::sync::Arc;

use tokio::sync::OnceCell;
use varve::admin::{Admin, UNDELETE_MILLIS, root};
use varve::clock;
use varve::error::ErrorKind;
use varve::format::lineage::{SegmentRun, SnapshotObject};
use varve::format::manifest::Position;
use varve::format::segment::SegmentHeader;
use varve::lineage;
use varve::ownership;
use varve::segment::SegmentBuilder;
use varve::service::NewVolume;
use varve::store::{ByteRange, Condition, MemoryStore, ObjectKey, Store, list_all};
use varve::units::{
    BlockCount, BlockRange, ByteLen, Epoch, Lba, SegmentId, SegmentNumber, Sequence, SnapshotId, UnixMillis, VolumeId,
};

use super::turns::{Turns, block_on, settle};

/// What came about.
#[derive(Debug, Default)]
pub struct Told {
    forked: u64,
    too_late: u64,
    purged: u64,
    /// The volume was marked, or its snapshot gone, before somebody else had looked.
    kept: u64,
}

impl Told {
    pub fn all_happened(&self) -> bool {
        [self.forked, self.too_late, self.purged, self.kept].iter().all(|&count| count > 100)
    }
}

impl AddAssign for Told {
    fn add_assign(&mut self, more: Told) {
        self.forked += more.forked;
        self.too_late += more.too_late;
        self.purged += more.purged;
        self.kept += more.kept;
    }
}

fn new_volume(name: &str) -> NewVolume {
    NewVolume::named(name, ByteLen(1 << 20))
}

/// A store with one volume, destroyed two days ago, that a snapshot keeps.
async fn prepare() -> (MemoryStore, VolumeId, SnapshotId) {
    let store = Arc::new(MemoryStore::new());
    let shared: Arc<dyn Store> = store.clone();
    root::read_or_create(&*shared).await.unwrap();
    let volume = Admin::new(shared.clone()).create_volume(new_volume("parent")).await.unwrap().id;
    let id = SegmentId { volume, epoch: Epoch(1), number: SegmentNumber(0) };
    let token = clock::random_token();
    let header = SegmentHeader {
        id,
        token,
        first: Sequence(1),
        last: Sequence(1),
        created_at: UnixMillis(0),
        seal: false,
        salt: None,
    };
    let mut builder = SegmentBuilder::new(header, BlockCount(8), None);
    let fill = |_: u64, buffer: &mut [u8]| {
        buffer.fill(7);
        Ok(())
    };
    builder.push_data(BlockRange::new(Lba(3), BlockCount(8)), fill).unwrap();
    let built = builder.finish().unwrap();
    shared.put(&ObjectKey::segment(id), built.bytes, Condition::IfAbsent).await.unwrap();
    let record = lineage::record(Some("kept".into()), None, false);
    let run = SegmentRun { volume, epoch: id.epoch, first: id.number, count: 1 };
    let changed = ownership::change(&*shared, volume, |manifest| {
        manifest.epoch = Epoch(1);
        manifest.replay_from = Position { epoch: Epoch(2), number: SegmentNumber(0) };
        manifest.inherited = vec![run];
        manifest.sequence = Sequence(1);
        manifest.destroyed_at = Some(UnixMillis(clock::now().0 - 2 * UNDELETE_MILLIS));
        let moment = manifest.moment();
        lineage::pin(manifest, &moment, varve::format::lineage::PinHolder::Snapshot(record.clone()));
        Ok(())
    });
    let moment = changed.await.unwrap().manifest.moment();
    let object = SnapshotObject { volume, snapshot: record.clone(), moment };
    lineage::put_object(&*shared, &object).await.unwrap();
    drop(shared);
    (Arc::into_inner(store).unwrap(), volume, record.id)
}

/// A copy of the prepared store for one race.
async fn copy() -> (Arc<MemoryStore>, VolumeId, SnapshotId) {
    static PREPARED: OnceCell<(MemoryStore, VolumeId, SnapshotId)> = OnceCell::const_new();
    let (prepared, volume, snapshot) = PREPARED.get_or_init(prepare).await;
    let store = MemoryStore::new();
    for object in list_all(prepared, &ObjectKey::everything()).await.unwrap() {
        let body = prepared.get(&object.key, ByteRange::Full).await.unwrap().bytes;
        store.put(&object.key, body, Condition::IfAbsent).await.unwrap();
    }
    (Arc::new(store), *volume, *snapshot)
}

pub fn race(seed: u64) -> Told {
    block_on(async {
        let (inner, volume, snapshot) = copy().await;
        let plain: Arc<dyn Store> = inner.clone();
        let faults = [0, 2][seed as usize % 2];
        let actor = |number: u64| Admin::new(Turns::of(&inner, seed * 4 + number, faults));
        let (destroys, purges, forks) = (actor(0), actor(1), actor(2));
        let destroy = tokio::spawn(async move { destroys.destroy_snapshot(snapshot).await });
        let purge = tokio::spawn(async move {
            let mut purged = 0;
            for _ in 0..3 {
                purged += purges.purge().await.map_or(0, |swept| swept.purged.len());
            }
            purged
        });
        let fork = tokio::spawn(async move { forks.create_from_snapshot(snapshot, new_volume("fork"), 1).await });
        // Whatever the store made of it: somebody else destroys the snapshot in the end.
        let _ = destroy.await.unwrap();
        let purged = purge.await.unwrap();
        let made = fork.await.unwrap();
        settle().await;
        let admin = Admin::new(plain.clone());
        let _ = admin.destroy_snapshot(snapshot).await;
        let swept = admin.purge().await.unwrap();
        assert!(swept.failures.is_empty(), "{:?}", swept.failures);
        let left = list_all(&*plain, &ObjectKey::volume(volume)).await.unwrap();
        let mut told = Told { purged: u64::from(purged > 0), kept: u64::from(purged == 0), ..Told::default() };
        match made {
            Ok(made) => {
                told.forked += 1;
                let report = admin.check(made[0].id, false, &mut |_| ()).await.unwrap();
                assert!(report.problems.is_empty() && report.segments == 1, "{report:?}");
            }
            Err(error) => {
                told.too_late += 1;
                let expected = [ErrorKind::NotFound, ErrorKind::Conflict, ErrorKind::Unavailable];
                assert!(expected.contains(&error.kind()), "{error}");
                // A pin whose fork was not made, since the store failed in between, is `check --clean`'s business.
                let is_pinned = ownership::load(&*plain, volume).await.is_ok_and(|l| !l.manifest.pins.is_empty());
                assert!(left.is_empty() || is_pinned, "nobody needs them and they are still there: {left:?}");
            }
        }
        told
    })
}

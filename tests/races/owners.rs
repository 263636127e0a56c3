//! Several hosts want the same volume at the same time: each claims it, seals what was before, and uploads until it is put out.

use std::ops::AddAssign;
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use varve::admin::{Admin, root};
use varve::clock;
use varve::error::ErrorKind;
use varve::format::manifest::Owner;
use varve::format::segment::SegmentHeader;
use varve::ownership::{self, Permit};
use varve::segment::{SegmentBuilder, fetch_index};
use varve::service::NewVolume;
use varve::store::{Condition, MemoryStore, ObjectKey, Store, StoreErrorKind};
use varve::units::{
    BlockCount, BlockRange, ByteLen, Epoch, Lba, SegmentId, SegmentNumber, Sequence, Token, UnixMillis, VolumeId,
};

use super::turns::{Turns, block_on, settle};

/// Hosts in one race.
const HOSTS: u64 = 3;
/// Segments that an owner has under way at the same time.
const AT_ONCE: u64 = 3;

/// What came about.
#[derive(Debug, Default)]
pub struct Told {
    claims: u64,
    lost_claims: u64,
    stored: u64,
    put_out: u64,
}

impl Told {
    pub fn all_happened(&self) -> bool {
        [self.claims, self.lost_claims, self.stored, self.put_out].iter().all(|&count| count > 100)
    }
}

impl AddAssign for Told {
    fn add_assign(&mut self, more: Told) {
        self.claims += more.claims;
        self.lost_claims += more.lost_claims;
        self.stored += more.stored;
        self.put_out += more.put_out;
    }
}

/// What owners were told is stored: each segment and whose it is, and the places of the sequence in it.
type Stored = Mutex<Vec<(SegmentId, Token)>>;

struct Host {
    volume: VolumeId,
    store: Arc<dyn Store>,
    random: Mutex<StdRng>,
    stored: Arc<Stored>,
    told: Mutex<Told>,
    blind: bool,
}

pub fn race(seed: u64) -> Told {
    race_of(seed, false)
}

/// With `blind` owners take whatever has the name of their segment for their own: the race must notice.
pub fn race_of(seed: u64, blind: bool) -> Told {
    block_on(async {
        let inner = Arc::new(MemoryStore::new());
        let plain: Arc<dyn Store> = inner.clone();
        let volume = create(&plain).await;
        let stored = Arc::new(Stored::default());
        let faults = [0, 3, 10][seed as usize % 3];
        let hosts: Vec<Arc<Host>> = (0..HOSTS)
            .map(|host| {
                let store = Turns::of(&inner, seed * HOSTS + host, faults);
                let random = Mutex::new(StdRng::seed_from_u64(!(seed * HOSTS + host)));
                Arc::new(Host { volume, store, random, stored: stored.clone(), told: Mutex::default(), blind })
            })
            .collect();
        join_all(hosts.iter().map(|host| tokio::spawn(host.clone().live())).collect::<Vec<_>>())
            .await
            .into_iter()
            .for_each(Result::unwrap);
        let before = history(&plain, volume).await;
        // What was given up as lost may still arrive: it must change nothing any more.
        settle().await;
        assert_eq!(history(&plain, volume).await, before, "a late write changed the history");
        for (id, token) in stored.lock().unwrap().iter() {
            assert!(before.contains(&(*id, *token)), "segment {id} was stored for {token:?} and is not in the history");
        }
        let mut told = Told::default();
        for host in hosts {
            told += std::mem::take(&mut *host.told.lock().unwrap());
        }
        told
    })
}

async fn create(store: &Arc<dyn Store>) -> VolumeId {
    root::read_or_create(&**store).await.unwrap();
    let new = NewVolume::named("disk", ByteLen(1 << 20));
    Admin::new(store.clone()).create_volume(new).await.unwrap().id
}

fn owner() -> Owner {
    Owner {
        token: clock::random_token(),
        resumes: None,
        host: "host".into(),
        pid: 1,
        control: String::new(),
        attached_at: UnixMillis(0),
    }
}

/// The history as a new owner finds it: it must be one sequence without a gap (`discover` says so), and each epoch one owner's.
async fn history(store: &Arc<dyn Store>, volume: VolumeId) -> Vec<(SegmentId, Token)> {
    let loaded = ownership::load(&**store, volume).await.unwrap();
    let attachment = ownership::claim(&**store, &loaded, owner(), Permit::TakeOver).await.unwrap();
    let from = loaded.manifest.replay_from;
    let found = ownership::discover(&**store, volume, from, attachment.epoch, attachment.token, Sequence(0)).await;
    let found: Vec<(SegmentId, Token)> =
        found.unwrap().segments.iter().map(|index| (index.header.id, index.header.token)).collect();
    for pair in found.windows(2) {
        assert!(pair[0].0.epoch != pair[1].0.epoch || pair[0].1 == pair[1].1, "an epoch of two owners: {pair:?}");
    }
    found
}

impl Host {
    fn random(&self, end: u64) -> u64 {
        self.random.lock().unwrap().random_range(0..end)
    }

    async fn live(self: Arc<Self>) {
        for _ in 0..=self.random(2) {
            for _ in 0..self.random(60) {
                tokio::task::yield_now().await;
            }
            if let Some((epoch, token, last)) = self.attach().await {
                self.upload(epoch, token, last).await;
            }
        }
    }

    /// Claims the volume and seals what was before.
    async fn attach(&self) -> Option<(Epoch, Token, Sequence)> {
        let loaded = ownership::load(&*self.store, self.volume).await.unwrap();
        let attachment = match ownership::claim(&*self.store, &loaded, owner(), Permit::TakeOver).await {
            Ok(attachment) => attachment,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable), "{error}");
                self.told.lock().unwrap().lost_claims += 1;
                return None;
            }
        };
        self.told.lock().unwrap().claims += 1;
        let (epoch, token) = (attachment.epoch, attachment.token);
        let from = loaded.manifest.replay_from;
        let found = ownership::discover(&*self.store, self.volume, from, epoch, token, Sequence(0)).await.unwrap();
        Some((epoch, token, found.last))
    }

    /// Uploads as the uploader does: several at once, each taking effect when all before it have.
    async fn upload(&self, epoch: Epoch, token: Token, last: Sequence) {
        let (mut number, mut last) = (0, last);
        for _ in 0..self.random(4) {
            let puts = (0..AT_ONCE).map(|step| {
                let id = SegmentId { volume: self.volume, epoch, number: SegmentNumber(number + step) };
                let place = Sequence(last.0 + step + 1);
                async move { (id, self.put(id, token, place).await) }
            });
            for (id, is_stored) in join_all(puts).await {
                if !is_stored {
                    self.told.lock().unwrap().put_out += 1;
                    return;
                }
                self.stored.lock().unwrap().push((id, token));
                self.told.lock().unwrap().stored += 1;
            }
            (number, last) = (number + AT_ONCE, Sequence(last.0 + AT_ONCE));
        }
    }

    /// True if the segment is stored; false if its place is somebody else's.
    async fn put(&self, id: SegmentId, token: Token, place: Sequence) -> bool {
        let header =
            SegmentHeader { id, token, first: place, last: place, created_at: UnixMillis(0), seal: false, salt: None };
        let mut builder = SegmentBuilder::new(header, BlockCount(1), None);
        builder.push_zero(BlockRange::new(Lba(place.0 % 256), BlockCount(1)));
        let body = builder.finish().unwrap().bytes;
        loop {
            match self.store.put(&ObjectKey::segment(id), body.clone(), Condition::IfAbsent).await {
                Ok(_) => return true,
                Err(error) if error.kind == StoreErrorKind::PreconditionFailed => {
                    let found = fetch_index(&*self.store, id).await.unwrap().header;
                    return self.blind || found.token == token && !found.seal;
                }
                // The uploader goes on for ever.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }
}

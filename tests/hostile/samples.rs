//! Good inputs, made by the encoders.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use varve::admin::Admin;
use varve::block_device::{BlockDevice, Change};
use varve::disk::host::HostDisk;
use varve::fleet::{Fleet, FleetService};
use varve::format::cache::{RingPosition, Superblock, encode_entry};
use varve::format::census::{Condemned, ObjectRun};
use varve::format::lineage::{Moment, PastMoment, Pin, PinHolder, SegmentRun, SnapshotObject, SnapshotRecord};
use varve::format::manifest::{Hydration, Manifest, Origin, Owner, Position, StoreRoot};
use varve::format::map_object::{self, CheckpointRef, MapObjectId, PageRef, References, Root};
use varve::format::page::{encode_page, row_of_page};
use varve::format::segment::SegmentHeader;
use varve::format::trace::{Trace, TraceRun};
use varve::log::{LogIdentity, NewRecord, create};
use varve::map::{MapPage, SegmentPlace};
use varve::seal::{Bundle, Encryption, Salt, Wrapping};
use varve::segment::{BuiltSegment, SegmentBuilder, build_seal};
use varve::service::{Durability, NewForks, NewSnapshot, Service, SnapshotSchedule};
use varve::store::{ByteRange, MemoryStore, ObjectKey, Store, list_all};
use varve::units::*;
use varve::volume::{LocalState, VolumeDevice};

use super::bodies::{SEGMENT, SNAPSHOT, VOLUME, frame_objects};
use super::engine::{self, Setup};

pub fn header(seal: bool) -> SegmentHeader {
    SegmentHeader {
        id: SEGMENT,
        token: Token(77),
        first: Sequence(100),
        last: Sequence(180),
        created_at: UnixMillis(1_700_000_000_000),
        seal,
        salt: None,
    }
}

/// The content of a block: noise, or what compresses.
pub fn content(lba: u64, noise: bool) -> Vec<u8> {
    let mut block = vec![lba as u8; BLOCK_SIZE as usize];
    if noise {
        SmallRng::seed_from_u64(lba).fill_bytes(&mut block);
    }
    block
}

/// A segment of these runs (first block, number of blocks, noise), one moved run and two zero runs.
pub fn built(runs: &[(u64, u64, bool)]) -> BuiltSegment {
    let mut builder = SegmentBuilder::new(header(false), BlockCount(64), None);
    for &(start, count, noise) in runs {
        let fill = |from: u64, buffer: &mut [u8]| {
            for (step, block) in buffer.chunks_mut(BLOCK_SIZE as usize).enumerate() {
                block.copy_from_slice(&content(start + from + step as u64, noise));
            }
            Ok(())
        };
        builder.push_data(BlockRange::new(Lba(start), BlockCount(count)), fill).unwrap();
    }
    let old = SegmentPlace { segment: SegmentId { number: SegmentNumber(1), ..SEGMENT }, block: 12 };
    let fill = |_: u64, buffer: &mut [u8]| {
        buffer.fill(1);
        Ok(())
    };
    builder.push_moved(BlockRange::new(Lba(7000), BlockCount(2)), old, fill).unwrap();
    builder.push_zero(BlockRange::new(Lba(9000), BlockCount(600)));
    builder.push_zero(BlockRange::new(Lba(1 << 20), BlockCount(1 << 16)));
    builder.finish().unwrap()
}

/// Whole segments: with a compressed index, with a plain one, and seals.
pub fn segments() -> Vec<Vec<u8>> {
    let small = built(&[(3, 2, false)]).bytes.to_vec();
    let long = built(&[(3, 1, false), (10, 9, true), (100, 12, false), (4000, 3, true)]).bytes.to_vec();
    let seal = build_seal(header(true), None).unwrap().to_vec();
    let plain = [&small, &long, &seal].map(|object| with_plain_index(object));
    [small, long, seal].into_iter().chain(plain).collect()
}

/// The same segment with its index stored as it is, so that a mutation of it is not lost in the compression.
fn with_plain_index(object: &[u8]) -> Vec<u8> {
    let trailer = object.len() - 64;
    let field = |at: usize| u32::from_le_bytes(object[trailer + at..][..4].try_into().unwrap()) as usize;
    let (stored, raw_length) = (field(24), field(28));
    if object[trailer + 6] == 0 {
        return object.to_vec();
    }
    let raw = zstd::bulk::decompress(&object[trailer - stored..trailer], raw_length).unwrap();
    let mut plain = object[..trailer - stored].to_vec();
    plain.extend_from_slice(&raw);
    plain.extend_from_slice(&object[trailer..]);
    let trailer = plain.len() - 64;
    plain[trailer + 6] = 0;
    plain[trailer + 24..trailer + 28].copy_from_slice(&(raw.len() as u32).to_le_bytes());
    super::repair::segment(&mut plain);
    plain
}

pub fn segment_tails() -> Vec<Vec<u8>> {
    let tail = |object: Vec<u8>| {
        let trailer = object.len() - 64;
        let stored = u32::from_le_bytes(object[trailer + 24..][..4].try_into().unwrap()) as usize;
        object[trailer - stored..].to_vec()
    };
    segments().into_iter().map(tail).collect()
}

pub fn page() -> MapPage {
    let mut page = MapPage::default();
    for (offset, count, number, block) in [(0, 10, 5, 100), (20, 1, 6, 0), (30, 7, 7, 40), (200, 56, 5, 7)] {
        page.set(
            offset,
            count,
            Some(SegmentPlace { segment: SegmentId { number: SegmentNumber(number), ..SEGMENT }, block }),
        );
    }
    page
}

pub fn pages() -> Vec<Vec<u8>> {
    vec![encode_page(&page()), encode_page(&MapPage::default())]
}

pub fn local_pages() -> Vec<Vec<u8>> {
    vec![row_of_page(&page()), row_of_page(&MapPage::default())]
}

pub fn local_states() -> Vec<Vec<u8>> {
    let position = Position { epoch: Epoch(3), number: SegmentNumber(9) };
    vec![LocalState { position, sequence: Sequence(77) }.encode(), vec![0, 0, 0, 0, 0, 1, 0x40, 9]]
}

pub fn map_object_id(number: u64) -> MapObjectId {
    MapObjectId { volume: VOLUME, epoch: Epoch(2), number }
}

fn reference(number: u64, offset: u32) -> PageRef {
    PageRef { object: map_object_id(number), offset, stored_length: 100, raw_length: 180, crc: 0x1234_5678 }
}

pub fn references(count: u32) -> References {
    (0..count).map(|slot| (slot * 3, reference(u64::from(slot % 3), 40 + slot * 100))).collect()
}

pub fn directories() -> Vec<Vec<u8>> {
    vec![map_object::encode_directory(&references(20)), map_object::encode_directory(&references(0))]
}

pub fn roots() -> Vec<Vec<u8>> {
    let root = Root {
        epoch: Epoch(2),
        number: SegmentNumber(7),
        sequence: Sequence(180),
        size: ByteLen(1 << 30),
        directories: references(12),
    };
    vec![map_object::encode_root(&root), map_object::encode_root(&Root::default())]
}

/// A reference and what it names, as the body `map_stored` takes them.
pub fn stored_page(reference: &PageRef, stored: &[u8]) -> Vec<u8> {
    let fields = [2, reference.offset, reference.stored_length, reference.raw_length, reference.crc];
    fields.iter().flat_map(|field| field.to_le_bytes()).chain(stored.iter().copied()).collect()
}

pub fn stored_pages() -> Vec<Vec<u8>> {
    let raw = encode_page(&page());
    let long = [encode_page(&page()), vec![0; 3000]].concat();
    let forms = [raw.clone(), map_object::compress(raw.clone()), map_object::compress(long.clone())];
    let lengths = [raw.len(), raw.len(), long.len()];
    let forms = forms.iter().zip(lengths).map(|(stored, raw_length)| {
        let reference = PageRef {
            object: map_object_id(1),
            offset: 40,
            stored_length: stored.len() as u32,
            raw_length: raw_length as u32,
            crc: crc32c::crc32c(stored),
        };
        stored_page(&reference, stored)
    });
    forms.collect()
}

pub fn map_headers() -> Vec<Vec<u8>> {
    vec![map_object::encode_header(map_object_id(4), false)]
}

fn moment() -> Moment {
    let run = |number, count| SegmentRun { volume: VOLUME, epoch: Epoch(2), first: SegmentNumber(number), count };
    Moment {
        position: Position { epoch: Epoch(2), number: SegmentNumber(3) },
        sequence: Sequence(44),
        size: ByteLen(1 << 30),
        stored_bytes: ByteLen(123_456),
        checkpoint: Some(CheckpointRef { root: reference(1, 40) }),
        replay: vec![run(0, 3), run(9, 1)],
    }
}

fn record() -> SnapshotRecord {
    SnapshotRecord {
        id: SNAPSHOT,
        name: Some("nightly".into()),
        created_at: UnixMillis(1_700_000_000_000),
        expires_at: Some(UnixMillis(4_000_000_000_000)),
        scheduled: true,
    }
}

fn full_manifest() -> Manifest {
    let token = Token(1 << 100);
    let owner = Owner {
        token,
        resumes: Some(Token(5)),
        host: "hector".into(),
        pid: 42,
        control: "/run/varve.sock".into(),
        attached_at: UnixMillis(1_700_000_000_000),
    };
    let fork =
        PinHolder::Fork { volume: VolumeId(8), created_at: UnixMillis(1_700_000_000_000), region: Some("nyc".into()) };
    let origin =
        Origin { volume: VolumeId(1), position: moment().position, sequence: Sequence(9), region: Some("nyc".into()) };
    Manifest {
        volume: VOLUME,
        name: "disk".into(),
        encryption: Some(Encryption::new(Wrapping::Key { id: "0123456789abcdef".into() }, &[7; 83])),
        seal: Some("c2VhbA".into()),
        region: "local".into(),
        size: ByteLen(1 << 30),
        created_at: UnixMillis(1_700_000_000_000),
        durability: Durability::Local,
        generation: 12,
        nonce: token,
        epoch: Epoch(3),
        owner: Some(owner),
        checkpoint: moment().checkpoint,
        replay_from: Position { epoch: Epoch(2), number: SegmentNumber(4) },
        sequence: Sequence(50),
        inherited: moment().replay,
        complete: false,
        stored_bytes: ByteLen(1 << 20),
        destroyed_at: None,
        being_made: false,
        schedule: Some(SnapshotSchedule::default()),
        snapshotted: Sequence(44),
        scheduled_at: Some(UnixMillis(1_700_000_000_000)),
        origins: vec![origin],
        pins: vec![Pin { moment: moment(), holders: vec![PinHolder::Snapshot(record()), fork], seal: None }],
        census: Some(vec![reference(1, 140)]),
        condemned: Condemned {
            segments: vec![ObjectRun { epoch: Epoch(1), first: 3, count: 2 }],
            map_objects: vec![ObjectRun { epoch: Epoch(1), first: 0, count: 1 }],
        },
        hydration: Some(Hydration { since: UnixMillis(1_700_000_000_000) }),
        letting_go: Some(Origin {
            volume: VolumeId(1),
            position: moment().position,
            sequence: Sequence(9),
            region: None,
        }),
        history_seconds: 86_400,
        history: vec![PastMoment {
            at: UnixMillis(1_700_000_000_000),
            moment: moment(),
            is_jump: true,
            seal: Some("c2VhbA".into()),
        }],
    }
}

pub fn manifests() -> Vec<Vec<u8>> {
    let full = full_manifest();
    let plain =
        Manifest { owner: None, checkpoint: None, inherited: vec![], origins: vec![], pins: vec![], ..full.clone() };
    let destroyed = Manifest { destroyed_at: Some(UnixMillis(1_700_000_000_000)), complete: true, ..plain.clone() };
    [full, plain, destroyed].iter().map(|manifest| manifest.encode().unwrap()).collect()
}

pub fn snapshots() -> Vec<Vec<u8>> {
    let object = SnapshotObject { volume: VOLUME, snapshot: record(), moment: moment() };
    vec![object.encode().unwrap()]
}

pub fn traces() -> Vec<Vec<u8>> {
    let runs = |count: u32| (0..count).map(|at| TraceRun { first: at * 977 % 4096, count: 1 + at % 7 }).collect();
    [0, 1, 40].map(|count| Trace { snapshot: SNAPSHOT, volume: VOLUME, runs: runs(count) }.encode().unwrap()).into()
}

/// A sealed segment, a sealed trace, wrapped keys and unwrapped ones.
pub fn sealed() -> Vec<Vec<u8>> {
    let key = super::bodies::key();
    let mut builder = SegmentBuilder::new(header(false), BlockCount(64), Some(Arc::new(key.clone())));
    let fill = |_: u64, buffer: &mut [u8]| {
        buffer.fill(7);
        Ok(())
    };
    builder.push_data(BlockRange::new(Lba(3), BlockCount(9)), fill).unwrap();
    let trace = Trace { snapshot: SNAPSHOT, volume: VOLUME, runs: vec![TraceRun { first: 1, count: 2 }] };
    let bundle = Bundle { keys: [(VOLUME, Arc::new(key.clone())), (VolumeId(1), Arc::new(key.clone()))].into() };
    vec![
        builder.finish().unwrap().bytes.to_vec(),
        trace.encode_sealed(&key, Salt(1)).unwrap(),
        bundle.wrap(VOLUME, &key, Salt(2)),
        bundle.encode(VOLUME).to_vec(),
        b"passphrase-file:/etc/varve/passphrase".to_vec(),
    ]
}

pub fn store_roots() -> Vec<Vec<u8>> {
    vec![StoreRoot { store: StoreId(5), created_at: UnixMillis(1_700_000_000_000) }.encode().unwrap()]
}

pub fn cache_superblocks() -> Vec<Vec<u8>> {
    vec![Superblock { number: 3, ring: 5, chunks: 16, next_chunk: 20 }.encode()]
}

/// The frame that is entry number `number` of the examples.
pub fn cached_frame(number: u32) -> FrameId {
    FrameId { segment: SEGMENT, frame: number }
}

/// A chunk with entries of different lengths.
pub fn cache_chunk(entries: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 0..entries {
        let position = RingPosition(RingPosition::of_chunk(3).0 + bytes.len() as u64);
        let payload = &content(number.into(), true)[..(100 + number as usize * 333) % 3000];
        encode_entry(5, position, cached_frame(number), payload, &mut bytes);
    }
    bytes.resize(bytes.len() + 500, 0);
    bytes
}

pub fn cache_chunks() -> Vec<Vec<u8>> {
    vec![cache_chunk(12), cache_chunk(1)]
}

pub fn settings() -> Vec<Vec<u8>> {
    let text = "store = \"s3://bucket/prefix\"\nstate = \"/state\"\nnbd = [\"127.0.0.1:10809\", \"[::1]:1\"]\nlog-size = \"1GiB\"\n\
                cache-size = 10\nmemory-size = 1.5\ndetach-after = \"5m\"\nsegment-age = \"3s\"\ntls = \"require\"\n\
                tls-certificate = \"/c\"\ntls-key = \"/k\"\nconnections-max = 10\ntransfer-size = \"256MiB\"\n";
    vec![text.as_bytes().to_vec(), b"control = \"/run/x\"\n[a.b]\nc = [[1], {d = 2}]\n".to_vec()]
}

pub fn log_identity(token: u128) -> LogIdentity {
    LogIdentity {
        store: StoreId(1),
        volume: VolumeId(2),
        epoch: Epoch(1),
        token: Token(token),
        attached_at: UnixMillis(3),
    }
}

/// A log of writes of these lengths in blocks (0: a zero record), synced after each third, of the attachment with this token.
pub fn log(ring: u64, token: u128, blocks: &[u64]) -> Vec<u8> {
    let disk = super::bodies::OneFile(Arc::new(RwLock::new(Vec::new())));
    let mut log = create(&disk, Path::new("/log"), ByteLen(ring), log_identity(token), Sequence(1), None).unwrap();
    for (number, &count) in blocks.iter().enumerate() {
        let lba = Lba(number as u64 * 10);
        let data: Vec<u8> = (0..count).flat_map(|block| content(lba.0 + block, true)).collect();
        let record = match count {
            0 => NewRecord::Zero { lba, blocks: BlockCount(5) },
            _ => NewRecord::Write { lba, data: &data },
        };
        assert_eq!(log.appender.append(&[record], &mut Vec::new()).unwrap(), 1);
        if number % 3 == 2 {
            let (sender, receiver) = std::sync::mpsc::channel();
            log.committer.commit(Box::new(move |done| sender.send(done).unwrap_or(())));
            receiver.recv().unwrap().unwrap();
        }
    }
    // As after a death: dropping the parts would note that all is durable.
    disk.0.read().clone()
}

pub fn logs() -> Vec<Vec<u8>> {
    vec![log(64 << 10, 9, &[1, 0, 2, 1, 0]), log(64 << 10, 9, &[]), log(64 << 10, 9, &[3, 3, 0])]
}

/// Stores as they really are: a volume detached, with a snapshot and a fork; and one whose owner is gone.
pub fn buckets() -> Vec<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let id = engine::create(&store, 4 << 20, Durability::Local).await;
        let folder = tempfile::tempdir().unwrap();
        let fleet = engine::start(Arc::new(HostDisk), folder.path(), store.clone(), Setup::default()).await;
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        let device = VolumeDevice::new(volume.clone());
        for page in 0..3_u64 {
            let data = Bytes::from(content(page, false));
            device.change(Change::Write { offset: (page << 20) + 8192, data }).await.unwrap();
        }
        volume.sync().await.unwrap();
        let live = all_objects(&*store).await;
        service(&fleet).snapshot(id, NewSnapshot::default()).await.unwrap();
        device.change(Change::Trim { offset: 8192, length: 1 << 20 }).await.unwrap();
        drop((device, volume));
        fleet.detach(id, false).await.unwrap();
        let admin = Admin::new(store.clone());
        admin.fork_volume(id, NewForks { name: None, count: 1, region: None }).await.unwrap();
        admin.snapshot(id, NewSnapshot::default()).await.unwrap();
        vec![frame_objects(&all_objects(&*store).await), frame_objects(&live)]
    })
}

fn service(fleet: &Arc<Fleet>) -> FleetService {
    FleetService { fleet: fleet.clone(), counts: Arc::default(), nbd: Vec::new(), control_tcp: None }
}

/// All that a store holds, the indexes of segments not compressed.
pub async fn all_objects(store: &dyn Store) -> Vec<(String, Vec<u8>)> {
    let mut objects = Vec::new();
    for object in list_all(store, &ObjectKey::everything()).await.unwrap() {
        let mut bytes = store.get(&object.key, ByteRange::Full).await.unwrap().bytes.to_vec();
        if object.key.as_str().contains("/segments/") {
            bytes = with_plain_index(&bytes);
        }
        objects.push((object.key.to_string(), bytes));
    }
    objects
}

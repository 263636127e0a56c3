//! The table of everything that takes bytes from strangers, with the bound on what each may allocate.
//!
//! Bounds are so many bytes, and so many more for each byte of the input. They are what the formats' own limits allow, not what good
//! inputs take.

use super::allocations::Scope;
use super::bodies::{self, frame_objects, objects_in};
use super::mutate::{Mutator, sweep};
use super::run::Decoder;
use super::{nbd_samples, repair, samples};
use rand::RngExt;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const fn on_one_thread(
    name: &'static str,
    body: fn(&[u8]),
    examples: fn() -> Vec<Vec<u8>>,
    repair: fn(&mut [u8]),
    inputs: u64,
    bound: (u64, u64),
) -> Decoder {
    Decoder { name, body, examples, mutate: any, sweep, repair, inputs, bound, scope: Scope::Thread }
}

fn any(mutator: &mut Mutator, bytes: &mut Vec<u8>) {
    mutator.mutate(bytes);
}

/// Mutates one object of a bucket, or drops it, or puts another in its place.
fn objects(mutator: &mut Mutator, bytes: &mut Vec<u8>) {
    let mut objects = objects_in(bytes);
    for _ in 0..mutator.random.random_range(1..=2) {
        if objects.is_empty() {
            break;
        }
        let chosen = mutator.random.random_range(0..objects.len());
        match mutator.random.random_range(0..12) {
            0 => drop(objects.remove(chosen)),
            1 => {
                let other = mutator.random.random_range(0..objects.len());
                objects[chosen].1 = objects[other].1.clone();
            }
            _ => mutator.mutate(&mut objects[chosen].1),
        }
        // What is changed must not be lost on the way to the interesting parts.
        if mutator.random.random_range(0..4) != 0
            && let Some((name, object)) = objects.get_mut(chosen)
        {
            repair::object_named(name, object);
        }
    }
    *bytes = frame_objects(&objects);
}

/// The sweep of one object after the other.
fn sweep_objects(bytes: &[u8], visit: &mut dyn FnMut(Vec<u8>)) {
    let mut objects = objects_in(bytes);
    for chosen in 0..objects.len() {
        let (name, whole) = objects[chosen].clone();
        sweep(&whole, &mut |mut object| {
            repair::object_named(&name, &mut object);
            objects[chosen].1 = object;
            visit(frame_objects(&objects));
        });
        objects[chosen].1 = whole;
    }
}

pub static SEGMENT: Decoder =
    on_one_thread("segment", bodies::segment, samples::segments, repair::segment, 60_000, (64 * MIB, 8));
pub static LOCAL_SEGMENT_INDEX: Decoder = on_one_thread(
    "local_segment_index",
    bodies::local_segment_index,
    samples::segment_tails,
    repair::segment_tail,
    60_000,
    (64 * MIB, 8),
);
pub static MAP_HEADER: Decoder =
    on_one_thread("map_header", bodies::map_header, samples::map_headers, repair::map_header, 40_000, (4 * KIB, 1));
pub static MAP_DIRECTORY: Decoder =
    on_one_thread("map_directory", bodies::map_directory, samples::directories, repair::nothing, 60_000, (4 * KIB, 16));
pub static MAP_ROOT: Decoder =
    on_one_thread("map_root", bodies::map_root, samples::roots, repair::nothing, 60_000, (4 * KIB, 16));
pub static MAP_PAGE: Decoder =
    on_one_thread("map_page", bodies::map_page, samples::pages, repair::nothing, 100_000, (64 * KIB, 16));
pub static MAP_STORED: Decoder =
    on_one_thread("map_stored", bodies::map_stored, samples::stored_pages, repair::map_stored, 60_000, (5 * MIB, 16));
pub static LOCAL_PAGE: Decoder =
    on_one_thread("local_page", bodies::local_page, samples::local_pages, repair::in_front, 60_000, (64 * KIB, 16));
pub static LOCAL_STATE: Decoder =
    on_one_thread("local_state", bodies::local_state, samples::local_states, repair::behind, 60_000, (4 * KIB, 1));
pub static MANIFEST: Decoder =
    on_one_thread("manifest", bodies::manifest, samples::manifests, repair::envelope, 60_000, (64 * KIB, 32));
pub static SNAPSHOT_OBJECT: Decoder = on_one_thread(
    "snapshot_object",
    bodies::snapshot_object,
    samples::snapshots,
    repair::envelope,
    60_000,
    (64 * KIB, 32),
);
pub static TRACE: Decoder =
    on_one_thread("trace", bodies::trace, samples::traces, repair::behind, 60_000, (4 * KIB, 4));
pub static SEALED: Decoder =
    on_one_thread("sealed", bodies::sealed, samples::sealed, repair::nothing, 40_000, (64 * MIB, 8));
pub static STORE_ROOT: Decoder =
    on_one_thread("store_root", bodies::store_root, samples::store_roots, repair::envelope, 40_000, (64 * KIB, 32));
pub static CACHE_SUPERBLOCK: Decoder = on_one_thread(
    "cache_superblock",
    bodies::cache_superblock,
    samples::cache_superblocks,
    repair::cache_superblock,
    40_000,
    (16 * KIB, 1),
);
pub static CACHE_CHUNK: Decoder =
    on_one_thread("cache_chunk", bodies::cache_chunk, samples::cache_chunks, repair::cache_chunk, 40_000, (4 * KIB, 1));
pub static SETTINGS_FILE: Decoder =
    on_one_thread("settings_file", bodies::settings_file, samples::settings, repair::nothing, 20_000, (256 * KIB, 256));
pub static LOG_FILE: Decoder =
    on_one_thread("log_file", bodies::log_file, samples::logs, repair::log, 6_000, (40 * MIB, 8));
pub static NBD_OPTION: Decoder =
    on_one_thread("nbd_option", bodies::nbd_option, nbd_samples::options, repair::nothing, 100_000, (64 * KIB, 32));
pub static NBD_REQUESTS: Decoder =
    on_one_thread("nbd_requests", bodies::nbd_requests, nbd_samples::requests, repair::nothing, 100_000, (4 * KIB, 1));
pub static BUCKET: Decoder = Decoder {
    mutate: objects,
    sweep: sweep_objects,
    ..on_one_thread("bucket", bodies::bucket, samples::buckets, repair::nothing, 8_000, (256 * MIB, 64))
};
pub static NBD_SESSION: Decoder = Decoder {
    scope: Scope::Process,
    sweep: |_, _| (),
    ..on_one_thread("nbd_session", bodies::nbd_session, nbd_samples::sessions, repair::nothing, 8_000, (12 * MIB, 64))
};
pub static CONTROL_REQUEST: Decoder = Decoder {
    scope: Scope::Process,
    ..on_one_thread(
        "control_request",
        bodies::control_request,
        nbd_samples::control_requests,
        repair::nothing,
        6_000,
        (2 * MIB, 16),
    )
};

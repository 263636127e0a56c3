//! Every bound of varve in one place, with its reason. Relations between them are proved at compile time.

use crate::units::BLOCK_SIZE;

/// Longest NBD request payload, and so the longest change that is atomic. 32 MiB is what the kernel,
/// QEMU and libnbd take as their own maximum.
pub const REQUEST_BYTES_MAX: u64 = 32 << 20;
/// Longest payload of one log record: a request of the longest kind that begins and ends within a block.
pub const RECORD_BYTES_MAX: u64 = REQUEST_BYTES_MAX + BLOCK_SIZE;
/// Largest volume: 2^32 blocks, the size up to which the figures in the design are meant to hold.
pub const VOLUME_BYTES_MAX: u64 = 16 << 40;
/// Smallest volume.
pub const VOLUME_BYTES_MIN: u64 = 1 << 20;
/// Smallest ring of a write log: room for two of the longest records besides what is being packed.
pub const LOG_BYTES_MIN: u64 = 128 << 20;
/// Uncompressed bytes after which a segment is cut. 24 MiB makes objects of more than 8 MiB of data that
/// compresses two to one, and bounds the memory of an upload.
pub const SEGMENT_BYTES_TARGET: u64 = 24 << 20;
/// Records of the sequence after which a segment is cut, however little data they hold: trims have none, and a flood of
/// them while the store is away must not become an index that no reader accepts.
pub const SEGMENT_RECORDS_MAX: u64 = 1 << 16;
/// Segments of one volume that are packed or uploaded at the same time: hides the store's latency, and bounds memory. Part of the protocol:
/// whoever finds a segment so many places behind a hole knows that one is missing there (`ownership::discover`).
pub const UPLOADS_AT_ONCE: usize = 4;
/// Longest index of a segment before compression, in bytes. A reader takes no more memory than a few times this for one.
pub const SEGMENT_INDEX_BYTES_MAX: u64 = 16 << 20;
/// Longest object that a reader accepts as a segment.
pub const SEGMENT_OBJECT_BYTES_MAX: u64 = 128 << 20;
/// Fetches from an S3 store that one process has under way at a time. Each has a connection and so a descriptor, and those that were used are
/// kept for a while: without a bound, a burst of scattered reads takes hundreds, and the usual limit of a process is 1024.
pub const STORE_FETCHES_AT_ONCE: usize = 128;
/// Longest object that is fetched as a whole: twice the longest segment. A longer one is none of ours, and is
/// refused before memory is taken for it.
pub const OBJECT_BYTES_MAX: u64 = 2 * SEGMENT_OBJECT_BYTES_MAX;
/// Bytes of a disk that one request to bring something near brings into memory at a time: hides the store's latency,
/// and bounds memory.
pub const NEAR_BYTES_MAX: u64 = 16 << 20;
/// Blocks in one frame: 32 KiB before compression, a compromise between the ratio and reading 4 KiB at random.
pub const FRAME_BLOCKS: u64 = 8;
/// Blocks that one page of the block map covers: 1 MiB of volume.
pub const PAGE_BLOCKS: u64 = 256;
/// Pages that one directory node of a checkpoint covers: 1 GiB of volume.
pub const DIRECTORY_PAGES: u64 = 1024;
/// What no count comes to (places of a sequence, numbers of segments, versions of a manifest, bytes of a volume's objects):
/// whatever says that it did is damaged, and below it no sum of two overflows.
pub const COUNT_MAX: u64 = 1 << 62;
/// Attachments in a row that may have ended before any of them wrote a checkpoint: recovery looks at each.
pub const EPOCHS_REPLAYED_MAX: u32 = 1 << 18;
/// Objects that one manifest condemns: bounds its length. What is left over comes with the next checkpoint.
pub const CONDEMNED_MAX: u64 = 1 << 14;
/// What a trace of first reads counts in: 64 KiB of volume.
pub const TRACE_UNIT_BYTES: u64 = 64 << 10;
/// Runs that a trace has at most: half a MiB of them.
pub const TRACE_RUNS_MAX: usize = 1 << 16;
/// Runs that all the volumes of a daemon note together, in some 30 bytes each.
pub const TRACE_RUNS_ALL_MAX: usize = 1 << 18;
/// Longest name of a volume or snapshot, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Forks that one request can make.
pub const FORKS_AT_ONCE_MAX: u32 = 1000;
/// Longest JSON object (manifest, snapshot, store root) that a reader accepts.
pub const JSON_OBJECT_BYTES_MAX: u64 = 16 << 20;
/// Manifests take no more snapshots and forks from here on, in bytes: their owners need the rest.
pub const PINNED_MANIFEST_BYTES_MAX: u64 = JSON_OBJECT_BYTES_MAX / 4 * 3;
/// Bytes of payloads and replies that one NBD connection may have in flight; beyond it nothing more is read from
/// its socket. Twice the longest request, so that one can be answered while the next is taken in.
pub const NBD_INFLIGHT_BYTES_MAX: u64 = 64 << 20;
/// Longest data of one option of the NBD handshake: a name, and a good many queries.
pub const NBD_OPTION_BYTES_MAX: u32 = 16 << 10;
/// Longest string of the NBD protocol, names and messages alike, in bytes; the protocol sets it.
pub const NBD_STRING_BYTES_MAX: usize = 4096;
/// Most extents in one reply to BLOCK_STATUS. The protocol allows 2^20; clients ask again for the rest.
pub const NBD_STATUS_EXTENTS_MAX: usize = 4096;

const _: () = assert!(NBD_INFLIGHT_BYTES_MAX >= 2 * REQUEST_BYTES_MAX);
const _: () = assert!(NBD_OPTION_BYTES_MAX as usize > 2 * NBD_STRING_BYTES_MAX);
const _: () = assert!(REQUEST_BYTES_MAX.is_multiple_of(BLOCK_SIZE));
const _: () = assert!(LOG_BYTES_MIN >= 2 * RECORD_BYTES_MAX + SEGMENT_BYTES_TARGET);
const _: () = assert!(SEGMENT_BYTES_TARGET + RECORD_BYTES_MAX < SEGMENT_OBJECT_BYTES_MAX);
const _: () = assert!(VOLUME_BYTES_MAX / BLOCK_SIZE <= 1 << 32);
// A record cuts at most one extent in two, blocks of zeros cut one at each block, an entry has at most 48 bytes, and a block of data at most one.
const _: () = assert!(
    (2 * SEGMENT_RECORDS_MAX + 1 + (SEGMENT_BYTES_TARGET + RECORD_BYTES_MAX) / BLOCK_SIZE) * 48
        + (SEGMENT_BYTES_TARGET + RECORD_BYTES_MAX) / FRAME_BLOCKS / BLOCK_SIZE * 36
        + 256
        < SEGMENT_INDEX_BYTES_MAX
);
const _: () = assert!(PAGE_BLOCKS <= u16::MAX as u64);

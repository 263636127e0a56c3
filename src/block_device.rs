//! The seam between the doors and the owner: what a network block server needs of a disk.
//!
//! Every operation comes in two forms. The `try_` form never waits for anything slower than one
//! buffered write to, or read from, the local disk, and may be called from a connection's own thread; where it
//! would have to wait (a full log, a block that must be fetched), it says [`Attempt::WouldBlock`] and
//! has done nothing. The `async` form then does the same and waits as long as it takes.
//!
//! Offsets and lengths are in bytes and of any alignment. The caller may pass anything: the device
//! checks bounds and answers [`ErrorKind::Invalid`](crate::error::ErrorKind::Invalid), or
//! [`ErrorKind::Full`](crate::error::ErrorKind::Full) for a write past the end.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::units::SnapshotId;

/// What a client must know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes; may grow while the device is in use.
    pub size: u64,
    /// True if every change is refused with `ReadOnly`.
    pub read_only: bool,
    /// The best alignment and smallest efficient length of a request, in bytes.
    pub preferred_block: u32,
}

/// A change of a device's content. The bytes of a write are borrowed (`&[u8]`) or owned (`Bytes`).
#[derive(Clone, Debug)]
pub enum Change<D> {
    /// The bytes from `offset` on become `data`.
    Write {
        /// Byte offset.
        offset: u64,
        /// What to write; not empty.
        data: D,
    },
    /// `length` bytes from `offset` on read as zero afterwards, to the byte.
    Zero {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// The content is no longer needed: the whole blocks within read as zero afterwards.
    Trim {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// How an attempt that must not wait has ended.
#[derive(Debug)]
pub enum Attempt {
    /// Done.
    Done,
    /// Nothing was done; the `async` form will do it.
    WouldBlock,
    /// It cannot be done.
    Failed(Error),
}

/// How an attempt to share content has ended.
#[derive(Debug)]
pub enum Sharing {
    /// All of it, in order.
    Parts(Vec<Bytes>),
    /// Some of it must be waited for.
    WouldBlock,
    /// It cannot be shared, or not be read: [`BlockDevice::try_read`] says more.
    Copy,
}

/// Where the content of an extent is found just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// Nowhere: it reads as zero.
    Hole,
    /// In the write log.
    Log,
    /// In a segment of which the read cache holds the frame.
    Cache,
    /// In a segment in the store.
    Store,
}

/// A run of bytes with one [`Residence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidenceExtent {
    /// Bytes.
    pub length: u64,
    /// Where they are.
    pub residence: Residence,
}

/// A run of bytes that is certainly as it was in a snapshot, or may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeExtent {
    /// Bytes.
    pub length: u64,
    /// True if they may differ.
    pub changed: bool,
}

/// Called once, when a commit is durable or has failed. It must be quick: it runs on the thread that
/// commits for everybody.
pub type CommitDone = Box<dyn FnOnce(Result<()>) + Send>;

/// A disk as the doors see it.
#[async_trait]
pub trait BlockDevice: Send + Sync + 'static {
    /// Size and properties as of now.
    fn geometry(&self) -> Geometry;

    /// Makes changes in the order given, as one append where it can, and pushes one outcome for each onto
    /// `outcomes`. `Done` means acknowledged: it survives the death of the daemon. A single
    /// change is atomic.
    fn try_change(&self, changes: &[Change<&[u8]>], outcomes: &mut Vec<Attempt>);

    /// Makes one change, waiting for space or for the blocks it must merge with.
    ///
    /// # Errors
    /// `Invalid`, `Full` (past the end), `ReadOnly`, `Fenced`, `Stopping`, `Io`, `Damaged`.
    async fn change(&self, change: Change<Bytes>) -> Result<()>;

    /// Fills `buffer` from byte `offset` on if all of it is at hand. After `WouldBlock` or `Failed` the buffer's content
    /// is undefined.
    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Attempt;

    /// Fills `buffer` from byte `offset` on, fetching what is not at hand.
    ///
    /// # Errors
    /// `Invalid`, `Damaged`, `Unavailable`, `Denied`, `Fenced`, `Stopping`, `Io`.
    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// The content of a range, in parts, if the device has all of it in memory anyway.
    fn try_share(&self, _offset: u64, _length: u64) -> Sharing {
        Sharing::Copy
    }

    /// As [`BlockDevice::read`], in parts, of which some may be memory that the device holds: for long reads, of which copies would cost more than
    /// everything else.
    ///
    /// # Errors
    /// As [`BlockDevice::read`].
    async fn share(&self, offset: u64, length: u64) -> Result<Vec<Bytes>> {
        // No device takes requests that do not fit.
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.read(offset, &mut bytes).await?;
        Ok(vec![bytes.into()])
    }

    /// Makes every change acknowledged before this call durable to the level promised, then calls
    /// `done`. Commits that wait together are done together.
    fn commit(&self, done: CommitDone);

    /// As [`BlockDevice::commit`], for a caller who has nothing else to do until `done` is called: the work may be done on its thread.
    fn commit_here(&self, done: CommitDone) {
        self.commit(done);
    }

    /// Brings a range near (NBD's CACHE), without returning it.
    ///
    /// # Errors
    /// As [`BlockDevice::read`].
    async fn prefetch(&self, offset: u64, length: u64) -> Result<()>;

    /// Tells where the bytes of a range are: at least one extent, at most `extents_max`, adjoining, from
    /// `offset` on; they may end early.
    ///
    /// # Errors
    /// As [`BlockDevice::read`].
    async fn residence(&self, offset: u64, length: u64, extents_max: usize) -> Result<Vec<ResidenceExtent>>;

    /// Tells where a range may differ from a snapshot, which the exports named as one to compare with: extents as of
    /// [`BlockDevice::residence`].
    ///
    /// # Errors
    /// As [`BlockDevice::read`]; `NotFound` if the snapshot is gone; `Unsupported` for a device that cannot compare.
    async fn changed_since(
        &self,
        snapshot: SnapshotId,
        _offset: u64,
        _length: u64,
        _extents_max: usize,
    ) -> Result<Vec<ChangeExtent>> {
        Err(Error::new(ErrorKind::Unsupported, format!("this device cannot be compared with {snapshot}")))
    }
}

/// A device that a client has opened. Dropping it tells the owner that this client has gone.
pub struct OpenDevice {
    /// What tells it from all others, whichever of its names the client has used.
    pub id: String,
    /// The device.
    pub device: Arc<dyn BlockDevice>,
    /// Dropped when the client goes.
    pub session: Box<dyn Send + Sync>,
}

/// One line of an export list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportEntry {
    /// What a client asks for: an id, or whatever means this export for ever.
    pub name: String,
    /// Other names that rules may know it by: that of the volume; of a snapshot also its volume's id.
    pub other_names: Vec<String>,
    /// For people.
    pub description: String,
}

/// The disks that a door can offer.
#[async_trait]
pub trait Exports: Send + Sync + 'static {
    /// The exports that may be told to anybody who asks.
    ///
    /// # Errors
    /// Whatever the store says.
    async fn list(&self) -> Result<Vec<ExportEntry>>;

    /// What an export is called, whether or not it is in the list.
    ///
    /// # Errors
    /// As [`Exports::inspect`].
    async fn identify(&self, name: &str) -> Result<ExportEntry>;

    /// Looks at an export (an id, or a name that only one volume has) without attaching it.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Invalid` for a name that cannot be one.
    async fn inspect(&self, name: &str) -> Result<Geometry>;

    /// Opens an export for a client, attaching the volume if nobody owns it.
    ///
    /// # Errors
    /// `NotFound`, `Busy` when another host owns it, and whatever attaching says.
    async fn open(&self, name: &str) -> Result<OpenDevice>;

    /// The snapshots that an export can be compared with: of those `asked` for the ones that exist; or, if none are, its own.
    ///
    /// # Errors
    /// What the store says.
    async fn bitmaps(&self, _name: &str, _asked: Option<Vec<SnapshotId>>) -> Result<Vec<SnapshotId>> {
        Ok(Vec::new())
    }
}

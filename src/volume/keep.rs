//! The way of fetched frames into the disk part of the read cache, behind the back of whoever reads them: nobody waits for it.
//!
//! A frame enters at once while that is just a copy. What would have to wait for the disk is copied for one task that does, so that the memory in which
//! frames arrive is free again, and warm when the next ones come. What comes faster than the disk takes it is not kept there, so that what waits is
//! bounded.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::cache::ReadCache;
use crate::units::FrameId;
use crate::volume::shared::Shared;

/// Bytes of frames, as stored, that may wait for the disk.
const WAITING_BYTES_MAX: usize = 24 << 20;

/// Frames that wait for the disk, of all volumes.
#[derive(Default)]
pub struct Waiting(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    frames: Vec<(FrameId, Bytes)>,
    /// Of all that are not on their place yet.
    bytes: usize,
    /// True while a task sees to it that they get there.
    is_served: bool,
}

/// Keeps a frame that the disk part does not have.
pub fn keep_on_disk(shared: &Arc<Shared>, frame: FrameId, stored: &[u8]) {
    if !shared.cache.keeps_on_disk() {
        return;
    }
    let waits = shared.waiting_for_disk.0.lock().is_served;
    if !waits && shared.cache.try_insert_stored(frame, stored) {
        return;
    }
    let mut queue = shared.waiting_for_disk.0.lock();
    if queue.bytes + stored.len() > WAITING_BYTES_MAX {
        return;
    }
    queue.bytes += stored.len();
    queue.frames.push((frame, Bytes::copy_from_slice(stored)));
    if !std::mem::replace(&mut queue.is_served, true) {
        drop(queue);
        let (cache, waiting) = (shared.cache.clone(), shared.waiting_for_disk.clone());
        drop(shared.runtime.spawn_blocking(move || serve(&cache, &waiting)));
    }
}

/// Puts whatever waits on its place.
fn serve(cache: &ReadCache, waiting: &Waiting) {
    loop {
        let mut queue = waiting.0.lock();
        let frames = std::mem::take(&mut queue.frames);
        queue.is_served = !frames.is_empty();
        drop(queue);
        if frames.is_empty() {
            return;
        }
        for (frame, stored) in frames {
            cache.insert_stored(frame, &stored);
            waiting.0.lock().bytes -= stored.len();
        }
    }
}

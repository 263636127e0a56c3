//! Getting out what a write log holds: for one that was kept aside, since it is no longer part of a volume's history.
//!
//! Reads the log only. The image is a new file of the volume's layout with holes where the log holds nothing; it is complete once
//! it is synced, and after a crash or an error it is not to be trusted.

use std::io::IoSlice;
use std::path::Path;

use crate::disk::host::HostDisk;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{Context, Error, Result};
use crate::log::{Ending, RecordKind, Recovered};
use crate::map::{LogOverlay, LogPlace, OverlayPlace};
use crate::service::{LogContent, LogExtent};
use crate::units::{BLOCK_SIZE, ByteLen, Sequence};

/// Blocks copied at a time.
const COPY_BLOCKS: u64 = 256;

/// What a write log holds, which [`Admin::open_log`] has opened: where, and, if `image` is named, the content in a new file of that name. The second value says what could
/// not be had, if the log ends in damage.
///
/// # Errors
/// `NotFound`; `Invalid` if there is a file at `image`; `Damaged` for a record that cannot be read; `Io`.
pub fn export_log(recovered: &Recovered, image: Option<&Path>) -> Result<(LogContent, Option<String>)> {
    let overlay = newest(recovered)?;
    if let Some(image) = image {
        write_image(recovered, &overlay, image)?;
    }
    let identity = recovered.identity();
    let content = LogContent {
        volume: identity.volume,
        epoch: identity.epoch,
        since: identity.attached_at,
        records: (recovered.tail_sequence(), recovered.last_sequence()),
        extents: extents(&overlay),
    };
    Ok((content, damage(recovered)))
}

fn damage(recovered: &Recovered) -> Option<String> {
    let Ending::Damaged { at, records_beyond, .. } = recovered.ending() else { return None };
    let last: Sequence = recovered.last_sequence();
    Some(format!(
        "the log is damaged at {at}: what is told here ends with record {last}; {records_beyond} whole records behind the damage are left out"
    ))
}

/// Where in the log the newest content of each block is.
fn newest(recovered: &Recovered) -> Result<LogOverlay> {
    let mut overlay = LogOverlay::default();
    for view in recovered.records() {
        let view = view?;
        let record = view.place.record;
        match view.kind {
            RecordKind::Write => overlay.set(view.range, OverlayPlace::Log(LogPlace { record, block: 0 })),
            RecordKind::Zero => overlay.set(view.range, OverlayPlace::Zero(record)),
            RecordKind::Fence | RecordKind::Pad => {}
        }
    }
    Ok(overlay)
}

fn extents(overlay: &LogOverlay) -> Vec<LogExtent> {
    let mut extents: Vec<LogExtent> = Vec::new();
    for (range, place) in overlay.extents() {
        let next = LogExtent {
            offset: range.start.0 * BLOCK_SIZE,
            length: range.count.bytes().0,
            zero: matches!(place, OverlayPlace::Zero(_)),
        };
        match extents.last_mut() {
            Some(last) if last.offset + last.length == next.offset && last.zero == next.zero => {
                last.length += next.length;
            }
            _ => extents.push(next),
        }
    }
    extents
}

fn write_image(recovered: &Recovered, overlay: &LogOverlay, image: &Path) -> Result<()> {
    let shown = image.display();
    let file = match HostDisk.open(image, OpenMode::CreateNew) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::invalid(format!("there is a file {shown} already: name one that does not exist")));
        }
        other => other.context(|| format!("cannot create {shown}"))?,
    };
    let mut buffer = vec![0; usize::try_from(ByteLen(COPY_BLOCKS * BLOCK_SIZE).0).unwrap_or(0)];
    let mut end = 0;
    for (range, place) in overlay.extents() {
        end = range.end().0 * BLOCK_SIZE;
        let OverlayPlace::Log(place) = place else { continue };
        let mut done = 0;
        while done < range.count.0 {
            let blocks = COPY_BLOCKS.min(range.count.0 - done);
            let buffer = &mut buffer[..(blocks * BLOCK_SIZE) as usize];
            recovered.read_blocks(place.record, place.block + done as u32, buffer)?;
            let offset = (range.start.0 + done) * BLOCK_SIZE;
            file.write_at(&[IoSlice::new(buffer)], offset).context(|| format!("cannot write {shown}"))?;
            done += blocks;
        }
    }
    finish(&*file, end).context(|| format!("cannot write {shown}"))
}

/// Makes the file as long as what it shows, also where that ends in zeros, and durable.
fn finish(file: &dyn DiskFile, end: u64) -> std::io::Result<()> {
    if file.length()? < end {
        file.write_at(&[IoSlice::new(&[0])], end - 1)?;
    }
    file.sync_data()
}

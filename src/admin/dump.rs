//! Printing objects as a person can read them.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::disk::host::HostDisk;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::manifest::Manifest;
use crate::format::map_object;
use crate::format::segment::{EntryKind, IndexSeal, SegmentIndex, decode_header};
use crate::log::{self, Recovered};
use crate::ownership;
use crate::seal::VolumeKey;
use crate::segment::{fetch_index, parse_object_tail};
use crate::service::DumpTarget;
use crate::store::Store;
use crate::units::{SegmentId, VolumeId};

/// Prints an object.
///
/// # Errors
/// `NotFound`, `Damaged`, and what the store or the local disk say.
pub async fn dump(store: &Arc<dyn Store>, target: DumpTarget) -> Result<String> {
    match target {
        DumpTarget::Manifest(id) => manifest(&ownership::load(&**store, id).await?.manifest),
        DumpTarget::Checkpoint(id) => checkpoint(store, id).await,
        DumpTarget::Segment(id) => {
            unlock(store, id.volume).await?;
            Ok(segment(&fetch_index(&**store, id).await?))
        }
        DumpTarget::ManifestFile(path) => {
            let bytes = read_file(&path)?;
            let envelope: serde_json::Value = serde_json::from_slice(&bytes)
                .map_err(|error| Error::damaged(format!("{} is not a manifest: {error}", path.display())))?;
            let id = envelope["body"]["volume"].as_str().unwrap_or_default().parse()?;
            manifest(&Manifest::decode(id, &bytes)?)
        }
        DumpTarget::CheckpointFile(path) => {
            let bytes = read_file(&path)?;
            let id = map_object::decode_header(&bytes).context(|| path.display().to_string())?;
            Ok(format!(
                "{id}: {} bytes of pages, directories and roots; 'varve dump checkpoint {}' walks them\n",
                bytes.len(),
                id.volume
            ))
        }
        DumpTarget::SegmentFile(path) => {
            let bytes = read_file(&path)?;
            let id = segment_id(&bytes).context(|| path.display().to_string())?;
            let header = decode_header(id, &bytes)?;
            let key = match header.salt {
                Some(_) => key_of(store, id.volume).await?,
                None => None,
            };
            let seal = IndexSeal::of(key.as_deref());
            Ok(segment(&parse_object_tail(id, &bytes, bytes.len() as u64, seal)?))
        }
        DumpTarget::LogFile(path) => log_file(store, &path).await,
    }
}

fn manifest(manifest: &Manifest) -> Result<String> {
    serde_json::to_string_pretty(manifest)
        .map(|text| text + "\n")
        .map_err(|error| Error::invalid(format!("the manifest cannot be printed: {error}")))
}

async fn checkpoint(store: &Arc<dyn Store>, id: VolumeId) -> Result<String> {
    let manifest = ownership::load_unlocked(&**store, id).await?.manifest;
    let Some(reference) = manifest.checkpoint else {
        return Ok(format!("{id} has no checkpoint yet: everything is replayed from its first segment\n"));
    };
    let checkpoint = Checkpoint::open(store.clone(), reference).await?;
    let root = checkpoint.root();
    let mut out = format!(
        "root in {} at {}\nposition: up to segment {}/{}, place {} of the sequence\ndirectories: {}\n",
        reference.root.object,
        reference.root.offset,
        root.epoch,
        root.number,
        root.sequence,
        root.directories.len()
    );
    checkpoint
        .walk(&mut |index, page| {
            let start = index.range().start.0;
            for (offset, count, place) in page.places() {
                let first = start + u64::from(offset);
                let last = first + u64::from(count) - 1;
                let leads_to = match place.segment {
                    segment if segment.is_lost() => "lost".to_owned(),
                    segment => format!("segment {segment} block {}", place.block),
                };
                line(&mut out, format_args!("blocks {first}-{last}: {leads_to}"));
            }
            Ok(())
        })
        .await?;
    Ok(out)
}

fn segment(index: &SegmentIndex) -> String {
    let header = &index.header;
    let kind = if header.seal { "seal" } else { "segment" };
    let mut out = format!(
        "{kind} {}\nwritten by: {}\nat: {} ms\nsequence: {} to {}\nlength: {} bytes\n",
        header.id, header.token, header.created_at, header.first, header.last, index.object_length
    );
    for (number, frame) in index.frames.iter().enumerate() {
        line(
            &mut out,
            format_args!(
                "frame {number}: {} blocks, {} bytes at {}, {:?}, crc {:08x}, {}",
                frame.blocks,
                frame.stored_length,
                frame.offset,
                frame.codec,
                frame.crc,
                if frame.seal.is_some() { "sealed" } else { "not sealed" }
            ),
        );
    }
    for entry in &index.entries {
        let (first, last) = (entry.range.start.0, entry.range.end().0 - 1);
        match entry.kind {
            EntryKind::Data { block } => line(&mut out, format_args!("blocks {first}-{last}: data from block {block}")),
            EntryKind::Zero => line(&mut out, format_args!("blocks {first}-{last}: zero")),
            EntryKind::Moved { block, old } => {
                line(
                    &mut out,
                    format_args!(
                        "blocks {first}-{last}: data from block {block}, if still at {} block {}",
                        old.segment, old.block
                    ),
                );
            }
        }
    }
    out
}

async fn log_file(store: &Arc<dyn Store>, path: &Path) -> Result<String> {
    let recovered = recover_anywhere(store, path).await?;
    let identity = recovered.identity();
    let mut out = format!(
        "write log of {} in {}\nepoch: {}\nwritten by: {}\nring: {} bytes\ntail: {}\nend: {}\nlast record: {}\nending: {:?}\n",
        identity.volume,
        identity.store,
        identity.epoch,
        identity.token,
        recovered.ring_length(),
        recovered.tail(),
        recovered.end(),
        recovered.last_sequence(),
        recovered.ending()
    );
    for view in recovered.records() {
        let view = view?;
        let (first, count) = (view.range.start, view.range.count);
        line(
            &mut out,
            format_args!(
                "{}: {:?} {} in epoch {}: {count} blocks from {first}",
                view.place.record, view.kind, view.place.sequence, view.epoch
            ),
        );
    }
    Ok(out)
}

/// Opens a write log, wherever it lies: with the key of its volume, which the store knows if it is encrypted.
///
/// # Errors
/// What the log and the store say.
pub(super) async fn recover_anywhere(store: &Arc<dyn Store>, path: &Path) -> Result<Recovered> {
    let front = log::peek(&HostDisk, path)?;
    if !front.sealed {
        return log::recover(&HostDisk, path, &|_| Ok(None));
    }
    let key = key_of(store, front.identity.volume).await?;
    log::recover(&HostDisk, path, &|_| Ok(key.clone()))
}

async fn unlock(store: &Arc<dyn Store>, volume: VolumeId) -> Result<()> {
    match ownership::load_unlocked(&**store, volume).await {
        // What is left of a volume that is gone can be looked at if it is plain.
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn key_of(store: &Arc<dyn Store>, volume: VolumeId) -> Result<Option<Arc<VolumeKey>>> {
    ownership::load_unlocked(&**store, volume).await?;
    store.key_of(volume)
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}

fn segment_id(bytes: &[u8]) -> Result<SegmentId> {
    crate::format::segment::peek_id(bytes).ok_or_else(|| Error::damaged("it does not begin as a segment"))
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    use crate::disk::{Disk, OpenMode};
    let shown = path.display();
    let file = HostDisk.open(path, OpenMode::Existing).context(|| format!("cannot open {shown}"))?;
    let length = file.length().context(|| format!("cannot read {shown}"))?;
    if length > crate::limits::SEGMENT_OBJECT_BYTES_MAX {
        return Err(Error::invalid(format!("{shown} is too long to be an object of varve")));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_at(&mut [std::io::IoSliceMut::new(&mut bytes)], 0).context(|| format!("cannot read {shown}"))?;
    Ok(bytes)
}

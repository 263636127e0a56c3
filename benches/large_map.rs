//! Gives a volume the block map of one that was written all over at random for a long time: every page of it holds six extents, so that 16 TiB
//! have a hundred million. Written through the real code, as an owner would: claim, checkpoint, seal, manifest. The segments that the map
//! names do not exist, so that blocks can be looked up, and not read.
//!
//! `large_map STORE-URL VOLUME`; `benches/large_map.sh` creates the volume, calls this and measures what comes of it.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use varve::checkpoint::{self, Checkpoint, NewCheckpoint, PageSource};
use varve::clock;
use varve::error::{Error, Result};
use varve::format::manifest::{Owner, Position};
use varve::limits::PAGE_BLOCKS;
use varve::map::{ChangedPages, MapPage, PageIndex, SegmentPlace};
use varve::ownership::{self, Permit, seal_epoch};
use varve::store;
use varve::units::{BLOCK_SIZE, Epoch, SegmentId, SegmentNumber, Sequence, VolumeId};

/// Extents of each page.
const EXTENTS: u64 = 6;
/// Blocks of each extent.
const EXTENT_BLOCKS: u16 = 8;
/// Blocks of the segments that the map names.
const SEGMENT_BLOCKS: u64 = 6144;

/// Pages that are computed when they are asked for.
struct Scattered {
    volume: VolumeId,
    epoch: Epoch,
    segments: u64,
}

impl Scattered {
    fn place(&self, extent: u64) -> SegmentPlace {
        // Spread as by chance, and the same for the same extent.
        let mixed =
            (extent + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (extent >> 7).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let number = SegmentNumber((mixed >> 16) % self.segments);
        let room = SEGMENT_BLOCKS - u64::from(EXTENT_BLOCKS);
        let segment = SegmentId { volume: self.volume, epoch: self.epoch, number };
        SegmentPlace { segment, block: ((mixed & 0xffff) % room) as u32 }
    }
}

#[async_trait]
impl PageSource for Scattered {
    async fn page(&self, index: PageIndex) -> Result<Arc<MapPage>> {
        let mut page = MapPage::default();
        for extent in 0..EXTENTS {
            let offset = extent * (PAGE_BLOCKS / EXTENTS);
            page.set(offset as u16, EXTENT_BLOCKS, Some(self.place(index.0 * EXTENTS + extent)));
        }
        Ok(Arc::new(page))
    }
}

async fn fill(url: &str, volume: VolumeId) -> Result<()> {
    let store = store::open(url, false).await?.store;
    let began = Instant::now();
    let loaded = ownership::load(&*store, volume).await?;
    let token = clock::random_token();
    let owner = Owner {
        token,
        resumes: None,
        host: "large_map".to_owned(),
        pid: std::process::id(),
        control: String::new(),
        attached_at: clock::now(),
    };
    let attachment = ownership::claim(&*store, &loaded, owner, Permit::IfFree).await?;
    let (manifest, epoch) = (&attachment.loaded.manifest, attachment.epoch);
    let history = ownership::discover(&*store, volume, manifest.replay_from, epoch, token, manifest.sequence).await?;
    let pages = manifest.size.0 / BLOCK_SIZE / PAGE_BLOCKS;
    let changed: ChangedPages = (0..pages).map(PageIndex).collect();
    let source =
        Scattered { volume, epoch, segments: (pages * EXTENTS * u64::from(EXTENT_BLOCKS) / SEGMENT_BLOCKS).max(1) };
    let position = checkpoint::Position { epoch, number: SegmentNumber(0), sequence: history.last };
    let base = Checkpoint::empty(store.clone());
    let (size, mut number) = (manifest.size, 0);
    let new = NewCheckpoint { volume, epoch, position, size, changed: &changed, source: &source, replaced: None };
    let written = checkpoint::write(&store, &base, &mut number, new, &mut |_| Vec::new()).await?;
    let (reference, stats) = (written.reference, written.stats);
    let seal = SegmentId { volume, epoch, number: SegmentNumber(0) };
    seal_epoch(&*store, seal, token, history.last).await?;
    ownership::update(&*store, &attachment.loaded, |manifest| {
        manifest.checkpoint = Some(reference);
        manifest.replay_from = Position { epoch: epoch.next(), number: SegmentNumber(0) };
        manifest.sequence = Sequence(history.last.0);
        manifest.census = None;
        manifest.owner = None;
        manifest.complete = true;
    })
    .await?;
    println!(
        "{} extents in {pages} pages: {} objects, {} MiB, root of {} bytes, {:.0} s",
        pages * EXTENTS,
        stats.objects,
        stats.bytes >> 20,
        reference.root.stored_length,
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [url, volume] = &arguments[..] else {
        return Err(Error::invalid("usage: large_map STORE-URL VOLUME"));
    };
    let volume: VolumeId = volume.parse().map_err(|_| Error::invalid(format!("'{volume}' is no id of a volume")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Error::io("cannot start the runtime", &error))?;
    runtime.block_on(fill(url, volume))
}

//! Volumes of which a part of the block map is damaged in the store.

use std::sync::Arc;
use std::time::Duration;

use super::{World, read, runtime, write};
use crate::block_device::{BlockDevice, Change};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::testing::flip_a_bit;
use crate::error::ErrorKind;
use crate::format::map_object::PageRef;
use crate::ownership;
use crate::units::VolumeId;
use crate::volume::{Volume, VolumeDevice};

const PAGE_BYTES: u64 = 1 << 20;

/// What is damaged.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    /// The second page of the map.
    Page,
    /// The directory that names all of them.
    Directory,
}

impl World {
    /// A volume with something at the beginning of each of its first three pages, attached by nobody.
    fn written(&self) -> VolumeId {
        let id = self.create();
        self.life("a", async |fleet| {
            let (volume, _) = fleet.attach(id, false, false).await.unwrap();
            for page in 0..3 {
                write(&volume, page * PAGE_BYTES, 1).await;
                write(&volume, page * PAGE_BYTES + 8192, 2).await;
            }
            drop(volume);
            fleet.detach(id, false).await.unwrap();
        });
        id
    }

    /// Flips a bit; doing it again flips it back.
    async fn flip(&self, id: VolumeId, part: Part, checkpoint: Option<PageRef>) -> PageRef {
        let part = match checkpoint {
            Some(part) => part,
            None => {
                let manifest = ownership::load_unlocked(&*self.store, id).await.unwrap().manifest;
                let checkpoint = Checkpoint::open(self.store.clone(), manifest.checkpoint.unwrap()).await.unwrap();
                match part {
                    Part::Directory => checkpoint.root().directories[0].1,
                    Part::Page => checkpoint.directory(0).await.unwrap()[1].1,
                }
            }
        };
        flip_a_bit(&*self.store, part).await;
        part
    }

    /// The blocks that a check finds in trouble.
    async fn named(&self, id: VolumeId) -> Vec<String> {
        let report = self.admin().check(id, false, &mut |_| ()).await.unwrap();
        report.problems.into_iter().filter_map(|problem| problem.blocks).collect()
    }
}

async fn is_lost(volume: &Arc<Volume>, offset: u64) -> bool {
    match VolumeDevice::new(volume.clone()).read(offset, &mut vec![0; 4096]).await {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
            true
        }
        Ok(()) => false,
    }
}

/// The volume goes on without what is damaged, and can be attached, written, checked and handed back as any other.
fn costs_no_more(part: Part) {
    let world = World::new();
    let id = world.written();
    runtime().block_on(world.flip(id, part, None));
    let is_all = part == Part::Directory;
    world.life("b", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        assert!(is_lost(&volume, PAGE_BYTES).await);
        assert_eq!(is_lost(&volume, 0).await, is_all);
        write(&volume, PAGE_BYTES + 4096, 3).await;
        drop(volume);
        fleet.detach(id, false).await.unwrap();
        let named = world.named(id).await;
        let wanted = if is_all { vec!["0-256, 258-2047"] } else { vec!["256-256, 258-511"] };
        assert_eq!(named, wanted);
    });
    world.life("c", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        assert_eq!(read(&volume, PAGE_BYTES + 4096).await, 3);
        for (page, offset) in [(0, 0), (0, 8192), (2, 0), (2, 8192)] {
            let offset = page * PAGE_BYTES + offset;
            assert_eq!(is_lost(&volume, offset).await, is_all, "{offset}");
        }
        assert!(is_lost(&volume, PAGE_BYTES).await && is_lost(&volume, PAGE_BYTES + 8192).await);
        let device = VolumeDevice::new(volume.clone());
        device.change(Change::Zero { offset: 0, length: 8 << 20 }).await.unwrap();
        assert_eq!(read(&volume, PAGE_BYTES).await, 0, "what is written anew is whole");
        drop((volume, device));
        fleet.detach(id, false).await.unwrap();
    });
    assert_eq!(runtime().block_on(world.named(id)), Vec::<String>::new());
}

#[test]
fn a_damaged_page_costs_what_it_led_to() {
    costs_no_more(Part::Page);
}

#[test]
fn a_damaged_directory_costs_what_it_led_to() {
    costs_no_more(Part::Directory);
}

/// A store may lack a drive for a while.
#[test]
fn what_is_whole_again_after_a_while_was_not_given_up() {
    let world = World::new();
    let id = world.written();
    let part = runtime().block_on(world.flip(id, Part::Page, None));
    world.life("b", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        write(&volume, PAGE_BYTES + 4096, 3).await;
        // The uploader has met it, and waits.
        let met = async {
            while volume.status().stored < volume.status().accepted {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(3), met).await.is_err(), "it waits for the store");
        world.flip(id, Part::Page, Some(part)).await;
        volume.sync().await.unwrap();
        drop(volume);
        fleet.detach(id, false).await.unwrap();
    });
    assert_eq!(runtime().block_on(world.named(id)), Vec::<String>::new());
    world.life("c", async |fleet| {
        let (volume, _) = fleet.attach(id, false, false).await.unwrap();
        let bytes = [0, 4096, 8192].map(|offset| PAGE_BYTES + offset);
        assert_eq!((read(&volume, bytes[0]).await, read(&volume, bytes[1]).await), (1, 3));
        assert_eq!(read(&volume, bytes[2]).await, 2);
    });
}

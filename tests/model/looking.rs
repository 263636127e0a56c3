//! Looking at volumes and snapshots: each equals its model, whichever way it is read; comparisons name all that differs.

use std::io::Write;
use std::sync::{Arc, Mutex};

use varve::admin::Admin;
use varve::block_device::{BlockDevice, Exports};
use varve::disk::image::ImageWriter;
use varve::lineage::{self, ChangedExtent, FrozenMap};
use varve::units::SnapshotId;
use varve::volume::{Volume, VolumeDevice};

use crate::site::Host;
use crate::world::{Counts, MIB, Place, World};

const BLOCK: usize = 4096;

/// Where an export goes to.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn exported(admin: &Admin, map: &FrozenMap) -> Vec<u8> {
    let sink = Sink::default();
    let image = ImageWriter::of_stream("sink", sink.clone());
    admin.export(map, image, &mut |_| (), std::future::pending()).await.unwrap();
    let data = sink.0.lock().unwrap();
    data.clone()
}

async fn read_all(device: &dyn BlockDevice) -> Vec<u8> {
    let mut disk = vec![0xa5; device.geometry().size as usize];
    for (number, part) in disk.chunks_mut(MIB).enumerate() {
        device.read((number * MIB) as u64, part).await.unwrap();
    }
    disk
}

/// Fails with the blocks that are not what they should be.
#[track_caller]
fn compare(what: &str, found: &[u8], wanted: &[u8]) {
    assert_eq!(found.len(), wanted.len(), "size of {what}");
    if found != wanted {
        let pairs = found.chunks(BLOCK).zip(wanted.chunks(BLOCK)).enumerate();
        let bad: Vec<usize> = pairs.filter(|(_, (found, wanted))| found != wanted).map(|(block, _)| block).collect();
        panic!("{what} differs from its model in blocks {bad:?}");
    }
}

fn block_of(data: &[u8], block: usize) -> Option<&[u8]> {
    data.get(block * BLOCK..(block + 1) * BLOCK)
}

/// What a comparison from `old` to `new` says, held against the models.
fn judge(extents: &[ChangedExtent], old: &[u8], new: &[u8], what: &str) {
    let zeros = [0; BLOCK];
    let blocks = old.len().max(new.len()) / BLOCK;
    let mut changed = vec![None; blocks];
    for extent in extents {
        for block in extent.range.start.0..extent.range.end().0 {
            assert!((block as usize) < blocks, "{what}: block {block} is behind the end of both");
            assert!(changed[block as usize].replace(extent.zero).is_none(), "{what}: block {block} is named twice");
        }
    }
    for (block, changed) in changed.into_iter().enumerate() {
        let (was, is) = (block_of(old, block).unwrap_or(&zeros), block_of(new, block).unwrap_or(&zeros));
        assert!(was == is || changed.is_some(), "{what}: block {block} differs and is not named");
        assert!(changed != Some(true) || is == zeros, "{what}: block {block} is told to be zero and is not");
    }
}

impl World {
    pub fn look_at_one(&mut self, counts: &mut Counts) {
        match self.below(8) {
            0..=2 => {
                if let Some(at) = self.any(|place| matches!(place, Place::Attached(_) | Place::Free)) {
                    self.look_at_disk(at);
                    counts.note("look at a volume");
                }
            }
            3..=5 => {
                if let Some(at) = self.any_shot() {
                    self.look_at_shot(at);
                    counts.note("look at a snapshot");
                }
            }
            _ => {
                if self.compare_two() && self.compare_with_live() {
                    counts.note("compare two");
                }
            }
        }
    }

    fn look_at_disk(&mut self, at: usize) {
        let disk = &self.disks[at];
        let (id, what) = (disk.id, format!("volume {}", disk.id));
        let found = match disk.place {
            Place::Attached(which) => {
                let host = self.hosts[which].as_ref().unwrap();
                let volume = host.service.fleet.find(id).unwrap();
                host.runtime.block_on(read_all(&VolumeDevice::new(volume)))
            }
            Place::Free => {
                let admin = self.admin();
                self.runtime.block_on(async {
                    let map = admin.frozen_volume(id).await.unwrap();
                    exported(&admin, &map).await
                })
            }
            other => panic!("nobody can look at {id}, which is {other:?}"),
        };
        compare(&what, &found, &self.disks[at].data);
    }

    fn look_at_shot(&mut self, at: usize) {
        let id = self.shots[at].id;
        let found = match self.below(super::world::HOSTS + 1) {
            which if self.hosts.get(which).is_some_and(Option::is_some) => {
                served(self.hosts[which].as_ref().unwrap(), id)
            }
            _ => {
                let admin = self.admin();
                self.runtime.block_on(async {
                    let map = admin.frozen_snapshot(id).await.unwrap();
                    exported(&admin, &map).await
                })
            }
        };
        compare(&format!("snapshot {id}"), &found, &self.shots[at].data);
    }

    /// Compares two snapshots, or a snapshot and a volume that nobody has.
    fn compare_two(&mut self) -> bool {
        let (Some(old), Some(new)) = (self.any_shot(), self.any_shot()) else { return false };
        let free = self.any(|place| place == Place::Free).filter(|_| self.stamp.is_multiple_of(2));
        let admin = self.admin();
        let (extents, what) = self.runtime.block_on(async {
            let from = admin.frozen_snapshot(self.shots[old].id).await.unwrap();
            let (to, name) = match free {
                Some(at) => (admin.frozen_volume(self.disks[at].id).await.unwrap(), self.disks[at].id.to_string()),
                None => (admin.frozen_snapshot(self.shots[new].id).await.unwrap(), self.shots[new].id.to_string()),
            };
            let mut extents = Vec::new();
            let visit = &mut |extent| {
                extents.push(extent);
                Ok(())
            };
            lineage::diff(&from, &to, visit).await.unwrap();
            (extents, format!("from {} to {name}", self.shots[old].id))
        });
        let data = free.map_or(&self.shots[new].data, |at| &self.disks[at].data);
        judge(&extents, &self.shots[old].data, data, &what);
        true
    }

    /// Compares a volume in use with a snapshot, as a client does that asks for a dirty bitmap.
    fn compare_with_live(&mut self) -> bool {
        let (Some(at), Some(old)) = (self.any(|place| matches!(place, Place::Attached(_))), self.any_shot()) else {
            return false;
        };
        let Place::Attached(which) = self.disks[at].place else { return false };
        let (disk, shot, host) = (&self.disks[at], &self.shots[old], self.hosts[which].as_ref().unwrap());
        let device = VolumeDevice::new(host.service.fleet.find(disk.id).unwrap());
        let size = disk.data.len() as u64;
        let mut offset = 0;
        while offset < size {
            let told = device.changed_since(shot.id, offset, size - offset, 16);
            for extent in host.runtime.block_on(told).unwrap() {
                let (start, end) = (offset as usize, (offset + extent.length) as usize);
                offset = end as u64;
                let is_same = (start..end).all(|place| shot.data.get(place).unwrap_or(&0) == &disk.data[place]);
                assert!(extent.changed || is_same, "{start} to {end} of {} differ from {}", disk.id, shot.id);
            }
        }
        true
    }

    /// All of them, and once more on a host that has nothing but the store; and a check of everything.
    pub fn look_at_all(&mut self, counts: &mut Counts) {
        for at in 0..self.disks.len() {
            if let Place::Orphaned(which) = self.disks[at].place {
                self.attach(at, which);
            }
            if let Place::Attached(_) = self.disks[at].place {
                self.look_at_disk(at);
                self.detach(at);
            }
        }
        let stranger = self.stranger("stranger");
        for shot in &self.shots {
            compare(&format!("snapshot {}", shot.id), &served(&stranger, shot.id), &shot.data);
            counts.note("look at a snapshot");
        }
        for disk in self.disks.iter().filter(|disk| disk.place == Place::Free) {
            let fleet = &stranger.service.fleet;
            let found = stranger.runtime.block_on(async {
                let (volume, _): (Arc<Volume>, _) = fleet.attach(disk.id, false, false).await.unwrap();
                let found = read_all(&VolumeDevice::new(volume)).await;
                fleet.detach(disk.id, false).await.unwrap();
                found
            });
            compare(&format!("volume {}, elsewhere", disk.id), &found, &disk.data);
            counts.note("look at a volume");
        }
        stranger.die();
        self.check_all();
    }

    /// `varve check` finds nothing wrong, and nothing left over.
    fn check_all(&self) {
        let admin = self.admin();
        self.runtime.block_on(async {
            for disk in self.disks.iter().filter(|disk| disk.place == Place::Free) {
                let report = admin.check(disk.id, false, &mut |_| ()).await.unwrap();
                assert!(report.problems.is_empty() && report.leftovers.is_empty(), "{}: {report:?}", disk.id);
            }
            for shot in &self.shots {
                let report = admin.check_snapshot(shot.id, &mut |_| ()).await.unwrap();
                assert!(report.problems.is_empty(), "{}: {report:?}", shot.id);
            }
        });
    }
}

/// A snapshot as a client of this host reads it.
fn served(host: &Host, id: SnapshotId) -> Vec<u8> {
    host.runtime.block_on(async {
        let open = host.exports.open(&id.to_string()).await.unwrap();
        read_all(&*open.device).await
    })
}

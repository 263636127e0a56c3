//! Power is lost below a real file system that holds the write logs. What the file system tells its disk is recorded while clients write and flush;
//! then the disk is made as it may have been at many moments of that: all that was flushed by then is there, of the rest some is, and some is torn.
//! On each of these disks the file system is mounted and a daemon started, and every volume has what was promised by that moment.
#![cfg(test)]

#[allow(dead_code, reason = "each test file uses a part of the support")]
mod support {
    pub mod client;
    pub mod daemon;
    pub mod disk;
    pub mod history;
    pub mod memory_device;
    pub mod minio;
    pub mod process;
}

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use support::client::Client;
use support::daemon::{Host, StoreKind, World};
use support::disk::{BlockDisk, FileSystem};
use support::history::{Chance, History};
use support::memory_device::{MemoryDevice, MemoryExports, Told};
use support::process::shell;
use varve::nbd::{NbdSettings, Server};

/// Of the disk that loses power: xfs wants 300 MiB, the logs two times 128.
const DISK_BYTES: u64 = 640 << 20;
const VOLUME_BYTES: u64 = 8 << 20;
const WRITES: u64 = 250;
/// Moments at which power is lost.
const CUTS: u64 = 10;

#[test]
fn power_is_lost_below_ext4() {
    power_is_lost_below(FileSystem::Ext4);
}

#[test]
fn power_is_lost_below_xfs() {
    power_is_lost_below(FileSystem::Xfs);
}

/// A volume that is written to, and what was promised of it: how much the disk had been told by when, and the moment before which all is durable.
struct Written {
    id: String,
    history: History,
    promised: Vec<(usize, u64)>,
}

fn power_is_lost_below(system: FileSystem) {
    let world = World::new(StoreKind::Directory);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let device = MemoryDevice::new(DISK_BYTES, false);
    let mut exports = MemoryExports::default();
    exports.devices.insert("disk".to_owned(), device.clone());
    let settings = NbdSettings { tcp: vec!["127.0.0.1:0".parse().unwrap()], ..NbdSettings::default() };
    let server = Server::start(settings, Arc::new(exports), runtime.handle().clone()).unwrap();
    let disk = BlockDisk::attach(&format!("{}/disk", server.addresses()[0]));
    disk.make(system);
    let mount = disk.mount();

    let host = host(&world, &mount.path);
    let mut volumes: Vec<Written> = ["one", "two"]
        .map(|name| Written {
            id: host.create(name, "8MiB"),
            history: History::new(VOLUME_BYTES),
            promised: Vec::new(),
        })
        .into();
    let base = device.snapshot();
    *device.told.lock() = Some(Vec::new());
    let told_so_far = || device.told.lock().as_ref().unwrap().len();
    let mut daemon = host.start();
    let mut clients: Vec<Client> =
        volumes.iter().map(|volume| Client::connect(&host.nbd(), &volume.id).unwrap()).collect();
    let begin = told_so_far();
    let mut chance = Chance::new(29);
    for _ in 0..WRITES {
        let which = chance.below(2) as usize;
        let (volume, client) = (&mut volumes[which], &mut clients[which]);
        let index = volume.history.next_write(&mut chance, 64);
        volume.history.send(index, client, 0).unwrap();
        assert_eq!(client.answer().unwrap().error, 0);
        volume.history.acknowledge(index);
        if chance.below(5) == 0 {
            client.flush().unwrap();
            volume.promised.push((told_so_far(), volume.history.moment()));
        }
    }
    let told = device.told.lock().take().unwrap();
    daemon.kill9();
    mount.crash();
    drop((disk, server));
    let flushes = told[begin..].iter().filter(|told| matches!(told, Told::Flush)).count();
    let promises: usize = volumes.iter().map(|volume| volume.promised.len()).sum();
    assert!(promises > 20 && flushes >= promises / 2, "{flushes} flushes reached the disk for {promises} of clients");

    let store = world.path().join("store");
    let segments = shell("find \"$1\" -path '*/segments/*' -type f", &[store.to_str().unwrap()]).succeeded();
    assert_eq!(segments, "", "one copy of the store is to fit all moments");
    let kept = world.path().join("kept");
    shell("cp -a \"$1\" \"$2\"", &[store.to_str().unwrap(), kept.to_str().unwrap()]).succeeded();
    let mut cuts: Vec<usize> = (0..CUTS).map(|_| begin + chance.below((told.len() - begin) as u64) as usize).collect();
    cuts.sort_unstable();
    let mut power = Power { durable: base, done: 0, told };
    for cut in cuts {
        let image = world.path().join("image");
        write_sparse(&image, &power.lost_at(cut, &mut chance));
        shell("rm -rf \"$1\"; cp -a \"$2\" \"$1\"", &[store.to_str().unwrap(), kept.to_str().unwrap()]).succeeded();
        start_from(&world, &image, &volumes, cut);
    }
}

fn host(world: &World, disk: &Path) -> Host {
    let state = disk.join("state").display().to_string();
    // Nothing comes to be in the store by itself.
    let arguments = ["--log-size", "128MiB", "--cache-size", "64MiB", "--segment-age", "1h"];
    world.host("a").with(&arguments).with_environment("VARVE_STATE", &state)
}

/// A disk that was told some things, and loses power.
struct Power {
    /// What is certainly on it, by the first `done` of what it was told.
    durable: Vec<u8>,
    done: usize,
    told: Vec<Told>,
}

impl Power {
    /// As the disk may be when power is lost after it was told so much. Never asked for an earlier moment than before.
    fn lost_at(&mut self, cut: usize, chance: &mut Chance) -> Vec<u8> {
        let flushed = self.told[..cut].iter().rposition(|told| matches!(told, Told::Flush)).unwrap_or(self.done);
        for told in &self.told[self.done..flushed] {
            if let Told::Write(offset, bytes) = told {
                self.durable[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
            }
        }
        self.done = flushed;
        let mut disk = self.durable.clone();
        for told in &self.told[self.done..cut] {
            let Told::Write(offset, bytes) = told else { continue };
            let length = match chance.below(4) {
                0 => 0,
                1 => chance.below(bytes.len() as u64 / 512 + 1) as usize * 512,
                _ => bytes.len(),
            };
            disk[*offset as usize..][..length].copy_from_slice(&bytes[..length]);
        }
        disk
    }
}

/// Starts a daemon from a disk, and compares its volumes with what was promised when the disk had been told so much.
fn start_from(world: &World, image: &Path, volumes: &[Written], cut: usize) {
    let folder = world.path().join("after");
    std::fs::create_dir_all(&folder).unwrap();
    let (image, place) = (image.to_str().unwrap(), folder.to_str().unwrap());
    shell("mount -o loop \"$1\" \"$2\"", &[image, place]).succeeded();
    let host = host(world, &folder);
    let mut daemon = host.start();
    for volume in volumes {
        let mut client =
            Client::connect(&host.nbd(), &volume.id).unwrap_or_else(|error| panic!("after {cut}: {error}"));
        let promised = volume.promised.iter().rev().find(|(told, _)| *told <= cut);
        println!("power is lost after {cut}: {} promised {promised:?}", volume.id);
        volume.history.check(&client.read_all(), promised.map_or(0, |(_, moment)| *moment));
    }
    daemon.kill9();
    shell("umount \"$1\"", &[place]).succeeded();
}

/// Writes a file without its zeros.
fn write_sparse(path: &Path, bytes: &[u8]) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (number, chunk) in bytes.chunks(1 << 16).enumerate() {
        if chunk.iter().any(|&byte| byte != 0) {
            file.write_all_at(chunk, (number << 16) as u64).unwrap();
        }
    }
}

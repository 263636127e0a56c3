//! What is done to volumes and snapshots, one thing at a time, and to their models.

use std::io::Cursor;
use std::sync::Arc;

use rand::RngExt;
use varve::disk::image::ImageReader;
use varve::error::ErrorKind;
use varve::service::{NewForks, NewSnapshot, NewVolume, Service, VolumeChange};
use varve::units::{ByteLen, SnapshotId, VolumeId};
use varve::volume::Volume;

use crate::changes::{self, Made};
use crate::world::{Disk, HOSTS, MIB, Place, SIZE_MAX, Shot, World};

/// More volumes or snapshots than these are not made.
const DISKS_MAX: usize = 9;
const SHOTS_MAX: usize = 12;
const BLOCK: usize = 4096;

/// Everything that a step can be.
pub const NAMES: [&str; 23] = [
    "write",
    "trim",
    "zero",
    "flush",
    "sync",
    "clean",
    "create",
    "import",
    "snapshot",
    "live snapshot",
    "racing snapshot",
    "destroy snapshot",
    "fork",
    "live fork",
    "restore",
    "extend",
    "live extend",
    "rollback",
    "destroy",
    "undelete",
    "death",
    "takeover",
    "purge",
];

fn new_volume(size: usize) -> NewVolume {
    NewVolume { encrypted: true, ..NewVolume::named("disk", ByteLen(size as u64)) }
}

impl World {
    /// Does something, and says what.
    pub fn step(&mut self) -> &'static str {
        if self.any(|place| matches!(place, Place::Attached(_) | Place::Free)).is_none() {
            return self.create();
        }
        let done = match self.below(100) {
            0..=38 => None,
            39..=41 => self.clean(),
            42..=43 => self.flush(),
            44..=46 => self.sync(),
            47 => self.has_room().then(|| self.create()),
            48..=49 => self.has_room().then(|| self.import()),
            50..=54 => self.snapshot(),
            55..=58 => self.racing_snapshot(),
            59..=61 => self.destroy_snapshot(),
            62..=66 => self.fork(),
            67..=69 => self.restore(),
            70..=72 => self.extend(),
            73..=75 => self.roll_back(),
            76..=78 => self.destroy(),
            79..=80 => self.undelete(),
            81..=87 => self.attach_one(),
            88..=91 => self.detach_one(),
            92..=95 => Some(self.death()),
            96..=98 => self.take_over(),
            _ => {
                self.say("purge".into());
                self.purge();
                Some("purge")
            }
        };
        done.unwrap_or_else(|| self.change())
    }

    fn has_room(&self) -> bool {
        self.disks.iter().filter(|disk| !matches!(disk.place, Place::Gone)).count() < DISKS_MAX
    }

    fn add(&mut self, id: VolumeId, data: Vec<u8>) {
        self.disks.push(Disk { id, place: Place::Free, data });
    }

    fn add_shot(&mut self, id: SnapshotId, volume: VolumeId, data: Vec<u8>) {
        self.shots.push(Shot { id, volume, data });
    }

    /// A volume in use: if none is, one is attached.
    fn in_use(&mut self) -> (usize, usize) {
        if self.any(|place| matches!(place, Place::Attached(_))).is_none() {
            let at = self.any(|place| place == Place::Free).unwrap();
            let which = self.below(HOSTS);
            self.attach(at, which);
        }
        let at = self.any(|place| matches!(place, Place::Attached(_))).unwrap();
        let Place::Attached(which) = self.disks[at].place else { unreachable!("it was chosen for that") };
        (at, which)
    }

    fn volume(&self, at: usize, which: usize) -> Arc<Volume> {
        self.hosts[which].as_ref().unwrap().service.fleet.find(self.disks[at].id).unwrap()
    }

    fn made_up(&mut self, at: usize) -> Made {
        changes::make_up(&mut self.random, &mut self.stamp, self.disks[at].data.len())
    }

    /// Mostly a few changes of one volume.
    fn change(&mut self) -> &'static str {
        let (at, which) = self.in_use();
        let volume = self.volume(at, which);
        let mut name = "write";
        for _ in 0..self.random.random_range(1..5) {
            let made = self.made_up(at);
            self.say(format!("{}: {}", self.disks[at].id, made.describe()));
            self.hosts[which].as_ref().unwrap().runtime.block_on(made.make(&volume));
            made.apply(&mut self.disks[at].data);
            name = made.name;
        }
        name
    }

    fn flush(&mut self) -> Option<&'static str> {
        let (at, which) = self.in_use();
        self.say(format!("{}: flush", self.disks[at].id));
        let volume = self.volume(at, which);
        self.hosts[which].as_ref()?.runtime.block_on(changes::commit(&volume)).unwrap();
        Some("flush")
    }

    fn sync(&mut self) -> Option<&'static str> {
        let (at, which) = self.in_use();
        self.say(format!("{}: sync", self.disks[at].id));
        let volume = self.volume(at, which);
        self.hosts[which].as_ref()?.runtime.block_on(volume.sync()).unwrap();
        Some("sync")
    }

    /// Afterwards the volume takes no more than what it holds and what its snapshots and forks need.
    fn clean(&mut self) -> Option<&'static str> {
        let (at, which) = self.in_use();
        let id = self.disks[at].id;
        self.say(format!("{id}: clean"));
        let host = self.hosts[which].as_ref()?;
        let report = host.runtime.block_on(host.service.clean(id)).unwrap();
        assert!(report.live <= report.stored && report.pinned <= report.stored, "{report:?}");
        Some("clean")
    }

    fn create(&mut self) -> &'static str {
        let size = self.random.random_range(1..=3) * MIB + self.below(3) * BLOCK;
        let made = self.runtime.block_on(self.admin().create_volume(new_volume(size))).unwrap();
        self.say(format!("create {} of {size}", made.id));
        self.add(made.id, vec![0; size]);
        "create"
    }

    fn import(&mut self) -> &'static str {
        let length = self.random.random_range(MIB..2 * MIB);
        let mut data: Vec<u8> = changes::content(self.stamp).take(length).collect();
        let hole = self.random.random_range(0..length / BLOCK) * BLOCK;
        data[hole..].iter_mut().take(20 * BLOCK).for_each(|byte| *byte = 0);
        self.stamp += 1;
        let image = ImageReader::of_stream("image", Cursor::new(data.clone()));
        let admin = self.admin();
        let mut unseen = |_| ();
        let import = admin.import(new_volume(0), image, &mut unseen, std::future::pending());
        let made = self.runtime.block_on(import).unwrap();
        data.resize(length.next_multiple_of(BLOCK), 0);
        self.say(format!("import {} of {length}", made.id));
        self.add(made.id, data);
        "import"
    }

    /// Of a volume in use or of a free one.
    fn snapshot(&mut self) -> Option<&'static str> {
        if self.shots.len() >= SHOTS_MAX {
            return self.destroy_snapshot();
        }
        let at = self.any(|place| matches!(place, Place::Attached(_) | Place::Free))?;
        let id = self.disks[at].id;
        let (taken, name) = match self.disks[at].place {
            Place::Attached(which) => {
                let host = self.hosts[which].as_ref()?;
                (host.runtime.block_on(host.service.snapshot(id, NewSnapshot::default())), "live snapshot")
            }
            _ => (self.runtime.block_on(self.admin().snapshot(id, NewSnapshot::default())), "snapshot"),
        };
        let taken = taken.unwrap();
        assert_eq!(taken.size.0, self.disks[at].data.len() as u64);
        self.say(format!("{name} {} of {id}", taken.id));
        let data = self.disks[at].data.clone();
        self.add_shot(taken.id, id, data);
        Some(name)
    }

    /// A change is under way while the snapshot is taken: it is in it as a whole, or not at all.
    fn racing_snapshot(&mut self) -> Option<&'static str> {
        if self.shots.len() >= SHOTS_MAX {
            return None;
        }
        let (at, which) = self.in_use();
        let (id, volume) = (self.disks[at].id, self.volume(at, which));
        let made = self.made_up(at);
        let before = self.disks[at].data.clone();
        made.apply(&mut self.disks[at].data);
        let host = self.hosts[which].as_ref()?;
        let taken = host.runtime.block_on(async {
            let (taken, ()) = tokio::join!(host.service.snapshot(id, NewSnapshot::default()), made.make(&volume));
            taken.unwrap().id
        });
        self.say(format!("racing snapshot {taken} of {id}: {}", made.describe()));
        // It was asked for before the change was begun. A change at odd places reads first and may come in several parts.
        self.add_shot(taken, id, before);
        Some("racing snapshot")
    }

    fn destroy_snapshot(&mut self) -> Option<&'static str> {
        let at = self.any_shot()?;
        let Shot { id, volume, .. } = self.shots.swap_remove(at);
        self.say(format!("destroy snapshot {id} of {volume}"));
        let admin = self.admin();
        self.runtime.block_on(async {
            admin.destroy_snapshot(id).await.unwrap();
            let gone = admin.snapshot_summary(id).await.unwrap_err();
            assert_eq!(gone.kind(), ErrorKind::NotFound);
        });
        Some("destroy snapshot")
    }

    fn fork(&mut self) -> Option<&'static str> {
        if !self.has_room() {
            return self.destroy();
        }
        let at = self.any(|place| matches!(place, Place::Attached(_) | Place::Free))?;
        let id = self.disks[at].id;
        let new = NewForks { name: None, count: self.random.random_range(1..3), region: None };
        let (made, name) = match self.disks[at].place {
            Place::Attached(which) => {
                let host = self.hosts[which].as_ref()?;
                (host.runtime.block_on(host.service.fork(id, new)), "live fork")
            }
            _ => (self.runtime.block_on(self.admin().fork_volume(id, new)), "fork"),
        };
        for fork in made.unwrap() {
            self.say(format!("{name} {} of {id}", fork.id));
            let data = self.disks[at].data.clone();
            self.add(fork.id, data);
        }
        Some(name)
    }

    /// A new volume of a snapshot, perhaps a larger one.
    fn restore(&mut self) -> Option<&'static str> {
        let at = self.any_shot().filter(|_| self.has_room())?;
        let mut data = self.shots[at].data.clone();
        let larger = (data.len() + self.below(200) * BLOCK).min(SIZE_MAX).max(data.len());
        let size = if self.random.random_bool(0.3) { 0 } else { larger };
        data.resize(size.max(data.len()), 0);
        let id = self.shots[at].id;
        let made = self.runtime.block_on(self.admin().create_from_snapshot(id, new_volume(size), 1)).unwrap();
        self.say(format!("restore {} of {id}, size {size}", made[0].id));
        self.add(made[0].id, data);
        Some("restore")
    }

    fn extend(&mut self) -> Option<&'static str> {
        let at = self.any(|place| matches!(place, Place::Attached(_) | Place::Free))?;
        let (id, old) = (self.disks[at].id, self.disks[at].data.len());
        let size = (old + self.below(300) * BLOCK).min(SIZE_MAX).max(old);
        let change = VolumeChange { size: Some(ByteLen(size as u64)), ..VolumeChange::default() };
        let smaller = VolumeChange { size: Some(ByteLen(old as u64 - 4096)), ..VolumeChange::default() };
        let name = match self.disks[at].place {
            Place::Attached(which) => {
                let host = self.hosts[which].as_ref()?;
                let told = host.runtime.block_on(host.service.update(id, change)).unwrap();
                assert_eq!(told.size.0, size as u64);
                assert!(host.runtime.block_on(host.service.update(id, smaller)).is_err());
                "live extend"
            }
            _ => {
                self.runtime.block_on(self.admin().update_volume(id, change)).unwrap();
                assert!(self.runtime.block_on(self.admin().update_volume(id, smaller)).is_err());
                "extend"
            }
        };
        self.say(format!("{name} {id} to {size}"));
        self.disks[at].data.resize(size, 0);
        Some(name)
    }

    fn roll_back(&mut self) -> Option<&'static str> {
        let fits: Vec<(usize, usize)> = (0..self.disks.len())
            .filter(|at| matches!(self.disks[*at].place, Place::Free | Place::Attached(_)))
            .flat_map(|at| (0..self.shots.len()).map(move |shot| (at, shot)))
            .filter(|(at, shot)| self.disks[*at].id == self.shots[*shot].volume)
            .collect();
        if fits.is_empty() || self.shots.len() >= SHOTS_MAX {
            return None;
        }
        let (at, shot) = fits[self.below(fits.len())];
        if let Place::Attached(_) = self.disks[at].place {
            self.detach(at);
        }
        let (id, to) = (self.disks[at].id, self.shots[shot].id);
        let (_, kept) = self.runtime.block_on(self.admin().roll_back(id, to)).unwrap();
        self.say(format!("rollback of {id} to {to}, kept {}", kept.id));
        let mut data = self.shots[shot].data.clone();
        data.resize(self.disks[at].data.len().max(data.len()), 0);
        let present = std::mem::replace(&mut self.disks[at].data, data);
        self.add_shot(kept.id, id, present);
        Some("rollback")
    }

    fn destroy(&mut self) -> Option<&'static str> {
        let at = self.any(|place| matches!(place, Place::Attached(_) | Place::Free))?;
        let (id, admin) = (self.disks[at].id, self.admin());
        if let Place::Attached(_) = self.disks[at].place {
            let refused = self.runtime.block_on(admin.destroy_volume(id, false)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Busy);
            self.detach(at);
        }
        self.say(format!("destroy {id}"));
        self.runtime.block_on(admin.destroy_volume(id, false)).unwrap();
        let refused =
            self.runtime.block_on(admin.fork_volume(id, NewForks { name: None, count: 1, region: None })).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        self.disks[at].place = Place::Destroyed;
        Some("destroy")
    }

    fn undelete(&mut self) -> Option<&'static str> {
        let at = self.any(|place| matches!(place, Place::Destroyed | Place::Gone))?;
        let id = self.disks[at].id;
        let outcome = self.runtime.block_on(self.admin().undelete_volume(id));
        if self.disks[at].place == Place::Gone {
            assert!(outcome.is_err(), "{id} was brought back after its day");
            return None;
        }
        outcome.unwrap();
        self.say(format!("undelete {id}"));
        self.disks[at].place = Place::Free;
        Some("undelete")
    }

    fn attach_one(&mut self) -> Option<&'static str> {
        let at = self.any(|place| matches!(place, Place::Free | Place::Orphaned(_)))?;
        let which = match self.disks[at].place {
            Place::Orphaned(which) => which,
            _ => self.below(HOSTS),
        };
        self.say(format!("attach {} on host {which}", self.disks[at].id));
        self.attach(at, which);
        Some("attach")
    }

    fn detach_one(&mut self) -> Option<&'static str> {
        let at = self.any(|place| matches!(place, Place::Attached(_)))?;
        self.say(format!("detach {}", self.disks[at].id));
        self.detach(at);
        Some("detach")
    }

    fn death(&mut self) -> &'static str {
        let which = self.below(HOSTS);
        self.say(format!("host {which} dies"));
        self.kill(which);
        "death"
    }

    /// What one host had stored completely goes on at the other after its death.
    fn take_over(&mut self) -> Option<&'static str> {
        let at = self.any(|place| matches!(place, Place::Attached(_)))?;
        let Place::Attached(which) = self.disks[at].place else { return None };
        let (id, other, volume) = (self.disks[at].id, (which + 1) % HOSTS, self.volume(at, which));
        self.hosts[which].as_ref()?.runtime.block_on(volume.sync()).unwrap();
        drop(volume);
        self.say(format!("host {which} dies, host {other} takes {id} over"));
        self.kill(which);
        let host = self.host(other);
        let refused = host.runtime.block_on(host.service.fleet.attach(id, false, false)).err();
        assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::Busy));
        host.runtime.block_on(host.service.fleet.attach(id, true, false)).unwrap();
        self.disks[at].place = Place::Attached(other);
        Some("takeover")
    }
}

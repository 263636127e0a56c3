//! Commands on volumes that nobody uses, while hosts still have logs, pages and caches of them: going back to a snapshot in place, and
//! destroying for good.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use rand::RngExt;
use varve::error::ErrorKind;
use varve::ownership;
use varve::units::{SnapshotId, VolumeId};
use varve::work::simulated::{self, HostId};

use super::record::{Expected, Floor};
use super::world::{Snapshot, World};

/// How often a volume is brought up until it can be handed back in good order.
const TRIES: usize = 5;
/// Longer than a destroyed volume can be brought back.
const DAY_AND_MORE: i64 = 25 * 60 * 60 * 1000;

impl World {
    pub async fn command(&mut self, which: usize) {
        match self.random.random_bool(0.6) {
            true => self.roll_back(which).await,
            false => self.destroy(which).await,
        }
        self.stir();
    }

    /// Hands a volume back in good order, wherever it is. False if that cannot be done now.
    pub async fn put_down(&mut self, which: usize) -> bool {
        for _ in 0..TRIES {
            let subject = &self.subjects[which];
            match &subject.attached {
                Some(attached) if !attached.client.has_failed.load(Ordering::SeqCst) => {
                    let host = attached.host;
                    self.calm(host);
                }
                _ => {
                    let host = subject.home.unwrap_or(1);
                    self.bring_up(which, host).await;
                }
            }
            if self.detach(which).await {
                return true;
            }
        }
        false
    }

    fn snapshots_of(&self, which: usize) -> Vec<(String, SnapshotId, Snapshot)> {
        let (id, family) = (self.subjects[which].id, self.family.lock().unwrap());
        let own = family.snapshots.iter().filter(|(_, known)| known.of == id && !known.is_destroyed);
        own.filter_map(|(name, known)| Some((name.clone(), known.id?, known.clone()))).collect()
    }

    /// A snapshot becomes the present of its volume; what was the present is kept as a snapshot.
    async fn roll_back(&mut self, which: usize) {
        let known = self.snapshots_of(which);
        if known.is_empty() {
            return;
        }
        let (name, to, past) = &known[self.random.random_range(0..known.len())];
        let (id, admin) = (self.subjects[which].id, self.admin());
        let subject = &self.subjects[which];
        if subject.attached.is_some() && subject.ghosts.is_empty() && !subject.has_rivals && subject.leaving.is_none() {
            assert!(admin.roll_back(id, *to).await.is_err(), "volume {which} was rolled back under its owner");
        }
        if !self.put_down(which).await {
            return;
        }
        self.network.trouble(0, 0);
        let present = self.subjects[which].record.lock().unwrap().moment();
        let kept = match admin.roll_back(id, *to).await {
            Ok((_, kept)) => kept.id,
            Err(error) => {
                // Whoever tried to attach it before may still get it.
                let is_excused = matches!(error.kind(), ErrorKind::Busy | ErrorKind::Invalid);
                assert!(is_excused, "volume {which} cannot be rolled back: {error}");
                return self.journal.note(format_args!("volume {which} is not rolled back: {error}"));
            }
        };
        self.journal.note(format_args!("volume {which} is rolled back to snapshot {name}"));
        self.journal.hit("family: a volume is rolled back");
        let Expected { mut stamps, optional } = past.expected.clone();
        stamps.resize(stamps.len().max(present.stamps.len()), 0);
        let asked = Snapshot { of: id, id: Some(kept), expected: present, is_destroyed: false };
        self.family.lock().unwrap().snapshots.insert(format!("kept {kept}"), asked);
        let subject = &mut self.subjects[which];
        let record = subject.record.lock().unwrap().set_to(Expected { stamps, optional });
        subject.record = Arc::new(Mutex::new(record));
        (subject.home, subject.floor, subject.epoch) = (None, Floor::Stored, None);
        if self.random.random_bool(0.5) {
            let host = self.some_host();
            self.bring_up(which, host).await;
        }
    }

    /// A volume is destroyed, and a day later all goes that nothing needs.
    async fn destroy(&mut self, which: usize) {
        if self.subjects.len() < 2 || !self.subjects[which].ghosts.is_empty() {
            return;
        }
        if !self.put_down(which).await {
            return;
        }
        self.network.trouble(0, 0);
        let (id, admin) = (self.subjects[which].id, self.admin());
        if let Err(error) = admin.destroy_volume(id, false).await {
            assert_eq!(error.kind(), ErrorKind::Busy, "volume {which} cannot be destroyed: {error}");
            return;
        }
        self.journal.note(format_args!("volume {which} is destroyed"));
        self.journal.hit("family: a volume is destroyed");
        for (name, snapshot, _) in self.snapshots_of(which) {
            if self.random.random_bool(0.7) {
                let destroyed = admin.destroy_snapshot(snapshot).await;
                assert!(destroyed.is_ok(), "snapshot {name} cannot be destroyed: {destroyed:?}");
                if let Some(known) = self.family.lock().unwrap().snapshots.get_mut(&name) {
                    known.is_destroyed = true;
                }
            }
        }
        let gone = self.subjects.remove(which);
        for (_, excuses) in &gone.former {
            excuses.leaving.store(true, Ordering::SeqCst);
        }
        let mut swept = self.sweep_a_day_later().await;
        let is_needed = async || match ownership::load(&self.network.store, id).await {
            Ok(left) => Some(!left.manifest.pins.is_empty()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                None
            }
        };
        if is_needed().await == Some(false) {
            // A fork may have let go of its pin behind the sweep: then it goes with the next one.
            swept.extend(self.sweep_a_day_later().await);
            assert!(is_needed().await != Some(false), "volume {id} is still there, and nothing needs it");
        }
        for purged in swept {
            assert!(self.subjects.iter().all(|subject| subject.id != purged), "volume {purged} was not destroyed");
            self.journal.hit("family: a volume is purged");
        }
    }

    /// Removes what was destroyed and nothing needs, at a time when nobody can bring it back any more; returns what went.
    async fn sweep_a_day_later(&self) -> Vec<VolumeId> {
        let swept = a_day_later(self.admin().purge()).await.expect("a store that works can be swept");
        assert!(swept.failures.is_empty(), "{:?}", swept.failures);
        swept.purged
    }
}

/// Does something while the clock of the store, and of commands, is put forward.
pub async fn a_day_later<T>(act: impl Future<Output = T>) -> T {
    simulated::set_wall_clock(HostId(0), DAY_AND_MORE, false);
    let done = act.await;
    simulated::set_wall_clock(HostId(0), 0, false);
    done
}

//! Going back: moments of the past are remembered, and volumes are made of them while the owner goes on writing and cleaning.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt;
use varve::clock;
use varve::error::ErrorKind;
use varve::service::NewForks;
use varve::units::{UnixMillis, VolumeId};

use super::host::within;
use super::record::Expected;
use super::world::{Fork, World};

const PATIENCE: Duration = Duration::from_secs(5);

/// A moment at which everything was stored and nothing was under way.
#[derive(Clone)]
pub struct Past {
    of: VolumeId,
    at: UnixMillis,
    expected: Expected,
}

impl World {
    pub async fn past(&mut self, which: usize) {
        match self.random.random_bool(0.6) {
            true => self.remember(which).await,
            false => self.go_back(which).await,
        }
    }

    /// Remembers the present, if all of it is stored.
    pub async fn remember(&mut self, which: usize) {
        let Some(attached) = &self.subjects[which].attached else { return };
        let (client, host) = (attached.client.clone(), attached.host);
        let record = self.subjects[which].record.clone();
        let now = || {
            let record = record.lock().unwrap();
            (record.under_way() == 0).then(|| record.now())
        };
        let Some(before) = now() else { return };
        let syncing = self.host(host).run(async move {
            let is_stored = client.volume.sync().await.is_ok();
            let at = clock::now();
            // What is written from now on is of a later millisecond.
            clock::sleep(Duration::from_millis(3)).await;
            is_stored.then_some(UnixMillis(at.0 + 1))
        });
        let Some(Ok(Some(at))) = within(PATIENCE, syncing).await else { return };
        if now() != Some(before) {
            return;
        }
        let (of, expected) = (self.subjects[which].id, record.lock().unwrap().moment());
        self.journal.note(format_args!("volume {which} at {} is remembered as step {before}", at.0));
        self.pasts.push(Past { of, at, expected });
    }

    /// Makes a volume of a moment that is remembered.
    pub async fn go_back(&mut self, which: usize) {
        let of = self.subjects[which].id;
        let own: Vec<Past> = self.pasts.iter().filter(|past| past.of == of).cloned().collect();
        if own.is_empty() || self.subjects.len() >= self.subjects_max {
            return;
        }
        let Past { at, expected, .. } = own[self.random.random_range(0..own.len())].clone();
        let sectors_max = self.subjects[which].sectors_max.load(Ordering::SeqCst);
        let name = format!("p{}", self.next_number());
        self.family.lock().unwrap().forks.insert(name.clone(), Fork { id: None, expected, sectors_max });
        self.network.trouble(0, 0);
        let made = self.admin().fork_past(of, at, NewForks { name: Some(name.clone()), count: 1, region: None }).await;
        match made {
            Ok(made) => {
                self.journal.note(format_args!("volume {which} at {} is made a volume of its own", at.0));
                self.journal.hit("family: a fork of the past");
                if let Some(known) = self.family.lock().unwrap().forks.get_mut(&name) {
                    known.id = made.first().map(|made| made.id);
                }
            }
            Err(error) => {
                let is_over = at.0 + self.window * 1000 <= clock::now().0 || self.hydrated.contains(&of);
                assert!(is_over && error.kind() == ErrorKind::Invalid, "volume {which} cannot go back: {error}");
                self.journal.hit("family: a past that is over");
                self.family.lock().unwrap().forks.remove(&name);
                self.pasts.retain(|past| (past.of, past.at) != (of, at));
            }
        }
        self.stir();
    }
}

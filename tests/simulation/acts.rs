//! What happens in a history: one thing after the other, drawn by chance.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt;
use varve::error::ErrorKind;
use varve::service::{Durability, NewForks, NewSnapshot, Service, VolumeChange};
use varve::units::ByteLen;
use varve::work::simulated::Join;

use super::client::{Client, Wish};
use super::host::within;
use super::record::{BLOCK, Step};
use super::world::{Fork, Snapshot, Subject, World};

/// Changes that may be under way on one volume.
const UNDER_WAY_MAX: usize = 4;
/// How long the world waits for one thing before it goes on to the next.
const PATIENCE: Duration = Duration::from_millis(700);

impl World {
    /// One thing, whichever.
    pub async fn act(&mut self) {
        let which = self.some_subject();
        if self.has_commands && self.random.random_bool(0.03) {
            self.command(which).await;
            self.adopt();
            return self.look();
        }
        if self.window > 0 && self.random.random_bool(0.05) {
            self.past(which).await;
            self.adopt();
            return self.look();
        }
        match self.random.random_range(0..200) {
            0..=3 => {
                let host = self.some_host();
                self.strike(host);
            }
            4..=9 => {
                let host = self.some_host();
                self.disturb(host);
            }
            10 => {
                let host = self.some_host();
                self.rot(host);
            }
            11..=13 => {
                let host = self.some_host();
                self.calm(host);
                self.bring_up(which, host).await;
                self.stir();
            }
            14..=15 => {
                self.detach(which).await;
            }
            16..=17 => {
                let host = self.some_host();
                self.second_owner(which, host).await;
            }
            18 => self.verify_some_snapshot().await,
            19..=20 => {
                let host = self.some_host();
                self.stop(host).await;
            }
            21..=30 => self.pass(3000).await,
            31..=34 => self.haunt(which).await,
            _ => self.use_volume(which).await,
        }
        self.adopt();
        self.look();
    }

    /// Clients do something; a volume that is not there is brought up first.
    async fn use_volume(&mut self, which: usize) {
        let is_down = |subject: &Subject| match &subject.attached {
            None => true,
            Some(attached) => attached.client.has_failed.load(Ordering::SeqCst),
        };
        if is_down(&self.subjects[which]) {
            let home = self.subjects[which].home.filter(|_| self.random.random_bool(0.8));
            let host = home.unwrap_or_else(|| self.some_host());
            self.host(host).resume();
            self.stir();
            self.bring_up(which, host).await;
            self.stir();
        }
        let Some(attached) = &self.subjects[which].attached else { return };
        let (client, host) = (attached.client.clone(), attached.host);
        if let Some(join) = self.set_out(which, client, host).await
            && self.random.random_bool(0.8)
        {
            // Whether it ends in time is its own business.
            within(PATIENCE, join).await;
        }
    }

    /// An owner that is none any more goes on as if it were.
    async fn haunt(&mut self, which: usize) {
        let ghosts = &self.subjects[which].ghosts;
        if ghosts.is_empty() {
            return;
        }
        let choice = self.random.random_range(0..ghosts.len());
        let (client, host) =
            (self.subjects[which].ghosts[choice].client.clone(), self.subjects[which].ghosts[choice].host);
        self.journal.hit("owner: a late one goes on");
        if let Some(join) = self.set_out(which, client, host).await {
            within(PATIENCE, join).await;
        }
    }

    /// Begins one thing that clients do.
    async fn set_out(&mut self, which: usize, client: Client, host: u32) -> Option<Join<()>> {
        let kind = self.random.random_range(0..100);
        let run = |world: &World, work| world.hosts[host as usize - 1].run(work);
        match kind {
            0..=54 => {
                let (wish, fua) = (self.next_wish(&client)?, self.random.random_bool(0.1));
                let number = self.next_number();
                if self.broken.trims && matches!(wish, Wish::Trim(_)) {
                    client.record.lock().unwrap().begin(number, &wish.steps());
                    client.record.lock().unwrap().acknowledged(number);
                    return None;
                }
                client.record.lock().unwrap().begin(number, &wish.steps());
                self.journal.note(format_args!("{}: change {number} is {wish:?}", client.name));
                Some(self.hosts[host as usize - 1].run(client.change(number, wish, fua)))
            }
            55..=66 => Some(self.hosts[host as usize - 1].run(client.flush())),
            67..=82 => {
                let sectors = client.record.lock().unwrap().sectors();
                let first = self.random.random_range(0..sectors);
                let count = self.random.random_range(1..=(sectors - first).min(400));
                Some(self.hosts[host as usize - 1].run(client.read(first, count)))
            }
            83..=84 => {
                let first = self.random.random_range(0..client.record.lock().unwrap().sectors() - BLOCK);
                Some(self.hosts[host as usize - 1].run(client.prefetch(first, BLOCK)))
            }
            85..=88 => Some(self.hosts[host as usize - 1].run(client.sync())),
            89..=93 if self.hosts[host as usize - 1].is_steady() => self.snapshot(which, client, host).await,
            94..=95 if self.hosts[host as usize - 1].is_steady() => self.fork(which, client, host).await,
            96 => self.grow(which, client, host),
            97 => {
                let durability = if self.random.random_bool(0.5) { Durability::Store } else { Durability::Local };
                let change = VolumeChange { durability: Some(durability), ..VolumeChange::default() };
                Some(run(
                    self,
                    Box::pin(async move {
                        if let Err(error) = client.volume.update(&change).await {
                            client.met("a switch of durability", &error);
                        }
                    }) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
                ))
            }
            98 => Some(self.clean(which, client, host).await),
            99 => Some(self.hydrate(which, client, host).await),
            _ => None,
        }
    }

    /// Asks for everything to be cleaned now; a little of that is always under way.
    pub async fn clean(&mut self, which: usize, client: Client, host: u32) -> Join<()> {
        let (service, id) = (self.host(host).service().await, self.subjects[which].id);
        self.hosts[host as usize - 1].run(async move {
            match service.clean(id).await {
                Ok(report) => client.journal.note(format_args!("{}: cleaned: {report:?}", client.name)),
                Err(error) => client.met("cleaning", &error),
            }
        })
    }

    /// Asks for a fork to be made independent of its origin.
    pub async fn hydrate(&mut self, which: usize, client: Client, host: u32) -> Join<()> {
        let (service, id) = (self.host(host).service().await, self.subjects[which].id);
        self.hydrated.insert(id);
        self.hosts[host as usize - 1].run(async move {
            match service.hydrate(id).await {
                Ok(_) => client.journal.hit("family: a fork hydrates"),
                Err(error) if error.kind() == ErrorKind::Invalid => {}
                Err(error) => client.met("hydration", &error),
            }
        })
    }

    /// A change that overlaps none that is under way.
    fn next_wish(&mut self, client: &Client) -> Option<Wish> {
        let (sectors, under_way) = {
            let record = client.record.lock().unwrap();
            (record.sectors(), record.under_way())
        };
        if under_way >= UNDER_WAY_MAX {
            return None;
        }
        let stamp = self.next_number();
        let random = &mut self.random;
        // Mostly the same few blocks, so that much is overwritten, and read back from everywhere.
        let reach = if random.random_bool(0.6) { 48 * BLOCK } else { sectors };
        let mut first = random.random_range(0..reach);
        let mut count = random.random_range(1..=8 * BLOCK).min(sectors - first);
        if random.random_bool(0.7) {
            first = first / BLOCK * BLOCK;
            count = (count.next_multiple_of(BLOCK)).min(sectors - first);
        }
        let layout = client.layout();
        let mut step = layout.within_directory(Step { first, count, stamp });
        let whole = layout.first_directory().filter(|_| random.random_bool(0.06));
        if let Some(whole) = whole {
            step = whole;
        }
        if client.record.lock().unwrap().is_busy(&step) {
            return None;
        }
        Some(match random.random_range(0..10) {
            // As a guest's mkfs or fstrim does it.
            _ if whole.is_some() => {
                self.journal.hit("client: trims a whole directory of the map");
                Wish::Trim(step)
            }
            0 | 1 => Wish::Trim(Step { stamp: 0, ..step }),
            2 => Wish::Zero(Step { stamp: 0, ..step }),
            _ => Wish::Write(step),
        })
    }

    pub async fn snapshot(&mut self, which: usize, client: Client, host: u32) -> Option<Join<()>> {
        let name = format!("s{}", self.next_number());
        let (service, family) = (self.host(host).service().await, self.family.clone());
        let id = self.subjects[which].id;
        Some(self.hosts[host as usize - 1].run(async move {
            if let Err(error) = client.past_doubt().await {
                return client.met("a snapshot", &error);
            }
            let (expected, to) = {
                let record = client.record.lock().unwrap();
                (record.moment(), record.now())
            };
            let asked = Snapshot { of: id, id: None, expected, is_destroyed: false };
            family.lock().unwrap().snapshots.insert(name.clone(), asked);
            let new = NewSnapshot { name: Some(name.clone()), retention_seconds: None };
            match service.snapshot(id, new).await {
                Ok(summary) => {
                    client.journal.note(format_args!("{}: snapshot {name} of step {to} is taken", client.name));
                    if let Some(known) = family.lock().unwrap().snapshots.get_mut(&name) {
                        known.id = Some(summary.id);
                    }
                    if let Err(fault) = client.record.lock().unwrap().stored(to) {
                        client.faults.note(format!("{}: {fault}", client.name));
                    }
                }
                Err(error) => client.met("a snapshot", &error),
            }
        }))
    }

    pub async fn fork(&mut self, which: usize, client: Client, host: u32) -> Option<Join<()>> {
        if self.subjects.len() >= self.subjects_max {
            return None;
        }
        let name = format!("f{}", self.next_number());
        let (service, family) = (self.host(host).service().await, self.family.clone());
        let (id, sectors_max) = (self.subjects[which].id, self.subjects[which].sectors_max.clone());
        Some(self.hosts[host as usize - 1].run(async move {
            if let Err(error) = client.past_doubt().await {
                return client.met("a fork", &error);
            }
            // The host may have been paused before it came to ask, and the volume may have been made to grow meanwhile.
            let (expected, sectors_max) = (client.record.lock().unwrap().moment(), sectors_max.load(Ordering::SeqCst));
            let asked = Fork { id: None, expected, sectors_max };
            family.lock().unwrap().forks.insert(name.clone(), asked);
            match service.fork(id, NewForks { name: Some(name.clone()), count: 1, region: None }).await {
                Ok(made) => {
                    if let Some(known) = family.lock().unwrap().forks.get_mut(&name) {
                        known.id = made.first().map(|made| made.id);
                    }
                }
                Err(error) => client.met("a fork", &error),
            }
        }))
    }

    fn grow(&mut self, which: usize, client: Client, host: u32) -> Option<Join<()>> {
        let sectors = client.record.lock().unwrap().sectors() + BLOCK * self.random.random_range(1..60);
        let subject = &self.subjects[which];
        subject.sectors_max.fetch_max(sectors, Ordering::SeqCst);
        self.journal.hit("family: growth");
        let change = VolumeChange { size: Some(ByteLen(client.layout().size(sectors))), ..VolumeChange::default() };
        Some(self.hosts[host as usize - 1].run(async move {
            match client.volume.update(&change).await {
                Ok(()) => client.record.lock().unwrap().grow(sectors),
                // Somebody else may have grown it further meanwhile.
                Err(error) if error.kind() == ErrorKind::Invalid => {}
                Err(error) => client.met("growth", &error),
            }
        }))
    }

    /// Takes in the forks that were made.
    pub fn adopt(&mut self) {
        let mut family = self.family.lock().unwrap();
        let known: Vec<String> =
            family.forks.iter().filter(|(_, fork)| fork.id.is_some()).map(|(name, _)| name.clone()).collect();
        for name in known {
            if let Some(Fork { id: Some(id), expected, sectors_max }) = family.forks.remove(&name) {
                self.journal.hit("family: fork");
                let subject = Subject::new(id, expected);
                subject.sectors_max.store(sectors_max, Ordering::SeqCst);
                self.subjects.push(subject);
            }
        }
    }
}

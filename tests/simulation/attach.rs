//! Attaching a volume to a host, whatever stands in the way, and comparing what is on it with what must be; and handing it back.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use varve::clock;
use varve::error::ErrorKind;
use varve::ownership;
use varve::service::AttachReport;
use varve::volume::Volume;

use super::client::{Client, Witness};
use super::host::{kind_of, within};
use super::record::{Floor, Stamp};
use super::world::{Attached, World};

/// Attempts to attach until the world gives up, and after how many it becomes calm.
const ATTEMPTS: usize = 60;
const ATTEMPTS_STIRRED: usize = 3;
/// How long changes may take once the world is calm.
const CALM_SECONDS: u64 = 200;
const PATIENCE: Duration = Duration::from_secs(400);

impl World {
    /// Attaches a volume to a host; from another owner, if need be, it is taken over.
    pub async fn bring_up(&mut self, which: usize, number: u32) {
        let (mut takeover, mut why) = (false, String::new());
        self.quiet(which, number).await;
        self.let_go(which, number);
        for attempt in 0..ATTEMPTS {
            if attempt >= ATTEMPTS_STIRRED {
                self.calm(number);
                clock::sleep(Duration::from_secs(1)).await;
            }
            if self.subjects[which].home != Some(number) {
                self.rival(which);
                self.show_scene();
            }
            let (fleet, id) = (self.host(number).fleet().await, self.subjects[which].id);
            let attaching = self.hosts[number as usize - 1].run(async move { fleet.attach(id, takeover, false).await });
            if attempt == 0 && self.is_dangerous && self.random.random_bool(0.08) {
                let short = Duration::from_millis(self.random.random_range(0..40));
                if within(short, attaching).await.is_none() {
                    self.journal.hit("host: dies while it attaches");
                    self.strike(number);
                }
                continue;
            }
            let Some(Ok(result)) = within(PATIENCE, attaching).await else {
                why = "no answer".to_owned();
                self.calm(number);
                continue;
            };
            self.journal.note(format_args!("attaching volume {which} to host {number}: {}", kind_of(&result)));
            match result {
                Ok((volume, report)) => {
                    if self.settle(which, number, volume, &report, takeover).await {
                        return;
                    }
                    why = "the volume failed at once".to_owned();
                    if attempt > 2 * ATTEMPTS_STIRRED {
                        // A log that rots under a volume in use goes on failing, for the blocks concerned, until it is looked at anew.
                        self.kill(number);
                    }
                }
                Err(error) => {
                    self.refused(which, number, error.kind(), error.message(), &mut takeover);
                    why = error.to_string();
                }
            }
        }
        panic!("volume {which} cannot be attached to host {number}: {why}");
    }

    /// An attempt to attach was refused: is there a reason?
    fn refused(&mut self, which: usize, number: u32, kind: ErrorKind, message: &str, takeover: &mut bool) {
        let subject = &mut self.subjects[which];
        match kind {
            ErrorKind::Busy => {
                let is_own = subject.home == Some(number) && !subject.has_rivals && subject.floor > Floor::Stored;
                assert!(!is_own, "volume {which} is refused to its own host {number}: {message}");
                *takeover = true;
            }
            ErrorKind::Damaged if subject.floor == Floor::Stored || subject.rotted.contains(&number) => {
                self.journal.hit("recovery: a damaged log is refused");
                *takeover = true;
            }
            // An answer that rotted on its way.
            ErrorKind::Damaged | ErrorKind::Unsupported if self.hardness.2 > 0 => {}
            ErrorKind::Conflict | ErrorKind::Unavailable | ErrorKind::Denied | ErrorKind::Full | ErrorKind::Io => {}
            ErrorKind::Stopping | ErrorKind::Fenced => {}
            _ => panic!("volume {which} cannot be attached to host {number}: {kind:?}: {message}"),
        }
    }

    /// Waits until nothing is under way in an attachment that may live on under the next one's name.
    async fn quiet(&mut self, which: usize, number: u32) {
        let subject = &self.subjects[which];
        let is_here = subject.home == Some(number) || subject.ghosts.iter().any(|ghost| ghost.host == number);
        if !is_here || self.hosts[number as usize - 1].fleet.is_none() {
            return;
        }
        self.calm(number);
        for _ in 0..CALM_SECONDS {
            if self.subjects[which].record.lock().unwrap().under_way() == 0 {
                return;
            }
            clock::sleep(Duration::from_secs(1)).await;
        }
        // Those of an attachment elsewhere may wait for that host.
        let life = self.hosts[number as usize - 1].id;
        let is_attached_here = self.subjects[which].attached.as_ref().is_some_and(|attached| attached.life == life);
        assert!(
            !is_attached_here,
            "changes of volume {which} on host {number} wait for more than {CALM_SECONDS} s although all is well"
        );
    }

    /// What this world knows of an attachment on this host is over.
    fn let_go(&mut self, which: usize, number: u32) {
        let subject = &mut self.subjects[which];
        if let Some(attached) = subject.attached.take_if(|attached| attached.host == number) {
            attached.client.excuses.leaving.store(true, Ordering::SeqCst);
            attached.client.excuses.rival.store(true, Ordering::SeqCst);
            subject.record.lock().unwrap().died();
            subject.former.push((number, attached.client.excuses.clone()));
        }
        let ghosts = subject.ghosts.extract_if(.., |ghost| ghost.host == number);
        subject.former.extend(ghosts.map(|ghost| (number, ghost.client.excuses.clone())));
    }

    fn rival(&mut self, which: usize) {
        let subject = &mut self.subjects[which];
        subject.has_rivals = true;
        for attached in subject.attached.iter().chain(&subject.ghosts) {
            attached.client.excuses.rival.store(true, Ordering::SeqCst);
        }
    }

    /// Compares a volume that was just attached with its record. False if it cannot be read.
    async fn settle(
        &mut self,
        which: usize,
        number: u32,
        volume: Arc<Volume>,
        report: &AttachReport,
        takeover: bool,
    ) -> bool {
        self.calm(number);
        let is_home = self.subjects[which].home == Some(number);
        let attached = self.client(which, number, volume);
        let Some(disk) = self.read_attached(which, number, &attached.client).await else { return false };
        self.branches(report);
        let subject = &mut self.subjects[which];
        let is_given_up = takeover && subject.floor == Floor::Stored;
        let is_own = is_home && !subject.has_rivals && !report.taken_over && !is_given_up;
        let floor = if is_own { subject.floor } else { Floor::Stored };
        let why = format!("volume {which}, attached to host {number} as {floor:?}");
        let mut record = subject.record.lock().unwrap().clone();
        record.grow(disk.len());
        record.survived = None;
        let at = record.settle(&disk, floor, &why).unwrap_or_else(|fault| panic!("{fault}"));
        // An attachment that was there already has made nothing durable.
        if is_own && floor <= Floor::Flushed && report.previous_owner.is_some() {
            record.flushed_all();
        }
        if !is_home {
            record.stored_all();
        }
        self.journal.note(format_args!("{why}: at step {at}"));
        subject.put_out_others(at);
        let is_same = is_home && subject.epoch == Some(report.status.epoch);
        if is_same {
            // Reads and flushes of its clients of before may still be under way, and see what the new ones do.
            *subject.record.lock().unwrap() = record;
        } else {
            record.forget_unfound();
            subject.record = Arc::new(Mutex::new(record));
        }
        let record = subject.record.clone();
        let Attached { host, life, client: Client { volume, witness } } = attached;
        subject.attached =
            Some(Attached { host, life, client: Client { volume, witness: Witness { record, ..witness } } });
        // One that was there already has not looked at its log anew: rot in there is still to be found.
        if !is_same {
            subject.floor = Floor::Acknowledged;
            subject.rotted.remove(&number);
        }
        (subject.home, subject.epoch, subject.has_rivals) = (Some(number), Some(report.status.epoch), false);
        self.show_scene();
        self.look();
        true
    }

    /// Reads all of a volume that was just attached, if that can be done and this world knows how large it is.
    async fn read_attached(&mut self, which: usize, number: u32, client: &Client) -> Option<Vec<Stamp>> {
        loop {
            let sectors = client.sectors();
            let subject = &self.subjects[which];
            let known = (subject.record.lock().unwrap().sectors(), subject.sectors_max.load(Ordering::SeqCst));
            if sectors < known.0 && self.subjects[which].has_rivals {
                self.journal.note(format_args!("volume {which} has grown elsewhere, and host {number} cannot be told"));
                return None;
            }
            assert!(sectors >= known.0 && sectors <= known.1, "the volume has {sectors} sectors, not {known:?}");
            let client = client.clone();
            let reading = self.host(number).run(async move { client.read_sectors(0, sectors).await });
            match within(PATIENCE, reading).await {
                // It may have grown under the hands of the attachment before, if that is the same one.
                Some(Ok(Ok(read))) if self.subjects[which].record.lock().unwrap().sectors() <= sectors => {
                    return Some(read.unwrap_or_else(|fault| panic!("volume {which}, just attached: {fault}")));
                }
                Some(Ok(Ok(_))) => {}
                other => {
                    let said = other.map(|done| done.map(|read| kind_of(&read)));
                    self.journal.note(format_args!("volume {which} cannot be read: {said:?}"));
                    return None;
                }
            }
        }
    }

    fn branches(&self, report: &AttachReport) {
        if report.replayed_records > 0 {
            self.journal.hit("recovery: replay of the log");
        }
        if report.taken_over {
            self.journal.hit("recovery: takeover without the log");
        }
        if report.previous_owner.is_none() {
            self.journal.hit("recovery: after a detach");
        }
    }

    /// Somebody else tries without a takeover: no.
    pub async fn second_owner(&mut self, which: usize, number: u32) {
        let subject = &self.subjects[which];
        let is_elsewhere = subject
            .attached
            .as_ref()
            .is_some_and(|attached| attached.host != number && subject.leaving != Some(attached.life));
        if !is_elsewhere || self.host(number).is_paused || self.subjects[which].ghosts.iter().any(|g| g.host == number)
        {
            return;
        }
        let (fleet, id) = (self.host(number).fleet().await, self.subjects[which].id);
        // An owner that was put out, and cannot be told, says so of itself.
        if fleet.find(id).is_some() {
            return;
        }
        let attaching = self.host(number).run(async move { fleet.attach(id, false, false).await });
        if let Some(Ok(result)) = within(PATIENCE, attaching).await {
            self.journal.note(format_args!("a second owner of volume {which} on {number}: {}", kind_of(&result)));
            assert!(result.is_err(), "host {number} was given volume {which}, which another owns");
            self.journal.hit("owner: a second one is refused");
        }
    }

    /// Hands a volume back, if that can be done now.
    pub async fn detach(&mut self, which: usize) -> bool {
        let Some(Attached { host, client, life }) = self.subjects[which].attached.take() else { return false };
        client.excuses.leaving.store(true, Ordering::SeqCst);
        client.excuses.rival.store(true, Ordering::SeqCst);
        let (record, id) = (client.record.clone(), self.subjects[which].id);
        self.subjects[which].former.push((host, client.excuses.clone()));
        drop(client);
        let fleet = self.host(host).fleet().await;
        let detaching = self.host(host).run(async move { fleet.detach(id, true).await });
        let done = within(PATIENCE, detaching).await;
        if done.is_some() {
            record.lock().unwrap().died();
        } else {
            self.subjects[which].leaving = Some(life);
        }
        let said = done.as_ref().map(|done| done.as_ref().map(kind_of));
        self.journal.note(format_args!("detaching volume {which} from host {host}: {said:?}"));
        if !matches!(done, Some(Ok(Ok(())))) {
            return false;
        }
        // One that was put out is let go of without anything being uploaded.
        let manifest = ownership::load(&self.network.store, id).await.expect("a volume that was attached").manifest;
        let is_free = manifest.owner.is_none() && manifest.complete;
        let is_newest = self.subjects[which].epoch == Some(manifest.epoch);
        assert!(is_free || !is_newest, "volume {which} was said to be handed back, and was not");
        if !is_free || self.subjects[which].has_rivals {
            return false;
        }
        self.journal.hit("owner: detached");
        record.lock().unwrap().stored_all();
        self.subjects[which].home = None;
        self.show_scene();
        true
    }

    pub fn some_subject(&mut self) -> usize {
        self.random.random_range(0..self.subjects.len())
    }
}

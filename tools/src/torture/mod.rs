//! Proves the promises on somebody's own bucket and disk: real daemons are killed, paused, and lose their disks under load, and what is
//! there afterwards is compared with a record of what was acknowledged.
//!
//! | file | what |
//! | --- | --- |
//! | `client` | a small NBD client |
//! | `record` | what was acknowledged, and whether a disk is one that could have been |
//! | `rig` | scratch space, and hosts in it |
//!
//! A round goes through one volume's life: killed under load, a snapshot and a fork while it is in use, the loss of a host, an owner that was
//! thought dead, and a stop in order. Each step ends with the whole disk being read and judged; the first that is wrong ends the run.
//! Loss of power cannot be tried from here.

mod client;
mod record;
mod rig;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use varve::clock;
use varve::error::{Error, ErrorKind, Result};
use varve::units::ByteLen;

use client::Client;
use record::Record;
pub use rig::Scratch;
use rig::{Daemon, Host};

/// Size of the volume.
const SIZE: u64 = 64 << 20;
const SIZE_ARGUMENT: &str = "64MiB";
/// Writes in flight on each of the two connections.
const DEPTH: usize = 16;
/// Acknowledged writes before something happens: at least, and up to as many more by chance.
const WRITES: u64 = 500;
/// One write in so many asks for FUA.
const ONE_DURABLE_IN: u64 = 20;
/// A pause that a daemon notices by itself when it goes on, with much to spare; of a shorter one it learns at its next contact with the store.
const PAUSE_NOTICED: Duration = Duration::from_secs(3);
/// Requests that the paused owner finds when it goes on.
const STALE_REQUESTS: u64 = 8;

/// What was done and verified.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Done {
    /// Rounds that ended well.
    pub rounds: u64,
    /// Writes that were acknowledged, and their bytes.
    pub writes: u64,
    /// Bytes of these.
    pub bytes: ByteLen,
    /// Bytes that were read back and judged.
    pub verified: ByteLen,
    /// Promise 1: deaths by SIGKILL under load after which nothing acknowledged was missing.
    pub kills: u64,
    /// Promise 3: hosts lost with their disk, after which the volume was as it was at one moment, with everything synced before.
    pub hosts_lost: u64,
    /// Acknowledged writes that were later than that moment and went with the hosts: promise 3 allows them.
    pub lost_with_hosts: u64,
    /// Promise 4: owners that were paused, replaced, and acknowledged nothing when they went on; attachments refused without a takeover.
    pub owners_fenced: u64,
    /// Promise 5: snapshots and forks that held exactly what was acknowledged before, and nothing later.
    pub snapshots: u64,
    /// The same of forks.
    pub forks: u64,
    /// Stops in order after which another host had everything.
    pub moves: u64,
    /// What `varve check` read and found sound.
    pub checks: u64,
}

/// What one run works with.
pub struct Torture<'a> {
    scratch: &'a Scratch,
    /// Set when somebody wants it to end.
    stop: &'a AtomicBool,
    say: fn(&str),
    volume: String,
    record: Record,
    hosts: u64,
    /// What came of it so far.
    pub done: Done,
}

fn broken(message: impl Into<String>) -> Error {
    Error::damaged(message)
}

impl<'a> Torture<'a> {
    /// A volume in the scratch store.
    ///
    /// # Errors
    /// What the store says.
    pub fn begin(scratch: &'a Scratch, stop: &'a AtomicBool, say: fn(&str)) -> Result<Self> {
        let host = scratch.host("maker");
        let made = host.varve(&["volumes", "create", "torture", "--size", SIZE_ARGUMENT])?;
        let volume = id_of(&made)?;
        Ok(Torture { scratch, stop, say, volume, record: Record::new(SIZE), hosts: 0, done: Done::default() })
    }

    /// One round.
    ///
    /// # Errors
    /// `Damaged` if a promise was broken; else what kept it from being tried.
    pub fn round(&mut self) -> Result<()> {
        let daemon = self.new_host().start()?;
        let daemon = self.killed(daemon)?;
        self.copied(&daemon)?;
        let daemon = self.host_lost(daemon)?;
        let daemon = self.owner_replaced(daemon)?;
        self.moved(daemon)?;
        self.done.rounds += 1;
        Ok(())
    }

    fn new_host(&mut self) -> Host {
        self.hosts += 1;
        self.scratch.host(&format!("host{}", self.hosts))
    }

    fn some_writes() -> u64 {
        WRITES + clock::random_u64() % WRITES
    }

    fn load(&self, host: &Host) -> Result<Load> {
        Ok(Load {
            clients: vec![(host.connect(&self.volume)?, HashMap::new()), (host.connect(&self.volume)?, HashMap::new())],
        })
    }

    /// Writes until so many more are acknowledged.
    fn write(&mut self, load: &mut Load, count: u64) -> Result<()> {
        let (mut acknowledged, mut turn) = (0, 0);
        while acknowledged < count {
            if self.stop.load(Ordering::SeqCst) {
                return Err(Error::new(ErrorKind::Stopping, "interrupted"));
            }
            turn += 1;
            if let Some(bytes) = load.step(turn, &mut self.record)? {
                acknowledged += 1;
                self.done.writes += 1;
                self.done.bytes.0 += bytes;
            }
        }
        Ok(())
    }

    /// Takes all answers that are still to come; of a dead daemon, those that it gave before.
    fn drain(&mut self, load: Load, dead: bool) -> Result<()> {
        for (mut client, mut in_flight) in load.clients {
            while !in_flight.is_empty() {
                let Some(answer) = client.answer().map_err(|error| Error::io("NBD", &error))? else {
                    if dead {
                        break;
                    }
                    return Err(broken("the daemon hung up with writes in flight"));
                };
                if let (Some(number), 0) = (in_flight.remove(&answer.cookie), answer.errno) {
                    self.done.bytes.0 += self.record.acknowledge(number);
                    self.done.writes += 1;
                } else if !dead {
                    return Err(broken(format!("a write that makes sense was answered with errno {}", answer.errno)));
                }
            }
        }
        Ok(())
    }

    /// Reads the whole disk.
    fn disk(&mut self, host: &Host, export: &str) -> Result<Vec<u8>> {
        let disk = host.connect(export)?.read_all(SIZE)?;
        self.done.verified.0 += disk.len() as u64;
        Ok(disk)
    }

    /// Promise 1: what was acknowledged survives SIGKILL.
    fn killed(&mut self, mut daemon: Daemon) -> Result<Daemon> {
        (self.say)("killing the daemon under load");
        let host = daemon.host.clone();
        let mut load = self.load(&host)?;
        self.write(&mut load, Self::some_writes())?;
        daemon.kill()?;
        self.drain(load, true)?;
        let daemon = host.start()?;
        let disk = self.disk(&host, &self.volume.clone())?;
        self.record.judge(&disk, self.record.moment())?;
        self.record.rebase(&disk)?;
        self.done.kills += 1;
        Ok(daemon)
    }

    /// Promise 5: a snapshot and a fork hold what was acknowledged before, and nothing that came later.
    fn copied(&mut self, daemon: &Daemon) -> Result<()> {
        (self.say)("taking a snapshot and a fork of the volume in use");
        let host = daemon.host.clone();
        let mut load = self.load(&host)?;
        self.write(&mut load, Self::some_writes())?;
        self.drain(load, false)?;
        let before = self.disk(&host, &self.volume.clone())?;
        self.record.judge(&before, self.record.moment())?;
        let snapshot = id_of(&host.varve(&["volumes", "snapshots", "create", &self.volume])?)?;
        let fork = id_of(&host.varve(&["volumes", "fork", &self.volume])?)?;
        let mut load = self.load(&host)?;
        self.write(&mut load, Self::some_writes())?;
        self.drain(load, false)?;
        for copy in [&snapshot, &fork] {
            if self.disk(&host, copy)? != before {
                return Err(broken(format!("{copy} is not the volume as it was when it was made")));
            }
        }
        // What is written to the fork shows nowhere else.
        let mut client = host.connect(&fork)?;
        client.send_write(0, &[0xf0; 4096], false).map_err(|error| Error::io("NBD", &error))?;
        let written = client.answer().map_err(|error| Error::io("NBD", &error))?;
        if written.is_none_or(|answer| answer.errno != 0) {
            return Err(broken(format!("fork {fork} cannot be written")));
        }
        drop(client);
        if self.disk(&host, &snapshot)? != before {
            return Err(broken(format!("a write to fork {fork} changed snapshot {snapshot}")));
        }
        let disk = self.disk(&host, &self.volume.clone())?;
        self.record.judge(&disk, self.record.moment())?;
        self.checked(&host, &[&snapshot, &fork])?;
        host.varve(&["volumes", "detach", &fork])?;
        host.varve(&["volumes", "destroy", &fork, "--yes"])?;
        self.done.snapshots += 1;
        self.done.forks += 1;
        Ok(())
    }

    /// Promise 3: the host is lost with its disk; another has the volume as it was at one moment, with all that was synced.
    fn host_lost(&mut self, mut daemon: Daemon) -> Result<Daemon> {
        (self.say)("losing a host with its disk");
        let host = daemon.host.clone();
        let mut load = self.load(&host)?;
        self.write(&mut load, Self::some_writes())?;
        let synced = self.record.moment();
        host.varve(&["volumes", "sync", &self.volume])?;
        self.write(&mut load, Self::some_writes())?;
        daemon.kill()?;
        host.wipe()?;
        self.drain(load, true)?;
        let host = self.new_host();
        let daemon = host.start()?;
        self.taken_over(&host)?;
        let disk = self.disk(&host, &self.volume.clone())?;
        self.record.judge(&disk, synced)?;
        self.done.lost_with_hosts += self.record.rebase(&disk)?;
        self.done.hosts_lost += 1;
        Ok(daemon)
    }

    /// A volume that has an owner is refused, and then taken over.
    fn taken_over(&self, host: &Host) -> Result<()> {
        if host.varve(&["volumes", "attach", &self.volume]).is_ok() {
            return Err(broken("a volume that has an owner was attached without a takeover"));
        }
        host.varve(&["volumes", "attach", &self.volume, "--takeover"]).map(drop)
    }

    /// Promise 4: an owner that was paused while another took over acknowledges nothing when it goes on, and harms nothing.
    fn owner_replaced(&mut self, old: Daemon) -> Result<Daemon> {
        (self.say)("pausing an owner, and replacing it");
        let mut load = self.load(&old.host)?;
        self.write(&mut load, Self::some_writes())?;
        self.drain(load, false)?;
        let synced = self.record.moment();
        old.host.varve(&["volumes", "sync", &self.volume])?;
        let mut stale = old.host.connect(&self.volume)?;
        old.pause()?;
        let paused = Instant::now();
        let host = self.new_host();
        let daemon = host.start()?;
        self.taken_over(&host)?;
        let disk = self.disk(&host, &self.volume.clone())?;
        self.record.judge(&disk, synced)?;
        self.record.rebase(&disk)?;
        let mut load = self.load(&host)?;
        self.write(&mut load, Self::some_writes())?;
        self.drain(load, false)?;
        host.varve(&["volumes", "sync", &self.volume])?;
        let failed = |error| Error::io("NBD", &error);
        for place in 0..STALE_REQUESTS {
            stale.send_write(place << 20, &[0xee; 4096], false).map_err(failed)?;
        }
        stale.send_flush().map_err(failed)?;
        std::thread::sleep(PAUSE_NOTICED.saturating_sub(paused.elapsed()));
        old.resume()?;
        for _ in 0..=STALE_REQUESTS {
            match stale.answer().map_err(failed)? {
                Some(answer) if answer.errno == 0 => {
                    return Err(broken("an owner that had been replaced acknowledged a request"));
                }
                Some(_) => {}
                None => break,
            }
        }
        drop(stale);
        drop(old);
        let disk = self.disk(&host, &self.volume.clone())?;
        self.record.judge(&disk, self.record.moment())?;
        self.done.owners_fenced += 1;
        Ok(daemon)
    }

    /// A stop in order: another host with nothing local has everything.
    fn moved(&mut self, daemon: Daemon) -> Result<()> {
        (self.say)("moving the volume to another host");
        daemon.stop()?;
        let host = self.new_host();
        let daemon = host.start()?;
        let disk = self.disk(&host, &self.volume.clone())?;
        self.record.judge(&disk, self.record.moment())?;
        self.record.rebase(&disk)?;
        daemon.stop()?;
        self.checked(&host, &[&self.volume.clone()])?;
        self.done.moves += 1;
        Ok(())
    }

    fn checked(&mut self, host: &Host, ids: &[&String]) -> Result<()> {
        for id in ids {
            host.varve(&["check", id]).map_err(|error| broken(error.message()))?;
            self.done.checks += 1;
        }
        Ok(())
    }
}

/// The id in what a command printed: of the thing itself, or of the first of a list.
fn id_of(made: &Value) -> Result<String> {
    let one = made.as_array().and_then(|list| list.first()).unwrap_or(made);
    let id = one["id"].as_str().map(str::to_owned);
    id.ok_or_else(|| Error::invalid(format!("there is no id in what varve printed: {made}")))
}

/// Connections with the writes that are in flight on each.
struct Load {
    clients: Vec<(Client, HashMap<u64, usize>)>,
}

impl Load {
    /// Sends a write, or takes an answer and returns how many bytes it acknowledged.
    fn step(&mut self, turn: usize, record: &mut Record) -> Result<Option<u64>> {
        let failed = |error| Error::io("NBD", &error);
        let count = self.clients.len();
        let Some((client, in_flight)) = self.clients.get_mut(turn % count) else { return Ok(None) };
        if in_flight.len() < DEPTH {
            let (number, offset, data) = record.next_write();
            let durable = clock::random_u64().is_multiple_of(ONE_DURABLE_IN);
            let cookie = client.send_write(offset, &data, durable).map_err(failed)?;
            in_flight.insert(cookie, number);
            return Ok(None);
        }
        let answer = client.answer().map_err(failed)?.ok_or_else(|| broken("the daemon hung up"))?;
        match (in_flight.remove(&answer.cookie), answer.errno) {
            (Some(number), 0) => Ok(Some(record.acknowledge(number))),
            (_, errno) => Err(broken(format!("a write that makes sense was answered with errno {errno}"))),
        }
    }
}

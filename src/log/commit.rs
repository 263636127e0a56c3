//! Group commit: one thread that syncs for everybody, and gives space back. A client that sends one request at a time, alone, has its
//! sync made by the thread that serves it.
//!
//! One sync covers everything appended before it began; those who ask while it runs are covered by the next. It begins at once, without
//! waiting for more to ask: half of the clients then work while the other half's sync runs. A release
//! travels with a sync: the superblock with the new tail is written before it, and the space counts as free after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};

use super::LogReader;
use super::shared::Shared;
use crate::block_device::CommitDone;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::log::Superblock;
use crate::units::{ByteLen, LogOffset, Sequence};
use crate::work::simulated::{self, Mutation};

/// Called on the committing thread whenever space has become free, or never will: the log is poisoned. It must be quick.
pub type SpaceFreed = Arc<dyn Fn() + Send + Sync>;

#[derive(Clone, Copy, Debug)]
struct Tail {
    offset: LogOffset,
    sequence: Sequence,
    incarnation: u64,
}

#[derive(Default)]
struct Requests {
    waiting: Vec<CommitDone>,
    /// A sync is wanted though nobody waits for it.
    sync_soon: bool,
    /// The newest tail asked for, until it is durable.
    tail: Option<Tail>,
    stop: bool,
}

impl Requests {
    fn is_any(&self) -> bool {
        !self.waiting.is_empty() || self.sync_soon || self.tail.is_some() || self.stop
    }
}

/// Calls the one who syncs.
struct Bell {
    thread: Condvar,
    /// In the simulated world it is a task.
    task: Option<tokio::sync::Notify>,
}

impl Bell {
    fn new() -> Self {
        Bell { thread: Condvar::new(), task: simulated::is_here().then(tokio::sync::Notify::new) }
    }

    fn ring(&self) {
        match &self.task {
            None => {
                self.thread.notify_one();
            }
            Some(task) => task.notify_one(),
        }
    }
}

struct Core {
    shared: Arc<Shared>,
    reader: LogReader,
    requests: Mutex<Requests>,
    /// Whoever holds it syncs for everybody: the thread, or one who would only wait otherwise.
    leader: Mutex<Leader>,
    wake: Bell,
    /// True while `sync_soon` is on its way, so that an appender asks once and not with every batch.
    poked: AtomicBool,
    space_freed: Mutex<Option<SpaceFreed>>,
    /// Orders releases.
    released: Mutex<LogOffset>,
}

/// Lets the appender ask for a sync.
#[derive(Clone)]
pub(super) struct Poke(Arc<Core>);

impl Poke {
    pub fn sync_soon(&self) {
        if !self.0.poked.swap(true, Ordering::SeqCst) {
            self.0.requests.lock().sync_soon = true;
            self.0.wake.ring();
        }
    }
}

/// Makes appended records durable. Dropping it syncs once more and ends its thread.
pub struct Committer {
    core: Arc<Core>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    pub(super) fn start(shared: Arc<Shared>, reader: LogReader, superblock: Superblock) -> Result<Self> {
        let core = Arc::new(Core {
            shared,
            reader,
            requests: Mutex::default(),
            leader: Mutex::new(Leader { superblock, served: 0 }),
            wake: Bell::new(),
            poked: AtomicBool::new(false),
            space_freed: Mutex::new(None),
            released: Mutex::new(superblock.tail),
        });
        if core.wake.task.is_some() {
            drop(simulated::spawn(run_simulated(core.clone())));
            return Ok(Committer { core, thread: None });
        }
        let worker = core.clone();
        let thread = thread::Builder::new().name("log-commit".to_owned()).spawn(move || worker.run());
        let thread = thread.context(|| "starting the thread that commits the write log")?;
        Ok(Committer { core, thread: Some(thread) })
    }

    pub(super) fn poke(&self) -> Poke {
        Poke(self.core.clone())
    }

    /// Makes everything appended before this call durable, then calls `done`, on the committing thread or, if
    /// the log is poisoned already, on this one. Never waits.
    pub fn commit(&self, done: CommitDone) {
        if let Some(error) = self.core.shared.poison_error() {
            return done(Err(error));
        }
        self.core.requests.lock().waiting.push(done);
        self.core.wake.ring();
    }

    /// As [`Committer::commit`], for one who has nothing else to do until `done` is called: it syncs itself, on this thread, where nobody else
    /// is about to, which saves two wake-ups. May wait as long as a sync takes.
    pub fn commit_here(&self, done: CommitDone) {
        let core = &self.core;
        let Some(mut leader) = core.leader.try_lock().filter(|leader| leader.served <= 1) else {
            return self.commit(done);
        };
        if core.requests.lock().is_any() {
            drop(leader);
            return self.commit(done);
        }
        let result = leader.round(core, None);
        leader.served = 1;
        drop(leader);
        done(result);
    }

    /// Syncs once more, and writes nothing ever after: another log may be carrying on with the file. Appends, commits and releases fail with
    /// `Stopping` from then on; reads go on. Blocks as long as a sync takes. No append may be under way.
    pub fn close(&self) {
        let mut leader = self.core.leader.lock();
        leader.stop(&self.core);
        self.core.shared.close();
    }

    /// Everything before this is durable.
    pub fn synced_to(&self) -> LogOffset {
        self.core.shared.synced()
    }

    /// The error that poisoned the log, if one did.
    pub fn last_error(&self) -> Option<Error> {
        self.core.shared.poison_error()
    }

    /// Gives up all records before `to`, which is where a record begins or the log ends; `next` is the sequence of the first
    /// write or zero record that is kept, or of the next one appended. Returns at once; the space is free when the new tail
    /// is durable. Going back is not an error and does nothing.
    ///
    /// # Errors
    /// `Invalid` if `to` is no such place; `Io` if the log is poisoned; `Damaged`.
    pub fn release(&self, to: LogOffset, next: Sequence) -> Result<()> {
        let core = &self.core;
        if let Some(error) = core.shared.poison_error() {
            return Err(error);
        }
        let mut released = core.released.lock();
        if to <= *released {
            return Ok(());
        }
        let ends = core.shared.ends();
        let (sequence, incarnation) = if to < ends.head {
            core.reader.chain_at(to)?
        } else if to == ends.head {
            (ends.next_sequence, core.shared.incarnation)
        } else {
            return Err(Error::invalid(format!("the write log ends at {}: it cannot be released to {to}", ends.head)));
        };
        if sequence != next {
            let message = format!("at {to} the write log holds record {sequence}, not {next}: it is not released");
            return Err(Error::invalid(message));
        }
        *released = to;
        if simulated::has(Mutation::ReuseSlotEarly) {
            core.shared.set_reusable(to);
            return Ok(());
        }
        core.requests.lock().tail = Some(Tail { offset: to, sequence, incarnation });
        core.wake.ring();
        Ok(())
    }

    /// Has `hook` called whenever space has become free, or the log is poisoned; replaces the hook before it.
    pub fn on_space_freed(&self, hook: SpaceFreed) {
        *self.core.space_freed.lock() = Some(hook);
    }

    /// Bytes of the ring in use, with what is released but not durably so.
    pub fn used(&self) -> ByteLen {
        self.core.shared.used()
    }

    /// Bytes of the ring that appends can have; records that would wrap need more than their length.
    pub fn free(&self) -> ByteLen {
        self.core.shared.free()
    }

    /// Length of the ring.
    pub fn length(&self) -> ByteLen {
        self.core.shared.ring.length
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.core.requests.lock().stop = true;
        self.core.wake.ring();
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != thread::current().id()) {
            // A panic in a callback has been shown where it happened.
            let _ = thread.join();
        }
        if self.core.wake.task.is_some() {
            self.core.serve();
        }
    }
}

/// The thread, as a task of the simulated world.
async fn run_simulated(core: Arc<Core>) {
    /// Those who wait hold the volume, which holds the log: with the task, they are let go of.
    struct Ended(Arc<Core>);
    impl Drop for Ended {
        fn drop(&mut self) {
            let waiting = std::mem::take(&mut self.0.requests.lock().waiting);
            drop(waiting);
        }
    }
    let ended = Ended(core);
    let Some(bell) = &ended.0.wake.task else { return };
    loop {
        bell.notified().await;
        if ended.0.requests.lock().stop {
            return;
        }
        if ended.0.requests.lock().is_any() {
            ended.0.serve();
        }
    }
}

/// What the one who syncs must know.
struct Leader {
    /// The newest durable one.
    superblock: Superblock,
    /// How many waited for the newest sync.
    served: usize,
}

impl Core {
    fn run(&self) {
        loop {
            self.wait_for_requests();
            if self.serve() {
                return;
            }
        }
    }

    /// Syncs for all who wait. True if that was for the last time.
    fn serve(&self) -> bool {
        let mut leader = self.leader.lock();
        let (waiting, tail, stop) = {
            let mut requests = self.requests.lock();
            leader.served = requests.waiting.len();
            requests.sync_soon = false;
            (std::mem::take(&mut requests.waiting), requests.tail.take(), requests.stop)
        };
        // Before the end of the log is looked at: whoever is refused by the flag is covered by this sync.
        self.poked.store(false, Ordering::SeqCst);
        let result = leader.round(self, tail);
        if result.is_err() {
            // Nobody may wait for a commit, but somebody for space: it learns of the failure when it tries again.
            self.tell_of_space();
        }
        for done in waiting {
            done(result.clone());
        }
        if stop {
            leader.stop(self);
        }
        stop
    }

    fn tell_of_space(&self) {
        let hook = self.space_freed.lock().clone();
        if let Some(hook) = hook {
            hook();
        }
    }

    fn wait_for_requests(&self) {
        let mut requests = self.requests.lock();
        while !requests.is_any() {
            self.wake.thread.wait(&mut requests);
        }
    }
}

impl Leader {
    fn round(&mut self, core: &Core, tail: Option<Tail>) -> Result<()> {
        let shared = &core.shared;
        if let Some(error) = shared.poison_error() {
            return Err(error);
        }
        let target = shared.ends().head;
        let synced = shared.synced();
        if tail.is_none() && synced >= target {
            return Ok(());
        }
        let superblock = tail.map(|tail| Superblock {
            generation: self.superblock.generation + 1,
            tail: tail.offset,
            tail_sequence: tail.sequence,
            tail_incarnation: tail.incarnation,
            durable_to: synced.max(tail.offset),
            ..self.superblock
        });
        write_and_sync(shared, superblock.as_ref()).map_err(|error| shared.poison(&error))?;
        shared.set_synced(target);
        if let Some(superblock) = superblock {
            // The other copy follows before anything is overwritten: if one copy rots, the other must not name a tail
            // whose records are gone.
            let superblock = Superblock { generation: superblock.generation + 1, ..superblock };
            let written = shared.ring.write_superblock(&superblock).and_then(|()| shared.ring.sync());
            written.map_err(|error| shared.poison(&error))?;
            self.superblock = superblock;
            shared.set_reusable(superblock.tail);
            core.tell_of_space();
        }
        Ok(())
    }

    /// Syncs once more, and notes in the superblock up to where everything is durable, so that later damage there is recognised.
    fn stop(&mut self, core: &Core) {
        let result = self.round(core, None).and_then(|()| {
            let durable_to = core.shared.synced();
            if durable_to <= self.superblock.durable_to {
                return Ok(());
            }
            let superblock = Superblock { generation: self.superblock.generation + 1, durable_to, ..self.superblock };
            write_and_sync(&core.shared, Some(&superblock)).map_err(|error| core.shared.poison(&error))
        });
        let mut waiting = std::mem::take(&mut core.requests.lock().waiting);
        let result = result.and_then(|()| Err(Error::new(ErrorKind::Stopping, "the write log is being closed")));
        for done in waiting.drain(..) {
            done(result.clone());
        }
    }
}

fn write_and_sync(shared: &Shared, superblock: Option<&Superblock>) -> Result<()> {
    if let Some(superblock) = superblock {
        shared.ring.write_superblock(superblock)?;
    }
    shared.warm()?;
    shared.ring.sync()
}

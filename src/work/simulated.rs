//! The simulated world: time, chance and tasks of several hosts on one thread. One seed is one exact run.
//!
//! # Owns
//! The tasks, their timers, the time, and the stream of random numbers, while a [`World`] is alive on its thread. Other threads
//! know nothing of it, and neither does a daemon: without a world every question is answered by the machine.
//!
//! # Guarantees
//! - Whoever can go on is drawn by chance, one at a time, and runs until it waits. Time stands still while somebody can go on, and then
//!   jumps to the next timer. So a run takes no longer than what it computes, and depends on nothing but its seed.
//! - Each task belongs to a host, the one of the task that spawned it. A host can be paused (none of its tasks runs; time goes on),
//!   killed (its tasks are dropped where they are, as `kill -9` does it), and have its wall clock set.
//! - If nobody can go on and no timer is left, or time runs away, the run panics: a hang is found.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::sync::oneshot;

use super::Gone;
use crate::units::UnixMillis;

/// When a world begins, by the wall clock: some day in 2026.
const BEGINNING: u64 = 1_780_000_000_000;
/// A run that lasts longer than this in its own time, or takes more steps, hangs.
const TIME_MAX: Duration = Duration::from_secs(60 * 86_400);
const STEPS_MAX: u64 = 20_000_000;

/// How many worlds there are: as long as there is none, a look at this is all that the simulated world costs.
static WORLDS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static HERE: RefCell<Option<Rc<State>>> = const { RefCell::new(None) };
}

/// A host of the world. 0 is the world itself: clients, the store, whoever watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub u32);

/// A deliberate bug, by which the watchers of the world are watched. It can be had in a simulated world only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Packing leaves out zeros.
    ForgetTrim,
    /// The log's space is reused before the superblock says so.
    ReuseSlotEarly,
    /// Blocks of the log are not compared with their checksums.
    IgnoreChecksum,
    /// A pin is not noted.
    ForgetPin,
    /// Somebody else's object in the place of the next segment is taken for one's own.
    DropSealCheck,
    /// Cleaning deletes what only a pin needs.
    CleanPinned,
    /// Cleaning deletes what only the history needs.
    ForgetHistory,
    /// A fork lets go of its origin before it has copied what it has of it.
    LetGoEarly,
    /// Cleaning deletes a segment before a checkpoint does without it.
    DeleteEarly,
    /// What cleaning moved takes effect also where the map leads elsewhere by now.
    MoveOverNewer,
    /// What was postponed when a directory was emptied is applied to it all the same.
    ReviveTrimmed,
}

#[derive(Default)]
struct Host {
    is_paused: bool,
    is_dead: bool,
    /// Tasks that could go on, but for the pause.
    parked: Vec<u64>,
    /// Milliseconds that the wall clock is ahead.
    ahead: i64,
    /// What the wall clock shows if it stands still.
    stopped_at: Option<u64>,
}

struct Entry {
    host: HostId,
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    waker: Arc<TaskWaker>,
}

struct TaskWaker {
    id: u64,
    is_queued: AtomicBool,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().push(self.id);
        }
    }
}

struct State {
    random: RefCell<StdRng>,
    now: Cell<Duration>,
    ready: Arc<Mutex<Vec<u64>>>,
    tasks: RefCell<BTreeMap<u64, Entry>>,
    task_next: Cell<u64>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    timer_next: Cell<u64>,
    hosts: RefCell<BTreeMap<HostId, Host>>,
    steps: Cell<u64>,
    /// Whose code runs.
    host: Cell<HostId>,
    /// Tasks that are to be dropped as soon as they have returned.
    stopped: RefCell<BTreeSet<u64>>,
    mutation: Cell<Option<Mutation>>,
}

fn here() -> Option<Rc<State>> {
    if WORLDS.load(Ordering::Relaxed) == 0 {
        return None;
    }
    HERE.with(|here| here.borrow().clone())
}

/// True on the thread of a simulated world.
pub fn is_here() -> bool {
    WORLDS.load(Ordering::Relaxed) != 0 && HERE.with(|here| here.borrow().is_some())
}

/// True if the world of this thread has this bug.
pub fn has(mutation: Mutation) -> bool {
    WORLDS.load(Ordering::Relaxed) != 0 && here().is_some_and(|state| state.mutation.get() == Some(mutation))
}

/// The time since the beginning of the world of this thread.
pub fn elapsed() -> Option<Duration> {
    here().map(|state| state.now.get())
}

/// What the wall clock of the host shows whose code runs.
pub fn wall_clock() -> Option<UnixMillis> {
    here().map(|state| {
        let running = BEGINNING + state.now.get().as_millis() as u64;
        let hosts = state.hosts.borrow();
        let Some(host) = hosts.get(&state.host.get()) else { return UnixMillis(running) };
        UnixMillis(host.stopped_at.unwrap_or(running).saturating_add_signed(host.ahead))
    })
}

/// 64 random bits of the world of this thread.
pub fn random() -> Option<u64> {
    here().map(|state| state.random.borrow_mut().next_u64())
}

/// The host whose code runs.
pub fn host() -> Option<HostId> {
    here().map(|state| state.host.get())
}

/// A task of a world: a future of what it returns.
pub struct Join<T> {
    id: u64,
    receiver: oneshot::Receiver<T>,
}

impl<T> Join<T> {
    /// Stops the task where it is.
    pub fn abort(&self) {
        if let Some(state) = here() {
            state.stop(self.id);
        }
    }
}

impl<T> Future for Join<T> {
    type Output = Result<T, Gone>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(context).map(|done| done.map_err(|_| Gone))
    }
}

/// Runs a future as a task of the host whose code runs. Without a world, or on a dead host, it is gone at once.
pub fn spawn<F>(future: F) -> Join<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    let state = here();
    let future = async move {
        // Whoever spawned it may not care.
        let _ = sender.send(future.await);
    };
    let id = state.map_or(0, |state| state.add(state.host.get(), Box::pin(future)));
    Join { id, receiver }
}

/// Runs a job that blocks as a task that waits its turn.
pub fn spawn_blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Join<T> {
    spawn(async move {
        yield_now().await;
        job()
    })
}

/// Lets others go first, or not: as chance has it.
pub async fn yield_now() {
    let mut has_waited = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits for a time.
pub struct Sleep {
    until: Duration,
    timer: Option<(Duration, u64)>,
}

impl Sleep {
    /// From now on.
    pub fn new(duration: Duration) -> Self {
        Sleep { until: elapsed().unwrap_or_default().saturating_add(duration), timer: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(state) = here() else { return Poll::Ready(()) };
        if state.now.get() >= self.until {
            return Poll::Ready(());
        }
        let timer = self.timer.unwrap_or_else(|| {
            let number = state.timer_next.get();
            state.timer_next.set(number + 1);
            (self.until, number)
        });
        self.timer = Some(timer);
        state.timers.borrow_mut().insert(timer, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let (Some(timer), Some(state)) = (self.timer, here()) {
            let waker = state.timers.borrow_mut().remove(&timer);
            drop(waker);
        }
    }
}

impl State {
    fn add(&self, host: HostId, future: Pin<Box<dyn Future<Output = ()> + Send>>) -> u64 {
        let id = self.task_next.get();
        self.task_next.set(id + 1);
        if self.hosts.borrow().get(&host).is_some_and(|host| host.is_dead) {
            drop(future);
            return id;
        }
        let waker = Arc::new(TaskWaker { id, is_queued: AtomicBool::new(false), ready: self.ready.clone() });
        self.tasks.borrow_mut().insert(id, Entry { host, future, waker: waker.clone() });
        waker.wake();
        id
    }

    fn stop(&self, id: u64) {
        let entry = self.tasks.borrow_mut().remove(&id);
        match entry {
            Some(entry) => self.drop_as(entry),
            None => {
                self.stopped.borrow_mut().insert(id);
            }
        }
    }

    /// Drops a task as its host: what that runs belongs to it.
    fn drop_as(&self, entry: Entry) {
        let before = self.host.replace(entry.host);
        drop(entry);
        self.host.set(before);
    }

    /// Draws a task that can go on, lets time pass until there is one.
    fn draw(&self) -> u64 {
        loop {
            let mut ready = self.ready.lock();
            if !ready.is_empty() {
                let choice = self.random.borrow_mut().random_range(0..ready.len());
                return ready.swap_remove(choice);
            }
            drop(ready);
            let next = self.timers.borrow().keys().next().map(|(at, _)| *at);
            let Some(at) = next else { panic!("the simulated world hangs: nobody can go on") };
            assert!(at < TIME_MAX, "the simulated world hangs: nothing happens any more");
            self.now.set(at.max(self.now.get()));
            loop {
                let due = self.timers.borrow().keys().next().copied().filter(|(due, _)| *due <= at);
                let Some(due) = due else { break };
                let waker = self.timers.borrow_mut().remove(&due);
                waker.into_iter().for_each(Waker::wake);
            }
        }
    }

    fn step(&self) {
        let id = self.draw();
        self.steps.set(self.steps.get() + 1);
        assert!(self.steps.get() < STEPS_MAX, "the simulated world hangs: it goes round in circles");
        let taken = self.tasks.borrow_mut().remove(&id);
        let Some(mut entry) = taken else { return };
        {
            let mut hosts = self.hosts.borrow_mut();
            let host = hosts.entry(entry.host).or_default();
            if host.is_paused {
                host.parked.push(id);
                drop(hosts);
                self.tasks.borrow_mut().insert(id, entry);
                return;
            }
        }
        entry.waker.is_queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(entry.waker.clone());
        self.host.set(entry.host);
        let done = entry.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let is_dead = self.hosts.borrow().get(&entry.host).is_some_and(|host| host.is_dead);
        if done || is_dead || self.stopped.borrow_mut().remove(&id) {
            self.drop_as(entry);
        } else {
            self.tasks.borrow_mut().insert(id, entry);
        }
        self.host.set(HostId::default());
    }

    fn kill(&self, host: HostId) {
        self.hosts.borrow_mut().entry(host).or_default().is_dead = true;
        loop {
            let id = self.tasks.borrow().iter().find(|(_, entry)| entry.host == host).map(|(id, _)| *id);
            let Some(id) = id else { return };
            let entry = self.tasks.borrow_mut().remove(&id);
            entry.into_iter().for_each(|entry| self.drop_as(entry));
        }
    }
}

/// A world, on this thread until it is dropped. One thread has one at a time.
pub struct World {
    state: Rc<State>,
}

impl World {
    /// Begins a world.
    pub fn begin(seed: u64, mutation: Option<Mutation>) -> Self {
        let state = Rc::new(State {
            random: RefCell::new(StdRng::seed_from_u64(seed)),
            now: Cell::default(),
            ready: Arc::default(),
            tasks: RefCell::default(),
            task_next: Cell::new(1),
            timers: RefCell::default(),
            timer_next: Cell::default(),
            hosts: RefCell::default(),
            steps: Cell::default(),
            host: Cell::default(),
            stopped: RefCell::default(),
            mutation: Cell::new(mutation),
        });
        let before = HERE.with(|here| here.borrow_mut().replace(state.clone()));
        assert!(before.is_none(), "this thread has a world already");
        WORLDS.fetch_add(1, Ordering::Relaxed);
        World { state }
    }

    /// Runs the world until `main` has ended.
    pub fn run<T: Send + 'static>(&self, main: impl Future<Output = T> + Send + 'static) -> T {
        let mut join = spawn(main);
        loop {
            self.state.step();
            match join.receiver.try_recv() {
                Ok(done) => return done,
                Err(oneshot::error::TryRecvError::Empty) => {}
                Err(oneshot::error::TryRecvError::Closed) => panic!("the main task of the world was stopped"),
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A panic is under way with a task half run: what is left may not be in order, and must not hide it.
        let hosts: BTreeSet<HostId> = self.state.tasks.borrow().values().map(|entry| entry.host).collect();
        for host in hosts {
            self.state.kill(host);
        }
        HERE.with(|here| here.borrow_mut().take());
        WORLDS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs a future as a task of a host.
pub fn spawn_on<F>(host: HostId, future: F) -> Join<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let Some(state) = here() else { return spawn(future) };
    let before = state.host.replace(host);
    let join = spawn(future);
    state.host.set(before);
    join
}

/// None of a host's tasks runs until it is resumed.
pub fn pause(host: HostId) {
    with_host(host, |host| host.is_paused = true);
}

/// The tasks of a host go on.
pub fn resume(host: HostId) {
    let parked = with_host(host, |host| {
        host.is_paused = false;
        std::mem::take(&mut host.parked)
    });
    if let Some(state) = here() {
        state.ready.lock().extend(parked.unwrap_or_default());
    }
}

/// Drops all tasks of a host; it never runs one again. To be called from a task of another.
pub fn kill(host: HostId) {
    if let Some(state) = here() {
        state.kill(host);
    }
}

/// Sets a host's wall clock ahead by so many milliseconds, or back; `stops` says whether it stands still from now on.
pub fn set_wall_clock(host: HostId, ahead: i64, stops: bool) {
    let now = BEGINNING + elapsed().unwrap_or_default().as_millis() as u64;
    with_host(host, |host| {
        host.ahead = ahead;
        host.stopped_at = stops.then_some(now);
    });
}

fn with_host<T>(id: HostId, act: impl FnOnce(&mut Host) -> T) -> Option<T> {
    here().map(|state| act(state.hosts.borrow_mut().entry(id).or_default()))
}

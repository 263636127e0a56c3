//! The threads that pack segments.
//!
//! Packing takes cores that clients could use, and what it makes is wanted later: so threads of the lowest priority do it, with what everybody
//! else leaves. Where others leave nothing, on a host whose guests keep its cores busy, that would take for ever. So as long as segments are
//! urgent for any volume ([`Urgency`]), ordinary threads pack, for all volumes, since they share the room for uploads. A job that was begun
//! before leaves the thread that it has and begins anew: without privileges no thread gets back the priority that it has given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::work::{self, Runtime};

/// The lowest there is.
const LOWEST_PRIORITY: i32 = 19;

/// See the module's description.
pub struct Packers {
    /// `None` in the simulated world, where packing is a task.
    pools: Option<Pools>,
    /// Volumes for which segments are urgent.
    urgent: Arc<AtomicUsize>,
}

struct Pools {
    background: tokio::runtime::Runtime,
    ordinary: tokio::runtime::Runtime,
}

/// What one volume says of its segments; taken back when dropped.
pub struct Urgency {
    urgent: Arc<AtomicUsize>,
    is_urgent: bool,
}

/// Tells a job whether it may go on where it runs.
pub struct Pace {
    urgent: Arc<AtomicUsize>,
    is_background: bool,
}

impl Packers {
    /// Of each kind as many threads as there are cores.
    ///
    /// # Errors
    /// `Io` if the threads cannot be made.
    pub fn start() -> Result<Self> {
        let urgent = Arc::default();
        if work::simulated::is_here() {
            return Ok(Packers { pools: None, urgent });
        }
        let background = pool("varve-pack", || {
            // On Linux the priority belongs to the thread. Without the right to lower it, packing merely competes.
            if let Err(error) = rustix::process::setpriority_process(None, LOWEST_PRIORITY) {
                tracing::debug!(%error, "packing runs at ordinary priority");
            }
        })?;
        let ordinary = pool("varve-pack-now", || {})?;
        Ok(Packers { pools: Some(Pools { background, ordinary }), urgent })
    }

    /// The say of a volume, for which nothing is urgent yet.
    pub fn urgency(&self) -> Urgency {
        Urgency { urgent: self.urgent.clone(), is_urgent: false }
    }

    /// Runs `job`, which asks the [`Pace`] often, on a thread that fits the urgency; twice if that changes meanwhile.
    ///
    /// # Errors
    /// What the job says; `Stopping` if the threads are gone.
    pub async fn run<T: Send + 'static>(&self, job: impl Fn(&Pace) -> Result<T> + Send + Sync + 'static) -> Result<T> {
        let job = Arc::new(job);
        let pace = |is_background| Pace { urgent: self.urgent.clone(), is_background };
        let Some(pools) = &self.pools else {
            return run_on(&Runtime::Simulated, job, pace(false)).await;
        };
        if !is_urgent(&self.urgent) {
            match run_on(&pools.background.handle().clone().into(), job.clone(), pace(true)).await {
                Err(left) if left.kind() == ErrorKind::Stopping => {}
                done => return done,
            }
        }
        run_on(&pools.ordinary.handle().clone().into(), job, pace(false)).await
    }
}

impl Drop for Packers {
    fn drop(&mut self) {
        if let Some(pools) = self.pools.take() {
            pools.background.shutdown_background();
            pools.ordinary.shutdown_background();
        }
    }
}

impl Urgency {
    /// Says whether segments are urgent from now on.
    pub fn set(&mut self, is_urgent: bool) {
        match (std::mem::replace(&mut self.is_urgent, is_urgent), is_urgent) {
            (false, true) => drop(self.urgent.fetch_add(1, Ordering::AcqRel)),
            (true, false) => drop(self.urgent.fetch_sub(1, Ordering::AcqRel)),
            _ => {}
        }
    }
}

impl Drop for Urgency {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl Pace {
    /// To be called every few KiB.
    ///
    /// # Errors
    /// `Stopping` if the job is to end here, for another thread begins it anew.
    pub fn go_on(&self) -> Result<()> {
        if self.is_background && is_urgent(&self.urgent) {
            return Err(Error::new(ErrorKind::Stopping, "a thread of ordinary priority packs the segment"));
        }
        Ok(())
    }
}

fn is_urgent(urgent: &AtomicUsize) -> bool {
    urgent.load(Ordering::Acquire) > 0
}

async fn run_on<T: Send + 'static>(
    runtime: &Runtime,
    job: Arc<impl Fn(&Pace) -> Result<T> + Send + Sync + 'static>,
    pace: Pace,
) -> Result<T> {
    let done = runtime.spawn_blocking(move || job(&pace)).await;
    done.unwrap_or_else(|_| Err(Error::new(ErrorKind::Stopping, "the packing threads have stopped")))
}

fn pool(name: &str, on_start: impl Fn() + Send + Sync + 'static) -> Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(cores)
        .thread_name(name)
        .on_thread_start(on_start)
        .build()
        .map_err(|error| Error::io("cannot start the packing threads", &error))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_becomes_urgent_is_begun_anew_by_an_ordinary_thread() {
        let packers = Arc::new(Packers::start().unwrap());
        let mut urgency = packers.urgency();
        let (begun, begins) = mpsc::channel();
        let running = packers.clone();
        let job = move |pace: &Pace| {
            begun.send(()).unwrap();
            // The first time it takes until it is urgent.
            let mut goes_on = pace.go_on();
            while pace.is_background && goes_on.is_ok() {
                std::thread::yield_now();
                goes_on = pace.go_on();
            }
            goes_on?;
            Ok(std::thread::current().name().map(str::to_owned))
        };
        let run = tokio::spawn(async move { running.run(job).await });
        let begins = tokio::task::spawn_blocking(move || begins.recv().map(|()| begins)).await.unwrap().unwrap();
        urgency.set(true);
        assert_eq!(run.await.unwrap().unwrap().as_deref(), Some("varve-pack-now"));
        assert_eq!(begins.try_iter().count(), 1, "it was begun twice");
    }

    #[tokio::test]
    async fn only_what_is_urgent_gets_an_ordinary_thread() {
        let packers = Packers::start().unwrap();
        let name = |_: &Pace| Ok(std::thread::current().name().map(str::to_owned));
        assert_eq!(packers.run(name).await.unwrap().as_deref(), Some("varve-pack"));
        let (mut one, mut other) = (packers.urgency(), packers.urgency());
        one.set(true);
        one.set(true);
        other.set(true);
        drop(one);
        assert_eq!(packers.run(name).await.unwrap().as_deref(), Some("varve-pack-now"));
        other.set(false);
        assert_eq!(packers.run(name).await.unwrap().as_deref(), Some("varve-pack"));
    }

    #[tokio::test]
    async fn errors_of_a_job_are_its_callers() {
        let packers = Packers::start().unwrap();
        let done: Result<()> = packers.run(|_| Err(Error::damaged("a record"))).await;
        assert_eq!(done.unwrap_err().kind(), ErrorKind::Damaged);
    }
}

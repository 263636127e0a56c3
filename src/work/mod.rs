//! Who runs what: tasks and threads, through one seam.
//!
//! Purpose: the engine asks here for tasks and for threads to block on. A daemon gets those of tokio. The simulated world
//! ([`simulated`]) makes both into tasks of its own on one thread, and its seed decides who goes on next.
//!
//! Owns nothing: a [`Runtime`] is a name for where work goes. Guarantees: those of tokio; dropping a [`Task`] lets it run on.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

pub mod simulated;

/// The name of this host, for people.
pub fn host_name() -> String {
    match simulated::host() {
        Some(host) => format!("host-{}", host.0),
        None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    }
}

/// The number of this process, for people.
pub fn process_id() -> u32 {
    simulated::host().map_or_else(std::process::id, |host| host.0)
}

/// The task is gone: it was stopped before it came to an end, or its runtime was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// Where tasks run.
#[derive(Clone, Debug)]
pub enum Runtime {
    /// A runtime of tokio.
    Tokio(Handle),
    /// The simulated world of this thread.
    Simulated,
}

impl From<Handle> for Runtime {
    fn from(handle: Handle) -> Self {
        Runtime::Tokio(handle)
    }
}

impl Runtime {
    /// Where the caller runs. Outside of any runtime tokio's complaint is the answer, as with its own functions.
    pub fn current() -> Self {
        if simulated::is_here() { Runtime::Simulated } else { Runtime::Tokio(Handle::current()) }
    }

    /// Runs a future as a task of its own.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match self {
            Runtime::Tokio(handle) => Task::Tokio(handle.spawn(future)),
            Runtime::Simulated => Task::Simulated(simulated::spawn(future)),
        }
    }

    /// Runs a job that blocks, where it holds up nobody.
    pub fn spawn_blocking<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Task<T> {
        match self {
            Runtime::Tokio(handle) => Task::Tokio(handle.spawn_blocking(job)),
            Runtime::Simulated => Task::Simulated(simulated::spawn_blocking(job)),
        }
    }
}

/// A task that was spawned: a future of what it returns.
#[must_use = "a task that nobody waits for is let go of with drop"]
pub enum Task<T> {
    /// Of tokio.
    Tokio(JoinHandle<T>),
    /// Of the simulated world.
    Simulated(simulated::Join<T>),
}

impl<T> Task<T> {
    /// Stops the task where it is.
    pub fn abort(&self) {
        match self {
            Task::Tokio(handle) => handle.abort(),
            Task::Simulated(join) => join.abort(),
        }
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, Gone>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Task::Tokio(handle) => Pin::new(handle).poll(context).map(|done| done.map_err(|_| Gone)),
            Task::Simulated(join) => Pin::new(join).poll(context),
        }
    }
}

//! Time and chance. Every other room asks here, so that a test can tell who depends on either, and so that the simulated world
//! ([`simulated`]) can have its own of both.
//!
//! Nothing that must be correct is decided by the wall clock.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::rngs::SysRng;
use rand::{Rng, TryRng};
use rustix::time::{ClockId, clock_gettime};

use crate::units::{Token, UnixMillis};
use crate::work::simulated;

/// The wall clock, for people.
pub fn now() -> UnixMillis {
    if let Some(now) = simulated::wall_clock() {
        return now;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Time since the machine was started, counting also while it or this process was suspended.
pub fn uptime() -> Duration {
    simulated::elapsed().unwrap_or_else(|| machine_time(ClockId::Boottime))
}

/// Time that goes on while the machine runs, and stands still while it is suspended.
pub fn running() -> Duration {
    simulated::elapsed().unwrap_or_else(|| machine_time(ClockId::Monotonic))
}

fn machine_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// 64 random bits that nobody can guess, of the operating system: a generator of our own would say the same again in a machine that was
/// set back or copied while it ran.
pub fn random_u64() -> u64 {
    // The system cannot refuse once it is up; where it does, there is a generator that it has seeded.
    simulated::random().unwrap_or_else(|| SysRng.try_next_u64().unwrap_or_else(|_| rand::rng().next_u64()))
}

/// A fresh token.
pub fn random_token() -> Token {
    Token((u128::from(random_u64()) << 64) | u128::from(random_u64()))
}

/// 256 random bits that nobody can guess, for a key.
pub fn random_words() -> [u64; 4] {
    std::array::from_fn(|_| random_u64())
}

/// Waits for a time.
pub async fn sleep(duration: Duration) {
    if simulated::is_here() {
        simulated::Sleep::new(duration).await;
    } else {
        tokio::time::sleep(duration).await;
    }
}

/// The time was over before the future was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

/// Waits for a future, but no longer than `patience`.
///
/// # Errors
/// [`Elapsed`], with the future dropped.
pub async fn timeout<F: Future>(patience: Duration, future: F) -> Result<F::Output, Elapsed> {
    if !simulated::is_here() {
        return tokio::time::timeout(patience, future).await.map_err(|_| Elapsed);
    }
    tokio::select! {
        biased;
        done = future => Ok(done),
        () = simulated::Sleep::new(patience) => Err(Elapsed),
    }
}

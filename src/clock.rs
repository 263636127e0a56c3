//! Time and chance. Every other room asks here, so that a test can tell who depends on either.
//!
//! Nothing that must be correct is decided by the wall clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::Rng;
use rustix::time::{ClockId, clock_gettime};

use crate::units::{Token, UnixMillis};

/// The wall clock, for people.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Time since the machine was started, counting also while it or this process was suspended.
pub fn uptime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// 64 random bits.
pub fn random_u64() -> u64 {
    rand::rng().next_u64()
}

/// A fresh token.
pub fn random_token() -> Token {
    Token((u128::from(random_u64()) << 64) | u128::from(random_u64()))
}

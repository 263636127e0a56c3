//! Who is connected: the bounds on connections, of all together and of each origin, and the ways to end them.
//!
//! # Who is refused
//! A connection beyond the bound of its origin (a host; see [`Origin`]) is refused. One beyond the bound of all takes the place of the oldest
//! that has not yet asked for an export, of the origin that has the most of those; but not of one whose origin has no more of them than its
//! own. So no host can keep another out by connecting and saying nothing.
//!
//! Unix sockets, where file permissions say who may connect, have the bound of all alone.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::net::Shutdown;

use super::listen::Origin;
use super::pace::{Share, Watched};
use super::transport::shut;
use crate::clock;

/// Refusals are told of at most so often.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// See the module's description.
pub struct Crowd {
    connections_max: usize,
    origin_connections_max: usize,
    state: Mutex<State>,
    gone: Condvar,
}

#[derive(Default)]
struct State {
    next: u64,
    members: HashMap<u64, Member>,
    origins: HashMap<Origin, usize>,
    refused: Refused,
}

struct Member {
    socket: Arc<OwnedFd>,
    origin: Origin,
    stage: Stage,
}

enum Stage {
    /// It has not asked for an export.
    Greeting,
    /// An export is being opened for it.
    Entering,
    /// It is in the transmission phase.
    Served(Watched),
}

/// Refusals that were not told of yet.
#[derive(Default)]
struct Refused {
    count: u64,
    told_at: Option<Duration>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new(connections_max: usize, origin_connections_max: usize) -> Arc<Self> {
        Arc::new(Crowd { connections_max, origin_connections_max, state: Mutex::default(), gone: Condvar::new() })
    }

    /// The number of connections, those in their handshake included.
    pub fn count(&self) -> usize {
        self.state.lock().members.len()
    }

    /// Gives a new connection a place, unless there are too many.
    pub fn admit(self: &Arc<Self>, socket: &Arc<OwnedFd>, origin: Origin) -> Option<Place> {
        let mut state = self.state.lock();
        let of_origin = state.origins.get(&origin).copied().unwrap_or(0);
        let limit = match origin {
            Origin::Here => self.connections_max,
            Origin::Address(_) => self.origin_connections_max,
        };
        if of_origin >= limit {
            state.refuse(origin, limit, "its address has too many");
            return None;
        }
        if state.members.len() >= self.connections_max && !state.make_room(origin) {
            state.refuse(origin, self.connections_max, "there are too many");
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.members.insert(number, Member { socket: socket.clone(), origin, stage: Stage::Greeting });
        *state.origins.entry(origin).or_default() += 1;
        Some(Place { crowd: self.clone(), number })
    }

    /// Ends all connections in the directions given.
    pub fn shut_all(&self, how: Shutdown) {
        for member in self.state.lock().members.values() {
            shut(&member.socket, how);
        }
    }

    /// Cuts off the clients that keep memory from others by their own fault: see [`Pace`](super::pace::Pace).
    pub fn cut_off_stalled(&self, share: Share, patience: Duration) {
        let now = clock::uptime();
        for member in self.state.lock().members.values() {
            let Stage::Served(Watched { pace, flow }) = &member.stage else { continue };
            if pace.is_stalled(share, flow, now, patience) {
                let origin = member.origin;
                tracing::warn!(%origin, ?share, "cutting off an NBD client that keeps memory from others and does not go on");
                shut(&member.socket, Shutdown::Both);
            }
        }
    }

    /// Waits until no connection is left, and returns how many are left all the same.
    pub fn wait_for_none(&self, patience: Duration) -> usize {
        let deadline = clock::uptime() + patience;
        let mut state = self.state.lock();
        while !state.members.is_empty() {
            let left = deadline.saturating_sub(clock::uptime());
            if left.is_zero() {
                break;
            }
            self.gone.wait_for(&mut state, left);
        }
        state.members.len()
    }
}

impl State {
    /// Ends a connection that says nothing in favour of one of `origin`.
    fn make_room(&mut self, origin: Origin) -> bool {
        let mut silent: HashMap<Origin, (usize, u64)> = HashMap::new();
        for (&number, member) in &self.members {
            if matches!(member.stage, Stage::Greeting) {
                let (count, oldest) = silent.entry(member.origin).or_insert((0, number));
                *count += 1;
                *oldest = number.min(*oldest);
            }
        }
        let own = silent.get(&origin).map_or(0, |(count, _)| *count);
        let most = silent.into_values().max().filter(|(count, _)| *count > own);
        let ended = most.and_then(|(_, oldest)| self.remove(oldest));
        if let Some(member) = &ended {
            tracing::debug!(origin = %member.origin, "ending an NBD connection that says nothing in favour of another");
            shut(&member.socket, Shutdown::Both);
        }
        ended.is_some()
    }

    fn remove(&mut self, number: u64) -> Option<Member> {
        let member = self.members.remove(&number)?;
        if let Some(count) = self.origins.get_mut(&member.origin) {
            *count -= 1;
            if *count == 0 {
                self.origins.remove(&member.origin);
            }
        }
        Some(member)
    }

    fn refuse(&mut self, origin: Origin, limit: usize, reason: &str) {
        let refused = &mut self.refused;
        refused.count += 1;
        let now = clock::uptime();
        if refused.told_at.is_none_or(|at| now.saturating_sub(at) >= TELL_EVERY) {
            let count = std::mem::take(&mut refused.count);
            refused.told_at = Some(now);
            tracing::warn!(%origin, limit, count, "refusing an NBD connection: {reason}");
        }
    }
}

/// A connection's place; dropping it gives the place back.
pub struct Place {
    crowd: Arc<Crowd>,
    number: u64,
}

impl Place {
    /// The client has asked for an export.
    pub fn enters(&self) {
        self.set(Stage::Entering);
    }

    /// The client is in the transmission phase.
    pub fn is_served(&self, watched: Watched) {
        self.set(Stage::Served(watched));
    }

    fn set(&self, stage: Stage) {
        if let Some(member) = self.crowd.state.lock().members.get_mut(&self.number) {
            member.stage = stage;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.state.lock().remove(self.number);
        self.crowd.gone.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::IpAddr;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// One that comes from an address, with the client's end.
    fn arrive(crowd: &Arc<Crowd>, from: u8) -> (Option<Place>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = Arc::new(OwnedFd::from(ours));
        (crowd.admit(&socket, Origin::Address(IpAddr::from([10, 0, 0, from]))), theirs)
    }

    #[test]
    fn an_origin_has_a_bound_and_gets_its_places_back() {
        let crowd = Crowd::new(10, 2);
        let first = arrive(&crowd, 1);
        let second = arrive(&crowd, 1);
        assert!(second.0.is_some() && arrive(&crowd, 1).0.is_none());
        assert!(arrive(&crowd, 2).0.is_some());
        drop(first);
        assert!(arrive(&crowd, 1).0.is_some());
        drop(second);
        assert_eq!(crowd.count(), 0);
        assert!(crowd.state.lock().origins.is_empty());
    }

    #[test]
    fn the_silent_give_way_to_others_but_not_to_their_own_kind() {
        let crowd = Crowd::new(4, 4);
        let (entering, _theirs) = arrive(&crowd, 1);
        entering.as_ref().unwrap().enters();
        let mut silent: Vec<_> = (0..3).map(|_| arrive(&crowd, 1)).collect();
        assert!(arrive(&crowd, 1).0.is_none(), "the fourth of its origin");
        let other = arrive(&crowd, 2);
        assert!(other.0.is_some());
        assert_eq!(silent[0].1.read(&mut [0]).unwrap(), 0, "the oldest has given way");
        let third = arrive(&crowd, 2);
        assert!(third.0.is_some());
        assert_eq!(silent[1].1.read(&mut [0]).unwrap(), 0);
        assert!(arrive(&crowd, 2).0.is_none(), "nobody is worse");
        assert_eq!(crowd.count(), 4);
        drop((silent, entering, other, third));
        assert_eq!(crowd.count(), 0);
    }
}

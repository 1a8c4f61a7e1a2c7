//! How many connections may speak HTTP, and for how long. There is a fixed number of places, and each address
//! may have a share of them. Those that have been idle longest go first. Decides, with the time as an
//! argument; `listen.rs` acts.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::metrics::HttpEnded;

/// Of all places, what an address may hold once half of them are taken: one of so many.
const SHARE: usize = 4;
/// When places are short, one of so many is cleared at once, so that not each newcomer looks at all others.
const CLEARED_AT_ONCE: usize = 128;
/// After a look at all connections that found none to clear.
const CLEAR_PAUSE: Duration = Duration::from_millis(100);
/// A request on which nothing moves for so long may go when places are short. A handshake waits for Redis for 2 s.
const MOVES: Duration = Duration::from_secs(3);

/// How many connections may speak HTTP, and how long each may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many connections may speak HTTP at once.
    pub places: usize,
    /// From a connection's begin to the end of its first answer, and for each answer that is not taken.
    pub answer: Duration,
    /// Without a request after that. Balancers keep their connections longer than that of any usual server: Google's
    /// up to 600 s (<https://cloud.google.com/load-balancing/docs/https#timeout-keepalive-backends>).
    pub idle: Duration,
    /// For the one connection past all places, which may ask for the health of this instance.
    pub last: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { places: 8192, answer: seconds(60), idle: seconds(630), last: seconds(5) }
    }
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy)]
struct Activity {
    since: Instant,
    was_answered: bool,
    /// Requests whose answer has not been taken.
    requests: usize,
    /// Open WebSockets inside this HTTP/2 connection.
    tunnels: usize,
    /// The kernel takes no more; since then it has taken nothing.
    blocked: Option<Instant>,
    is_last: bool,
}

impl Activity {
    /// When this connection has to end, and why.
    fn deadline(&self, limits: &Limits) -> Option<(Instant, HttpEnded)> {
        let Self { since, was_answered, requests, tunnels, blocked, is_last } = *self;
        if tunnels > 0 {
            return None;
        }
        let unblocked = blocked.map(|blocked| (blocked + limits.answer, HttpEnded::Untaken));
        let own = match (requests, was_answered) {
            (1.., _) if is_last => (since + limits.last, HttpEnded::Untaken),
            (1.., _) => (since + limits.answer, HttpEnded::Untaken),
            (0, false) if is_last => (since + limits.last, HttpEnded::Overdue),
            (0, false) => (since + limits.answer, HttpEnded::Overdue),
            (0, true) => (since + limits.idle, HttpEnded::Idle),
        };
        Some(unblocked.filter(|unblocked| unblocked.0 < own.0).unwrap_or(own))
    }

    /// Since when it has been idle; a request counts as idle once nothing has moved on it for a while. `None`: this
    /// connection may not be cleared.
    fn quiet(&self, now: Instant) -> Option<Instant> {
        let since = self.blocked.unwrap_or(self.since);
        let quiet = if self.requests > 0 || self.blocked.is_some() { since + MOVES } else { since };
        (self.tunnels == 0 && quiet <= now).then_some(quiet)
    }
}

/// One connection that speaks HTTP.
#[derive(Debug)]
pub struct Connection {
    activity: Mutex<Activity>,
    /// It has to go: others need its place.
    pub cleared: Notify,
    number: u64,
    /// `None`: a trusted proxy.
    network: Option<IpAddr>,
}

/// A request whose answer has not been taken yet.
#[derive(Debug)]
pub struct Asking(Arc<Connection>);

/// A WebSocket inside an HTTP/2 connection.
#[derive(Debug)]
pub struct Tunnel(Arc<Connection>);

impl Connection {
    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it has to end, and why.
    #[must_use]
    pub fn deadline(&self, limits: &Limits) -> Option<(Instant, HttpEnded)> {
        self.activity().deadline(limits)
    }

    /// True for the one past all places.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.activity().is_last
    }

    /// A request has come.
    #[must_use]
    pub fn ask(self: &Arc<Self>, now: Instant) -> Asking {
        let mut activity = self.activity();
        activity.requests += 1;
        activity.since = now;
        drop(activity);
        Asking(Arc::clone(self))
    }

    /// A WebSocket inside this connection.
    #[must_use]
    pub fn tunnel(self: &Arc<Self>) -> Tunnel {
        self.activity().tunnels += 1;
        Tunnel(Arc::clone(self))
    }

    /// The kernel has taken bytes, or takes none.
    pub fn on_write(&self, has_taken: bool, now: Instant) {
        let blocked = &mut self.activity().blocked;
        *blocked = if has_taken { None } else { blocked.or(Some(now)) };
    }
}

impl Asking {
    /// Some of the answer is taken.
    pub fn on_progress(&self, now: Instant) {
        self.0.activity().since = now;
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut activity = self.0.activity();
        activity.requests -= 1;
        activity.was_answered = true;
        activity.since = Instant::now();
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let mut activity = self.0.activity();
        activity.tunnels -= 1;
        activity.since = Instant::now();
    }
}

/// The places of all addresses.
#[derive(Debug)]
pub struct Places {
    limits: Limits,
    taken: HashMap<u64, Arc<Connection>>,
    by_network: HashMap<IpAddr, usize>,
    next: u64,
    /// The place past all others is taken.
    has_last: bool,
    /// There was nothing to clear then.
    in_vain: Option<Instant>,
}

impl Places {
    /// Starts with every place free.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            taken: HashMap::new(),
            by_network: HashMap::new(),
            next: 0,
            has_last: false,
            in_vain: None,
        }
    }

    /// A connection comes, from this network or from a trusted proxy (`None`).
    ///
    /// # Errors
    /// Why it may not stay.
    pub fn enter(&mut self, network: Option<IpAddr>, now: Instant) -> Result<Arc<Connection>, HttpEnded> {
        let Limits { places, .. } = self.limits;
        // While most places are free nobody needs what an address holds: behind one there may be a whole office.
        let are_short = self.taken.len() * 2 >= places;
        let held = network.and_then(|network| self.by_network.get(&network)).copied().unwrap_or(0);
        let is_past_share = are_short && held >= places / SHARE;
        let may_stay = if is_past_share {
            // Those of its own address make room for it.
            self.clear(now, network)
        } else {
            self.taken.len() < places || self.clear(now, None)
        };
        if !may_stay && self.has_last {
            return Err(if is_past_share { HttpEnded::Share } else { HttpEnded::Full });
        }
        let is_last = !may_stay;
        self.has_last |= is_last;
        self.next += 1;
        if let Some(network) = network {
            *self.by_network.entry(network).or_default() += 1;
        }
        let connection = Arc::new(Connection {
            activity: Mutex::new(Activity {
                since: now,
                was_answered: false,
                requests: 0,
                tunnels: 0,
                blocked: None,
                is_last,
            }),
            cleared: Notify::new(),
            number: self.next,
            network,
        });
        self.taken.insert(connection.number, Arc::clone(&connection));
        Ok(connection)
    }

    /// A connection has ended, or speaks HTTP no more.
    pub fn leave(&mut self, connection: &Connection) {
        if self.taken.remove(&connection.number).is_none() {
            return;
        }
        self.has_last &= !connection.is_last();
        if let Some(network) = connection.network
            && let Some(held) = self.by_network.get_mut(&network)
        {
            *held -= 1;
            if *held == 0 {
                self.by_network.remove(&network);
            }
        }
    }

    /// Makes places free, of one network or of all: those that have been idle longest leave, then requests on which
    /// nothing moves. False when there is nothing to clear.
    pub fn clear(&mut self, now: Instant, network: Option<IpAddr>) -> bool {
        // Looking at all of them takes some 100 us: not for each of a flood.
        if self.in_vain.is_some_and(|then| now.saturating_duration_since(then) < CLEAR_PAUSE) {
            return false;
        }
        let mut quiet: Vec<_> = self
            .taken
            .values()
            .filter(|connection| network.is_none() || connection.network == network)
            .filter_map(|connection| Some((connection.activity().quiet(now)?, Arc::clone(connection))))
            .collect();
        quiet.sort_unstable_by_key(|(quiet, connection)| (*quiet, connection.number));
        quiet.truncate((self.limits.places / CLEARED_AT_ONCE).max(1));
        let is_in_vain = quiet.is_empty();
        self.in_vain = is_in_vain.then_some(now);
        for (_, connection) in quiet {
            // Its task ends soon, and its place counts as free at once.
            self.leave(&connection);
            connection.cleared.notify_one();
        }
        !is_in_vain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        places: 8,
        answer: Duration::from_secs(60),
        idle: Duration::from_secs(630),
        last: Duration::from_secs(5),
    };

    fn from(n: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, n]))
    }

    fn was_cleared(connection: &Connection) -> bool {
        let cleared = std::pin::pin!(connection.cleared.notified());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        cleared.poll(&mut context).is_ready()
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_state_of_a_connection_has_its_time() {
        let (mut places, start) = (Places::new(LIMITS), Instant::now());
        let connection = places.enter(from(1), start).unwrap();
        assert_eq!(connection.deadline(&LIMITS), Some((start + s(60), HttpEnded::Overdue)));
        let asking = connection.ask(start + s(50));
        assert_eq!(connection.deadline(&LIMITS), Some((start + s(110), HttpEnded::Untaken)));
        asking.on_progress(start + s(70));
        assert_eq!(connection.deadline(&LIMITS), Some((start + s(130), HttpEnded::Untaken)));
        connection.on_write(false, start + s(60));
        connection.on_write(false, start + s(65));
        assert_eq!(connection.deadline(&LIMITS), Some((start + s(120), HttpEnded::Untaken)));
        connection.on_write(true, start + s(80));
        assert_eq!(connection.deadline(&LIMITS), Some((start + s(130), HttpEnded::Untaken)));
        let tunnel = connection.tunnel();
        assert_eq!(connection.deadline(&LIMITS), None);
        drop((asking, tunnel));
        let (at, why) = connection.deadline(&LIMITS).unwrap();
        assert_eq!(why, HttpEnded::Idle);
        assert!((start + s(630)..Instant::now() + s(631)).contains(&at));
        // The answer is still in the kernel's way.
        connection.on_write(false, start + s(90));
        assert_eq!(connection.deadline(&LIMITS), Some((start + s(150), HttpEnded::Untaken)));
    }

    #[test]
    fn an_address_has_its_share_once_half_of_the_places_are_taken() {
        let (mut places, now) = (Places::new(LIMITS), Instant::now());
        let held: Vec<_> = (0..4).map(|_| places.enter(from(1), now).unwrap()).collect();
        let _asking: Vec<_> = held.iter().map(|connection| connection.ask(now)).collect();
        // All of them are busy: it has the place past all others, and then none.
        let last = places.enter(from(1), now).unwrap();
        assert!(last.is_last());
        assert_eq!(places.enter(from(1), now).unwrap_err(), HttpEnded::Share);
        // Other addresses and proxies are not concerned.
        let others = [places.enter(from(2), now).unwrap(), places.enter(None, now).unwrap()];
        places.leave(&last);
        places.leave(&last);
        // Later nothing has moved on its first request: that one makes room.
        let later = now + s(3);
        assert!(!places.enter(from(1), later).unwrap().is_last());
        assert!(was_cleared(&held[0]) && !others.iter().any(|connection| was_cleared(connection)));
    }

    #[test]
    fn the_longest_idle_leave_first_and_requests_that_move_stay() {
        let (mut places, start) = (Places::new(LIMITS), Instant::now());
        let at = |seconds| start + s(seconds);
        let mut held: Vec<_> = (0..8).map(|n| places.enter(from(n), at(u64::from(n))).unwrap()).collect();
        let _asking = [held[0].ask(at(10)), held[3].ask(at(12))];
        let _tunnel = held[1].tunnel();
        // As if it had been idle since 5.5 s.
        held[4].on_write(false, at(2) + s(1) / 2);
        let mut cleared = Vec::new();
        for n in 8..15 {
            held.push(places.enter(from(n), at(13) + s(1) / 2).unwrap());
            cleared.extend((0..held.len()).filter(|n| was_cleared(&held[*n])));
        }
        // Nothing moves on the first request since 10 s; the other one is new.
        assert_eq!(cleared, [2, 5, 4, 6, 7, 0, 8]);
    }

    #[test]
    fn one_place_more_is_for_a_health_check() {
        let (mut places, now) = (Places::new(LIMITS), Instant::now());
        let held: Vec<_> = (0..8).map(|n| places.enter(from(n), now).unwrap()).collect();
        let _asking: Vec<_> = held.iter().map(|connection| connection.ask(now)).collect();
        let last = places.enter(from(9), now).unwrap();
        assert!(last.is_last() && held.iter().all(|connection| !connection.is_last()));
        assert_eq!(last.deadline(&LIMITS), Some((now + s(5), HttpEnded::Overdue)));
        let _asking = last.ask(now);
        assert_eq!(places.enter(from(10), now).unwrap_err(), HttpEnded::Full);
        places.leave(&last);
        assert!(places.enter(from(10), now).unwrap().is_last());
    }
}

//! A socket's life by the clock: what is due when. The time goes in, due actions come out; the socket carries them out.
//!
//! How to drive it: report what happens (`on_*`), then call [`Session::poll`] until it answers `None`, do what it says,
//! and sleep until [`Session::deadline`]. After that `None` the deadline lies in the future.
//!
//! Longer than most files: all timers stand in one table, and what they do beside it.

use std::time::{Duration, Instant};

use super::ids::StreamId;
use super::limits::{AbsentNotices, ERROR_WINDOW, Errors, Inflow, Quotas, Verdict};
use super::protocol::{Protocol, ReconnectReason};

/// What still waits for a connection that has to go is written for at most this long.
pub const GOODBYE_LIMIT: Duration = Duration::from_secs(1);
/// A close is tried for at most this long, then TCP is reset.
pub const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// A connection to which something waits to be written, and that takes nothing of it for this long, is closed. A slow
/// receiver takes a little now and then, and stays.
pub const STALL_LIMIT: Duration = Duration::from_secs(60);
/// `expiring` is sent this long before the token expires.
pub const EXPIRING_AHEAD: Duration = Duration::from_secs(300);
/// The session listens to a client that has not answered for so long before it drops it. Perhaps it was this
/// process that stood still, and epoll has to report first that something has come.
pub const LAST_LOOK: Duration = Duration::from_millis(100);

/// What all sessions of a process have in common.
#[derive(Debug, Clone, Copy)]
pub struct SessionSettings {
    /// How often a silent connection is pinged.
    pub heartbeat: Duration,
    /// Close with 4003 when the token expires.
    pub enforce_expiry: bool,
    /// How long a socket that was asked to come back may stay.
    pub leave_within: Duration,
    /// What a client may send.
    pub quotas: Quotas,
}

/// What has its time in the life of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// A silent client is pinged, looked at once more, dropped.
    Heartbeat,
    /// `expiring` is due, then the token's end.
    Expiry,
    /// The socket has lived long enough, or has to be gone.
    Leave,
    /// The session is checked for revocation.
    Check,
    /// A message may go on.
    Parked,
    /// A ping has waited long enough for what was sent before it.
    Pong,
    /// The client takes nothing of what waits for it.
    Stall,
    /// Errors and notices are old enough to be forgotten.
    Faults,
}

impl Timer {
    /// The connection has ended; only its rest has a time. Nobody pings it any more, and a place less makes each
    /// socket smaller.
    const END: Self = Self::Heartbeat;
}

/// When each of them is due, and the first of them: each frame asks for it several times.
#[derive(Debug, Default)]
struct Timers {
    at: [Option<Instant>; 8],
    next: Option<Instant>,
}

impl Timers {
    fn set(&mut self, timer: Timer, at: impl Into<Option<Instant>>) {
        let at = at.into();
        if let Some(slot) = self.at.get_mut(timer as usize)
            && *slot != at
        {
            *slot = at;
            self.next = self.at.iter().flatten().min().copied();
        }
    }

    fn get(&self, timer: Timer) -> Option<Instant> {
        self.at.get(timer as usize).copied().flatten()
    }

    /// True once when the time has come.
    fn take_due(&mut self, timer: Timer, now: Instant) -> bool {
        let is_due = self.get(timer).is_some_and(|at| at <= now);
        if is_due {
            self.set(timer, None);
        }
        is_due
    }
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Due {
    /// Send a WebSocket ping.
    Ping,
    /// Nothing came for two heartbeats: leave the room, close with 4009.
    NoHeartbeat,
    /// The client takes nothing of what waits for it: leave the room, close with 4008.
    Stalled,
    /// Warn of the token's expiry with `expiring`.
    Expiring,
    /// Leave the room, close with 4003.
    Expired,
    /// Ask the client to move with `reconnect`.
    Reconnect {
        /// A drain, or the maximum lifetime.
        reason: ReconnectReason,
        /// When the client should connect again.
        at: Instant,
        /// When this socket ends.
        deadline: Instant,
    },
    /// Leave the room, close with 1012.
    Restart,
    /// Ask whether the session still stands.
    CheckSession,
    /// The parked message may go on.
    Unpark,
    /// Answer the ping that has waited longest.
    Pong,
    /// Drop what waits; only the goodbye is still tried.
    DropQueue,
    /// The end: reset TCP.
    Reset,
    /// The end: close TCP in order.
    Close,
}

/// What is known of a silent client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beat {
    Heard,
    Pinged,
    LastLook,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The outbox says goodbye; when `forced` only the goodbye is written.
    Goodbye {
        forced: bool,
    },
    /// The close frame is on its way, and the client's answer; `reset` when TCP is to be reset in the end.
    Closing {
        reset: bool,
    },
    /// The client speaks no WebSocket any more: what is left is written, its bytes are thrown away until it is gone.
    Broken,
}

/// Errors and notices: most connections never need them.
#[derive(Debug, Default)]
struct Faults {
    errors: Errors,
    absent: AbsentNotices,
}

/// A socket's life by the clock.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    beat: Beat,
    sent_expiring: bool,
    /// `reconnect` was sent, so that none follows.
    is_leaving: bool,
    last_byte: Instant,
    expires: Instant,
    timers: Timers,
    inflow: Inflow,
    faults: Option<Box<Faults>>,
}

impl Session {
    /// A connection that begins now. Its token ends at `expires`, its life at `lifetime`; the first check for revocation
    /// is due at `check`.
    #[must_use]
    pub fn new(
        now: Instant,
        expires: Instant,
        lifetime: Option<Instant>,
        check: Option<Instant>,
        settings: &SessionSettings,
    ) -> Self {
        let mut session = Self {
            phase: Phase::Open,
            beat: Beat::Heard,
            sent_expiring: false,
            is_leaving: false,
            last_byte: now,
            expires,
            timers: Timers::default(),
            inflow: Inflow::default(),
            faults: None,
        };
        session.timers.set(Timer::Heartbeat, now + settings.heartbeat);
        session.timers.set(Timer::Expiry, expiring_at(now, expires));
        session.timers.set(Timer::Leave, lifetime);
        session.timers.set(Timer::Check, check);
        session
    }

    /// When [`Self::poll`] should be called again.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.next
    }

    /// True until the connection has to go.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// True while the outbox, or the goodbye in it, may still be written.
    #[must_use]
    pub const fn may_write(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Goodbye { .. })
    }

    /// True when the client's bytes mean nothing any more.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.phase == Phase::Broken
    }

    /// True once `reconnect` was sent.
    #[must_use]
    pub const fn is_leaving(&self) -> bool {
        self.is_leaving
    }

    // ---- what happens

    /// The client has sent something: it is alive.
    pub fn on_bytes(&mut self, now: Instant) {
        // The timer stays: it is set anew when it is due, not with each byte.
        self.last_byte = now;
        self.beat = Beat::Heard;
    }

    /// Something waits to be written, and the kernel has just taken bytes (`progress`) or takes none; or nothing waits.
    pub fn on_output(&mut self, waits: bool, progress: bool, now: Instant) {
        if !waits {
            self.set(Timer::Stall, None);
        } else if progress || self.timers.get(Timer::Stall).is_none() {
            self.set(Timer::Stall, now + STALL_LIMIT);
        }
    }

    /// A whole message of so many bytes has come.
    pub fn on_message(&mut self, bytes: usize, now: Instant, settings: &SessionSettings) -> Verdict {
        self.inflow.on_message(bytes, &settings.quotas, now)
    }

    /// A message that was parked because of its rate goes on.
    pub fn on_unparked(&mut self, bytes: usize, now: Instant, settings: &SessionSettings) {
        self.inflow.on_held(bytes, &settings.quotas, now);
    }

    /// A ping, a pong or an empty fragment of so many bytes has come: whether it is answered, and whether more may be
    /// read.
    pub fn on_control(&mut self, bytes: usize, now: Instant, settings: &SessionSettings) -> [Verdict; 2] {
        self.inflow.on_control(bytes, &settings.quotas, now)
    }

    /// An error of the client. True when it is one too many: close with 1008.
    #[must_use]
    pub fn on_error(&mut self, now: Instant) -> bool {
        self.set(Timer::Faults, now + ERROR_WINDOW);
        self.faults.get_or_insert_default().errors.on_error(now)
    }

    /// Nobody hears a frame of this stream. True when its sender is to be notified.
    #[must_use]
    pub fn on_absent(&mut self, stream: StreamId, now: Instant) -> bool {
        self.set(Timer::Faults, now + ERROR_WINDOW);
        self.faults.get_or_insert_default().absent.is_due(stream, now)
    }

    /// A message waits until then, or until [`Self::unpark`]; one that waits already keeps its time.
    pub fn park(&mut self, until: Instant) {
        if self.timers.get(Timer::Parked).is_none() {
            self.set(Timer::Parked, until);
        }
    }

    /// The parked message has gone on.
    pub fn unpark(&mut self) {
        self.timers.set(Timer::Parked, None);
    }

    /// The ping that has waited longest is answered then at the latest; `None`: no ping waits.
    pub fn on_ping(&mut self, until: Option<Instant>) {
        self.set(Timer::Pong, until);
    }

    /// A fresh token ends then.
    pub fn on_refreshed(&mut self, expires: Instant, now: Instant) {
        self.expires = expires;
        self.sent_expiring = false;
        self.set(Timer::Expiry, expiring_at(now, expires));
    }

    /// The check for revocation is back; the next one is due then.
    pub fn on_checked(&mut self, next: Instant) {
        self.set(Timer::Check, next);
    }

    /// The instance is leaving: this connection's turn is `at`, and its end is `deadline`.
    #[must_use]
    pub fn on_drain(&mut self, at: Instant, deadline: Instant, protocol: Protocol) -> Option<Due> {
        (self.is_open() && !self.is_leaving)
            .then(|| self.ask_to_reconnect(ReconnectReason::Draining, at, deadline, protocol))
    }

    fn ask_to_reconnect(
        &mut self,
        reason: ReconnectReason,
        at: Instant,
        deadline: Instant,
        protocol: Protocol,
    ) -> Due {
        let deadline = match protocol {
            Protocol::V1 => deadline,
            // It cannot be asked: it is closed when its turn comes.
            Protocol::Classic => at,
        };
        self.is_leaving = true;
        self.timers.set(Timer::Leave, deadline);
        Due::Reconnect { reason, at, deadline }
    }

    /// The outbox says goodbye. With nothing before it (`forced`) it has the time of a close frame.
    pub fn on_goodbye(&mut self, forced: bool, now: Instant) {
        let limit = if forced { CLOSE_LIMIT } else { GOODBYE_LIMIT };
        self.end(Phase::Goodbye { forced }, now + limit);
    }

    /// The close frame is on its way. In the end TCP is reset, or closed in order.
    pub fn on_close_sent(&mut self, limit: Duration, reset: bool, now: Instant) {
        self.end(Phase::Closing { reset }, now + limit);
    }

    /// The client speaks no WebSocket any more, or has closed.
    pub fn on_broken(&mut self, now: Instant) {
        self.end(Phase::Broken, now + GOODBYE_LIMIT);
    }

    /// Once a connection has to go, only its end has a time.
    fn set(&mut self, timer: Timer, at: impl Into<Option<Instant>>) {
        if self.is_open() {
            self.timers.set(timer, at);
        }
    }

    fn end(&mut self, phase: Phase, until: Instant) {
        self.phase = phase;
        self.timers = Timers::default();
        self.timers.set(Timer::END, until);
    }

    // ---- what is due

    /// What is due now, one by one, until `None`. `is_reading`: the relay reads what this client sends; while it does
    /// not, silence proves nothing. `is_flushed`: nothing waits for the kernel.
    pub fn poll(
        &mut self,
        now: Instant,
        is_reading: bool,
        is_flushed: bool,
        protocol: Protocol,
        settings: &SessionSettings,
    ) -> Option<Due> {
        match self.phase {
            Phase::Open => self.poll_open(now, is_reading, protocol, settings),
            Phase::Goodbye { forced: false } if self.timers.take_due(Timer::END, now) => {
                self.end(Phase::Goodbye { forced: true }, now + CLOSE_LIMIT);
                Some(Due::DropQueue)
            }
            // The close frame did not even get as far as the kernel.
            Phase::Goodbye { forced: true } | Phase::Closing { reset: true }
                if self.timers.take_due(Timer::END, now) =>
            {
                Some(Due::Reset)
            }
            Phase::Closing { .. } | Phase::Broken if self.timers.take_due(Timer::END, now) => {
                Some(if is_flushed { Due::Close } else { Due::Reset })
            }
            Phase::Goodbye { .. } | Phase::Closing { .. } | Phase::Broken => None,
        }
    }

    fn poll_open(
        &mut self,
        now: Instant,
        is_reading: bool,
        protocol: Protocol,
        settings: &SessionSettings,
    ) -> Option<Due> {
        let is_due = |timers: &mut Timers, timer| timers.take_due(timer, now);
        if is_due(&mut self.timers, Timer::Heartbeat)
            && let Some(due) = self.on_heartbeat(now, is_reading, settings)
        {
            return Some(due);
        }
        if is_due(&mut self.timers, Timer::Stall) {
            return Some(Due::Stalled);
        }
        if is_due(&mut self.timers, Timer::Expiry) {
            if settings.enforce_expiry && now >= self.expires {
                return Some(Due::Expired);
            }
            if settings.enforce_expiry {
                self.timers.set(Timer::Expiry, self.expires);
            }
            if !std::mem::replace(&mut self.sent_expiring, true) {
                return Some(Due::Expiring);
            }
        }
        if is_due(&mut self.timers, Timer::Pong) {
            return Some(Due::Pong);
        }
        if is_due(&mut self.timers, Timer::Check) {
            return Some(Due::CheckSession);
        }
        if is_due(&mut self.timers, Timer::Leave) {
            return Some(if self.is_leaving {
                Due::Restart
            } else {
                let deadline = now + settings.leave_within;
                self.ask_to_reconnect(ReconnectReason::Lifetime, now, deadline, protocol)
            });
        }
        if is_due(&mut self.timers, Timer::Faults) {
            // None of them counts any more: a quiet connection must not go on holding up to 3 KB.
            self.faults = None;
        }
        is_due(&mut self.timers, Timer::Parked).then_some(Due::Unpark)
    }

    fn on_heartbeat(&mut self, now: Instant, is_reading: bool, settings: &SessionSettings) -> Option<Due> {
        let heartbeat = settings.heartbeat;
        let (beat, next, due) = match self.beat {
            Beat::Heard if now < self.last_byte + heartbeat => {
                (Beat::Heard, Some(self.last_byte + heartbeat), None)
            }
            Beat::Heard => (Beat::Pinged, Some(now + heartbeat), Some(Due::Ping)),
            Beat::Pinged | Beat::LastLook if !is_reading => (Beat::Pinged, Some(now + heartbeat), None),
            Beat::Pinged => (Beat::LastLook, Some(now + LAST_LOOK), None),
            Beat::LastLook => (Beat::LastLook, None, Some(Due::NoHeartbeat)),
        };
        self.beat = beat;
        self.timers.set(Timer::Heartbeat, next);
        due
    }
}

/// Right away if less is left of the token.
fn expiring_at(now: Instant, expires: Instant) -> Instant {
    expires.checked_sub(EXPIRING_AHEAD).unwrap_or(now).max(now)
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

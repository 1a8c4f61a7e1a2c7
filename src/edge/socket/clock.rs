//! What a socket does by the clock: heartbeats, expiry, leaving, and giving up.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::relay::close::Close;
use crate::relay::protocol::{Protocol, ReconnectReason, ServerMessage};
use crate::relay::refusal::Refusal;

use super::{
    Beat, CLOSE_LIMIT, EXPIRING_AHEAD, End, GOODBYE_LIMIT, LAST_LOOK, Leaving, Parked, STALL_LIMIT, Socket,
    State,
};

impl Socket {
    pub(super) fn on_clock(&mut self, now: Instant, cx: &mut Context<'_>) -> Result<(), End> {
        match self.state {
            State::Open => {
                self.on_open_clock(now, cx)?;
                if self.seat.with_outbox(|outbox| outbox.is_closing()) {
                    self.parked = None;
                    let slow = self.seat.with_outbox(|outbox| outbox.is_empty_but_goodbye());
                    let limit = if slow { CLOSE_LIMIT } else { GOODBYE_LIMIT };
                    self.state = State::Goodbye { until: now + limit, forced: slow };
                }
                Ok(())
            }
            State::Goodbye { until, .. } | State::Closing { until, .. } | State::Broken { until }
                if now < until =>
            {
                Ok(())
            }
            State::Goodbye { forced: false, .. } => {
                self.seat.with_outbox(|outbox| outbox.forget_waiting());
                self.state = State::Goodbye { until: now + CLOSE_LIMIT, forced: true };
                Ok(())
            }
            State::Goodbye { forced: true, .. } => {
                // The close frame did not even get as far as the kernel.
                if let Some((_, close)) = self.seat.with_outbox(|outbox| outbox.pop_goodbye()) {
                    self.hub.metrics().closed(close.code());
                }
                Err(End::Reset)
            }
            State::Closing { reset: true, .. } => Err(End::Reset),
            State::Closing { .. } | State::Broken { .. } if !self.writer.is_flushed() => Err(End::Reset),
            State::Closing { .. } | State::Broken { .. } => Err(End::Close),
        }
    }

    fn on_open_clock(&mut self, now: Instant, cx: &mut Context<'_>) -> Result<(), End> {
        let heartbeat = self.hub.settings().heartbeat;
        let silent = now.saturating_duration_since(self.last_byte);
        // While the relay itself does not read, silence proves nothing.
        let is_reading = self.parked.is_none() && self.auth.is_none();
        match self.beat {
            Beat::Heard if silent >= heartbeat => {
                self.beat = Beat::Pinged(now);
                self.writer.ping = true;
            }
            Beat::Pinged(at) if now >= at + heartbeat && is_reading => {
                self.beat = Beat::LastLook(now + LAST_LOOK);
            }
            Beat::LastLook(until) if now >= until && is_reading => {
                self.hub.metrics().heartbeats_missed.inc();
                self.hub.leave(&self.seat);
                self.seat.with_outbox(|outbox| outbox.close_now(None, Close::NoHeartbeat));
                return Ok(());
            }
            Beat::Heard | Beat::Pinged(_) | Beat::LastLook(_) => {}
        }
        if self.writer.stalled.is_some_and(|since| now >= since + STALL_LIMIT) {
            self.hub.metrics().stalled.inc();
            self.hub.leave(&self.seat);
            self.seat.with_outbox(|outbox| outbox.close_now(None, Close::TooSlow));
            return Ok(());
        }
        if now >= self.expires && self.shared.settings.enforce_expiry {
            self.leave(Close::TokenExpired);
            return Ok(());
        }
        if !self.sent_expiring && self.expires.saturating_duration_since(now) <= EXPIRING_AHEAD {
            self.sent_expiring = true;
            self.hub.control(&self.seat, &ServerMessage::Expiring { expires_at: self.expires_at });
        }
        self.answer_pings(now, cx);
        self.check_revocation(now, cx);
        let drain = self.seat.drain();
        match (self.leaving, drain) {
            (Leaving::At(Some(at)), None) if now >= at => {
                self.ask_to_reconnect(
                    ReconnectReason::Lifetime,
                    now,
                    now,
                    now + self.shared.settings.leave_within,
                );
            }
            (Leaving::At(_), Some(drain)) => {
                self.ask_to_reconnect(ReconnectReason::Draining, now, drain.at, drain.deadline);
            }
            (Leaving::Told { deadline }, _) if now >= deadline => self.leave(Close::Restart),
            (Leaving::At(_) | Leaving::Told { .. }, _) => {}
        }
        Ok(())
    }

    /// Asks again whether the session still stands; nothing waits for the answer.
    fn check_revocation(&mut self, now: Instant, cx: &mut Context<'_>) {
        let Some(revocation) = &mut self.revocation else {
            return;
        };
        if revocation.check.is_none() && now >= revocation.next {
            let (verifier, identity) = (self.shared.settings.verifier.clone(), revocation.identity.clone());
            let check = async move { verifier.check(&identity).await };
            revocation.check = Some(self.shared.settings.verify_on.spawn(check));
        }
        let Some(check) = &mut revocation.check else {
            return;
        };
        let Poll::Ready(checked) = Pin::new(check).poll(cx) else {
            return;
        };
        revocation.check = None;
        revocation.next = next_check(now, revocation.pause);
        // Without a verdict (the identity service is slow, or away) the session goes on.
        if let Ok(Err(Refusal::TokenRevoked | Refusal::UserDisabled)) = checked {
            self.leave(Close::TokenExpired);
        }
    }

    fn ask_to_reconnect(&mut self, reason: ReconnectReason, now: Instant, at: Instant, deadline: Instant) {
        let deadline = match self.seat.protocol {
            Protocol::V1 => deadline,
            // It cannot be asked: it is closed when its turn comes.
            Protocol::Classic => at,
        };
        let ms =
            |at: Instant| u64::try_from(at.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX);
        let message = ServerMessage::Reconnect { reason, in_ms: ms(at), deadline_ms: ms(deadline) };
        self.hub.control(&self.seat, &message);
        self.leaving = Leaving::Told { deadline };
        if deadline <= now {
            self.leave(Close::Restart);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Goodbye { until, .. } | State::Closing { until, .. } | State::Broken { until } => {
                Some(until)
            }
            State::Open => {
                let heartbeat = self.hub.settings().heartbeat;
                let is_reading = self.parked.is_none() && self.auth.is_none();
                let beat = match self.beat {
                    Beat::Heard => Some(self.last_byte + heartbeat),
                    Beat::Pinged(at) if is_reading => Some(at + heartbeat),
                    Beat::LastLook(until) if is_reading => Some(until),
                    Beat::Pinged(_) | Beat::LastLook(_) => None,
                };
                let expiry = match (self.sent_expiring, self.shared.settings.enforce_expiry) {
                    (false, _) => Some(self.expires.checked_sub(EXPIRING_AHEAD).unwrap_or(self.expires)),
                    (true, true) => Some(self.expires),
                    (true, false) => None,
                };
                let leaving = match self.leaving {
                    Leaving::At(at) => at,
                    Leaving::Told { deadline } => Some(deadline),
                };
                let parked = match &self.parked {
                    Some(Parked::Rate(_, until) | Parked::Marker(_, until)) => Some(*until),
                    None => None,
                };
                let checked = self.revocation.as_ref().filter(|revocation| revocation.check.is_none());
                let checked = checked.map(|revocation| revocation.next);
                let pong = self.pings.front().map(|ping| ping.until);
                let stalled = self.writer.stalled.map(|since| since + STALL_LIMIT);
                [stalled, beat, expiry, leaving, parked, checked, pong].into_iter().flatten().min()
            }
        }
    }
}

/// When a session is checked again: sockets that came together are not checked together.
pub(super) fn next_check(now: Instant, pause: Duration) -> Instant {
    now + pause.mul_f64(0.8 + 0.4 * fastrand::f64())
}

/// When a token expires, on the clock that is not set back.
pub(super) fn deadline_of(expires_at: u64, now: Instant) -> Instant {
    let left = Duration::from_secs(expires_at).saturating_sub(since_epoch());
    // A token may claim any end: a year is as good as for ever for a socket.
    now + left.min(Duration::from_secs(366 * 24 * 3600))
}

pub(super) fn since_epoch() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

pub(super) fn unix_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

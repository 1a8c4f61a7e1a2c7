//! Carries out what a session says is due.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::{End, Socket};
use crate::relay::close::Close;
use crate::relay::outbox::Outbox;
use crate::relay::protocol::{Protocol, ReconnectReason, ServerMessage};
use crate::relay::refusal::Refusal;
use crate::relay::session::Due;

impl Socket {
    /// Everything that is due now.
    pub(super) fn on_due(&mut self, now: Instant, cx: &mut Context<'_>) -> Result<(), End> {
        if self.session.is_open()
            && !self.session.is_leaving()
            && let Some(drain) = self.seat.drain()
            && let Some(due) = self.session.on_drain(drain.at, drain.deadline, self.seat.protocol)
        {
            self.carry_out(due, now)?;
        }
        while self.session.deadline().is_some_and(|at| at <= now) {
            let is_reading = self.parked.is_none() && self.auth.is_none();
            let is_flushed = self.writer.is_flushed();
            let settings = &self.shared.session;
            let Some(due) = self.session.poll(now, is_reading, is_flushed, self.seat.protocol, settings)
            else {
                break;
            };
            self.carry_out(due, now)?;
        }
        // These register this task, and so come behind what begins them.
        self.answer_pings(cx);
        self.on_checked(now, cx);
        if self.session.is_open() && self.seat.see_outbox(Outbox::is_closing) {
            self.parked = None;
            let forced = self.seat.see_outbox(Outbox::is_empty_but_goodbye);
            self.session.on_goodbye(forced, now);
        }
        Ok(())
    }

    fn carry_out(&mut self, due: Due, now: Instant) -> Result<(), End> {
        match due {
            Due::Ping => {
                self.writer.ping = true;
                self.freshness.forget_idle(self.shared.ms(now));
            }
            Due::NoHeartbeat => {
                self.hub.metrics().heartbeats_missed.inc();
                self.leave_now(Close::NoHeartbeat);
            }
            Due::Stalled => {
                self.hub.metrics().stalled.inc();
                self.leave_now(Close::TooSlow);
            }
            Due::Expiring => {
                self.hub.control(&self.seat, &ServerMessage::Expiring { expires_at: self.expires_at });
            }
            Due::Expired => self.leave(Close::TokenExpired),
            Due::Reconnect { reason, at, deadline } => self.ask_to_reconnect(reason, now, at, deadline),
            Due::Restart => self.leave(Close::Restart),
            Due::CheckSession => self.check_session(),
            Due::Unpark => self.unpark(now),
            Due::Pong => self.answer_first_ping(),
            Due::DropQueue => self.seat.with_outbox(|outbox| outbox.forget_waiting()),
            Due::Reset => {
                // Where there is still a goodbye, the close frame did not even get as far as the kernel.
                if self.session.may_write()
                    && let Some((_, close)) = self.seat.see_outbox(Outbox::goodbye)
                {
                    self.hub.metrics().closed(close.code());
                }
                return Err(End::Reset);
            }
            Due::Close => return Err(End::Close),
        }
        Ok(())
    }

    /// Asks whether the session still stands; nothing waits for the answer.
    fn check_session(&mut self) {
        if let Some(revocation) = &mut self.revocation {
            let (verifier, identity) = (self.shared.settings.verifier.clone(), revocation.identity.clone());
            let check = async move { verifier.check(&identity).await };
            revocation.check = Some(tokio::spawn(check));
        }
    }

    fn on_checked(&mut self, now: Instant, cx: &mut Context<'_>) {
        let Some(revocation) = &mut self.revocation else {
            return;
        };
        let Some(check) = &mut revocation.check else {
            return;
        };
        let Poll::Ready(checked) = Pin::new(check).poll(cx) else {
            return;
        };
        revocation.check = None;
        self.session.on_checked(next_check(now, revocation.pause));
        // Without a verdict (the identity service is slow, or away) the session goes on.
        if let Ok(Err(Refusal::TokenRevoked | Refusal::UserDisabled)) = checked {
            self.leave(Close::TokenExpired);
        }
    }

    fn ask_to_reconnect(&mut self, reason: ReconnectReason, now: Instant, at: Instant, deadline: Instant) {
        // A classic client understands no such message; its socket ends when its turn comes.
        if self.seat.protocol == Protocol::V1 {
            let ms = |at: Instant| {
                u64::try_from(at.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX)
            };
            let message = ServerMessage::Reconnect { reason, in_ms: ms(at), deadline_ms: ms(deadline) };
            self.hub.control(&self.seat, &message);
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

fn since_epoch() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

pub(super) fn unix_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

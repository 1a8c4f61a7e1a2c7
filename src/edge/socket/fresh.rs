//! Carries out what a connection's [`Freshness`] says: reports both ways, and frames that wait for their path.
//!
//! [`Freshness`]: crate::relay::freshness::Freshness

use std::time::{Duration, Instant};

use super::Socket;
use super::codec::{Message, Opcode, encode};
use crate::relay::freshness::FREE_BYTES;
use crate::relay::pacing::Kind;
use crate::relay::protocol::{BAD_REPORT, ClientMessage, Protocol, ServerMessage, is_perhaps_quiet};

/// A timer that fires within this is moved rather than let fire in vain.
const SOON: Duration = Duration::from_millis(100);

impl Socket {
    /// A message has come. True when it was a report, and nothing more is to be done.
    pub(super) fn on_message_read(&mut self, message: &Message, now: Instant) -> bool {
        let ms = self.shared.ms(now);
        let quiet = match message {
            Message::Text(text)
                if text.len() <= FREE_BYTES
                    && self.seat.protocol == Protocol::V1
                    && is_perhaps_quiet(text) =>
            {
                ClientMessage::parse(text).ok().filter(ClientMessage::is_quiet)
            }
            Message::Text(_) | Message::Binary(_) => None,
        };
        self.freshness.on_read(ms, quiet.is_none());
        let is_report = matches!(quiet, Some(ClientMessage::Received { .. } | ClientMessage::Reports { .. }));
        match quiet {
            Some(report) if is_report && self.is_paced() && self.freshness.is_free(ms) => {
                self.on_report(&report, now);
                true
            }
            Some(_) | None => false,
        }
    }

    /// The operator has not switched reports off.
    pub(super) fn is_paced(&self) -> bool {
        self.shared.is_paced
    }

    /// Handles the client's `received` or `reports`.
    pub(super) fn on_report(&mut self, report: &ClientMessage<'_>, now: Instant) {
        let ms = self.shared.ms(now);
        let taken = match *report {
            ClientMessage::Received { messages, time } => self.freshness.on_received(ms, messages, time),
            ClientMessage::Reports { every_ms } => self.freshness.on_reports(every_ms).map(|()| None),
            ClientMessage::Send { .. }
            | ClientMessage::Ack { .. }
            | ClientMessage::Signal { .. }
            | ClientMessage::Ping { .. }
            | ClientMessage::Auth { .. } => return,
        };
        match taken {
            Ok(Some(queue)) => {
                self.hub.metrics().path_queue_seconds.observe(Duration::from_secs_f64(queue / 1_000.0));
            }
            Ok(None) => {}
            Err(_) => self.on_error(&BAD_REPORT, now),
        }
    }

    /// Appends the report that is due, and the pace to ask for.
    pub(super) fn gather_reports(&mut self, batch: &mut Vec<u8>, ms: f64) {
        if let Some(report) = self.freshness.report(ms) {
            self.gather_report(batch, ms, report);
        }
        if let Some(every_ms) = self.freshness.ask() {
            self.gather_quiet(batch, ms, &ServerMessage::Reports { every_ms });
        }
    }

    fn gather_report(&mut self, batch: &mut Vec<u8>, ms: f64, (messages, read_at): (u32, f64)) {
        // A tenth of a millisecond is finer than any clock that a path leaves.
        let time = (read_at * 10.0).round() / 10.0;
        self.gather_quiet(batch, ms, &ServerMessage::Received { messages, time });
    }

    fn gather_quiet(&mut self, batch: &mut Vec<u8>, ms: f64, message: &ServerMessage<'_>) {
        let before = batch.len();
        encode(batch, Opcode::Text, &message.encode());
        self.freshness.on_sent(ms, batch.len() - before, Kind::Quiet);
    }

    /// A report that leaves with other messages costs neither a wake-up nor a write of its own.
    pub(super) fn gather_report_along(&mut self, batch: &mut Vec<u8>, ms: f64) {
        if let Some(report) = self.freshness.report_along(ms) {
            self.gather_report(batch, ms, report);
        }
    }

    /// The timer would soon wake this task for a report that has left already; the next one has its own time.
    pub(super) fn is_in_vain(&self, set_for: Instant, at: Instant, now: Instant) -> bool {
        at > set_for && self.freshness.deadline() != f64::INFINITY && set_for <= now + SOON
    }

    /// When the socket has something to do, even if nothing comes.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let (fresh, session) = (self.freshness.deadline(), self.session.deadline());
        // A look in an hour is as good as none.
        if fresh >= self.shared.ms(now) + 3_600_000.0 {
            return session;
        }
        let fresh = self.shared.instant(fresh);
        Some(session.map_or(fresh, |session| session.min(fresh)))
    }
}

impl super::Sockets {
    /// The worker's clock for freshness, in milliseconds.
    pub(super) fn ms(&self, now: Instant) -> f64 {
        let (then, ms) = self.converted.get();
        if then == now {
            return ms;
        }
        let ms = now.saturating_duration_since(self.origin).as_secs_f64() * 1_000.0;
        self.converted.set((now, ms));
        ms
    }

    /// Not before that time.
    fn instant(&self, ms: f64) -> Instant {
        // By way of i64, for which the processor has an instruction.
        #[expect(clippy::cast_possible_truncation, reason = "it saturates")]
        let ns = ((ms * 1e6) as i64).max(0).cast_unsigned();
        self.origin + Duration::from_nanos(ns + 1_000)
    }
}

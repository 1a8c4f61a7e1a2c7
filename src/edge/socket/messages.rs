//! What a client's messages mean: rates, errors, and the way to the other device.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::auth::{Identity, unix_now};
use crate::hub::{Barrier, MARKER_LIMIT, Sent};
use crate::metrics::Dropped;
use crate::relay::close::Close;
use crate::relay::ids::StreamId;
use crate::relay::limits::Verdict;
use crate::relay::parcel::Parcel;
use crate::relay::protocol::{
    ACK_UNSUPPORTED, BACKPLANE_BLOCKED, ClientMessage, EMPTY_FRAME, Feature, MessageError, PEER_ABSENT,
    Protocol, REPORTS_OFF, SIGNAL_IS_OFF, ServerMessage,
};
use crate::relay::refusal::Refusal;

use super::codec::Message;
use super::due::{deadline_of, unix_ms};
use super::{Parked, Socket, label_of};

/// A ping is answered after this time even if what was sent before it is still on its way.
const PONG_LIMIT: Duration = Duration::from_secs(1);
/// Pings that may wait for their answer; nothing is read behind the last of them.
pub(super) const PINGS: usize = 16;

const RATE_LIMITED: MessageError = MessageError::new(
    "rate_limited",
    "more a second than limits.messages_per_second or limits.bytes_per_second",
);

/// An application-level ping that waits behind what its client sent before it.
pub(super) struct Ping {
    id: Option<String>,
    /// None: only earlier pings are before it.
    barrier: Option<Barrier>,
    pub(super) until: Instant,
}

impl Socket {
    /// A message that took so many bytes.
    pub(super) fn on_client_message(&mut self, message: Message, bytes: usize, now: Instant) {
        if self.on_message_read(&message, now) {
            return;
        }
        match self.session.on_message(bytes, now, &self.shared.session) {
            Verdict::Pass => self.process(message, now),
            Verdict::Limited { until, report } => {
                if report {
                    self.send_error(&RATE_LIMITED);
                }
                if self.is_volatile(&message) {
                    self.hub.metrics().dropped(Dropped::Rate, 1);
                } else {
                    self.park(Parked::Rate(Some(message), bytes), until);
                }
            }
            Verdict::Abuse => self.leave(Close::Policy),
        }
    }

    /// A ping, a pong or an empty fragment of so many bytes: true when it is to be answered.
    pub(super) fn on_control_frame(&mut self, bytes: usize, now: Instant) -> bool {
        let [answered, read_on] = self.session.on_control(bytes, now, &self.shared.session);
        if let Verdict::Limited { until, .. } = read_on {
            self.park(Parked::Rate(None, 0), until);
        }
        if matches!(answered, Verdict::Limited { .. }) {
            self.hub.metrics().control_frames_limited.inc();
        }
        if [answered, read_on].contains(&Verdict::Abuse) {
            self.leave(Close::Policy);
        }
        answered == Verdict::Pass
    }

    fn park(&mut self, parked: Parked, until: Instant) {
        self.parked = Some(parked);
        self.session.park(until);
    }

    fn is_volatile(&self, message: &Message) -> bool {
        let Message::Binary(bytes) = message else {
            return false;
        };
        let stream = bytes.first().copied().map(StreamId);
        self.seat.protocol == Protocol::V1 && stream.is_some_and(|stream| !stream.is_reliable())
    }

    /// The parked message has waited long enough.
    pub(super) fn unpark(&mut self, now: Instant) {
        match self.parked.take() {
            Some(Parked::Rate(Some(message), bytes)) => {
                self.session.on_unparked(bytes, now, &self.shared.session);
                self.process(message, now);
            }
            Some(Parked::Marker(parcel)) => {
                self.hub.on_marker_overdue(&self.seat);
                self.forward(parcel, now);
            }
            Some(Parked::Rate(None, _)) | None => {}
        }
    }

    /// True while a message is parked. One that waits for the backplane may go on before its time: then the seat is
    /// woken.
    pub(super) fn is_parked(&mut self, now: Instant) -> bool {
        match self.parked.take() {
            Some(Parked::Marker(parcel)) => {
                self.forward(parcel, now);
                if self.parked.is_none() {
                    self.session.unpark();
                }
            }
            parked => self.parked = parked,
        }
        self.parked.is_some()
    }

    fn process(&mut self, message: Message, now: Instant) {
        #[cfg(conformance)]
        let Some(message) = self.echo(message, now) else {
            return;
        };
        match (message, self.seat.protocol) {
            (Message::Binary(bytes), Protocol::V1) if bytes.is_empty() => self.on_error(&EMPTY_FRAME, now),
            (Message::Binary(bytes), Protocol::V1) => self.forward(Parcel::Frame(bytes), now),
            (Message::Text(text), Protocol::V1) => self.on_text(&text, now),
            (Message::Binary(bytes), Protocol::Classic) => {
                let text = match String::from_utf8_lossy(&bytes) {
                    std::borrow::Cow::Borrowed(_) => bytes,
                    std::borrow::Cow::Owned(text) => Bytes::from(text),
                };
                self.forward(Parcel::Text { text, label: self.seat.label() }, now);
            }
            (Message::Text(text), Protocol::Classic) => {
                self.forward(Parcel::Text { text: text.into(), label: self.seat.label() }, now);
            }
        }
    }

    fn on_text(&mut self, text: &str, now: Instant) {
        match ClientMessage::parse(text) {
            Ok(ClientMessage::Send { data, id, ack }) => {
                let data = Bytes::copy_from_slice(data.as_bytes());
                self.forward(Parcel::Send { data, id, label: self.seat.label(), ack }, now);
            }
            Ok(ClientMessage::Ack { id }) => self.forward(Parcel::Ack { id }, now),
            Ok(ClientMessage::Signal { to, data, id }) => {
                if !self.hub.settings().features.contains(&Feature::Signal) {
                    return self.on_error(&MessageError { id, ..SIGNAL_IS_OFF }, now);
                }
                let data = Bytes::copy_from_slice(data.as_bytes());
                self.forward(Parcel::Signal { to, data, id }, now);
            }
            Ok(report @ (ClientMessage::Received { .. } | ClientMessage::Reports { .. })) => {
                if self.is_paced() {
                    self.on_report(&report, now);
                } else {
                    self.on_error(&REPORTS_OFF, now);
                }
            }
            Ok(ClientMessage::Ping { id }) => {
                // A client that moves sends no more reliable messages, pings, and opens its next socket after
                // the pong. Its last PUBLISH here and the claim there travel to Redis on two instances'
                // connections. Without the barrier they would race. What arrives behind the claim is fenced
                // off as an overwritten connection's.
                match self.hub.barrier(&self.seat) {
                    None if self.pings.is_empty() => self.pong(id.as_deref()),
                    barrier => {
                        self.pings.push_back(Ping { id, barrier, until: now + PONG_LIMIT });
                        self.note_first_ping();
                    }
                }
            }
            Ok(ClientMessage::Auth { token }) => {
                // In a task of its own: it may have to wait for the issuer, and this socket goes on.
                let verifier = self.shared.settings.verifier.clone();
                let verify = async move { verifier.verify(&token, unix_now()).await };
                self.auth = Some(tokio::spawn(verify));
            }
            Err(error) => self.on_error(&error, now),
        }
    }

    fn pong(&self, id: Option<&str>) {
        self.hub.control(&self.seat, &ServerMessage::Pong { id, time: unix_ms() });
    }

    /// Answers the pings before which nothing is on its way any more.
    pub(super) fn answer_pings(&mut self, cx: &mut Context<'_>) {
        while let Some(Ping { barrier, .. }) = self.pings.front_mut() {
            if barrier.as_mut().is_some_and(|barrier| Pin::new(barrier).poll(cx).is_pending()) {
                return;
            }
            self.answer_first_ping();
        }
    }

    /// Answers the ping that has waited longest.
    pub(super) fn answer_first_ping(&mut self) {
        if let Some(Ping { id, .. }) = self.pings.pop_front() {
            self.pong(id.as_deref());
        }
        if self.pings.is_empty() {
            self.pings = VecDeque::new();
        }
        self.note_first_ping();
    }

    fn note_first_ping(&mut self) {
        self.session.on_ping(self.pings.front().map(|ping| ping.until));
    }

    /// A frame's way out of this socket.
    fn forward(&mut self, mut parcel: Parcel, now: Instant) {
        let failed = match self.hub.send(&self.seat, &mut parcel, now) {
            Sent::Done | Sent::Overwritten => return,
            Sent::Wait => {
                return self.park(Parked::Marker(parcel), now + MARKER_LIMIT);
            }
            Sent::Absent => PEER_ABSENT,
            Sent::AckUnsupported => ACK_UNSUPPORTED,
            Sent::Refused => BACKPLANE_BLOCKED,
        };
        match parcel {
            Parcel::Frame(bytes) => {
                let stream = bytes.first().copied().map(StreamId).filter(|stream| stream.is_reliable());
                let due = |stream| self.session.on_absent(stream, now);
                if stream.is_some_and(due) {
                    self.send_error(&failed);
                }
            }
            Parcel::Send { id, .. } | Parcel::Signal { id, .. } => {
                self.send_error(&MessageError { id, ..failed });
            }
            // Whoever waits for an `acked` has a time limit, and a classic client knows no errors.
            Parcel::Text { .. } | Parcel::Ack { .. } | Parcel::Pressure(_) => {}
        }
    }

    /// An error of the client: sent as `error`, and counted.
    pub(super) fn on_error(&mut self, error: &MessageError, now: Instant) {
        self.send_error(error);
        if self.session.on_error(now) {
            self.leave(Close::Policy);
        }
    }

    fn send_error(&mut self, error: &MessageError) {
        self.hub.send_error(&self.seat, error);
    }

    pub(super) fn on_verified(&mut self, verified: Result<Identity, Refusal>, now: Instant) {
        match verified {
            Ok(identity) if identity.user == self.seat.user => {
                self.expires_at = identity.expires_at;
                self.session.on_refreshed(deadline_of(identity.expires_at, now), now);
                self.seat.set_label(label_of(&identity));
                if let Some(revocation) = &mut self.revocation {
                    revocation.identity = identity.clone();
                }
                let expires_at = identity.expires_at;
                self.hub.control(&self.seat, &ServerMessage::Authenticated { expires_at });
            }
            Ok(_) => self.on_error(&MessageError::new("wrong_user", "the token is another user's"), now),
            Err(refusal) => {
                let error = MessageError::new(refusal.code(), refusal.detail());
                if refusal.status() == 503 {
                    // Not the client's mistake.
                    self.send_error(&error);
                } else {
                    self.on_error(&error, now);
                }
            }
        }
    }
}

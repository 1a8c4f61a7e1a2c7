//! From the stream to the messages of a client.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead as _, ReadBuf};
use tracing::debug;

use super::codec::{Broken, Item, is_close_code};
use super::messages::PINGS;
use super::{Beat, End, GOODBYE_LIMIT, Socket, State};
use crate::relay::close::Close;
use crate::relay::limits::{CONTROL, Verdict};
use crate::relay::refusal::Refusal;

impl Socket {
    /// True when something was read and more may be there.
    pub(super) fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        if matches!(self.state, State::Broken { .. }) {
            return self.discard(cx, now);
        }
        if let Some(auth) = &mut self.auth {
            let Poll::Ready(verified) = Pin::new(auth).poll(cx) else {
                return Ok(false);
            };
            self.auth = None;
            self.on_verified(verified.unwrap_or(Err(Refusal::KeysUnavailable)), now);
            return Ok(true);
        }
        if self.pings.len() >= PINGS || self.parked.is_some() && !self.retry_parked(now) {
            return Ok(false);
        }
        match self.decoder.decode(self.shared.settings.message_bytes) {
            Ok(Some(item)) => {
                self.on_item(item, cx, now)?;
                Ok(true)
            }
            Ok(None) => match self.receive(cx, now)? {
                Poll::Ready(0) => Err(End::Close),
                Poll::Ready(_) => Ok(true),
                Poll::Pending => Ok(false),
            },
            Err(broken) => self.on_broken(broken, cx, now),
        }
    }

    /// Reads once, behind what is not decoded yet.
    fn receive(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Poll<usize>, End> {
        self.decoder.lend(|| self.shared.buffers.read());
        let mut room = ReadBuf::new(self.decoder.room());
        match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
            Poll::Ready(Ok(())) => {
                let length = room.filled().len();
                self.decoder.on_read(length);
                if length > 0 {
                    self.last_byte = now;
                    self.beat = Beat::Heard;
                }
                Ok(Poll::Ready(length))
            }
            Poll::Ready(Err(_)) => Err(End::Close),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    fn on_item(&mut self, item: Item, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        match item {
            Item::Close(code) => return self.on_close(code, cx, now),
            // After its goodbye a connection says nothing that counts.
            _ if !matches!(self.state, State::Open) => {}
            Item::Message(message) => self.on_client_message(message, now),
            Item::Ping(payload) => {
                if self.may_control(now) {
                    self.writer.pong(payload);
                }
            }
            Item::Pong | Item::EmptyFragment => {
                let _ = self.may_control(now);
            }
        }
        Ok(())
    }

    /// One more ping, pong or empty fragment: false when it is past the rate, and not answered.
    fn may_control(&mut self, now: Instant) -> bool {
        match self.control.on(1, CONTROL, now) {
            Verdict::Pass => true,
            Verdict::Limited { .. } => {
                self.hub.metrics().control_frames_limited.inc();
                false
            }
            Verdict::Abuse => {
                self.leave(Close::Policy);
                false
            }
        }
    }

    /// The client closes. What is half written is finished; its close is answered with the same code.
    fn on_close(&mut self, code: Option<u16>, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        if matches!(self.state, State::Open | State::Goodbye { .. }) {
            let close = match code {
                Some(code) if !is_close_code(code) => Close::ProtocolError,
                code => Close::Answer(code.unwrap_or(1005)),
            };
            // What waits for this client is of no use any more.
            self.hub.leave(&self.seat);
            self.seat.with_outbox(|outbox| outbox.close_now(None, close));
            self.close_behind_unsent(cx, now, close)?;
        }
        self.is_answered = true;
        if self.writer.is_flushed() {
            return Err(End::Close);
        }
        // Its bytes are read on, as closing a TCP socket with unread bytes would reset it.
        self.state = State::Broken { until: now + GOODBYE_LIMIT };
        Ok(())
    }

    fn on_broken(&mut self, broken: Broken, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let close = match broken {
            Broken::Protocol(_) => Close::ProtocolError,
            Broken::Utf8 => Close::InvalidUtf8,
            Broken::TooBig(_) => Close::TooBig,
        };
        debug!(connection.id = %self.seat.connection, error = %broken, "the client broke the WebSocket protocol");
        self.hub.leave(&self.seat);
        if matches!(self.state, State::Open | State::Goodbye { .. }) {
            self.seat.with_outbox(|outbox| outbox.forget_waiting());
            self.close_behind_unsent(cx, now, close)?;
        }
        // Its bytes are read on: closing a TCP socket with unread bytes would reset it, and the close frame
        // with the reason could be lost (RFC 1122 section 4.2.2.13).
        self.state = State::Broken { until: now + GOODBYE_LIMIT };
        Ok(true)
    }

    fn discard(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        self.decoder.forget();
        match self.receive(cx, now)? {
            Poll::Ready(0) if self.writer.is_flushed() => Err(End::Close),
            // What is left to write goes on, until then or until there is nobody to take it.
            Poll::Ready(0) | Poll::Pending => Ok(false),
            Poll::Ready(_) => Ok(true),
        }
    }
}

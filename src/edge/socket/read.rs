//! From the stream to the messages of a client.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead as _, ReadBuf};
use tracing::debug;

use super::codec::{Broken, Item, is_close_code};
use super::messages::PINGS;
use super::{End, Socket};
use crate::relay::close::Close;
use crate::relay::refusal::Refusal;

impl Socket {
    /// True when something was read and more may be there.
    pub(super) fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        if self.session.is_broken() {
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
        if self.pings.len() >= PINGS || self.is_parked(now) {
            return Ok(false);
        }
        let mut has_received = false;
        loop {
            match self.decoder.decode(self.shared.settings.message_bytes) {
                Ok(Some(item)) => {
                    self.on_item(item, cx, now)?;
                    return Ok(true);
                }
                // Once: others have their turn before a client goes on that sends small pieces.
                Ok(None) if has_received => return Ok(true),
                Ok(None) => match self.receive(cx, now)? {
                    Poll::Ready(0) => return Err(End::Close),
                    Poll::Ready(_) => has_received = true,
                    Poll::Pending => return Ok(false),
                },
                Err(broken) => return self.on_broken(broken, cx, now),
            }
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
                    self.session.on_bytes(now);
                }
                Ok(Poll::Ready(length))
            }
            Poll::Ready(Err(_)) => Err(End::Close),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    fn on_item(&mut self, item: Item, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        let bytes = self.decoder.taken();
        match item {
            Item::Close(code) => return self.on_close(code, cx, now),
            // After its goodbye a connection says nothing that counts.
            _ if !self.session.is_open() => {}
            Item::Message(message) => self.on_client_message(message, bytes, now),
            Item::Ping(payload) => {
                if self.on_control_frame(bytes, now) {
                    self.writer.pong(payload);
                }
            }
            Item::Pong | Item::EmptyFragment => {
                self.on_control_frame(bytes, now);
            }
        }
        Ok(())
    }

    /// The client closes. What is half written is finished; its close is answered with the same code.
    fn on_close(&mut self, code: Option<u16>, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        if self.session.may_write() {
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
        self.session.on_broken(now);
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
        if self.session.may_write() {
            self.seat.with_outbox(|outbox| outbox.forget_waiting());
            self.close_behind_unsent(cx, now, close)?;
        }
        // The session reads its bytes on. To close a TCP socket with unread bytes would reset it, and the
        // close frame with the reason could be lost (RFC 1122 section 4.2.2.13).
        self.session.on_broken(now);
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

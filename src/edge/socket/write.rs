//! From the outbox to the stream.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::AsyncWrite as _;

use super::codec::{Opcode, encode, encode_close};
use super::{End, Socket};
use crate::edge::stream::Stream;
use crate::relay::close::Close;
use crate::relay::outbox::{Kind, Outbox};
use crate::relay::session::{CLOSE_LIMIT, GOODBYE_LIMIT};

/// Messages are gathered up to this size, then written at once.
const BATCH: usize = 16 * 1024;

/// What was encoded and is not written yet: at most a batch and one message.
#[derive(Default)]
pub(super) struct Writer {
    unsent: Box<[u8]>,
    /// Of it, so much has been written meanwhile.
    written: usize,
    /// The answer to the latest ping; RFC 6455 section 5.5.3 asks for no other.
    pong: Option<Bytes>,
    /// The client has been silent, and is to be pinged.
    pub(super) ping: bool,
}

impl Writer {
    /// True when everything has left.
    pub(super) fn is_flushed(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Nothing of the relay's own is to be said.
    fn is_silent(&self) -> bool {
        self.pong.is_none() && !self.ping
    }

    /// Bytes that wait for the kernel.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent.len()
    }

    /// Answers a ping; an answer that still waits is of no use any more.
    pub(super) fn pong(&mut self, payload: Bytes) {
        self.pong = Some(payload);
    }

    /// Appends what the relay says on its own.
    fn control_frames(&mut self, out: &mut Vec<u8>) {
        if let Some(payload) = self.pong.take() {
            encode(out, Opcode::Pong, &payload);
        }
        if std::mem::take(&mut self.ping) {
            encode(out, Opcode::Ping, &[]);
        }
    }

    /// Writes what waits; how much of it the kernel has taken.
    fn flush(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Result<usize, End> {
        let waiting = self.unsent.get(self.written..).unwrap_or_default();
        let (length, written) = (waiting.len(), write_to(stream, cx, waiting)?);
        self.written += written;
        if written == length {
            self.clear();
        }
        Ok(written)
    }

    /// Writes this; what the kernel does not take waits. How much it has taken.
    fn write(&mut self, stream: &mut Stream, cx: &mut Context<'_>, bytes: &[u8]) -> Result<usize, End> {
        let written = write_to(stream, cx, bytes)?;
        self.clear();
        if let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            self.unsent = rest.into();
        }
        Ok(written)
    }

    fn clear(&mut self) {
        (self.unsent, self.written) = (Box::default(), 0);
    }
}

/// How much of it the stream takes now.
fn write_to(stream: &mut Stream, cx: &mut Context<'_>, bytes: &[u8]) -> Result<usize, End> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        // Neither TCP nor a stream of HTTP/2 keeps anything that had to be flushed.
        match Pin::new(&mut *stream).poll_write(cx, rest) {
            Poll::Ready(Ok(0) | Err(_)) => return Err(End::Close),
            Poll::Ready(Ok(length)) => written += length,
            Poll::Pending => break,
        }
    }
    Ok(written)
}

impl Socket {
    /// Writes what waits, as far as the kernel takes it.
    pub(super) fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        loop {
            // While the kernel takes no more, frames stay in the outbox, where newer ones replace them.
            if !self.writer.is_flushed() {
                let written = self.writer.flush(&mut self.stream, cx)?;
                self.note_written(written, now);
                if !self.writer.is_flushed() {
                    return Ok(());
                }
            }
            if self.is_answered {
                return Err(End::Close);
            }
            if !self.session.may_write() || self.has_nothing_to_write(now) {
                return Ok(());
            }
            let mut batch = self.shared.buffers.write();
            self.gather(&mut batch, now);
            let (length, written) = (batch.len(), self.writer.write(&mut self.stream, cx, &batch));
            self.shared.buffers.return_write(batch);
            if length == 0 || self.note_written(written?, now) < length {
                return Ok(());
            }
        }
    }

    /// Most looks find nothing: a frame makes several, of the socket that it comes from and of the one that it goes to.
    fn has_nothing_to_write(&self, now: Instant) -> bool {
        self.writer.is_silent()
            && self.seat.see_outbox(Outbox::is_idle)
            && self.freshness.is_quiet(self.shared.ms(now))
    }

    fn note_written(&mut self, written: usize, now: Instant) -> usize {
        self.session.on_output(!self.writer.is_flushed(), written > 0, now);
        written
    }

    /// The next batch: control frames, then what waits in the outbox, then the goodbye.
    fn gather(&mut self, batch: &mut Vec<u8>, now: Instant) {
        self.writer.control_frames(batch);
        let ms = self.shared.ms(now);
        self.gather_reports(batch, ms);
        let (held, reports) = (self.seat.see_outbox(Outbox::held), batch.len());
        self.freshness.begin_look();
        while batch.len() < BATCH && !self.seat.see_outbox(Outbox::is_drained) {
            let freshness = &mut self.freshness;
            let next = self.seat.with_outbox(|outbox| {
                // What is still written after a goodbye has no time to wait.
                let is_closing = outbox.is_closing();
                outbox.pop_if(|kind| is_closing || freshness.may_leave(ms, kind))
            });
            let Some((kind, message)) = next else {
                break;
            };
            let before = batch.len();
            if let Some(since) = message.since {
                self.hub.metrics().relay_seconds.observe(now.saturating_duration_since(since));
            }
            let opcode = match message.kind {
                Kind::Text => Opcode::Text,
                Kind::Binary => Opcode::Binary,
            };
            encode(batch, opcode, &message.bytes);
            self.freshness.on_sent(ms, batch.len() - before, kind);
        }
        if batch.len() > reports {
            self.gather_report_along(batch, ms);
        }
        if held == 0 {
            self.hub.metrics().frames_held(self.seat.see_outbox(Outbox::held));
        }
        self.hub.on_written(&self.seat);
        if let Some((last, close)) = self.seat.see_outbox(Outbox::goodbye) {
            if let Some(last) = last {
                encode(batch, Opcode::Text, &last);
            }
            self.close(batch, now, close);
        }
    }

    /// Appends the close frame; the client's answer is awaited for a while.
    fn close(&mut self, batch: &mut Vec<u8>, now: Instant, close: Close) {
        let reset = matches!(close, Close::TooSlow | Close::NoHeartbeat);
        let limit = if matches!(close, Close::Restart) { GOODBYE_LIMIT } else { CLOSE_LIMIT };
        self.session.on_close_sent(limit, reset, now);
        self.hub.metrics().closed(close.code());
        encode_close(batch, close.code(), close.reason());
    }

    /// Sends a close frame behind what is half written, and nothing else.
    pub(super) fn close_behind_unsent(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        close: Close,
    ) -> Result<(), End> {
        let mut batch = self.shared.buffers.write();
        batch.extend_from_slice(self.writer.unsent.get(self.writer.written..).unwrap_or_default());
        self.close(&mut batch, now, close);
        let written = self.writer.write(&mut self.stream, cx, &batch);
        self.shared.buffers.return_write(batch);
        self.note_written(written?, now);
        Ok(())
    }

    /// The connection leaves its room now, and what waits for it is dropped: the close is next.
    pub(super) fn leave_now(&mut self, close: Close) {
        self.hub.leave(&self.seat);
        self.seat.with_outbox(|outbox| outbox.close_now(None, close));
    }

    /// The connection leaves its room now; what waits for it is written for a while, then the close.
    pub(super) fn leave(&mut self, close: Close) {
        self.hub.leave(&self.seat);
        self.seat.close(None, close);
    }
}

//! One WebSocket of the generator: written to by the pacer, read by its own task, on one thread.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::client::TlsStream;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message};

use super::dialect::{Dialect, Heard};
use crate::relay::pacing::Reporter;

/// What one read takes at most: a few frames, and little enough for tens of thousands of sockets.
const READ_BUFFER: usize = 4096;
/// What may wait when the relay reads too slowly; more is not sent.
const WRITE_LIMIT: usize = 1 << 20;

/// The bytes under a WebSocket.
#[derive(Debug)]
pub(super) enum Stream {
    /// A socket of `ws://`, without TLS.
    Plain(TcpStream),
    /// A socket of `wss://`; boxed, because TLS's state is large.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            // Not through the runtime's budget: the pacer writes to many sockets in one turn, and a budget
            // that is used up would look like a full socket.
            Self::Plain(stream) => match stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    Pin::new(stream).poll_write(cx, bytes)
                }
                result => Poll::Ready(result),
            },
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }
}

/// Reads no faster than a link would let bytes through.
#[derive(Debug)]
struct Throttle {
    bytes_per_second: f64,
    budget: f64,
    filled: Instant,
    wait: Pin<Box<Sleep>>,
}

impl Throttle {
    /// Of this many bytes a second.
    fn new(bytes_per_second: usize) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let bytes_per_second = bytes_per_second as f64;
        Self {
            bytes_per_second,
            budget: 0.0,
            filled: Instant::now(),
            wait: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }

    /// How many bytes may be read now, once there are as many as a small packet.
    fn poll_budget(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        const PACKET: f64 = 256.0;
        if self.bytes_per_second == 0.0 {
            return Poll::Pending;
        }
        loop {
            let now = Instant::now();
            let since = now.saturating_duration_since(self.filled).as_secs_f64();
            // What is not used in time is gone, as on a link.
            let burst = PACKET.max(self.bytes_per_second / 20.0);
            self.budget = (self.budget + since * self.bytes_per_second).min(burst);
            self.filled = now;
            if self.budget >= PACKET {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "small and positive"
                )]
                return Poll::Ready(self.budget as usize);
            }
            let wait = Duration::from_secs_f64((PACKET - self.budget) / self.bytes_per_second);
            self.wait.as_mut().reset(now + wait);
            ready!(self.wait.as_mut().poll(cx));
        }
    }

    fn spend(&mut self, bytes: usize) {
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let bytes = bytes as f64;
        self.budget -= bytes;
    }
}

/// The stream as tungstenite wants it; what would wait is `WouldBlock` and wakes `cx`.
struct Blocking<'a, 'b> {
    stream: &'a mut Stream,
    throttle: Option<&'a mut Throttle>,
    cx: &'a mut Context<'b>,
}

fn or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Read for Blocking<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = match &mut self.throttle {
            Some(throttle) => or_would_block(throttle.poll_budget(self.cx).map(Ok))?,
            None => buffer.len(),
        };
        let most = most.min(buffer.len());
        let mut buffer = ReadBuf::new(buffer.split_at_mut(most).0);
        or_would_block(self.stream.poll_read(self.cx, &mut buffer))?;
        let read = buffer.filled().len();
        if let Some(throttle) = &mut self.throttle {
            throttle.spend(read);
        }
        Ok(read)
    }
}

impl Write for Blocking<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_would_block(self.stream.poll_write(self.cx, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        or_would_block(self.stream.poll_flush(self.cx))
    }
}

/// How a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    /// The relay's close code; 1006 when the connection broke off (RFC 6455 section 7.1.5).
    pub(super) code: u16,
}

/// The socket takes nothing any more, or too much waits already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotSent;

#[derive(Debug)]
struct Io {
    stream: Stream,
    codec: WebSocketContext,
    dialect: &'static dyn Dialect,
    throttle: Option<Throttle>,
    /// What the relay is to hear of what was read; only where it wants to.
    reports: Option<Box<Reports>>,
}

#[derive(Debug)]
struct Reports {
    law: Reporter,
    origin: Instant,
    wait: Pin<Box<Sleep>>,
}

impl Reports {
    fn ms(&self) -> f64 {
        self.origin.elapsed().as_secs_f64() * 1_000.0
    }

    /// The report that is due; else its time wakes the task.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> Option<Message> {
        loop {
            if let Some((messages, time)) = self.law.report(self.ms()) {
                let text = format!(r#"{{"type":"received","messages":{messages},"time":{time:.1}}}"#);
                return Some(Message::Text(text.into()));
            }
            if self.law.due_at() == f64::INFINITY {
                return None;
            }
            let at =
                self.origin + Duration::from_secs_f64(self.law.due_at() / 1_000.0) + Duration::from_micros(1);
            if self.wait.deadline() != at {
                self.wait.as_mut().reset(at);
            }
            if self.wait.as_mut().poll(cx).is_pending() {
                return None;
            }
        }
    }
}

/// One open WebSocket: a reader, and a writer that never waits.
#[derive(Debug)]
pub(super) struct Socket {
    io: RefCell<Io>,
    /// The reading task, which also writes what did not fit.
    reader: RefCell<Option<Waker>>,
    blocked: Cell<bool>,
}

impl Socket {
    /// After the handshake; `early` came with it.
    pub(super) fn new(stream: Stream, early: Vec<u8>, dialect: &'static dyn Dialect) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_LIMIT);
        let codec = WebSocketContext::from_partially_read(early, Role::Client, Some(config));
        Self {
            io: RefCell::new(Io { stream, codec, dialect, throttle: None, reports: None }),
            reader: RefCell::new(None),
            blocked: Cell::new(false),
        }
    }

    /// `welcome` was read, and the relay wants to hear of it and of what follows.
    pub(super) fn start_reports(&self) {
        let mut reports = Box::new(Reports {
            law: Reporter::new(0),
            origin: Instant::now(),
            wait: Box::pin(tokio::time::sleep(Duration::ZERO)),
        });
        reports.law.on_read(0.0, true);
        self.io.borrow_mut().reports = Some(reports);
    }

    /// From now on reads no more than this many bytes a second; 0 is nothing at all.
    pub(super) fn throttle(&self, bytes_per_second: usize) {
        self.io.borrow_mut().throttle = Some(Throttle::new(bytes_per_second));
    }

    /// Sends a frame, as [`Self::send`] does.
    ///
    /// # Errors
    /// [`NotSent`]
    pub(super) fn send_frame(&self, frame: Bytes) -> Result<(), NotSent> {
        let dialect = self.io.borrow().dialect;
        if let Some(announcement) = dialect.announcement() {
            self.send(announcement)?;
        }
        self.send(Message::Binary(frame))
    }

    /// Asks for an answer.
    ///
    /// # Errors
    /// [`NotSent`]
    pub(super) fn ping(&self) -> Result<(), NotSent> {
        let dialect = self.io.borrow().dialect;
        self.send(dialect.ping())
    }

    /// Sends now what the kernel takes; the rest follows as soon as it takes more.
    ///
    /// # Errors
    /// [`NotSent`]; the reader learns why the socket ended.
    pub(super) fn send(&self, message: Message) -> Result<(), NotSent> {
        let mut io = self.io.borrow_mut();
        let Io { stream, codec, .. } = &mut *io;
        // The reader is woken instead, as only it may wait on the stream.
        let mut cx = Context::from_waker(Waker::noop());
        let mut stream = Blocking { stream, throttle: None, cx: &mut cx };
        let result = codec.write(&mut stream, message).and_then(|()| codec.flush(&mut stream));
        match result {
            Ok(()) => Ok(()),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked.set(true);
                self.wake_reader();
                Ok(())
            }
            Err(_) => {
                self.wake_reader();
                Err(NotSent)
            }
        }
    }

    fn wake_reader(&self) {
        if let Some(reader) = self.reader.borrow().as_ref() {
            reader.wake_by_ref();
        }
    }

    /// Says goodbye; the answer is read like any other message.
    pub(super) fn close(&self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // Already closed is as good.
        let _ = self.send(Message::Close(Some(frame)));
    }

    /// The next message but pings, pongs and heartbeats; only one task may wait for it.
    pub(super) async fn receive(&self) -> Result<Heard, Ended> {
        std::future::poll_fn(|cx| self.poll_receive(cx)).await
    }

    fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<Result<Heard, Ended>> {
        {
            let mut reader = self.reader.borrow_mut();
            if !reader.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *reader = Some(cx.waker().clone());
            }
        }
        let mut io = self.io.borrow_mut();
        let Io { stream, codec, dialect, throttle, reports } = &mut *io;
        let mut stream = Blocking { stream, throttle: throttle.as_mut(), cx };
        if self.blocked.replace(false)
            && let Err(Error::Io(error)) = codec.flush(&mut stream)
            && error.kind() == io::ErrorKind::WouldBlock
        {
            self.blocked.set(true);
        }
        loop {
            if let Some(report) = reports.as_mut().and_then(|reports| reports.poll_due(stream.cx)) {
                // As with a heartbeat.
                let _ = codec.write(&mut stream, report);
                if codec.flush(&mut stream).is_err() {
                    self.blocked.set(true);
                }
            }
            match codec.read(&mut stream) {
                Ok(Message::Close(frame)) => {
                    // The answer to it, as far as the kernel takes it.
                    let _ = codec.flush(&mut stream);
                    let code = frame.map_or(1005, |frame| frame.code.into());
                    return Poll::Ready(Err(Ended { code }));
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                    let heard = match message {
                        Message::Binary(frame) => Heard::Frame(frame),
                        text => dialect.read(text.to_text().unwrap_or_default()),
                    };
                    match heard {
                        heard if on_heard(reports, &heard) => {}
                        Heard::Heartbeat(answer) => {
                            // What does not fit is written before the next read; an end is read then.
                            let _ = codec.write(&mut stream, answer);
                            if codec.flush(&mut stream).is_err() {
                                self.blocked.set(true);
                            }
                        }
                        heard => return Poll::Ready(Ok(heard)),
                    }
                }
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Poll::Pending;
                }
                Err(_) => return Poll::Ready(Err(Ended { code: 1006 })),
            }
        }
    }
}

/// Counts a message; true when it concerned nothing but reports.
fn on_heard(reports: &mut Option<Box<Reports>>, heard: &Heard) -> bool {
    let Some(reports) = reports else {
        return matches!(heard, Heard::Reports(_) | Heard::Received);
    };
    let now = reports.ms();
    let is_quiet = matches!(heard, Heard::Reports(_) | Heard::Received | Heard::Pong);
    reports.law.on_read(now, !is_quiet);
    if let Heard::Reports(every_ms) = heard {
        reports.law.set_pace(*every_ms);
    }
    matches!(heard, Heard::Reports(_) | Heard::Received)
}

//! One WebSocket of the generator: written to by the pacer, read by its own task, on one thread.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message};

use super::dialect::{Dialect, Heard};
use super::result::count;
use crate::relay::pacing::Reporter;

/// The small packet that a thin link lets through at a time, in bytes.
const PACKET: f64 = 256.0;
/// What a reader that comes late may take at once. What is not used by then is gone, as on a link.
const BURST: Duration = Duration::from_millis(50);

/// The bytes under a WebSocket, which a thin link lets through no faster than it can.
#[derive(Debug)]
pub(super) struct Link {
    tcp: Take<TcpStream>,
    thin: Option<Thin>,
}

#[derive(Debug)]
struct Thin {
    bytes_per_second: f64,
    packet: Duration,
    filled: Instant,
    next: Pin<Box<Sleep>>,
}

impl Link {
    /// A link without a limit.
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp: tcp.take(u64::MAX), thin: None }
    }

    fn throttle(&mut self, bytes_per_second: usize) {
        // A link that stands still would carry its first packet in years.
        let bytes_per_second = count(bytes_per_second as u64).max(1e-6);
        let packet = Duration::from_secs_f64(PACKET / bytes_per_second);
        let next = Box::pin(sleep(packet));
        self.thin = Some(Thin { bytes_per_second, packet, filled: Instant::now(), next });
        self.tcp.set_limit(0);
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { tcp, thin } = self.get_mut();
        while let Some(thin) = thin.as_mut().filter(|_| tcp.limit() == 0) {
            ready!(thin.next.as_mut().poll(cx));
            let earned = thin.filled.elapsed().min(thin.packet.max(BURST)).as_secs_f64();
            tcp.set_limit((earned * thin.bytes_per_second) as u64);
            thin.filled = Instant::now();
            thin.next.as_mut().reset(thin.filled + thin.packet);
        }
        Pin::new(tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let tcp = self.get_mut().tcp.get_mut();
        // Not through the runtime's budget. The pacer writes to many sockets in one turn, and a budget that
        // is used up would look like a full socket.
        match tcp.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Pin::new(tcp).poll_write(cx, bytes),
            result => Poll::Ready(result),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().tcp.get_mut()).poll_shutdown(cx)
    }
}

/// How a socket ended: the relay's close code; 1006 when the connection broke off (RFC 6455 section 7.1.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended(pub(super) u16);

pub(super) type WebSocket = WebSocketStream<MaybeTlsStream<Link>>;

/// What the relay is to hear of what was read, since when, and what wakes for it.
type Reports = (Reporter, Instant, Pin<Box<Sleep>>);

/// One open WebSocket: a reader, and a writer that never waits.
#[derive(Debug)]
pub(super) struct Socket {
    ws: RefCell<WebSocket>,
    dialect: &'static dyn Dialect,
    /// Only where the relay wants them.
    reports: RefCell<Option<Reports>>,
}

impl Socket {
    /// A socket after its handshake.
    pub(super) fn new(ws: WebSocket, dialect: &'static dyn Dialect) -> Self {
        Self { ws: RefCell::new(ws), dialect, reports: RefCell::default() }
    }

    /// `welcome` was read, and the relay wants to hear of it and of what follows.
    pub(super) fn start_reports(&self) {
        let mut law = Reporter::new(0);
        law.on_read(0.0, true);
        self.reports.replace(Some((law, Instant::now(), Box::pin(sleep(Duration::ZERO)))));
    }

    /// From now on reads no more than this many bytes a second; 0 is nothing at all.
    pub(super) fn throttle(&self, bytes_per_second: usize) {
        match self.ws.borrow_mut().get_mut() {
            MaybeTlsStream::Plain(link) => link.throttle(bytes_per_second),
            MaybeTlsStream::Rustls(tls) => tls.get_mut().0.throttle(bytes_per_second),
            _ => {}
        }
    }

    /// Sends a frame, as [`Self::send`] does.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(super) fn send_frame(&self, frame: Bytes) -> Result<(), Error> {
        self.dialect.announcement().map_or(Ok(()), |announcement| self.send(announcement))?;
        self.send(Message::Binary(frame))
    }

    /// Asks for an answer.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(super) fn ping(&self) -> Result<(), Error> {
        self.send(self.dialect.ping())
    }

    /// Sends now what the kernel takes; the rest follows as soon as it takes more.
    ///
    /// # Errors
    /// The socket takes nothing any more, or too much waits already; the reader learns why the socket ended.
    pub(super) fn send(&self, message: Message) -> Result<(), Error> {
        // A full socket wakes the reader when it takes more, and the reader flushes.
        Pin::new(&mut *self.ws.borrow_mut()).start_send(message)
    }

    /// Says goodbye; the answer is read like any other message.
    pub(super) fn close(&self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // Already closed is as good.
        let _ = self.send(Message::Close(Some(frame)));
    }

    /// The next message but pings, pongs and heartbeats; only one task may wait for it.
    pub(super) async fn receive(&self) -> Result<Heard, Ended> {
        loop {
            let heard = match poll_fn(|cx| self.poll_next(cx)).await {
                Some(Ok(Message::Binary(frame))) => Heard::Frame(frame),
                Some(Ok(Message::Text(text))) => self.dialect.read(&text),
                Some(Ok(Message::Close(frame))) => {
                    // The answer to it, as far as the kernel takes it.
                    let _ = poll_fn(|cx| Poll::Ready(self.poll_next(cx))).await;
                    return Err(Ended(frame.map_or(1005, |frame| frame.code.into())));
                }
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return Err(Ended(1006)),
            };
            let of_reports = matches!(heard, Heard::Reports { .. } | Heard::Received);
            if let Some((law, origin, _)) = &mut *self.reports.borrow_mut() {
                law.on_read(ms_since(*origin), !of_reports && heard != Heard::Pong);
                if let Heard::Reports { every_ms } = heard {
                    law.set_pace(every_ms);
                }
            }
            match heard {
                // A socket that does not take the answer has ended, which the next read says.
                Heard::Heartbeat(answer) => drop(self.send(answer)),
                heard if !of_reports => return Ok(heard),
                _ => {}
            }
        }
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, Error>>> {
        while self.poll_report(cx).is_ready() {}
        let mut ws = self.ws.borrow_mut();
        let mut ws = Pin::new(&mut *ws);
        // What did not fit before; an error of it is read below.
        let _ = ws.as_mut().poll_flush(cx);
        ws.poll_next(cx)
    }

    /// Sends a report once it is due.
    fn poll_report(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut reports = self.reports.borrow_mut();
        let Some((law, origin, wait)) = reports.as_mut().filter(|(law, ..)| law.due_at().is_finite()) else {
            return Poll::Pending;
        };
        let due = *origin + Duration::from_secs_f64(law.due_at() / 1_000.0) + Duration::from_micros(1);
        if wait.deadline() != due {
            wait.as_mut().reset(due);
        }
        ready!(wait.as_mut().poll(cx));
        if let Some((messages, time)) = law.report(ms_since(*origin)) {
            let text = format!(r#"{{"type":"received","messages":{messages},"time":{time:.1}}}"#);
            // As with a heartbeat.
            let _ = self.send(Message::Text(text.into()));
        }
        Poll::Ready(())
    }
}

fn ms_since(origin: Instant) -> f64 {
    origin.elapsed().as_secs_f64() * 1_000.0
}

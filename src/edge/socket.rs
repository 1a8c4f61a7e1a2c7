//! One socket, one task, one loop: writes what waits in the outbox, reads what the client sends, and
//! watches the clock. Reading never waits for writing: a client that does not read may still send.

use std::io::{self, Read, Write};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;
use tokio::time::Sleep;
use tracing::debug;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message, Utf8Bytes};

use super::stream::Stream;
use crate::auth::{Identity, Verifier, unix_now};
use crate::hub::{Hub, MARKER_LIMIT, Seat, Sent};
use crate::metrics::Dropped;
use crate::relay::close::Close;
use crate::relay::ids::StreamId;
use crate::relay::limits::{AbsentNotices, Errors, Rate, Verdict};
use crate::relay::outbox::Outgoing;
use crate::relay::protocol::{
    ClientMessage, EMPTY_FRAME, MessageError, Parcel, Protocol, ReconnectReason, ServerMessage,
};
use crate::relay::refusal::Refusal;

/// Bytes that one read may bring; also what an idle connection keeps.
const READ_BUFFER: usize = 1024;
/// Messages are gathered up to this size, then written at once.
const BATCH: usize = 16 * 1024;
/// Messages that one turn may read before other sockets get theirs.
const READS_A_TURN: usize = 32;
/// What still waits for a connection that has to go is written for at most this long.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);
/// A close is tried for at most this long, then TCP is reset.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// `expiring` is told this long before the token expires.
const EXPIRING_AHEAD: Duration = Duration::from_secs(300);

/// What every socket of a worker needs to know.
pub struct SocketSettings {
    /// Verifies fresh tokens.
    pub verifier: Verifier,
    /// Where they are verified, so that no socket waits for it.
    pub verify_on: tokio::runtime::Handle,
    /// The largest message.
    pub message_bytes: usize,
    /// Close with 4003 when the token expires.
    pub enforce_expiry: bool,
    /// Ask sockets to come back after this time.
    pub max_lifetime: Option<Duration>,
    /// How long a socket that was asked to come back may stay.
    pub leave_within: Duration,
}

/// A socket and everything that only its own task knows.
pub struct Socket {
    hub: Rc<Hub>,
    seat: Rc<Seat>,
    settings: Rc<SocketSettings>,
    stream: Stream,
    codec: WebSocketContext,
    /// Everything that was given to the codec has left.
    flushed: bool,
    state: State,
    /// A message that may not go on yet.
    held: Option<Held>,
    rate: Rate,
    /// Errors and notices: most connections never need them.
    faults: Option<Box<Faults>>,
    auth: Option<PendingAuth>,
    last_byte: Instant,
    pinged: bool,
    expires_at: u64,
    expires: Instant,
    told_expiring: bool,
    leaving: Leaving,
}

type PendingAuth = JoinHandle<Result<Identity, Refusal>>;

#[derive(Default)]
struct Faults {
    errors: Errors,
    absent: AbsentNotices,
}

#[derive(Clone, Copy)]
enum State {
    Open,
    /// The outbox says goodbye: what waits is written until then, and when `forced` only the goodbye is.
    Goodbye {
        until: Instant,
        forced: bool,
    },
    /// The close frame is on its way, and the client's answer; `reset` when TCP is to be reset in the end.
    Closing {
        until: Instant,
        reset: bool,
    },
    /// The client speaks no WebSocket any more: its bytes are thrown away until it is gone.
    Broken {
        until: Instant,
    },
}

/// A message that may not go on yet; nothing is read behind it.
enum Held {
    /// Past the rate: until its turn comes.
    Rate(Message, Instant),
    /// Behind what travels through the backplane.
    Marker(Parcel, Instant),
}

#[derive(Clone, Copy)]
enum Leaving {
    /// Not yet: at this time, or never.
    At(Option<Instant>),
    /// It was told to come back; it is closed with 1012 then.
    Told { deadline: Instant },
}

/// Why a task's loop ends.
enum End {
    /// TCP is closed in order.
    Close,
    /// TCP is reset: what the kernel still has to send is not worth waiting for.
    Reset,
}

impl Socket {
    /// A socket for a connection that has joined its room. `early` are bytes that came behind the handshake.
    #[must_use]
    pub fn new(
        hub: Rc<Hub>,
        seat: Rc<Seat>,
        settings: Rc<SocketSettings>,
        stream: Stream,
        early: &[u8],
        expires_at: u64,
    ) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(BATCH)
            // The outbox bounds what waits; at most a batch and one message are in the codec.
            .max_write_buffer_size(usize::MAX)
            .max_message_size(Some(settings.message_bytes))
            .max_frame_size(Some(settings.message_bytes));
        let codec =
            WebSocketContext::from_partially_read(early.to_vec(), Role::Server, Some(config));
        let now = Instant::now();
        // Sockets that came together do not leave together.
        let lifetime = settings
            .max_lifetime
            .map(|life| now + life.mul_f64(0.9 + 0.1 * fastrand::f64()));
        let rate = Rate::new(hub.settings().limits.messages_per_second);
        Self {
            hub,
            seat,
            settings,
            stream,
            codec,
            flushed: true,
            state: State::Open,
            held: None,
            rate,
            faults: None,
            auth: None,
            last_byte: now,
            pinged: false,
            expires_at,
            expires: deadline_of(expires_at, now),
            told_expiring: false,
            leaving: Leaving::At(lifetime),
        }
    }

    /// Runs until the socket is closed.
    pub async fn run(mut self) {
        let mut sleep = pin!(tokio::time::sleep(Duration::ZERO));
        let end = std::future::poll_fn(|cx| self.poll(cx, sleep.as_mut())).await;
        // In this order: leave the room, then let the socket go; telling other instances goes on beside.
        self.hub.leave(&self.seat);
        self.hub
            .metrics()
            .disconnected(self.seat.device, self.seat.protocol);
        match end {
            End::Close => {}
            End::Reset => self.stream.reset_on_drop(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<End> {
        self.seat.register(cx);
        let mut turns = READS_A_TURN;
        loop {
            let now = Instant::now();
            if let Err(end) = self.on_clock(now, cx) {
                return Poll::Ready(end);
            }
            // Control messages, pongs and frames leave before anything is read.
            if let Err(end) = self.write(cx, now) {
                return Poll::Ready(end);
            }
            match self.read(cx, now) {
                Ok(true) if turns > 0 => turns -= 1,
                Ok(true) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(false) => {
                    // Reading may have left something to write (a pong, an answer).
                    if let Err(end) = self.write(cx, now) {
                        return Poll::Ready(end);
                    }
                    let Some(at) = self.next_deadline() else {
                        return Poll::Pending;
                    };
                    // The timer is only moved when it would be late; it looks again when it fires early.
                    if at < sleep.deadline().into_std() || sleep.is_elapsed() {
                        sleep.as_mut().reset(at.into());
                    }
                    if sleep.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Err(end) => return Poll::Ready(end),
            }
        }
    }

    // ---- writing

    fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        loop {
            // While the kernel takes no more, frames stay in the outbox, where newer ones replace them.
            if !self.flushed && !self.flush(cx)? {
                return Ok(());
            }
            if matches!(self.state, State::Closing { .. } | State::Broken { .. }) {
                return Ok(());
            }
            let mut batch = 0;
            while batch < BATCH {
                let Some(due) = self.seat.with_outbox(|outbox| outbox.pop()) else {
                    break;
                };
                batch += due.message.len() + 1;
                if let Some(since) = due.since {
                    self.hub
                        .metrics()
                        .relay_seconds
                        .observe(now.saturating_duration_since(since));
                }
                self.encode(cx, due.message)?;
            }
            if batch > 0 {
                continue;
            }
            let Some((last, close)) = self.seat.with_outbox(|outbox| outbox.pop_goodbye()) else {
                return Ok(());
            };
            if let Some(last) = last {
                self.encode(cx, Outgoing::Text(last))?;
            }
            self.close(cx, now, close)?;
        }
    }

    fn encode(&mut self, cx: &mut Context<'_>, message: Outgoing) -> Result<(), End> {
        let message = match message {
            Outgoing::Binary(bytes) => Message::Binary(bytes),
            Outgoing::Text(bytes) => match Utf8Bytes::try_from(bytes) {
                Ok(text) => Message::Text(text),
                Err(_) => return Ok(()),
            },
        };
        self.flushed = false;
        let written = self.codec.write(
            &mut Io {
                stream: &mut self.stream,
                cx,
                read: false,
            },
            message,
        );
        would_block(written).map(|_| ()).map_err(|_| End::Close)
    }

    /// True when everything has left.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let flushed = self.codec.flush(&mut Io {
            stream: &mut self.stream,
            cx,
            read: false,
        });
        self.flushed = would_block(flushed).map_err(|_| End::Close)?;
        Ok(self.flushed)
    }

    /// Sends the close frame; the client's answer is awaited for a while.
    fn close(&mut self, cx: &mut Context<'_>, now: Instant, close: Close) -> Result<(), End> {
        let reset = matches!(close, Close::TooSlow | Close::NoHeartbeat);
        let limit = if matches!(close, Close::Restart) {
            GOODBYE_LIMIT
        } else {
            CLOSE_LIMIT
        };
        self.state = State::Closing {
            until: now + limit,
            reset,
        };
        self.hub.metrics().closed(close.code());
        let frame = CloseFrame {
            code: CloseCode::from(close.code()),
            reason: close.reason().into(),
        };
        self.flushed = false;
        let closed = self.codec.close(
            &mut Io {
                stream: &mut self.stream,
                cx,
                read: false,
            },
            Some(frame),
        );
        self.flushed = would_block(closed).map_err(|_| End::Close)?;
        Ok(())
    }

    /// The connection leaves its room now; what waits for it is written for a while, then the close.
    fn leave(&mut self, close: Close) {
        self.hub.leave(&self.seat);
        self.seat.close(None, close);
    }

    // ---- reading

    /// True when something was read and more may be there.
    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        if matches!(self.state, State::Broken { .. }) {
            return self.discard(cx);
        }
        if let Some(auth) = &mut self.auth {
            let Poll::Ready(verified) = Pin::new(auth).poll(cx) else {
                return Ok(false);
            };
            self.auth = None;
            self.on_verified(verified.unwrap_or(Err(Refusal::KeysUnavailable)), now);
            return Ok(true);
        }
        if self.held.is_some() && !self.retry_held(now) {
            return Ok(false);
        }
        let mut io = Io {
            stream: &mut self.stream,
            cx,
            read: false,
        };
        let read = self.codec.read(&mut io);
        if io.read {
            self.last_byte = now;
            self.pinged = false;
        }
        match read {
            Ok(message) => {
                if matches!(self.state, State::Open) {
                    self.on_message(message, now);
                }
                Ok(true)
            }
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => self.on_read_error(&error, cx, now),
        }
    }

    fn on_read_error(
        &mut self,
        error: &Error,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Result<bool, End> {
        let close = match error {
            Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
                return Err(End::Close);
            }
            Error::Protocol(_) | Error::AttackAttempt => Close::ProtocolError,
            Error::Utf8(_) => Close::InvalidUtf8,
            Error::Capacity(_) => Close::TooBig,
            _ => return Err(End::Close),
        };
        debug!(connection.id = %self.seat.connection, %error, "the client broke the WebSocket protocol");
        self.hub.leave(&self.seat);
        if matches!(self.state, State::Open | State::Goodbye { .. }) {
            self.seat.with_outbox(|outbox| outbox.forget_waiting());
            self.close(cx, now, close)?;
        }
        // Its bytes are read on: closing a TCP socket with unread bytes would reset it, and the close frame
        // with the reason could be lost (RFC 1122 section 4.2.2.13).
        self.state = State::Broken {
            until: now + GOODBYE_LIMIT,
        };
        Ok(true)
    }

    fn discard(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut scratch = [0; 4096];
        let mut io = Io {
            stream: &mut self.stream,
            cx,
            read: false,
        };
        match io.read(&mut scratch) {
            Ok(0) => Err(End::Close),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(_) => Err(End::Close),
        }
    }

    fn on_message(&mut self, message: Message, now: Instant) {
        match &message {
            Message::Binary(_) | Message::Text(_) => {}
            Message::Close(frame) => {
                // The codec answers with the same code; what waits for this client is of no use any more.
                let code = frame.as_ref().map_or(1005, |frame| frame.code.into());
                self.hub.leave(&self.seat);
                self.seat
                    .with_outbox(|outbox| outbox.close_now(None, Close::Answer(code)));
                self.hub.metrics().closed(code);
                self.state = State::Closing {
                    until: now + GOODBYE_LIMIT,
                    reset: false,
                };
                self.flushed = false;
                return;
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return,
        }
        match self.rate.on_message(now) {
            Verdict::Pass => self.process(message, now),
            Verdict::Limited { until, tell } => {
                if tell {
                    let error = MessageError::new(
                        "rate_limited",
                        "more messages a second than limits.messages_per_second",
                    );
                    self.tell_error(&error);
                }
                if self.is_volatile(&message) {
                    self.hub.metrics().dropped(Dropped::Rate, 1);
                } else {
                    self.held = Some(Held::Rate(message, until));
                }
            }
            Verdict::Abuse => self.leave(Close::Policy),
        }
    }

    fn is_volatile(&self, message: &Message) -> bool {
        let Message::Binary(bytes) = message else {
            return false;
        };
        let stream = bytes.first().copied().map(StreamId);
        self.seat.protocol == Protocol::V1 && stream.is_some_and(|stream| !stream.is_reliable())
    }

    /// False while the held message has to wait on.
    fn retry_held(&mut self, now: Instant) -> bool {
        match self.held.take() {
            Some(Held::Rate(message, until)) if until <= now => {
                self.rate.on_held(now);
                self.process(message, now);
            }
            Some(Held::Marker(parcel, until)) => {
                if until <= now {
                    self.hub.on_marker_overdue(&self.seat);
                }
                self.forward(parcel, now);
            }
            held => self.held = held,
        }
        self.held.is_none()
    }

    fn process(&mut self, message: Message, now: Instant) {
        match (message, self.seat.protocol) {
            (Message::Binary(bytes), Protocol::V1) if bytes.is_empty() => {
                self.on_error(&EMPTY_FRAME, now)
            }
            (Message::Binary(bytes), Protocol::V1) => self.forward(Parcel::Frame(bytes), now),
            (Message::Text(text), Protocol::V1) => self.on_text(&text, now),
            (Message::Binary(bytes), Protocol::Classic) => {
                let text = match String::from_utf8_lossy(&bytes) {
                    std::borrow::Cow::Borrowed(_) => bytes,
                    std::borrow::Cow::Owned(text) => Bytes::from(text),
                };
                self.forward(
                    Parcel::Text {
                        text,
                        label: self.seat.label(),
                    },
                    now,
                );
            }
            (Message::Text(text), Protocol::Classic) => {
                self.forward(
                    Parcel::Text {
                        text: text.into(),
                        label: self.seat.label(),
                    },
                    now,
                );
            }
            (Message::Close(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_), _) => {}
        }
    }

    fn on_text(&mut self, text: &str, now: Instant) {
        match ClientMessage::parse(text) {
            Ok(ClientMessage::Send { data, id }) => {
                let data = Bytes::copy_from_slice(data.as_bytes());
                self.forward(
                    Parcel::Send {
                        data,
                        id,
                        label: self.seat.label(),
                    },
                    now,
                );
            }
            Ok(ClientMessage::Ping { id }) => {
                let pong = ServerMessage::Pong {
                    id: id.as_deref(),
                    time: unix_ms(),
                };
                self.hub.control(&self.seat, &pong);
            }
            Ok(ClientMessage::Auth { token }) => {
                // Verified elsewhere: no socket of this thread waits for it but this one.
                let verifier = self.settings.verifier.clone();
                let verify = async move { verifier.verify(&token, unix_now()).await };
                self.auth = Some(self.settings.verify_on.spawn(verify));
            }
            Err(error) => self.on_error(&error, now),
        }
    }

    /// A frame's way out of this socket.
    fn forward(&mut self, parcel: Parcel, now: Instant) {
        let failed = match self.hub.send(&self.seat, &parcel, now) {
            Sent::Done | Sent::Overwritten => return,
            Sent::Wait => {
                self.held = Some(Held::Marker(parcel, now + MARKER_LIMIT));
                return;
            }
            Sent::Absent => (
                "peer_absent",
                "nobody holds the other slot: the message was dropped",
            ),
            Sent::Refused => (
                "backplane_unavailable",
                "the way to the other device is blocked: the message was dropped",
            ),
        };
        let (code, detail) = failed;
        match parcel {
            Parcel::Frame(bytes) => {
                let stream = bytes
                    .first()
                    .copied()
                    .map(StreamId)
                    .filter(|stream| stream.is_reliable());
                let due = |stream| {
                    self.faults
                        .get_or_insert_default()
                        .absent
                        .is_due(stream, now)
                };
                if stream.is_some_and(due) {
                    self.tell_error(&MessageError::new(code, detail));
                }
            }
            Parcel::Send { id, .. } => self.tell_error(&MessageError { code, detail, id }),
            Parcel::Text { .. } => {}
        }
    }

    /// An error of the client: told, and counted.
    fn on_error(&mut self, error: &MessageError, now: Instant) {
        self.tell_error(error);
        if self.faults.get_or_insert_default().errors.on_error(now) {
            self.leave(Close::Policy);
        }
    }

    fn tell_error(&mut self, error: &MessageError) {
        let MessageError { code, detail, id } = error;
        self.hub.control(
            &self.seat,
            &ServerMessage::Error {
                code,
                detail,
                id: id.as_deref(),
            },
        );
    }

    fn on_verified(&mut self, verified: Result<Identity, Refusal>, now: Instant) {
        match verified {
            Ok(identity) if identity.user == self.seat.user => {
                self.expires_at = identity.expires_at;
                self.expires = deadline_of(identity.expires_at, now);
                self.told_expiring = false;
                self.seat.set_label(label_of(&identity));
                let expires_at = identity.expires_at;
                self.hub
                    .control(&self.seat, &ServerMessage::Authenticated { expires_at });
            }
            Ok(_) => self.on_error(
                &MessageError::new("wrong_user", "the token is another user's"),
                now,
            ),
            Err(refusal) => {
                self.on_error(&MessageError::new(refusal.code(), refusal.detail()), now)
            }
        }
    }

    // ---- the clock

    fn on_clock(&mut self, now: Instant, cx: &mut Context<'_>) -> Result<(), End> {
        match self.state {
            State::Open => {
                self.on_open_clock(now, cx)?;
                if self.seat.with_outbox(|outbox| outbox.is_closing()) {
                    self.held = None;
                    let slow = self
                        .seat
                        .with_outbox(|outbox| outbox.is_empty_but_goodbye());
                    let limit = if slow { CLOSE_LIMIT } else { GOODBYE_LIMIT };
                    self.state = State::Goodbye {
                        until: now + limit,
                        forced: slow,
                    };
                }
                Ok(())
            }
            State::Goodbye { until, .. }
            | State::Closing { until, .. }
            | State::Broken { until }
                if now < until =>
            {
                Ok(())
            }
            State::Goodbye { forced: false, .. } => {
                self.seat.with_outbox(|outbox| outbox.forget_waiting());
                self.state = State::Goodbye {
                    until: now + CLOSE_LIMIT,
                    forced: true,
                };
                Ok(())
            }
            State::Goodbye { forced: true, .. } => Err(End::Reset),
            State::Closing { reset, .. } if reset || !self.flushed => Err(End::Reset),
            State::Closing { .. } | State::Broken { .. } => Err(End::Close),
        }
    }

    fn on_open_clock(&mut self, now: Instant, cx: &mut Context<'_>) -> Result<(), End> {
        let heartbeat = self.hub.settings().heartbeat;
        let silent = now.saturating_duration_since(self.last_byte);
        // While the relay itself does not read, silence proves nothing.
        let is_reading = self.held.is_none() && self.auth.is_none();
        if silent >= heartbeat * 2 && is_reading {
            self.hub.leave(&self.seat);
            self.seat
                .with_outbox(|outbox| outbox.close_now(None, Close::NoHeartbeat));
            return Ok(());
        }
        if silent >= heartbeat && !self.pinged {
            self.pinged = true;
            self.flushed = false;
            let ping = Message::Ping(Bytes::new());
            let written = self.codec.write(
                &mut Io {
                    stream: &mut self.stream,
                    cx,
                    read: false,
                },
                ping,
            );
            would_block(written).map_err(|_| End::Close)?;
        }
        if now >= self.expires && self.settings.enforce_expiry {
            self.leave(Close::TokenExpired);
            return Ok(());
        }
        if !self.told_expiring && self.expires.saturating_duration_since(now) <= EXPIRING_AHEAD {
            self.told_expiring = true;
            self.hub.control(
                &self.seat,
                &ServerMessage::Expiring {
                    expires_at: self.expires_at,
                },
            );
        }
        let drain = self.seat.drain();
        match (self.leaving, drain) {
            (Leaving::At(Some(at)), None) if now >= at => {
                self.ask_to_reconnect(
                    ReconnectReason::Lifetime,
                    now,
                    now,
                    now + self.settings.leave_within,
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

    fn ask_to_reconnect(
        &mut self,
        reason: ReconnectReason,
        now: Instant,
        at: Instant,
        deadline: Instant,
    ) {
        let deadline = match self.seat.protocol {
            Protocol::V1 => deadline,
            // It cannot be asked: it is closed when its turn comes.
            Protocol::Classic => at,
        };
        let ms = |at: Instant| {
            u64::try_from(at.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX)
        };
        let message = ServerMessage::Reconnect {
            reason,
            in_ms: ms(at),
            deadline_ms: ms(deadline),
        };
        self.hub.control(&self.seat, &message);
        self.leaving = Leaving::Told { deadline };
        if deadline <= now {
            self.leave(Close::Restart);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        match self.state {
            State::Goodbye { until, .. }
            | State::Closing { until, .. }
            | State::Broken { until } => Some(until),
            State::Open => {
                let heartbeat = self.hub.settings().heartbeat;
                let is_reading = self.held.is_none() && self.auth.is_none();
                let beat = match (self.pinged, is_reading) {
                    (false, _) => Some(self.last_byte + heartbeat),
                    (true, true) => Some(self.last_byte + heartbeat * 2),
                    (true, false) => None,
                };
                let expiry = match (self.told_expiring, self.settings.enforce_expiry) {
                    (false, _) => Some(
                        self.expires
                            .checked_sub(EXPIRING_AHEAD)
                            .unwrap_or(self.expires),
                    ),
                    (true, true) => Some(self.expires),
                    (true, false) => None,
                };
                let leaving = match self.leaving {
                    Leaving::At(at) => at,
                    Leaving::Told { deadline } => Some(deadline),
                };
                let held = match &self.held {
                    Some(Held::Rate(_, until) | Held::Marker(_, until)) => Some(*until),
                    None => None,
                };
                [beat, expiry, leaving, held].into_iter().flatten().min()
            }
        }
    }
}

/// The room's name for classic clients: the e-mail address, or the uid where the token has none.
#[must_use]
pub fn label_of(identity: &Identity) -> std::sync::Arc<str> {
    identity
        .email
        .as_ref()
        .map_or(identity.user.as_str(), |email| email.as_str())
        .into()
}

/// When a token expires, on the clock that is not set back.
fn deadline_of(expires_at: u64, now: Instant) -> Instant {
    let left = Duration::from_secs(expires_at).saturating_sub(since_epoch());
    // A token may claim any end: a year is as good as for ever for a socket.
    now + left.min(Duration::from_secs(366 * 24 * 3600))
}

fn since_epoch() -> Duration {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
}

fn unix_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// `Ok(false)` when the socket takes no more at the moment: the codec keeps what is left.
fn would_block(result: Result<(), Error>) -> Result<bool, Error> {
    match result {
        Ok(()) => Ok(true),
        Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// The stream as the codec wants it: whatever would wait registers this task and says `WouldBlock`.
struct Io<'a, 'b> {
    stream: &'a mut Stream,
    cx: &'a mut Context<'b>,
    /// Bytes have come.
    read: bool,
}

impl Read for Io<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(&mut *self.stream).poll_read(self.cx, &mut buffer) {
            Poll::Ready(Ok(())) => {
                self.read |= !buffer.filled().is_empty();
                Ok(buffer.filled().len())
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Io<'_, '_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match Pin::new(&mut *self.stream).poll_write(self.cx, buffer) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match Pin::new(&mut *self.stream).poll_flush(self.cx) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

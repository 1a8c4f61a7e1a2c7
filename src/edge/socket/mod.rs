//! One socket, one task, one loop: writes what waits in the outbox, reads what the client sends, and
//! watches the clock. Reading never waits for writing: a client that does not read may still send.

mod clock;
#[cfg(conformance)]
mod conformance;
mod messages;
mod poll_io;

use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use self::clock::{deadline_of, next_check};
use self::messages::{PINGS, Ping};
use self::poll_io::{Io, would_block};
use tokio::task::JoinHandle;
use tokio::time::Sleep;
use tracing::debug;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message, Utf8Bytes};

use crate::auth::{Identity, Verifier};
use crate::edge::gate::Admission;
use crate::edge::stream::Stream;
use crate::hub::{Hub, Seat};
use crate::relay::close::Close;
use crate::relay::limits::{AbsentNotices, Errors, Rate};
use crate::relay::outbox::{Kind, Outgoing};
use crate::relay::parcel::Parcel;
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
#[derive(Clone)]
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
    parked: Option<Parked>,
    rate: Rate,
    /// Errors and notices: most connections never need them.
    faults: Option<Box<Faults>>,
    auth: Option<PendingAuth>,
    /// Not answered yet, oldest first.
    pings: VecDeque<Ping>,
    /// Only where sessions are checked for revocation.
    revocation: Option<Box<Revocation>>,
    last_byte: Instant,
    beat: Beat,
    expires_at: u64,
    expires: Instant,
    sent_expiring: bool,
    leaving: Leaving,
    /// Its place among the connections of this instance, given back with it.
    _admission: Admission,
}

type PendingAuth = JoinHandle<Result<Identity, Refusal>>;

/// Whose session is checked again, how often, when next, and the check that is under way.
struct Revocation {
    identity: Identity,
    pause: Duration,
    next: Instant,
    check: Option<JoinHandle<Result<(), Refusal>>>,
}

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
    /// The client speaks no WebSocket any more: what is left is written, its bytes are thrown away until it is gone.
    Broken {
        until: Instant,
    },
}

/// How long a client that has not answered is listened to before it is dropped.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// What is known of a silent client.
#[derive(Clone, Copy)]
enum Beat {
    /// It was heard lately.
    Heard,
    /// It was pinged then.
    Pinged(Instant),
    /// It has not answered in time. What waits in the kernel is read until then, before it is dropped: perhaps it was
    /// this process that stood still, and epoll has to tell first that there is something.
    LastLook(Instant),
}

/// A message that may not go on yet; nothing is read behind it.
enum Parked {
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
        identity: Identity,
        admission: Admission,
    ) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(BATCH)
            // The outbox bounds what waits; at most a batch and one message are in the codec.
            .max_write_buffer_size(usize::MAX)
            .max_message_size(Some(settings.message_bytes))
            .max_frame_size(Some(settings.message_bytes));
        let codec = WebSocketContext::from_partially_read(early.to_vec(), Role::Server, Some(config));
        let now = Instant::now();
        // Sockets that came together do not leave together.
        let lifetime = settings.max_lifetime.map(|life| now + life.mul_f64(0.9 + 0.1 * fastrand::f64()));
        let revocation = settings.verifier.revocation_pause().map(|pause| {
            let next = next_check(now, pause);
            Box::new(Revocation { identity: identity.clone(), pause, next, check: None })
        });
        let rate = Rate::new(hub.settings().limits.messages_per_second);
        Self {
            hub,
            seat,
            settings,
            stream,
            codec,
            flushed: true,
            state: State::Open,
            parked: None,
            rate,
            faults: None,
            auth: None,
            pings: VecDeque::new(),
            revocation,
            last_byte: now,
            beat: Beat::Heard,
            expires_at: identity.expires_at,
            expires: deadline_of(identity.expires_at, now),
            sent_expiring: false,
            leaving: Leaving::At(lifetime),
            _admission: admission,
        }
    }

    /// Runs until the socket is closed.
    // An `async` block, because an `async fn` would keep its argument twice, for as long as the socket lives.
    #[expect(clippy::manual_async_fn, reason = "half a kilobyte for each connection")]
    pub fn run(mut self) -> impl Future<Output = ()> {
        async move {
            // For its first deadline, and not for now: tokio wakes its own epoll for a timer that is due at once.
            let at = self.next_deadline().unwrap_or(self.last_byte);
            let mut sleep = pin!(tokio::time::sleep_until(at.into()));
            let end = std::future::poll_fn(|cx| self.poll(cx, sleep.as_mut())).await;
            // In this order: leave the room, then let the socket go; telling other instances goes on beside.
            self.hub.leave(&self.seat);
            self.hub.metrics().disconnected(self.seat.device, self.seat.protocol);
            match end {
                End::Close => {}
                End::Reset => self.stream.reset_on_drop(),
            }
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
                let Some(message) = self.seat.with_outbox(|outbox| outbox.pop()) else {
                    break;
                };
                batch += message.bytes.len() + 1;
                if let Some(since) = message.since {
                    self.hub.metrics().relay_seconds.observe(now.saturating_duration_since(since));
                }
                self.encode(cx, message)?;
            }
            if batch > 0 {
                continue;
            }
            let Some((last, close)) = self.seat.with_outbox(|outbox| outbox.pop_goodbye()) else {
                return Ok(());
            };
            if let Some(last) = last {
                self.encode(cx, Outgoing::text(last, None))?;
            }
            self.close(cx, now, close)?;
        }
    }

    fn encode(&mut self, cx: &mut Context<'_>, message: Outgoing) -> Result<(), End> {
        let message = match message.kind {
            Kind::Binary => Message::Binary(message.bytes),
            Kind::Text => match Utf8Bytes::try_from(message.bytes) {
                Ok(text) => Message::Text(text),
                Err(_) => return Ok(()),
            },
        };
        self.flushed = false;
        let written = self.codec.write(&mut Io { stream: &mut self.stream, cx, read: false }, message);
        would_block(written).map(|_| ()).map_err(|_| End::Close)
    }

    /// True when everything has left.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let flushed = self.codec.flush(&mut Io { stream: &mut self.stream, cx, read: false });
        self.flushed = would_block(flushed).map_err(|_| End::Close)?;
        Ok(self.flushed)
    }

    /// Sends the close frame; the client's answer is awaited for a while.
    fn close(&mut self, cx: &mut Context<'_>, now: Instant, close: Close) -> Result<(), End> {
        let reset = matches!(close, Close::TooSlow | Close::NoHeartbeat);
        let limit = if matches!(close, Close::Restart) { GOODBYE_LIMIT } else { CLOSE_LIMIT };
        self.state = State::Closing { until: now + limit, reset };
        self.hub.metrics().closed(close.code());
        let frame = CloseFrame { code: CloseCode::from(close.code()), reason: close.reason().into() };
        self.flushed = false;
        let closed = self.codec.close(&mut Io { stream: &mut self.stream, cx, read: false }, Some(frame));
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
        if self.pings.len() >= PINGS || self.parked.is_some() && !self.retry_parked(now) {
            return Ok(false);
        }
        let mut io = Io { stream: &mut self.stream, cx, read: false };
        let read = self.codec.read(&mut io);
        if io.read {
            self.last_byte = now;
            self.beat = Beat::Heard;
        }
        match read {
            Ok(message) => {
                if matches!(self.state, State::Open) {
                    self.on_client_message(message, now);
                }
                Ok(true)
            }
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => self.on_read_error(&error, cx, now),
        }
    }

    fn on_read_error(&mut self, error: &Error, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let close = match error {
            Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
                return Err(End::Close);
            }
            Error::Protocol(_) | Error::AttackAttempt => Close::ProtocolError,
            Error::Utf8(_) => Close::InvalidUtf8,
            Error::Capacity(_) => Close::TooBig,
            // The client closes amid a message: the rest of it and the answer to the close are still to be written, and
            // the codec, which tells the end as soon as it holds that answer, reads no more.
            Error::ConnectionClosed if !self.flushed => {
                self.state = State::Broken { until: now + GOODBYE_LIMIT };
                return Ok(true);
            }
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
        self.state = State::Broken { until: now + GOODBYE_LIMIT };
        Ok(true)
    }

    fn discard(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut scratch = [0; 4096];
        let mut io = Io { stream: &mut self.stream, cx, read: false };
        match io.read(&mut scratch) {
            Ok(0) if self.flushed => Err(End::Close),
            // What is left to write goes on, until then or until there is nobody to take it.
            Ok(0) => Ok(false),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(_) => Err(End::Close),
        }
    }
}

/// The room's name for classic clients: the e-mail address, or the uid where the token has none.
#[must_use]
pub fn label_of(identity: &Identity) -> std::sync::Arc<str> {
    identity.email.as_ref().map_or(identity.user.uid(), |email| email.as_str()).into()
}

//! One socket, one task, one loop: writes what waits in the outbox, reads what the client sends, and
//! watches the clock. Reading never waits for writing: a client that does not read may still send.

mod buffers;
mod clock;
mod codec;
#[cfg(conformance)]
mod conformance;
mod messages;
mod read;
mod write;

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::Sleep;

use self::buffers::Buffers;
use self::clock::{deadline_of, next_check};
use self::codec::{Decoder, Message};
use self::messages::Ping;
use self::write::Writer;
use crate::auth::{Identity, Verifier};
use crate::edge::gate::Admission;
use crate::edge::stream::Stream;
use crate::hub::{Hub, Seat};
use crate::relay::limits::{AbsentNotices, Errors, Rate};
use crate::relay::parcel::Parcel;
use crate::relay::refusal::Refusal;

/// Messages that one turn may read before other sockets get theirs.
const READS_A_TURN: usize = 32;
/// What still waits for a connection that has to go is written for at most this long.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);
/// A close is tried for at most this long, then TCP is reset.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// A connection to which something waits to be written, and that takes nothing of it for this long, is closed. A slow
/// receiver takes a little now and then, and stays.
const STALL_LIMIT: Duration = Duration::from_secs(60);
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

/// What the sockets of one worker share.
pub struct Sockets {
    settings: SocketSettings,
    buffers: Buffers,
}

impl Sockets {
    /// Without any buffer yet.
    #[must_use]
    pub fn new(settings: SocketSettings) -> Self {
        Self { settings, buffers: Buffers::default() }
    }
}

/// A socket and everything that only its own task knows.
pub struct Socket {
    hub: Rc<Hub>,
    seat: Rc<Seat>,
    shared: Rc<Sockets>,
    stream: Stream,
    decoder: Decoder,
    writer: Writer,
    /// The client has closed: what is left is written, then TCP is closed.
    is_answered: bool,
    state: State,
    /// A message that may not go on yet.
    parked: Option<Parked>,
    rate: Rate,
    /// For pings, pongs and empty fragments.
    control: Rate,
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
        shared: Rc<Sockets>,
        stream: Stream,
        early: &[u8],
        identity: Identity,
        admission: Admission,
    ) -> Self {
        let now = Instant::now();
        // Sockets that came together do not leave together.
        let lifetime =
            shared.settings.max_lifetime.map(|life| now + life.mul_f64(0.9 + 0.1 * fastrand::f64()));
        let revocation = shared.settings.verifier.revocation_pause().map(|pause| {
            let next = next_check(now, pause);
            Box::new(Revocation { identity: identity.clone(), pause, next, check: None })
        });
        Self {
            hub,
            seat,
            shared,
            stream,
            decoder: Decoder::new(early),
            writer: Writer::default(),
            is_answered: false,
            state: State::Open,
            parked: None,
            rate: Rate::default(),
            control: Rate::default(),
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
        let ended = self.turn(cx, sleep.as_mut());
        if let Some(buffer) = self.decoder.reclaim() {
            self.shared.buffers.return_read(buffer);
        }
        self.seat.note_buffered(self.writer.unsent_bytes(), self.decoder.held_bytes());
        ended
    }

    fn turn(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<End> {
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
}

/// The room's name for classic clients: the e-mail address, or the uid where the token has none.
#[must_use]
pub fn label_of(identity: &Identity) -> std::sync::Arc<str> {
    identity.email.as_ref().map_or(identity.user.uid(), |email| email.as_str()).into()
}

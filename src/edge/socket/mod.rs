//! One socket, one task, one loop: writes what waits in the outbox, reads what the client sends, and
//! watches the clock. Reading never waits for writing: a client that does not read may still send.

mod buffers;
mod codec;
#[cfg(conformance)]
mod conformance;
mod due;
mod fresh;
mod messages;
mod read;
mod write;

use std::cell::Cell;
use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::Sleep;

use self::buffers::Buffers;
use self::codec::{Decoder, Message};
use self::due::{deadline_of, next_check};
use self::messages::Ping;
use self::write::Writer;
use crate::auth::{Identity, Verifier};
use crate::edge::gate::Admission;
use crate::edge::stream::Stream;
use crate::hub::{Hub, HubSettings, Seat};
use crate::relay::freshness::Freshness;
use crate::relay::limits::Quotas;
use crate::relay::parcel::Parcel;
use crate::relay::protocol::Feature;
use crate::relay::refusal::Refusal;
use crate::relay::session::{Session, SessionSettings};

/// Messages that one turn may read before other sockets get theirs.
const READS_A_TURN: usize = 32;
/// What every socket of a worker needs to know.
#[derive(Clone)]
pub struct SocketSettings {
    /// Verifies the tokens of `auth`.
    pub verifier: Verifier,
    /// Bytes of the largest whole message.
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
    session: SessionSettings,
    buffers: Buffers,
    /// Zero of the clock by which frames are paced and reported.
    origin: Instant,
    /// The time that was last converted to it: a turn asks for the same one several times.
    converted: Cell<(Instant, f64)>,
    /// Clients may report what they have received.
    is_paced: bool,
}

impl Sockets {
    /// Without any buffer yet.
    #[must_use]
    pub fn new(settings: SocketSettings, hub: &HubSettings) -> Self {
        let session = SessionSettings {
            heartbeat: hub.heartbeat,
            enforce_expiry: settings.enforce_expiry,
            leave_within: settings.leave_within,
            quotas: Quotas::new(hub.limits.messages_per_second, hub.limits.bytes_per_second),
        };
        let is_paced = hub.features.contains(&Feature::Received);
        let (buffers, origin) = (Buffers::default(), Instant::now());
        Self { settings, session, buffers, origin, converted: Cell::new((origin, 0.0)), is_paced }
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
    /// The timer will wake this task, by the waker that it has now.
    is_timed: bool,
    /// What is due when.
    session: Session,
    /// What may leave on its path, and what the client is to hear of the other way.
    freshness: Freshness,
    /// A message that may not go on yet.
    parked: Option<Parked>,
    auth: Option<PendingAuth>,
    /// Not answered yet, oldest first.
    pings: VecDeque<Ping>,
    /// Only where sessions are checked for revocation.
    revocation: Option<Box<Revocation>>,
    /// End of its token, Unix seconds.
    expires_at: u64,
    /// Its place among the connections of this instance, given back with it.
    _admission: Admission,
}

type PendingAuth = JoinHandle<Result<Identity, Refusal>>;

/// The identity whose session is checked again, how often, and the check that is under way.
struct Revocation {
    identity: Identity,
    pause: Duration,
    check: Option<JoinHandle<Result<(), Refusal>>>,
}

/// A message that may not go on yet; nothing is read behind it.
enum Parked {
    /// Past a rate, with what it counts in bytes; `None`: something came that is not held, and reading rests.
    Rate(Option<Message>, usize),
    /// Behind what travels through the backplane.
    Marker(Parcel),
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
        let now = now();
        // Sockets that came together do not leave together.
        let lifetime =
            shared.settings.max_lifetime.map(|life| now + life.mul_f64(0.9 + 0.1 * fastrand::f64()));
        let pause = shared.settings.verifier.revocation_pause();
        let check = pause.map(|pause| next_check(now, pause));
        let expires = deadline_of(identity.expires_at, now);
        let session = Session::new(now, expires, lifetime, check, &shared.session);
        let expires_at = identity.expires_at;
        let revocation = pause.map(|pause| Box::new(Revocation { identity, pause, check: None }));
        Self {
            hub,
            seat,
            shared,
            stream,
            decoder: Decoder::new(early),
            writer: Writer::default(),
            is_answered: false,
            is_timed: false,
            session,
            freshness: Freshness::default(),
            parked: None,
            auth: None,
            pings: VecDeque::new(),
            revocation,
            expires_at,
            _admission: admission,
        }
    }

    /// Runs until the socket is closed.
    // An `async` block, because an `async fn` would keep its argument twice, for as long as the socket lives.
    #[expect(clippy::manual_async_fn, reason = "half a kilobyte for each connection")]
    pub fn run(mut self) -> impl Future<Output = ()> {
        async move {
            // For its first deadline, and not for now: tokio wakes its own epoll for a timer that is due at once.
            let at = self.session.deadline().unwrap_or_else(now);
            let mut sleep = pin!(tokio::time::sleep_until(at.into()));
            let end = std::future::poll_fn(|cx| self.poll(cx, sleep.as_mut())).await;
            // In this order: leave the room, then let the socket go. Other instances learn of it beside.
            self.hub.leave(&self.seat);
            self.hub.metrics().disconnected(self.seat.device, self.seat.protocol);
            match end {
                End::Close => {}
                End::Reset => self.stream.reset_on_drop(),
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<End> {
        self.is_timed &= !self.seat.register(cx);
        let ended = self.turn(cx, sleep.as_mut());
        if let Some(buffer) = self.decoder.reclaim() {
            self.shared.buffers.return_read(buffer);
        }
        self.seat.note_buffered(self.writer.unsent_bytes(), self.decoder.held_bytes());
        self.hub.keep_budget();
        ended
    }

    fn turn(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<End> {
        let mut turns = READS_A_TURN;
        loop {
            let now = now();
            if let Err(end) = self.on_due(now, cx) {
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
                // Nothing was read that could have left something to write: what else comes into the outbox wakes this task.
                Ok(false) => {
                    let Some(at) = self.next_deadline(now) else {
                        return Poll::Pending;
                    };
                    // The timer is only moved when it would be late, or soon and in vain; it looks again when it fires early.
                    let set_for = sleep.deadline().into_std();
                    if at < set_for || sleep.is_elapsed() || self.is_in_vain(set_for, at, now) {
                        sleep.as_mut().reset(at.into());
                        self.is_timed = false;
                    }
                    self.is_timed = self.is_timed || sleep.as_mut().poll(cx).is_pending();
                    if self.is_timed {
                        return Poll::Pending;
                    }
                }
                Err(end) => return Poll::Ready(end),
            }
        }
    }
}

/// The time, on the clock that tests can move.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The room's name for classic clients: the e-mail address, or the uid where the token has none.
#[must_use]
pub fn label_of(identity: &Identity) -> std::sync::Arc<str> {
    identity.email.as_ref().map_or(identity.user.uid(), |email| email.as_str()).into()
}

#[cfg(test)]
mod tests;

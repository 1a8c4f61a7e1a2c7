//! What joins instances: claims of slots, and a channel per device. These are the promises; [`memory`] keeps
//! them inside one process, [`redis`] between any number of them, and one test suite holds both to them.
//!
//! - **Claims are ordered.** Each claim, renewal and release of a room happens at one point of one order,
//!   by the rules of [`crate::relay::record`]. Claims of two connections at the same instant leave
//!   exactly one holder.
//! - **Subscribed before claimed.** When a claim is made, the channel of its device is subscribed already
//!   (acknowledged, where that takes time). So the claim's answer and what the channel says afterwards
//!   are everything.
//! - **One order of a user's channels.** An instance's publishes for a user arrive in the order in which it
//!   published them. A subscriber of both channels of a user hears them in one order. The backplane publishes
//!   `Claimed` and `Released` on both channels, where they happened in the room's order. On a channel, what
//!   comes before a `Claimed` belongs to the predecessor, what comes after it to the new holder. (Redis keeps
//!   this order with one subscriber connection for both channels, which share a hash tag.)
//! - **A claim's own message first.** A claim is answered after its `Claimed` was handed out, unless that
//!   message was lost (which is noticed after [`OWN_CLAIM_LIMIT`]).
//! - **At most once.** A message may be lost, when the backplane fails or restarts; then [`Event::Up`]
//!   follows. It never comes twice and never to another user. Renewals heal what was lost.
//! - **Every call ends** within [`CALL_LIMIT`], and no queue grows without a bound.

pub mod connectivity;
pub mod journal;
pub mod memory;
pub mod readiness;
pub mod redis;

use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::LocalBoxFuture;
use tokio::sync::oneshot;

use crate::relay::envelope::Envelope;
use crate::relay::ids::{Attempt, ConnectionId, Device, InstanceId, StreamId, UserId};
use crate::relay::record::{Claim, ClaimOutcome, Holder, Lease, Renewed};

/// A call takes at most this long; then it has failed.
pub const CALL_LIMIT: Duration = Duration::from_secs(2);
/// How long the answer to a claim waits for the claim's own message on the channel.
pub const OWN_CLAIM_LIMIT: Duration = Duration::from_millis(500);
/// A volatile frame that waited longer than this to be published is dropped for newer ones.
pub const STALE: Duration = Duration::from_millis(500);

/// The backplane did not answer in time, or is known to be away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the backplane does not answer")]
pub struct Unavailable;

/// What a backplane reports to a worker, in the order in which it happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A message came on the channel of a user's device.
    Envelope {
        /// The user whose channel it is.
        user: &'a UserId,
        /// The device that hears the channel.
        channel: Device,
        /// The decoded message of that channel.
        envelope: Envelope,
    },
    /// What came on a channel could not be read (another version, or somebody else's publish).
    Unreadable,
    /// Other instances cannot be reached for these users.
    Down(Users<'a>),
    /// Other instances can be reached (again) for these users; messages may have been lost in between.
    Up(Users<'a>),
    /// Messages for these users may have been lost, in a break too short to be reported.
    Gap(Users<'a>),
    /// A reliable message of a connection here has not arrived, although it was taken.
    Lost {
        /// The user who sent it.
        user: &'a UserId,
        /// The device that sent it.
        device: Device,
        /// The message, and why it did not arrive.
        lost: Lost,
    },
    /// An instance has not been heard of for some time.
    Silent(InstanceId),
    /// A silent instance is heard of again.
    Heard(InstanceId),
}

/// The users whom a change concerns: all of a server's, or those whose slots a node of a cluster holds.
#[derive(Clone, Copy)]
pub enum Users<'a> {
    /// Every user of this worker.
    All,
    /// The users for whom the function is true.
    Some(&'a dyn Fn(&UserId) -> bool),
}

impl Users<'_> {
    /// True for a user whom the change concerns.
    #[must_use]
    pub fn contains(&self, user: &UserId) -> bool {
        match self {
            Self::All => true,
            Self::Some(contains) => contains(user),
        }
    }
}

impl fmt::Debug for Users<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "All",
            Self::Some(_) => "Some",
        })
    }
}

/// A reliable message that was taken from a connection here, and did not arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The connection that sent it.
    pub connection: ConnectionId,
    /// What the sender has to hear about it.
    pub message: LostMessage,
    /// Why it did not arrive.
    pub cause: LossCause,
}

/// What a lost message was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LostMessage {
    /// A frame of this reliable stream.
    Frame(StreamId),
    /// A `send` or a `signal`, with its `id` if it had one.
    Send(Option<String>),
    /// A classic message, which has no `id`.
    Text,
}

/// Why a message was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossCause {
    /// Nobody was subscribed: the message is lost.
    Unheard,
    /// The backplane refused it or did not answer: the message may or may not have arrived.
    Unanswered,
}

/// Takes events, at once and without waiting, so that no queue of them is needed.
pub type Sink = Rc<dyn Fn(Event<'_>)>;

/// A slot to renew.
#[derive(Debug, Clone)]
pub struct Renewal {
    /// The user whose room it is.
    pub user: UserId,
    /// The slot to renew.
    pub device: Device,
    /// The connection that holds it here.
    pub holder: Holder,
    /// Which of its client's attempts it is, if the client counts them.
    pub attempt: Option<Attempt>,
}

/// Outcome of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Published {
    /// It leaves with what is ready in the same turn.
    Queued,
    /// The queue to the backplane is full; it was dropped.
    Full,
}

/// Resolves when what was published before it has been handed on, or was given up.
pub type Barrier = oneshot::Receiver<()>;

/// The holders of a room's two slots, with the milliseconds that are left of each lease.
pub type RoomSnapshot = [Option<Lease>; 2];

/// One running instance, as it announces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceInfo {
    /// The process's UUID, new at each start.
    pub instance: InstanceId,
    /// Open WebSockets, of all its workers.
    pub connections: u64,
    /// Its version of duorelay.
    pub version: String,
    /// Unix milliseconds of its start.
    pub started_at: u64,
    /// It drains, and takes no handshakes soon.
    pub draining: bool,
}

/// One worker's share of the backplane.
pub trait Backplane {
    /// Subscribes the channel of the claim's device, then claims the slot.
    fn claim<'a>(
        &'a self,
        user: &'a UserId,
        claim: Claim,
    ) -> LocalBoxFuture<'a, Result<ClaimOutcome, Unavailable>>;

    /// Renews slots that this instance holds; each answer stands at the place of its question.
    fn renew<'a>(&'a self, renewals: &'a [Renewal]) -> LocalBoxFuture<'a, Vec<Result<Renewed, Unavailable>>>;

    /// Frees a slot if the connection still holds it. What fails is left to the lease's end.
    fn release<'a>(
        &'a self,
        user: &'a UserId,
        device: Device,
        connection: ConnectionId,
    ) -> LocalBoxFuture<'a, ()>;

    /// No socket here needs this channel any more.
    fn unsubscribe(&self, user: &UserId, channel: Device);

    /// Publishes on a channel, after everything that was published for this user before. `since` is when
    /// it was read: a volatile frame is dropped when it gets stale.
    fn publish(&self, user: &UserId, channel: Device, envelope: Envelope, since: Instant) -> Published;

    /// A barrier behind what was published on this channel; `None` when all of it has been handed on already. What is
    /// published or claimed after that, by whichever instance, comes behind it.
    fn barrier(&self, _user: &UserId, _lane: Device) -> Option<Barrier> {
        None
    }

    /// True while other instances can be reached for this user.
    fn is_up(&self, _user: &UserId) -> bool {
        true
    }

    /// True while a claim for this user can succeed, as far as is known.
    fn may_claim(&self, _user: &UserId) -> bool {
        true
    }

    /// The holders of a room's slots; each lease in milliseconds from now.
    fn room<'a>(&'a self, user: &'a UserId) -> LocalBoxFuture<'a, Result<RoomSnapshot, Unavailable>>;

    /// The instances that have been heard of lately, this one included.
    fn instances(&self) -> Vec<InstanceInfo>;

    /// True when an instance has not been heard of for some time.
    fn is_silent(&self, instance: InstanceId) -> bool;

    /// Stops: what is queued leaves first.
    fn close(&self) -> LocalBoxFuture<'_, ()>;
}

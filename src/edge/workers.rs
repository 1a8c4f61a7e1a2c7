//! The way to the workers: a signed-in connection goes to the thread of its user.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::gate::Admission;
use super::stream::MovingStream;
use crate::auth::Identity;
use crate::hub::{CALL_LIMIT, InstanceInfo, Joining, RoomSnapshot};
use crate::relay::ids::{Device, UserId};
use crate::relay::refusal::Refusal;

/// Commands that may wait for a worker.
const COMMANDS: usize = 1024;
/// How long a worker takes to begin with a command, and a client to take its upgrade.
pub const HAND_OVER_LIMIT: Duration = Duration::from_secs(10);

/// A socket on its way from the thread that accepted it.
pub struct Moving {
    /// The socket.
    pub stream: MovingStream,
    /// What the client sent right behind its handshake.
    pub early: Bytes,
}

/// A signed-in connection that asks for its slot.
pub struct Join {
    /// Who, and which slot.
    pub joining: Joining,
    /// By which token.
    pub identity: Identity,
    /// Its place among the connections of this instance.
    pub admission: Admission,
    /// Gets the answer to the handshake.
    pub answer: oneshot::Sender<Result<(), Refusal>>,
    /// Brings the socket, once the handshake was answered.
    pub socket: oneshot::Receiver<Moving>,
    /// The handshake's, for what is logged and traced of its claim.
    pub span: tracing::Span,
}

/// What is asked of a worker.
pub enum Command {
    /// A new connection.
    Join(Box<Join>),
    /// Who is in a room?
    Snapshot(UserId, oneshot::Sender<Result<RoomSnapshot, Refusal>>),
    /// A message from an operator.
    Send(UserId, Vec<Device>, Bytes, oneshot::Sender<Result<usize, Refusal>>),
    /// An operator disconnects devices.
    Disconnect(UserId, Vec<Device>, oneshot::Sender<Result<usize, Refusal>>),
    /// Which instances are there?
    Instances(oneshot::Sender<Vec<InstanceInfo>>),
    /// This instance leaves until then.
    Drain(Instant),
    /// Everything is closed: end.
    Stop,
}

/// All workers of a process, as one of its threads sees them.
#[derive(Debug, Clone)]
pub struct Workers {
    all: Arc<[mpsc::Sender<Command>]>,
    /// The worker whose thread this is.
    here: Option<usize>,
}

impl Workers {
    /// The way to so many workers, as no worker's thread sees it, and its other ends.
    #[must_use]
    pub fn new(workers: usize) -> (Self, Vec<mpsc::Receiver<Command>>) {
        let (all, ends): (Vec<_>, _) = (0..workers).map(|_| mpsc::channel(COMMANDS)).unzip();
        (Self { all: all.into(), here: None }, ends)
    }

    /// The same as the worker with this number sees it.
    #[must_use]
    pub fn seen_by(&self, worker: usize) -> Self {
        Self { here: Some(worker), ..self.clone() }
    }

    /// The worker to which a user belongs.
    fn number_of(&self, user: &UserId) -> usize {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(user);
        usize::try_from(hash % (self.all.len().max(1) as u64)).unwrap_or(0)
    }

    /// True when this thread is the user's worker.
    #[must_use]
    pub fn is_home_of(&self, user: &UserId) -> bool {
        self.here == Some(self.number_of(user))
    }

    /// Hands a command to the worker of a user. `false` when the worker is overloaded or gone.
    pub async fn send(&self, user: &UserId, command: Command) -> bool {
        let Some(worker) = self.all.get(self.number_of(user)) else {
            return false;
        };
        timeout(CALL_LIMIT, worker.send(command)).await.is_ok_and(|sent| sent.is_ok())
    }

    /// Hands a command to the worker of a user and waits for its answer.
    ///
    /// # Errors
    /// The worker's refusal, or [`Refusal::Full`] when it is overloaded.
    pub async fn ask<T>(
        &self,
        user: &UserId,
        command: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Command,
    ) -> Result<T, Refusal> {
        let (answer, answered) = oneshot::channel();
        if !self.send(user, command(answer)).await {
            return Err(Refusal::Full);
        }
        match timeout(HAND_OVER_LIMIT, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(Refusal::Full),
        }
    }

    /// Hands a command to every worker.
    pub async fn send_to_all(&self, command: impl Fn() -> Command) {
        for worker in self.all.iter() {
            // A worker that has ended needs no command.
            let _ = timeout(HAND_OVER_LIMIT, worker.send(command())).await;
        }
    }

    /// The instances of which the workers know.
    pub async fn instances(&self) -> Vec<InstanceInfo> {
        let Some(worker) = self.all.first() else {
            return Vec::new();
        };
        let (answer, answered) = oneshot::channel();
        if !timeout(HAND_OVER_LIMIT, worker.send(Command::Instances(answer)))
            .await
            .is_ok_and(|sent| sent.is_ok())
        {
            return Vec::new();
        }
        timeout(HAND_OVER_LIMIT, answered).await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

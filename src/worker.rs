//! One worker: a thread with a single-threaded runtime, its share of the hub, the handshakes that it accepts, and
//! the sockets of its users.
//!
//! A user belongs to one worker by a hash of the uid, so a room's two sockets in a process meet on one
//! thread. The frame path has no lock and wakes no other thread.

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::TcpListener;
use tokio::runtime::LocalOptions;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, timeout};
use tracing::{Instrument as _, debug, error};
use uuid::Uuid;

use crate::backplane::{Backplane, Sink};
use crate::edge::listen::{self, Port};
use crate::edge::socket::{Socket, SocketSettings, Sockets};
use crate::edge::workers::{Command, HAND_OVER_LIMIT, Join, Moving};
use crate::hub::{Hub, HubSettings, Seat};
use crate::metrics::Metrics;
use crate::relay::ids::ConnectionId;

/// How often a worker looks for slots to renew.
const RENEW_TICK: Duration = Duration::from_secs(1);

/// How often a worker counts what waits.
const COUNT_TICK: Duration = Duration::from_secs(1);

/// Makes the share of the backplane of the worker with this number.
pub type MakeBackplane = dyn Fn(usize, Sink) -> Rc<dyn Backplane> + Send + Sync;

/// What all workers are made from.
#[derive(Clone)]
pub struct WorkerSettings {
    /// The hub's.
    pub hub: HubSettings,
    /// Its sockets'.
    pub socket: SocketSettings,
    /// What this process counts.
    pub metrics: Arc<Metrics>,
    /// Makes a worker's share of the backplane, on the worker's thread.
    pub backplane: Arc<MakeBackplane>,
}

/// Where a worker accepts connections.
pub struct Door {
    /// What it shares with the other workers.
    pub port: Arc<Port>,
    /// Its copy of their one listening socket.
    pub listener: StdTcpListener,
    /// What it answers.
    pub router: Router,
}

/// A running worker.
#[derive(Debug)]
pub struct Worker(thread::JoinHandle<()>);

impl Worker {
    /// Starts a thread. It ends at [`Command::Stop`].
    ///
    /// # Errors
    /// When the system gives no thread or no epoll.
    pub fn start(
        number: usize,
        settings: WorkerSettings,
        commands: mpsc::Receiver<Command>,
        door: Door,
    ) -> io::Result<Self> {
        let (started, is_started) = std::sync::mpsc::channel();
        let thread = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            // It cannot be moved, and so is made where it runs.
            let Door { port, listener, router } = door;
            let opened = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default())
                .and_then(|runtime| {
                    let listener = runtime.block_on(async { TcpListener::from_std(listener) })?;
                    Ok((runtime, listener))
                });
            // `start` blocks until the runtime is up.
            let _ = started.send(opened.as_ref().map(|_| ()).map_err(io::Error::kind));
            if let Ok((runtime, listener)) = opened {
                runtime.block_on(async {
                    // Sockets that it has accepted are served to their end; new ones, until it stops.
                    let serving = tokio::spawn(listen::serve(port, listener, router));
                    run(number, settings, commands, serving.abort_handle()).await;
                });
            }
        })?;
        // A thread that says nothing has panicked.
        is_started.recv().map_err(io::Error::other)??;
        Ok(Self(thread))
    }

    /// Waits for the thread to end.
    pub fn join(self) {
        if self.0.join().is_err() {
            error!("a worker panicked");
        }
    }
}

async fn run(
    number: usize,
    settings: WorkerSettings,
    mut commands: mpsc::Receiver<Command>,
    serving: AbortHandle,
) {
    let sockets = Rc::new(Sockets::new(settings.socket, &settings.hub));
    let hub = Hub::new(settings.hub, settings.metrics, |sink| (settings.backplane)(number, sink));
    let renewing = tokio::task::spawn_local(renew(Rc::clone(&hub)));
    let counting = tokio::task::spawn_local(count(Rc::clone(&hub)));
    while let Some(command) = commands.recv().await {
        match command {
            Command::Join(join) => {
                tokio::task::spawn_local(connect(Rc::clone(&hub), Rc::clone(&sockets), join));
            }
            Command::Snapshot(user, answer) => {
                answer_with(answer, &hub, move |hub| async move { hub.snapshot(&user).await });
            }
            Command::Send(user, devices, data, answer) => {
                answer_with(
                    answer,
                    &hub,
                    move |hub| async move { hub.send_to_user(&user, &devices, data).await },
                );
            }
            Command::Disconnect(user, devices, answer) => {
                answer_with(
                    answer,
                    &hub,
                    move |hub| async move { hub.disconnect_user(&user, &devices).await },
                );
            }
            Command::Instances(answer) => {
                // An asker that has gone needs no answer.
                let _ = answer.send(hub.backplane().instances());
            }
            Command::Drain(deadline) => hub.drain(Instant::now(), deadline),
            Command::Stop => break,
        }
    }
    serving.abort();
    renewing.abort();
    counting.abort();
    hub.backplane().close().await;
}

fn answer_with<T: 'static, F: Future<Output = T> + 'static>(
    answer: oneshot::Sender<T>,
    hub: &Rc<Hub>,
    ask: impl FnOnce(Rc<Hub>) -> F,
) {
    let asked = ask(Rc::clone(hub));
    tokio::task::spawn_local(async move {
        // An asker that has gone needs no answer.
        let _ = answer.send(asked.await);
    });
}

async fn renew(hub: Rc<Hub>) {
    let mut ticks = tokio::time::interval(RENEW_TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        hub.renew().await;
    }
}

/// Beside renewals, which take longer while the backplane is slow: just then it matters what waits.
async fn count(hub: Rc<Hub>) {
    let mut ticks = tokio::time::interval(COUNT_TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        hub.count_waiting();
        hub.repeat_pressure();
        hub.count_direct_frames();
    }
}

/// A connection's way into its room. Its task ends here; the socket gets one of its own, so that nothing
/// of the handshake stays in memory.
async fn connect(hub: Rc<Hub>, sockets: Rc<Sockets>, join: Box<Join>) {
    let Join { joining, identity, admission, answer, socket, span } = *join;
    // Its client has gone while this waited for its turn: a claim would throw out whom it has come back as.
    if answer.is_closed() {
        debug!("a client went away before its claim");
        return;
    }
    let connection = ConnectionId(Uuid::now_v7());
    let seat = match hub.join(joining, connection).instrument(span).await {
        Ok(seat) => seat,
        Err(refusal) => {
            let _ = answer.send(Err(refusal));
            return;
        }
    };
    // From here on the connection counts as connected until its socket has ended.
    let give_up = |seat: &Rc<Seat>| {
        debug!(connection.id = %seat.connection, "the client went away during its handshake");
        hub.leave(seat);
        hub.metrics().disconnected(seat.device, seat.protocol);
    };
    if answer.send(Ok(())).is_err() {
        return give_up(&seat);
    }
    let Ok(Ok(Moving { stream, early })) = timeout(HAND_OVER_LIMIT, socket).await else {
        return give_up(&seat);
    };
    let Ok(stream) = stream.arrive() else {
        return give_up(&seat);
    };
    let socket = Socket::new(hub, seat, sockets, stream, &early, identity, admission);
    tokio::task::spawn_local(socket.run());
}

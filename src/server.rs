//! One instance's life: start, serve, drain, stop.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, sleep};
use tracing::{info, warn};
use uuid::Uuid;

use crate::auth::{AuthError, Verifier};
use crate::backplane::memory::Memory;
use crate::backplane::readiness::Readiness;
use crate::backplane::redis::{self, Access, Checked, Redis, RedisError, RedisSettings, Shared, Template};
use crate::backplane::{Backplane, InstanceInfo, Sink};
use crate::config::{self, Config};
use crate::edge::Edge;
use crate::edge::admin::admin;
use crate::edge::gate::Gate;
use crate::edge::http::public;
use crate::edge::listen::{self, Port};
use crate::edge::socket::SocketSettings;
use crate::edge::workers::{Command, Workers};
use crate::host::{cgroup, open_files};
use crate::hub::HubSettings;
use crate::metrics::Metrics;
use crate::relay::budget::Budget;
use crate::relay::ids::InstanceId;
use crate::relay::protocol::{ClientLimits, features};
use crate::telemetry::Seldom;
use crate::worker::{Door, MakeBackplane, Worker, WorkerSettings};

/// Why an instance cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A port cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address of `--listen` or `--admin-listen`.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The verifier cannot start.
    #[error("cannot verify tokens: {0}")]
    Auth(#[from] AuthError),
    /// Redis cannot be used.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// No thread, no epoll, no signals.
    #[error("the system refuses: {0}")]
    System(#[from] io::Error),
}

/// After the drain's end, what is left to say goodbye.
const GOODBYE_LIMIT: Duration = Duration::from_millis(1200);
/// What is left after that to release slots and to let the backplane go.
const STOP_LIMIT: Duration = Duration::from_millis(600);
/// How often a drain looks whether anybody is left.
const DRAIN_TICK: Duration = Duration::from_millis(50);
/// How often a Redis that was not there at the start is checked.
const RECHECK: Duration = Duration::from_secs(1);
/// How often the gate forgets addresses.
const SWEEP: Duration = Duration::from_secs(60);

/// Interval of the memory check.
const MEMORY_TICK: Duration = Duration::from_millis(100);

/// Serves until SIGTERM or SIGINT, then leaves without a gap.
///
/// # Errors
/// See [`ServerError`].
pub async fn run(config: Config) -> Result<(), ServerError> {
    let metrics = Arc::new(Metrics::default());
    let verifier = Verifier::start(config.auth.clone(), &metrics)?;
    serve(config, verifier, metrics, None).await
}

/// What all instances on the backplane of `instance` agree on as `name`: the proposal of the first that
/// asked. An instance without others agrees with itself.
///
/// # Errors
/// [`ServerError::Redis`] when Redis cannot be asked.
pub async fn agree(instance: &config::Instance, name: &str, proposal: String) -> Result<String, ServerError> {
    let Some(settings) = &instance.redis else {
        return Ok(proposal);
    };
    let template = Template::new(Access::open(settings.source.clone(), &settings.tls)?);
    let key = format!("{}:{name}", settings.prefix);
    Ok(redis::agree(&template, &key, proposal).await?)
}

/// What the demo adds to a relay.
pub struct Page {
    /// Served where no upgrade is asked for at `/`, and beside it.
    pub router: Router,
    /// Called once the public port takes connections, with its address.
    pub on_listening: Box<dyn FnOnce(SocketAddr) + Send>,
}

/// Serves with this verifier, and a page at `/` if there is one.
///
/// # Errors
/// See [`ServerError`].
pub async fn serve(
    config: Config,
    verifier: Verifier,
    metrics: Arc<Metrics>,
    page: Option<Page>,
) -> Result<(), ServerError> {
    let ports = Ports::bind(&config.instance)?;
    let mut signals = Signals::catch()?;
    let times = config.instance.times.clone();
    let (instance, unchecked) = assemble(config, verifier, metrics, page, ports).await?;
    let hurry = tokio::select! {
        hurry = signals.first() => hurry,
        mistake = mistake_of(unchecked) => return Err(mistake.into()),
    };
    let delay = if hurry { Duration::ZERO } else { times.drain_delay };
    instance.leave(delay, times.drain, &mut signals).await;
    Ok(())
}

/// Both listening sockets. What they must not share with others is taken before anything starts.
struct Ports {
    public: StdTcpListener,
    admin: StdTcpListener,
}

impl Ports {
    fn bind(settings: &config::Instance) -> Result<Self, ServerError> {
        let bind = |address| listen::bind(address).map_err(|source| ServerError::Listen { address, source });
        Ok(Self { public: bind(settings.listen)?, admin: bind(settings.admin_listen)? })
    }
}

/// What ends an instance.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the first one. True where somebody at a terminal waits: there is no balancer that has to notice first.
    async fn first(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => false,
            // What a terminal or a supervisor sends that goes away.
            _ = self.hang_up.recv() => false,
            _ = self.interrupt.recv() => true,
        }
    }
}

/// A running instance.
struct Running {
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    to_workers: Workers,
    workers: Vec<Worker>,
    /// What the main thread does beside.
    tasks: Vec<JoinHandle<()>>,
}

/// Starts everything. A Redis that could not be checked yet comes with it.
async fn assemble(
    config: Config,
    verifier: Verifier,
    metrics: Arc<Metrics>,
    page: Option<Page>,
    ports: Ports,
) -> Result<(Running, Option<RedisSettings>), ServerError> {
    let Config { instance: settings, enforce_expiry, auth } = config;
    let files = open_files::raise_limit();
    // The demo is for a few devices, and its first lines for people who have never seen it.
    if page.is_none() {
        warn_of_too_few_files(settings.limits.max_connections, files);
    }
    let instance = InstanceId(Uuid::new_v4());
    let limits = &settings.limits;
    metrics.limits(limits.max_connections, limits.message_bytes, limits.queue_bytes);
    let gate = Gate::new(
        limits.max_connections,
        limits.handshakes_per_second_per_ip,
        settings.trusted_proxies.clone(),
        settings.allowed_origins.clone(),
    );
    let started_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let me = InstanceInfo {
        instance,
        connections: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: u64::try_from(started_at).unwrap_or(u64::MAX),
        draining: false,
    };
    let announce: redis::Announce = {
        let (gate, me) = (Arc::clone(&gate), me.clone());
        Arc::new(move || InstanceInfo {
            connections: u64::from(gate.connections()),
            draining: gate.is_draining(),
            ..me.clone()
        })
    };
    let owner = auth.issuer.fingerprint();
    let budget_bytes = cgroup::memory_left() / 2;
    metrics.budget_bytes.set(i64::try_from(budget_bytes).unwrap_or(i64::MAX));
    let budget = Budget::new(budget_bytes);
    let (backplane, readiness, unchecked) =
        backplane(&settings, owner, instance, announce, &metrics, &budget).await?;
    let worker = WorkerSettings {
        hub: hub_settings(&settings, instance, budget),
        socket: SocketSettings {
            verifier: verifier.clone(),
            message_bytes: limits.message_bytes,
            enforce_expiry,
            max_lifetime: settings.times.max_lifetime,
            leave_within: settings.times.drain,
        },
        metrics: Arc::clone(&metrics),
        backplane,
    };

    let (to_workers, commands) = Workers::new(settings.workers);
    let edge = |workers| {
        let (gate, metrics) = (Arc::clone(&gate), Arc::clone(&metrics));
        Arc::new(Edge { gate, verifier: verifier.clone(), workers, metrics, readiness: readiness.clone() })
    };
    let (page, on_listening) = page.map(|page| (page.router, page.on_listening)).unzip();
    let address = ports.public.local_addr()?;
    let port = Port::new(Arc::clone(&gate), Arc::clone(&metrics));
    let mut workers = Vec::new();
    for (number, commands) in commands.into_iter().enumerate() {
        let door = Door {
            port: Arc::clone(&port),
            listener: ports.public.try_clone()?,
            router: public(edge(to_workers.seen_by(number)), page.clone()),
        };
        workers.push(Worker::start(number, worker.clone(), commands, door)?);
    }
    // The last of the workers closes the socket on which all of them accept.
    drop(ports.public);
    info!(
        %address,
        admin.address = %ports.admin.local_addr()?,
        workers = settings.workers,
        instance.id = %instance,
        "duorelay listens"
    );
    if let Some(on_listening) = on_listening {
        on_listening(address);
    }
    let operators = admin(edge(to_workers.clone()), settings.admin_token.clone(), me, limits.message_bytes);
    let admin_port = Port::new(Arc::clone(&gate), Arc::clone(&metrics));
    let admin_listener = TcpListener::from_std(ports.admin)?;
    let mut tasks = vec![
        tokio::spawn(listen::serve(admin_port, admin_listener, operators)),
        tokio::spawn(sweep(Arc::clone(&gate))),
    ];
    if let Some(group) = cgroup::Group::of_this_process() {
        tasks.push(tokio::spawn(watch_memory(Arc::clone(&gate), Arc::clone(&metrics), group)));
    }
    Ok((Running { gate, metrics, to_workers, workers, tasks }, unchecked))
}

fn hub_settings(settings: &config::Instance, instance: InstanceId, budget: Budget) -> HubSettings {
    let limits = &settings.limits;
    HubSettings {
        instance,
        limits: ClientLimits {
            message_bytes: limits.message_bytes,
            messages_per_second: limits.messages_per_second.unwrap_or(0),
            queue_bytes: limits.queue_bytes,
            bytes_per_second: limits.bytes_per_second.unwrap_or(0),
        },
        features: features(settings.features.pacing, settings.features.direct),
        stun: settings.features.stun_urls.clone(),
        heartbeat: settings.times.heartbeat,
        lease: settings.times.lease,
        budget,
    }
}

impl Running {
    /// Leaves without a gap; a second SIGINT skips what is left of the drain.
    async fn leave(self, delay: Duration, drain_time: Duration, signals: &mut Signals) {
        let Self { gate, metrics, to_workers, workers, tasks } = self;
        metrics.draining.set(1);
        tokio::select! {
            () = drain(&gate, &to_workers, delay, drain_time) => {}
            _ = signals.interrupt.recv() => warn!("interrupted again: stopping at once"),
        }
        tasks.iter().for_each(JoinHandle::abort);
        let stopping = tokio::time::timeout(STOP_LIMIT, to_workers.send_to_all(|| Command::Stop));
        // A worker that does not listen is not waited for.
        let _ = stopping.await;
        // The threads end once their backplane has let go; waiting for them must not block this runtime.
        let joined = tokio::task::spawn_blocking(move || workers.into_iter().for_each(Worker::join));
        if tokio::time::timeout(STOP_LIMIT, joined).await.is_err() {
            warn!("a worker did not stop in time");
        }
        info!("duorelay has stopped");
    }
}

/// At the limit of open files no connection is accepted: who is turned away gets no answer, not even that it is full.
fn warn_of_too_few_files(max_connections: Option<u32>, files: Option<u64>) {
    if let (Some(connections), Some(files)) = (max_connections, files)
        && u64::from(connections) + open_files::OTHER_FILES > files
    {
        warn!(
            files.limit = files,
            "DUORELAY_MAX_CONNECTIONS ({connections}) cannot be reached: this process may open {files} files; raise its \
             hard limit (ulimit -Hn, LimitNOFILE=, ulimits) to {}, or lower DUORELAY_MAX_CONNECTIONS",
            u64::from(connections) + open_files::OTHER_FILES,
        );
    }
}

/// How workers make their share of the backplane, and when it is ready.
async fn backplane(
    config: &config::Instance,
    owner: String,
    instance: InstanceId,
    announce: redis::Announce,
    metrics: &Arc<Metrics>,
    budget: &Budget,
) -> Result<(Arc<MakeBackplane>, Readiness, Option<RedisSettings>), ServerError> {
    let Some(settings) = &config.redis else {
        metrics.backplane_up.set(1.0);
        let lease_ms = u64::try_from(config.times.lease.as_millis()).unwrap_or(u64::MAX);
        let make =
            move |_, sink: Sink| -> Rc<dyn Backplane> { Rc::new(Memory::default()).attach(sink, lease_ms) };
        return Ok((Arc::new(make), Readiness::always(), None));
    };
    let template = Template::new(Access::open(settings.source.clone(), &settings.tls)?);
    let readiness = Readiness::new(config.workers);
    let settings = RedisSettings {
        shared: Shared::new(&template, config.workers, Arc::clone(metrics)),
        template,
        prefix: settings.prefix.clone(),
        owner,
        lease: config.times.lease,
        queue_bytes: config.limits.queue_bytes,
        waiting_bytes: budget.backplane_bytes(config.workers),
        budget: budget.clone(),
        instance,
        announce,
        readiness: readiness.clone(),
        metrics: Arc::clone(metrics),
    };
    let unchecked = match redis::check(&settings).await? {
        Checked::Well => None,
        Checked::Wait => Some(settings.clone()),
    };
    let make =
        move |worker, sink: Sink| -> Rc<dyn Backplane> { Redis::start(settings.clone(), worker, sink) };
    Ok((Arc::new(make), readiness, unchecked))
}

/// Checks a Redis that was not there at the start once it is. A mistake ends the instance, as it would have
/// at the start. Once an instance was ready, it never ends because of Redis.
async fn mistake_of(unchecked: Option<RedisSettings>) -> RedisError {
    let mut pauses = tokio::time::interval(RECHECK);
    pauses.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pauses.tick().await;
    while let Some(settings) = &unchecked {
        pauses.tick().await;
        match redis::check(settings).await {
            Ok(Checked::Wait) if !settings.readiness.is_ready() => {}
            Ok(Checked::Well | Checked::Wait) => break,
            Err(mistake) if !settings.readiness.is_ready() => return mistake,
            Err(_) => break,
        }
    }
    std::future::pending().await
}

/// Leaves without a gap: not ready at once; handshakes until balancers have noticed; then sockets come
/// back elsewhere, spread over the drain time.
async fn drain(gate: &Gate, workers: &Workers, delay: Duration, drain: Duration) {
    gate.start_draining();
    info!(connections = gate.connections(), "draining");
    sleep(delay).await;
    gate.close();
    let deadline = Instant::now() + drain;
    workers.send_to_all(|| Command::Drain(deadline)).await;
    let mut ticks = tokio::time::interval(DRAIN_TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while gate.connections() > 0 && Instant::now() < deadline + GOODBYE_LIMIT {
        ticks.tick().await;
    }
}

/// Closes the door while the process is near its memory's limit. Three short reads of files that are in memory: they
/// hold up nobody.
async fn watch_memory(gate: Arc<Gate>, metrics: Arc<Metrics>, group: cgroup::Group) {
    let mut ticks = tokio::time::interval(MEMORY_TICK);
    // Near the limit it may be short and not short again many times a minute.
    let (warned, mut is_logged) = (Seldom::default(), false);
    loop {
        ticks.tick().await;
        let is_short = group.is_short();
        metrics.memory_short.set(is_short.into());
        if gate.set_short_of_memory(is_short) {
            if !is_short && is_logged {
                info!("memory is no longer short");
            }
            is_logged = is_short && warned.is_due(Instant::now());
            if is_logged {
                warn!("memory is short: nobody new is let in");
            }
        }
    }
}

async fn sweep(gate: Arc<Gate>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        gate.sweep();
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;

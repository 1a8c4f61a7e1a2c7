//! One device of one user: it roams, vanishes, comes back, takes over from itself. What it plans comes from the seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::connection::{Command, Connection, Notice, State};
use crate::fleet::{Fleet, INSTANCES, Process};
use crate::record::{End, Known, Record};
use crate::support::{self, Client, Event, Handshake, Token};

/// A handshake that nobody answers for this long is given up.
const PATIENCE: Duration = Duration::from_secs(4);

/// What the devices are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// What they have planned.
    Chaos,
    /// Nothing but coming back when a connection is lost.
    Settle,
    /// Each moves once to another instance, without a gap.
    Storm,
    /// Send nothing any more; who had vanished reads what there is.
    Silence,
    /// Leave.
    End,
}

/// The devices by their numbers.
pub const DEVICES: [&str; 2] = ["desktop", "mobile"];

/// A token that expires soon.
#[derive(Debug, Clone)]
struct ShortToken {
    token: String,
    /// In seconds since the Unix epoch.
    expires: i64,
    /// A fresh one is sent in time; otherwise the connection is closed, and its device comes back with the old one.
    is_refreshed: bool,
}

/// Whom to ask for a connection, and how.
struct Attempt {
    process: Process,
    handshake: Handshake,
    number: u64,
    short: Option<ShortToken>,
}

/// Why there is no connection.
enum Missed {
    /// Its token has expired.
    OldToken,
    /// Ask another instance.
    Elsewhere,
}

/// A connection that was welcomed.
struct Arrival {
    known: Known,
    client: Client,
    short: Option<ShortToken>,
}

/// A connection as its device has it.
struct Handle {
    number: u32,
    generation: u64,
    place: usize,
    short: Option<ShortToken>,
    commands: mpsc::UnboundedSender<Command>,
}

pub struct Device {
    pub user: u32,
    pub device: usize,
    /// Good for all the time that there is.
    pub token: Arc<str>,
    /// The one that it comes with next, if that is another one.
    short: Option<ShortToken>,
    pub fleet: Arc<Fleet>,
    pub record: Arc<Record>,
    pub turn: Duration,
    pub phase: watch::Receiver<Phase>,
    /// Draws what it plans; nothing else draws from it.
    pub plan: Rng,
    /// Draws how it reacts.
    reactions: Rng,
    current: Option<Handle>,
    /// Connections that have vanished or are about to be overwritten.
    others: Vec<Handle>,
    notices: (mpsc::UnboundedSender<Notice>, mpsc::UnboundedReceiver<Notice>),
    client: String,
    /// How often it has tried to connect: an earlier attempt that is carried out late must not end a later one.
    attempts: AtomicU64,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// What a device may plan.
#[derive(Debug, Clone, Copy)]
enum Plan {
    Roam,
    Evict,
    Race,
    Vanish,
    Reset,
    Close,
    /// Comes with a token that is about to expire.
    ShortToken,
    Nothing,
}

/// Their shares.
const PLANS: [(u32, Plan); 8] = [
    (30, Plan::Roam),
    (10, Plan::Evict),
    (6, Plan::Race),
    (12, Plan::Vanish),
    (8, Plan::Reset),
    (8, Plan::Close),
    (6, Plan::ShortToken),
    (20, Plan::Nothing),
];

impl Device {
    #[allow(clippy::too_many_arguments, reason = "a test's own constructor")]
    pub fn new(
        seed: u64,
        user: u32,
        device: usize,
        token: Arc<str>,
        fleet: Arc<Fleet>,
        record: Arc<Record>,
        turn: Duration,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        let mut plan = Rng::with_seed(seed ^ (u64::from(user) << 20) ^ (device as u64 + 1) << 10);
        let reactions = plan.fork();
        Self {
            user,
            device,
            token,
            short: None,
            fleet,
            record,
            turn,
            phase,
            plan,
            reactions,
            current: None,
            others: Vec::new(),
            notices: mpsc::unbounded_channel(),
            client: "first".into(),
            attempts: AtomicU64::new(0),
            tasks: Vec::new(),
        }
    }

    pub async fn live(mut self) {
        let first = self.plan.usize(..INSTANCES);
        self.come(first).await;
        let mut next = Instant::now() + self.pause();
        loop {
            // Not marked as seen: it may have changed while something else was done.
            let phase = *self.phase.borrow();
            tokio::select! {
                _ = self.phase.changed() => {
                    if !self.on_phase().await {
                        break;
                    }
                }
                notice = self.notices.1.recv() => self.on_notice(notice.unwrap()).await,
                () = sleep_until(next), if phase == Phase::Chaos => {
                    self.act().await;
                    next = Instant::now() + self.pause();
                }
            }
        }
        for task in self.tasks {
            task.await.unwrap();
        }
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.plan.u64(300..6000))
    }

    /// False when it is all over.
    async fn on_phase(&mut self) -> bool {
        let phase = *self.phase.borrow();
        match phase {
            Phase::Chaos | Phase::Settle => {}
            Phase::Storm => {
                let pause = Duration::from_millis(self.plan.u64(..2000));
                tokio::time::sleep(pause).await;
                self.roam().await;
            }
            Phase::Silence => {
                for it in self.current.iter().chain(&self.others) {
                    let _ = it.commands.send(Command::Silence);
                }
                for other in &self.others {
                    let _ = other.commands.send(Command::Return);
                }
            }
            Phase::End => {
                for it in self.current.iter().chain(&self.others) {
                    let _ = it.commands.send(Command::Close);
                }
                return false;
            }
        }
        true
    }

    async fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Ended(number, end) => {
                self.others.retain(|other| other.number != number);
                if let Some(current) = self.current.take_if(|current| current.number == number) {
                    if end == End::Closed(4003) {
                        self.short = current.short;
                    }
                    let pause = Duration::from_millis(self.reactions.u64(50..600));
                    tokio::time::sleep(pause).await;
                    let place = self.reactions.usize(..INSTANCES);
                    self.come(place).await;
                }
            }
            Notice::Move(number, pause) => {
                tokio::time::sleep(pause).await;
                if self.current.as_ref().is_some_and(|current| current.number == number) {
                    self.roam().await;
                }
            }
        }
    }

    async fn act(&mut self) {
        let mut lot = self.plan.u32(..100);
        let (place, pause) = (self.plan.usize(..INSTANCES), self.plan.u64(..3000));
        let plan = PLANS.into_iter().find(|(share, _)| {
            let is_it = lot < *share;
            lot = lot.saturating_sub(*share);
            is_it
        });
        match plan.map_or(Plan::Nothing, |(_, plan)| plan) {
            Plan::Roam => self.roam().await,
            Plan::Evict => {
                self.client = format!("client-{}", self.plan.u32(..));
                self.come(place).await;
            }
            Plan::Race => {
                let (one, two) = (self.attempt_at(place), self.attempt_at(place + 1));
                let (one, two) = tokio::join!(self.open(one), self.open(two));
                for arrival in [one, two].into_iter().flatten() {
                    self.welcomed(arrival);
                }
            }
            Plan::Vanish => self.leave(Command::Vanish, place, pause).await,
            Plan::Reset => self.leave(Command::Reset, place, pause).await,
            Plan::Close => self.leave(Command::Close, place, pause).await,
            Plan::ShortToken => {
                let (seconds, is_refreshed) = (self.plan.i64(1..6), self.plan.bool());
                let (token, expires) = (Token::firebase(&uid(self.user)), support::now() + seconds);
                let token = token.claim("exp", expires).sign();
                self.short = Some(ShortToken { token, expires, is_refreshed });
                self.roam().await;
            }
            Plan::Nothing => {}
        }
    }

    /// Leaves in some way, and comes back a little later.
    async fn leave(&mut self, how: Command, place: usize, pause: u64) {
        if let Some(current) = self.current.take() {
            let _ = current.commands.send(how);
            self.others.push(current);
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
        self.come(place).await;
    }

    /// Moves without a gap: what is sent on the old connection after the new one's claim is lost, so reliable frames
    /// wait.
    async fn roam(&mut self) {
        if let Some(current) = &self.current {
            let (done, is_done) = oneshot::channel();
            let _ = current.commands.send(Command::Hush(done));
            // One that has ended does not answer, and needs not; where Redis stands still it takes a second.
            let _ = timeout(PATIENCE, is_done).await;
        }
        let here = self.current.as_ref().map_or(0, |current| current.place);
        let place = here + self.reactions.usize(1..INSTANCES);
        self.come(place).await;
    }

    /// Opens a connection, on the first instance from this one on that lets it in.
    async fn come(&mut self, from: usize) {
        for place in from.. {
            if *self.phase.borrow() == Phase::End {
                return;
            }
            let attempt = self.attempt_at(place);
            match self.open(attempt).await {
                Ok(arrival) => return self.welcomed(arrival),
                Err(Missed::OldToken) => self.short = None,
                Err(Missed::Elsewhere) => {}
            }
            let pause = Duration::from_millis(self.reactions.u64(50..300));
            tokio::time::sleep(pause).await;
        }
    }

    fn attempt_at(&self, place: usize) -> Option<Attempt> {
        let process = self.fleet.process(place)?;
        let token = self.short.as_ref().map_or(&*self.token, |short| &short.token);
        let handshake = Handshake::new(process.address).offer(&["duorelay.v1"]);
        let handshake = handshake.bearer(token).device(DEVICES[self.device]).client(&self.client);
        let number = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        let handshake = handshake.query(&format!("attempt={number}"));
        Some(Attempt { process, handshake, number, short: self.short.clone() })
    }

    async fn open(&self, attempt: Option<Attempt>) -> Result<Arrival, Missed> {
        let Some(Attempt { process, handshake, number, short }) = attempt else {
            return Err(Missed::Elsewhere);
        };
        let asked = Instant::now();
        let is_old = short.as_ref().is_some_and(|short| short.expires <= support::now());
        let mut client = match timeout(PATIENCE, handshake.try_open()).await {
            Ok(Ok(Ok(client))) => client,
            Ok(Ok(Err(refusal))) => {
                let code = refusal.json()["code"].as_str().unwrap_or_default().to_owned();
                self.record.refused(&code);
                let has_expired = short.as_ref().is_some_and(|short| short.expires <= support::now());
                let is_right = match &*code {
                    "draining" | "keys_unavailable" => true,
                    "token_expired" => has_expired,
                    // Looked at after the token.
                    "backplane_unavailable" | "too_many_attempts" => !is_old,
                    // By a later one of this client, and there must be one.
                    "superseded" => {
                        let later = refusal.json()["attempt"].as_u64().unwrap_or_default();
                        !is_old && (number + 1..=self.attempts.load(Ordering::Relaxed)).contains(&later)
                    }
                    _ => false,
                };
                if !is_right {
                    self.record.wrong_for(self.user, &format!("refused: {code}"));
                }
                return Err(if code == "token_expired" { Missed::OldToken } else { Missed::Elsewhere });
            }
            // Killed, or stopped.
            Ok(Err(_)) | Err(_) => {
                self.record.refused("nobody there");
                return Err(Missed::Elsewhere);
            }
        };
        if is_old {
            self.record.wrong_for(self.user, "an old token was let in");
        }
        let Ok(Event::Text(text)) = timeout(PATIENCE, client.next()).await else {
            self.record.refused("gone before the welcome");
            return Err(Missed::Elsewhere);
        };
        client.welcome = serde_json::from_str(&text).unwrap();
        let welcome = &client.welcome;
        let device = DEVICES[self.device];
        if welcome["type"] != "welcome" || welcome["device"] != device || welcome["uid"] != uid(self.user) {
            self.record.wrong_for(self.user, &format!("{device}: {welcome}"));
            return Err(Missed::Elsewhere);
        }
        let known = Known {
            user: self.user,
            device: self.device,
            place: process.place,
            process: process.number,
            id: client.id().to_owned(),
            generation: client.generation(),
            asked,
            welcomed: Instant::now(),
            vanished: None,
            was_overwritten: false,
            was_asked_to_move: false,
            expires: welcome["expires_at"].as_i64().unwrap_or_default(),
            notices: vec![format!("{:.3} {text}", self.record.start.elapsed().as_secs_f64())],
            end: None,
            received: Default::default(),
            heard: [None; 2],
        };
        Ok(Arrival { known, client, short })
    }

    /// A new connection: the newest is the current one.
    fn welcomed(&mut self, arrival: Arrival) {
        let Arrival { known, client, short } = arrival;
        let (generation, place) = (known.generation, known.place);
        let number = self.record.add(known);
        let (commands, receiver) = mpsc::unbounded_channel();
        let connection = Connection {
            client,
            number,
            user: self.user,
            device: self.device,
            generation,
            record: self.record.clone(),
            commands: receiver,
            notices: self.notices.0.clone(),
            turn: self.turn,
            fresh: short.as_ref().filter(|short| short.is_refreshed).map(|_| self.token.clone()),
            state: State::default(),
        };
        self.tasks.push(tokio::spawn(connection.live()));
        let handle = Handle { number, generation, place, short, commands };
        match &self.current {
            // Lost the race.
            Some(current) if current.generation > generation => self.others.push(handle),
            _ => self.others.extend(self.current.replace(handle)),
        }
    }
}

pub fn uid(user: u32) -> String {
    format!("user{user}")
}

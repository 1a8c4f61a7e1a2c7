//! One thread of the generator: its share of the users, and what it counts.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::connect::{Connected, Failure, Target, User, connect};
use super::dialect::Caller;
use super::result::count;
use super::settings::LoadOptions;
use super::socket::Socket;
use super::tally::Tally;

/// How long a goodbye may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Connections are being opened.
    Connecting,
    /// Everything begins at this instant; what is measured begins a warm-up later.
    Running(Instant),
    /// Ctrl-C, or something failed: end with the figures so far.
    Stopping,
}

/// What a thread reports to the main thread.
#[derive(Debug)]
pub(super) enum Event {
    /// Counted in this second of the measurement, or before it began.
    Counted(Option<u64>, Box<Tally>),
    /// All of this thread's users are connected, as far as they can be.
    Ready,
}

/// What all threads have in common.
pub(super) struct Plan {
    pub(super) options: LoadOptions,
    pub(super) targets: Vec<Target>,
    /// Frames of other runs have another number.
    pub(super) run: u32,
    /// What frames' due times count from.
    pub(super) epoch: Instant,
}

/// One thread's users and its counters.
pub(super) struct Shard {
    /// What all have in common.
    pub(super) plan: Arc<Plan>,
    /// Its place among the threads.
    pub(super) index: usize,
    pub(super) users: Vec<User>,
    /// Counted in this second.
    pub(super) tally: RefCell<Tally>,
    /// True once connections are closed on purpose.
    pub(super) ending: Cell<bool>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) events: mpsc::Sender<Event>,
}

impl Shard {
    pub(super) fn options(&self) -> &LoadOptions {
        &self.plan.options
    }

    /// This thread's share of a rate.
    pub(super) fn share(&self, per_second: usize) -> f64 {
        count(per_second as u64) / count(self.options().threads as u64)
    }

    /// Reports that all are connected, and waits for the common start; `None` when the run stops before.
    pub(super) async fn ready(&self) -> Option<Instant> {
        self.report(None).await;
        // The receiver is gone only when the whole run is.
        let _ = self.events.send(Event::Ready).await;
        let mut phase = self.phase.clone();
        let begun = phase.wait_for(|phase| *phase != Phase::Connecting).await;
        match begun.map(|phase| *phase) {
            Ok(Phase::Running(start)) => Some(start),
            Ok(Phase::Connecting | Phase::Stopping) | Err(_) => None,
        }
    }

    /// Does the work, or as much of it as there is time for until the run is stopped.
    pub(super) async fn until_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut phase = self.phase.clone();
        tokio::select! {
            done = work => Some(done),
            // A coordinator that is gone stops it, too.
            _ = phase.wait_for(|phase| *phase == Phase::Stopping) => None,
        }
    }

    /// When the measurement begins and when it ends, once that is known.
    pub(super) fn window(&self) -> Option<(Instant, Instant)> {
        match *self.phase.borrow() {
            Phase::Running(start) => {
                let begin = start + self.options().warmup;
                Some((begin, begin + self.options().duration))
            }
            Phase::Connecting | Phase::Stopping => None,
        }
    }

    /// Which second of the measurement it is.
    pub(super) fn second(&self, now: Instant) -> Option<u64> {
        let (begin, _) = self.window()?;
        Some(now.checked_duration_since(begin)?.as_secs())
    }

    pub(super) async fn report_every_second(&self) {
        const PAUSE: Duration = Duration::from_millis(200);
        let mut second = None;
        loop {
            let now = Instant::now();
            second = self.second(now).or(second);
            let begin = self.window().map_or(now + PAUSE, |(begin, _)| begin);
            let next = match now.checked_duration_since(begin) {
                Some(since) => begin + Duration::from_secs(since.as_secs() + 1),
                None => begin.min(now + PAUSE),
            };
            sleep_until(next).await;
            self.report(second).await;
        }
    }

    pub(super) async fn report(&self, second: Option<u64>) {
        // The receiver is gone only when the whole run is.
        let _ = self.events.send(Event::Counted(second, Box::new(self.tally.take()))).await;
    }

    /// One handshake; counts what comes of it, its duration from `due`.
    pub(super) async fn connect(&self, caller: Caller<'_>, place: usize, due: Instant) -> Connected {
        let targets = &self.plan.targets;
        let result = connect(&targets[place % targets.len()], self.options(), caller).await;
        let mut tally = self.tally.borrow_mut();
        match &result {
            Ok(_) => {
                tally.welcomed += 1;
                tally.connected += 1;
                tally.handshake.record(Instant::now().saturating_duration_since(due));
            }
            Err(Failure::Refused { code, .. }) => *tally.refused.entry(code.clone()).or_default() += 1,
            Err(Failure::Failed(why)) => tally.fail(why.clone()),
        }
        result
    }

    /// Connects, and comes back after refusals when they say so, until `limit` is over.
    pub(super) async fn connect_patiently(
        &self,
        caller: Caller<'_>,
        place: usize,
        limit: Duration,
    ) -> Option<Socket> {
        let attempts = async {
            let mut turn = 0;
            loop {
                // While streams run, there may be another instance: silence counts.
                let running = self.window().is_some();
                let place = if running { place + turn } else { place };
                let pause = match self.connect(caller, place, Instant::now()).await {
                    Ok(socket) => return socket,
                    Err(Failure::Refused { retry_after, .. }) => {
                        retry_after.unwrap_or(Duration::from_millis(500))
                    }
                    Err(Failure::Failed(_)) => Duration::from_millis(100),
                };
                let jitter = pause.mul_f64(fastrand::f64() / 2.0);
                let most = if running { Duration::from_millis(50) } else { Duration::MAX };
                tokio::time::sleep(pause.min(most) + jitter).await;
                turn += 1;
            }
        };
        timeout(limit, attempts).await.ok()
    }

    /// Closes a socket, and reads it to its end.
    pub(super) async fn goodbye(&self, socket: &Socket) {
        socket.close();
        let _ = timeout(CLOSE_LIMIT, async { while socket.receive().await.is_ok() {} }).await;
        self.ended(None);
    }

    /// Counts a connection's end; `code` when the relay ended it.
    pub(super) fn ended(&self, code: Option<u16>) {
        let mut tally = self.tally.borrow_mut();
        tally.connected -= 1;
        if let Some(code) = code {
            *tally.closes.entry(code).or_default() += 1;
        }
    }
}

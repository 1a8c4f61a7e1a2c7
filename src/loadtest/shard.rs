//! One thread of the generator: its share of the users, and what it counts.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::connect::{Attempt, Failure, Target, connect};
use super::dialect::Caller;
use super::settings::{Link, LoadOptions};
use super::socket::Socket;
use super::tally::Tally;
use crate::relay::ids::Device;
use crate::relay::private::Private;

/// One user, signed in.
#[derive(Debug, Clone)]
pub(super) struct User {
    /// Its place among all users.
    pub(super) number: u32,
    pub(super) token: Private<Arc<str>>,
}

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
    /// Counted so far, before the measurement began.
    Before(Box<Tally>),
    /// Counted in this second of the measurement.
    Second(u64, Box<Tally>),
    /// All of this thread's users are connected, as far as they can be.
    Ready,
}

/// What all threads have in common.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) options: LoadOptions,
    pub(super) targets: Vec<Target>,
    /// Frames of other runs have another number.
    pub(super) run: u32,
    /// What frames' due times count from.
    pub(super) epoch: Instant,
}

/// One thread's users and its counters.
#[derive(Debug)]
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
    phase: watch::Receiver<Phase>,
    events: mpsc::Sender<Event>,
}

impl Shard {
    /// A share in which nobody is connected yet.
    pub(super) fn new(
        plan: Arc<Plan>,
        index: usize,
        users: Vec<User>,
        phase: watch::Receiver<Phase>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let (tally, ending) = (RefCell::default(), Cell::new(false));
        Self { plan, index, users, tally, ending, phase, events }
    }

    pub(super) fn options(&self) -> &LoadOptions {
        &self.plan.options
    }

    /// This thread's share of a rate.
    pub(super) fn share(&self, per_second: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "rates are small")]
        let share = per_second as f64 / self.options().threads as f64;
        share
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

    /// Waits for the run to be stopped.
    pub(super) async fn stopped(&self) {
        let mut phase = self.phase.clone();
        // A coordinator that is gone stops it, too.
        let _ = phase.wait_for(|phase| *phase == Phase::Stopping).await;
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
        let mut last = None;
        loop {
            let now = Instant::now();
            let second = self.second(now).or(last);
            last = second;
            let next = match (second, self.window()) {
                (Some(second), Some((begin, _))) => begin + Duration::from_secs(second + 1),
                (_, Some((begin, _))) => begin.min(now + Duration::from_millis(200)),
                _ => now + Duration::from_millis(200),
            };
            sleep_until(next.max(now + Duration::from_millis(1))).await;
            self.report(second).await;
        }
    }

    pub(super) async fn report(&self, second: Option<u64>) {
        let tally = Box::new(self.tally.take());
        let event = match second {
            Some(second) => Event::Second(second, tally),
            None => Event::Before(tally),
        };
        // The receiver is gone only when the whole run is.
        let _ = self.events.send(event).await;
    }

    /// One handshake; counts what comes of it, its duration from `due`.
    pub(super) async fn connect(&self, who: Who<'_>, place: usize, due: Instant) -> Result<Socket, Failure> {
        let targets = &self.plan.targets;
        let sources = &self.options().sources;
        let turn = who.user.number as usize * 2 + usize::from(who.device == Device::Mobile);
        let source: Option<IpAddr> = sources.get(turn % sources.len().max(1)).copied();
        let attempt = Attempt {
            caller: Caller { device: who.device, client: who.client, token: &who.user.token },
            dialect: self.options().dialect,
            source,
            link: who.link,
            reports: self.options().reports,
            turn,
        };
        let result = connect(&targets[place % targets.len()], &attempt).await;
        let mut tally = self.tally.borrow_mut();
        match &result {
            Ok(_) => {
                tally.welcomed += 1;
                tally.connected += 1;
                tally.handshake.record(Instant::now().saturating_duration_since(due));
            }
            Err(Failure::Refused { code, .. }) => *tally.refused.entry(code.clone()).or_default() += 1,
            Err(Failure::Failed(why)) => *tally.failed.entry(why.clone()).or_default() += 1,
        }
        result
    }

    /// Connects, and comes back after refusals when they say so, until `limit` is over.
    pub(super) async fn connect_patiently(
        &self,
        who: Who<'_>,
        place: usize,
        limit: Duration,
    ) -> Option<Socket> {
        let attempts = async {
            for turn in 0.. {
                let place = if self.window().is_some() { place + turn } else { place };
                let pause = match self.connect(who, place, Instant::now()).await {
                    Ok(socket) => return Some(socket),
                    Err(Failure::Refused { retry_after, .. }) => {
                        retry_after.unwrap_or(Duration::from_millis(500))
                    }
                    Err(Failure::Failed(_)) => Duration::from_millis(100),
                };
                let jitter = pause.mul_f64(fastrand::f64() / 2.0);
                // While streams run, there may be another instance: silence counts.
                let pause =
                    if self.window().is_some() { pause.min(Duration::from_millis(50)) } else { pause };
                tokio::time::sleep(pause + jitter).await;
            }
            None
        };
        timeout(limit, attempts).await.ok().flatten()
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

/// What one handshake of a user needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who<'a> {
    pub(super) user: &'a User,
    pub(super) device: Device,
    /// The query's `client`.
    pub(super) client: &'a str,
    /// Only for receivers behind a thin link.
    pub(super) link: Option<Link>,
}

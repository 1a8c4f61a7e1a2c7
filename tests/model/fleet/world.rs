//! A fleet in numbers. Each simulated socket stands for `weight` sockets; whole addresses are simulated, so that their
//! buckets, the relay's own, see every one of their handshakes.
//!
//! An instance and a node of Redis are queues: work is done in its order, at the pace of the CPU that is free. What an
//! attempt meets is so known when it begins.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use duorelay::backplane::CALL_LIMIT;
use duorelay::backplane::connectivity::{DOWN_AFTER, PROBE_EVERY};
use duorelay::backplane::redis::{CLAIMS, RENEWALS, SHARDED_AT_ONCE, TURN_LIMIT};
use duorelay::edge::places;
use duorelay::relay::address::Address;
use duorelay::relay::refusal::Refusal;
use duorelay::relay::renewals;
use fastrand::Rng;

use super::client::Timing;
use super::numbers::{Fleet, Loss, Outcomes, Queue};

#[derive(Debug, Clone, Copy)]
enum Step {
    Connect(u32),
    Ask(u32),
    Answered {
        socket: u32,
        instance: u16,
        outcome: Outcome,
        asked: bool,
    },
    Claim {
        socket: u32,
        instance: u16,
    },
    /// A claim has waited for its turn as long as it may.
    TurnIsOver {
        socket: u32,
        instance: u16,
    },
    Claimed {
        instance: u16,
        node: u16,
    },
    Subscribe {
        node: u16,
        left: u32,
    },
    Renew(Renewing),
}

/// A worker's renewals on one node after it came back. The worker has asked for `asked` of them. Of those that it has
/// asked for since the last tick, `left` have not left yet.
#[derive(Debug, Clone, Copy)]
struct Renewing {
    node: u16,
    begun: f64,
    asked: u32,
    left: u32,
    since: f64,
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Welcome,
    Refused(Refusal),
    /// The session would be let in now.
    Open,
    /// No answer: closed, or given up.
    None,
}

struct Socket {
    address: u32,
    home: u16,
    node: u16,
    failures: u8,
    is_browser: bool,
    crowded: bool,
    waits: bool,
}

/// Claims of one instance on one node.
#[derive(Default)]
struct Turns {
    taken: f64,
    waiting: VecDeque<u32>,
}

/// A hundredth of a second is one place in the calendar.
const PLACES_A_SECOND: f64 = 100.0;
/// No storm is watched for longer.
const END: f64 = 600.0;

struct World<'a> {
    fleet: &'a Fleet,
    loss: Loss,
    timing: Timing,
    rng: Rng,
    sockets: Vec<Socket>,
    calendar: Vec<Vec<(f64, Step)>>,
    instances: Vec<Queue>,
    pending: Vec<f64>,
    open: Vec<f64>,
    nodes: Vec<Queue>,
    turns: HashMap<(u16, u16), Turns>,
    addresses: HashMap<(u16, u32), Address>,
    begun: Instant,
    outcomes: Outcomes,
}

/// Plays one loss.
pub(super) fn play(fleet: &Fleet, loss: Loss, seed: u64) -> Outcomes {
    let each = f64::from(fleet.sockets) / f64::from(fleet.instances);
    let mut world = World {
        fleet,
        loss,
        timing: Timing::of_the_client(),
        rng: Rng::with_seed(seed),
        sockets: Vec::new(),
        calendar: (0..(END * PLACES_A_SECOND) as usize).map(|_| Vec::new()).collect(),
        instances: (0..fleet.instances).map(|_| Queue::default()).collect(),
        pending: vec![0.0; fleet.instances.into()],
        open: vec![each; fleet.instances.into()],
        nodes: (0..fleet.nodes).map(|_| Queue::default()).collect(),
        turns: HashMap::new(),
        addresses: HashMap::new(),
        begun: Instant::now(),
        outcomes: Outcomes {
            lost: 0.0,
            back: Vec::new(),
            attempts: 0.0,
            refused: BTreeMap::new(),
            instance_peak: 0.0,
            redis_peak: 0.0,
            instance_wait: 0.0,
            redis_wait: 0.0,
            late_renewals: 0.0,
            renewed_at: 0.0,
        },
    };
    world.begin();
    world.run();
    world.finish()
}

impl World<'_> {
    fn begin(&mut self) {
        let (fleet, loss) = (self.fleet, self.loss);
        let moving = if fleet.lifetime > 0.0 { loss.failover.max(1.0) / fleet.lifetime } else { 0.0 };
        let mut address = 0;
        for crowd in fleet.crowds {
            let simulated = f64::from(fleet.sockets) * crowd.share / f64::from(fleet.weight);
            for number in 0..simulated as u32 {
                address += u32::from(number % crowd.sockets == 0);
                let (home, node) = (self.rng.u16(0..fleet.instances), self.rng.u16(0..fleet.nodes));
                let (was_lost, moves) = (home < loss.instances, self.rng.f64() < moving);
                // Of the others only those matter that would come anyway while a node is away: their time is over.
                let is_due = was_lost || (node < loss.nodes && moves);
                if !is_due {
                    continue;
                }
                let is_streaming = self.rng.f64() < fleet.streaming;
                let mut socket = Socket {
                    address,
                    home,
                    node,
                    failures: 0,
                    is_browser: self.rng.f64() < fleet.browsers,
                    // Fewer than that never meet a limit.
                    crowded: crowd.sockets >= 64,
                    waits: false,
                };
                let at = match (was_lost, loss.silent) {
                    (false, _) => self.rng.f64() * loss.failover,
                    (true, None) => self.timing.wait(&mut socket.failures, 0.0, &mut self.rng),
                    (true, Some(balancer)) => {
                        let noticed = self.timing.notices(is_streaming, &mut self.rng).min(balancer);
                        noticed + self.timing.wait(&mut socket.failures, 0.0, &mut self.rng)
                    }
                };
                let number = self.sockets.len() as u32;
                self.sockets.push(socket);
                self.at(at, Step::Connect(number));
            }
        }
        self.outcomes.lost = self.sockets.len() as f64 * f64::from(fleet.weight);
        for node in 0..loss.nodes {
            for _ in 0..u32::from(fleet.instances - loss.instances) * u32::from(fleet.workers) {
                // The map is looked at twice a second, and a new connection waits up to a second, with jitter.
                let connected = loss.failover + self.rng.f64() * 0.5 + 0.5 + self.rng.f64();
                self.at(connected, Step::Subscribe { node, left: self.seats() });
            }
        }
    }

    /// A worker's sockets on one node.
    fn seats(&self) -> u32 {
        let fleet = self.fleet;
        let places = u32::from(fleet.instances) * u32::from(fleet.workers) * u32::from(fleet.nodes);
        fleet.sockets.div_ceil(places)
    }

    fn at(&mut self, at: f64, step: Step) {
        if let Some(place) = self.calendar.get_mut((at * PLACES_A_SECOND) as usize) {
            place.push((at, step));
        }
    }

    fn run(&mut self) {
        for place in 0..self.calendar.len() {
            // What a step plans for this same hundredth is done in it.
            while !self.calendar[place].is_empty() {
                for (now, step) in std::mem::take(&mut self.calendar[place]) {
                    self.step(now, step);
                }
            }
        }
    }

    fn step(&mut self, now: f64, step: Step) {
        match step {
            Step::Connect(socket) => self.ask(now, socket, false),
            Step::Ask(socket) => self.ask(now, socket, true),
            Step::Answered { socket, instance, outcome, asked } => {
                self.pending[usize::from(instance)] -= f64::from(self.fleet.weight);
                self.on_answer(now, socket, instance, outcome, asked);
            }
            Step::Claim { socket, instance } => {
                let node = self.sockets[socket as usize].node;
                self.sockets[socket as usize].waits = true;
                self.turns.entry((instance, node)).or_default().waiting.push_back(socket);
                self.at(now + TURN_LIMIT.as_secs_f64(), Step::TurnIsOver { socket, instance });
                self.take_turns(now, instance, node);
            }
            Step::TurnIsOver { socket, instance } => {
                if std::mem::take(&mut self.sockets[socket as usize].waits) {
                    let outcome = Outcome::Refused(Refusal::BackplaneUnavailable);
                    self.at(now, Step::Answered { socket, instance, outcome, asked: false });
                }
            }
            Step::Claimed { instance, node } => {
                self.turns.entry((instance, node)).or_default().taken -= f64::from(self.fleet.weight);
                self.take_turns(now, instance, node);
            }
            Step::Subscribe { node, left } => {
                let number = left.min(SHARDED_AT_ONCE as u32);
                let done = self.redis(now, node, number.into(), self.fleet.costs.subscription);
                let next = match left - number {
                    0 => {
                        let begun = done + PROBE_EVERY.as_secs_f64();
                        Step::Renew(Renewing { node, begun, asked: 0, left: 0, since: begun })
                    }
                    left => Step::Subscribe { node, left },
                };
                self.at(done, next);
            }
            Step::Renew(renewing) => self.renew(now, renewing),
        }
    }

    /// Once a second a worker renews what is due, in batches one after the other, for at most the limit of a call.
    fn renew(&mut self, now: f64, mut renewing: Renewing) {
        let seats = self.seats();
        if renewing.left > 0 && now > renewing.since + CALL_LIMIT.as_secs_f64() {
            self.outcomes.late_renewals += f64::from(renewing.left);
            // They are tried again, at the same pace: the others' turns count from so much later on.
            let spread = renewals::spread(seats as usize, self.fleet.lease).as_secs_f64();
            renewing.begun += f64::from(renewing.left) * spread / f64::from(seats);
            renewing.asked -= renewing.left;
            renewing.left = 0;
        }
        if renewing.left == 0 {
            if renewing.asked == seats {
                return;
            }
            let spread = renewals::spread(seats as usize, self.fleet.lease).as_secs_f64();
            let due = ((f64::from(seats) * (now - renewing.begun) / spread) as u32).min(seats);
            renewing = Renewing { left: due - renewing.asked, asked: due, since: now, ..renewing };
        }
        let number = renewing.left.min(RENEWALS as u32);
        renewing.left -= number;
        let done = self.redis(now, renewing.node, number.into(), self.fleet.costs.renewal);
        self.outcomes.renewed_at = self.outcomes.renewed_at.max(done);
        let next = if renewing.left > 0 { done } else { done.max(renewing.since + 1.0) };
        self.at(next, Step::Renew(renewing));
    }

    /// When a node has done so many commands.
    fn redis(&mut self, now: f64, node: u16, number: f64, cost: f64) -> f64 {
        let queue = &mut self.nodes[usize::from(node)];
        queue.count(now, number);
        queue.work(now, number * cost / self.fleet.redis_free)
    }

    /// A handshake, or the question why one failed.
    fn ask(&mut self, now: f64, number: u32, asked: bool) {
        let weight = f64::from(self.fleet.weight);
        let home = self.sockets[number as usize].home;
        let balancer_knows = now >= self.loss.silent.unwrap_or(0.0);
        let instance = if self.fleet.affinity && (home >= self.loss.instances || !balancer_knows) {
            home
        } else {
            let first = if balancer_knows { self.loss.instances } else { 0 };
            self.rng.u16(first..self.fleet.instances)
        };
        let limit = if asked { self.timing.session } else { self.timing.attempt };
        if !asked {
            self.outcomes.attempts += weight;
            self.instances[usize::from(instance)].count(now, weight);
        }
        let answer = if instance < self.loss.instances {
            Some((now + limit, Outcome::None))
        } else {
            self.meet(now, number, instance, asked)
        };
        self.pending[usize::from(instance)] += weight;
        if let Some((at, outcome)) = answer {
            self.at(at, Step::Answered { socket: number, instance, outcome, asked });
        }
    }

    /// What an instance answers, and when; `None`: it claims. Places bound its queue, so that no client gives up first.
    fn meet(&mut self, now: f64, number: u32, instance: u16, asked: bool) -> Option<(f64, Outcome)> {
        let Fleet { costs, free, weight, per_ip, .. } = *self.fleet;
        let place = usize::from(instance);
        let weight = f64::from(weight);
        if self.pending[place] + weight > places::Limits::default().places as f64 {
            return Some((now, Outcome::None));
        }
        let socket = &self.sockets[number as usize];
        let starts = self.instances[place].busy.max(now);
        let refuse = |queue: &mut Queue, refusal| {
            Some((queue.work(now, costs.refusal * weight / free), Outcome::Refused(refusal)))
        };
        if socket.crowded && per_ip > 0 {
            let address = self.addresses.entry((instance, socket.address)).or_default();
            let at = self.begun + Duration::from_secs_f64(starts);
            let visited =
                if asked { address.on_session(per_ip, at) } else { address.on_handshake(per_ip, at) };
            match visited {
                Err(retry_after) => {
                    return refuse(&mut self.instances[place], Refusal::TooManyAttempts { retry_after });
                }
                // A good token, and what is refused for the relay's state, cost their address nothing more.
                Ok(()) if !asked => address.on_proven(per_ip),
                Ok(()) => {}
            }
        }
        if self.open[place] + weight > self.fleet.max_connections {
            return refuse(&mut self.instances[place], Refusal::Full);
        }
        let node = socket.node;
        let is_away = node < self.loss.nodes && starts < self.loss.failover;
        let knows = starts >= DOWN_AFTER.as_secs_f64();
        let unanswered = |done: f64| done + CALL_LIMIT.as_secs_f64();
        if asked {
            let done = self.instances[place].work(now, costs.refusal * weight / free);
            if !is_away {
                // It looks at the room.
                return Some((self.redis(done, node, weight, costs.renewal), Outcome::Open));
            }
            let at = if knows { done } else { unanswered(done) };
            return Some((at, Outcome::Refused(Refusal::BackplaneUnavailable)));
        }
        let done = self.instances[place].work(now, costs.handshake * weight / free);
        if is_away {
            let at = if knows { done } else { unanswered(done) };
            return Some((at, Outcome::Refused(Refusal::BackplaneUnavailable)));
        }
        self.at(done, Step::Claim { socket: number, instance });
        None
    }

    /// Claims leave for a node as far as its workers have turns.
    fn take_turns(&mut self, now: f64, instance: u16, node: u16) {
        let weight = f64::from(self.fleet.weight);
        let most = (f64::from(self.fleet.workers) * CLAIMS as f64).max(weight);
        loop {
            let turns = self.turns.entry((instance, node)).or_default();
            if turns.taken + weight > most {
                return;
            }
            let Some(socket) = turns.waiting.pop_front() else { return };
            // Some have waited too long.
            if std::mem::take(&mut self.sockets[socket as usize].waits) {
                turns.taken += weight;
                self.claim(now, socket, instance, node);
            }
        }
    }

    /// The claim's work is done even if nobody waits for its answer any more.
    fn claim(&mut self, now: f64, socket: u32, instance: u16, node: u16) {
        let weight = f64::from(self.fleet.weight);
        self.nodes[usize::from(node)].count(now, weight * (self.fleet.costs.commands - 1.0));
        let claimed = self.redis(now, node, weight, self.fleet.costs.claim);
        // A turn, when it was waited for, has left Redis this much.
        let limit = now + (CALL_LIMIT - TURN_LIMIT).as_secs_f64();
        let (at, outcome) = if claimed > limit {
            (limit, Outcome::Refused(Refusal::BackplaneUnavailable))
        } else {
            self.open[usize::from(instance)] += weight;
            (claimed, Outcome::Welcome)
        };
        self.at(at, Step::Claimed { instance, node });
        self.at(at, Step::Answered { socket, instance, outcome, asked: false });
    }

    fn on_answer(&mut self, now: f64, number: u32, instance: u16, outcome: Outcome, asked: bool) {
        let weight = f64::from(self.fleet.weight);
        let (is_known, ordered) = match outcome {
            Outcome::Welcome => {
                self.outcomes.back.push(now);
                // A later one of this user is at home here.
                self.sockets[number as usize].home = instance;
                return;
            }
            Outcome::Refused(refusal) => (true, refusal.facts().retry_after),
            Outcome::Open => (true, None),
            Outcome::None => (false, None),
        };
        if !asked {
            let code = if let Outcome::Refused(refusal) = outcome { refusal.code() } else { "no answer" };
            *self.outcomes.refused.entry(code).or_default() += weight;
        }
        let socket = &mut self.sockets[number as usize];
        // A browser names no reason, and nobody does where nothing answered: the client asks over HTTP.
        if !asked && (socket.is_browser || !is_known) {
            return self.at(now, Step::Ask(number));
        }
        let wait = self.timing.wait(&mut socket.failures, ordered.unwrap_or(0).into(), &mut self.rng);
        self.at(now + wait, Step::Connect(number));
    }

    fn finish(mut self) -> Outcomes {
        let longest = |queues: &[Queue]| queues.iter().map(|queue| queue.longest).fold(0.0, f64::max);
        let peak = |queues: &[Queue]| queues.iter().map(Queue::peak).fold(0.0, f64::max);
        self.outcomes.instance_wait = longest(&self.instances);
        self.outcomes.redis_wait = longest(&self.nodes);
        self.outcomes.instance_peak = peak(&self.instances);
        self.outcomes.redis_peak = peak(&self.nodes);
        self.outcomes.back.sort_by(f64::total_cmp);
        self.outcomes
    }
}

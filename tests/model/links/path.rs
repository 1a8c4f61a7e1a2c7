//! Two ends that stream to each other over two links, each a queue of its own.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use duorelay::relay::pacing::{Kind, Pacing, Reporter};
use fastrand::Rng;
use serde_json::{Value, json};

/// Frames a second of each stream.
const FPS: f64 = 30.0;
/// What a frame costs beside its payload.
const HEADER: u32 = 8;

/// One way. Times are milliseconds.
#[derive(Clone, Copy)]
pub(super) struct Link {
    /// Bytes a millisecond, by the time.
    pub rate: fn(f64) -> f64,
    pub delay: f64,
    /// Each message takes up to so much longer; none overtakes another.
    pub jitter: f64,
    /// It stands still for the second time at the beginning of each of the first.
    pub stalls: Option<(f64, f64)>,
    /// What somebody else's traffic adds, by the time.
    pub foreign: fn(f64) -> f64,
}

/// One end.
#[derive(Clone, Copy)]
pub(super) struct End {
    pub streams: usize,
    pub frame_bytes: u32,
    /// It has a bulk transfer to send as well, without end.
    pub bulk: bool,
    /// It holds frames by the law.
    pub paced: bool,
    /// So many of its reports are lost.
    pub loses: f64,
    /// It reads and sends nothing from the first of these to the second.
    pub frozen: Option<(f64, f64)>,
    /// Its clock, by the true one.
    pub clock: fn(f64) -> f64,
}

#[derive(Debug, Clone, Copy)]
enum Content {
    Frame { made: f64 },
    Received { messages: u32, read_at: f64 },
    Reports(u16),
    Other,
}

enum Event {
    Tick {
        end: usize,
        stream: usize,
    },
    Bulk {
        end: usize,
    },
    Arrives {
        end: usize,
        content: Content,
        bytes: u32,
    },
    /// What is held is looked at again.
    Look {
        end: usize,
    },
    /// A report is due.
    Due {
        end: usize,
    },
    Thaw {
        end: usize,
    },
}

struct State {
    spec: End,
    pacing: Option<Pacing>,
    reporter: Reporter,
    /// A frame of each stream that waits: the stream, and when it was made.
    waiting: VecDeque<(usize, f64)>,
    bulk: bool,
    volatile_next: bool,
    asked: u16,
    /// When what is held is looked at again.
    look_at: f64,
    unread: Vec<(Content, u32)>,
    /// When the link takes the next message, and when the last one arrives.
    free_at: f64,
    last_at: f64,
    made: u32,
    /// Of the other end's frames: when they arrived, and how old.
    ages: Vec<(f64, f64)>,
    bytes: f64,
    /// Only of a run that is recorded.
    tape: Option<Tape>,
}

/// What an end's law was asked and what it answered, as steps of `tests/vectors/pacing.json`.
#[derive(Debug, Default)]
pub(super) struct Tape {
    pub pacing: Vec<Value>,
    pub reporter: Vec<Value>,
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Volatile => "volatile",
        Kind::Reliable => "reliable",
        Kind::Control => "control",
        Kind::Quiet => "quiet",
    }
}

/// What arrived of one end's frames in the second half.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub age_p50: f64,
    pub age_p99: f64,
    /// Bytes that arrived, of those that the link could carry and the streams need, in percent.
    pub used: f64,
    /// Frames that arrived, of those that were made, in percent.
    pub arrived: f64,
}

pub(super) struct Simulation {
    now: f64,
    half: f64,
    links: [Link; 2],
    ends: [State; 2],
    events: Vec<Option<Event>>,
    queue: BinaryHeap<Reverse<(u64, usize)>>,
    rng: Rng,
}

impl State {
    /// When the next message of that kind may leave, if there is one.
    fn leaves_at(&mut self, now: f64, is_there: bool, kind: Kind) -> f64 {
        match &mut self.pacing {
            _ if !is_there => f64::INFINITY,
            Some(pacing) => {
                let at = pacing.may_leave_at(now, kind);
                if let Some(tape) = &mut self.tape {
                    tape.pacing.push(json!(["may", now, name(kind), at]));
                }
                at
            }
            None => now,
        }
    }
}

impl Simulation {
    /// Runs for so long, and returns the outcome of each end's frames.
    pub(super) fn run(links: [Link; 2], ends: [End; 2], seconds: f64, seed: u64) -> [Outcome; 2] {
        let simulation = Self::played(links, ends, seconds, seed, false);
        [simulation.outcome(0, seconds), simulation.outcome(1, seconds)]
    }

    /// Runs for so long, and answers what each end's law was asked.
    pub(super) fn record(links: [Link; 2], ends: [End; 2], seconds: f64, seed: u64) -> [Tape; 2] {
        Self::played(links, ends, seconds, seed, true).ends.map(|end| end.tape.unwrap())
    }

    fn played(links: [Link; 2], ends: [End; 2], seconds: f64, seed: u64, records: bool) -> Self {
        let state = |spec: End| State {
            spec,
            pacing: spec.paced.then(|| Pacing::new((spec.clock)(0.0), 0, true)),
            reporter: Reporter::new(0),
            waiting: VecDeque::new(),
            bulk: false,
            volatile_next: false,
            asked: 500,
            look_at: f64::INFINITY,
            unread: Vec::new(),
            free_at: 0.0,
            last_at: 0.0,
            made: 0,
            ages: Vec::new(),
            bytes: 0.0,
            tape: records.then(Tape::default),
        };
        let mut simulation = Self {
            now: 0.0,
            half: seconds * 500.0,
            links,
            ends: ends.map(state),
            events: Vec::new(),
            queue: BinaryHeap::new(),
            rng: Rng::with_seed(seed),
        };
        // `welcome`, and a client's first word.
        simulation.send(0, 400, Content::Other, Kind::Control);
        simulation.send(1, 60, Content::Other, Kind::Control);
        for (end, spec) in ends.iter().enumerate() {
            for stream in 0..spec.streams {
                simulation.at(if end == 0 { 2_000.0 } else { 2_013.0 }, Event::Tick { end, stream });
            }
            if spec.bulk {
                simulation.at(4_000.0, Event::Bulk { end });
            }
        }
        simulation.go(seconds * 1_000.0);
        simulation
    }

    fn at(&mut self, time: f64, event: Event) {
        self.queue.push(Reverse(((time * 1_000.0).ceil() as u64, self.events.len())));
        self.events.push(Some(event));
    }

    fn go(&mut self, until: f64) {
        while let Some(Reverse((time, number))) = self.queue.pop() {
            self.now = time as f64 / 1_000.0;
            if self.now > until {
                return;
            }
            match self.events[number].take().unwrap() {
                Event::Tick { end, stream } => self.tick(end, stream),
                Event::Bulk { end } => {
                    self.ends[end].bulk = true;
                    self.push(end);
                }
                Event::Arrives { end, content, bytes } => match self.ends[end].spec.frozen {
                    Some((from, to)) if self.now >= from && self.now < to => {
                        if self.ends[end].unread.is_empty() {
                            self.at(to, Event::Thaw { end });
                        }
                        self.ends[end].unread.push((content, bytes));
                    }
                    Some(_) | None => self.read(end, content, bytes),
                },
                Event::Look { end } => {
                    self.ends[end].look_at = f64::INFINITY;
                    self.push(end);
                }
                Event::Due { end } => self.report(end),
                Event::Thaw { end } => {
                    for (content, bytes) in std::mem::take(&mut self.ends[end].unread) {
                        self.read(end, content, bytes);
                    }
                }
            }
        }
    }

    fn tick(&mut self, end: usize, stream: usize) {
        self.at(self.now + 1_000.0 / FPS, Event::Tick { end, stream });
        let (now, half) = (self.now, self.half);
        let state = &mut self.ends[end];
        if state.spec.frozen.is_some_and(|(from, to)| now >= from && now < to) {
            return;
        }
        state.made += u32::from(now > half);
        match state.waiting.iter_mut().find(|waiting| waiting.0 == stream) {
            Some(waiting) => waiting.1 = now,
            None => state.waiting.push_back((stream, now)),
        }
        self.push(end);
    }

    /// Sends what may leave; volatile and reliable messages in turns.
    fn push(&mut self, end: usize) {
        loop {
            let state = &mut self.ends[end];
            let now = (state.spec.clock)(self.now);
            let volatile_at = state.leaves_at(now, !state.waiting.is_empty(), Kind::Volatile);
            let bulk_at = state.leaves_at(now, state.bulk, Kind::Reliable);
            let next = volatile_at.min(bulk_at);
            if next > now {
                let look_at = self.now + next - now + 0.001;
                if look_at < state.look_at {
                    state.look_at = look_at;
                    self.at(look_at, Event::Look { end });
                }
                break;
            }
            if volatile_at <= now && (state.volatile_next || bulk_at > now) {
                state.volatile_next = false;
                let (_, made) = state.waiting.pop_front().unwrap();
                let bytes = state.spec.frame_bytes + HEADER;
                self.send(end, bytes, Content::Frame { made }, Kind::Volatile);
            } else {
                state.volatile_next = true;
                self.send(end, 1_000, Content::Other, Kind::Reliable);
            }
        }
        self.ask(end);
    }

    fn send(&mut self, end: usize, bytes: u32, content: Content, kind: Kind) {
        let state = &mut self.ends[end];
        let now = (state.spec.clock)(self.now);
        if let Some(pacing) = &mut state.pacing {
            pacing.on_sent(now, bytes, kind);
            if let Some(tape) = &mut state.tape {
                tape.pacing.push(json!(["sent", now, bytes, name(kind)]));
            }
        }
        let link = &self.links[end];
        let mut start = self.now.max(state.free_at);
        if let Some((every, lasts)) = link.stalls {
            start += (lasts - start % every).max(0.0);
        }
        state.free_at = start + f64::from(bytes) / (link.rate)(start);
        let late = link.jitter * self.rng.f64() + (link.foreign)(self.now);
        state.last_at = state.last_at.max(state.free_at + link.delay + late);
        let at = state.last_at;
        self.at(at, Event::Arrives { end: 1 - end, content, bytes });
    }

    fn read(&mut self, end: usize, content: Content, bytes: u32) {
        let state = &mut self.ends[end];
        let now = (state.spec.clock)(self.now);
        let is_quiet = matches!(content, Content::Received { .. } | Content::Reports(_));
        state.reporter.on_read(now, !is_quiet);
        if let Some(tape) = &mut state.tape {
            tape.reporter.push(json!(["read", now, !is_quiet, state.reporter.due_at()]));
        }
        if self.now > self.half {
            state.bytes += f64::from(bytes);
        }
        match content {
            Content::Frame { made } => state.ages.push((self.now, self.now - made)),
            Content::Received { messages, read_at } => {
                if let Some(pacing) = &mut state.pacing {
                    pacing.on_report(now, messages, read_at).unwrap();
                    let after = (pacing.is_limited(), pacing.pace(), pacing.queue(now));
                    let step = json!(["report", now, messages, read_at, true, after.0, after.1, after.2]);
                    if let Some(tape) = &mut state.tape {
                        tape.pacing.push(step);
                    }
                }
                self.push(end);
            }
            Content::Reports(every_ms) => {
                state.reporter.set_pace(every_ms);
                if let Some(tape) = &mut state.tape {
                    tape.reporter.push(json!(["pace", every_ms]));
                }
            }
            Content::Other => {}
        }
        self.report(end);
    }

    fn report(&mut self, end: usize) {
        let state = &mut self.ends[end];
        let now = (state.spec.clock)(self.now);
        match state.reporter.report(now) {
            Some((messages, read_at)) => {
                if let Some(tape) = &mut state.tape {
                    tape.reporter.push(json!(["report", now, messages, read_at]));
                }
                let is_lost = self.rng.f64() < state.spec.loses;
                if !is_lost {
                    self.send(end, 60, Content::Received { messages, read_at }, Kind::Quiet);
                }
            }
            None if state.reporter.due_at().is_finite() => {
                let wait = state.reporter.due_at() - now;
                self.at(self.now + wait + 0.001, Event::Due { end });
            }
            None => {}
        }
    }

    fn ask(&mut self, end: usize) {
        let state = &mut self.ends[end];
        let pace = state.pacing.as_ref().map_or(state.asked, Pacing::pace);
        if pace != state.asked {
            state.asked = pace;
            self.send(end, 40, Content::Reports(pace), Kind::Quiet);
        }
    }

    fn outcome(&self, from: usize, seconds: f64) -> Outcome {
        let (sender, receiver, link) = (&self.ends[from], &self.ends[1 - from], &self.links[from]);
        let tail = receiver.ages.iter().filter(|(at, _)| *at > self.half);
        let mut ages: Vec<f64> = tail.map(|(_, age)| *age).collect();
        ages.sort_by(f64::total_cmp);
        let need = match sender.spec.bulk {
            true => f64::INFINITY,
            false => {
                f64::from((sender.spec.frame_bytes + HEADER) * sender.spec.streams as u32) * FPS / 1_000.0
            }
        };
        let is_still = |time: f64| {
            let frozen = [sender, receiver].map(|end| end.spec.frozen).into_iter().flatten();
            link.stalls.is_some_and(|(every, lasts)| time % every < lasts)
                || frozen.into_iter().any(|(from, to)| time >= from && time < to)
        };
        let milliseconds = (self.half as u32..(seconds * 1_000.0) as u32).map(f64::from);
        let could: f64 =
            milliseconds.filter(|time| !is_still(*time)).map(|time| need.min((link.rate)(time))).sum();
        let share = |share: usize| ages.get(ages.len() * share / 100).copied().unwrap_or(f64::INFINITY);
        Outcome {
            age_p50: share(50),
            age_p99: share(99),
            used: 100.0 * receiver.bytes / could,
            arrived: 100.0 * ages.len() as f64 / f64::from(sender.made.max(1)),
        }
    }
}

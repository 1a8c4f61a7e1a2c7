//! One device of one user: its connection, which may move, and its streams.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::super::connect::User;
use super::super::dialect::{Caller, Heard};
use super::super::frame::{Arrival, Flow, Frame};
use super::super::shard::Shard;
use super::super::socket::Socket;
use crate::relay::ids::Device;

/// How long a device tries to get its first connection.
const FIRST_LIMIT: Duration = Duration::from_secs(60);
/// How long a device tries to come back.
const RETURN_LIMIT: Duration = Duration::from_secs(30);
/// How long a move waits for the old relay to hand on what it was sent.
const BARRIER_LIMIT: Duration = Duration::from_secs(1);
/// Reliable frames that wait for a connection; more are not sent.
const HELD: usize = 4096;

/// One device of one user.
pub(super) struct Member {
    shard: Rc<Shard>,
    user: User,
    device: Device,
    /// Its own name across connections.
    client: String,
    place: Cell<usize>,
    socket: RefCell<Option<Rc<Socket>>>,
    /// True from the ping before the next socket until its welcome: reliable frames wait.
    moving: Cell<bool>,
    /// That ping is answered: the relay has handed on what was sent before it.
    ponged: Notify,
    held: RefCell<VecDeque<Bytes>>,
    /// What it sends, in the order of the stream ids.
    flows: RefCell<Vec<(u8, Flow)>>,
    last_arrival: Cell<Option<Instant>>,
    longest_silence: Cell<Duration>,
}

impl Member {
    /// A member without a socket.
    pub(super) fn new(shard: &Rc<Shard>, user: &User, device: Device) -> Self {
        let options = shard.options();
        let place = options.place(user.number as usize, device);
        let flows = options.streams.iter().map(|id| (*id, Flow::default())).collect();
        Self {
            shard: shard.clone(),
            user: user.clone(),
            device,
            client: format!("load-{}-{device}", user.number),
            place: Cell::new(place),
            socket: RefCell::default(),
            moving: Cell::new(false),
            ponged: Notify::new(),
            held: RefCell::default(),
            flows: RefCell::new(flows),
            last_arrival: Cell::new(None),
            longest_silence: Cell::new(Duration::ZERO),
        }
    }

    /// A copy: a borrow in the head of a loop would last through its body.
    fn current(&self) -> Option<Rc<Socket>> {
        self.socket.borrow().clone()
    }

    fn caller(&self) -> Caller<'_> {
        self.user.calls(self.device, &self.client)
    }

    /// Connects for the first time; false when that takes too long.
    pub(super) async fn connect(&self) -> bool {
        let socket = self.shard.connect_patiently(self.caller(), self.place.get(), FIRST_LIMIT).await;
        self.socket.replace(socket.map(Rc::new));
        self.socket.borrow().is_some()
    }

    /// Sends one frame on every stream.
    pub(super) fn send(&self, due: Instant, measured: bool) {
        let plan = &self.shard.plan;
        let nanos = due.saturating_duration_since(plan.epoch).as_nanos();
        let lag = Instant::now().saturating_duration_since(due);
        for (stream, flow) in self.flows.borrow_mut().iter_mut() {
            let reliable = *stream >= 0x80;
            let waits = self.moving.get() || self.socket.borrow().is_none();
            let mut tally = self.shard.tally.borrow_mut();
            if (waits && reliable && self.held.borrow().len() >= HELD)
                || (self.socket.borrow().is_none() && !reliable)
            {
                tally.unsent += u64::from(measured);
                continue;
            }
            let frame = Frame {
                stream: *stream,
                device: self.device,
                run: plan.run,
                user: self.user.number,
                sequence: flow.send(measured),
                due: u64::try_from(nanos).unwrap_or(u64::MAX),
            };
            if measured {
                tally.sent += 1;
                tally.lag.record(lag);
            }
            drop(tally);
            let bytes = frame.encode(plan.options.frame_bytes);
            if waits && reliable {
                self.held.borrow_mut().push_back(bytes);
            } else if let Some(socket) = &*self.socket.borrow() {
                // The reader of a socket learns that it has ended; what it did not take shows up as a gap.
                let _ = socket.send_frame(bytes);
            }
        }
    }

    /// Takes what the other device sent.
    fn arrived(&self, peer: &Self, message: &[u8]) {
        let now = Instant::now();
        let plan = &self.shard.plan;
        let mut tally = self.shard.tally.borrow_mut();
        let frame = Frame::decode(message).filter(|frame| {
            frame.run == plan.run && frame.user == self.user.number && frame.device == peer.device
        });
        let mut flows = peer.flows.borrow_mut();
        let flow = frame.and_then(|frame| {
            let (_, flow) = flows.iter_mut().find(|(id, _)| *id == frame.stream)?;
            Some((frame, flow))
        });
        let Some((frame, flow)) = flow else {
            tally.wrong_user += 1;
            return;
        };
        // Reliable frames wait while a sender moves, which is no silence as long as there are volatile ones.
        if (frame.stream >= 0x80) == (plan.options.streams.first() >= Some(&0x80)) {
            self.heard(now);
        }
        let measured = flow.is_measured(frame.sequence);
        let missing = if frame.stream >= 0x80 { &mut tally.lost } else { &mut tally.superseded };
        match flow.arrive(frame.sequence) {
            Arrival::Newest { skipped } => *missing += skipped.cast_signed(),
            Arrival::Late if measured => {
                *missing -= 1;
                tally.out_of_order += 1;
            }
            Arrival::Late => {}
            Arrival::Duplicate => {
                tally.duplicates += 1;
                return;
            }
        }
        if measured {
            tally.delivered += 1;
            let due = plan.epoch + Duration::from_nanos(frame.due);
            tally.latency.record(now.saturating_duration_since(due));
        }
    }

    fn heard(&self, now: Instant) {
        if let Some((begin, end)) = self.shard.window() {
            let last = self.last_arrival.get().unwrap_or(begin).max(begin);
            let silence = now.min(end).saturating_duration_since(last);
            self.longest_silence.set(self.longest_silence.get().max(silence));
        }
        self.last_arrival.set(Some(now));
    }

    /// Frames that were sent and have not arrived, and will be counted as lost.
    pub(super) fn outstanding(&self) -> u64 {
        self.flows.borrow().iter().map(|(_, flow)| flow.outstanding()).sum()
    }

    /// Counts what is known only at the end.
    pub(super) fn finish(&self) {
        let listens = self.shard.options().sends(self.device.other());
        if listens {
            self.heard(Instant::now());
        }
        let mut tally = self.shard.tally.borrow_mut();
        for (stream, flow) in self.flows.borrow().iter() {
            if *stream >= 0x80 {
                tally.lost += flow.outstanding().cast_signed();
            } else {
                tally.vanished += flow.outstanding();
            }
        }
        if listens {
            tally.silence.record(self.longest_silence.get());
        }
    }

    /// Sends a close frame, without waiting.
    pub(super) fn close(&self) {
        self.socket.borrow().iter().for_each(|socket| socket.close());
    }

    /// Reads, moves when the relay asks for it and comes back after a break, until the run ends.
    pub(super) async fn live(self: Rc<Self>, peer: Rc<Self>) {
        while let Some(socket) = self.current() {
            match self.read(&peer, &socket).await {
                Next::Move { at, deadline } => {
                    let leaving = (self.clone(), peer.clone(), socket.clone());
                    let reading = spawn_local(async move {
                        let (member, peer, socket) = leaving;
                        while let Next::Move { .. } = member.read(&peer, &socket).await {}
                    });
                    sleep(at.saturating_duration_since(Instant::now())).await;
                    // From here on reliable frames wait. What the old relay publishes after the claim of the
                    // new socket is dropped. So would be what is on its way by then, and the pong shows that
                    // nothing is.
                    self.moving.set(true);
                    let ponged = self.ponged.notified();
                    if socket.ping().is_ok() {
                        let _ = timeout(BARRIER_LIMIT, ponged).await;
                    }
                    self.replace(deadline).await;
                    // The relay closes the old socket when its slot is claimed; a deadline for one that does not.
                    let _ = timeout_at(deadline.max(Instant::now() + Duration::from_secs(1)), reading).await;
                }
                Next::Ended if self.shard.ending.get() => return,
                Next::Ended => {
                    self.socket.replace(None);
                    sleep(Duration::from_millis(fastrand::u64(0..20))).await;
                    self.replace(Instant::now() + RETURN_LIMIT).await;
                }
            }
        }
    }

    /// Makes the next connection before the old one is let go.
    async fn replace(&self, deadline: Instant) {
        self.moving.set(true);
        let limit = deadline.saturating_duration_since(Instant::now());
        let place = self.place.get() + 1;
        let next =
            self.shard.connect_patiently(self.caller(), place, limit.max(Duration::from_secs(1))).await;
        self.moving.set(false);
        let next = next.map(Rc::new);
        if let Some(socket) = &next {
            self.place.set(place);
            self.shard.tally.borrow_mut().reconnects += 1;
            for bytes in self.held.borrow_mut().drain(..) {
                // As in `send`.
                let _ = socket.send_frame(bytes);
            }
        }
        self.socket.replace(next);
    }

    /// Reads one socket until it ends or has to be replaced.
    async fn read(&self, peer: &Self, socket: &Socket) -> Next {
        loop {
            match socket.receive().await {
                Ok(Heard::Frame(bytes)) => self.arrived(peer, &bytes),
                Ok(Heard::Reconnect { in_ms, deadline_ms }) => {
                    let now = Instant::now();
                    return Next::Move {
                        at: now + Duration::from_millis(in_ms),
                        deadline: now + Duration::from_millis(deadline_ms),
                    };
                }
                Ok(Heard::Error { code }) => {
                    *self.shard.tally.borrow_mut().errors.entry(code).or_default() += 1;
                }
                Ok(Heard::Pong) => self.ponged.notify_waiters(),
                Ok(_) => {}
                Err(ended) => {
                    self.shard.ended((!self.shard.ending.get()).then_some(ended.0));
                    return Next::Ended;
                }
            }
        }
    }
}

/// What follows when a socket is no longer read.
#[derive(Debug)]
enum Next {
    /// Connect again at this instant; the old socket ends at the deadline.
    Move { at: Instant, deadline: Instant },
    /// The relay or the network has ended the socket.
    Ended,
}

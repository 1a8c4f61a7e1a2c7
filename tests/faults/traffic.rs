//! A pair of clients that send to each other all the time, and remember the outcome.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::support::{Client, Event};

/// Between two turns of sending; each turn is two messages of each side.
const TURN: Duration = Duration::from_millis(25);
const RELIABLE: u8 = 0x80;
const VOLATILE: u8 = 0x01;

/// One of the two clients.
pub struct Side {
    pub client: Client,
    /// When each frame was sent, by its number.
    sent: Vec<Instant>,
    /// The reliable and the volatile frames that came from the other: number, when.
    reliable: Vec<(usize, Instant)>,
    volatile: Vec<(usize, Instant)>,
    /// What the relay sent, but for answers to frames without a peer.
    pub notices: Vec<(Instant, Value)>,
    /// When the relay notified that a frame had no peer.
    pub absent: Vec<Instant>,
    has_ended: bool,
}

impl Side {
    fn new(client: Client) -> Self {
        Self {
            client,
            sent: Vec::new(),
            reliable: Vec::new(),
            volatile: Vec::new(),
            notices: Vec::new(),
            absent: Vec::new(),
            has_ended: false,
        }
    }

    fn replace(&mut self, client: Client) -> Client {
        self.notices.clear();
        std::mem::replace(&mut self.client, client)
    }

    async fn send(&mut self) {
        let number = u32::try_from(self.sent.len()).unwrap().to_be_bytes();
        self.sent.push(Instant::now());
        self.client.send_frame(RELIABLE, &number).await;
        self.client.send_frame(VOLATILE, &number).await;
    }

    fn receive(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Binary(bytes) => {
                let number = u32::from_be_bytes(bytes[1..].try_into().unwrap()) as usize;
                let arrived = if bytes[0] == RELIABLE { &mut self.reliable } else { &mut self.volatile };
                if let Some((last, _)) = arrived.last() {
                    assert!(number > *last, "{number} came after {last} on {:#x}", bytes[0]);
                }
                arrived.push((number, now));
            }
            Event::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                if message["code"] == "peer_absent" {
                    self.absent.push(now);
                } else {
                    self.notices.push((now, message));
                }
            }
            Event::Close(code, reason) => panic!("closed with {code} {reason}"),
            Event::End => {
                self.has_ended = true;
                panic!("the socket has ended");
            }
        }
    }

    /// When the relay first reported this of the backplane, from an instant on.
    pub fn notified_backplane(&self, state: &str, since: Instant) -> Option<Instant> {
        let is_it = |message: &Value| message["type"] == "backplane" && message["state"] == state;
        self.notices.iter().find(|(at, message)| *at >= since && is_it(message)).map(|(at, _)| *at)
    }

    /// True if the relay reported that the peer has gone, from an instant on.
    pub fn notified_disconnected(&self, since: Instant) -> bool {
        self.notices.iter().any(|(at, message)| {
            *at >= since && message["type"] == "peer" && message["state"] == "disconnected"
        })
    }
}

/// Two clients of one room.
pub struct Traffic {
    pub desktop: Side,
    pub mobile: Side,
    turn: Duration,
}

impl Traffic {
    pub fn new((desktop, mobile): (Client, Client)) -> Self {
        Self { desktop: Side::new(desktop), mobile: Side::new(mobile), turn: TURN }
    }

    /// The same at another pace.
    pub fn each(self, turn: Duration) -> Self {
        Self { turn, ..self }
    }

    /// A newer connection takes the desktop's slot. It goes on counting where the old one stopped: what that has sent
    /// may still arrive. Returns the old one.
    pub fn replace_desktop(&mut self, client: Client) -> Client {
        self.desktop.replace(client)
    }

    /// The same for the mobile.
    pub fn replace_mobile(&mut self, client: Client) -> Client {
        self.mobile.replace(client)
    }

    /// Sends and receives until something is so.
    pub async fn until(&mut self, limit: Duration, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + limit;
        let mut turns = interval(self.turn);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !is_so(self) {
            assert!(Instant::now() < deadline, "waited {limit:?} for {what}; notices: {:?}", self.summary());
            tokio::select! {
                event = self.desktop.client.next_within(2 * limit) => self.desktop.receive(event),
                event = self.mobile.client.next_within(2 * limit) => self.mobile.receive(event),
                _ = turns.tick() => {
                    self.desktop.send().await;
                    self.mobile.send().await;
                }
            }
        }
    }

    /// Goes on for some time.
    pub async fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        self.until(time + Duration::from_secs(5), "the time to pass", |_| Instant::now() >= end).await;
    }

    /// Goes on while something else is done.
    pub async fn during<T>(&mut self, other: impl Future<Output = T>) -> T {
        let going_on = self.until(Duration::from_secs(120), "something else to be done", |_| false);
        tokio::select! {
            output = other => output,
            () = going_on => unreachable!("it never ends by itself"),
        }
    }

    /// Waits until frames that were sent after an instant have arrived on both sides; returns how long after that
    /// instant.
    pub async fn crosses_after(&mut self, since: Instant, limit: Duration) -> Duration {
        let arrived = |from: &Side, to: &Side| {
            let is_late = |(number, _): &&(usize, Instant)| from.sent[*number] >= since;
            let reliable = to.reliable.iter().rev().take_while(is_late).last();
            let volatile = to.volatile.iter().rev().take_while(is_late).last();
            reliable.zip(volatile).map(|((_, a), (_, b))| (*a).max(*b))
        };
        let both = |traffic: &Self| {
            let (there, back) =
                (arrived(&traffic.desktop, &traffic.mobile), arrived(&traffic.mobile, &traffic.desktop));
            there.zip(back).map(|(there, back)| there.max(back))
        };
        self.until(limit, "frames to cross again", |traffic| both(traffic).is_some()).await;
        both(self).unwrap().duration_since(since)
    }

    /// True when reliable frames that were sent after an instant have arrived on both sides.
    pub fn has_crossed(&self, since: Instant) -> bool {
        let has = |from: &Side, to: &Side| {
            to.reliable.last().is_some_and(|(number, _)| from.sent[*number] >= since)
        };
        has(&self.desktop, &self.mobile) && has(&self.mobile, &self.desktop)
    }

    /// The greatest age at which a volatile frame arrived, of those that were sent and arrived in these times.
    pub fn oldest_volatile(&self, sent_after: Instant, arrived_after: Instant) -> Duration {
        let ages = |from: &Side, to: &Side| {
            let sent = from.sent.clone();
            let arrived = to.volatile.clone().into_iter();
            let mine =
                arrived.filter(move |(number, at)| sent[*number] >= sent_after && *at >= arrived_after);
            let sent = from.sent.clone();
            mine.map(move |(number, at)| at.duration_since(sent[number])).max().unwrap_or_default()
        };
        ages(&self.desktop, &self.mobile).max(ages(&self.mobile, &self.desktop))
    }

    /// The longest time between two arrivals on any of the four lanes, of those that touch these times.
    pub fn longest_silence(&self, from: Instant, to: Instant) -> Duration {
        let lanes =
            [&self.desktop, &self.mobile].into_iter().flat_map(|side| [&side.reliable, &side.volatile]);
        let silence = |lane: &Vec<(usize, Instant)>| {
            let before = lane.iter().map(|(_, at)| *at).rfind(|at| *at <= from).unwrap_or(from);
            let within = lane.iter().map(|(_, at)| *at).filter(|at| *at > from && *at < to);
            let (mut last, mut longest) = (before, Duration::ZERO);
            for at in within.chain([to]) {
                longest = longest.max(at.duration_since(last));
                last = at;
            }
            longest
        };
        lanes.map(silence).max().unwrap_or_default()
    }

    /// Reliable frames that were sent in these times and have not arrived: the desktop's and the mobile's.
    pub fn missing(&self, from: Instant, to: Instant) -> [Vec<usize>; 2] {
        let missing = |sender: &Side, receiver: &Side| {
            let arrived: HashSet<usize> = receiver.reliable.iter().map(|(number, _)| *number).collect();
            let sent = sender.sent.iter().enumerate().filter(|(_, at)| **at >= from && **at < to);
            sent.map(|(number, _)| number).filter(|number| !arrived.contains(number)).collect()
        };
        [missing(&self.desktop, &self.mobile), missing(&self.mobile, &self.desktop)]
    }

    /// The notices of both, without times.
    pub fn summary(&self) -> [Vec<&Value>; 2] {
        [&self.desktop, &self.mobile].map(|side| side.notices.iter().map(|(_, message)| message).collect())
    }

    /// No notice says that the other has gone.
    pub fn check_nobody_left(&self, since: Instant) {
        assert!(!self.desktop.notified_disconnected(since), "{:?}", self.summary());
        assert!(!self.mobile.notified_disconnected(since), "{:?}", self.summary());
    }
}

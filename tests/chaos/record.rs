//! Every connection's history, and what of it is wrong.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::device::DEVICES;
use crate::schedule::Trouble;
use crate::support;

/// What is this long ago does not explain what is wrong.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Things that are wrong and reported with their whole history.
const HISTORIES: usize = 8;
/// The contract's 2 s after a token's end, in whole seconds, and as much again for a busy machine.
const EXPIRY_LIMIT: i64 = 5;
/// How long after a fault its traces may last: a lease, and what comes back after it.
const HEALS_WITHIN: Duration = Duration::from_secs(8);

/// How a connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client's own doing.
    Own,
    /// Close frame with this code.
    Closed(u16),
    /// The end of TCP, without a word.
    Cut,
}

/// Frames of one sender on one lane that a connection received: the first and the last number.
pub type Received = BTreeMap<(u32, bool), (u32, u32)>;

/// What is known of a connection.
#[derive(Debug, Clone)]
pub struct Known {
    pub user: u32,
    pub device: usize,
    /// Which process it went to: the place in the fleet, and a number of its own.
    pub place: usize,
    pub process: usize,
    pub id: String,
    pub generation: u64,
    pub asked: Instant,
    pub welcomed: Instant,
    pub vanished: Option<Instant>,
    pub was_overwritten: bool,
    pub was_asked_to_move: bool,
    /// When its token expires, in seconds since the Unix epoch.
    pub expires: i64,
    /// The latest notices of the relay.
    pub notices: Vec<String>,
    pub end: Option<(Instant, End)>,
    pub received: Received,
    /// From which connection it heard last, and when: reliable and volatile.
    pub heard: [Option<(u32, Instant)>; 2],
}

/// A fault, and from when to when it was there.
#[derive(Debug)]
struct Noted {
    trouble: Trouble,
    begin: Instant,
    end: Option<Instant>,
}

impl Known {
    /// Neither side has ended it, and the client still listens.
    pub fn is_open(&self) -> bool {
        self.end.is_none() && self.vanished.is_none()
    }
}

/// All histories of a run.
pub struct Record {
    pub start: Instant,
    connections: Mutex<Vec<Known>>,
    faults: Mutex<Vec<Noted>>,
    /// Processes that were killed.
    killed: Mutex<Vec<usize>>,
    wrong: Mutex<Vec<String>>,
    /// Redis has lost its data: an older connection may take the place of a newer one that is gone.
    pub has_lost_data: AtomicBool,
    /// From here on every reliable frame is written down, with who received it.
    pub is_calm: AtomicBool,
    /// The machine was so busy that Redis seemed to be away in the calm.
    pub is_disturbed: AtomicBool,
    /// Senders without a peer in the calm: user, connection.
    pub calm_absent: Mutex<Vec<(u32, u32)>>,
    /// Reliable frames that were sent in the calm: sender, number.
    pub calm_sent: Mutex<Vec<(u32, u32)>>,
    /// Those that arrived: sender, number, receiver.
    pub calm_received: Mutex<Vec<(u32, u32, u32)>>,
    pub frames: AtomicUsize,
    pub overwritten: AtomicUsize,
    pub refused: Mutex<BTreeMap<String, usize>>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            connections: Mutex::default(),
            faults: Mutex::default(),
            killed: Mutex::default(),
            wrong: Mutex::default(),
            has_lost_data: AtomicBool::default(),
            is_calm: AtomicBool::default(),
            is_disturbed: AtomicBool::default(),
            calm_absent: Mutex::default(),
            calm_sent: Mutex::default(),
            calm_received: Mutex::default(),
            frames: AtomicUsize::default(),
            overwritten: AtomicUsize::default(),
            refused: Mutex::default(),
        }
    }
}

impl Record {
    /// Notes a breach of the contract.
    pub fn wrong(&self, what: String) {
        let mut wrong = self.wrong.lock().unwrap();
        if wrong.len() < 100 {
            eprintln!("{:.3} s: WRONG: {what}", self.seconds(Instant::now()));
            wrong.push(what);
        }
    }

    /// Notes a breach of the contract towards a user, with all that led to it.
    pub fn wrong_for(&self, user: u32, what: &str) {
        let has_enough = self.wrong.lock().unwrap().len() >= HISTORIES;
        let history = if has_enough { String::new() } else { self.history(user) };
        self.wrong(format!("user {user}: {what}{history}"));
    }

    /// Since the beginning.
    fn seconds(&self, at: Instant) -> f64 {
        at.duration_since(self.start).as_secs_f64()
    }

    /// What a user's connections went through lately, and what befell the instances and Redis meanwhile.
    fn history(&self, user: u32) -> String {
        let now = Instant::now();
        let recent = |end: Option<Instant>| end.is_none_or(|end| now.duration_since(end) < REMEMBERED);
        let mut lines = Vec::new();
        for (number, known) in self.of(user) {
            if !recent(known.end.map(|(at, _)| at)) {
                continue;
            }
            let Known { device, place, process, id, generation, notices, received, .. } = &known;
            let vanished = known.vanished.map(|at| format!(", vanished {:.3}", self.seconds(at)));
            let end = known.end.map(|(at, end)| format!(", ended {:.3} {end:?}", self.seconds(at)));
            lines.push((
                known.asked,
                format!(
                    "#{number} {} at {place} (process {process}), {id}, generation {generation}: welcomed {:.3}{}{}, \
                     received {received:?}, notices {notices:?}",
                    DEVICES[*device],
                    self.seconds(known.welcomed),
                    vanished.unwrap_or_default(),
                    end.unwrap_or_default(),
                ),
            ));
        }
        for Noted { trouble, begin, end } in self.faults.lock().unwrap().iter() {
            if recent(*end) {
                let end = end.map(|end| format!("{:.3}", self.seconds(end)));
                lines.push((*begin, format!("{trouble:?} until {}", end.unwrap_or_default())));
            }
        }
        lines.sort_by_key(|(at, _)| *at);
        lines.into_iter().map(|(at, line)| format!("\n    {:.3} {line}", self.seconds(at))).collect()
    }

    pub fn take_wrong(&self) -> Vec<String> {
        std::mem::take(&mut *self.wrong.lock().unwrap())
    }

    /// A handshake was refused.
    pub fn refused(&self, code: &str) {
        *self.refused.lock().unwrap().entry(code.to_owned()).or_default() += 1;
    }

    /// A connection was welcomed; its number.
    pub fn add(&self, known: Known) -> u32 {
        let mut connections = self.connections.lock().unwrap();
        // A generation grows with every claim of the room, whatever Redis has forgotten.
        let went_back = connections.iter().any(|older| {
            older.user == known.user && older.welcomed < known.asked && older.generation >= known.generation
        });
        let (user, number) = (known.user, connections.len());
        connections.push(known);
        drop(connections);
        if went_back {
            self.wrong_for(user, &format!("the generation of #{number} went back"));
        }
        u32::try_from(number).unwrap()
    }

    /// Changes what is known of a connection.
    pub fn with<T>(&self, number: u32, change: impl FnOnce(&mut Known) -> T) -> T {
        change(&mut self.connections.lock().unwrap()[number as usize])
    }

    pub fn all(&self) -> Vec<Known> {
        self.connections.lock().unwrap().clone()
    }

    /// A user's connections, each with its number.
    pub fn of(&self, user: u32) -> Vec<(u32, Known)> {
        let connections = self.connections.lock().unwrap();
        let numbered = (0..).zip(connections.iter()).filter(|(_, known)| known.user == user);
        numbered.map(|(number, known)| (number, known.clone())).collect()
    }

    /// A fault begins; its number.
    pub fn fault_begins(&self, trouble: Trouble) -> usize {
        let mut faults = self.faults.lock().unwrap();
        let begin = Instant::now();
        eprintln!("{:.3} s: {trouble:?}", self.seconds(begin));
        faults.push(Noted { trouble, begin, end: None });
        faults.len() - 1
    }

    pub fn fault_ends(&self, fault: usize) {
        self.faults.lock().unwrap()[fault].end = Some(Instant::now());
    }

    pub fn killed(&self, process: usize) {
        self.killed.lock().unwrap().push(process);
    }

    /// Was one of these places, or Redis, in trouble at that time?
    fn was_in_trouble(&self, places: &[usize], from: Instant, to: Instant) -> bool {
        self.faults.lock().unwrap().iter().any(|Noted { trouble, begin, end }| {
            trouble.instance().is_none_or(|place| places.contains(&place))
                && *begin <= to
                && end.is_none_or(|end| end + HEALS_WITHIN >= from)
        })
    }

    /// A connection has ended: was that all right?
    pub fn ended(&self, number: u32, end: End) {
        let now = Instant::now();
        let known = self.with(number, |known| {
            known.end = Some((now, end));
            known.clone()
        });
        let killed = || self.killed.lock().unwrap().contains(&known.process);
        let troubled = || self.was_in_trouble(&[known.place], known.welcomed, now);
        let is_right = match end {
            End::Own => true,
            End::Closed(4001) => known.was_overwritten,
            End::Closed(1012) => known.was_asked_to_move,
            // Within 2 s of its token's end, and no earlier.
            End::Closed(4003) => support::now() >= known.expires,
            // Only who is silent: a stopped process has no ear, but must look before it judges.
            End::Closed(4009) => known.vanished.is_some(),
            End::Closed(_) => false,
            // What waits may be cut off with who has vanished; and a stop can outlast the time for a goodbye.
            End::Cut => {
                killed()
                    || known.vanished.is_some()
                    || (known.was_overwritten || known.was_asked_to_move) && troubled()
            }
        };
        if !is_right {
            self.wrong_for(known.user, &format!("#{number} ended with {end:?}"));
        }
        let is_late = support::now() > known.expires + EXPIRY_LIMIT;
        if is_late && known.vanished.is_none() && !killed() && !troubled() {
            self.wrong_for(known.user, &format!("#{number} outlived its token ({})", known.expires));
        }
    }

    /// Each frame goes to exactly one of a device's sockets, and in order. What an older connection received
    /// of a sender stands before what a newer one did. Where a line was broken the older one's instance may
    /// not know yet.
    pub fn check_takeovers(&self) {
        let all = self.all();
        let mut devices: BTreeMap<_, Vec<&Known>> = BTreeMap::new();
        for known in &all {
            devices.entry((known.user, known.device)).or_default().push(known);
        }
        let (mut checked, mut passed_over) = (0, 0);
        for mut connections in devices.into_values() {
            connections.sort_by_key(|known| known.generation);
            for (at, newer) in connections.iter().enumerate() {
                for older in &connections[..at] {
                    for (lane, (first, _)) in &newer.received {
                        let Some((_, last)) = older.received.get(lane) else { continue };
                        let places = [older.place, newer.place, all[lane.0 as usize].place];
                        let until = older.end.map_or_else(Instant::now, |(at, _)| at);
                        if self.was_in_trouble(&places, newer.asked, until.max(newer.welcomed)) {
                            passed_over += 1;
                        } else if first <= last {
                            let what = format!(
                                "of {lane:?}, {last} came to {} and {first} to {}",
                                older.id, newer.id
                            );
                            self.wrong_for(newer.user, &what);
                        } else {
                            checked += 1;
                        }
                    }
                }
            }
        }
        eprintln!("takeovers without a gap: {checked} checked, {passed_over} in trouble passed over");
    }

    /// In the calm nobody is without a peer, and no reliable frame is lost or doubled.
    pub fn check_calm(&self) {
        if self.is_disturbed.load(Ordering::Relaxed) {
            return eprintln!(
                "in the calm a relay lost Redis for seconds: this machine is too busy to look at it"
            );
        }
        for (user, number) in self.calm_absent.lock().unwrap().iter() {
            self.wrong_for(*user, &format!("#{number} had no peer in the calm"));
        }
        let sent = self.calm_sent.lock().unwrap();
        let received = self.calm_received.lock().unwrap();
        let mut by_frame: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
        for (sender, number, receiver) in received.iter() {
            by_frame.entry((*sender, *number)).or_default().push(*receiver);
        }
        for frame in sent.iter() {
            let receivers = by_frame.get(frame).map_or(0, Vec::len);
            if receivers != 1 {
                let user = self.with(frame.0, |known| known.user);
                let what = format!("in the calm {frame:?} came {receivers} times: {:?}", by_frame.get(frame));
                self.wrong_for(user, &what);
            }
        }
        eprintln!("in the calm: {} reliable frames sent, {} received", sent.len(), received.len());
    }

    /// Reliable frames of the calm that have not arrived yet.
    pub fn calm_missing(&self) -> usize {
        let (sent, received) = (self.calm_sent.lock().unwrap(), self.calm_received.lock().unwrap());
        sent.len().saturating_sub(received.len())
    }

    pub fn count(&self, counter: &AtomicUsize) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

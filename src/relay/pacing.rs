//! The freshness law: how much may be under way on a path that reports what arrives.
//!
//! A sender keeps a [`Pacing`] for each connection, a receiver a [`Reporter`]. Both take the time as plain
//! milliseconds of a monotonic clock, and count messages and bytes of one connection from its start. The
//! browser client and the Dart client hold the same law; `tests/vectors/pacing.json` binds all three.
//!
//! Longer than most files: the law stands here in words and in code, and the clients carry the same one, part by
//! part.
//!
//! # Why one way
//! A round trip does not show which direction is slow: holding frames for it starves the direction that is
//! well. A report carries the receiver's clock. `read_at - sent_at` is the one-way delay up to a constant, and a
//! late report spoils nothing.
//!
//! # What the sender knows
//! | field | meaning |
//! | --- | --- |
//! | `log` | at most 20 entries (number, bytes, time), all cumulative: "when message `number` had left, `bytes` bytes had, at `time`". Entry 0 is the anchor: everything up to it is reported |
//! | `floor`, `extra` | the least one-way delay seen, and what a foreign queue adds to it. What is above both is our own queue |
//! | `rate` | bytes a millisecond that the path carries while it is the limit; infinite while it is not ("clear") |
//! | `finish` | when the path will have carried everything that has left, by our own clock, less the way itself |
//! | `waiting` | since when a message that makes a report due is unreported, or the last report that left one unreported; infinite if there is none |
//! | `gap` | the longest pause between reports lately: `max(pause, 0.9 gap + 0.1 pause)`, at most 5 s; 500 ms at first |
//!
//! # A message leaves (`on_sent`)
//! 1. It joins the last entry (which then takes its number, bytes and time) if that is not the anchor and the
//!    entry is still *small*. With the message, a small entry covers at most `stride` messages or began less
//!    than 4 ms ago. Else it is a new entry. A full log first drops every second entry (1, 3, 5 ..., but
//!    never the last) and doubles `stride`.
//! 2. `finish = max(finish, now) + bytes / rate`.
//! 3. Unless its kind is quiet: `due` is its number, and `waiting` is `now` if it was infinite. If it is reliable and
//!    over half of `window` is unreported, the path carries a *bulk* until that message is reported.
//! 4. If it is volatile or reliable, `left_at` is `now`. A drain ends, and the next one is due in 20 s. If
//!    the path is silent, `probe` doubles up to 2 s, and the first such message is the `proof` that ends the
//!    silence.
//!
//! # May one leave (`may_leave_at`)
//! Answers a time: it may leave when that is not after `now`. It is asked again then, and after each report.
//! 1. The path is *silent* from `waiting + 2 gap + 300` on, where the other end reports at all. Then:
//!    `left_at + probe`. After a silence it is so until a report covers the proof, or at least 4 messages
//!    without a queue, or the path is limited. A report may say no more than that the path lives, while what
//!    left before the silence still fills it.
//! 2. While clear: `now`; a reliable message waits while `window` bytes are unreported (until silence, or
//!    `left_at + probe` if that is later).
//! 3. Else `finish - 80`: 80 ms of queue keep the link busy while a report is under way. During a drain and
//!    until everything is reported (`waiting` is infinite), the end of the drain. A drain begins at `drain_at` and
//!    takes at most 1.5 s. The answer is no later than the first probe after silence begins, and no later than
//!    `left_at + 250` while everything is reported.
//!
//! # A report comes (`on_report`)
//! A report that claims more than was sent or a time beyond 1e15 is bad; so is one that goes back behind the last one.
//! One that repeats the last number changes nothing. Else, with `e` the first entry that covers the
//! message, `p` the one before, and the message *exact* if it is `e`'s last:
//! 1. Bytes are interpolated between `p` and `e`; `size` is the mean size of a message of `e`. `e.time` is the
//!    latest time at which it can have left, `p.time` (`e.time` if exact) the earliest.
//! 2. `gap` and `waiting` as above; `probe = 250` unless the path is still probed.
//! 3. The way. `delay = read_at - latest`, `longest = read_at - earliest`, `trip = now - latest`.
//!    `trip_least` is the least `trip` seen. `sure` counts reports without a queue within 20 ms of it (a fall
//!    by more than 20 ms counts anew). The first of these that holds:
//!    - `longest < floor`: that is the floor, without extra.
//!    - a jump of the receiver's clock: `delay - floor - extra` is above what the round trip leaves room for.
//!      That room is `trip`, and `trip - trip_least + 20` once `sure` is 8. The floor rises by the
//!      difference. While limited, a jump by more than 80 ms raises it until the queue is what the last
//!      report showed.
//!    - limited, and nothing of ours was before the message on the path (*lone*):
//!      `longest - size / rate - floor` is the new extra. If it is negative after 5 reports with a queue, it
//!      lowers the floor. Up to 30 ms it counts as 0. Two lone messages in a row must see a rise by more than
//!      30 ms (a second drain is due at once).
//!    - `longest < floor + extra`: the extra is the difference to the floor.
//!
//!    `queue = delay - floor - extra`.
//! 4. The rate. `busy` is how long the path carried these bytes. It ends at `read_at`. It begins at the last
//!    report's `read_at`, or when the first of them can have arrived if that is later.
//!    - clear, and the queue is above 80 ms: limited to `bytes / busy`. Drain in 1 s.
//!    - limited, and the receiver's clock went back: as it was.
//!    - limited, and the fifth report in a row has a queue: the floor was measured with a message's own time
//!      on the link in it. `floor` and `trip_least` lose `floor_bytes / max(peak, rate)`, once, and at most
//!      `trip_least`. A first report must not do that: a message that a busy machine delays looks like a very
//!      thin link. A floor that is too low makes every later message look queued.
//!    - limited, queue above 30 ms: `rate = (200 rate + bytes) / (200 + busy)`, where the old rate counts as at most
//!      four times `bytes / busy` if the queue is above 80 ms.
//!    - limited, no queue, and something was held since the last growth, which this message has felt. The
//!      same, but 1.25 to 2 times the old rate, and at least what arrived by the receiver's clock (over 50 ms
//!      or more).
//!    - limited, queue at most 80 ms, nothing held for 500 ms: clear again. `window` is `200 rate`, 32 KiB to 1 MiB.
//!    - clear, and over half of `window` was unreported: the window doubles, up to 1 MiB.
//! 5. `finish` starts at `read_at - floor - extra` and takes each entry that is left as in `on_sent`. `stride` halves
//!    when less than half of the log is left. The anchor is the reported message, with the earliest time.
//!
//! # The pace of reports (`pace`)
//! 100 ms while limited or with a bulk, else 500. Volatile frames that are unreported for long ask for no
//! more. Their reports are late because the other way is thin, and more of them would fill it.
//!
//! # The receiver
//! A report is due with the first unreported message that makes one due, but not before `pace` after the last
//! report. A message that comes more than 150 ms after the one before shows that a queue may be forming. For
//! one second the pace is then at most 100 ms. A receiver may send a report up to an eighth of the pace
//! before its time, with something that leaves in any case.

use std::fmt;

/// Entries of the log.
const LOG: usize = 20;
/// Messages that leave within this time share an entry.
const TOGETHER: f64 = 4.0;
/// The queue that is kept on a path which is the limit.
const TARGET: f64 = 80.0;
/// A queue up to here is none.
const QUIET: f64 = 30.0;
/// How long the rate remembers.
const SMOOTH: f64 = 200.0;
/// The least growth of the rate without a queue.
const GROW: f64 = 1.25;
/// The shortest time over which arrivals count as a rate.
const SPAN: f64 = 50.0;
/// The first pause between probes of a silent path, and the longest.
const PROBE: f64 = 250.0;
const PROBE_MOST: f64 = 2_000.0;
/// A report of so many messages without a queue ends a silence.
const PROVES: u32 = 4;
/// The longest drain, the pause before the first, and between two.
const DRAIN: f64 = 1_500.0;
const DRAIN_FIRST: f64 = 1_000.0;
const DRAIN_EVERY: f64 = 20_000.0;
/// A path that held nothing back for this long is clear.
const CLEAR_AFTER: f64 = 500.0;
/// Reliable bytes that may be unreported while the path is clear: at first, and at most.
const WINDOW: f64 = 32_768.0;
const WINDOW_MOST: f64 = 1_048_576.0;
/// Reports within this of the least round trip confirm it; so many make it sure.
const TRIP_SLACK: f64 = 20.0;
const SURE: u8 = 8;
/// Reports with a queue before a lone message may lower the floor.
const LOADED: u8 = 5;
/// No monotonic clock in milliseconds is further from its origin.
const CLOCK_MOST: f64 = 1e15;
/// A path on which nothing was paced for so long is idle.
const IDLE: f64 = 30_000.0;
/// The longest pause between reports that counts.
const GAP_MOST: f64 = 5_000.0;

/// How often reports come while nobody asks for another pace, in milliseconds.
pub const SLOW_PACE: u16 = 500;
/// How often a sender asks for reports while the path is the limit, in milliseconds.
pub const FAST_PACE: u16 = 100;
/// A message that comes so long after the one before may have waited in a queue.
const HICCUP: f64 = 150.0;
/// How long the receiver reports at the fast pace after that.
const ALERT: f64 = 1_000.0;

/// What kind of message leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A frame that a newer one may replace.
    Volatile,
    /// A message that must arrive.
    Reliable,
    /// What never waits, but makes a report due.
    Control,
    /// What never waits and makes no report due: `received`, `reports`, `ping`, `pong`.
    Quiet,
}

/// The report cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadReport;

/// "When message `number` had left, `bytes` bytes had, at `time`." Both counts wrap.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sent {
    number: u32,
    bytes: u32,
    time: f64,
}

impl Sent {
    fn bytes_since(self, earlier: Self) -> f64 {
        f64::from(self.bytes.wrapping_sub(earlier.bytes))
    }

    fn messages_since(self, earlier: Self) -> u32 {
        self.number.wrapping_sub(earlier.number)
    }
}

/// The sender's side. One is 504 bytes.
pub struct Pacing {
    log: [Sent; LOG],
    read_at: f64,
    reported_at: f64,
    floor: f64,
    extra: f64,
    suspect: f64,
    floor_bytes: f64,
    peak: f64,
    grew_at: f64,
    trip_least: f64,
    queue: f64,
    rate: f64,
    finish: f64,
    waiting: f64,
    gap: f64,
    left_at: f64,
    joined_at: f64,
    probe: f64,
    window: f64,
    held_at: f64,
    drain_at: f64,
    stride: u32,
    due: u32,
    len: u8,
    sure: u8,
    loaded: u8,
    draining: bool,
    reporting: bool,
    /// The path was silent, and nothing has shown since that it is clear.
    probing: bool,
    /// The first probe of the silence.
    proof: u32,
    /// The last reliable message that left while over half of the window was unreported.
    bulk: u32,
}

impl fmt::Debug for Pacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue, rate, finish, .. } = self;
        write!(f, "Pacing(queue {queue:.1} ms, rate {rate:.2} bytes/ms, finish {finish:.1})")
    }
}

impl Pacing {
    /// A path of which nothing is known. `messages` have left on it; `reporting` if the other end is known to report.
    #[must_use]
    pub fn new(now: f64, messages: u32, reporting: bool) -> Self {
        Self {
            log: [Sent { number: messages, bytes: 0, time: now }; LOG],
            read_at: f64::NEG_INFINITY,
            reported_at: now,
            floor: f64::INFINITY,
            extra: 0.0,
            suspect: 0.0,
            floor_bytes: 0.0,
            peak: 0.0,
            grew_at: f64::NEG_INFINITY,
            trip_least: f64::INFINITY,
            queue: 0.0,
            rate: f64::INFINITY,
            finish: now,
            waiting: f64::INFINITY,
            gap: f64::from(SLOW_PACE),
            left_at: now,
            joined_at: now,
            probe: PROBE,
            window: WINDOW,
            held_at: f64::NEG_INFINITY,
            drain_at: f64::INFINITY,
            stride: 1,
            due: messages,
            len: 1,
            sure: 0,
            loaded: 0,
            draining: false,
            reporting,
            probing: false,
            bulk: messages,
            proof: messages,
        }
    }

    fn entries(&self) -> &[Sent] {
        &self.log[..usize::from(self.len)]
    }

    fn last(&self) -> Sent {
        self.log[usize::from(self.len) - 1]
    }

    /// Bytes that left and are not reported.
    #[must_use]
    pub fn unreported(&self) -> f64 {
        self.last().bytes_since(self.log[0])
    }

    /// Is this message among those that are logged, or the last one before them?
    #[must_use]
    pub fn knows(&self, messages: u32) -> bool {
        messages.wrapping_sub(self.log[0].number) <= self.last().messages_since(self.log[0])
    }

    /// Nothing was paced for half a minute, and no report is awaited.
    #[must_use]
    pub fn is_idle(&self, now: f64) -> bool {
        self.waiting == f64::INFINITY && now - self.left_at > IDLE
    }

    /// Is the path the limit?
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.rate != f64::INFINITY
    }

    /// The queue on the path, in milliseconds.
    #[must_use]
    pub fn queue(&self, now: f64) -> f64 {
        let queue = if self.is_limited() { self.finish - now } else { self.queue };
        queue.max(0.0)
    }

    /// The pace of reports to ask the other end for, in milliseconds.
    #[must_use]
    pub fn pace(&self) -> u16 {
        if self.is_limited() || self.is_bulk() { FAST_PACE } else { SLOW_PACE }
    }

    fn is_bulk(&self) -> bool {
        let ahead = self.bulk.wrapping_sub(self.log[0].number);
        ahead != 0 && ahead < u32::MAX / 2
    }

    fn silent_at(&self) -> f64 {
        if self.reporting { self.waiting + 2.0 * self.gap + 300.0 } else { f64::INFINITY }
    }

    /// A message of so many bytes left.
    pub fn on_sent(&mut self, now: f64, bytes: u32, kind: Kind) {
        let last = self.last();
        let sent =
            Sent { number: last.number.wrapping_add(1), bytes: last.bytes.wrapping_add(bytes), time: now };
        self.record(sent);
        self.finish = self.finish.max(now) + f64::from(bytes) / self.rate;
        if kind == Kind::Reliable && self.unreported() > self.window / 2.0 {
            self.bulk = sent.number;
        }
        if kind != Kind::Quiet {
            self.due = sent.number;
            if self.waiting == f64::INFINITY {
                self.waiting = now;
            }
        }
        if matches!(kind, Kind::Volatile | Kind::Reliable) {
            if now >= self.silent_at() {
                self.probe = (2.0 * self.probe).min(PROBE_MOST);
                if !self.probing {
                    (self.probing, self.proof) = (true, sent.number);
                }
            }
            self.left_at = now;
            if self.draining {
                self.draining = false;
                self.drain_at = now + DRAIN_EVERY;
            }
        }
    }

    fn record(&mut self, sent: Sent) {
        let len = usize::from(self.len);
        let joins = len > 1
            && (sent.messages_since(self.log[len - 2]) <= self.stride
                || sent.time - self.joined_at < TOGETHER);
        if joins {
            self.log[len - 1] = sent;
            return;
        }
        if len == LOG {
            let mut kept = 0;
            for i in (0..LOG).filter(|i| i % 2 == 0 || *i == LOG - 1) {
                self.log[kept] = self.log[i];
                kept += 1;
            }
            self.set_len(kept);
            self.stride = self.stride.saturating_mul(2);
        }
        self.log[usize::from(self.len)] = sent;
        self.len += 1;
        self.joined_at = sent.time;
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most LOG")]
    fn set_len(&mut self, len: usize) {
        self.len = len as u8;
    }

    /// When the next message of this kind may leave: now, or it is asked again then and after each report.
    #[must_use]
    pub fn may_leave_at(&mut self, now: f64, kind: Kind) -> f64 {
        let (probe, silent_at) = (self.left_at + self.probe, self.silent_at());
        if now >= silent_at || (self.probing && !self.is_limited()) {
            self.held_at = now;
            return probe;
        }
        if !self.is_limited() {
            let is_full = self.reporting && kind == Kind::Reliable && self.unreported() >= self.window;
            return if is_full { silent_at.max(probe) } else { now };
        }
        if !self.draining && now >= self.drain_at {
            self.draining = true;
            self.drain_at = now + DRAIN;
        }
        let drains = self.draining && self.waiting != f64::INFINITY;
        let mut at = if drains { self.drain_at } else { self.finish - TARGET };
        if self.waiting == f64::INFINITY {
            // Nothing under way will be reported: only this message can prove a wrong rate wrong.
            at = at.min(self.left_at + PROBE);
        }
        if at > now {
            self.held_at = now;
        }
        if at > silent_at { silent_at.max(probe) } else { at }
    }

    /// The other end has read so many messages, the last of them at `read_at` of its own clock.
    ///
    /// # Errors
    /// When it claims more than was sent, goes back, or is not a number.
    pub fn on_report(&mut self, now: f64, messages: u32, read_at: f64) -> Result<(), BadReport> {
        let anchor = self.log[0];
        let news = messages.wrapping_sub(anchor.number);
        if news > self.last().messages_since(anchor) || read_at.is_nan() || read_at.abs() > CLOCK_MOST {
            return Err(BadReport);
        }
        if news == 0 {
            return Ok(());
        }
        let found = self.entries().iter().position(|entry| entry.messages_since(anchor) >= news);
        let at = found.unwrap_or(usize::from(self.len) - 1);
        let (entry, before) = (self.log[at], self.log[at - 1]);
        let is_exact = entry.number == messages;
        let count = f64::from(entry.messages_since(before));
        let size = entry.bytes_since(before) / count;
        let share = f64::from(messages.wrapping_sub(before.number)) / count;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below a u32")]
        let bytes_to = before.bytes.wrapping_add((entry.bytes_since(before) * share) as u32);
        let earliest = if is_exact { entry.time } else { before.time };
        let reached =
            Sent { number: messages, bytes: if is_exact { entry.bytes } else { bytes_to }, time: earliest };
        let bytes = reached.bytes_since(anchor);
        let first =
            anchor.time + (self.log[1].time - anchor.time) / f64::from(self.log[1].messages_since(anchor));

        self.on_life(now, messages);
        let was_limited = self.is_limited();
        let was_full = self.unreported() > self.window / 2.0;
        let span = read_at - self.read_at;
        if span > 0.0 && span.is_finite() && !was_limited {
            self.peak = self.peak.max(bytes / span);
        }

        let is_first = before.bytes_since(anchor) <= size / 4.0;
        let is_past = earliest >= self.reported_at || earliest + self.floor + self.extra >= self.read_at;
        let is_lone = was_limited && is_exact && is_first && is_past;
        let jumped = self.on_way(now, read_at, entry.time, earliest, size, is_lone);
        self.on_rate(now, read_at, entry.time, first, bytes, jumped);
        let is_proof = messages.wrapping_sub(self.proof) < u32::MAX / 2;
        self.probing &= !self.is_limited() && !is_proof && (self.queue > QUIET || news < PROVES);
        if !self.probing {
            self.probe = PROBE;
        }
        if !was_limited && !self.is_limited() && was_full {
            self.window = (2.0 * self.window).min(WINDOW_MOST);
        }

        self.read_at = read_at;
        self.reported_at = now;
        let left = if is_exact { at + 1 } else { at };
        self.log.copy_within(left..usize::from(self.len), 1);
        self.set_len(usize::from(self.len) - left + 1);
        self.log[0] = reached;
        if usize::from(self.len) < LOG / 2 {
            self.stride = (self.stride / 2).max(1);
        }
        if !self.is_bulk() {
            self.bulk = messages;
        }
        let start = read_at - self.floor - self.extra;
        self.finish = self
            .entries()
            .windows(2)
            .fold(start, |finish, pair| finish.max(pair[1].time) + pair[1].bytes_since(pair[0]) / self.rate);
        Ok(())
    }

    /// A report has arrived: the path carries something.
    fn on_life(&mut self, now: f64, messages: u32) {
        let pause = now - self.waiting;
        if self.reporting && pause > 0.0 {
            self.gap = pause.max(0.9 * self.gap + 0.1 * pause).min(GAP_MOST);
        }
        self.reporting = true;
        let due = self.due.wrapping_sub(messages);
        let is_due = due != 0 && due < u32::MAX / 2;
        self.waiting = if is_due { now } else { f64::INFINITY };
    }

    /// Moves the floor and the extra; true when the receiver's clock jumped.
    fn on_way(
        &mut self,
        now: f64,
        read_at: f64,
        latest: f64,
        earliest: f64,
        size: f64,
        is_lone: bool,
    ) -> bool {
        let (delay, longest, trip) = (read_at - latest, read_at - earliest, now - latest);
        if trip < self.trip_least - TRIP_SLACK {
            self.sure = 0;
        }
        self.trip_least = self.trip_least.min(trip);
        let room = if self.sure >= SURE { trip - self.trip_least + TRIP_SLACK } else { trip };
        let jump = delay - self.floor - self.extra - room;
        let jumped = jump > 0.0;
        if longest < self.floor {
            self.floor = longest;
            self.extra = 0.0;
            self.floor_bytes = if self.is_limited() { 0.0 } else { size };
        } else if jumped {
            // A queue does not grow by more than the round trip: the clock jumped, and the queue is what it was.
            self.floor += jump;
            if self.is_limited() && jump > TARGET {
                self.floor += (room - self.queue).max(0.0);
            }
        } else if is_lone {
            self.on_lone(now, longest - size / self.rate - self.floor);
        } else if longest < self.floor + self.extra {
            self.extra = longest - self.floor;
        }
        self.queue = delay - self.floor - self.extra;
        self.loaded = if self.queue > QUIET { self.loaded.saturating_add(1).min(LOADED) } else { 0 };
        if self.queue <= QUIET && trip <= self.trip_least + TRIP_SLACK {
            self.sure = self.sure.saturating_add(1).min(SURE);
        }
        jumped
    }

    /// A message found nothing of ours on the path; it took `extra` longer than the floor.
    fn on_lone(&mut self, now: f64, extra: f64) {
        if extra < 0.0 && self.loaded >= LOADED {
            self.floor += extra;
            (self.extra, self.suspect) = (0.0, 0.0);
        } else if extra <= self.extra + QUIET {
            (self.extra, self.suspect) = (if extra > QUIET { extra } else { 0.0 }, 0.0);
        } else if self.suspect > 0.0 {
            (self.extra, self.suspect) = (extra.min(self.suspect), 0.0);
        } else {
            self.suspect = extra;
            if !self.draining {
                self.drain_at = self.drain_at.min(now);
            }
        }
    }

    fn on_rate(&mut self, now: f64, read_at: f64, latest: f64, first: f64, bytes: f64, jumped: bool) {
        let span = read_at - self.read_at;
        if !self.is_limited() {
            if !jumped && self.queue > TARGET {
                let start = self.read_at.max(first + self.floor);
                self.rate = bytes / (read_at - start).max(1.0);
                self.drain_at = now + DRAIN_FIRST;
            }
            return;
        }
        if span < 0.0 {
            // Its clock went back.
            return;
        }
        // Not before: the rate of the first reports may be a single late message's.
        if self.loaded >= LOADED && self.floor_bytes > 0.0 {
            let own = (self.floor_bytes / self.peak.max(self.rate)).min(self.trip_least);
            self.floor -= own;
            self.trip_least -= own;
            self.queue += own;
            self.floor_bytes = 0.0;
        }
        let busy = (read_at - self.read_at.max(first + self.floor + self.extra)).max(0.0);
        let most = if self.queue > TARGET && busy > 0.0 { 4.0 * bytes / busy } else { f64::INFINITY };
        let rate = (self.rate.min(most) * SMOOTH + bytes) / (busy + SMOOTH);
        if self.queue > QUIET {
            self.rate = rate;
        } else if latest >= self.grew_at && self.held_at > self.grew_at {
            self.rate = rate.clamp(GROW * self.rate, 2.0 * self.rate).max(bytes / span.max(SPAN));
            self.grew_at = now;
        }
        if self.queue <= TARGET && now - self.held_at > CLEAR_AFTER {
            self.window = (self.rate * 200.0).clamp(WINDOW, WINDOW_MOST);
            self.rate = f64::INFINITY;
            self.draining = false;
            self.drain_at = f64::INFINITY;
        }
    }
}

/// The receiver's side: counts what it reads, and says when a report is due.
#[derive(Debug, Clone, PartialEq)]
pub struct Reporter {
    due_at: f64,
    read_at: f64,
    reported_at: f64,
    alert_until: f64,
    read: u32,
    pace: u16,
}

impl Reporter {
    /// So many messages were read before.
    #[must_use]
    pub fn new(read: u32) -> Self {
        Self {
            due_at: f64::INFINITY,
            read_at: f64::NEG_INFINITY,
            reported_at: f64::NEG_INFINITY,
            alert_until: f64::NEG_INFINITY,
            read,
            pace: SLOW_PACE,
        }
    }

    /// The other end asks for a report each so many milliseconds.
    pub fn set_pace(&mut self, every_ms: u16) {
        self.pace = every_ms;
    }

    /// A message was read.
    pub fn on_read(&mut self, now: f64, makes_due: bool) {
        self.read = self.read.wrapping_add(1);
        if makes_due {
            if now - self.read_at > HICCUP {
                self.alert_until = now + ALERT;
            }
            self.due_at = self.due_at.min(now.max(self.reported_at + self.pace_at(now)));
        }
        self.read_at = now;
    }

    fn pace_at(&self, now: f64) -> f64 {
        f64::from(if now < self.alert_until { self.pace.min(FAST_PACE) } else { self.pace })
    }

    /// When the next report is due: infinite if there is nothing to report.
    #[must_use]
    pub fn due_at(&self) -> f64 {
        self.due_at
    }

    /// The report that is due: how many messages were read, and when the last of them was.
    pub fn report(&mut self, now: f64) -> Option<(u32, f64)> {
        if now < self.due_at {
            return None;
        }
        self.due_at = f64::INFINITY;
        self.reported_at = now;
        Some((self.read, self.read_at))
    }

    /// The report, when it is due within an eighth of the pace and something leaves in any case.
    pub fn report_along(&mut self, now: f64) -> Option<(u32, f64)> {
        if now >= self.due_at - self.pace_at(now) / 8.0 {
            self.due_at = self.due_at.min(now);
        }
        self.report(now)
    }
}

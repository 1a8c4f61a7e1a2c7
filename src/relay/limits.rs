//! What one connection may do: a rate of messages, and a number of errors.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ids::StreamId;

/// How long a client may stay past its rate without a break.
pub const PAST_RATE: Duration = Duration::from_secs(10);
/// A second in which nothing was held back is a break.
const BREAK: Duration = Duration::from_secs(1);
/// Pings, pongs and empty fragments: 20 a second, and 100 at once.
pub const CONTROL: Quota = Quota::new(20, Duration::from_secs(5));
/// Bytes are counted with a burst of so long.
const BYTES_BURST: Duration = Duration::from_secs(4);
/// Errors that a connection may make in [`ERROR_WINDOW`].
pub const ERRORS: usize = 20;
/// The time over which errors are counted.
pub const ERROR_WINDOW: Duration = Duration::from_secs(10);

/// What to do with a message that has just been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It is within the rate.
    Pass,
    /// Past the rate: drop it if it is volatile, else hold it (and stop reading) until then.
    Limited {
        /// When the next message may pass.
        until: Instant,
        /// True at most once a second: the socket then sends `rate_limited`.
        report: bool,
    },
    /// Past the rate for too long: close with 1008.
    Abuse,
}

impl Verdict {
    /// The stricter of two; held until both let it pass.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Abuse, _) | (_, Self::Abuse) => Self::Abuse,
            (Self::Pass, verdict) | (verdict, Self::Pass) => verdict,
            (Self::Limited { until: a, report: b }, Self::Limited { until: c, report: d }) => {
                Self::Limited { until: a.max(c), report: b || d }
            }
        }
    }
}

/// So much a second, and so much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    per_second: u32,
    /// The time in which an empty bucket is full again.
    burst: Duration,
}

impl Quota {
    /// A quota; 0 a second is no limit.
    #[must_use]
    pub const fn new(per_second: u32, burst: Duration) -> Self {
        Self { per_second, burst }
    }

    /// The time in which so much flows in.
    fn time_of(self, amount: usize) -> Duration {
        const SECOND: u64 = 1_000_000_000;
        let per_second = u64::from(self.per_second.max(1));
        // A division of 128 bits costs several times as much, and each message needs two.
        let nanoseconds = u64::try_from(amount).ok().and_then(|amount| amount.checked_mul(SECOND));
        Duration::from_nanos(nanoseconds.map_or_else(
            || {
                u64::try_from(amount as u128 * u128::from(SECOND) / u128::from(per_second))
                    .unwrap_or(u64::MAX)
            },
            |nanoseconds| nanoseconds / per_second,
        ))
    }
}

/// A token bucket that knows for how long it has been overdrawn.
#[derive(Debug, Default)]
pub struct Rate {
    /// The bucket as a point in time (generic cell rate algorithm): it is full when this has passed.
    full_at: Option<Instant>,
    /// Most connections never need it.
    past: Option<Box<Past>>,
}

/// A connection's time past its rate.
#[derive(Debug)]
struct Past {
    since: Instant,
    last: Instant,
    reported: Instant,
}

impl Rate {
    /// Spends `amount`. The bucket may go below zero; the verdict says what that means.
    pub fn on(&mut self, amount: usize, quota: Quota, now: Instant) -> Verdict {
        let (verdict, full_at) = self.judge(amount, quota, now);
        if verdict == Verdict::Pass {
            self.full_at = full_at;
        }
        verdict
    }

    /// May so much more pass, and when is the bucket full after it?
    fn judge(&mut self, amount: usize, quota: Quota, now: Instant) -> (Verdict, Option<Instant>) {
        if quota.per_second == 0 {
            return (Verdict::Pass, None);
        }
        let time = quota.time_of(amount);
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + time;
        // Whatever its size, one message fits into a full bucket.
        let until = full_at.checked_sub(quota.burst.max(time)).unwrap_or(now);
        let verdict = if until <= now { Verdict::Pass } else { self.on_past(until, now) };
        (verdict, Some(full_at))
    }

    /// The rate is exceeded until then.
    fn on_past(&mut self, until: Instant, now: Instant) -> Verdict {
        let Some(past) = &mut self.past else {
            self.past = Some(Box::new(Past { since: now, last: now, reported: now }));
            return Verdict::Limited { until, report: true };
        };
        if now.duration_since(past.last) > BREAK {
            past.since = now;
        }
        past.last = now;
        if now.duration_since(past.since) >= PAST_RATE {
            return Verdict::Abuse;
        }
        let report = now.duration_since(past.reported) >= Duration::from_secs(1);
        if report {
            past.reported = now;
        }
        Verdict::Limited { until, report }
    }

    /// So much leaves the bucket, which is then perhaps less than empty.
    fn spend(&mut self, amount: usize, quota: Quota, now: Instant) {
        if quota.per_second > 0 {
            self.full_at = Some(self.full_at.map_or(now, |at| at.max(now)) + quota.time_of(amount));
        }
    }
}

/// What a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// Messages, text and binary.
    pub messages: Quota,
    /// Bytes, of all frames.
    pub bytes: Quota,
}

impl Quotas {
    /// So many messages and bytes a second, 0 for no limit; at once a second's worth of the first, four of the second.
    #[must_use]
    pub const fn new(messages_per_second: u32, bytes_per_second: u32) -> Self {
        Self {
            messages: Quota::new(messages_per_second, Duration::from_secs(1)),
            bytes: Quota::new(bytes_per_second, BYTES_BURST),
        }
    }
}

/// What a client has sent lately.
#[derive(Debug, Default)]
pub struct Inflow {
    messages: Rate,
    bytes: Rate,
    control: Rate,
}

impl Inflow {
    /// A message of so many bytes.
    pub fn on_message(&mut self, bytes: usize, quotas: &Quotas, now: Instant) -> Verdict {
        let (by_messages, messages_full_at) = self.messages.judge(1, quotas.messages, now);
        let (by_bytes, bytes_full_at) = self.bytes.judge(bytes, quotas.bytes, now);
        let verdict = by_messages.and(by_bytes);
        if verdict == Verdict::Pass {
            (self.messages.full_at, self.bytes.full_at) = (messages_full_at, bytes_full_at);
        }
        verdict
    }

    /// A message that was held has waited for its turn: it takes the place that has become free.
    pub fn on_held(&mut self, bytes: usize, quotas: &Quotas, now: Instant) {
        self.messages.spend(1, quotas.messages, now);
        self.bytes.spend(bytes, quotas.bytes, now);
    }

    /// A ping, a pong or an empty fragment of so many bytes: whether it is answered, and whether more may be read.
    pub fn on_control(&mut self, bytes: usize, quotas: &Quotas, now: Instant) -> [Verdict; 2] {
        let (read_on, full_at) = self.bytes.judge(bytes, quotas.bytes, now);
        self.bytes.full_at = full_at;
        [self.control.on(1, CONTROL, now), read_on]
    }
}

/// The times of a connection's last errors.
#[derive(Debug, Default)]
pub struct Errors(VecDeque<Instant>);

impl Errors {
    /// One more error; true when it is one too many (close with 1008).
    #[must_use]
    pub fn on_error(&mut self, now: Instant) -> bool {
        while self.0.front().is_some_and(|first| now.duration_since(*first) >= ERROR_WINDOW) {
            self.0.pop_front();
        }
        self.0.push_back(now);
        self.0.len() > ERRORS
    }
}

/// When the relay last reported to a sender that no device receives a stream's frames.
#[derive(Debug, Default)]
pub struct AbsentNotices(Vec<(StreamId, Instant)>);

impl AbsentNotices {
    /// True at most once a second for each stream (at most 128 of them: only reliable ones ask).
    pub fn is_due(&mut self, stream: StreamId, now: Instant) -> bool {
        match self.0.iter_mut().find(|(known, _)| *known == stream) {
            Some((_, reported)) if now.duration_since(*reported) < Duration::from_secs(1) => false,
            Some((_, reported)) => {
                *reported = now;
                true
            }
            None => {
                self.0.push((stream, now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn a_second(messages: u32) -> Quota {
        Quota::new(messages, Duration::from_secs(1))
    }

    #[test]
    fn a_burst_of_one_second_passes_and_the_next_waits_for_its_turn() {
        let (mut rate, quota, now) = (Rate::default(), a_second(10), Instant::now());
        for _ in 0..10 {
            assert_eq!(rate.on(1, quota, now), Verdict::Pass);
        }
        assert_eq!(rate.on(1, quota, now), Verdict::Limited { until: now + ms(100), report: true });
        assert_eq!(rate.on(1, quota, now), Verdict::Limited { until: now + ms(100), report: false });
        assert_eq!(rate.on(1, quota, now + ms(100)), Verdict::Pass);
        assert_eq!(
            rate.on(1, quota, now + ms(100)),
            Verdict::Limited { until: now + ms(200), report: false }
        );
    }

    #[test]
    fn held_messages_pass_at_the_rate() {
        let (mut rate, quota, start) = (Rate::default(), a_second(10), Instant::now());
        let mut now = start;
        for _ in 0..50 {
            if let Verdict::Limited { until, .. } = rate.on(1, quota, now) {
                now = until;
                rate.spend(1, quota, now);
            }
        }
        assert_eq!(now - start, ms(4000));
    }

    #[test]
    fn one_message_a_second_is_a_rate_too() {
        let (mut rate, quota, now) = (Rate::default(), a_second(1), Instant::now());
        assert_eq!(rate.on(1, quota, now), Verdict::Pass);
        assert_eq!(rate.on(1, quota, now), Verdict::Limited { until: now + ms(1000), report: true });
        assert_eq!(rate.on(1, quota, now + ms(1000)), Verdict::Pass);
    }

    #[test]
    fn a_backlog_that_comes_at_once_survives() {
        let (mut rate, quota, start) = (Rate::default(), a_second(240), Instant::now());
        let mut limited = 0;
        for n in 0..7200 {
            match rate.on(1, quota, start + Duration::from_micros(n * 100)) {
                Verdict::Pass => {}
                Verdict::Limited { .. } => limited += 1,
                Verdict::Abuse => panic!("closed at message {n}"),
            }
        }
        assert!(limited > 6000);
    }

    #[test]
    fn ten_seconds_past_the_rate_are_abuse_and_a_quiet_second_is_a_break() {
        let (mut rate, quota, start) = (Rate::default(), a_second(10), Instant::now());
        let flood = |rate: &mut Rate, from: Duration, to: Duration| {
            let mut at = from;
            while at < to {
                if rate.on(1, quota, start + at) == Verdict::Abuse {
                    return Some(at);
                }
                at += ms(10);
            }
            None
        };
        assert_eq!(flood(&mut rate, ms(0), ms(9_000)), None);
        let resumed = ms(11_500);
        let abuse = flood(&mut rate, resumed, ms(30_000));
        assert!(abuse.is_some_and(|at| at - resumed >= PAST_RATE), "{abuse:?}");
    }

    #[test]
    fn a_hundred_control_frames_pass_at_once_and_then_twenty_a_second() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let passed = |rate: &mut Rate, at| {
            (0..1000).take_while(|_| rate.on(1, CONTROL, start + at) == Verdict::Pass).count()
        };
        assert_eq!(passed(&mut rate, ms(0)), 100);
        assert_eq!(passed(&mut rate, ms(49)), 0);
        assert_eq!(passed(&mut rate, ms(50)), 1);
        assert_eq!(passed(&mut rate, ms(1_050)), 20);
        assert_eq!(passed(&mut rate, ms(60_000)), 100);
    }

    #[test]
    fn bytes_flow_in_at_their_rate_and_one_message_of_any_size_fits() {
        let (mut rate, quota, now) =
            (Rate::default(), Quota::new(1000, Duration::from_secs(4)), Instant::now());
        assert_eq!(rate.on(4000, quota, now), Verdict::Pass);
        assert_eq!(rate.on(500, quota, now), Verdict::Limited { until: now + ms(500), report: true });
        rate.spend(500, quota, now + ms(500));
        assert_eq!(
            rate.on(1, quota, now + ms(500)),
            Verdict::Limited { until: now + ms(501), report: false }
        );
        let later = now + ms(60_000);
        assert_eq!(rate.on(9000, quota, later), Verdict::Pass);
        assert_eq!(rate.on(1000, quota, later), Verdict::Limited { until: later + ms(6000), report: true });
    }

    #[test]
    fn time_is_exact_for_small_amounts_and_does_not_wrap_for_large_ones() {
        let time_of = |per_second, amount| a_second(per_second).time_of(amount);
        assert_eq!(time_of(7, 3), Duration::from_nanos(3_000_000_000 / 7));
        assert_eq!(time_of(u32::MAX, 18_446_744_074), Duration::from_nanos(4_294_967_297));
        assert_eq!(time_of(1, usize::MAX), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn no_limit_never_limits() {
        let (mut rate, quota, now) = (Rate::default(), a_second(0), Instant::now());
        assert!((0..100_000).all(|_| rate.on(1, quota, now) == Verdict::Pass));
    }

    #[test]
    fn twenty_errors_in_ten_seconds_are_forgiven_and_one_more_is_not() {
        let (mut errors, start) = (Errors::default(), Instant::now());
        assert!((0..20).all(|_| !errors.on_error(start)));
        assert!(errors.on_error(start + ms(9_999)));
        let mut errors = Errors::default();
        assert!((0..100).all(|n| !errors.on_error(start + ms(500) * n)));
    }

    #[test]
    fn absence_is_reported_once_a_second_for_each_stream() {
        let (mut notices, now) = (AbsentNotices::default(), Instant::now());
        assert!(notices.is_due(StreamId(0x80), now));
        assert!(notices.is_due(StreamId(0x81), now));
        assert!(!notices.is_due(StreamId(0x80), now + ms(999)));
        assert!(notices.is_due(StreamId(0x80), now + ms(1000)));
    }
}

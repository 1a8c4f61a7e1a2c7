//! What one connection knows of its path: how much may leave on it, and what its client is to hear of the other way.
//!
//! It holds both sides of the freshness law ([`super::pacing`]), in 64 bytes for each connection. 512 more
//! begin with the first message that leaves to a client that reports. They end half a minute after the last
//! one.

use super::pacing::{BadReport, Kind, Pacing, Reporter, SLOW_PACE};

/// One report in so many milliseconds is free, beside the client's rate of messages; as many at once as fill a second.
const FREE_EVERY: u32 = 50;
/// The longest report that is free, in bytes.
pub const FREE_BYTES: usize = 256;
/// The paces that a client may ask for, in milliseconds.
const PACES: std::ops::RangeInclusive<u64> = 50..=1_000;

/// Both directions of one connection. Times are milliseconds of one monotonic clock.
#[derive(Debug)]
pub struct Freshness {
    /// What the client is to hear. It also counts what was read.
    reporter: Reporter,
    /// While something leaves to a client that reports.
    paced: Option<Box<Paced>>,
    /// Messages that have left; this and the next one wrap.
    sent: u32,
    /// Messages that the client has reported.
    reported: u32,
    /// When the bucket of free reports is full again; it wraps.
    free_at: u32,
    /// The pace that the client was asked for.
    asked: u16,
    /// It is to be asked for another one.
    is_asking: bool,
    /// The client has sent a first `received`.
    is_reporting: bool,
}

#[derive(Debug)]
struct Paced {
    law: Pacing,
    /// When the held message gets its next chance.
    look_at: f64,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            reporter: Reporter::new(0),
            paced: None,
            sent: 0,
            reported: 0,
            free_at: 0,
            asked: SLOW_PACE,
            is_asking: false,
            is_reporting: false,
        }
    }
}

impl Freshness {
    /// A message of the client was read.
    pub fn on_read(&mut self, now: f64, makes_due: bool) {
        self.reporter.on_read(now, makes_due && self.is_reporting);
    }

    /// A message of so many bytes left.
    pub fn on_sent(&mut self, now: f64, bytes: usize, kind: Kind) {
        if self.is_reporting && self.paced.is_none() && matches!(kind, Kind::Volatile | Kind::Reliable) {
            let law = Pacing::new(now, self.sent, true);
            self.paced = Some(Box::new(Paced { law, look_at: f64::INFINITY }));
        }
        self.sent = self.sent.wrapping_add(1);
        if let Some(paced) = &mut self.paced {
            paced.law.on_sent(now, u32::try_from(bytes).unwrap_or(u32::MAX), kind);
            self.is_asking = paced.law.pace() != self.asked;
        }
    }

    /// May the next message of this kind leave? If not, it is asked again at [`Self::deadline`].
    pub fn may_leave(&mut self, now: f64, kind: Kind) -> bool {
        let Some(paced) = &mut self.paced else {
            return true;
        };
        let at = paced.law.may_leave_at(now, kind);
        if at <= now {
            return true;
        }
        paced.look_at = paced.look_at.min(at);
        false
    }

    /// Begins a batch: what it holds sets the next chance anew.
    pub fn begin_look(&mut self) {
        if let Some(paced) = &mut self.paced {
            paced.look_at = f64::INFINITY;
        }
    }

    /// When something is to be done without anything having come: infinite for never.
    #[must_use]
    pub fn deadline(&self) -> f64 {
        let look_at = self.paced.as_ref().map_or(f64::INFINITY, |paced| paced.look_at);
        self.reporter.due_at().min(look_at)
    }

    /// Nothing is due by now, and the client reports at the pace that it was asked for.
    #[must_use]
    pub fn is_quiet(&self, now: f64) -> bool {
        now < self.deadline() && !self.is_asking
    }

    /// Is one more report free, beside the client's rate of messages?
    pub fn is_free(&mut self, now: f64) -> bool {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it wraps")]
        let now = now as u64 as u32;
        let ahead = self.free_at.wrapping_sub(now);
        // What is more than a second ahead has passed long ago.
        let ahead = if ahead > 1_000 { 0 } else { ahead } + FREE_EVERY;
        let is_free = ahead <= 1_000;
        if is_free {
            self.free_at = now.wrapping_add(ahead);
        }
        is_free
    }

    /// The client reports that it has read so many messages, the last at `time` of its own clock. Answers the queue on
    /// the path, in milliseconds, where it is known.
    ///
    /// # Errors
    /// When it claims more than was sent, goes back, or is no time.
    pub fn on_received(&mut self, now: f64, messages: u64, time: f64) -> Result<Option<f64>, BadReport> {
        #[expect(clippy::cast_possible_truncation, reason = "counts wrap")]
        let messages = messages as u32;
        let is_possible =
            messages.wrapping_sub(self.reported) <= self.sent.wrapping_sub(self.reported) && time.is_finite();
        if !is_possible {
            return Err(BadReport);
        }
        let mut queue = None;
        if let Some(paced) = &mut self.paced
            && paced.law.knows(messages)
        {
            paced.law.on_report(now, messages, time)?;
            queue = Some(paced.law.queue(now));
            self.is_asking = paced.law.pace() != self.asked;
        }
        self.is_reporting = true;
        self.reported = messages;
        Ok(queue)
    }

    /// The client asks for a report each so many milliseconds.
    ///
    /// # Errors
    /// When that is out of bounds.
    pub fn on_reports(&mut self, every_ms: u64) -> Result<(), BadReport> {
        match u16::try_from(every_ms) {
            Ok(pace) if PACES.contains(&every_ms) => self.reporter.set_pace(pace),
            _ => return Err(BadReport),
        }
        Ok(())
    }

    /// The report that is due to the client.
    pub fn report(&mut self, now: f64) -> Option<(u32, f64)> {
        self.reporter.report(now)
    }

    /// The report that is nearly due, to leave with a message.
    pub fn report_along(&mut self, now: f64) -> Option<(u32, f64)> {
        self.reporter.report_along(now)
    }

    /// The pace of reports to ask the client for, when it is another than before.
    pub fn ask(&mut self) -> Option<u16> {
        if !std::mem::take(&mut self.is_asking) {
            return None;
        }
        self.asked = self.paced.as_ref()?.law.pace();
        Some(self.asked)
    }

    /// Gives the memory of a path back on which nothing happens any more.
    pub fn forget_idle(&mut self, now: f64) {
        if self.paced.as_ref().is_some_and(|paced| paced.law.is_idle(now)) {
            self.paced = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages leave at these times; the client reads each 10 ms later, by a clock of its own.
    fn reporting(sent: u32) -> Freshness {
        let mut freshness = Freshness::default();
        freshness.on_sent(0.0, 400, Kind::Control);
        assert_eq!(freshness.on_received(20.0, 1, 5_010.0), Ok(None));
        for n in 0..sent {
            freshness.on_sent(100.0 + f64::from(n) * 33.0, 300, Kind::Volatile);
        }
        freshness
    }

    #[test]
    fn a_connection_that_does_not_stream_costs_64_bytes_and_one_that_does_512_more() {
        assert_eq!(size_of::<Freshness>(), 64);
        assert!(size_of::<Paced>() <= 512);
    }

    #[test]
    fn without_reports_nothing_is_held_and_nothing_is_remembered() {
        let mut freshness = Freshness::default();
        for n in 0..1_000 {
            assert!(freshness.may_leave(f64::from(n), Kind::Volatile));
            freshness.on_sent(f64::from(n), 60_000, Kind::Volatile);
            freshness.on_read(f64::from(n), true);
        }
        assert!(freshness.paced.is_none());
        assert_eq!(freshness.report(2_000.0), None);
        assert_eq!(freshness.deadline(), f64::INFINITY);
    }

    #[test]
    fn a_report_that_goes_back_or_claims_too_much_changes_nothing() {
        let mut freshness = reporting(3);
        assert_eq!(freshness.on_received(200.0, 2, 5_110.0), Ok(Some(0.0)));
        for (messages, time) in [(1, 5_200.0), (5, 5_200.0), (u64::MAX, 5_200.0), (3, f64::NAN), (3, 1e300)] {
            assert_eq!(freshness.on_received(210.0, messages, time), Err(BadReport), "{messages} {time}");
        }
        assert_eq!(freshness.on_received(210.0, 4, 5_176.0), Ok(Some(0.0)));
    }

    #[test]
    fn a_client_that_reports_is_reported_to() {
        let mut freshness = reporting(0);
        freshness.on_read(300.0, false);
        assert_eq!(freshness.report(300.0), None);
        freshness.on_read(310.0, true);
        assert_eq!(freshness.report(310.0), Some((2, 310.0)));
        assert_eq!(freshness.on_reports(49), Err(BadReport));
        assert_eq!(freshness.on_reports(1_001), Err(BadReport));
        assert_eq!(freshness.on_reports(1_000), Ok(()));
    }

    #[test]
    fn a_report_leaves_with_a_message_shortly_before_its_time() {
        let mut freshness = reporting(0);
        // The first message raises the pace for a second.
        for at in [300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 900.0, 1_000.0, 1_100.0, 1_200.0, 1_300.0] {
            freshness.on_read(at, true);
        }
        assert_eq!(freshness.report_along(1_300.0), Some((11, 1_300.0)));
        assert_eq!(freshness.report_along(1_310.0), None, "nothing was read");
        for at in [1_400.0, 1_500.0, 1_600.0, 1_700.0] {
            freshness.on_read(at, true);
        }
        assert_eq!((freshness.deadline(), freshness.report_along(1_737.0)), (1_800.0, None));
        assert_eq!((freshness.report(1_738.0), freshness.report_along(1_738.0)), (None, Some((15, 1_700.0))));
        freshness.on_read(1_800.0, true);
        assert_eq!(freshness.deadline(), 2_238.0, "a pace after the report, and not after its time");
    }

    #[test]
    fn frames_are_held_while_the_path_carries_less_than_they_need() {
        let mut freshness = reporting(30);
        // The tenth frame has taken 300 ms longer than the first.
        assert_eq!(freshness.on_received(200.0, 2, 5_110.0), Ok(Some(0.0)));
        assert_eq!(freshness.ask(), None);
        freshness.on_received(720.0, 11, 5_710.0).unwrap();
        assert!(!freshness.may_leave(1_100.0, Kind::Volatile));
        assert!(freshness.deadline() > 1_100.0 && freshness.deadline() < 4_000.0, "{freshness:?}");
        assert_eq!(freshness.ask(), Some(100));
        assert_eq!(freshness.ask(), None);
    }

    #[test]
    fn twenty_reports_a_second_are_free_and_twenty_at_once() {
        let mut freshness = Freshness::default();
        // A clock in the second before a 32-bit count of milliseconds wraps.
        let start = f64::from(u32::MAX) - 500.0;
        assert!(freshness.is_free(start - 5_000.0));
        assert_eq!((0..30).filter(|_| freshness.is_free(start)).count(), 20);
        assert!(!freshness.is_free(start + 49.0));
        assert!(freshness.is_free(start + 50.0));
        assert_eq!((0..1_000).filter(|n| freshness.is_free(start + 2_000.0 + f64::from(*n))).count(), 39);
    }

    #[test]
    fn an_idle_path_is_forgotten() {
        let mut freshness = reporting(1);
        freshness.on_received(200.0, 2, 5_110.0).unwrap();
        freshness.forget_idle(30_000.0);
        assert!(freshness.paced.is_some());
        freshness.forget_idle(30_101.0);
        assert!(freshness.paced.is_none());
        freshness.on_sent(31_000.0, 300, Kind::Volatile);
        assert_eq!(freshness.on_received(31_020.0, 3, 36_010.0), Ok(Some(0.0)));
    }
}

//! What one connection's `signal`s show of a direct path. They say with whom it was arranged. They also give
//! an estimate of the volatile frames that the relay no longer sees because of it.
//!
//! Only a connection that has got a `signal` has a [`Direct`], so that every other frame pays one comparison.

use std::time::{Duration, Instant};

use super::ids::{ConnectionId, Device};

/// A connection that sent no volatile frame for so long streams straight across, or not at all.
const QUIET: Duration = Duration::from_secs(1);
/// A rate is measured over at most so long.
const WINDOW: Duration = Duration::from_secs(1);
/// A rate that was measured over less is none: frames that waited somewhere arrive in a bunch.
const SHORTEST: Duration = Duration::from_millis(100);

/// One end of a direct path, as the relay knows it.
#[derive(Debug, PartialEq)]
pub struct Direct {
    peer: ConnectionId,
    is_arranged: bool,
    /// Frames a second that this connection last sent by the relay; 0 while that is unknown.
    rate: f64,
    window: Option<Window>,
    /// Frames before this time are counted.
    counted: Instant,
}

/// Frames by the relay without a longer pause than [`QUIET`].
#[derive(Debug, PartialEq)]
struct Window {
    first: Instant,
    last: Instant,
    /// Without the first one.
    frames: u32,
}

impl Window {
    const fn at(now: Instant) -> Self {
        Self { first: now, last: now, frames: 0 }
    }
}

impl Direct {
    /// A `signal` of the other device's connection `from` reached this connection, which is `device`. The desktop
    /// begins: what reaches it is the answer, and what reaches the mobile waits for its own.
    pub fn on_signal(direct: &mut Option<Box<Self>>, device: Device, from: ConnectionId, now: Instant) {
        if direct.as_ref().is_none_or(|direct| direct.peer != from) {
            let is_arranged = device == Device::Desktop;
            *direct = Some(Box::new(Self { peer: from, is_arranged, rate: 0.0, window: None, counted: now }));
        }
    }

    /// This connection sent a `signal` to `to`. True when that arranges the path, so that of the two instances only
    /// the mobile's counts the pair, once.
    pub fn on_answer(&mut self, to: ConnectionId) -> bool {
        let arranges = self.peer == to && !self.is_arranged;
        self.is_arranged |= arranges;
        arranges
    }

    /// A volatile frame of this connection took the relay's path.
    pub fn on_frame(&mut self, now: Instant) {
        let window = self.window.get_or_insert(Window::at(now));
        if now.duration_since(window.last) >= QUIET {
            *window = Window::at(now);
            return;
        }
        window.frames += u32::from(now > window.first);
        window.last = now;
        let span = now.duration_since(window.first);
        if span >= SHORTEST {
            self.rate = f64::from(window.frames) / span.as_secs_f64();
        }
        if span >= WINDOW {
            *window = Window::at(now);
        }
    }

    /// Volatile frames that this connection has sent straight across since the last call, by the rate from before.
    /// A client that pauses its stream looks the same, so the number is the most that it can be.
    pub fn unseen(&mut self, now: Instant) -> u64 {
        let Some(window) = &self.window else { return 0 };
        if !self.is_arranged || now.duration_since(window.last) < QUIET {
            return 0;
        }
        let since = self.counted.max(window.last);
        let frames = (now.duration_since(since).as_secs_f64() * self.rate).floor();
        if frames < 1.0 {
            return 0;
        }
        // What is left of a frame counts next time.
        self.counted = since + Duration::from_secs_f64(frames / self.rate);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number above 0")]
        let frames = frames as u64;
        frames
    }

    /// The connection that this path leads to.
    #[must_use]
    pub const fn peer(&self) -> ConnectionId {
        self.peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ConnectionId = ConnectionId(uuid::Uuid::from_u128(1));
    const B: ConnectionId = ConnectionId(uuid::Uuid::from_u128(2));

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn asked(now: Instant) -> Direct {
        let mut direct = None;
        Direct::on_signal(&mut direct, Device::Mobile, A, now);
        *direct.unwrap()
    }

    fn arranged(now: Instant) -> Direct {
        let mut direct = asked(now);
        assert!(direct.on_answer(A));
        direct
    }

    /// So many frames, one each `every`, from `now` on; the time of the last one.
    fn stream(direct: &mut Direct, now: Instant, frames: u32, every: Duration) -> Instant {
        for frame in 0..frames {
            direct.on_frame(now + every * frame);
        }
        now + every * (frames - 1)
    }

    #[test]
    fn the_mobiles_answer_counts_a_pair_once() {
        let now = Instant::now();
        let mut mobile = asked(now);
        assert!(!mobile.on_answer(B), "not the one that asked");
        assert!(mobile.on_answer(A));
        assert!(!mobile.on_answer(A), "its candidates follow");
        let mut desktop = None;
        Direct::on_signal(&mut desktop, Device::Desktop, A, now);
        let mut desktop = desktop.unwrap();
        assert!(!desktop.on_answer(A), "the mobile's instance counts");
        let last = stream(&mut desktop, now, 11, ms(40));
        assert_eq!(desktop.unseen(last + ms(2_000)), 50, "its frames are its own instance's");
    }

    #[test]
    fn another_connection_begins_anew_and_the_same_one_goes_on() {
        let now = Instant::now();
        let mut direct = Some(Box::new(arranged(now)));
        stream(direct.as_mut().unwrap(), now, 10, ms(33));
        let before = direct.as_ref().unwrap().rate;
        Direct::on_signal(&mut direct, Device::Mobile, A, now);
        assert_eq!(direct.as_ref().unwrap().rate, before);
        Direct::on_signal(&mut direct, Device::Mobile, B, now);
        assert_eq!((direct.as_ref().unwrap().rate, direct.as_ref().unwrap().peer()), (0.0, B));
        assert!(direct.unwrap().on_answer(B));
    }

    #[test]
    fn frames_that_stop_are_counted_by_their_rate_before() {
        let now = Instant::now();
        let mut direct = arranged(now);
        let last = stream(&mut direct, now, 11, ms(40));
        assert_eq!(direct.unseen(last + ms(999)), 0, "it may only be late");
        assert_eq!(direct.unseen(last + ms(1_000)), 25);
        // Each second has its frames, and no part of one is lost or counted twice.
        let counted: u64 = (1..=100).map(|tick| direct.unseen(last + ms(1_000 + 333 * tick))).sum();
        assert!((counted as f64 - 33.3 * 25.0).abs() <= 1.0, "{counted}");
    }

    #[test]
    fn frames_by_the_relay_end_it_and_measure_anew() {
        let now = Instant::now();
        let mut direct = arranged(now);
        let last = stream(&mut direct, now, 11, ms(40));
        assert_eq!(direct.unseen(last + ms(2_000)), 50);
        let last = stream(&mut direct, last + ms(2_100), 100, ms(100));
        assert_eq!(direct.unseen(last + ms(900)), 0);
        assert_eq!(direct.unseen(last + ms(5_000)), 50);
        // The newest rate counts, and not the mean of all.
        let last = stream(&mut direct, last + ms(5_100), 120, ms(20));
        assert_eq!(direct.unseen(last + ms(1_000)), 50);
    }

    #[test]
    fn nothing_is_counted_without_a_pair_or_a_rate() {
        let now = Instant::now();
        let mut direct = asked(now);
        let last = stream(&mut direct, now, 11, ms(40));
        assert_eq!(direct.unseen(last + ms(9_000)), 0, "not answered");
        let mut direct = arranged(now);
        assert_eq!(direct.unseen(now + ms(9_000)), 0, "never streamed");
        direct.on_frame(now);
        assert_eq!(direct.unseen(now + ms(9_000)), 0, "one frame is no rate");
        let last = stream(&mut direct, now + ms(10_000), 240, Duration::from_micros(10));
        assert_eq!(direct.unseen(last + ms(9_000)), 0, "nor is a bunch");
    }
}

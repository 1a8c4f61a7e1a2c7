//! What one client address may ask of an instance: how many handshakes, and how many of those that prove nothing.
//!
//! Many people share an address (a company, a mobile network), and after a restart all of them come back at once. So a
//! handshake with a good token is cheap to its address, and one that is refused is dear.

use std::time::{Duration, Instant};

/// Handshakes of all kinds, as a multiple of the setting, which is for those that are refused.
pub const ALL: u32 = 5;
/// After a refusal, clients return at turns of their own, spread over at most this time.
const SPREAD: Duration = Duration::from_secs(15);
/// Handshakes of a minute, through trusted proxies, from which on it is judged where they come from.
const CROWD: u32 = 40;
/// The pause between two warnings about that.
const WARNING_PAUSE: Duration = Duration::from_secs(600);

/// A token bucket with a burst of one second, as a point in time (generic cell rate algorithm).
#[derive(Debug, Default)]
struct Bucket {
    /// It is full when this has passed.
    full_at: Option<Instant>,
    /// The latest turn that a refusal has promised.
    promised: Option<Instant>,
}

impl Bucket {
    /// The time until there is a token; `None` when there is one.
    fn wait(&self, one: Duration, now: Instant) -> Option<Duration> {
        let full_at = self.full_at.filter(|at| *at > now)? + one;
        let wait = full_at.duration_since(now).saturating_sub(one.max(Duration::from_secs(1)));
        (!wait.is_zero()).then_some(wait)
    }

    fn take(&mut self, one: Duration, now: Instant) {
        self.full_at = Some(self.full_at.map_or(now, |at| at.max(now)) + one);
    }

    fn refund(&mut self, one: Duration) {
        self.full_at = self.full_at.and_then(|at| at.checked_sub(one));
    }

    /// Seconds until the turn of a client that finds no token. Each refusal promises a turn of its own: if all came
    /// back when the next token is there, all but one would come in vain.
    fn promise(&mut self, wait: Duration, one: Duration, now: Instant) -> u32 {
        let (first, last) = (now + wait, now + SPREAD);
        let next = self.promised.map(|at| at + one).filter(|at| (first..=last).contains(at)).unwrap_or(first);
        self.promised = Some(next);
        let seconds = next.duration_since(now).as_millis().div_ceil(1000).max(1);
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    fn is_full(&self, now: Instant) -> bool {
        let is_past = |at: Option<Instant>| at.is_none_or(|at| at <= now);
        is_past(self.full_at) && is_past(self.promised)
    }
}

/// The buckets of one address. The setting, handshakes a second, is passed in each time.
#[derive(Debug, Default)]
pub struct Address {
    /// Every handshake, whatever its outcome: [`ALL`] times the setting.
    all: Bucket,
    /// Handshakes that are not verified yet, or were refused.
    unproven: Bucket,
    /// Calls of `GET /v1/session`.
    sessions: Bucket,
    /// Handshakes of the present minute through trusted proxies, and when that began.
    crowd: (u32, Option<Instant>),
}

impl Address {
    fn ones(per_second: u32) -> [Duration; 2] {
        let one = Duration::from_secs(1) / per_second.max(1);
        [one / ALL, one]
    }

    /// One more handshake; it counts as unproven until [`Self::on_proven`].
    ///
    /// # Errors
    /// After how many seconds it should be tried again.
    pub fn on_handshake(&mut self, per_second: u32, now: Instant) -> Result<(), u32> {
        self.has_room(per_second, now)?;
        let [of_all, of_unproven] = Self::ones(per_second);
        self.all.take(of_all, now);
        self.unproven.take(of_unproven, now);
        Ok(())
    }

    /// A handshake's token is good, or it was refused for no fault of its own.
    pub fn on_proven(&mut self, per_second: u32) {
        self.unproven.refund(Self::ones(per_second)[1]);
    }

    /// Spends a token for a handshake whose ID token was good, and which the relay refuses after all.
    pub fn on_refused(&mut self, per_second: u32, now: Instant) {
        self.unproven.take(Self::ones(per_second)[1], now);
    }

    /// One more call of `GET /v1/session`. It looks at what is left for handshakes, and spends nothing of it.
    ///
    /// # Errors
    /// After how many seconds it should be tried again.
    pub fn on_session(&mut self, per_second: u32, now: Instant) -> Result<(), u32> {
        self.has_room(per_second, now)?;
        let [_, one] = Self::ones(per_second);
        if let Some(wait) = self.sessions.wait(one, now) {
            return Err(self.sessions.promise(wait, one, now));
        }
        self.sessions.take(one, now);
        Ok(())
    }

    fn has_room(&mut self, per_second: u32, now: Instant) -> Result<(), u32> {
        let [of_all, of_unproven] = Self::ones(per_second);
        for (bucket, one) in [(&mut self.all, of_all), (&mut self.unproven, of_unproven)] {
            if let Some(wait) = bucket.wait(one, now) {
                return Err(bucket.promise(wait, one, now));
            }
        }
        Ok(())
    }

    /// True when it is as if this address had never come.
    #[must_use]
    pub fn is_forgettable(&self, now: Instant) -> bool {
        let is_counted = self.crowd.1.is_some_and(|since| now.duration_since(since) < MINUTE);
        !is_counted
            && [&self.all, &self.unproven, &self.sessions].into_iter().all(|bucket| bucket.is_full(now))
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// The handshakes of a minute that came through trusted proxies, all addresses together.
#[derive(Debug, Default)]
pub struct Crowd {
    since: Option<Instant>,
    all: u32,
    warned: Option<Instant>,
}

impl Crowd {
    /// Counts one more handshake. True when most of the minute's come "from" this address, which `is_public`.
    /// Then it is more likely one more balancer, missing among the trusted ones, whose clients share one
    /// limit. It is true now and then only.
    #[must_use]
    pub fn on_handshake(&mut self, address: &mut Address, is_public: bool, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= MINUTE) {
            (self.since, self.all) = (Some(now), 0);
        }
        if address.crowd.1 != self.since {
            address.crowd = (0, self.since);
        }
        self.all += 1;
        address.crowd.0 += 1;
        let is_most = self.all >= CROWD && address.crowd.0 > self.all / 2;
        let is_due = self.warned.is_none_or(|warned| now.duration_since(warned) >= WARNING_PAUSE);
        if is_public && is_most && is_due {
            self.warned = Some(now);
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u32 = 20;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// How many of these come in at once.
    fn burst(mut come: impl FnMut() -> bool) -> usize {
        (0..1000).filter(|_| come()).count()
    }

    #[test]
    fn good_handshakes_have_five_times_the_setting_and_bad_ones_the_setting() {
        let now = Instant::now();
        let good = |address: &mut Address, now| {
            let came = address.on_handshake(LIMIT, now).is_ok();
            if came {
                address.on_proven(LIMIT);
            }
            came
        };
        let mut address = Address::default();
        assert_eq!(burst(|| good(&mut address, now)), 100);
        assert_eq!(burst(|| good(&mut address, now + ms(500))), 50);
        let mut address = Address::default();
        assert_eq!(burst(|| address.on_handshake(LIMIT, now).is_ok()), 20);
        // A good one cannot come in either, until one of the bad ones is forgotten.
        assert!(!good(&mut address, now));
        assert!(good(&mut address, now + ms(50)));
        // A good token that is refused after all is as dear as a bad one.
        let mut address = Address::default();
        let refused = |address: &mut Address| {
            let came = good(address, now);
            if came {
                address.on_refused(LIMIT, now);
            }
            came
        };
        assert_eq!(burst(|| refused(&mut address)), 20);
    }

    #[test]
    fn sessions_have_a_limit_of_their_own_and_look_at_the_others() {
        let now = Instant::now();
        let mut address = Address::default();
        assert_eq!(burst(|| address.on_session(LIMIT, now).is_ok()), 20);
        assert!(address.on_handshake(LIMIT, now).is_ok(), "sessions spend no handshake");
        let mut address = Address::default();
        assert_eq!(burst(|| address.on_handshake(LIMIT, now).is_ok()), 20);
        assert!(address.on_session(LIMIT, now).is_err());
    }

    #[test]
    fn a_client_that_comes_back_at_its_turn_finds_room() {
        // 300 people behind one address, who all come back when a relay has been restarted.
        let begun = Instant::now();
        let mut address = Address::default();
        let mut due: Vec<u32> = vec![0; 300];
        let mut last = 0;
        while let Some(at) = due.iter().copied().min() {
            let now = begun + ms(1000 * u64::from(at));
            let (mut came, all) = (0, due.len());
            due = due
                .iter()
                .filter_map(|turn| {
                    if *turn > at {
                        return Some(*turn);
                    }
                    match address.on_handshake(LIMIT, now) {
                        Ok(()) => {
                            address.on_proven(LIMIT);
                            came += 1;
                            None
                        }
                        Err(seconds) => Some(at + seconds),
                    }
                })
                .collect();
            assert!(came > 0, "all of {all} came in vain");
            last = at;
        }
        assert!(last <= 4, "the last one came in after {last} s");
    }

    #[test]
    fn turns_are_spread_over_a_bounded_time() {
        let now = Instant::now();
        let mut address = Address::default();
        let turns: Vec<u32> = (0..2000).filter_map(|_| address.on_handshake(1, now).err()).collect();
        assert_eq!(turns.iter().max(), Some(&15));
        assert_eq!(turns.iter().min(), Some(&1));
        assert!(!address.is_forgettable(now) && address.is_forgettable(now + ms(16_000)));
    }

    #[test]
    fn a_crowd_behind_one_public_address_is_noticed_now_and_then() {
        let now = Instant::now();
        let (mut crowd, mut balancer, mut others) =
            (Crowd::default(), Address::default(), Address::default());
        let noticed = |crowd: &mut Crowd, address: &mut Address, n, now| {
            (0..n).filter(|_| crowd.on_handshake(address, true, now)).count()
        };
        assert_eq!(noticed(&mut crowd, &mut balancer, 39, now), 0);
        assert_eq!(noticed(&mut crowd, &mut balancer, 100, now), 1);
        assert_eq!(noticed(&mut crowd, &mut balancer, 100, now + MINUTE), 0);
        assert_eq!(noticed(&mut crowd, &mut balancer, 100, now + WARNING_PAUSE), 1);
        // A third is not most, and what is no public address is known to be many.
        let (mut crowd, mut balancer, mut more) = (Crowd::default(), Address::default(), Address::default());
        for _ in 0..100 {
            for address in [&mut others, &mut balancer, &mut more] {
                assert!(!crowd.on_handshake(address, true, now));
            }
        }
        assert!(!(0..300).any(|_| crowd.on_handshake(&mut balancer, false, now)));
    }
}

//! What goes wrong, and when: derived from the seed and nothing else.

use std::time::Duration;

use fastrand::Rng;

/// What goes wrong. Instances are named by their place in the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// SIGKILL; another process takes its place afterwards.
    Kill(usize),
    /// SIGTERM; another process takes its place when it has left.
    Leave(usize),
    /// SIGSTOP, then SIGCONT.
    Stop(usize),
    /// Nothing comes from Redis any more, and TCP stays.
    Hold(usize),
    /// The line to Redis takes so many bytes a second.
    Throttle(usize, u32),
    /// The connections to Redis are closed, and no new ones are to be had.
    Cut(usize),
    /// Redis stands still.
    Freeze,
    /// Redis is killed; an empty one takes its place.
    Restart,
    /// Redis loses its data.
    Flush,
}

impl Trouble {
    /// Its name.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Leave(_) => "leave",
            Self::Stop(_) => "stop",
            Self::Hold(_) => "hold",
            Self::Throttle(..) => "throttle",
            Self::Cut(_) => "cut",
            Self::Freeze => "freeze",
            Self::Restart => "restart",
            Self::Flush => "flush",
        }
    }

    /// The instance that it is about; Redis otherwise.
    pub fn instance(self) -> Option<usize> {
        match self {
            Self::Kill(place)
            | Self::Leave(place)
            | Self::Stop(place)
            | Self::Hold(place)
            | Self::Throttle(place, _)
            | Self::Cut(place) => Some(place),
            Self::Freeze | Self::Restart | Self::Flush => None,
        }
    }
}

/// A trouble with its time, from the beginning of the chaos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub at: Duration,
    pub lasts: Duration,
    pub trouble: Trouble,
}

/// How long an instance may take after SIGTERM, with the time that another needs to start.
const LEAVES_WITHIN: f64 = 8.0;
/// Kinds of trouble.
pub const KINDS: usize = 9;

/// Faults for this time: all kinds come up before one comes up again. Whoever is in trouble has no other one.
pub fn schedule(seed: u64, instances: usize, length: Duration) -> Vec<Fault> {
    let mut rng = Rng::with_seed(seed);
    let mut busy = vec![0.0; instances];
    let (mut redis_busy, mut at) = (0.0, 0.5);
    let (mut faults, mut deck) = (Vec::new(), Vec::new());
    while at < length.as_secs_f64() {
        if deck.is_empty() {
            deck = (0..KINDS).collect();
            rng.shuffle(&mut deck);
        }
        let kind = deck.pop().unwrap();
        let place = rng.usize(..instances);
        let seconds = |rng: &mut Rng, from: f64, to: f64| from + (to - from) * rng.f64();
        let (trouble, lasts) = match kind {
            0 => (Trouble::Kill(place), seconds(&mut rng, 0.1, 4.0)),
            1 => (Trouble::Leave(place), LEAVES_WITHIN),
            // Past the leases and the heartbeats, or a short hiccup.
            2 => (Trouble::Stop(place), seconds(&mut rng, 0.3, 9.0)),
            3 => (Trouble::Hold(place), seconds(&mut rng, 0.3, 7.0)),
            4 => (Trouble::Throttle(place, rng.u32(10_000..200_000)), seconds(&mut rng, 2.0, 8.0)),
            5 => (Trouble::Cut(place), seconds(&mut rng, 0.1, 6.0)),
            6 => (Trouble::Freeze, seconds(&mut rng, 0.3, 7.0)),
            7 => (Trouble::Restart, seconds(&mut rng, 0.1, 4.0)),
            _ => (Trouble::Flush, 0.0),
        };
        let free_at = trouble.instance().map_or(&mut redis_busy, |place| &mut busy[place]);
        let from = at.max(*free_at);
        if from < length.as_secs_f64() {
            *free_at = from + lasts + 0.5;
            let (at, lasts) = (Duration::from_secs_f64(from), Duration::from_secs_f64(lasts));
            faults.push(Fault { at, lasts, trouble });
        }
        at += seconds(&mut rng, 0.4, 2.6);
    }
    faults
}

#[test]
fn a_seed_always_gives_the_same_schedule() {
    let minute = Duration::from_secs(60);
    assert_eq!(schedule(7, 4, minute), schedule(7, 4, minute));
    assert_ne!(schedule(7, 4, minute), schedule(8, 4, minute));
}

#[test]
fn every_kind_of_trouble_comes_up_in_the_short_form() {
    let faults = schedule(crate::SEED, 4, Duration::from_secs(crate::SECONDS));
    let kinds: std::collections::BTreeSet<_> = faults.iter().map(|fault| fault.trouble.kind()).collect();
    assert_eq!(kinds.len(), KINDS, "{kinds:?}");
}

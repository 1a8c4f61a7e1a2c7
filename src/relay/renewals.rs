//! When a slot is renewed: in its turn, soon after a break, and soon again where no answer came. Jitter is passed in, as a
//! fraction from 0 to 1.

use std::time::Duration;

/// After a break, renewals are spread over at least this long, so that instances part.
const SOON: Duration = Duration::from_secs(2);
/// The pace at which many slots of a worker are renewed out of their turn: Redis serves other instances as well.
const PER_SECOND: u32 = 1000;
/// The least time after which a renewal without an answer is tried again. It doubles with each try.
const AGAIN: Duration = Duration::from_secs(1);

/// The time from one renewal of a slot to the next: 27 to 33 % of a lease, so that connections that came together part.
#[must_use]
pub fn turn(lease: Duration, jitter: f64) -> Duration {
    (lease / 3).mul_f64(0.8 + 0.2 * jitter)
}

/// The time over which a worker renews so many slots after a break. It grows with their number, up to the
/// time in which the worker renews them anyway.
#[must_use]
pub fn spread(slots: usize, lease: Duration) -> Duration {
    let at_the_pace = Duration::from_secs(1) / PER_SECOND * u32::try_from(slots).unwrap_or(u32::MAX);
    SOON.max(at_the_pace).min(lease / 3)
}

/// The time after which the worker tries a renewal again that got no answer so often. It is before the slot's
/// next turn: a lost answer costs seconds of the lease and not a third of it. Each further failure doubles
/// the pause, since Redis may refuse for hours. `failed` slots have failed together, and part at the same
/// pace as after a break.
#[must_use]
pub fn again(failures: u8, failed: usize, lease: Duration, jitter: f64) -> Duration {
    let doubled = AGAIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    (doubled + spread(failed, lease).mul_f64(jitter)).min(turn(lease, jitter))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(45);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_turn_is_27_to_33_percent_of_a_lease() {
        assert_eq!([turn(LEASE, 0.0), turn(LEASE, 1.0)], [seconds(12.0), seconds(15.0)]);
    }

    #[test]
    fn the_more_come_back_the_longer_their_renewals_take() {
        for (slots, lease, expected) in [
            (0, 45, 2),
            (1, 45, 2),
            (2_000, 45, 2),
            (5_000, 45, 5),
            (14_000, 45, 14),
            (1_000_000, 45, 15),
            (usize::MAX, 45, 15),
            (1, 3, 1),
        ] {
            let lease = Duration::from_secs(lease);
            assert_eq!(spread(slots, lease), Duration::from_secs(expected), "{slots} slots, {lease:?}");
        }
    }

    #[test]
    fn without_an_answer_the_next_try_comes_sooner_than_the_turn_and_each_time_later() {
        for (failures, failed, jitter, expected) in [
            (1, 1, 0.0, 1.0),
            (1, 1, 0.5, 2.0),
            (1, 1, 1.0, 3.0),
            (2, 1, 0.0, 2.0),
            (3, 1, 1.0, 6.0),
            (4, 1, 0.0, 8.0),
            // A turn at the latest, with its own jitter.
            (5, 1, 0.0, 12.0),
            (6, 1, 1.0, 15.0),
            (u8::MAX, 1, 1.0, 15.0),
            // 5,000 slots take 5 s at the pace.
            (1, 5_000, 0.0, 1.0),
            (1, 5_000, 0.5, 3.5),
            (1, 5_000, 1.0, 6.0),
            (1, usize::MAX, 1.0, 15.0),
            (0, 0, 0.0, 1.0),
        ] {
            let pause = again(failures, failed, LEASE, jitter);
            assert_eq!(pause, seconds(expected), "{failures} failures, {failed} slots, {jitter}");
        }
        // A short lease has short turns.
        assert_eq!(again(1, 1, seconds(3.0), 0.0), seconds(0.8));
    }
}

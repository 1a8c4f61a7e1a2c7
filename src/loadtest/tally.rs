//! What is counted, second by second, and added up.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// A histogram of durations with three significant digits, from 1 us up to 10 minutes.
#[derive(Debug, Clone, Default)]
pub(super) struct Times(Option<Box<Histogram<u64>>>);

impl Times {
    const LONGEST_US: u64 = 600_000_000;

    /// Counts one; longer ones than 10 minutes count as 10 minutes.
    pub(super) fn record(&mut self, time: Duration) {
        let us = u64::try_from((time.as_nanos() + 500) / 1000).unwrap_or(u64::MAX);
        if self.0.is_none() {
            self.0 = Histogram::new_with_bounds(1, Self::LONGEST_US, 3).ok().map(Box::new);
        }
        self.0.iter_mut().for_each(|histogram| histogram.saturating_record(us));
    }

    pub(super) fn add(&mut self, other: &Self) {
        match (&mut self.0, &other.0) {
            // Bounds are the same everywhere, so that nothing is out of range.
            (Some(histogram), Some(other)) => histogram.add(&**other).unwrap_or_default(),
            (None, Some(_)) => self.0.clone_from(&other.0),
            (_, None) => {}
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |histogram| histogram.len())
    }

    /// Seconds that this share (0 to 1) of the durations does not exceed; `None` without any.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let histogram = self.0.as_ref()?;
        let us = histogram.value_at_quantile(share);
        Some(Duration::from_micros(us.min(histogram.max())).as_secs_f64())
    }

    /// The mean in seconds; none without a measurement.
    pub(super) fn mean(&self) -> Option<f64> {
        Some(self.0.as_ref()?.mean() / 1e6)
    }
}

macro_rules! tally {
    (
        numbers { $($(#[$doc:meta])* $number:ident: $type:ty;)* }
        maps { $($(#[$map_doc:meta])* $map:ident: $key:ty;)* }
        times { $($(#[$times_doc:meta])* $times:ident;)* }
    ) => {
        /// What one thread counted in one second, or everything added up.
        #[derive(Debug, Clone, Default)]
        pub(super) struct Tally {
            $($(#[$doc])* pub(super) $number: $type,)*
            $($(#[$map_doc])* pub(super) $map: BTreeMap<$key, u64>,)*
            $($(#[$times_doc])* pub(super) $times: Times,)*
        }

        impl Tally {
            pub(super) fn add(&mut self, other: &Self) {
                $(self.$number += other.$number;)*
                $(other.$map.iter().for_each(|(key, count)| *self.$map.entry(key.clone()).or_default() += count);)*
                $(self.$times.add(&other.$times);)*
            }
        }
    };
}

tally! {
    numbers {
        /// Measured frames handed to a socket.
        sent: u64;
        /// Measured frames that arrived, each once.
        delivered: u64;
        /// Frames due while there was no connection.
        unsent: u64;
        /// Volatile frames that were skipped; below 0 in a second in which skipped ones arrive.
        superseded: i64;
        /// Reliable frames that were skipped or never came.
        lost: i64;
        /// Volatile frames that never came, and no newer one either.
        vanished: u64;
        /// Frames that arrived after a newer one.
        out_of_order: u64;
        /// Frames that arrived again.
        duplicates: u64;
        /// Frames that were not meant for who got them.
        wrong_user: u64;
        /// Connections that were opened less those that ended.
        connected: i64;
        /// Handshakes that were welcomed.
        welcomed: u64;
        /// Connections that moved or came back.
        reconnects: u64;
    }
    maps {
        /// Handshakes that were answered with something else, by code or status.
        refused: String;
        /// Handshakes that got no answer, by reason.
        failed: String;
        /// Connections that the relay closed, by close code; 1006 for one that broke off.
        closes: u16;
        /// `error` messages of the relay, by code.
        errors: String;
        /// Simultaneous takeovers, by how many sockets they left.
        left: usize;
    }
    times {
        /// From due to arrived.
        latency;
        /// From due to sent.
        lag;
        /// From due to welcomed.
        handshake;
        /// From the new socket's handshake to the old one's `overwritten`.
        notified;
        /// Each receiver's longest time without a frame.
        silence;
    }
}

impl Tally {
    /// Counts a handshake without an answer, or whatever else went wrong.
    pub(super) fn fail(&mut self, why: impl Into<String>) {
        *self.failed.entry(why.into()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn quantiles_are_those_of_all_parts_together() {
        let mut sum = Times::default();
        assert_eq!((sum.quantile(0.5), sum.quantile(1.0), sum.mean(), sum.count()), (None, None, None, 0));
        for half in [1..=50_u64, 51..=100] {
            let mut part = Times::default();
            half.for_each(|time| part.record(ms(time)));
            sum.add(&part);
        }
        let near = |value: Option<f64>, wanted: f64| {
            assert!((value.unwrap() - wanted).abs() <= wanted / 900.0, "{value:?} {wanted}");
        };
        near(sum.quantile(0.5), 0.05);
        near(sum.quantile(0.99), 0.099);
        near(sum.quantile(1.0), 0.1);
        near(sum.mean(), 0.0505);
        assert_eq!(sum.count(), 100);
    }

    #[test]
    fn times_out_of_range_are_kept_at_its_end() {
        let mut times = Times::default();
        times.record(Duration::ZERO);
        times.record(Duration::from_secs(100_000));
        assert_eq!(times.count(), 2);
        assert!(times.quantile(1.0).unwrap() >= 600.0);
    }

    #[test]
    fn every_count_of_a_second_is_in_the_sum() {
        let mut second = Tally {
            sent: 1,
            delivered: 2,
            unsent: 3,
            superseded: -4,
            lost: 5,
            vanished: 19,
            out_of_order: 6,
            duplicates: 7,
            wrong_user: 8,
            connected: -9,
            welcomed: 10,
            reconnects: 11,
            refused: [("full".to_owned(), 12)].into(),
            failed: [("timeout".to_owned(), 13)].into(),
            closes: [(4001, 14)].into(),
            errors: [("bad_json".to_owned(), 15)].into(),
            left: [(0, 16), (1, 17), (2, 18)].into(),
            ..Tally::default()
        };
        for times in [
            &mut second.latency,
            &mut second.lag,
            &mut second.handshake,
            &mut second.notified,
            &mut second.silence,
        ] {
            times.record(ms(1));
        }
        let mut sum = second.clone();
        sum.add(&second);
        assert_eq!((sum.sent, sum.delivered, sum.unsent, sum.superseded), (2, 4, 6, -8));
        assert_eq!((sum.lost, sum.out_of_order, sum.duplicates, sum.wrong_user), (10, 12, 14, 16));
        assert_eq!((sum.connected, sum.welcomed, sum.reconnects), (-18, 20, 22));
        assert_eq!(
            (sum.refused["full"], sum.failed["timeout"], sum.closes[&4001], sum.errors["bad_json"]),
            (24, 26, 28, 30)
        );
        assert_eq!((sum.left, sum.vanished), ([(0, 32), (1, 34), (2, 36)].into(), 38));
        for times in [&sum.latency, &sum.lag, &sum.handshake, &sum.notified, &sum.silence] {
            assert_eq!(times.count(), 2);
        }
    }
}

//! What a run counted and read, second by second.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::settings::scenario::Scenario;
use super::source::Reading;
use super::tally::{Tally, Times};

/// Seconds that are kept whole until every thread has reported them.
const OPEN: usize = 4;

/// One second of the measurement.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Point {
    /// Since the measurement began.
    pub(super) second: u64,
    /// Frames that left in this second.
    pub(super) sent: u64,
    /// Frames that arrived in this second.
    pub(super) delivered: u64,
    /// Volatile frames, at least 0.
    pub(super) superseded: u64,
    /// Reliable frames, at least 0.
    pub(super) lost: u64,
    /// Handshakes that ended with `welcome`.
    pub(super) welcomed: u64,
    /// Seconds; absent when nothing arrived. Handshakes' in a storm, takeovers' where they are what is done.
    pub(super) p50: Option<f64>,
    /// Seconds, as the median's.
    pub(super) p99: Option<f64>,
    /// Seconds, as the median's.
    pub(super) max: Option<f64>,
}

/// Everything counted so far.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub(super) scenario: Scenario,
    /// How long is measured.
    pub(super) duration: Duration,
    /// How long was measured, once the run is over.
    pub(super) measured: Duration,
    /// The sums of all threads and seconds.
    pub(super) total: Tally,
    /// The measured seconds that are complete.
    pub(super) points: Vec<Point>,
    pub(super) open: BTreeMap<u64, Tally>,
    /// Connections open at the same time, at most.
    pub(super) peak: i64,
    /// Latencies of the last tenth.
    pub(super) tail: Times,
    /// Readings of the measured time.
    pub(super) readings: Vec<Reading>,
    /// The metrics before anything connected.
    pub(super) before: Reading,
}

/// A difference of counts, which is below 0 only for a moment.
pub(super) fn positive(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
pub(super) fn count(count: u64) -> f64 {
    count as f64
}

impl Results {
    /// What is timed in the scenario.
    pub(super) fn timed<'a>(&self, tally: &'a Tally) -> &'a Times {
        match self.scenario {
            Scenario::Stream | Scenario::Slow | Scenario::Rolling => &tally.latency,
            Scenario::Idle | Scenario::Storm => &tally.handshake,
            Scenario::Overwrite => &tally.notified,
        }
    }

    /// Takes what a thread counted in a second; none before the measurement.
    pub(super) fn add(&mut self, second: Option<u64>, tally: &Tally) {
        self.total.add(tally);
        self.peak = self.peak.max(self.total.connected);
        let Some(second) = second else { return };
        if second >= tail_from(self.duration) {
            self.tail.add(&tally.latency);
        }
        self.open.entry(second).or_default().add(tally);
        self.complete(OPEN);
    }

    /// Closes the oldest seconds, until so many are open.
    pub(super) fn complete(&mut self, open: usize) {
        while self.open.len() > open
            && let Some((second, tally)) = self.open.pop_first()
        {
            let times = self.timed(&tally);
            self.points.push(Point {
                second,
                sent: tally.sent,
                delivered: tally.delivered,
                superseded: positive(tally.superseded),
                lost: positive(tally.lost),
                welcomed: tally.welcomed,
                p50: times.quantile(0.5),
                p99: times.quantile(0.99),
                max: times.quantile(1.0),
            });
        }
    }

    /// The newest second that has begun, for the progress bar.
    pub(super) fn latest(&self) -> Option<&Tally> {
        self.open.last_key_value().map(|(_, tally)| tally)
    }

    /// Handshakes while a storm was measured.
    pub(super) fn stormed(&self) -> Option<u64> {
        (self.scenario == Scenario::Storm).then(|| self.points.iter().map(|point| point.welcomed).sum())
    }

    /// What a counter grew by over all readings; one that fell was restarted from 0.
    pub(super) fn spent(&self, counter: impl Fn(&Reading) -> Option<f64>) -> Option<f64> {
        let values: Vec<f64> = self.readings.iter().filter_map(counter).collect();
        let grown = |pair: &[f64]| if pair[1] < pair[0] { pair[1] } else { pair[1] - pair[0] };
        (values.len() > 1).then(|| values.windows(2).map(grown).sum())
    }

    /// CPU of all instances.
    pub(super) fn cpu(&self) -> Option<f64> {
        let of = |index: usize| self.spent(|reading| reading.instances.get(index)?.as_ref()?.cpu);
        (0..self.before.instances.len()).filter_map(of).reduce(|sum, cpu| sum + cpu)
    }

    /// The last reading may come when the connections of a run that has ended are closed already. So the last
    /// one that still sees them counts. A process that does not report its connections has at least those
    /// opened here.
    pub(super) fn rss_per_connection(&self) -> Option<f64> {
        self.readings.iter().rev().find_map(|reading| {
            let grown = reading.sum(|instance| instance.rss)? - self.before.sum(|instance| instance.rss)?;
            let [open, before] =
                [reading, &self.before].map(|reading| reading.sum(|instance| instance.connections));
            let opened = open.zip(before).map_or(count(positive(self.peak)), |(open, before)| open - before);
            (opened > 0.0).then(|| grown / opened)
        })
    }
}

/// The first second of the last tenth; at least one second.
fn tail_from(duration: Duration) -> u64 {
    let seconds = duration.as_secs();
    seconds - seconds.div_ceil(10).max(1).min(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::figure::figures;
    use crate::loadtest::source::{Instance, RedisState};

    #[test]
    fn the_last_tenth_is_at_least_a_second() {
        for (seconds, from) in [(0, 0), (1, 0), (3, 2), (10, 9), (20, 18), (40, 36), (45, 40)] {
            assert_eq!(tail_from(Duration::from_secs(seconds)), from);
        }
    }

    fn reading(at: f64, cpu: f64, rss: f64, connections: f64) -> Reading {
        Reading {
            at,
            instances: vec![
                Some(Instance {
                    cpu: Some(cpu),
                    rss: Some(rss),
                    connections: Some(connections),
                    ..Instance::default()
                });
                2
            ],
            redis: Some(RedisState { cpu: cpu / 2.0, commands: cpu * 100.0, memory: 1.0 }),
        }
    }

    #[test]
    fn costs_are_those_between_the_first_and_the_last_reading() {
        let duration = Duration::from_secs(10);
        let before = reading(0.0, 0.0, 10e6, 0.0);
        let mut results = Results { before, duration, measured: duration, ..Results::default() };
        results.add(None, &Tally { connected: 100, welcomed: 100, ..Tally::default() });
        let mut second = Tally { sent: 1000, delivered: 900, superseded: 100, ..Tally::default() };
        second.latency.record(Duration::from_millis(2));
        for at in [0, 1, 9] {
            results.add(Some(at), &second);
        }
        results.readings = vec![reading(0.0, 1.0, 11e6, 100.0), reading(10.0, 2.35, 12e6, 100.0)];
        results.complete(0);
        let figures = figures(&results);
        let near = |name, wanted: f64| {
            let value: f64 = figures[name];
            assert!((value - wanted).abs() < wanted.abs() * 1e-3 + 1e-12, "{name}: {value} {wanted}");
        };
        near("delivered", 2700.0);
        near("superseded", 300.0);
        near("rate", 270.0);
        near("cpu_per_frame", 2.7 / 2700.0);
        near("redis_cpu_per_frame", 0.675 / 2700.0);
        near("redis_commands_per_frame", 135.0 / 2700.0);
        near("rss_per_connection", 4e6 / 200.0);
        near("rss", 24e6);
        near("connected", 100.0);
        near("p50", 0.002);
        near("age_end_p99", 0.002);
        assert!(!figures.contains_key("told_p99"));
        let seconds: Vec<_> = results.points.iter().map(|point| (point.second, point.delivered)).collect();
        assert_eq!(seconds, [(0, 900), (1, 900), (9, 900)]);
    }

    #[test]
    fn a_restarted_instance_counts_from_zero() {
        let readings = [5.0, 6.0, 0.5, 1.5].map(|cpu| reading(cpu, cpu, 0.0, 0.0)).into();
        let results = Results { before: reading(0.0, 0.0, 0.0, 0.0), readings, ..Results::default() };
        assert_eq!(results.cpu(), Some(5.0));
    }

    #[test]
    fn without_metrics_there_are_no_costs() {
        let figures = figures(&Results::default());
        for name in ["cpu_per_frame", "rss", "rss_per_connection", "p50"] {
            assert!(!figures.contains_key(name), "{name}");
        }
    }
}

//! From counts and readings to figures.

use std::collections::BTreeMap;
use std::time::Duration;

use super::settings::{Assertion, LoadOptions, Scenario, Unit};
use super::tally::{Tally, Times};
use super::watch::{Reading, RedisState};

/// Seconds that are kept whole until every thread has reported them.
const OPEN: usize = 4;

/// One second of the measurement.
#[derive(Debug, Clone, Default)]
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
    /// The sums of all threads and seconds.
    pub(super) total: Tally,
    /// The measured seconds that are complete.
    pub(super) points: Vec<Point>,
    open: BTreeMap<u64, Tally>,
    /// Connections open at the same time, at most.
    pub(super) peak: i64,
    /// Latencies of the last tenth.
    tail: Times,
    /// Readings of the measured time: seconds since its begin.
    pub(super) readings: Vec<(f64, Reading)>,
    /// The metrics before anything connected.
    pub(super) before: Reading,
}

fn clamp(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// What is timed in a scenario.
pub(super) fn timed(scenario: Scenario, tally: &Tally) -> &Times {
    match scenario {
        Scenario::Stream | Scenario::Slow | Scenario::Rolling => &tally.latency,
        Scenario::Idle | Scenario::Storm => &tally.handshake,
        Scenario::Overwrite => &tally.notified,
    }
}

impl Results {
    /// Nothing yet but a first reading.
    pub(super) fn after(before: Reading) -> Self {
        Self { before, ..Self::default() }
    }

    /// Takes what a thread counted before the measurement.
    pub(super) fn before(&mut self, tally: &Tally) {
        self.total.add(tally);
        self.peak = self.peak.max(self.total.connected);
    }

    /// Takes what a thread counted in a second.
    pub(super) fn second(&mut self, second: u64, tally: &Tally, options: &LoadOptions) {
        self.before(tally);
        if second >= tail_from(options.duration) {
            self.tail.add(&tally.latency);
        }
        self.open.entry(second).or_default().add(tally);
        while self.open.len() > OPEN {
            self.complete(options.scenario);
        }
    }

    fn complete(&mut self, scenario: Scenario) {
        let Some((second, tally)) = self.open.pop_first() else {
            return;
        };
        let times = timed(scenario, &tally);
        self.points.push(Point {
            second,
            sent: tally.sent,
            delivered: tally.delivered,
            superseded: clamp(tally.superseded),
            lost: clamp(tally.lost),
            welcomed: tally.welcomed,
            p50: times.quantile(0.5),
            p99: times.quantile(0.99),
            max: times.max(),
        });
    }

    /// The newest second that has begun, for the progress bar.
    pub(super) fn latest(&self) -> Option<&Tally> {
        self.open.last_key_value().map(|(_, tally)| tally)
    }

    /// No more will come.
    pub(super) fn finish(&mut self, scenario: Scenario) {
        while !self.open.is_empty() {
            self.complete(scenario);
        }
    }

    /// Every figure that this run has; times in seconds.
    pub(super) fn figures(&self, options: &LoadOptions, measured: Duration) -> BTreeMap<&'static str, f64> {
        let mut figures = BTreeMap::new();
        let mut set = |name, value: Option<f64>| {
            if let Some(value) = value {
                figures.insert(name, value);
            }
        };
        let total = &self.total;
        let count = |count: u64| {
            #[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
            let count = count as f64;
            count
        };
        let streams = options.scenario.streams();
        let delivered = count(total.delivered);
        let welcomed_meanwhile = count(self.points.iter().map(|point| point.welcomed).sum());
        if streams {
            set("p50", total.latency.quantile(0.5));
            set("p90", total.latency.quantile(0.9));
            set("p99", total.latency.quantile(0.99));
            set("p999", total.latency.quantile(0.999));
            set("max", total.latency.max());
            set("mean", total.latency.mean());
            set("age_end_p99", self.tail.quantile(0.99));
            set("lag_p99", total.lag.quantile(0.99));
            set("sent", Some(count(total.sent)));
            set("delivered", Some(delivered));
            set("rate", Some(delivered / measured.as_secs_f64().max(1e-9)));
            set("superseded", Some(count(clamp(total.superseded))));
            set("lost", Some(count(clamp(total.lost))));
            set("vanished", Some(count(total.vanished)));
            set("out_of_order", Some(count(total.out_of_order)));
            set("duplicates", Some(count(total.duplicates)));
            set("wrong_user", Some(count(total.wrong_user)));
            set("unsent", Some(count(total.unsent)));
            set("silence", total.silence.max());
        }
        set("connected", Some(count(clamp(self.peak))));
        set("welcomed", Some(count(total.welcomed)));
        set("refused", Some(count(total.refused.values().sum())));
        set("failed", Some(count(total.failed.values().sum())));
        set("reconnects", Some(count(total.reconnects)));
        set("handshake_p50", total.handshake.quantile(0.5));
        set("handshake_p99", total.handshake.quantile(0.99));
        if options.scenario == Scenario::Overwrite {
            let [none, one, both] = total.left;
            set("told_p50", total.notified.quantile(0.5));
            set("told_p99", total.notified.quantile(0.99));
            set("none_left", Some(count(none)));
            set("one_left", Some(count(one)));
            set("both_left", Some(count(both)));
        }
        let cpu = self.spent(
            self.instances()
                .map(|instance| move |reading: &Reading| reading.instances.get(instance)?.as_ref()?.cpu),
        );
        let each = |whole: Option<f64>, count: f64| whole.filter(|_| count > 0.0).map(|whole| whole / count);
        if streams {
            let redis = |of: fn(&RedisState) -> f64| {
                self.spent([move |reading: &Reading| reading.redis.as_ref().map(of)])
            };
            set("cpu_per_frame", each(cpu, delivered));
            set("redis_cpu_per_frame", each(redis(|redis| redis.cpu), delivered));
            let commands = redis(|redis| redis.commands);
            set("redis_commands_per_frame", each(commands, delivered));
        }
        if options.scenario == Scenario::Storm {
            set("cpu_per_handshake", each(cpu, welcomed_meanwhile));
        }
        // The last reading may come when the connections of a run that has ended are closed already, so the last one
        // that still sees them counts. A process that does not report its connections has at least those opened here.
        let grown = self.readings.iter().rev().find_map(|(_, reading)| {
            let (rss, before) =
                reading.sum(|instance| instance.rss).zip(self.before.sum(|instance| instance.rss))?;
            let opened = reading
                .sum(|instance| instance.connections)
                .zip(self.before.sum(|instance| instance.connections))
                .map_or_else(|| count(clamp(self.peak)), |(open, before)| open - before);
            (opened > 0.0).then(|| (rss - before) / opened)
        });
        set("rss_per_connection", grown);
        let largest = self.readings.iter().filter_map(|(_, reading)| reading.sum(|instance| instance.rss));
        set("rss", largest.reduce(f64::max));
        figures
    }
}

impl Results {
    fn instances(&self) -> std::ops::Range<usize> {
        0..self.before.instances.len()
    }

    /// What counters grew by over all readings, together; one that fell was restarted from 0.
    fn spent<F: Fn(&Reading) -> Option<f64>>(&self, counters: impl IntoIterator<Item = F>) -> Option<f64> {
        let mut sum = None;
        for counter in counters {
            let values: Vec<f64> = self.readings.iter().filter_map(|(_, reading)| counter(reading)).collect();
            for pair in values.windows(2) {
                if let [before, after] = pair {
                    let grown = if after < before { *after } else { after - before };
                    *sum.get_or_insert(0.0) += grown;
                }
            }
        }
        sum
    }
}

/// The first second of the last tenth; at least one second.
fn tail_from(duration: Duration) -> u64 {
    let seconds = duration.as_secs();
    seconds - seconds.div_ceil(10).max(1).min(seconds)
}

/// What became of a demand.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    /// As it was written.
    pub(super) demand: String,
    /// The unit of the figure.
    pub(super) unit: Unit,
    /// What was measured; absent when this run has no such figure.
    pub(super) value: Option<f64>,
    /// A demand on a figure that was not measured is broken.
    pub(super) holds: bool,
}

/// Judges every demand; one whose figure is missing does not hold.
pub(super) fn judge(assertions: &[Assertion], figures: &BTreeMap<&'static str, f64>) -> Vec<Verdict> {
    let judge = |assertion: &Assertion| {
        let value = figures.get(assertion.figure.name).copied();
        Verdict {
            demand: assertion.to_string(),
            unit: assertion.figure.unit,
            value,
            holds: value.is_some_and(|value| assertion.holds(value)),
        }
    };
    assertions.iter().map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::settings;
    use crate::loadtest::source::Instance;

    #[test]
    fn the_last_tenth_is_at_least_a_second() {
        for (seconds, from) in [(0, 0), (1, 0), (3, 2), (10, 9), (20, 18), (40, 36), (45, 40)] {
            assert_eq!(tail_from(Duration::from_secs(seconds)), from);
        }
    }

    #[test]
    fn a_demand_on_what_was_not_measured_is_broken() {
        let demands: Vec<_> =
            ["lost=0", "told_p99<1s", "lost>0"].map(|text| Assertion::parse(text).unwrap()).into();
        let verdicts = judge(&demands, &[("lost", 0.0)].into());
        let short: Vec<_> = verdicts.iter().map(|verdict| (verdict.value, verdict.holds)).collect();
        assert_eq!(short, [(Some(0.0), true), (None, false), (Some(0.0), false)]);
    }

    fn reading(cpu: f64, rss: f64, connections: f64) -> Reading {
        Reading {
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

    fn options() -> LoadOptions {
        let given = settings::command().get_matches_from(["loadtest", "--duration", "10s"]);
        settings::read(&given).unwrap()
    }

    #[test]
    fn costs_are_those_between_the_first_and_the_last_reading() {
        let options = options();
        let mut results = Results::after(reading(0.0, 10e6, 0.0));
        results.before(&Tally { connected: 100, welcomed: 100, ..Tally::default() });
        let mut second = Tally { sent: 1000, delivered: 900, superseded: 100, ..Tally::default() };
        second.latency.record(Duration::from_millis(2));
        for at in [0, 1, 9] {
            results.second(at, &second, &options);
        }
        results.readings = vec![(0.0, reading(1.0, 11e6, 100.0)), (10.0, reading(2.35, 12e6, 100.0))];
        results.finish(options.scenario);
        let figures = results.figures(&options, options.duration);
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
        let mut results = Results::after(reading(0.0, 0.0, 0.0));
        results.readings = [5.0, 6.0, 0.5, 1.5].map(|cpu| (cpu, reading(cpu, 0.0, 0.0))).into();
        let cpu = results.spent([|reading: &Reading| reading.instances[0].as_ref()?.cpu]);
        assert_eq!(cpu, Some(2.5));
    }

    #[test]
    fn without_metrics_there_are_no_costs() {
        let options = options();
        let results = Results::default();
        let figures = results.figures(&options, Duration::ZERO);
        for name in ["cpu_per_frame", "rss", "rss_per_connection", "p50"] {
            assert!(!figures.contains_key(name), "{name}");
        }
    }
}

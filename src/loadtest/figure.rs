//! The figures of a run: how each is written, what it means, and how it follows from the counts.

use std::collections::BTreeMap;

use super::result::{Results, count, positive};
use super::settings::scenario::Scenario;
use super::tally::Tally;

/// How a figure is counted and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds; written with `ns`, `us`, `ms` or `s`.
    Time,
    /// Bytes; written plainly or with `KB`, `MB`, `KiB` or `MiB`.
    Bytes,
    /// A plain number, without a unit.
    Count,
}

/// One figure of a report.
#[derive(Debug)]
pub struct Figure {
    /// Its name in `--assert` and `--json`.
    pub name: &'static str,
    /// How it is counted.
    pub unit: Unit,
    /// The sentence of `--help`.
    pub meaning: &'static str,
    /// Its value in base units, as far as the run has it.
    of: fn(&Results) -> Option<f64>,
}

macro_rules! figures {
    ($($name:ident $unit:ident $meaning:literal $of:expr;)*) => {
        /// Every figure that a run may have.
        pub(super) static FIGURES: &[Figure] = &[$(Figure {
            name: stringify!($name), unit: Unit::$unit, meaning: $meaning, of: $of,
        }),*];
    };
}

figures! {
    p50 Time "latency, median" |run| frames(run)?.latency.quantile(0.5);
    p90 Time "latency, 90th percentile" |run| frames(run)?.latency.quantile(0.9);
    p99 Time "latency, 99th percentile" |run| frames(run)?.latency.quantile(0.99);
    p999 Time "latency, 99.9th percentile" |run| frames(run)?.latency.quantile(0.999);
    max Time "latency, largest" |run| frames(run)?.latency.quantile(1.0);
    mean Time "latency, mean" |run| frames(run)?.latency.mean();
    age_end_p99 Time "age of frames on arrival, p99 of the last tenth" |run| frames(run).and(run.tail.quantile(0.99));
    lag_p99 Time "how late this generator sent, p99" |run| frames(run)?.lag.quantile(0.99);
    sent Count "frames sent" |run| Some(count(frames(run)?.sent));
    delivered Count "frames that arrived" |run| Some(count(frames(run)?.delivered));
    rate Count "frames that arrived, a second" |run| Some(count(frames(run)?.delivered) / run.measured.as_secs_f64().max(1e-9));
    superseded Count "volatile frames that a newer one replaced" |run| Some(count(positive(frames(run)?.superseded)));
    lost Count "reliable frames that never arrived" |run| Some(count(positive(frames(run)?.lost)));
    vanished Count "last volatile frames that never arrived, nor a newer one" |run| Some(count(frames(run)?.vanished));
    out_of_order Count "frames that arrived after a newer one" |run| Some(count(frames(run)?.out_of_order));
    duplicates Count "frames that arrived twice" |run| Some(count(frames(run)?.duplicates));
    wrong_user Count "frames that reached someone else" |run| Some(count(frames(run)?.wrong_user));
    unsent Count "frames due while their sender had no connection" |run| Some(count(frames(run)?.unsent));
    silence Time "longest time in which a receiver heard no frame (of the volatile ones, if any)" |run| frames(run)?.silence.quantile(1.0);
    connected Count "connections open at the same time, at most" |run| Some(count(positive(run.peak)));
    welcomed Count "handshakes that were welcomed" |run| Some(count(run.total.welcomed));
    refused Count "handshakes that were refused" |run| Some(count(run.total.refused.values().sum()));
    failed Count "handshakes that failed otherwise" |run| Some(count(run.total.failed.values().sum()));
    reconnects Count "connections that moved or came back" |run| Some(count(run.total.reconnects));
    handshake_p50 Time "from the due time of a handshake to its welcome, median" |run| run.total.handshake.quantile(0.5);
    handshake_p99 Time "the same, 99th percentile" |run| run.total.handshake.quantile(0.99);
    told_p50 Time "from a takeover's handshake until the old socket was notified, median" |run| takeovers(run)?.notified.quantile(0.5);
    told_p99 Time "the same, 99th percentile" |run| takeovers(run)?.notified.quantile(0.99);
    none_left Count "simultaneous takeovers that left nobody" |run| left(run, 0);
    one_left Count "simultaneous takeovers that left exactly one" |run| left(run, 1);
    both_left Count "simultaneous takeovers that left both" |run| left(run, 2);
    cpu_per_frame Time "the instances' CPU for each delivered frame" |run| each(run.cpu(), frames(run)?.delivered);
    cpu_per_handshake Time "the instances' CPU for each handshake (storm)" |run| each(run.cpu(), run.stormed()?);
    redis_cpu_per_frame Time "Redis's CPU for each delivered frame" |run| each(run.spent(|reading| Some(reading.redis.as_ref()?.cpu)), frames(run)?.delivered);
    redis_commands_per_frame Count "Redis commands for each delivered frame" |run| each(run.spent(|reading| Some(reading.redis.as_ref()?.commands)), frames(run)?.delivered);
    rss_per_connection Bytes "what the instances' memory grew by for each connection" Results::rss_per_connection;
    rss Bytes "the instances' largest memory, together" |run| run.readings.iter().filter_map(|reading| reading.sum(|instance| instance.rss)).reduce(f64::max);
}

/// The counts of a run that streams.
fn frames(run: &Results) -> Option<&Tally> {
    run.scenario.streams().then_some(&run.total)
}

fn takeovers(run: &Results) -> Option<&Tally> {
    (run.scenario == Scenario::Overwrite).then_some(&run.total)
}

fn left(run: &Results, sockets: usize) -> Option<f64> {
    Some(count(takeovers(run)?.left.get(&sockets).copied().unwrap_or(0)))
}

fn each(whole: Option<f64>, number: u64) -> Option<f64> {
    whole.filter(|_| number > 0).map(|whole| whole / count(number))
}

/// Every figure that this run has; times in seconds.
pub(super) fn figures(run: &Results) -> BTreeMap<&'static str, f64> {
    FIGURES.iter().filter_map(|figure| Some((figure.name, (figure.of)(run)?))).collect()
}

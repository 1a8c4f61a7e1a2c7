//! The results as one HTML page.

use minijinja::Environment;
use minijinja::value::Serde;
use serde_json::json;

use super::super::announcement;
use super::super::result::{Point, count};
use super::super::settings::Scenario;
use super::super::source::Reading;
use super::chart::{Chart, Line, Plot};
use super::{Report, words};

/// Points that a chart has at most.
const POINTS: usize = 300;
/// Figures that a reader looks for first, as far as the run has them.
const FIRST: &str = "p50 p99 max age_end_p99 rate superseded lost vanished wrong_user silence told_p99 one_left \
    handshake_p99 cpu_per_frame rss_per_connection";

/// One self-contained page: no script, nothing that is loaded.
///
/// # Errors
/// The template's, which the tests exclude.
pub(in super::super) fn text(report: &Report<'_>) -> Result<String, minijinja::Error> {
    let figures: Vec<_> = report.figures_in_words().collect();
    let first = |name| figures.iter().find(|(figure, ..)| *figure == name);
    let page = json!({
        "scenario": report.options.scenario.to_string(),
        "what": announcement(report.options, None),
        "started": httpdate::fmt_http_date(report.started),
        "measured": format!("{:.1}", report.results.measured.as_secs_f64()),
        "interrupted": report.interrupted,
        "version": env!("CARGO_PKG_VERSION"),
        "notes": report.hints(),
        "cards": FIRST.split(' ').filter_map(first).collect::<Vec<_>>(),
        "verdicts": report.verdicts().collect::<Vec<_>>(),
        "charts": charts(report),
        "figures": figures,
        "events": report.events(),
    });
    let html =
        Environment::new().render_named_str("report.html", include_str!("report.html"), Serde(page))?;
    Ok(html + "\n")
}

fn charts(report: &Report<'_>) -> Vec<Chart> {
    let results = report.results;
    let scenario = results.scenario;
    // What arrives after the last frame was due is no whole second: it would look like a break.
    let whole = match scenario {
        Scenario::Overwrite => u64::MAX,
        _ => results.measured.as_secs().max(1),
    };
    let points = &results.points[..results.points.partition_point(|point| point.second < whole)];
    let step = points.len().div_ceil(POINTS).max(1);
    let line = |name: &str, of: &dyn Fn(&[Point]) -> Option<f64>| {
        (name.to_owned(), points.chunks(step).map(|chunk| (count(chunk[0].second), of(chunk))).collect())
    };
    let mean = |name: &str, of: fn(&Point) -> u64| -> Line {
        line(name, &|chunk| Some(count(chunk.iter().map(of).sum()) / count(chunk.len() as u64)))
    };
    let largest = |name: &str, of: fn(&Point) -> Option<f64>| -> Line {
        line(name, &|chunk| chunk.iter().filter_map(of).reduce(f64::max))
    };
    let end = points.last().map_or(1.0, |point| count(point.second));
    let over_time = |title, note, lines, log, value| {
        Plot { title, note, lines, log, ticks: seconds(end), at: &|at| format!("second {at:.0}"), value }
            .draw()
    };
    let what = match scenario {
        Scenario::Stream | Scenario::Slow | Scenario::Rolling => "from due to arrived",
        Scenario::Idle | Scenario::Storm => "from due to welcomed",
        Scenario::Overwrite => "from the new handshake until the old socket was notified",
    };
    let latency = vec![largest("p50", |p| p.p50), largest("p99", |p| p.p99), largest("max", |p| p.max)];
    let mut charts =
        vec![percentiles(report, what), over_time("Latency over time", what, latency, true, words::time)];
    if scenario.streams() {
        let rate = vec![mean("sent", |p| p.sent), mean("delivered", |p| p.delivered)];
        charts.push(over_time("Rate", "frames a second", rate, false, words::count));
        let drops = vec![mean("superseded", |p| p.superseded), mean("lost", |p| p.lost)];
        charts.push(over_time("Drops", "frames a second", drops, false, words::count));
    } else if scenario != Scenario::Idle {
        let rate = vec![mean("welcomed", |p| p.welcomed)];
        charts.push(over_time("Rate", "handshakes a second", rate, false, words::count));
    }
    let memory = resources(report, |[rss, _]| rss);
    charts.push(over_time("Memory", "resident", memory, false, words::bytes));
    let cores = cores(resources(report, |[_, cpu]| cpu));
    charts.push(over_time("CPU", "cores", cores, false, words::count));
    charts.into_iter().flatten().collect()
}

fn percentiles(report: &Report<'_>, note: &str) -> Option<Chart> {
    let times = report.results.timed(&report.results.total);
    let nines = count(times.count().max(2)).log10().min(6.0);
    let points = (0..=60).map(|index| {
        let at = f64::from(index) / 60.0 * nines;
        (at, times.quantile(1.0 - 10_f64.powf(-at)))
    });
    let tick = |share: f64| (-(1.0 - share / 100.0).log10(), format!("{share}%"));
    Plot {
        title: "Latency percentiles",
        note,
        lines: vec![("latency".to_owned(), points.collect())],
        log: true,
        ticks: [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999].map(tick).into(),
        at: &|at| format!("{:.4}%", 100.0 * (1.0 - 10_f64.powf(-at))),
        value: words::time,
    }
    .draw()
}

fn seconds(end: f64) -> Vec<(f64, String)> {
    let step =
        [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 3600.0].into_iter().find(|step| end / step <= 10.0);
    let step = step.unwrap_or(36_000.0);
    (0..=10).map(|index| f64::from(index) * step).map(|at| (at, format!("{at:.0} s"))).collect()
}

/// One line for each instance and one for Redis, as far as they reported.
fn resources(report: &Report<'_>, of: fn([Option<f64>; 2]) -> Option<f64>) -> Vec<Line> {
    let readings = &report.results.readings;
    let mut names = report.options.watched();
    // More lines than colours say nothing; Redis is always shown.
    let count = names.len();
    names.extend(report.options.redis.is_some().then(|| "Redis".to_owned()));
    let shown = names.into_iter().enumerate().filter(|(index, _)| *index < 5 || *index == count);
    let step = readings.len().div_ceil(POINTS).max(1);
    let line = |(index, name)| {
        (name, readings.iter().step_by(step).map(|reading| (reading.at, of(used(reading, index)))).collect())
    };
    shown.map(line).collect()
}

/// Memory, and CPU so far.
fn used(reading: &Reading, index: usize) -> [Option<f64>; 2] {
    let used = match reading.instances.get(index) {
        Some(instance) => instance.as_ref().map(|instance| [instance.rss, instance.cpu]),
        None => reading.redis.as_ref().map(|redis| [Some(redis.memory), Some(redis.cpu)]),
    };
    used.unwrap_or_default()
}

/// From seconds of CPU so far to the cores used since the reading before.
fn cores(lines: Vec<Line>) -> Vec<Line> {
    let used = |pair: &[(f64, Option<f64>)]| match pair {
        [(from, Some(before)), (to, Some(after))] => {
            (*to, Some(((after - before) / (to - from).max(1e-3)).max(0.0)))
        }
        [_, (to, _)] => (*to, None),
        _ => (0.0, None),
    };
    lines.into_iter().map(|(name, points)| (name, points.windows(2).map(used).collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_the_slope_of_cpu_seconds() {
        let points =
            vec![(0.0, Some(1.0)), (1.0, Some(1.5)), (3.0, Some(3.5)), (4.0, None), (5.0, Some(9.0))];
        let points = cores(vec![("a".to_owned(), points)]).remove(0).1;
        assert_eq!(points, [(1.0, Some(0.5)), (3.0, Some(1.0)), (4.0, None), (5.0, None)]);
    }
}

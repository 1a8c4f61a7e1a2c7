//! The results as one HTML page.

use std::fmt::Write as _;
use std::time::UNIX_EPOCH;

use super::super::announcement;
use super::super::result::{Point, timed};
use super::super::settings::{FIGURES, Scenario};
use super::super::watch::Reading;
use super::chart::{Chart, Scale, Series, escape};
use super::{Report, words};

/// Points that a chart has at most.
const POINTS: usize = 300;
/// Figures that a reader looks for first, as far as the run has them.
const FIRST: [&str; 15] = [
    "p50",
    "p99",
    "max",
    "age_end_p99",
    "rate",
    "superseded",
    "lost",
    "vanished",
    "wrong_user",
    "silence",
    "told_p99",
    "one_left",
    "handshake_p99",
    "cpu_per_frame",
    "rss_per_connection",
];

/// One self-contained page: no script, nothing that is loaded.
pub(in super::super) fn text(report: &Report<'_>) -> String {
    let options = report.options;
    let scenario = options.scenario.as_str();
    let cut = if report.interrupted { ", interrupted" } else { "" };
    let started = report.started.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let when = format!(
        "{} UTC, {:.1} s measured{cut}, duorelay {}",
        utc(started),
        report.measured.as_secs_f64(),
        env!("CARGO_PKG_VERSION")
    );
    let notes = report
        .hints()
        .iter()
        .fold(String::new(), |html, hint| format!("{html}<p class=bad>{}</p>", escape(hint)));
    let title = format!("duorelay load test: {scenario}");
    let parts = [
        ("{{title}}", escape(&title)),
        ("{{what}}", escape(&announcement(options, None))),
        ("{{when}}", escape(&when)),
        ("{{notes}}", notes),
        ("{{cards}}", cards(report)),
        ("{{verdicts}}", verdicts(report)),
        ("{{charts}}", charts(report)),
        ("{{figures}}", figures(report)),
        ("{{events}}", events(report)),
    ];
    let page = include_str!("report.html").to_owned();
    parts.into_iter().fold(page, |page, (name, part)| page.replace(name, &part))
}

fn cards(report: &Report<'_>) -> String {
    let mut html = String::new();
    for name in FIRST {
        let figure = FIGURES.iter().find(|figure| figure.name == name);
        if let (Some(figure), Some(value)) = (figure, report.figures.get(name)) {
            let bad = ["lost", "wrong_user"].contains(&name) && *value > 0.0;
            let class = if bad { "card bad" } else { "card" };
            let value = escape(&words::figure(figure.unit, *value));
            html.push_str(&format!(
                "<div class='{class}' title='{}'><b>{value}</b><span>{name}</span></div>",
                escape(figure.meaning)
            ));
        }
    }
    html
}

fn verdicts(report: &Report<'_>) -> String {
    if report.verdicts.is_empty() {
        return String::new();
    }
    let mut html = "<h2>Demands</h2><table>".to_owned();
    for verdict in &report.verdicts {
        let (class, word) = if verdict.holds { ("good", "holds") } else { ("bad", "broken") };
        let value = verdict.value_in_words();
        let demand = escape(&verdict.demand);
        html.push_str(&format!(
            "<tr><td><code>{demand}</code></td><td>{}</td><td class={class}>{word}</td></tr>",
            escape(&value)
        ));
    }
    html + "</table>"
}

fn figures(report: &Report<'_>) -> String {
    let mut html = String::new();
    for figure in FIGURES {
        if let Some(value) = report.figures.get(figure.name) {
            let value = escape(&words::figure(figure.unit, *value));
            html.push_str(&format!(
                "<tr><td><code>{}</code></td><td>{value}</td><td>{}</td></tr>",
                figure.name,
                escape(figure.meaning)
            ));
        }
    }
    html
}

fn events(report: &Report<'_>) -> String {
    let events = report.events();
    if events.is_empty() {
        return String::new();
    }
    let mut html = "<h2>What else happened</h2><table>".to_owned();
    for (what, count) in events {
        // A string takes all that is written to it.
        let _ = write!(html, "<tr><td>{}</td><td>{count}</td></tr>", escape(&what));
    }
    html + "</table>"
}

fn charts(report: &Report<'_>) -> String {
    let results = report.results;
    let scenario = report.options.scenario;
    // What arrives after the last frame was due is no whole second: it would look like a break.
    let whole = match scenario {
        Scenario::Overwrite => u64::MAX,
        _ => report.measured.as_secs().max(1),
    };
    let points = results.points.iter().take_while(|point| point.second < whole);
    let points: Vec<Point> = points.cloned().collect();
    let step = points.len().div_ceil(POINTS).max(1);
    let chunks: Vec<&[Point]> = points.chunks(step).collect();
    let mean = |name: &str, of: &dyn Fn(&Point) -> u64| Series {
        name: name.to_owned(),
        points: chunks.iter().map(|chunk| (second(chunk), Some(average(chunk, of)))).collect(),
    };
    let largest = |name: &str, of: &dyn Fn(&Point) -> Option<f64>| Series {
        name: name.to_owned(),
        points: chunks
            .iter()
            .map(|chunk| (second(chunk), chunk.iter().filter_map(of).reduce(f64::max)))
            .collect(),
    };
    let end = points.last().map_or(1.0, |point| second(std::slice::from_ref(point)));
    let timeline = |title: &'static str,
                    note: &'static str,
                    series: Vec<Series>,
                    scale,
                    value: &dyn Fn(f64) -> String| {
        let at = |at: f64| format!("second {at:.0}");
        Chart { title, note, series, scale, ticks: seconds(end), at: &at, value }.svg()
    };
    let what = match scenario {
        Scenario::Stream | Scenario::Slow | Scenario::Rolling => "from due to arrived",
        Scenario::Idle | Scenario::Storm => "from due to welcomed",
        Scenario::Overwrite => "from the new handshake until the old socket was notified",
    };
    let mut html = percentiles(report, what);
    let latency = vec![largest("p50", &|p| p.p50), largest("p99", &|p| p.p99), largest("max", &|p| p.max)];
    html += &timeline("Latency over time", what, latency, Scale::Log, &words::time);
    if scenario.streams() {
        let rate = vec![mean("sent", &|p| p.sent), mean("delivered", &|p| p.delivered)];
        html += &timeline("Rate", "frames a second", rate, Scale::Linear, &words::count);
        let drops = vec![mean("superseded", &|p| p.superseded), mean("lost", &|p| p.lost)];
        html += &timeline("Drops", "frames a second", drops, Scale::Linear, &words::count);
    } else if scenario != Scenario::Idle {
        let rate = vec![mean("welcomed", &|p| p.welcomed)];
        html += &timeline("Rate", "handshakes a second", rate, Scale::Linear, &words::count);
    }
    html += &timeline("Memory", "resident", resources(report, memory), Scale::Linear, &words::bytes);
    html += &timeline("CPU", "cores", cores(resources(report, cpu)), Scale::Linear, &words::count);
    html
}

fn percentiles(report: &Report<'_>, what: &str) -> String {
    let times = timed(report.options.scenario, &report.results.total);
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let nines = (times.count().max(2) as f64).log10().min(6.0);
    let points = (0..=60).map(|index| {
        let at = f64::from(index) / 60.0 * nines;
        (at, times.quantile(1.0 - 10_f64.powf(-at)))
    });
    let tick = |share: f64| (-(1.0 - share / 100.0).log10(), format!("{share}%"));
    let at = |at: f64| format!("{:.4}%", 100.0 * (1.0 - 10_f64.powf(-at)));
    Chart {
        title: "Latency percentiles",
        note: what,
        series: vec![Series { name: "latency".to_owned(), points: points.collect() }],
        scale: Scale::Log,
        ticks: [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999].map(tick).into(),
        at: &at,
        value: &words::time,
    }
    .svg()
}

#[expect(clippy::cast_precision_loss, reason = "seconds of a run")]
fn second(chunk: &[Point]) -> f64 {
    chunk.first().map_or(0.0, |point| point.second as f64)
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
fn average(chunk: &[Point], of: &dyn Fn(&Point) -> u64) -> f64 {
    chunk.iter().map(of).sum::<u64>() as f64 / chunk.len().max(1) as f64
}

fn seconds(end: f64) -> Vec<(f64, String)> {
    let step =
        [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 3600.0].into_iter().find(|step| end / step <= 10.0);
    let step = step.unwrap_or(36_000.0);
    (0..=10).map(|index| f64::from(index) * step).map(|at| (at, format!("{at:.0} s"))).collect()
}

/// One line for each instance and one for Redis, as far as they reported.
fn resources(report: &Report<'_>, of: impl Fn(&Reading, usize) -> Option<f64>) -> Vec<Series> {
    let readings = &report.results.readings;
    let names = report.options.watched().into_iter();
    let count = names.len();
    let names = names.chain(report.options.redis.is_some().then(|| "Redis".to_owned()));
    let step = readings.len().div_ceil(POINTS).max(1);
    let line = |(index, name): (usize, String)| Series {
        name,
        points: readings.iter().step_by(step).map(|(at, reading)| (*at, of(reading, index))).collect(),
    };
    // More lines than colours say nothing; Redis is always shown.
    names.enumerate().filter(|(index, _)| *index < 5 || *index == count).map(line).collect()
}

fn memory(reading: &Reading, index: usize) -> Option<f64> {
    match reading.instances.get(index) {
        Some(instance) => instance.as_ref()?.rss,
        None => Some(reading.redis.as_ref()?.memory),
    }
}

fn cpu(reading: &Reading, index: usize) -> Option<f64> {
    match reading.instances.get(index) {
        Some(instance) => instance.as_ref()?.cpu,
        None => Some(reading.redis.as_ref()?.cpu),
    }
}

/// From seconds of CPU so far to the cores used since the reading before.
fn cores(series: Vec<Series>) -> Vec<Series> {
    let used = |pair: &[(f64, Option<f64>)]| match pair {
        [(from, Some(before)), (to, Some(after))] => {
            (*to, Some(((after - before) / (to - from).max(1e-3)).max(0.0)))
        }
        [_, (to, _)] => (*to, None),
        _ => (0.0, None),
    };
    let line = |line: Series| Series { points: line.points.windows(2).map(used).collect(), name: line.name };
    series.into_iter().map(line).collect()
}

/// `2026-11-23 08:30:00` (days to a date: Howard Hinnant's `civil_from_days`).
fn utc(unix: u64) -> String {
    let (days, second) = (unix / 86_400 + 719_468, unix % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    let year = year + era * 400;
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_795_422_217, "2026-11-23 08:23:37"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(utc(unix), text);
        }
    }

    #[test]
    fn cores_are_the_slope_of_cpu_seconds() {
        let series = vec![Series {
            name: "a".to_owned(),
            points: vec![(0.0, Some(1.0)), (1.0, Some(1.5)), (3.0, Some(3.5)), (4.0, None), (5.0, Some(9.0))],
        }];
        let points = cores(series).remove(0).points;
        assert_eq!(points, [(1.0, Some(0.5)), (3.0, Some(1.0)), (4.0, None), (5.0, None)]);
    }
}

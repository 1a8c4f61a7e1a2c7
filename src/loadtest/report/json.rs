//! The results for programs.

use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use super::Report;

/// `{scenario, started_at, measured_s, interrupted, options, figures, counts, timeline, readings, assertions}`:
/// times in seconds, sizes in bytes, `started_at` in Unix seconds.
pub(in super::super) fn text(report: &Report<'_>) -> String {
    let Report { options, results, figures, .. } = report;
    let total = &results.total;
    let assertions = options.assertions.iter().map(|assertion| {
        let value = figures.get(assertion.figure.name).copied();
        json!({"assert": assertion.to_string(), "value": value, "holds": assertion.holds(value)})
    });
    let urls: Vec<_> = options.urls.iter().map(ToString::to_string).collect();
    json!({
        "scenario": options.scenario.to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "started_at": report.started.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "measured_s": results.measured.as_secs_f64(),
        "interrupted": report.interrupted,
        "options": {
            "urls": urls, "users": options.users, "fps": options.fps, "frame_bytes": options.frame_bytes,
            "streams": options.streams, "rate": options.rate, "threads": options.threads,
            "warmup_s": options.warmup.as_secs_f64(), "duration_s": options.duration.as_secs_f64(),
        },
        "figures": figures,
        "counts": {
            "refused": total.refused, "failed": total.failed, "errors": total.errors, "closes": total.closes,
        },
        "timeline": results.points,
        "readings": results.readings,
        "assertions": assertions.collect::<Vec<Value>>(),
    })
    .to_string()
}

//! The results for programs.

use std::time::UNIX_EPOCH;

use serde_json::{Map, Value, json};

use super::Report;

/// `{scenario, started_at, measured_s, interrupted, options, figures, counts, timeline, readings, assertions}`:
/// times in seconds, sizes in bytes, `started_at` in Unix seconds.
pub(in super::super) fn text(report: &Report<'_>) -> String {
    let options = report.options;
    let total = &report.results.total;
    let figures: Map<String, Value> =
        report.figures.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let timeline: Vec<Value> = report
        .results
        .points
        .iter()
        .map(|point| {
            json!({
                "second": point.second, "sent": point.sent, "delivered": point.delivered,
                "superseded": point.superseded, "lost": point.lost, "welcomed": point.welcomed,
                "p50": point.p50, "p99": point.p99, "max": point.max,
            })
        })
        .collect();
    let readings: Vec<Value> = report
        .results
        .readings
        .iter()
        .map(|(at, reading)| {
            let instances: Vec<Value> = reading
                .instances
                .iter()
                .map(|instance| {
                    instance.as_ref().map_or(Value::Null, |instance| {
                        json!({
                            "cpu": instance.cpu, "rss": instance.rss,
                            "connections": instance.connections, "dropped": instance.dropped,
                        })
                    })
                })
                .collect();
            let redis = reading
                .redis
                .as_ref()
                .map(|redis| json!({"cpu": redis.cpu, "commands": redis.commands, "memory": redis.memory}));
            json!({"at": at, "instances": instances, "redis": redis})
        })
        .collect();
    let assertions: Vec<Value> = report
        .verdicts
        .iter()
        .map(|verdict| json!({"assert": verdict.demand, "value": verdict.value, "holds": verdict.holds}))
        .collect();
    let urls: Vec<_> = options.urls.iter().map(ToString::to_string).collect();
    json!({
        "scenario": options.scenario.as_str(),
        "version": env!("CARGO_PKG_VERSION"),
        "started_at": report.started.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "measured_s": report.measured.as_secs_f64(),
        "interrupted": report.interrupted,
        "options": {
            "urls": urls, "users": options.users, "fps": options.fps, "frame_bytes": options.frame_bytes,
            "streams": options.streams.0, "rate": options.rate, "threads": options.threads,
            "warmup_s": options.warmup.as_secs_f64(), "duration_s": options.duration.as_secs_f64(),
        },
        "figures": figures,
        "counts": {
            "refused": total.refused, "failed": total.failed, "errors": total.errors, "closes": total.closes,
        },
        "timeline": timeline,
        "readings": readings,
        "assertions": assertions,
    })
    .to_string()
}

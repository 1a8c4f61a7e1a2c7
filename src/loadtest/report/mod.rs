//! The results: a table, JSON, one HTML page.

mod chart;
pub(super) mod html;
pub(super) mod json;
pub(super) mod table;
pub(super) mod words;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::result::{Results, Verdict};
use super::settings::LoadOptions;

/// A run that is over.
#[derive(Debug)]
pub(super) struct Report<'a> {
    /// What was asked for.
    pub(super) options: &'a LoadOptions,
    /// When the first connection was opened.
    pub(super) started: SystemTime,
    /// How long was measured.
    pub(super) measured: Duration,
    /// By Ctrl-C: everything is what it was until then.
    pub(super) interrupted: bool,
    pub(super) results: &'a Results,
    /// Times in seconds, sizes in bytes.
    pub(super) figures: BTreeMap<&'static str, f64>,
    /// What became of the demands.
    pub(super) verdicts: Vec<Verdict>,
}

impl Verdict {
    /// The measured value with its unit, or that there is none.
    fn value_in_words(&self) -> String {
        match self.value {
            Some(value) => words::figure(self.unit, value),
            None => "not measured in this run".to_owned(),
        }
    }
}

impl Report<'_> {
    /// What happened beside the figures, and how often.
    fn events(&self) -> Vec<(String, u64)> {
        let total = &self.results.total;
        let mut events = Vec::new();
        for (kind, counts) in
            [("refused", &total.refused), ("failed", &total.failed), ("error", &total.errors)]
        {
            events.extend(counts.iter().map(|(what, count)| (format!("{kind}: {what}"), *count)));
        }
        events.extend(
            total.closes.iter().map(|(code, count)| (format!("closed by the relay: {code}"), *count)),
        );
        events
    }

    /// What an operator should look at, in words.
    pub(super) fn hints(&self) -> Vec<String> {
        let mut hints = Vec::new();
        let total = &self.results.total;
        if total.refused.contains_key("too_many_attempts") {
            hints.push(
                "handshakes were limited (429): start the instances with --handshakes-per-second-per-ip 0, or use --source"
                    .to_owned(),
            );
        }
        if let (Some(lag), Some(p99)) = (self.figures.get("lag_p99"), self.figures.get("p99"))
            && *lag > 0.001
            && *lag > p99 / 2.0
        {
            hints.push(format!(
                "this generator was late itself (p99 {}): its latencies say little about the relay; use --threads or another machine",
                words::time(*lag)
            ));
        }
        if total.errors.contains_key("rate_limited") {
            hints.push("senders were past the relay's messages_per_second".to_owned());
        }
        hints
    }
}

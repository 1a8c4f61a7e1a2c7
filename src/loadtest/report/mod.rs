//! The results: a table, JSON, one HTML page.

mod chart;
pub(super) mod html;
pub(super) mod json;
pub(super) mod table;
pub(super) mod words;

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::figure::FIGURES;
use super::result::Results;
use super::settings::LoadOptions;

/// A run that is over.
#[derive(Debug)]
pub(super) struct Report<'a> {
    /// What was asked for.
    pub(super) options: &'a LoadOptions,
    /// When the first connection was opened.
    pub(super) started: SystemTime,
    /// By Ctrl-C: everything is what it was until then.
    pub(super) interrupted: bool,
    pub(super) results: &'a Results,
    /// Times in seconds, sizes in bytes.
    pub(super) figures: BTreeMap<&'static str, f64>,
}

impl Report<'_> {
    /// Each figure of this run: its name, its value and its meaning.
    fn figures_in_words(&self) -> impl Iterator<Item = (&str, String, &str)> {
        FIGURES.iter().filter_map(|figure| {
            let value = words::figure(figure.unit, *self.figures.get(figure.name)?);
            Some((figure.name, value, figure.meaning))
        })
    }

    /// Each demand as it was written, the measured value in words, and whether it holds.
    pub(super) fn verdicts(&self) -> impl Iterator<Item = (String, String, bool)> {
        self.options.assertions.iter().map(|demand| {
            let value = self.figures.get(demand.figure.name).copied();
            let unit = demand.figure.unit;
            let words = value
                .map_or_else(|| "not measured in this run".to_owned(), |value| words::figure(unit, value));
            (demand.to_string(), words, demand.holds(value))
        })
    }

    /// What happened beside the figures, and how often.
    fn events(&self) -> Vec<(String, u64)> {
        let total = &self.results.total;
        let kinds = [("refused", &total.refused), ("failed", &total.failed), ("error", &total.errors)];
        let named = kinds.into_iter().flat_map(|(kind, counts)| {
            counts.iter().map(move |(what, count)| (format!("{kind}: {what}"), *count))
        });
        let closes =
            total.closes.iter().map(|(code, count)| (format!("closed by the relay: {code}"), *count));
        named.chain(closes).collect()
    }

    /// What an operator should look at, in words.
    pub(super) fn hints(&self) -> Vec<String> {
        let mut hints = Vec::new();
        let total = &self.results.total;
        if ["too_many_attempts", "status 429"].iter().any(|code| total.refused.contains_key(*code)) {
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

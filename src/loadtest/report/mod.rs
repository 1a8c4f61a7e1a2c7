//! The results: a table, JSON, one HTML page.

pub(super) mod html;
pub(super) mod json;
pub(super) mod table;
pub(super) mod words;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::result::{Results, Verdict};
use crate::config::LoadOptions;

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
    /// What was counted.
    pub(super) results: &'a Results,
    /// Times in seconds, sizes in bytes.
    pub(super) figures: BTreeMap<&'static str, f64>,
    /// What became of the demands.
    pub(super) verdicts: Vec<Verdict>,
}

impl Report<'_> {
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

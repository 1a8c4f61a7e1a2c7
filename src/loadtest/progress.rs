//! Progress bars on standard error.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::words;
use super::result::{Results, positive};
use super::settings::LoadOptions;

/// One bar at a time.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    duration: Duration,
}

impl Progress {
    /// Shows nothing until the first step begins.
    pub(super) fn new(options: &LoadOptions) -> Self {
        let shown = options.progress.unwrap_or_else(|| std::io::stderr().is_terminal());
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bar: ProgressBar::with_draw_target(None, target), duration: options.duration }
    }

    fn start(&self, what: &'static str, numbers: &str, length: u64) {
        let style = ProgressStyle::with_template(&format!("{{prefix:<12}} {{wide_bar}} {numbers}"));
        // Templates are constants, and good.
        self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.reset();
        self.bar.set_prefix(what);
        self.bar.set_length(length);
    }

    /// A bar for `count` things.
    pub(super) fn begin(&self, what: &'static str, count: usize) {
        self.start(what, "{pos}/{len} {elapsed}", count as u64);
    }

    pub(super) fn at(&self, count: usize) {
        self.bar.set_position(count as u64);
    }

    /// A bar for the measured time.
    pub(super) fn begin_measuring(&self) {
        self.start("warming up", "{msg}", millis(self.duration));
    }

    /// How far it is, and the figures of the newest second.
    pub(super) fn measuring(&self, since: Duration, results: &Results) {
        if self.bar.is_hidden() || since.is_zero() {
            return;
        }
        self.bar.set_prefix("measuring");
        self.bar.set_position(millis(since.min(self.duration)));
        if let Some(second) = results.latest() {
            let p99 = results.timed(second).quantile(0.99).map_or_else(|| "-".to_owned(), words::time);
            let count = if results.scenario.streams() { second.delivered } else { second.welcomed };
            let [dropped, lost] = [results.total.superseded, results.total.lost].map(positive);
            self.bar.set_message(format!("{count}/s p99 {p99} superseded {dropped} lost {lost}"));
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

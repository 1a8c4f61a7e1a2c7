//! Progress bars on standard error.

use std::io::{IsTerminal as _, Write as _};
use std::sync::OnceLock;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::words;
use super::result::{Results, timed};
use super::settings::LoadOptions;

/// One bar at a time.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    duration: Duration,
}

fn style(template: &str) -> ProgressStyle {
    static PLAIN: OnceLock<ProgressStyle> = OnceLock::new();
    let plain = PLAIN.get_or_init(ProgressStyle::default_bar);
    // Templates are constants, and good.
    ProgressStyle::with_template(template).unwrap_or_else(|_| plain.clone())
}

impl Progress {
    /// Shows nothing until the first step begins.
    pub(super) fn new(options: &LoadOptions) -> Self {
        let shown = options.progress.unwrap_or_else(|| std::io::stderr().is_terminal());
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        Self { bar, duration: options.duration }
    }

    /// Prints lines that stay above the bar.
    pub(super) fn say(&self, text: &str) {
        // Where nothing can be printed, the run goes on.
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// A bar for `count` things.
    pub(super) fn begin(&self, what: &'static str, count: usize) {
        self.bar.reset();
        self.bar.set_style(style("{msg:<12} {wide_bar} {pos}/{len} {elapsed}"));
        self.bar.set_message(what);
        self.bar.set_length(count as u64);
    }

    /// How many there are.
    pub(super) fn at(&self, count: usize) {
        self.bar.set_position(count as u64);
    }

    /// A bar for the measured time.
    pub(super) fn begin_measuring(&self) {
        self.bar.reset();
        self.bar.set_style(style("{prefix:<12} {wide_bar} {msg}"));
        self.bar.set_prefix("warming up");
        self.bar.set_message("");
        self.bar.set_length(u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX));
    }

    /// How far it is, and the figures of the newest second.
    pub(super) fn measuring(&self, since: Duration, results: &Results, options: &LoadOptions) {
        if self.bar.is_hidden() || since.is_zero() {
            return;
        }
        self.bar.set_prefix("measuring");
        self.bar.set_position(u64::try_from(since.min(self.duration).as_millis()).unwrap_or(u64::MAX));
        if let Some(second) = results.latest() {
            let times = timed(options.scenario, second);
            let p99 = times.quantile(0.99).map_or_else(|| "-".to_owned(), words::time);
            let total = &results.total;
            let count = if options.scenario.streams() { second.delivered } else { second.welcomed };
            let dropped = total.superseded.max(0);
            let lost = total.lost.max(0);
            self.bar.set_message(format!("{count}/s p99 {p99} superseded {dropped} lost {lost}"));
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}

//! Whether this instance's way to the others works, as its balancer learns it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A worker that has not reported for this long is not ready: its thread stands still.
pub const REPORT_LIMIT: Duration = Duration::from_secs(10);

/// What each worker says about the slots that it can serve. A server alone counts as one slot.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Instant,
    workers: Box<[Report]>,
    /// The prefix belongs to another fleet.
    is_foreign: AtomicBool,
    always: bool,
}

/// Shares are in millionths.
#[derive(Debug, Default)]
struct Report {
    /// Nanoseconds since `start`; 0 until the first report.
    at: AtomicU64,
    ready: AtomicU64,
    up: AtomicU64,
}

const WHOLE: u64 = 1_000_000;

impl Readiness {
    /// Ready when each of these workers is.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let workers = (0..workers).map(|_| Report::default()).collect();
        Self(Arc::new(Inner { start: Instant::now(), workers, is_foreign: false.into(), always: false }))
    }

    /// For a backplane inside this process, which is always there.
    #[must_use]
    pub fn always() -> Self {
        let workers = Box::default();
        Self(Arc::new(Inner { start: Instant::now(), workers, is_foreign: false.into(), always: true }))
    }

    /// Nanoseconds on this process's own clock.
    #[must_use]
    pub fn elapsed_ns(&self) -> u64 {
        u64::try_from(self.0.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The parts, from 0 to 1, of the slots that a worker may be sent users for, and that are up. Returns the part that
    /// is up for every worker.
    pub fn report(&self, worker: usize, ready: f64, up: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1")]
        let millionths = |part: f64| (part * 1e6).round() as u64;
        if let Some(report) = self.0.workers.get(worker) {
            report.ready.store(millionths(ready), Ordering::Release);
            report.up.store(millionths(up), Ordering::Release);
            report.at.store(self.elapsed_ns().max(1), Ordering::Release);
        }
        let least = self.0.workers.iter().map(|report| report.up.load(Ordering::Acquire)).min();
        #[expect(clippy::cast_precision_loss, reason = "at most a million")]
        let part = least.unwrap_or(0) as f64 / 1e6;
        part
    }

    /// The prefix belongs to instances of another issuer or audience, or is ours.
    pub fn set_foreign(&self, is_foreign: bool) {
        self.0.is_foreign.store(is_foreign, Ordering::Release);
    }

    /// True while the prefix belongs to another fleet.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.0.is_foreign.load(Ordering::Acquire)
    }

    /// True while every worker can serve at least half of the slots.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let limit = u64::try_from(REPORT_LIMIT.as_nanos()).unwrap_or(u64::MAX);
        let now = self.elapsed_ns();
        let is_ready = |report: &Report| {
            let at = report.at.load(Ordering::Acquire);
            at > 0 && now.saturating_sub(at) < limit && report.ready.load(Ordering::Acquire) * 2 >= WHOLE
        };
        self.0.always || (!self.is_foreign() && self.0.workers.iter().all(is_ready))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_slots_for_every_worker_is_ready() {
        let readiness = Readiness::new(2);
        assert!(!readiness.is_ready());
        assert!((readiness.report(0, 1.0, 1.0) - 0.0).abs() < 1e-9);
        assert!(!readiness.is_ready());
        assert!((readiness.report(1, 0.5, 2.0 / 3.0) - 0.666_667).abs() < 1e-9);
        assert!(readiness.is_ready());
        let _ = readiness.report(1, 0.499, 0.5);
        assert!(!readiness.is_ready());
    }

    #[test]
    fn a_foreign_prefix_is_never_ready() {
        let readiness = Readiness::new(1);
        let _ = readiness.report(0, 1.0, 1.0);
        readiness.set_foreign(true);
        assert!(!readiness.is_ready());
        readiness.set_foreign(false);
        assert!(readiness.is_ready());
        assert!(Readiness::always().is_ready());
    }
}

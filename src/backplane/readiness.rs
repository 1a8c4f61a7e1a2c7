//! Whether this instance's way to the others works, as its balancer is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A worker whose last probe is older than this is not ready.
pub const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// When each worker's last probe came back. A probe is a message that a worker publishes to itself.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Instant,
    /// Nanoseconds since `start`; 0 until the first probe.
    probes: Box<[AtomicU64]>,
    up: Box<[AtomicBool]>,
    always: bool,
}

impl Readiness {
    /// Ready when each of these workers has heard its probe.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let probes = (0..workers).map(|_| AtomicU64::new(0)).collect();
        let up = (0..workers).map(|_| AtomicBool::new(false)).collect();
        Self(Arc::new(Inner { start: Instant::now(), probes, up, always: false }))
    }

    /// For a backplane inside this process, which is always there.
    #[must_use]
    pub fn always() -> Self {
        Self(Arc::new(Inner {
            start: Instant::now(),
            probes: Box::default(),
            up: Box::default(),
            always: true,
        }))
    }

    /// Nanoseconds on this process's own clock.
    #[must_use]
    pub fn elapsed_ns(&self) -> u64 {
        u64::try_from(self.0.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A worker's probe came back.
    pub fn on_probe(&self, worker: usize) {
        if let Some(probe) = self.0.probes.get(worker) {
            probe.store(self.elapsed_ns().max(1), Ordering::Release);
        }
    }

    /// A worker's backplane is up, or down; returns whether every worker's is up.
    #[must_use]
    pub fn set_up(&self, worker: usize, is_up: bool) -> bool {
        if let Some(up) = self.0.up.get(worker) {
            up.store(is_up, Ordering::Release);
        }
        self.0.up.iter().all(|up| up.load(Ordering::Acquire))
    }

    /// True when all probes are back and none is missing since.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let limit = u64::try_from(PROBE_LIMIT.as_nanos()).unwrap_or(u64::MAX);
        let now = self.elapsed_ns();
        let is_back = |probe: &AtomicU64| {
            let at = probe.load(Ordering::Acquire);
            at > 0 && now.saturating_sub(at) < limit
        };
        self.0.always || self.0.probes.iter().all(is_back)
    }
}

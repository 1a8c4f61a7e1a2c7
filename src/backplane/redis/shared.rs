//! What the workers of a process share: what one of them has heard for all.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::client::Template;
use super::presence::Presence;
use super::topology::Topology;
use crate::backplane::journal::Journal;
use crate::metrics::Metrics;

/// Channels that may wait for one worker to hear that nobody has heard them; they are reported again.
const UNHEARD: usize = 4096;

/// What the workers of a process share.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

struct Inner {
    presence: Mutex<Presence>,
    /// One list for each worker.
    unheard: Vec<Mutex<Vec<String>>>,
    topology: Option<Topology>,
    journal: Journal,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// For this many workers.
    #[must_use]
    pub fn new(template: &Template, workers: usize, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            presence: Mutex::default(),
            unheard: (0..workers).map(|_| Mutex::default()).collect(),
            topology: template.is_cluster().then(Topology::new),
            journal: Journal::new(metrics),
        }))
    }

    pub(super) fn presence(&self) -> MutexGuard<'_, Presence> {
        locked(&self.0.presence)
    }

    /// What the process knows of its cluster.
    pub(super) fn topology(&self) -> Option<Topology> {
        self.0.topology.clone()
    }

    /// The cluster may have changed: the process reads it soon.
    pub(super) fn refresh(&self) {
        if let Some(topology) = &self.0.topology {
            topology.refresh();
        }
    }

    /// What the log says about troubles.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.0.journal
    }

    /// Nobody has heard what was published on these channels: whichever worker should have learns of it.
    pub(super) fn on_unheard(&self, channels: &[String]) {
        for unheard in &self.0.unheard {
            let mut unheard = locked(unheard);
            let free = UNHEARD.saturating_sub(unheard.len());
            unheard.extend(channels.iter().take(free).cloned());
        }
    }

    /// Channels that nobody has heard, for this worker.
    pub(super) fn take_unheard(&self, worker: usize) -> Vec<String> {
        self.0.unheard.get(worker).map(|unheard| std::mem::take(&mut *locked(unheard))).unwrap_or_default()
    }
}

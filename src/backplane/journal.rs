//! What the log and the metrics say about troubles with Redis, for a whole process. A trouble has one line
//! when it begins and one when it ends, whatever number of workers meets it. One cause begins at most once a
//! minute.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::connectivity::Cause;
use crate::metrics::Metrics;

/// The shortest time between two lines about one cause.
const ONCE_IN: Duration = Duration::from_secs(60);

/// What is logged at an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Yes,
    No,
}

/// Which troubles there are, and which of them the log knows.
#[derive(Debug, Default)]
struct Troubles {
    /// How many workers have this trouble with this node.
    present: HashMap<(u16, Cause), usize>,
    logged: HashSet<(u16, Cause)>,
    /// Causes of which the log knows by something that failed.
    noted: HashSet<Cause>,
    last: HashMap<Cause, Instant>,
    /// When the log last said that a node is up.
    up: HashMap<u16, Instant>,
}

impl Troubles {
    fn may_log(&mut self, cause: Cause, now: Instant) -> bool {
        let is_due = self.last.get(&cause).is_none_or(|last| now.duration_since(*last) >= ONCE_IN);
        if is_due {
            self.last.insert(cause, now);
        }
        is_due
    }

    fn up(&mut self, node: u16, now: Instant) -> Line {
        let is_due = self.up.get(&node).is_none_or(|last| now.duration_since(*last) >= ONCE_IN);
        if is_due {
            self.up.insert(node, now);
        }
        if is_due { Line::Yes } else { Line::No }
    }

    fn begin(&mut self, node: u16, cause: Cause, now: Instant) -> Line {
        let workers = self.present.entry((node, cause)).or_default();
        *workers += 1;
        if *workers > 1 {
            return Line::No;
        }
        let may_log = self.may_log(cause, now);
        // What failed before the trouble was known had its line: that stands for the beginning, and the end gets one.
        if self.noted.remove(&cause) || may_log {
            self.logged.insert((node, cause));
        }
        if may_log { Line::Yes } else { Line::No }
    }

    fn end(&mut self, node: u16, cause: Cause) -> Line {
        match self.present.get_mut(&(node, cause)) {
            Some(workers) if *workers > 1 => {
                *workers -= 1;
                Line::No
            }
            Some(_) => {
                self.present.remove(&(node, cause));
                if self.logged.remove(&(node, cause)) { Line::Yes } else { Line::No }
            }
            None => Line::No,
        }
    }

    fn note(&mut self, cause: Cause, now: Instant) -> Line {
        let is_known = self.present.keys().any(|(_, present)| *present == cause);
        let may_log = !is_known && self.may_log(cause, now);
        if may_log {
            self.noted.insert(cause);
        }
        if may_log { Line::Yes } else { Line::No }
    }

    /// How many nodes have this trouble.
    fn nodes(&self, cause: Cause) -> usize {
        self.present.keys().filter(|(_, present)| *present == cause).count()
    }
}

/// A process's troubles with Redis.
#[derive(Debug, Clone)]
pub struct Journal(Arc<(Mutex<Troubles>, Arc<Metrics>)>);

impl Journal {
    /// A journal in which no trouble is open.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new((Mutex::default(), metrics)))
    }

    fn with<T>(&self, cause: Cause, act: impl FnOnce(&mut Troubles) -> T) -> T {
        let (troubles, metrics) = &*self.0;
        let mut troubles = troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut troubles);
        metrics.backplane_trouble(cause.as_str(), troubles.nodes(cause));
        result
    }

    /// A worker has a way to a node: each worker says so, and again after each break.
    pub fn up(&self, node: u16, place: Option<&str>) {
        let mut troubles = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if troubles.up(node, Instant::now()) == Line::Yes {
            drop(troubles);
            info!(node, place = place.unwrap_or_default(), "the backplane is up");
        }
    }

    /// A worker's trouble with a node begins; `words` are Redis's own, `place` is the node's address.
    pub fn begin(&self, node: u16, place: Option<&str>, cause: Cause, words: &str) {
        if self.with(cause, |troubles| troubles.begin(node, cause, Instant::now())) == Line::Yes {
            let place = place.unwrap_or_default();
            warn!(cause = cause.as_str(), node, place, "the backplane is in trouble: {words}");
        }
    }

    /// Ends a trouble. The last node of a cause to end it writes a log line.
    pub fn end(&self, node: u16, place: Option<&str>, cause: Cause) {
        if self.with(cause, |troubles| troubles.end(node, cause)) == Line::Yes {
            let place = place.unwrap_or_default();
            info!(cause = cause.as_str(), node, place, "the backplane's trouble has ended");
        }
    }

    /// Something failed once, which says nothing about the next time.
    pub fn note(&self, what: &str, cause: Cause, words: &str) {
        if self.with(cause, |troubles| troubles.note(cause, Instant::now())) == Line::Yes {
            warn!(cause = cause.as_str(), "{what}: {words}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_two_lines() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        assert_eq!(troubles.begin(0, Cause::ReadOnly, now), Line::Yes);
        assert_eq!(troubles.begin(0, Cause::ReadOnly, now), Line::No);
        assert_eq!(troubles.nodes(Cause::ReadOnly), 1);
        assert_eq!(troubles.end(0, Cause::ReadOnly), Line::No);
        assert_eq!(troubles.end(0, Cause::ReadOnly), Line::Yes);
        assert_eq!(troubles.end(0, Cause::ReadOnly), Line::No);
        assert_eq!(troubles.nodes(Cause::ReadOnly), 0);
    }

    #[test]
    fn a_cause_begins_once_a_minute() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        assert_eq!(troubles.begin(0, Cause::Loading, now), Line::Yes);
        assert_eq!(troubles.end(0, Cause::Loading), Line::Yes);
        assert_eq!(troubles.begin(0, Cause::Loading, now + ONCE_IN / 2), Line::No);
        assert_eq!(troubles.end(0, Cause::Loading), Line::No);
        assert_eq!(troubles.begin(1, Cause::OutOfMemory, now), Line::Yes, "another cause");
        assert_eq!(troubles.begin(0, Cause::Loading, now + ONCE_IN), Line::Yes);
    }

    #[test]
    fn a_node_is_up_for_all_workers_once_a_minute() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        assert_eq!(
            [troubles.up(0, now), troubles.up(0, now), troubles.up(1, now)],
            [Line::Yes, Line::No, Line::Yes]
        );
        assert_eq!(troubles.up(0, now + ONCE_IN / 2), Line::No);
        assert_eq!(troubles.up(0, now + ONCE_IN), Line::Yes);
    }

    #[test]
    fn a_note_stands_for_the_beginning_that_follows_it() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        assert_eq!(troubles.note(Cause::Permission, now), Line::Yes);
        assert_eq!(troubles.begin(0, Cause::Permission, now + ONCE_IN / 2), Line::No);
        assert_eq!(troubles.end(0, Cause::Permission), Line::Yes);
        assert_eq!(troubles.begin(0, Cause::Permission, now + ONCE_IN / 2), Line::No, "of a second one");
        assert_eq!(troubles.end(0, Cause::Permission), Line::No);
        assert_eq!(troubles.note(Cause::Permission, now + ONCE_IN), Line::Yes);
        assert_eq!(troubles.begin(0, Cause::Permission, now + 2 * ONCE_IN), Line::Yes);
        assert_eq!(troubles.end(0, Cause::Permission), Line::Yes);
    }

    #[test]
    fn what_is_known_is_not_noted() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        assert_eq!(troubles.note(Cause::Other, now), Line::Yes);
        assert_eq!(troubles.note(Cause::Other, now + ONCE_IN / 2), Line::No);
        assert_eq!(troubles.begin(0, Cause::OutOfMemory, now), Line::Yes);
        assert_eq!(troubles.note(Cause::OutOfMemory, now + ONCE_IN), Line::No);
    }
}

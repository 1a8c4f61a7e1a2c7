//! A rate for log lines that every handshake could cause: one a minute.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The shortest time between two equal lines.
const ONCE_IN: Duration = Duration::from_secs(60);

/// When a line was last written.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// True when the line may be written again; it counts as written then.
    pub fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= ONCE_IN);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_once_a_minute() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        assert_eq!(
            [seldom.is_due(now), seldom.is_due(now), seldom.is_due(now + ONCE_IN / 2)],
            [true, false, false]
        );
        assert!(seldom.is_due(now + ONCE_IN));
    }
}

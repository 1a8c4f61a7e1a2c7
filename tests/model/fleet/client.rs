//! The client's law of coming back, with the times of `src/client/js/src/timing.js`.

use fastrand::Rng;

const TIMING: &str = include_str!("../../../src/client/js/src/timing.js");

/// Times of the JavaScript client, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub attempt: f64,
    pub session: f64,
    backoff: f64,
    backoff_max: f64,
    ping: f64,
    silence: f64,
    active_ping: f64,
    active_silence: f64,
}

impl Timing {
    pub(super) fn of_the_client() -> Self {
        Self {
            attempt: seconds("attempt"),
            session: seconds("session"),
            backoff: seconds("backoff"),
            backoff_max: seconds("backoffMax"),
            ping: seconds("ping"),
            silence: seconds("silence"),
            active_ping: seconds("activePing"),
            active_silence: seconds("activeSilence"),
        }
    }

    /// `backOff` of `decide.js`: full jitter, behind the time that the relay ordered.
    pub(super) fn wait(&self, failures: &mut u8, ordered: f64, rng: &mut Rng) -> f64 {
        let most = self.backoff_max.min(self.backoff * 2f64.powi((*failures).into()));
        *failures = failures.saturating_add(1);
        ordered + rng.f64() * most
    }

    /// How long a client takes to notice that nothing answers: the rest of a pause between pings, and the silence.
    pub(super) fn notices(&self, is_streaming: bool, rng: &mut Rng) -> f64 {
        let (ping, silence) =
            if is_streaming { (self.active_ping, self.active_silence) } else { (self.ping, self.silence) };
        rng.f64() * ping + silence
    }
}

fn seconds(name: &str) -> f64 {
    let line = TIMING.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
    let ms = line.and_then(|line| line.split_once(',')).map(|(ms, _)| ms.replace('_', ""));
    ms.and_then(|ms| ms.parse::<f64>().ok()).unwrap_or_else(|| panic!("timing.js has no {name}")) / 1000.0
}

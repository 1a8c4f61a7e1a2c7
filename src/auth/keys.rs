//! An issuer's keys: fetched by one task, read by everybody.
//!
//! The task is the only one that fetches, so there is never more than one fetch at a time and none
//! holds a lock. It publishes what it has; verifications read that, and ask the task only for a key that is
//! not in it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use reqwest::header::{AGE, CACHE_CONTROL, HeaderMap};
use reqwest::{Client, Url};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::AuthError;
use super::calls::{self, CALL_TIME, CallError};
use super::jwks::{KeySet, KeySetError};
use crate::metrics::{KeyRefresh, Metrics};
use crate::relay::refusal::Refusal;
use crate::telemetry::Seldom;

/// Unknown keys cause at most one fetch in this time.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(5);
/// How long keys are kept when their endpoint does not say, or says not at all.
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(300);
/// Keys are asked for again at least this often, whatever their endpoint says.
const LONGEST_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// The first and the longest pause between two tries while the endpoint cannot be reached.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Keys, and how long they may be kept.
pub(super) struct Fetched {
    pub(super) keys: KeySet,
    pub(super) max_age: Duration,
}

/// Why keys could not be fetched.
#[derive(Debug, Error)]
pub(super) enum FetchError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the keys were not taken over: {0}")]
    Keys(#[from] KeySetError),
}

/// Where keys come from.
pub(super) trait Source: Send + Sync + 'static {
    /// Fetches the issuer's whole key set.
    fn fetch(&self) -> impl Future<Output = Result<Fetched, FetchError>> + Send;
}

/// A JWK set on the web.
pub(super) struct Endpoint {
    client: Client,
    url: Url,
    algorithms: &'static [Algorithm],
}

impl Endpoint {
    pub(super) fn new(url: &str, algorithms: &'static [Algorithm]) -> Result<Self, AuthError> {
        let url = calls::endpoint("DUORELAY_JWKS_URL", url)?;
        Ok(Self { client: calls::client(&url)?, url, algorithms })
    }
}

impl Source for Endpoint {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let response = self.client.get(self.url.clone()).send().await.map_err(CallError::from)?;
        let max_age = max_age(response.headers());
        let keys = KeySet::parse(&calls::body(response).await?, self.algorithms)?;
        Ok(Fetched { keys, max_age })
    }
}

/// What is left of an answer's `max-age` (RFC 9111 sections 4.2 and 5.2.2.1). No `max-age`, or one of nothing:
/// the default, since keys without any life could not be used at all.
pub(super) fn max_age(headers: &HeaderMap) -> Duration {
    let directives = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let seconds = directives.flat_map(|value| value.split(',')).find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        let named = name.trim().eq_ignore_ascii_case("max-age");
        value.trim().trim_matches('"').parse::<u64>().ok().filter(|_| named)
    });
    let age = headers.get(AGE).and_then(|age| age.to_str().ok()?.trim().parse::<u64>().ok()).unwrap_or(0);
    match seconds.unwrap_or(0).saturating_sub(age) {
        0 => DEFAULT_MAX_AGE,
        left => Duration::from_secs(left).min(LONGEST_MAX_AGE),
    }
}

/// The keys as they are known now.
#[derive(Debug, Clone)]
struct State {
    /// The last good set; none before the first.
    keys: Option<Arc<KeySet>>,
    fetching: bool,
    /// When an unknown key last caused a fetch.
    asked: Option<Instant>,
}

impl State {
    fn may_ask(&self) -> bool {
        self.asked.is_none_or(|asked| asked.elapsed() >= UNKNOWN_KEY_PAUSE)
    }

    fn keys_with(&self, kid: &str) -> Option<Arc<KeySet>> {
        self.keys.as_ref().filter(|keys| keys.contains(kid)).cloned()
    }

    /// Why there is no such key.
    fn refusal(&self) -> Refusal {
        if self.keys.is_some() { Refusal::UnknownKey } else { Refusal::KeysUnavailable }
    }
}

/// The keys of one issuer, kept fresh by a task that ends with this value.
pub(super) struct KeyCache {
    state: watch::Receiver<State>,
    ask: Arc<Notify>,
    task: AbortHandle,
}

impl fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyCache").finish_non_exhaustive()
    }
}

impl Drop for KeyCache {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl KeyCache {
    /// Starts the task on the current runtime, and the first fetch with it.
    pub(super) fn start(source: impl Source, metrics: Arc<Metrics>) -> Self {
        let (publish, state) = watch::channel(State { keys: None, fetching: true, asked: None });
        let ask = Arc::new(Notify::new());
        let task = tokio::spawn(refresh(source, publish, Arc::clone(&ask), metrics)).abort_handle();
        Self { state, ask, task }
    }

    /// True once keys have been fetched.
    pub(super) fn has_keys(&self) -> bool {
        self.state.borrow().keys.is_some()
    }

    /// A set that has this key.
    ///
    /// # Errors
    /// `unknown_key` when the issuer does not list it, `keys_unavailable` when there are no keys at all.
    pub(super) async fn keys_with(&self, kid: &str) -> Result<Arc<KeySet>, Refusal> {
        if let Some(keys) = self.state.borrow().keys_with(kid) {
            return Ok(keys);
        }
        // From here on one snapshot: every change after it wakes this receiver, so none is missed.
        let mut state = self.state.clone();
        let seen = state.borrow_and_update().clone();
        if let Some(keys) = seen.keys_with(kid) {
            return Ok(keys);
        }
        if !seen.fetching {
            if !seen.may_ask() {
                return Err(seen.refusal());
            }
            // Many may ask for one key. The first permit starts the fetch. Those who come a moment later
            // leave one more behind, and the task drops it, because it has just asked.
            self.ask.notify_one();
        }
        let fetched = timeout(CALL_TIME + Duration::from_secs(1), async {
            // Two changes are waited for: the fetch's start and its end; the start may have passed already.
            while state.changed().await.is_ok() {
                let now = state.borrow_and_update();
                if !now.fetching {
                    return Some(now.clone());
                }
            }
            None
        });
        let now = fetched.await.ok().flatten().unwrap_or(seen);
        now.keys_with(kid).ok_or_else(|| now.refusal())
    }
}

/// Fetches when keys run out, and when an unknown key is asked for; never ends by itself.
async fn refresh(
    source: impl Source,
    publish: watch::Sender<State>,
    ask: Arc<Notify>,
    metrics: Arc<Metrics>,
) {
    let (mut failures, warned) = (0, Seldom::default());
    loop {
        publish.send_if_modified(|state| !std::mem::replace(&mut state.fetching, true));
        let fetched = timeout(CALL_TIME, source.fetch()).await.unwrap_or(Err(CallError::TimedOut.into()));
        metrics.keys_refreshed(if fetched.is_ok() { KeyRefresh::Fetched } else { KeyRefresh::Failed });
        let next = match fetched {
            Ok(Fetched { keys, max_age }) => {
                failures = 0;
                publish.send_modify(|state| {
                    state.keys = Some(Arc::new(keys));
                    state.fetching = false;
                });
                refresh_after(max_age)
            }
            Err(error) => {
                let pause = retry_after(failures);
                failures = failures.saturating_add(1);
                // Handshakes with unknown keys cause a fetch each 5 s.
                if warned.is_due(std::time::Instant::now()) {
                    tracing::warn!(%error, failures, retry_ms = pause.as_millis(), "the issuer's keys could not be fetched");
                }
                publish.send_modify(|state| state.fetching = false);
                pause
            }
        };
        let due = Instant::now() + next;
        loop {
            tokio::select! {
                () = sleep_until(due) => break,
                () = ask.notified() => {
                    if publish.borrow().may_ask() {
                        publish.send_modify(|state| {
                            state.asked = Some(Instant::now());
                            state.fetching = true;
                        });
                        break;
                    }
                }
            }
        }
    }
}

/// Somewhere between 75 % and 90 % of the keys' life, so that many instances do not ask at once.
fn refresh_after(max_age: Duration) -> Duration {
    max_age.mul_f64(0.75 + 0.15 * fastrand::f64())
}

/// Doubles with each failure, less up to a half.
fn retry_after(failures: u32) -> Duration {
    let (first, longest) = RETRY;
    first.saturating_mul(1 << failures.min(10)).min(longest).mul_f64(0.5 + 0.5 * fastrand::f64())
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;

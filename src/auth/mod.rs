//! Sign-in: the user of a token, and until when.
//!
//! [`Verifier`] is built once from [`settings::Settings`]. [`claims`] (pure) says what a token must say.
//! `keys` knows where the keys come from. `revocation` knows whether the session still stands.

mod calls;
pub mod claims;
pub(crate) mod credentials;
mod emulator;
mod firebase;
#[cfg(fuzzing)]
pub mod fuzzing;
mod grant;
mod jwks;
mod keys;
mod revocation;
pub mod settings;
pub(crate) mod signer;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use tokio::runtime::Handle;

pub(crate) use calls::http_url;
pub use claims::{Email, Identity};
pub(crate) use emulator::is_host_and_port;
pub(crate) use firebase::{issuer as firebase_issuer, project_id};

use crate::metrics::Metrics;
use crate::relay::refusal::Refusal;
use claims::{Rules, SignedToken};
use jwks::KeySet;
use keys::KeyCache;
use settings::{IdentityService, Issuer, Revocation, Settings};

/// Why a verifier cannot be built: each names what is wrong in the configuration.
#[derive(Debug, Error)]
pub enum AuthError {
    /// The project id, issuer or audience is empty.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// Not an absolute `https://` or `http://` URL, or one with a user name or password in it.
    #[error("{what} is not a URL to fetch from: {problem}")]
    Url {
        /// The setting that holds the URL.
        what: &'static str,
        /// What is wrong with it; never its user name or password.
        problem: String,
    },
    /// Keys and access tokens that cross a network in the clear prove nothing.
    #[error("{what} is plain http:// to {host}, which is not a loopback address: use https://")]
    PlainHttp {
        /// The setting that holds the URL.
        what: &'static str,
        /// The host that it names.
        host: String,
    },
    /// `FIREBASE_AUTH_EMULATOR_HOST` is not `HOST:PORT`.
    #[error("FIREBASE_AUTH_EMULATOR_HOST is not HOST:PORT: {0}")]
    EmulatorHost(String),
    /// Revocation can be asked of Google for Firebase's users, and of the emulator for its own.
    #[error("DUORELAY_CHECK_REVOKED: revocation cannot be checked for this issuer's users")]
    RevocationIssuer,
    /// `private_key` is not an RSA key in PKCS #8 PEM.
    #[error(
        "GOOGLE_APPLICATION_CREDENTIALS: its private_key is not a PEM block \"PRIVATE KEY\" with an RSA key in it"
    )]
    PrivateKey,
    /// A set of keys that was given directly is not usable.
    #[error("the key set is not usable: {0}")]
    Keys(#[from] jwks::KeySetError),
    /// The HTTP client cannot be built (for instance, the system has no CA certificates).
    #[error("the HTTP client cannot be built: {0}")]
    Client(#[source] reqwest::Error),
    /// Keys are refreshed by a task, so a verifier is started inside a tokio runtime.
    #[error("a verifier must be started inside a tokio runtime")]
    NoRuntime,
}

/// Verifies ID tokens. Cheap to clone; its background refresh ends with the last clone.
#[derive(Debug, Clone)]
pub struct Verifier {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tokens: Tokens,
    sessions: Option<Sessions>,
    metrics: Arc<Metrics>,
}

/// How sessions are checked.
#[derive(Debug)]
struct Sessions {
    checker: Arc<revocation::Checker>,
    /// Between two checks of one session.
    pause: Duration,
    /// Where they are checked: workers share the connections to the identity service, so none of them carries one.
    runtime: Handle,
}

/// Chosen once, at start: there is no way from signed tokens to unsigned ones.
#[derive(Debug)]
enum Tokens {
    Signed { rules: Rules, keys: KeySource },
    Unsigned(Rules),
}

#[derive(Debug)]
enum KeySource {
    Endpoint(KeyCache),
    /// The demo's own key; no setting leads here.
    Static(KeySet),
}

impl Verifier {
    /// Builds the verifier and starts to fetch the issuer's keys, without waiting for them.
    ///
    /// # Errors
    /// [`AuthError`], which names the setting that is wrong.
    pub fn start(settings: Settings, metrics: &Arc<Metrics>) -> Result<Self, AuthError> {
        let runtime = Handle::try_current().map_err(|_| AuthError::NoRuntime)?;
        let sessions = settings
            .revocation
            .map(|Revocation { service, pause }| {
                let checker = match (service, &settings.issuer) {
                    (IdentityService::Google(credentials), Issuer::Firebase { project_id, .. }) => {
                        revocation::Checker::google(&credentials, project_id)
                    }
                    (IdentityService::Emulator, Issuer::Emulator { project_id, host }) => {
                        revocation::Checker::emulator(host, project_id)
                    }
                    (IdentityService::Google(_) | IdentityService::Emulator, _) => {
                        Err(AuthError::RevocationIssuer)
                    }
                };
                checker.map(|checker| Sessions { checker: Arc::new(checker), pause, runtime })
            })
            .transpose()?;
        let tokens = match settings.issuer {
            Issuer::Firebase { project_id, jwks_url } => {
                let rules = firebase::rules(&project_id)?;
                let url = jwks_url.as_deref().unwrap_or(firebase::JWKS_URL);
                Tokens::signed(rules, url, metrics)?
            }
            Issuer::Emulator { project_id, host } => {
                emulator::check_host(&host)?;
                Tokens::Unsigned(firebase::rules(&project_id)?)
            }
            Issuer::OpenId { issuer, audience, jwks_url } => {
                Tokens::signed(Rules::openid(issuer, audience)?, &jwks_url, metrics)?
            }
        };
        Ok(Self::new(tokens, sessions, Arc::clone(metrics)))
    }

    fn new(tokens: Tokens, sessions: Option<Sessions>, metrics: Arc<Metrics>) -> Self {
        // Named, so that a second back end among the dependencies' features cannot make the choice
        // ambiguous. An error means that it was named before.
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        Self { inner: Arc::new(Inner { tokens, sessions, metrics }) }
    }

    /// A verifier for Firebase-shaped tokens of a key that this process made itself.
    pub(crate) fn with_keys(project_id: &str, jwks: &str, metrics: Arc<Metrics>) -> Result<Self, AuthError> {
        let rules = firebase::rules(project_id)?;
        let keys = KeySource::Static(KeySet::parse(jwks.as_bytes(), rules.algorithms())?);
        Ok(Self::new(Tokens::Signed { rules, keys }, None, metrics))
    }

    /// Returns the user of a token that is good now. `now` is in Unix seconds ([`unix_now`]).
    ///
    /// Takes about 17 us of CPU (`benches/verify.rs`). It waits for the network only when the token names an
    /// unknown key (at most 3 s). A revocation check, where one is configured, waits for it as well (at most
    /// 3 s).
    ///
    /// # Errors
    /// The refusal that the client gets. Nothing in it comes from the token.
    pub async fn verify(&self, token: &str, now: u64) -> Result<Identity, Refusal> {
        let begun = Instant::now();
        let verified = self.judge(token, now).await;
        self.inner.metrics.verify_seconds.observe(begun.elapsed());
        verified
    }

    async fn judge(&self, token: &str, now: u64) -> Result<Identity, Refusal> {
        let identity = match &self.inner.tokens {
            Tokens::Signed { rules, keys } => {
                let token = SignedToken::parse(token, rules.algorithms())?;
                let payload = match keys {
                    KeySource::Endpoint(cache) => {
                        let keys = cache.keys_with(token.kid()).await?;
                        token.payload(&keys)?
                    }
                    KeySource::Static(keys) => token.payload(keys)?,
                };
                rules.identity(&payload, now)?
            }
            Tokens::Unsigned(rules) => rules.identity(&emulator::payload(token)?, now)?,
        };
        self.check(&identity).await?;
        Ok(identity)
    }

    /// True unless the issuer has keys, and none of them has been fetched yet.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        match &self.inner.tokens {
            Tokens::Signed { keys: KeySource::Endpoint(cache), .. } => cache.has_keys(),
            Tokens::Signed { keys: KeySource::Static(_), .. } | Tokens::Unsigned(_) => true,
        }
    }

    /// How often an open socket's session is to be checked, where sessions are checked at all.
    #[must_use]
    pub fn revocation_pause(&self) -> Option<Duration> {
        self.inner.sessions.as_ref().map(|sessions| sessions.pause)
    }

    /// Does this session still stand? Always, where no revocation check is configured.
    ///
    /// # Errors
    /// [`Refusal::TokenRevoked`] and [`Refusal::UserDisabled`] are the identity service's verdict.
    /// [`Refusal::KeysUnavailable`] means that it gave none within 3 s: no reason to end an open session.
    pub async fn check(&self, identity: &Identity) -> Result<(), Refusal> {
        let Some(Sessions { checker, runtime, .. }) = &self.inner.sessions else {
            return Ok(());
        };
        let (checker, identity) = (Arc::clone(checker), identity.clone());
        let checking = runtime.spawn(async move { checker.check(&identity).await });
        // A runtime that ends gives no verdict.
        checking.await.unwrap_or(Err(Refusal::KeysUnavailable))
    }
}

impl Tokens {
    fn signed(rules: Rules, jwks_url: &str, metrics: &Arc<Metrics>) -> Result<Self, AuthError> {
        let source = keys::Endpoint::new(jwks_url, rules.algorithms())?;
        Ok(Self::Signed { rules, keys: KeySource::Endpoint(KeyCache::start(source, Arc::clone(metrics))) })
    }
}

/// The system's clock in Unix seconds.
#[must_use]
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

//! Ways in for the fuzz targets (`fuzz/`), which are not there in any other build.

use std::time::Duration;

use http::HeaderMap;

use super::claims::{Identity, Rules, SignedToken};
use super::jwks::KeySet;
use super::{AuthError, Refusal, emulator, firebase, keys, revocation};

/// The rules that a token is held against, for one audience.
#[derive(Debug)]
pub enum Issuer {
    /// Firebase's rules, with signatures.
    Firebase,
    /// The emulator's rules, without signatures.
    Emulator,
    /// Any other's, with this `iss`.
    OpenId(&'static str),
}

impl Issuer {
    fn rules(&self, audience: &str) -> Result<Rules, AuthError> {
        match self {
            Self::Firebase | Self::Emulator => firebase::rules(audience),
            Self::OpenId(issuer) => Rules::openid((*issuer).to_owned(), audience.to_owned()),
        }
    }

    /// What a token's payload is, if its form and signature are right.
    ///
    /// # Errors
    /// The refusal.
    pub fn payload(&self, audience: &str, jwks: &[u8], token: &str) -> Result<Vec<u8>, Refusal> {
        if matches!(self, Self::Emulator) {
            return emulator::payload(token);
        }
        let rules = self.rules(audience).map_err(|_| Refusal::KeysUnavailable)?;
        let signed = SignedToken::parse(token, rules.algorithms())?;
        let keys = KeySet::parse(jwks, rules.algorithms()).map_err(|_| Refusal::KeysUnavailable)?;
        signed.payload(&keys)
    }

    /// Whom a payload names at `now`, in Unix seconds.
    ///
    /// # Errors
    /// The refusal.
    pub fn identity(&self, audience: &str, payload: &[u8], now: u64) -> Result<Identity, Refusal> {
        self.rules(audience).map_err(|_| Refusal::KeysUnavailable)?.identity(payload, now)
    }

    /// Whether an endpoint's answer has keys for this issuer.
    #[must_use]
    pub fn has_keys(&self, answer: &[u8]) -> bool {
        let rules = self.rules("audience");
        rules.is_ok_and(|rules| KeySet::parse(answer, rules.algorithms()).is_ok())
    }
}

/// How long an answer with these headers is kept.
#[must_use]
pub fn max_age(headers: &HeaderMap) -> Duration {
    keys::max_age(headers)
}

/// What the identity service's answer means for a session.
///
/// # Errors
/// The refusal; [`Refusal::KeysUnavailable`] when the answer makes no sense.
pub fn account(answer: &[u8], identity: &Identity) -> Result<(), Refusal> {
    revocation::read(answer, identity)
}

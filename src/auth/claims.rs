//! What a token must look like and say. Pure: the clock is passed in, the keys are at hand.
//!
//! The first rule that is broken decides the refusal. The rules come in this order:
//! 1. the form of the header (`malformed_token`),
//! 2. `alg` (`bad_signature`),
//! 3. `crit` and `kid` (`malformed_token`),
//! 4. the key (`unknown_key`),
//! 5. the signature (`bad_signature`),
//! 6. what the payload says: `aud`, `iss`, `sub`, `exp`, `iat`, `auth_time`, `nbf`.
//!
//! `alg` comes before `kid`, because an unsigned token has no `kid` and is refused for being unsigned. A
//! signature that is not base64url is one that does not match.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::AuthError;
use super::jwks::KeySet;
use crate::relay::ids::UserId;
use crate::relay::refusal::Refusal;

/// The longest token that the verifier reads, in bytes. Firebase's are about 1 KB, and 2 KB with all the
/// custom claims that it allows; other issuers put group lists into theirs.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// How far `iat`, `auth_time` and `nbf` may be ahead, in seconds: clocks differ.
pub const MAX_AHEAD_SECONDS: u64 = 60;

/// The end of the year 9999: no later date is kept, so that no arithmetic on dates overflows.
const MAX_DATE: u64 = 253_402_300_799;

/// The user who signed in, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `sub`, and `firebase.tenant` where the token has one
    pub user: UserId,
    /// `email`, where the token has one.
    pub email: Option<Email>,
    /// `exp`, Unix seconds: from this second on the token is worth nothing.
    pub expires_at: u64,
    /// `iat`, Unix seconds: when this token was made.
    pub issued_at: u64,
    /// `auth_time`, Unix seconds: when the user signed in. It stays the same when a token is refreshed.
    pub auth_time: Option<u64>,
}

/// An e-mail address, for the user's own eyes: `Debug` hides it, so that no log holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct Email(Box<str>);

impl Email {
    /// An address, or `None` when it is empty or holds control characters (the classic protocol
    /// writes it into a line of its own).
    #[must_use]
    pub fn new(address: &str) -> Option<Self> {
        (!address.is_empty() && !address.chars().any(char::is_control)).then(|| Self(address.into()))
    }

    /// The address as it stands in the token.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Email(..)")
    }
}

/// The three parts of a JWS in compact serialization (RFC 7515 section 7.1), as they were sent.
pub(super) struct Parts<'a> {
    pub(super) header: &'a str,
    pub(super) payload: &'a str,
    pub(super) signature: &'a str,
    /// Header, dot, payload: what is signed.
    message: &'a str,
}

impl<'a> Parts<'a> {
    pub(super) fn split(token: &'a str) -> Result<Self, Refusal> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refusal::MalformedToken);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Refusal::MalformedToken)?;
        let (header, payload) = message.split_once('.').ok_or(Refusal::MalformedToken)?;
        if payload.contains('.') {
            return Err(Refusal::MalformedToken);
        }
        Ok(Self { header, payload, signature, message })
    }
}

/// Base64url without padding (RFC 7515 section 2).
pub(super) fn decode(part: &str) -> Result<Vec<u8>, Refusal> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::MalformedToken)
}

/// The header fields that matter. One that appears twice makes the header malformed (RFC 7515 section 4). So
/// does a field of another type, except where `Value` leaves that to a later rule.
#[derive(Deserialize)]
pub(super) struct Header {
    pub(super) alg: String,
    #[serde(default)]
    kid: Option<Value>,
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

impl Header {
    pub(super) fn parse(part: &str) -> Result<Self, Refusal> {
        parse_object(&decode(part)?)
    }
}

/// A derived struct also reads a JSON list as its fields in order; a header or payload is an object.
fn parse_object<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, Refusal> {
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal::MalformedToken);
    }
    serde_json::from_slice(json).map_err(|_| Refusal::MalformedToken)
}

/// A token with an acceptable header, whose signature was not checked yet.
pub(super) struct SignedToken<'a> {
    algorithm: Algorithm,
    kid: String,
    message: &'a str,
    payload: &'a str,
    signature: &'a str,
}

impl<'a> SignedToken<'a> {
    pub(super) fn parse(token: &'a str, allowed: &[Algorithm]) -> Result<Self, Refusal> {
        let parts = Parts::split(token)?;
        let header = Header::parse(parts.header)?;
        let algorithm = match header.alg.as_str() {
            "RS256" => Algorithm::RS256,
            "ES256" => Algorithm::ES256,
            _ => return Err(Refusal::BadSignature),
        };
        if !allowed.contains(&algorithm) {
            return Err(Refusal::BadSignature);
        }
        // RFC 7515 section 4.1.11: a verifier must refuse an extension that it does not understand, here each.
        if header.crit.is_some() {
            return Err(Refusal::MalformedToken);
        }
        let Some(Value::String(kid)) = header.kid else {
            return Err(Refusal::MalformedToken);
        };
        Ok(Self {
            algorithm,
            kid,
            message: parts.message,
            payload: parts.payload,
            signature: parts.signature,
        })
    }

    /// The key that the token names.
    pub(super) fn kid(&self) -> &str {
        &self.kid
    }

    /// The payload, if one of these keys signed it.
    pub(super) fn payload(&self, keys: &KeySet) -> Result<Vec<u8>, Refusal> {
        if !keys.contains(&self.kid) {
            return Err(Refusal::UnknownKey);
        }
        let signed = keys.with(&self.kid, self.algorithm).any(|key| {
            jsonwebtoken::crypto::verify(self.signature, self.message.as_bytes(), key, self.algorithm)
                .unwrap_or(false)
        });
        if signed { decode(self.payload) } else { Err(Refusal::BadSignature) }
    }
}

/// What one issuer's tokens must say.
#[derive(Debug)]
pub(super) struct Rules {
    issuer: String,
    audience: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Firebase,
    OpenId,
}

impl Rules {
    pub(super) fn firebase(issuer: String, audience: String) -> Self {
        Self { issuer, audience, kind: Kind::Firebase }
    }

    pub(super) fn openid(issuer: String, audience: String) -> Result<Self, AuthError> {
        if issuer.is_empty() {
            return Err(AuthError::Empty("DUORELAY_ISSUER"));
        }
        if audience.is_empty() {
            return Err(AuthError::Empty("DUORELAY_AUDIENCE"));
        }
        Ok(Self { issuer, audience, kind: Kind::OpenId })
    }

    /// The algorithms that this issuer signs with.
    pub(super) fn algorithms(&self) -> &'static [Algorithm] {
        match self.kind {
            Kind::Firebase => &[Algorithm::RS256],
            Kind::OpenId => &[Algorithm::RS256, Algorithm::ES256],
        }
    }

    /// Whom a payload names, if it keeps the rules at `now` (Unix seconds).
    pub(super) fn identity(&self, payload: &[u8], now: u64) -> Result<Identity, Refusal> {
        let claims: Claims = parse_object(payload)?;
        let latest = now.saturating_add(MAX_AHEAD_SECONDS);
        let not_ahead = |date: u64| {
            if date <= latest { Ok(date) } else { Err(Refusal::TokenNotYetValid) }
        };

        self.check_audience(&claims.aud.ok_or(Refusal::MalformedToken)?)?;
        match claims.iss {
            Some(Value::String(issuer)) if issuer == self.issuer => {}
            Some(Value::String(_)) => return Err(Refusal::WrongIssuer),
            _ => return Err(Refusal::MalformedToken),
        }
        let user = match &claims.sub {
            Some(Value::String(sub)) => match self.tenant(claims.firebase.as_ref())? {
                Some(tenant) => UserId::of_tenant(tenant, sub),
                None => UserId::new(sub),
            },
            _ => None,
        };
        let user = user.ok_or(Refusal::MalformedToken)?;
        let expires_at = date(claims.exp)?.ok_or(Refusal::MalformedToken)?;
        if now >= expires_at {
            return Err(Refusal::TokenExpired);
        }
        let issued_at = date(claims.iat)?.ok_or(Refusal::MalformedToken).and_then(not_ahead)?;
        let auth_time = date(claims.auth_time)?.map(not_ahead).transpose()?;
        if auth_time.is_none() && self.kind == Kind::Firebase {
            return Err(Refusal::MalformedToken);
        }
        // RFC 7519 section 4.1.5: not asked for, but binding where an issuer writes it.
        date(claims.nbf)?.map(not_ahead).transpose()?;
        let email = claims.email.as_ref().and_then(Value::as_str).and_then(Email::new);
        Ok(Identity { user, email, expires_at, issued_at, auth_time })
    }

    /// The tenant of Identity Platform's multi-tenancy (<https://cloud.google.com/identity-platform/docs/multi-tenancy>).
    /// Other issuers may use the same claim for something else.
    fn tenant<'a>(&self, firebase: Option<&'a Value>) -> Result<Option<&'a str>, Refusal> {
        match firebase.and_then(|firebase| firebase.get("tenant")).unwrap_or(&Value::Null) {
            _ if self.kind != Kind::Firebase => Ok(None),
            Value::Null => Ok(None),
            Value::String(tenant) if tenant.is_empty() => Ok(None),
            Value::String(tenant) => Ok(Some(tenant)),
            // A user whose tenant cannot be read is nobody's namesake.
            _ => Err(Refusal::MalformedToken),
        }
    }

    fn check_audience(&self, aud: &Value) -> Result<(), Refusal> {
        let ours = match aud {
            Value::String(audience) => *audience == self.audience,
            // RFC 7519 section 4.1.3: a list of strings. Firebase writes one string, never a list.
            Value::Array(list) if list.iter().all(Value::is_string) => {
                self.kind == Kind::OpenId && list.iter().any(|audience| *audience == *self.audience)
            }
            _ => return Err(Refusal::MalformedToken),
        };
        if ours { Ok(()) } else { Err(Refusal::WrongAudience) }
    }
}

/// The claims that matter, of any type: which refusal a wrong one gets depends on those before it.
/// One that appears twice makes the payload malformed (RFC 7519 section 4); `null` counts as absent.
#[derive(Deserialize)]
struct Claims {
    aud: Option<Value>,
    iss: Option<Value>,
    sub: Option<Value>,
    exp: Option<Value>,
    iat: Option<Value>,
    auth_time: Option<Value>,
    nbf: Option<Value>,
    email: Option<Value>,
    firebase: Option<Value>,
}

/// A `NumericDate` (RFC 7519 section 2): any JSON number. A fraction is cut off. A date before 1970 becomes
/// 1970, one past the year 9999 becomes its end: they stay expired or in the future.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and 9999 comes first"
)]
fn date(claim: Option<Value>) -> Result<Option<u64>, Refusal> {
    match claim {
        None => Ok(None),
        Some(Value::Number(number)) => {
            let seconds = number.as_u64().or_else(|| number.as_f64().map(|seconds| seconds as u64));
            Ok(Some(seconds.ok_or(Refusal::MalformedToken)?.min(MAX_DATE)))
        }
        Some(_) => Err(Refusal::MalformedToken),
    }
}

#[cfg(test)]
#[path = "claims_tests.rs"]
mod tests;

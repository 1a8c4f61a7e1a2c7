//! Why a handshake is refused: a stable code, an HTTP status, and words for people.

use super::ids::Attempt;

/// A refusal before the upgrade. The variants stand in the order in which they win when several apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// Too many handshakes from one address, or too many evictions of one slot.
    TooManyAttempts {
        /// Seconds until an attempt can succeed.
        retry_after: u32,
    },
    /// This instance is leaving.
    Draining,
    /// This instance holds as many connections as it may.
    Full,
    /// No upgrade, or another WebSocket version.
    UpgradeRequired,
    /// A malformed request; the text says what.
    BadRequest(&'static str),
    /// Only unknown `duorelay.` protocols were offered.
    UnsupportedProtocol,
    /// An unknown or repeated device.
    BadDevice,
    /// The page's Origin is not one of the allowed ones.
    OriginNotAllowed,
    /// There is no token where one is looked for.
    MissingToken,
    /// Not a token by the rules, or a claim is missing.
    MalformedToken,
    /// The key that the token names is not one of the issuer's.
    UnknownKey,
    /// The signature does not match, or the algorithm is not allowed.
    BadSignature,
    /// `aud` is not ours.
    WrongAudience,
    /// `iss` is not ours.
    WrongIssuer,
    /// `exp` has passed.
    TokenExpired,
    /// `iat` or `auth_time` is in the future.
    TokenNotYetValid,
    /// The session was revoked.
    TokenRevoked,
    /// The account was disabled.
    UserDisabled,
    /// There are no keys to verify with, and they cannot be fetched.
    KeysUnavailable,
    /// The backplane does not answer.
    BackplaneUnavailable,
    /// The same client has a later attempt that holds the slot.
    Superseded {
        /// The later one.
        attempt: Attempt,
    },
}

impl Refusal {
    /// All codes.
    pub const CODES: [&'static str; 21] = [
        "too_many_attempts",
        "draining",
        "full",
        "origin_not_allowed",
        "upgrade_required",
        "bad_request",
        "unsupported_protocol",
        "bad_device",
        "missing_token",
        "malformed_token",
        "unknown_key",
        "bad_signature",
        "wrong_audience",
        "wrong_issuer",
        "token_expired",
        "token_not_yet_valid",
        "token_revoked",
        "user_disabled",
        "keys_unavailable",
        "backplane_unavailable",
        "superseded",
    ];

    /// The stable code in the problem document and in `error` messages.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::TooManyAttempts { .. } => "too_many_attempts",
            Self::Draining => "draining",
            Self::Full => "full",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::UpgradeRequired => "upgrade_required",
            Self::BadRequest(_) => "bad_request",
            Self::UnsupportedProtocol => "unsupported_protocol",
            Self::BadDevice => "bad_device",
            Self::MissingToken => "missing_token",
            Self::MalformedToken => "malformed_token",
            Self::UnknownKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::WrongAudience => "wrong_audience",
            Self::WrongIssuer => "wrong_issuer",
            Self::TokenExpired => "token_expired",
            Self::TokenNotYetValid => "token_not_yet_valid",
            Self::TokenRevoked => "token_revoked",
            Self::UserDisabled => "user_disabled",
            Self::KeysUnavailable => "keys_unavailable",
            Self::BackplaneUnavailable => "backplane_unavailable",
            Self::Superseded { .. } => "superseded",
        }
    }

    /// The HTTP status (RFC 9110; 426 is section 15.5.22, 429 is RFC 6585 section 4).
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest(_) | Self::UnsupportedProtocol | Self::BadDevice | Self::MissingToken => 400,
            Self::OriginNotAllowed
            | Self::MalformedToken
            | Self::UnknownKey
            | Self::BadSignature
            | Self::WrongAudience
            | Self::WrongIssuer
            | Self::TokenExpired
            | Self::TokenNotYetValid
            | Self::TokenRevoked
            | Self::UserDisabled => 403,
            Self::Superseded { .. } => 409,
            Self::UpgradeRequired => 426,
            Self::TooManyAttempts { .. } => 429,
            Self::Draining | Self::Full | Self::KeysUnavailable | Self::BackplaneUnavailable => 503,
        }
    }

    /// The `Retry-After` of a refusal that passes by itself, in seconds.
    #[must_use]
    pub const fn retry_after(self) -> Option<u32> {
        match self {
            Self::TooManyAttempts { retry_after } => Some(retry_after),
            Self::Draining => Some(1),
            Self::Full => Some(10),
            Self::KeysUnavailable | Self::BackplaneUnavailable => Some(2),
            Self::OriginNotAllowed
            | Self::UpgradeRequired
            | Self::BadRequest(_)
            | Self::UnsupportedProtocol
            | Self::BadDevice
            | Self::MissingToken
            | Self::MalformedToken
            | Self::UnknownKey
            | Self::BadSignature
            | Self::WrongAudience
            | Self::WrongIssuer
            | Self::TokenExpired
            | Self::TokenNotYetValid
            | Self::TokenRevoked
            | Self::UserDisabled
            | Self::Superseded { .. } => None,
        }
    }

    /// A sentence for people; it never repeats what the client sent.
    #[must_use]
    pub const fn detail(self) -> &'static str {
        match self {
            Self::TooManyAttempts { .. } => {
                "too many attempts: wait for Retry-After seconds, and let only one tab or phone come back"
            }
            Self::Draining => "this instance is leaving: connect again, a balancer will choose another one",
            Self::Full => "this instance holds as many connections as it may",
            Self::OriginNotAllowed => "pages of this origin may not connect",
            Self::UpgradeRequired => "this address speaks WebSocket, version 13",
            Self::BadRequest(detail) => detail,
            Self::UnsupportedProtocol => "none of the offered duorelay protocols is known: offer duorelay.v1",
            Self::BadDevice => "device must be given at most once, as desktop or mobile",
            Self::MissingToken => {
                "no ID token: put it into Sec-WebSocket-Protocol (web), clientid or Authorization: Bearer (native)"
            }
            Self::MalformedToken => {
                "not an ID token by the rules: a header field or claim is missing or has the wrong form"
            }
            Self::UnknownKey => "the token was signed with a key that its issuer does not list",
            Self::BadSignature => "the token's signature does not match, or its algorithm is not allowed",
            Self::WrongAudience => "the token was made for another project (aud)",
            Self::WrongIssuer => "the token comes from another issuer (iss)",
            Self::TokenExpired => "the token has expired (exp): get a fresh one",
            Self::TokenNotYetValid => "the token is from the future (iat or auth_time): check the clocks",
            Self::TokenRevoked => "the session was revoked: sign in again",
            Self::UserDisabled => "the account is disabled",
            Self::KeysUnavailable => "the issuer's keys cannot be fetched at the moment",
            Self::Superseded { .. } => {
                "a later attempt of this client holds the slot; this one changed nothing"
            }
            Self::BackplaneUnavailable => "the relay cannot reach its backplane at the moment",
        }
    }
}

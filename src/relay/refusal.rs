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
    /// None of the three places holds a token.
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
    /// `exp` is not in the future.
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
        /// The holder's attempt, which is higher.
        attempt: Attempt,
    },
}

/// What is said of a refusal, to programs and to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The stable code in the problem document and in `error` messages.
    pub code: &'static str,
    /// The HTTP status (RFC 9110; 426 is section 15.5.22, 429 is RFC 6585 section 4).
    pub status: u16,
    /// The `Retry-After` of a refusal that passes by itself, in seconds.
    pub retry_after: Option<u32>,
    /// A sentence for people; it never repeats what the client sent.
    pub detail: &'static str,
}

impl Refusal {
    /// Every refusal, in the order in which they are judged.
    pub const ALL: [Self; 21] = [
        Self::TooManyAttempts { retry_after: 0 },
        Self::Draining,
        Self::Full,
        Self::UpgradeRequired,
        Self::BadRequest(""),
        Self::UnsupportedProtocol,
        Self::BadDevice,
        Self::OriginNotAllowed,
        Self::MissingToken,
        Self::MalformedToken,
        Self::UnknownKey,
        Self::BadSignature,
        Self::WrongAudience,
        Self::WrongIssuer,
        Self::TokenExpired,
        Self::TokenNotYetValid,
        Self::TokenRevoked,
        Self::UserDisabled,
        Self::KeysUnavailable,
        Self::BackplaneUnavailable,
        Self::Superseded { attempt: Attempt::ZERO },
    ];

    /// The contract's table: one row for each refusal.
    #[must_use]
    pub const fn facts(self) -> Facts {
        match self {
            Self::TooManyAttempts { retry_after } => Facts {
                code: "too_many_attempts",
                status: 429,
                retry_after: Some(retry_after),
                detail: "too many attempts: wait for Retry-After seconds, and let only one tab or phone come back",
            },
            Self::Draining => Facts {
                code: "draining",
                status: 503,
                retry_after: Some(1),
                detail: "this instance is leaving: connect again, a balancer will choose another one",
            },
            Self::Full => Facts {
                code: "full",
                status: 503,
                retry_after: Some(10),
                detail: "this instance holds as many connections as it may",
            },
            Self::UpgradeRequired => Facts {
                code: "upgrade_required",
                status: 426,
                retry_after: None,
                detail: "this address speaks WebSocket, version 13",
            },
            Self::BadRequest(detail) => Facts { code: "bad_request", status: 400, retry_after: None, detail },
            Self::UnsupportedProtocol => Facts {
                code: "unsupported_protocol",
                status: 400,
                retry_after: None,
                detail: "none of the offered duorelay protocols is known: offer duorelay.v1",
            },
            Self::BadDevice => Facts {
                code: "bad_device",
                status: 400,
                retry_after: None,
                detail: "device must be given at most once, as desktop or mobile",
            },
            Self::OriginNotAllowed => Facts {
                code: "origin_not_allowed",
                status: 403,
                retry_after: None,
                detail: "pages of this origin may not connect",
            },
            Self::MissingToken => Facts {
                code: "missing_token",
                status: 400,
                retry_after: None,
                detail: "no ID token: put it into Sec-WebSocket-Protocol (web), clientid or Authorization: Bearer (native)",
            },
            Self::MalformedToken => Facts {
                code: "malformed_token",
                status: 403,
                retry_after: None,
                detail: "not an ID token by the rules: a header field or claim is missing or has the wrong form",
            },
            Self::UnknownKey => Facts {
                code: "unknown_key",
                status: 403,
                retry_after: None,
                detail: "the token was signed with a key that its issuer does not list",
            },
            Self::BadSignature => Facts {
                code: "bad_signature",
                status: 403,
                retry_after: None,
                detail: "the token's signature does not match, or its algorithm is not allowed",
            },
            Self::WrongAudience => Facts {
                code: "wrong_audience",
                status: 403,
                retry_after: None,
                detail: "the token was made for another project (aud)",
            },
            Self::WrongIssuer => Facts {
                code: "wrong_issuer",
                status: 403,
                retry_after: None,
                detail: "the token comes from another issuer (iss)",
            },
            Self::TokenExpired => Facts {
                code: "token_expired",
                status: 403,
                retry_after: None,
                detail: "the token has expired (exp): get a fresh one",
            },
            Self::TokenNotYetValid => Facts {
                code: "token_not_yet_valid",
                status: 403,
                retry_after: None,
                detail: "the token is from the future (iat or auth_time): check the clocks",
            },
            Self::TokenRevoked => Facts {
                code: "token_revoked",
                status: 403,
                retry_after: None,
                detail: "the session was revoked: sign in again",
            },
            Self::UserDisabled => Facts {
                code: "user_disabled",
                status: 403,
                retry_after: None,
                detail: "the account is disabled",
            },
            Self::KeysUnavailable => Facts {
                code: "keys_unavailable",
                status: 503,
                retry_after: Some(2),
                detail: "the issuer's keys cannot be fetched at the moment",
            },
            Self::BackplaneUnavailable => Facts {
                code: "backplane_unavailable",
                status: 503,
                retry_after: Some(2),
                detail: "the relay cannot reach its backplane at the moment",
            },
            Self::Superseded { .. } => Facts {
                code: "superseded",
                status: 409,
                retry_after: None,
                detail: "a later attempt of this client holds the slot; this one changed nothing",
            },
        }
    }

    /// The stable name, for programs and labels.
    #[must_use]
    pub const fn code(self) -> &'static str {
        self.facts().code
    }

    /// The HTTP status of the refused handshake.
    #[must_use]
    pub const fn status(self) -> u16 {
        self.facts().status
    }

    /// A sentence for people; it may change.
    #[must_use]
    pub const fn detail(self) -> &'static str {
        self.facts().detail
    }
}

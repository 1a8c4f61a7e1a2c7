//! Every close code that the relay sends: its number, its name, and whether the client should come back.

/// Why the relay closes a WebSocket (RFC 6455 section 7.4; 4000-4999 are the application's own).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Close {
    /// The answer to a client's own close: its code is repeated.
    Answer(u16),
    /// A broken WebSocket frame.
    ProtocolError,
    /// A text message that is not UTF-8.
    InvalidUtf8,
    /// Errors or rate past the limit.
    Policy,
    /// A message over `limits.message_bytes`.
    TooBig,
    /// This instance is leaving, or the socket reached its maximum lifetime.
    Restart,
    /// Another connection holds the slot now.
    Overwritten,
    /// An operator ended the connection.
    Disconnected,
    /// The token expired or was revoked.
    TokenExpired,
    /// The receiver let its reliable queue overflow.
    TooSlow,
    /// Nothing came for two heartbeat periods.
    NoHeartbeat,
}

/// What a client should do after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComeBack {
    /// The client's own choice.
    OwnChoice,
    /// No: the same would happen again, or somebody else has taken over.
    No,
    /// At once, with jitter.
    AtOnce,
    /// With back-off, as after a network failure.
    BackOff,
    /// After a long back-off.
    LongBackOff,
    /// With a fresh token.
    FreshToken,
}

/// What is said of a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The number on the wire.
    pub code: u16,
    /// The reason text in the close frame (at most 123 bytes, RFC 6455 section 5.5).
    pub reason: &'static str,
    /// What the client should do.
    pub come_back: ComeBack,
}

impl Close {
    /// One of each, except for the answer to a client's own close.
    pub const ALL: [Self; 10] = [
        Self::ProtocolError,
        Self::InvalidUtf8,
        Self::Policy,
        Self::TooBig,
        Self::Restart,
        Self::Overwritten,
        Self::Disconnected,
        Self::TokenExpired,
        Self::TooSlow,
        Self::NoHeartbeat,
    ];

    /// The contract's table: one row for each close.
    #[must_use]
    pub const fn facts(self) -> Facts {
        use ComeBack::{AtOnce, BackOff, FreshToken, LongBackOff, No, OwnChoice};
        let (code, come_back, reason) = match self {
            Self::Answer(code) => (code, OwnChoice, ""),
            Self::ProtocolError => (1002, No, "broken WebSocket frame"),
            Self::InvalidUtf8 => (1007, No, "invalid UTF-8"),
            Self::Policy => (1008, LongBackOff, "errors or rate past the limit"),
            Self::TooBig => (1009, No, "message too big"),
            Self::Restart => (1012, AtOnce, "service restart"),
            Self::Overwritten => (4001, No, "overwritten"),
            Self::Disconnected => (4002, No, "disconnected by an operator"),
            Self::TokenExpired => (4003, FreshToken, "token expired or revoked"),
            Self::TooSlow => (4008, BackOff, "too slow: reliable queue overflow"),
            Self::NoHeartbeat => (4009, BackOff, "no heartbeat"),
        };
        Facts { code, reason, come_back }
    }

    /// The close code of RFC 6455 or of the range 4000 to 4999.
    #[must_use]
    pub const fn code(self) -> u16 {
        self.facts().code
    }

    /// The close frame's text, for people: at most 123 bytes.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        self.facts().reason
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_fits_into_a_close_frame() {
        for close in Close::ALL {
            assert!(close.reason().len() <= 123, "{close:?}");
        }
    }
}

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
    /// With back-off.
    BackOff,
    /// After a long back-off.
    LongBackOff,
    /// With a fresh token.
    FreshToken,
}

impl Close {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Answer(code) => code,
            Self::ProtocolError => 1002,
            Self::InvalidUtf8 => 1007,
            Self::Policy => 1008,
            Self::TooBig => 1009,
            Self::Restart => 1012,
            Self::Overwritten => 4001,
            Self::Disconnected => 4002,
            Self::TokenExpired => 4003,
            Self::TooSlow => 4008,
            Self::NoHeartbeat => 4009,
        }
    }

    /// The reason text in the close frame (at most 123 bytes, RFC 6455 section 5.5).
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Answer(_) => "",
            Self::ProtocolError => "broken WebSocket frame",
            Self::InvalidUtf8 => "invalid UTF-8",
            Self::Policy => "errors or rate past the limit",
            Self::TooBig => "message too big",
            Self::Restart => "service restart",
            Self::Overwritten => "overwritten",
            Self::Disconnected => "disconnected by an operator",
            Self::TokenExpired => "token expired or revoked",
            Self::TooSlow => "too slow: reliable queue overflow",
            Self::NoHeartbeat => "no heartbeat",
        }
    }

    /// Should the client connect again?
    #[must_use]
    pub const fn come_back(self) -> ComeBack {
        match self {
            Self::Answer(_) => ComeBack::OwnChoice,
            Self::ProtocolError | Self::InvalidUtf8 | Self::TooBig => ComeBack::No,
            Self::Overwritten | Self::Disconnected => ComeBack::No,
            Self::Policy => ComeBack::LongBackOff,
            Self::Restart => ComeBack::AtOnce,
            Self::TooSlow | Self::NoHeartbeat => ComeBack::BackOff,
            Self::TokenExpired => ComeBack::FreshToken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_come_back_are_those_of_the_contract() {
        let table = [
            (Close::Answer(1000), 1000, ComeBack::OwnChoice),
            (Close::Answer(1001), 1001, ComeBack::OwnChoice),
            (Close::ProtocolError, 1002, ComeBack::No),
            (Close::InvalidUtf8, 1007, ComeBack::No),
            (Close::Policy, 1008, ComeBack::LongBackOff),
            (Close::TooBig, 1009, ComeBack::No),
            (Close::Restart, 1012, ComeBack::AtOnce),
            (Close::Overwritten, 4001, ComeBack::No),
            (Close::Disconnected, 4002, ComeBack::No),
            (Close::TokenExpired, 4003, ComeBack::FreshToken),
            (Close::TooSlow, 4008, ComeBack::BackOff),
            (Close::NoHeartbeat, 4009, ComeBack::BackOff),
        ];
        for (close, code, come_back) in table {
            assert_eq!((close.code(), close.come_back()), (code, come_back), "{close:?}");
            assert!(close.reason().len() <= 123, "{close:?}");
        }
    }
}

//! The control messages of `duorelay.v1`, in both directions.

mod client;
mod server;
#[cfg(test)]
mod tests;

use serde::Serialize;
use serde_json::value::RawValue;

pub use self::client::{
    ACK_ID_CHARS, ACK_UNSUPPORTED, BACKPLANE_BLOCKED, BAD_REPORT, ClientMessage, EMPTY_FRAME, MessageError,
    PEER_ABSENT, REPORTS_OFF, SIGNAL_BYTES, SIGNAL_IS_OFF, is_perhaps_quiet,
};
pub use self::server::{
    BackplaneState, ClientLimits, PeerState, ReconnectReason, Sender, ServerMessage, Successor,
};

/// The one `duorelay.` subprotocol that there is.
pub const V1: &str = "duorelay.v1";

/// Which protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Plain text, wrapped in four lines, echoed to both devices.
    Classic,
    /// `duorelay.v1`: binary frames and JSON control messages.
    V1,
}

impl Protocol {
    /// The name in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::V1 => "v1",
        }
    }
}

/// What a relay understands beyond the first version, listed in `welcome`. A client must not send what is not listed:
/// an older relay counts it as an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Feature {
    /// The relay reads `received` and sends `reports`.
    Received,
    /// `send` with `ack`, and `ack`.
    Ack,
    /// Client libraries may exchange `signal`.
    Signal,
    /// The relay reports a long reliable queue with `pressure`.
    Pressure,
}

/// What a relay understands beyond the first version, unless the operator has switched it off.
#[must_use]
pub fn features(pacing: bool, direct: bool) -> Vec<Feature> {
    let is_on = |feature: &Feature| match feature {
        Feature::Received => pacing,
        Feature::Signal => direct,
        Feature::Ack | Feature::Pressure => true,
    };
    let all = [Feature::Received, Feature::Ack, Feature::Signal, Feature::Pressure];
    all.into_iter().filter(is_on).collect()
}

/// JSON without the white space outside strings (RFC 8259 section 2); key order and digits are kept.
#[must_use]
pub fn compact_json(json: &str) -> String {
    let mut compact = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if matches!(c, ' ' | '\t' | '\n' | '\r') {
            continue;
        } else {
            in_string = c == '"';
        }
        compact.push(c);
    }
    compact
}

/// JSON text as a value that is copied as it stands into another JSON text; `null` if it is none.
#[must_use]
pub fn raw_json(json: &str) -> &RawValue {
    serde_json::from_str(json).unwrap_or(RawValue::NULL)
}

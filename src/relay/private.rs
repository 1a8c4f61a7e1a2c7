//! What belongs to users and never stands in a log.

use std::fmt;
use std::ops::Deref;

/// A token or a payload: it is used like what it holds, but `Debug` hides it, and `Display` there is none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Private<T>(T);

impl<T> Private<T> {
    /// What nobody may print.
    pub const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> From<T> for Private<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for Private<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Private<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(private)")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytes::Bytes;
    use http::{HeaderMap, Method};

    use crate::relay::envelope::Envelope;
    use crate::relay::handshake;
    use crate::relay::ids::Member;
    use crate::relay::outbox::Outgoing;
    use crate::relay::parcel::Parcel;
    use crate::relay::protocol::ClientMessage;

    #[test]
    fn what_holds_a_token_or_a_payload_does_not_print_it() {
        const SECRET: &str = "geheim";
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "relay.example.org"),
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", SECRET),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let handshake = handshake::read(&Method::GET, "", &headers, false).unwrap();
        assert_eq!(**handshake.token.as_ref().unwrap(), SECRET);

        let (send, auth) = (r#"{"type":"send","data":"geheim"}"#, r#"{"type":"auth","token":"geheim"}"#);
        let [send, auth] = [send, auth].map(|text| ClientMessage::parse(text).unwrap());
        let bytes = || Bytes::from_static(SECRET.as_bytes());
        let parcels = [
            Parcel::Frame(bytes()),
            Parcel::Send { data: bytes(), id: Some(SECRET.into()), label: SECRET.into(), ack: true },
            Parcel::Text { text: bytes(), label: SECRET.into() },
            Parcel::Ack { id: SECRET.into() },
            Parcel::Signal { to: Member::NONE.connection, data: bytes(), id: None },
        ];
        let envelopes = parcels.clone().map(|parcel| Envelope::Parcel { from: Member::NONE, parcel });
        let from_operator = Envelope::ServerMessage { data: bytes().into() };
        let outgoing = [Outgoing::text(bytes(), None), Outgoing::binary(bytes(), Some(Instant::now()))];

        let printed = format!(
            "{handshake:?} {send:?} {auth:?} {parcels:?} {envelopes:?} {from_operator:?} {outgoing:?} {outgoing:#?}"
        );
        assert!(!printed.contains(SECRET), "{printed}");
        // Nor as the numbers of its bytes.
        assert!(!printed.contains("103, 101, 104"), "{printed}");
        assert!(printed.contains("(private)") && printed.contains("Binary(6 bytes)"), "{printed}");
    }
}

//! What comes on a channel: what is accepted says the same when it is written again.
#![no_main]

use bytes::Bytes;
use duorelay::relay::envelope::Envelope;
use duorelay::relay::ids::ClientId;
use duorelay::relay::parcel::Parcel;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let bytes = Bytes::copy_from_slice(bytes);
    let Ok(envelope) = Envelope::decode(&bytes) else { return };
    assert_eq!(Envelope::decode(&envelope.encode()).as_ref(), Ok(&envelope));
    match envelope {
        Envelope::Parcel { parcel, .. } => match parcel {
            Parcel::Frame(frame) => assert!(!frame.is_empty() && bytes.ends_with(&frame)),
            Parcel::Send { data: text, ack, .. } => {
                let sent = [&text[..], if ack { b"\n" } else { b"" }].concat();
                assert!(std::str::from_utf8(&text).is_ok() && bytes.ends_with(&sent));
            }
            Parcel::Text { text, .. } | Parcel::Signal { data: text, .. } => {
                assert!(std::str::from_utf8(&text).is_ok() && bytes.ends_with(&text));
            }
            Parcel::Ack { .. } | Parcel::Pressure(_) => {}
        },
        Envelope::Claimed { holder, .. } => {
            assert!(holder.client.is_none_or(|client| ClientId::new(client.as_str()).is_some()));
        }
        Envelope::ServerMessage { data } => assert!(std::str::from_utf8(&data).is_ok()),
        Envelope::Released { .. }
        | Envelope::Marker { .. }
        | Envelope::Disconnect { .. }
        | Envelope::Undelivered { .. } => {}
    }
});

//! Frames and text from clients: they cross instances unchanged, and classic clients get four lines.
#![no_main]

use bytes::Bytes;
use duorelay::relay::classic::{Occupancy, classic_text};
use duorelay::relay::envelope::Envelope;
use duorelay::relay::ids::{ConnectionId, Generation, Member};
use duorelay::relay::parcel::Parcel;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let [kind, generation, rest @ ..] = bytes else { return };
    let text = String::from_utf8_lossy(rest);
    // What stands before the first line feed is the label or the id.
    let (label, body) = text.split_once('\n').unwrap_or(("ann", &text));
    let parcel = match kind % 5 {
        0 if rest.is_empty() => return,
        0 => Parcel::Frame(Bytes::copy_from_slice(rest)),
        1 => {
            let id = (kind % 2 == 0).then(|| label.to_owned());
            // JSON as a client wrote it has no white space at its end.
            let data = body.trim_end().to_owned().into();
            Parcel::Send { data, id, label: label.into(), ack: kind % 4 == 0 }
        }
        2 => Parcel::Ack { id: body.to_owned() },
        3 => Parcel::Signal {
            to: ConnectionId::NONE,
            data: body.to_owned().into(),
            id: Some(label.to_owned()),
        },
        _ => Parcel::Text { text: body.to_owned().into(), label: label.into() },
    };
    assert_eq!(parcel.is_reliable(), !matches!(&parcel, Parcel::Frame(bytes) if bytes[0] < 0x80));
    let from = Member { connection: ConnectionId::NONE, generation: Generation((*generation).into()) };
    let envelope = Envelope::Parcel { from, parcel };
    assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));

    let occupancy = Occupancy { desktop: kind % 2 == 0, mobile: true };
    let wrapped = classic_text(occupancy, label, body);
    let wrapped = std::str::from_utf8(&wrapped).unwrap();
    assert!(
        wrapped.starts_with("\nDesktop connected: ") && wrapped.ends_with(&format!("\nMessage: {body}\n"))
    );
});

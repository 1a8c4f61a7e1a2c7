//! Exact cases, and tungstenite as an oracle for all others.

use std::fmt;
use std::io::{self, Cursor, Read, Write};

use proptest::prelude::*;
use tungstenite::error::Error;
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};

use super::*;

const MAX: usize = 1000;

/// The relay never prints what a client sent; these tests may.
impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(Message::Text(text)) => write!(f, "Text({text:?})"),
            Self::Message(Message::Binary(bytes)) => write!(f, "Binary({bytes:?})"),
            Self::Ping(payload) => write!(f, "Ping({payload:?})"),
            Self::Pong => write!(f, "Pong"),
            Self::EmptyFragment => write!(f, "EmptyFragment"),
            Self::Close(code) => write!(f, "Close({code:?})"),
        }
    }
}

/// One frame as a client sends it; `first` is the byte with FIN and the opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0xA1, 0x2B, 0xC3, 0x4D];
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..65536 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// What comes of these bytes when they arrive in pieces, through a shared buffer of this size.
fn decode(bytes: &[u8], pieces: &[usize], shared: usize) -> (Vec<Item>, Option<Broken>) {
    let (mut decoder, mut items, mut rest) = (Decoder::default(), Vec::new(), bytes);
    let mut pieces = pieces.iter().copied().cycle();
    loop {
        match decoder.decode(MAX) {
            Ok(Some(item)) => items.push(item),
            Err(broken) => return (items, Some(broken)),
            Ok(None) if rest.is_empty() => return (items, None),
            Ok(None) => {
                decoder.lend(|| vec![0; shared]);
                let room = decoder.room();
                let length = pieces.next().unwrap_or(1).clamp(1, room.len()).min(rest.len());
                room[..length].copy_from_slice(&rest[..length]);
                decoder.on_read(length);
                rest = &rest[length..];
                if length % 3 == 0 {
                    assert!(decoder.reclaim().is_some());
                }
            }
        }
    }
}

fn binary(bytes: &[u8]) -> Item {
    Item::Message(Message::Binary(Bytes::copy_from_slice(bytes)))
}

fn text(text: &'static str) -> Item {
    Item::Message(Message::Text(Utf8Bytes::from_static(text)))
}

fn all(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.concat()
}

#[test]
fn messages_control_frames_and_fragments_come_one_by_one() {
    let bytes = all(&[
        frame(0x81, "grüße".as_bytes()),
        frame(0x02, b"ab"),
        frame(0x00, b""),
        frame(0x89, b"ping"),
        frame(0x00, b""),
        frame(0x8A, b"pong"),
        frame(0x80, b"cd"),
        frame(0x01, b""),
        frame(0x80, b""),
        frame(0x82, b""),
        frame(0x88, &[3, 232, b'o', b'k']),
    ]);
    let expected = [
        text("grüße"),
        Item::EmptyFragment,
        Item::Ping(Bytes::from_static(b"ping")),
        Item::EmptyFragment,
        Item::Pong,
        binary(b"abcd"),
        Item::EmptyFragment,
        text(""),
        binary(b""),
        Item::Close(Some(1000)),
    ];
    for pieces in [&[1][..], &[2], &[3, 1], &[1000]] {
        assert_eq!(decode(&bytes, pieces, 64), (expected.to_vec(), None), "{pieces:?}");
    }
}

#[test]
fn what_breaks_the_protocol_is_known_as_early_as_can_be() {
    let table: [(Vec<u8>, Broken); 16] = [
        (vec![0xC1, 0x80], Broken::Protocol("a reserved bit is set")),
        (vec![0x83, 0x80], Broken::Protocol("an unknown opcode")),
        (vec![0x8B, 0x80], Broken::Protocol("an unknown opcode")),
        (vec![0x82, 0x01], Broken::Protocol("a frame without a mask")),
        (frame(0x09, b""), Broken::Protocol("a control frame in fragments")),
        (frame(0x89, &[0; 126])[..8].to_vec(), Broken::Protocol("a control frame of more than 125 bytes")),
        (frame(0x88, &[3]), Broken::Protocol("a close frame of one byte")),
        (frame(0x88, &[3, 232, 0xFF]), Broken::Utf8),
        (frame(0x80, b"x"), Broken::Protocol("a continuation of nothing")),
        (all(&[frame(0x01, b"x"), frame(0x81, b"x")]), Broken::Protocol("a message amid another one")),
        (frame(0x81, &[0xFF]), Broken::Utf8),
        (all(&[frame(0x01, &[0xC3]), frame(0x80, b"x")]), Broken::Utf8),
        (all(&[frame(0x01, b"x"), frame(0x80, &[0xC3])]), Broken::Utf8),
        (frame(0x82, &[0; MAX + 1])[..8].to_vec(), Broken::TooBig(MAX + 1)),
        (all(&[frame(0x02, &[0; MAX]), frame(0x80, b"x")]), Broken::TooBig(MAX + 1)),
        (vec![0x82, 0xFF, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0], Broken::TooBig(usize::MAX)),
    ];
    for (bytes, broken) in table {
        for pieces in [&[1][..], &[1000]] {
            assert_eq!(decode(&bytes, pieces, 64).1, Some(broken), "{bytes:?}");
        }
    }
}

#[test]
fn between_messages_nothing_is_held_and_a_promise_takes_no_memory() {
    let mut decoder = Decoder::default();
    let mut feed = |bytes: &[u8]| {
        decoder.lend(|| vec![0; 4096]);
        decoder.room()[..bytes.len()].copy_from_slice(bytes);
        decoder.on_read(bytes.len());
        while decoder.decode(1 << 20).unwrap().is_some() {}
        assert!(decoder.reclaim().is_some_and(|buffer| buffer.len() == 4096));
        decoder.held_bytes()
    };
    assert_eq!(feed(&frame(0x82, &[1; 4000])), 0);
    let long = frame(0x82, &[1; 60_000]);
    assert!(feed(&long[..100]) < 100 + GROWTH + size_of::<Partial>());
    for piece in long[100..].chunks(4000) {
        assert!(feed(piece) < 60_000 + 1024);
    }
    assert_eq!(feed(&frame(0x89, b"ping")), 0);
}

/// Reads what is there, and swallows what is written.
struct Given(Cursor<Vec<u8>>);

impl Read for Given {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            length => Ok(length),
        }
    }
}

impl Write for Given {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same by tungstenite: its messages, and the kind of its error.
fn oracle(bytes: &[u8]) -> (Vec<Item>, Option<u16>) {
    let config = WebSocketConfig::default().max_message_size(Some(MAX)).max_frame_size(Some(MAX));
    let mut codec = WebSocketContext::new(Role::Server, Some(config));
    let (mut stream, mut items) = (Given(Cursor::new(bytes.to_vec())), Vec::new());
    loop {
        items.push(match codec.read(&mut stream) {
            Ok(tungstenite::Message::Text(text)) => Item::Message(Message::Text(text)),
            Ok(tungstenite::Message::Binary(bytes)) => Item::Message(Message::Binary(bytes)),
            Ok(tungstenite::Message::Ping(payload)) => Item::Ping(payload),
            Ok(tungstenite::Message::Pong(_)) => Item::Pong,
            Ok(tungstenite::Message::Close(frame)) => {
                items.push(Item::Close(frame.map(|frame| frame.code.into())));
                return (items, None);
            }
            Ok(tungstenite::Message::Frame(_)) | Err(Error::Io(_)) => return (items, None),
            Err(Error::Utf8(_)) => return (items, Some(1007)),
            Err(Error::Capacity(_)) => return (items, Some(1009)),
            Err(_) => return (items, Some(1002)),
        });
    }
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-zü€😀]{0,40}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..200),
        1 => prop::collection::vec(Just(7), 900..1100),
    ]
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        8 => prop::sample::select(vec![0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A]),
        1 => any::<u8>(),
    ];
    let one = prop_oneof![
        20 => (first, payload()).prop_map(|(first, payload)| frame(first, &payload)),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(one, 0..12).prop_map(|frames| frames.concat())
}

proptest! {
    #[test]
    fn it_reads_what_tungstenite_reads(
        bytes in frames(),
        pieces in prop::collection::vec(1_usize..300, 1..5),
        shared in 160_usize..2000,
    ) {
        let (items, broken) = decode(&bytes, &pieces, shared);
        let (expected, error) = oracle(&bytes);
        let after_close = items.iter().position(|item| matches!(item, Item::Close(_)));
        let seen = items.iter().take(after_close.map_or(items.len(), |at| at + 1));
        // tungstenite keeps empty fragments to itself, and looks at a frame only when all of it is there.
        let seen: Vec<_> = seen.filter(|item| !matches!(item, Item::EmptyFragment)).cloned().collect();
        let code = broken.filter(|_| after_close.is_none()).map(|broken| match broken {
            Broken::Protocol(_) => 1002,
            Broken::Utf8 => 1007,
            Broken::TooBig(_) => 1009,
        });
        if let Some(Item::Close(Some(code))) = seen.last()
            && !is_close_code(*code)
        {
            // It repeats no such code, and says 1002 itself.
            prop_assert_eq!(expected.last(), Some(&Item::Close(Some(1002))));
        } else {
            prop_assert_eq!(&seen, &expected);
        }
        if error.is_some() {
            // A frame may break two rules; which of them is found first is a matter of taste.
            prop_assert!(code == error || code.is_some() && [code, error].contains(&Some(1002)), "{code:?} {error:?}");
        }
    }

    #[test]
    fn what_it_writes_tungstenite_reads(payload in prop::collection::vec(any::<u8>(), 0..70_000), code in 1000_u16..5000) {
        let mut bytes = Vec::new();
        encode(&mut bytes, Opcode::Binary, &payload);
        encode(&mut bytes, Opcode::Ping, &[]);
        encode_close(&mut bytes, code, "a reason");
        let mut codec = WebSocketContext::new(Role::Client, None);
        let mut stream = Given(Cursor::new(bytes));
        prop_assert_eq!(codec.read(&mut stream).unwrap(), tungstenite::Message::Binary(payload.into()));
        prop_assert_eq!(codec.read(&mut stream).unwrap(), tungstenite::Message::Ping(Bytes::new()));
        let tungstenite::Message::Close(frame) = codec.read(&mut stream).unwrap() else { panic!("no close") };
        if is_close_code(code) {
            prop_assert_eq!(frame.map(|frame| u16::from(frame.code)), Some(code));
        } else if code == 1005 {
            prop_assert_eq!(frame, None);
        }
    }
}

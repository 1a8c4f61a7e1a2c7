//! WebSocket frames (RFC 6455), the server's side: bytes in, messages out, and back. No I/O.
//!
//! The relay has a codec of its own for three reasons. It must see each control frame and each empty fragment, to count
//! them. It must hold no buffer between two messages: a silent connection is the usual one. And it must not queue a pong
//! for each ping of a client that reads nothing. `codec_tests.rs` holds it against tungstenite, and the Autobahn test
//! suite against the RFC.

use bytes::Bytes;
use tungstenite::Utf8Bytes;

/// The largest payload of a control frame (section 5.5).
const CONTROL_BYTES: usize = 125;
/// The least that a message in parts grows by.
const GROWTH: usize = 256;

/// A whole message of a client.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// A text message, checked to be UTF-8.
    Text(Utf8Bytes),
    /// A binary message: stream id and payload.
    Binary(Bytes),
}

/// What a client sent.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// A whole message, of one frame or of several fragments.
    Message(Message),
    /// A ping, to be answered with the same payload.
    Ping(Bytes),
    /// A pong, whatever its payload.
    Pong,
    /// A fragment that brings nothing, and is not the last one.
    EmptyFragment,
    /// A close frame, with its code if it has one.
    Close(Option<u16>),
}

/// Why a client's bytes are not WebSocket frames that the relay takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    /// Ends in 1002: a rule of RFC 6455 is broken.
    #[error("{0}")]
    Protocol(&'static str),
    /// Ends in 1007: text that is no UTF-8.
    #[error("invalid UTF-8")]
    Utf8,
    /// Ends in 1009: the announced size is past the limit.
    #[error("a message of {0} bytes")]
    TooBig(usize),
}

/// Reads frames out of the bytes of one client.
///
/// While its socket is read it works in a buffer that all sockets of a worker share ([`Self::lend`]). Between
/// two reads it keeps only what is not decoded yet ([`Self::reclaim`]).
#[derive(Default)]
pub(super) struct Decoder {
    buffer: Vec<u8>,
    /// Not decoded yet: from here on.
    at: usize,
    /// Read: up to here.
    end: usize,
    is_lent: bool,
    /// Decoded since [`Self::taken`] was asked.
    taken: usize,
    partial: Option<Box<Partial>>,
}

/// A message of which only a part is there.
struct Partial {
    is_text: bool,
    payload: Vec<u8>,
    /// Of a text, this much is known to be UTF-8.
    valid: usize,
    frame: Option<OpenFrame>,
}

/// A frame of which only a part is there.
struct OpenFrame {
    is_final: bool,
    /// For the next byte on.
    mask: [u8; 4],
    left: usize,
}

#[derive(Clone, Copy)]
struct Header {
    is_final: bool,
    opcode: u8,
    mask: [u8; 4],
    payload: usize,
    bytes: usize,
}

impl Decoder {
    /// A decoder for these bytes and all that come behind them.
    pub(super) fn new(early: &[u8]) -> Self {
        Self { buffer: early.to_vec(), end: early.len(), ..Self::default() }
    }

    /// Takes the shared buffer, unless it has it. What is not decoded yet moves into it.
    pub(super) fn lend(&mut self, shared: impl FnOnce() -> Vec<u8>) {
        if !self.is_lent {
            let mut buffer = shared();
            let rest = self.buffer.get(self.at..self.end).unwrap_or_default();
            let length = rest.len();
            if length >= buffer.len() {
                buffer.resize(length + GROWTH, 0);
            }
            if let Some(front) = buffer.get_mut(..length) {
                front.copy_from_slice(rest);
            }
            (self.buffer, self.at, self.end, self.is_lent) = (buffer, 0, length, true);
        } else if self.at > 0 {
            self.buffer.copy_within(self.at..self.end, 0);
            (self.at, self.end) = (0, self.end - self.at);
        }
    }

    /// Room for more bytes; there is some after [`Self::lend`], if [`Self::decode`] has nothing more to give.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes were read into [`Self::room`].
    pub(super) fn on_read(&mut self, bytes: usize) {
        self.end = (self.end + bytes).min(self.buffer.len());
    }

    /// The shared buffer, if it was lent. The decoder keeps what is not decoded yet.
    pub(super) fn reclaim(&mut self) -> Option<Vec<u8>> {
        if !self.is_lent {
            return None;
        }
        let rest = self.buffer.get(self.at..self.end).unwrap_or_default().to_vec();
        (self.at, self.end, self.is_lent) = (0, rest.len(), false);
        Some(std::mem::replace(&mut self.buffer, rest))
    }

    fn take(&mut self, bytes: usize) {
        self.at += bytes;
        self.taken += bytes;
    }

    /// How many bytes were decoded since this was asked last: those of the last item, if it is asked after each.
    pub(super) fn taken(&mut self) -> usize {
        std::mem::take(&mut self.taken)
    }

    /// What is not decoded yet is of no use any more.
    pub(super) fn forget(&mut self) {
        (self.at, self.end, self.partial) = (0, 0, None);
    }

    /// Memory that this client's unfinished business takes.
    pub(super) fn held_bytes(&self) -> usize {
        let buffer = if self.is_lent { self.end - self.at } else { self.buffer.capacity() };
        buffer + self.partial.as_ref().map_or(0, |partial| partial.payload.capacity() + size_of::<Partial>())
    }

    /// The next thing that the client sent; `None` until more bytes come. Messages may have up to `max` bytes.
    ///
    /// # Errors
    /// When the bytes break the protocol or the limit. The decoder is of no use any more.
    pub(super) fn decode(&mut self, max: usize) -> Result<Option<Item>, Broken> {
        loop {
            if let Some(partial) = &mut self.partial
                && let Some(frame) = &mut partial.frame
            {
                let received = self.buffer.get_mut(self.at..self.end).unwrap_or_default();
                let length = received.len().min(frame.left);
                let Some(received) = received.get_mut(..length) else {
                    return Ok(None);
                };
                unmask(received, frame.mask);
                frame.mask.rotate_left(length % 4);
                frame.left -= length;
                self.at += length;
                self.taken += length;
                let (left, is_final) = (frame.left, frame.is_final);
                partial.extend(received, left)?;
                if left > 0 {
                    return Ok(None);
                }
                partial.frame = None;
                if is_final && let Some(partial) = self.partial.take() {
                    return partial.complete().map(|message| Some(Item::Message(message)));
                }
            }
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            if header.opcode >= 8 {
                return self.control(header);
            }
            if let Some(item) = self.data(header, max)? {
                return Ok(Some(item));
            }
        }
    }

    /// The next frame's header, which stays where it is.
    fn header(&self) -> Result<Option<Header>, Broken> {
        let received = self.buffer.get(self.at..self.end).unwrap_or_default();
        let &[first, second, ref rest @ ..] = received else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(Broken::Protocol("a reserved bit is set"));
        }
        let opcode = first & 0x0F;
        if matches!(opcode, 3..=7 | 11..) {
            return Err(Broken::Protocol("an unknown opcode"));
        }
        // Section 5.1: a server must close the connection upon a frame that is not masked.
        if second & 0x80 == 0 {
            return Err(Broken::Protocol("a frame without a mask"));
        }
        let (payload, extended) = match (second & 0x7F, rest) {
            (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
            (127, [a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8),
            (126 | 127, _) => return Ok(None),
            (payload, _) => (u64::from(payload), 0),
        };
        let Some(&[a, b, c, d, ..]) = rest.get(extended..) else {
            return Ok(None);
        };
        Ok(Some(Header {
            is_final: first & 0x80 != 0,
            opcode,
            mask: [a, b, c, d],
            payload: usize::try_from(payload).unwrap_or(usize::MAX),
            bytes: 2 + extended + 4,
        }))
    }

    fn control(&mut self, header: Header) -> Result<Option<Item>, Broken> {
        if !header.is_final {
            return Err(Broken::Protocol("a control frame in fragments"));
        }
        if header.payload > CONTROL_BYTES {
            return Err(Broken::Protocol("a control frame of more than 125 bytes"));
        }
        let Some(payload) = self.whole(header) else {
            return Ok(None);
        };
        let item = match (header.opcode, &*payload) {
            (8, []) => Item::Close(None),
            (8, [a, b, reason @ ..]) => {
                if std::str::from_utf8(reason).is_err() {
                    return Err(Broken::Utf8);
                }
                Item::Close(Some(u16::from_be_bytes([*a, *b])))
            }
            (8, _) => return Err(Broken::Protocol("a close frame of one byte")),
            (9, payload) => Item::Ping(Bytes::copy_from_slice(payload)),
            (_, _) => Item::Pong,
        };
        self.take(header.bytes + header.payload);
        Ok(Some(item))
    }

    /// A data frame begins. `None`: it goes on as part of a message.
    fn data(&mut self, header: Header, max: usize) -> Result<Option<Item>, Broken> {
        let before = match (header.opcode, &self.partial) {
            (0, None) => return Err(Broken::Protocol("a continuation of nothing")),
            (0, Some(partial)) => partial.payload.len(),
            (_, Some(_)) => return Err(Broken::Protocol("a message amid another one")),
            (_, None) => 0,
        };
        let message = before.saturating_add(header.payload);
        if message > max {
            return Err(Broken::TooBig(message));
        }
        if header.is_final
            && header.opcode != 0
            && let Some(payload) = self.whole(header)
        {
            // A copy, which keeps nothing but itself alive wherever it waits.
            let payload = Bytes::copy_from_slice(payload);
            self.take(header.bytes + header.payload);
            let message = match header.opcode {
                1 => Message::Text(Utf8Bytes::try_from(payload).map_err(|_| Broken::Utf8)?),
                _ => Message::Binary(payload),
            };
            return Ok(Some(Item::Message(message)));
        }
        self.take(header.bytes);
        let partial = self.partial.get_or_insert_with(|| {
            Box::new(Partial { is_text: header.opcode == 1, payload: Vec::new(), valid: 0, frame: None })
        });
        if header.payload == 0 && !header.is_final {
            return Ok(Some(Item::EmptyFragment));
        }
        let Header { is_final, mask, payload: left, .. } = header;
        partial.frame = Some(OpenFrame { is_final, mask, left });
        Ok(None)
    }

    /// The unmasked payload of the frame that begins here, if all of it is there. To be asked once for each frame.
    fn whole(&mut self, header: Header) -> Option<&mut [u8]> {
        let start = self.at + header.bytes;
        let end = start.checked_add(header.payload).filter(|end| *end <= self.end)?;
        let payload = self.buffer.get_mut(start..end)?;
        unmask(payload, header.mask);
        Some(payload)
    }
}

impl Partial {
    /// More of the frame that is open, of which so much is still to come.
    fn extend(&mut self, more: &[u8], left: usize) -> Result<(), Broken> {
        let free = self.payload.capacity() - self.payload.len();
        if free < more.len() {
            // Doubled, like a vector, but no memory for what a header only promises, and none past its frame's end.
            let growth = self.payload.len().max(GROWTH).min(more.len() + left).max(more.len());
            self.payload.reserve_exact(growth);
        }
        self.payload.extend_from_slice(more);
        if self.is_text {
            // At once: a client that sends no UTF-8 need not send the rest of it.
            match std::str::from_utf8(self.payload.get(self.valid..).unwrap_or_default()) {
                Ok(text) => self.valid += text.len(),
                Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
                Err(_) => return Err(Broken::Utf8),
            }
        }
        Ok(())
    }

    fn complete(self) -> Result<Message, Broken> {
        let payload = Bytes::from(self.payload);
        if !self.is_text {
            return Ok(Message::Binary(payload));
        }
        Utf8Bytes::try_from(payload).map(Message::Text).map_err(|_| Broken::Utf8)
    }
}

/// XORs the payload with the client's mask (RFC 6455, section 5.3).
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let eight = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        if let Ok(bytes) = <[u8; 8]>::try_from(&*chunk) {
            chunk.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ eight).to_ne_bytes());
        }
    }
    for (byte, mask) in chunks.into_remainder().iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= mask;
    }
}

/// What the relay sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opcode {
    /// A whole text message.
    Text = 1,
    /// A whole binary message.
    Binary = 2,
    /// A close frame, with code and reason.
    Close = 8,
    /// A ping, with at most 125 bytes.
    Ping = 9,
    /// The answer to one.
    Pong = 10,
}

/// Appends one frame, unfragmented and without a mask, as a server's are.
pub(super) fn encode(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let first = 0x80 | opcode as u8;
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length), _) if length < 126 => out.extend_from_slice(&[first, length]),
        (_, Ok(length)) => {
            out.extend_from_slice(&[first, 126]);
            out.extend_from_slice(&length.to_be_bytes());
        }
        (_, Err(_)) => {
            out.extend_from_slice(&[first, 127]);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// Appends a close frame; 1005 stands for one without a code, and is never sent itself (section 7.4.1).
pub(super) fn encode_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    if code == 1005 {
        return encode(out, Opcode::Close, &[]);
    }
    let mut payload = [0; CONTROL_BYTES];
    let reason = reason.get(..reason.len().min(CONTROL_BYTES - 2)).unwrap_or_default();
    let (head, tail) = payload.split_at_mut(2);
    head.copy_from_slice(&code.to_be_bytes());
    if let Some(text) = tail.get_mut(..reason.len()) {
        text.copy_from_slice(reason.as_bytes());
    }
    encode(out, Opcode::Close, payload.get(..2 + reason.len()).unwrap_or_default());
}

/// May a client send this code (sections 7.4.1 and 7.4.2)?
pub(super) const fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1013 | 3000..=4999)
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;

//! The echo that the Autobahn test suite talks to, since neither protocol sends anything back as it came.
//!
//! Compiled only with `--cfg conformance`, which only `tests/autobahn/rustc` sets. With it `src/main.rs` does not compile:
//! there is no `duorelay` that echoes.

use std::time::Instant;

use super::Socket;
use super::codec::Message;
use crate::relay::close::Close;
use crate::relay::outbox::{Outgoing, TooSlow};
use crate::relay::protocol::Protocol;

impl Socket {
    /// Sends what a classic connection sent back to it, behind what waits in its outbox. What is not echoed goes its usual way.
    pub(super) fn echo(&mut self, message: Message, now: Instant) -> Option<Message> {
        let message = match (message, self.seat.protocol) {
            (Message::Text(text), Protocol::Classic) => Outgoing::text(text.into(), Some(now)),
            (Message::Binary(bytes), Protocol::Classic) => Outgoing::binary(bytes, Some(now)),
            (message, Protocol::V1) => return Some(message),
        };
        let limit = self.hub.settings().limits.queue_bytes;
        if let Err(TooSlow) = self.seat.with_outbox(|outbox| outbox.push_reliable(message, limit)) {
            self.leave(Close::TooSlow);
        }
        None
    }
}

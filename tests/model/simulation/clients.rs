//! What clients do, and what they read: every message is checked.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use duorelay::hub::{Joining, Sent};
use duorelay::relay::close::Close;
use duorelay::relay::ids::{ClientId, ConnectionId, Device, Generation};
use duorelay::relay::outbox::Kind;
use duorelay::relay::parcel::Parcel;
use duorelay::relay::protocol::Protocol;
use serde_json::Value;
use tokio::task::spawn_local;
use uuid::Uuid;

use super::{SECOND, Simulation, Socket, State, number};

impl Simulation {
    // ---- what clients do

    pub(super) fn join(self: &Rc<Self>) {
        let Some(node) = self.any(&self.alive()) else {
            return;
        };
        let user = usize::try_from(self.network.below(self.users.len() as u64)).unwrap();
        let device = Device::ALL[usize::from(self.network.chance(2))];
        let index = self.sockets.borrow().len();
        let connection = ConnectionId(Uuid::from_u128(index as u128 + 1));
        self.sockets.borrow_mut().push(Socket {
            user,
            device,
            node,
            connection,
            seat: None,
            state: State::Joining,
            generation: 0,
            peer: None,
            has_heard_of_peer: false,
            last: BTreeMap::new(),
            sent: 0,
            waits: None,
        });
        // A few clients that come back again and again.
        let client = ClientId::new(&format!("client-{}", self.network.below(3)));
        let joining = Joining {
            attempt: None,
            user: self.users[user].clone(),
            device,
            client,
            protocol: Protocol::V1,
            label: Arc::from("nobody@example.com"),
            expires_at: 0,
        };
        let it = Rc::clone(self);
        let join = move || {
            let Some(hub) = it.hub(node) else { return };
            spawn_local(async move {
                let joined = hub.join(joining, connection).await;
                let mut sockets = it.sockets.borrow_mut();
                let socket = &mut sockets[index];
                match joined {
                    Ok(seat) if socket.state == State::Joining => {
                        socket.state = State::Open;
                        socket.seat = Some(seat);
                    }
                    // It went away meanwhile.
                    Ok(seat) => hub.leave(&seat),
                    Err(_) => socket.state = State::Closed,
                }
            });
        };
        self.network.after(0, Some(node), Box::new(join));
    }

    pub(super) fn leave(self: &Rc<Self>, index: usize, delay: u64) {
        let node = self.sockets.borrow()[index].node;
        let it = Rc::clone(self);
        let leave = move || {
            let seat = {
                let socket = &mut it.sockets.borrow_mut()[index];
                if socket.state != State::Overwritten {
                    socket.state = State::Closed;
                }
                socket.seat.take()
            };
            if let (Some(hub), Some(seat)) = (it.hub(node), seat) {
                hub.leave(&seat);
            }
        };
        self.network.after(delay, Some(node), Box::new(leave));
    }

    pub(super) fn send_later(self: &Rc<Self>, index: usize) {
        let node = self.sockets.borrow()[index].node;
        let it = Rc::clone(self);
        let send = move || it.send(index);
        self.network.after(0, Some(node), Box::new(send));
    }

    pub(super) fn send(self: &Rc<Self>, index: usize) {
        let (hub, seat, mut parcel) = {
            let mut sockets = self.sockets.borrow_mut();
            let socket = &mut sockets[index];
            let (Some(hub), Some(seat)) = (self.hub(socket.node), socket.seat.clone()) else {
                return;
            };
            let parcel = match &socket.waits {
                Some((_, parcel)) => parcel.clone(),
                None => {
                    socket.sent += 1;
                    let streams = [0x01, 0x02, 0x80, 0x80, 0x81];
                    let stream = self.any(&streams).unwrap();
                    let mut frame = vec![stream];
                    frame.extend(u32::try_from(index).unwrap().to_le_bytes());
                    frame.extend(socket.sent.to_le_bytes());
                    frame.extend(u32::try_from(socket.user).unwrap().to_le_bytes());
                    Parcel::Frame(Bytes::from(frame))
                }
            };
            (hub, seat, parcel)
        };
        let sent = hub.send(&seat, &mut parcel, Instant::now());
        let now = self.network.now.get();
        let mut sockets = self.sockets.borrow_mut();
        let socket = &mut sockets[index];
        if sent != Sent::Wait {
            socket.waits = None;
            return;
        }
        let (since, _) = *socket.waits.get_or_insert((now, parcel));
        drop(sockets);
        if now - since >= SECOND / 2 {
            hub.on_marker_overdue(&seat);
        }
        let it = Rc::clone(self);
        let again = move || it.send(index);
        let node = self.sockets.borrow()[index].node;
        self.network.after(SECOND / 10, Some(node), Box::new(again));
    }

    // ---- what clients read

    pub(super) fn blame(&self, index: usize, what: &str) {
        let at = self.network.now.get() / 1000;
        self.wrong.borrow_mut().push(format!("at {at} ms, socket {index}: {what}"));
    }

    /// Every client of an instance that runs reads what waits for it.
    pub(super) fn read_all(self: &Rc<Self>) {
        let count = self.sockets.borrow().len();
        for index in 0..count {
            let (node, seat) = {
                let sockets = self.sockets.borrow();
                let socket = &sockets[index];
                match (&socket.seat, socket.state) {
                    (Some(seat), State::Open) => (socket.node, Rc::clone(seat)),
                    _ => continue,
                }
            };
            if self.network.nodes.borrow()[node].paused_until > self.network.now.get() {
                continue;
            }
            while let Some(message) = seat.with_outbox(|outbox| outbox.pop()) {
                match message.kind {
                    Kind::Text => self.on_text(index, &message.bytes),
                    Kind::Binary => self.on_frame(index, &message.bytes),
                }
            }
            let goodbye = seat.with_outbox(|outbox| outbox.goodbye());
            if let Some((last, close)) = goodbye {
                if close != Close::Overwritten {
                    self.blame(index, "closed for another reason");
                }
                self.sockets.borrow_mut()[index].state = State::Overwritten;
                self.on_overwritten(index, &last.unwrap_or_default());
                self.leave(index, self.network.below(SECOND));
            }
        }
    }

    pub(super) fn on_text(&self, index: usize, text: &[u8]) {
        let message: Value = serde_json::from_slice(text).unwrap();
        let member = |value: &Value| {
            let connection = value["connection"].as_str()?.to_owned();
            Some((connection, value["generation"].as_u64()?))
        };
        let mut sockets = self.sockets.borrow_mut();
        let socket = &mut sockets[index];
        let is_first = socket.generation == 0;
        let wrong = match message["type"].as_str().unwrap() {
            "welcome" => {
                socket.generation = message["generation"].as_u64().unwrap();
                socket.peer = member(&message["peer"]);
                let is_mine = message["uid"] == self.users[socket.user].uid();
                (!is_first || !is_mine).then_some("a second welcome, or another user's")
            }
            _ if is_first => Some("not welcomed first"),
            "peer" => {
                socket.has_heard_of_peer = true;
                let now = member(&message);
                if message["state"] == "connected" {
                    let before = std::mem::replace(&mut socket.peer, now);
                    (before == socket.peer).then_some("the same peer is connected twice")
                } else {
                    let before = socket.peer.take();
                    (before != now).then_some("another peer is disconnected than was connected")
                }
            }
            "backplane" => None,
            _ => Some("an unexpected message"),
        };
        drop(sockets);
        if let Some(wrong) = wrong {
            self.blame(index, &format!("{wrong}: {message}"));
        }
    }

    pub(super) fn on_frame(&self, index: usize, frame: &[u8]) {
        let (stream, from) = (frame[0], number(&frame[1..5]) as usize);
        let (count, user) = (number(&frame[5..9]), number(&frame[9..13]) as usize);
        let mut sockets = self.sockets.borrow_mut();
        let sender = &sockets[from];
        let (is_peer, generation) = (
            sender.user == sockets[index].user
                && user == sockets[index].user
                && sender.device == sockets[index].device.other(),
            sender.generation,
        );
        let sender = sender.connection.to_string();
        let socket = &mut sockets[index];
        // All reliable streams are one lane.
        let lane = if stream >= 0x80 { 0x80 } else { stream };
        let last = socket.last.insert((from, lane), count).unwrap_or(0);
        // What an older peer sent reliably before the welcome stands behind it, and volatile frames may come
        // just before their sender is announced.
        let is_announced = match &socket.peer {
            Some((_, known)) if !socket.has_heard_of_peer => stream >= 0x80 || generation >= *known,
            None if !socket.has_heard_of_peer => true,
            Some((peer, known)) => *peer == sender || (stream < 0x80 && generation > *known),
            None => stream < 0x80,
        };
        let wrong = if socket.generation == 0 {
            Some("a frame before the welcome")
        } else if !is_peer {
            Some("a foreign frame")
        } else if last >= count {
            Some("a frame that is late or comes twice")
        } else if !is_announced {
            Some("a frame of somebody who is not the peer")
        } else {
            None
        };
        let peer = socket.peer.clone();
        drop(sockets);
        if let Some(wrong) = wrong {
            let frame = format!("{count} of socket {from} (generation {generation}) on stream {stream:#x}");
            self.blame(index, &format!("{wrong}: {frame}, its peer is {peer:?}"));
        }
    }

    pub(super) fn on_overwritten(&self, index: usize, last: &[u8]) {
        let message: Value = serde_json::from_slice(last).unwrap_or_default();
        let generation = message["by"]["generation"].as_u64().unwrap_or_default();
        let winner = message["by"]["connection"].as_str().unwrap_or_default();
        let sockets = self.sockets.borrow();
        let socket = &sockets[index];
        let is_true = self.network.claims.borrow().iter().any(|(user, device, member)| {
            *user == self.users[socket.user]
                && *device == socket.device
                && member.connection.to_string() == winner
                && member.generation == Generation(generation)
        });
        let is_fair = is_true && generation > socket.generation;
        drop(sockets);
        if !is_fair {
            self.blame(index, &format!("overwritten by nobody: {message}"));
        }
    }
}

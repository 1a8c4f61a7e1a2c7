//! The floor: the same frames with as little work as a program can do. It gives the relay's cost as a
//! multiple.
//!
//! Frames go TCP -> Redis PUBLISH -> TCP on one single-threaded process for each `PORT`. There is one channel
//! for each user, which both of its devices' processes hear. Nobody signs in, and there are no rooms, no
//! fencing, no limits, no heartbeats and no queues with a policy. Of WebSocket there is just what the load
//! generator needs. It gets the right answer to its handshake, messages are whole frames, and
//! `?client=load-USER-DEVICE` names the caller.
//!
//! `floor PORT REDIS_PORT`
#![allow(clippy::print_stderr, reason = "a program for measurements")]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;

/// What waits for one socket.
#[derive(Default)]
struct Outbox {
    bytes: RefCell<BytesMut>,
    some: Notify,
}

impl Outbox {
    fn push(&self, write: impl FnOnce(&mut BytesMut)) {
        let mut bytes = self.bytes.borrow_mut();
        write(&mut bytes);
        self.some.notify_one();
    }

    async fn write_all(self: Rc<Self>, mut socket: OwnedWriteHalf) -> io::Result<()> {
        loop {
            self.some.notified().await;
            let mut waiting = self.bytes.take();
            socket.write_all(&waiting).await?;
            // The same memory again, if nothing came meanwhile.
            waiting.clear();
            let mut bytes = self.bytes.borrow_mut();
            if bytes.is_empty() {
                *bytes = waiting;
            } else {
                self.some.notify_one();
            }
        }
    }
}

/// A user's connections here.
type Members = Vec<(u64, Rc<Outbox>)>;

struct Floor {
    redis: Rc<Outbox>,
    /// By user.
    users: RefCell<HashMap<String, Members>>,
    /// Distinguished from other processes' connections by the port in it.
    next: Cell<u64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, port, redis] = arguments.as_slice() else {
        return Err("usage: floor PORT REDIS_PORT".into());
    };
    tokio::task::LocalSet::new().run_until(serve(port.parse()?, redis.parse()?)).await?;
    Ok(())
}

async fn serve(port: u16, redis: u16) -> io::Result<()> {
    let redis = TcpStream::connect(("127.0.0.1", redis)).await?;
    redis.set_nodelay(true)?;
    let (answers, commands) = redis.into_split();
    let floor = Rc::new(Floor {
        redis: Rc::default(),
        users: RefCell::default(),
        next: Cell::new(u64::from(port) << 32),
    });
    // RESP3: a connection that subscribes may also publish.
    floor.redis.push(|bytes| bytes.put_slice(b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n"));
    spawn_local(floor.redis.clone().write_all(commands));
    spawn_local(floor.clone().hear(answers));
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (socket, _) = listener.accept().await?;
        let floor = floor.clone();
        spawn_local(async move {
            if let Err(error) = floor.live(socket).await {
                eprintln!("floor: {error}");
            }
        });
    }
}

impl Floor {
    async fn live(&self, mut socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let mut received = BytesMut::with_capacity(4096);
        let user = loop {
            if socket.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
            if let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = received.split_to(end + 4);
                let (user, answer) = handshake(&head).ok_or(io::ErrorKind::InvalidData)?;
                socket.write_all(&answer).await?;
                break user;
            }
        };
        let (mut reader, writer) = socket.into_split();
        let outbox = Rc::<Outbox>::default();
        let connection = self.next.replace(self.next.get() + 1);
        self.join(&user, connection, outbox.clone());
        let writing = spawn_local(outbox.write_all(writer));
        let read = self.read(&user, connection, &mut reader, &mut received).await;
        writing.abort();
        self.leave(&user, connection);
        read
    }

    fn join(&self, user: &str, connection: u64, outbox: Rc<Outbox>) {
        let mut users = self.users.borrow_mut();
        let members = users.entry(user.to_owned()).or_default();
        if members.is_empty() {
            self.redis.push(|bytes| command(bytes, &[b"SUBSCRIBE", user.as_bytes()]));
        }
        members.push((connection, outbox));
    }

    fn leave(&self, user: &str, connection: u64) {
        let mut users = self.users.borrow_mut();
        if let Some(members) = users.get_mut(user) {
            members.retain(|(id, _)| *id != connection);
            if members.is_empty() {
                users.remove(user);
                self.redis.push(|bytes| command(bytes, &[b"UNSUBSCRIBE", user.as_bytes()]));
            }
        }
    }

    /// Publishes each message behind the number of its connection.
    async fn read(
        &self,
        user: &str,
        connection: u64,
        reader: &mut OwnedReadHalf,
        received: &mut BytesMut,
    ) -> io::Result<()> {
        let mut payload = Vec::new();
        loop {
            while let Some((opcode, length)) = message(received, &mut payload) {
                received.advance(length);
                if opcode != 2 {
                    return Ok(());
                }
                self.redis.push(|bytes| {
                    bytes.put_slice(b"*3\r\n$7\r\nPUBLISH\r\n");
                    bulk(bytes, user.as_bytes());
                    bytes.put_slice(format!("${}\r\n", payload.len() + 8).as_bytes());
                    bytes.put_u64(connection);
                    bytes.put_slice(&payload);
                    bytes.put_slice(b"\r\n");
                });
            }
            if reader.read_buf(received).await? == 0 {
                return Ok(());
            }
        }
    }

    /// What Redis says: messages go to the user's connections here but the sender's.
    async fn hear(self: Rc<Self>, mut answers: OwnedReadHalf) -> io::Result<()> {
        let mut received = BytesMut::with_capacity(1 << 16);
        loop {
            let mut parts = Vec::new();
            while let Some(length) = resp(&received, &mut parts) {
                if let [kind, user, message] = parts.as_slice()
                    && received.get(kind.clone()) == Some(b"message")
                    && let (Some(user), Some(message)) =
                        (received.get(user.clone()), received.get(message.clone()))
                {
                    self.deliver(user, message);
                }
                received.advance(length);
                parts.clear();
            }
            if answers.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        }
    }

    fn deliver(&self, user: &[u8], message: &[u8]) {
        let users = self.users.borrow();
        let members = std::str::from_utf8(user).ok().and_then(|user| users.get(user));
        let (Some(members), Some((sender, payload))) = (members, message.split_first_chunk()) else {
            return;
        };
        let sender = u64::from_be_bytes(*sender);
        for (_, outbox) in members.iter().filter(|(id, _)| *id != sender) {
            outbox.push(|bytes| {
                header(bytes, 2, payload.len());
                bytes.put_slice(payload);
            });
        }
    }
}

/// The user, and what the client wants to read: 101 and a welcome.
fn handshake(head: &[u8]) -> Option<(String, BytesMut)> {
    let head = std::str::from_utf8(head).ok()?;
    let (_, client) = head.split_once("client=")?;
    let (user, _) = client.split_whitespace().next()?.rsplit_once('-')?;
    // A balancer may write the name in lower case.
    let mut headers = head.lines().filter_map(|line| line.split_once(": "));
    let (_, key) = headers.find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))?;
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let mut answer =
        BytesMut::from("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n");
    answer.put_slice(format!("Sec-WebSocket-Accept: {accept}\r\n").as_bytes());
    answer.put_slice(b"Sec-WebSocket-Protocol: duorelay.v1\r\n\r\n");
    let welcome = br#"{"type":"welcome"}"#;
    header(&mut answer, 1, welcome.len());
    answer.put_slice(welcome);
    Some((user.to_owned(), answer))
}

/// The head of a whole, unmasked WebSocket message (RFC 6455 section 5.2).
#[expect(clippy::cast_possible_truncation, reason = "in range where it is cast")]
fn header(bytes: &mut BytesMut, opcode: u8, length: usize) {
    bytes.put_u8(0x80 | opcode);
    match length {
        0..126 => bytes.put_u8(length as u8),
        126..65536 => {
            bytes.put_u8(126);
            bytes.put_u16(length as u16);
        }
        _ => {
            bytes.put_u8(127);
            bytes.put_u64(length as u64);
        }
    }
}

/// Takes one whole message of a client into `payload`; its opcode and length, `None` while it is incomplete.
fn message(received: &[u8], payload: &mut Vec<u8>) -> Option<(u8, usize)> {
    let opcode = received.first()? & 0x0f;
    let (length, head) = match received.get(1)? & 0x7f {
        126 => (usize::from(u16::from_be_bytes(*received.get(2..)?.first_chunk()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(*received.get(2..)?.first_chunk()?)).ok()?, 10),
        short => (usize::from(short), 2),
    };
    let mask: [u8; 4] = *received.get(head..)?.first_chunk()?;
    let masked = received.get(head + 4..head + 4 + length)?;
    payload.clear();
    payload.extend(masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    Some((opcode, head + 4 + length))
}

fn bulk(bytes: &mut BytesMut, part: &[u8]) {
    bytes.put_slice(format!("${}\r\n", part.len()).as_bytes());
    bytes.put_slice(part);
    bytes.put_slice(b"\r\n");
}

fn command(bytes: &mut BytesMut, parts: &[&[u8]]) {
    bytes.put_slice(format!("*{}\r\n", parts.len()).as_bytes());
    parts.iter().for_each(|part| bulk(bytes, part));
}

/// The length of one whole RESP value; where its strings are goes to `parts`. Nested values are flattened.
fn resp(received: &[u8], parts: &mut Vec<std::ops::Range<usize>>) -> Option<usize> {
    let (mut at, mut left) = (0, 1_usize);
    while left > 0 {
        let rest = received.get(at..)?;
        let end = rest.iter().position(|byte| *byte == b'\n')? + 1;
        let number = || std::str::from_utf8(rest.get(1..end)?.trim_ascii()).ok()?.parse::<usize>().ok();
        at += end;
        left -= 1;
        match rest.first()? {
            b'*' | b'>' => left += number()?,
            b'%' => left += 2 * number()?,
            b'$' => {
                let length = number()?;
                received.get(at..at + length + 2)?;
                parts.push(at..at + length);
                at += length + 2;
            }
            _ => {}
        }
    }
    Some(at)
}

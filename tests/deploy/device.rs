//! A device that makes before it breaks, as the contract asks of clients (section 4.3): told to `reconnect`,
//! it opens its next connection first, and lets the old one go only when the new one is welcomed.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::{LIMIT, Token, within};

type WebSocket = WebSocketStream<TcpStream>;

const VOLATILE: u8 = 0x01;
const RELIABLE: u8 = 0x80;
const FRAME_BYTES: usize = 300;

/// Opens a v1 connection.
pub async fn connect(to: SocketAddr, uid: &str, query: &str) -> Result<WebSocket, Error> {
    let mut request = format!("ws://{to}/ws?{query}").into_client_request()?;
    let offer = format!("duorelay.v1, {}", Token::firebase(uid).sign());
    let name = "sec-websocket-protocol";
    request.headers_mut().insert(name, offer.parse().unwrap());
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
    Ok(socket)
}

/// What a device has seen when it is done.
#[derive(Debug, Default)]
pub struct Seen {
    /// Reliable frames that it sent.
    pub sent: u32,
    /// Reliable frames that it received, by number, in the order of arrival.
    pub received: Vec<u32>,
    /// The longest time between two volatile frames.
    pub silence: Duration,
    /// Connections that it opened after the first one.
    pub moves: usize,
}

enum Event {
    /// Of the connection with this number; `None` when it has ended.
    From(usize, Option<Message>),
    Opened(Box<WebSocket>),
}

/// One device of a user.
pub struct Device {
    to: SocketAddr,
    uid: String,
    query: String,
    events: mpsc::Receiver<Event>,
    tell: mpsc::Sender<Event>,
    /// The connection that was welcomed last, and its number.
    current: (usize, SplitSink<WebSocket, Message>),
    /// One that is open and not welcomed yet.
    next: Option<SplitSink<WebSocket, Message>>,
    /// From the moment at which the next connection is begun to its welcome.
    moving: bool,
    held: VecDeque<Message>,
    pongs: u32,
    last_volatile: Option<Instant>,
    /// So far.
    pub seen: Seen,
}

impl Device {
    /// Connects; the welcome has been read.
    pub async fn start(to: SocketAddr, user: usize, device: &str) -> Self {
        let uid = format!("user-{user}");
        let query = format!("device={device}&client={device}-{user}");
        let socket = within(LIMIT, "a handshake", connect(to, &uid, &query)).await;
        let (sink, mut stream) = socket.unwrap().split();
        let welcome = within(LIMIT, "a welcome", stream.next()).await;
        assert_eq!(kind(&welcome.unwrap().unwrap())["type"], "welcome");
        let (tell, events) = mpsc::channel(64);
        tokio::spawn(read(0, stream, tell.clone()));
        Self {
            to,
            uid,
            query,
            events,
            tell,
            current: (0, sink),
            next: None,
            moving: false,
            held: VecDeque::new(),
            pongs: 0,
            last_volatile: None,
            seen: Seen::default(),
        }
    }

    /// Sends 30 volatile and 10 reliable frames a second until `streaming` turns false.
    pub async fn send(&mut self, mut streaming: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / 30);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut move_at = None;
        let mut count = 0u32;
        loop {
            tokio::select! {
                _ = streaming.changed() => break,
                Some(event) = self.events.recv() => self.on_event(event, &mut move_at).await,
                () = at(move_at), if move_at.is_some() => self.begin_to_move(&mut move_at).await,
                _ = ticks.tick() => {
                    count += 1;
                    self.send_now(frame(VOLATILE, count)).await;
                    if count.is_multiple_of(3) {
                        let reliable = frame(RELIABLE, self.seen.sent);
                        self.seen.sent += 1;
                        if self.moving {
                            self.held.push_back(reliable);
                        } else {
                            self.send_now(reliable).await;
                        }
                    }
                }
            }
        }
        // What is held goes out with the welcome that is awaited.
        while self.moving {
            let event = within(LIMIT, "the welcome", self.events.recv()).await;
            self.on_event(event.unwrap(), &mut move_at).await;
        }
    }

    /// Receives until `expected` says how many reliable frames there are, and all of them are here.
    pub async fn receive(&mut self, mut expected: watch::Receiver<Option<u32>>) {
        let mut move_at = None;
        let mut limit = None;
        loop {
            let wanted = *expected.borrow();
            if let Some(wanted) = wanted {
                if self.seen.received.len() >= wanted as usize {
                    return;
                }
                // Nothing volatile is sent any more: silence means nothing now.
                self.last_volatile = None;
                limit.get_or_insert(Instant::now() + LIMIT);
            }
            tokio::select! {
                _ = expected.changed(), if wanted.is_none() => {}
                Some(event) = self.events.recv() => self.on_event(event, &mut move_at).await,
                () = at(move_at), if move_at.is_some() => self.begin_to_move(&mut move_at).await,
                // What has not come by now is lost; the test says how much.
                () = at(limit), if limit.is_some() => return,
            }
        }
    }

    /// Holds what is reliable, and asks whether all that was sent has left the old relay: what it passes on
    /// after the claim of the next connection is dropped, even if it was sent before.
    async fn begin_to_move(&mut self, move_at: &mut Option<Instant>) {
        *move_at = None;
        self.moving = true;
        self.ask().await;
    }

    /// The first pong says that all frames have been read. They leave in that turn of the relay's loop, and
    /// the second one comes from a later turn.
    async fn on_pong(&mut self) {
        self.pongs += 1;
        if self.pongs.is_multiple_of(2) {
            self.open_next();
        } else {
            self.ask().await;
        }
    }

    async fn ask(&mut self) {
        self.send_now(Message::text(r#"{"type":"ping"}"#)).await;
    }

    fn open_next(&self) {
        let (to, uid, query) = (self.to, self.uid.clone(), self.query.clone());
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let socket = within(LIMIT, "a handshake", connect(to, &uid, &query)).await;
            let socket = socket.unwrap_or_else(|error| panic!("{uid} was not let in: {error}"));
            let _ = tell.send(Event::Opened(Box::new(socket))).await;
        });
    }

    async fn on_event(&mut self, event: Event, move_at: &mut Option<Instant>) {
        match event {
            Event::Opened(socket) => {
                let (sink, stream) = (*socket).split();
                self.next = Some(sink);
                tokio::spawn(read(self.current.0 + 1, stream, self.tell.clone()));
            }
            Event::From(number, Some(Message::Text(_))) if number < self.current.0 => {}
            Event::From(number, Some(message @ Message::Text(_))) => {
                let message = kind(&message);
                match message["type"].as_str().unwrap() {
                    "welcome" => {
                        self.current = (number, self.next.take().unwrap());
                        self.moving = false;
                        self.seen.moves += 1;
                        while let Some(reliable) = self.held.pop_front() {
                            self.send_now(reliable).await;
                        }
                    }
                    "reconnect" => {
                        let wait = Duration::from_millis(message["in_ms"].as_u64().unwrap());
                        *move_at = Some(Instant::now() + wait);
                    }
                    "pong" => self.on_pong().await,
                    "peer" | "overwritten" => {}
                    other => panic!("{} got {other}: {message}", self.uid),
                }
            }
            Event::From(_, Some(Message::Binary(bytes))) => self.on_frame(&bytes),
            Event::From(number, None | Some(Message::Close(_))) => {
                // The claim of the next connection ends this one, and comes before the answer to its handshake.
                assert!(
                    number < self.current.0 || self.moving,
                    "{} lost its only connection",
                    self.uid
                );
            }
            Event::From(..) => {}
        }
    }

    fn on_frame(&mut self, bytes: &[u8]) {
        let number = u32::from_be_bytes(bytes[1..5].try_into().unwrap());
        if bytes[0] == RELIABLE {
            self.seen.received.push(number);
        } else {
            let now = Instant::now();
            if let Some(last) = self.last_volatile.replace(now) {
                self.seen.silence = self.seen.silence.max(now - last);
            }
        }
    }

    async fn send_now(&mut self, message: Message) {
        // An old connection may end while the next one is on its way; reliable frames are held then.
        let sent = within(LIMIT, "room to send", self.current.1.send(message)).await;
        assert!(sent.is_ok() || self.moving, "{} cannot send", self.uid);
    }
}

/// Until then; for ever without.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn read(number: usize, mut stream: SplitStream<WebSocket>, tell: mpsc::Sender<Event>) {
    while let Some(Ok(message)) = stream.next().await {
        if tell.send(Event::From(number, Some(message))).await.is_err() {
            return;
        }
    }
    let _ = tell.send(Event::From(number, None)).await;
}

fn kind(message: &Message) -> Value {
    serde_json::from_str(message.to_text().unwrap()).unwrap()
}

fn frame(stream: u8, number: u32) -> Message {
    let mut bytes = vec![0; FRAME_BYTES];
    bytes[0] = stream;
    bytes[1..5].copy_from_slice(&number.to_be_bytes());
    Message::binary(bytes)
}

//! One connection: it sends, and looks at everything that it reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::frame::{Frame, Mark};
use crate::record::{End, Record};
use crate::support::{Client, Event};

/// Volatile streams, reliable ones; `send` is the third reliable way.
const VOLATILE: [u8; 2] = [0x00, 0x41];
const RELIABLE: [u8; 2] = [0x80, 0xC1];
/// A client whose bytes are not taken for this long looks for another instance.
const PATIENCE: Duration = Duration::from_secs(4);

/// What a device asks of its connection.
#[derive(Debug)]
pub enum Command {
    /// Sends no reliable frames any more: another connection is about to be opened. Answered when what was sent has
    /// arrived, so that it does not race with the other one's claim: the pong is a barrier.
    Hush(oneshot::Sender<()>),
    /// Sends nothing.
    Silence,
    /// Closes in order.
    Close,
    /// TCP is reset.
    Reset,
    /// Neither reads nor writes any more, and TCP stays.
    Vanish,
    /// One that had vanished reads what there is.
    Return,
}

/// What a connection reports to its device.
#[derive(Debug, Clone, Copy)]
pub enum Notice {
    /// It is over.
    Ended(u32, End),
    /// The relay asks it to come back elsewhere.
    Move(u32, Duration),
}

/// A connection's task.
pub struct Connection {
    pub client: Client,
    pub number: u32,
    pub user: u32,
    pub device: usize,
    pub generation: u64,
    pub record: Arc<Record>,
    pub commands: mpsc::UnboundedReceiver<Command>,
    pub notices: mpsc::UnboundedSender<Notice>,
    pub turn: Duration,
    /// To go on with when its token is about to expire.
    pub fresh: Option<Arc<str>>,
    pub(crate) state: State,
}

/// What a connection knows of itself and its peer.
#[derive(Debug)]
pub(crate) struct State {
    speaks: bool,
    sends: bool,
    vanished: bool,
    /// Asked for an end of its own.
    leaves: bool,
    reliable: u32,
    volatile: [u32; 2],
    turns: usize,
    /// No frame of an older generation may come: reliable, volatile.
    floors: [u64; 2],
    /// The last number of each sender's lane.
    last: BTreeMap<(u32, u8), u32>,
    closed: Option<u16>,
    /// Waits for the pong.
    hushing: Option<oneshot::Sender<()>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            speaks: true,
            sends: true,
            vanished: false,
            leaves: false,
            reliable: 0,
            volatile: [0; 2],
            turns: 0,
            floors: [0; 2],
            last: BTreeMap::new(),
            closed: None,
            hushing: None,
        }
    }
}

impl Connection {
    /// Lives until the connection has ended.
    pub async fn live(mut self) {
        if let Some(generation) = self.client.welcome["peer"]["generation"].as_u64() {
            // The `welcome` goes before everything. An older peer may have sent reliably since this
            // connection's claim and before its own end. That may still come behind the `welcome`.
            self.state.floors[1] = generation;
        }
        let start = Instant::now() + self.turn.mul_f64(f64::from(self.number % 64) / 64.0);
        let mut turns = interval_at(start, self.turn);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            tokio::select! {
                event = self.client.next_within(Duration::MAX), if !self.state.vanished => {
                    if let Some(end) = self.on_event(event).await {
                        break end;
                    }
                }
                command = self.commands.recv() => {
                    let Some(command) = command else { break End::Own };
                    if let Some(end) = self.on_command(command).await {
                        break end;
                    }
                }
                _ = turns.tick(), if self.state.sends && !self.state.vanished => {
                    if !self.send().await {
                        break End::Own;
                    }
                }
            }
        };
        self.record.ended(self.number, end);
        // A device that has gone needs no notice.
        let _ = self.notices.send(Notice::Ended(self.number, end));
    }

    async fn on_command(&mut self, command: Command) -> Option<End> {
        match command {
            Command::Hush(done) => {
                self.state.speaks = false;
                self.state.hushing = Some(done);
                let ping = Message::text(json!({"type": "ping"}).to_string());
                // One that has ended already says so when it is read.
                let _ = timeout(PATIENCE, self.client.try_send(ping)).await;
            }
            Command::Silence => self.state.sends = false,
            Command::Close => {
                self.state.leaves = true;
                self.state.sends = false;
                self.state.vanished = false;
                // One that has ended already says so when it is read.
                let _ = timeout(PATIENCE, self.client.try_send(Message::Close(None))).await;
            }
            Command::Reset => {
                self.client.reset_on_drop();
                return Some(End::Own);
            }
            Command::Vanish => {
                self.state.vanished = true;
                self.record.with(self.number, |known| known.vanished = Some(Instant::now()));
            }
            Command::Return => {
                self.state.vanished = false;
                self.state.sends = false;
            }
        }
        None
    }

    /// True unless nobody takes the bytes.
    async fn send(&mut self) -> bool {
        let calm = if self.record.is_calm.load(Ordering::Relaxed) { Mark::Calm } else { Mark::None };
        let mut messages = vec![self.volatile(calm)];
        if self.state.speaks {
            messages.push(self.reliable(calm));
        }
        for message in messages {
            match timeout(PATIENCE, self.client.try_send(message)).await {
                Ok(Ok(())) => {}
                // Its end is yet to be read.
                Ok(Err(_)) => self.state.sends = false,
                Err(_) => return false,
            }
        }
        true
    }

    fn frame(&self, number: u32, mark: Mark) -> Frame {
        let device = u8::try_from(self.device).unwrap();
        Frame { user: self.user, device, sender: self.number, generation: self.generation, number, mark }
    }

    fn volatile(&mut self, mark: Mark) -> Message {
        self.state.turns += 1;
        let stream = self.state.turns % 2;
        self.state.volatile[stream] += 1;
        let frame = self.frame(self.state.volatile[stream], mark);
        Message::binary(frame.encode(VOLATILE[stream]))
    }

    fn reliable(&mut self, mark: Mark) -> Message {
        self.state.reliable += 1;
        let frame = self.frame(self.state.reliable, mark);
        if mark == Mark::Calm {
            self.record.calm_sent.lock().unwrap().push((self.number, frame.number));
        }
        match self.state.reliable % 3 {
            2 => Message::text(json!({"type": "send", "data": frame.to_json()}).to_string()),
            way => Message::binary(frame.encode(RELIABLE[way as usize])),
        }
    }

    async fn on_event(&mut self, event: Event) -> Option<End> {
        match event {
            Event::Binary(bytes) => match Frame::decode(&bytes) {
                Some(frame) => self.on_frame(bytes[0], frame),
                None => self.wrong(&format!("a frame is not whole: {bytes:?}")),
            },
            Event::Text(text) => match serde_json::from_str(&text) {
                Ok(message) => self.on_message(&message).await,
                Err(error) => self.wrong(&format!("{error} in {text}")),
            },
            Event::Close(code, _) => self.state.closed = Some(code),
            Event::End if self.state.leaves => return Some(End::Own),
            Event::End => return Some(self.state.closed.map_or(End::Cut, End::Closed)),
        }
        None
    }

    async fn on_message(&mut self, message: &Value) {
        if message["type"] != "message" {
            let notice = format!("{:.3} {message}", self.record.start.elapsed().as_secs_f64());
            self.record.with(self.number, |known| {
                known.notices.push(notice);
                known.notices.drain(..known.notices.len().saturating_sub(12));
            });
        }
        match message["type"].as_str().unwrap_or_default() {
            "message" => match Frame::from_json(&message["data"]) {
                Some(frame) => self.on_frame(RELIABLE[0], frame),
                None => self.wrong(&format!("not a frame: {message}")),
            },
            "peer" => self.on_peer(message),
            "overwritten" => {
                self.record.count(&self.record.overwritten);
                self.record.with(self.number, |known| known.was_overwritten = true);
                if message["by"]["generation"].as_u64().is_none_or(|by| by <= self.generation) {
                    self.wrong(&format!("overwritten by an older one: {message}"));
                }
                // Nothing of this may arrive.
                self.state.sends = false;
                let late = [self.volatile(Mark::Late), self.reliable(Mark::Late)];
                for message in late {
                    let _ = timeout(PATIENCE, self.client.try_send(message)).await;
                }
            }
            "pong" => {
                if let Some(done) = self.state.hushing.take() {
                    // A device that waits no more needs no answer.
                    let _ = done.send(());
                }
            }
            "expiring" => {
                if let Some(token) = &self.fresh {
                    let auth = json!({"type": "auth", "token": &**token}).to_string();
                    // Where the connection has ended, that is yet to be read.
                    let _ = timeout(PATIENCE, self.client.try_send(Message::text(auth))).await;
                }
            }
            "authenticated" => {
                let expires = message["expires_at"].as_i64();
                self.record.with(self.number, |known| known.expires = expires.unwrap_or_default());
            }
            "reconnect" => {
                self.record.with(self.number, |known| known.was_asked_to_move = true);
                let pause = Duration::from_millis(message["in_ms"].as_u64().unwrap_or_default());
                let _ = self.notices.send(Notice::Move(self.number, pause));
            }
            "error" if message["code"] == "peer_absent" => {
                // Who has vanished reads late what was true before.
                let has_vanished = self.record.with(self.number, |known| known.vanished.is_some());
                if self.record.is_calm.load(Ordering::Relaxed) && !has_vanished {
                    self.record.calm_absent.lock().unwrap().push((self.user, self.number));
                }
            }
            // While the relay's line to Redis is down and its queue is full.
            "error" if message["code"] == "backplane_unavailable" => {}
            "backplane" => {
                let has_vanished = self.record.with(self.number, |known| known.vanished.is_some());
                if self.record.is_calm.load(Ordering::Relaxed) && !has_vanished {
                    self.record.is_disturbed.store(true, Ordering::Relaxed);
                }
            }
            _ => self.wrong(&format!("unexpected: {message}")),
        }
    }

    fn on_peer(&mut self, message: &Value) {
        let Some(generation) = message["generation"].as_u64() else {
            return self.wrong(&format!("no generation: {message}"));
        };
        let newest = self.state.floors[0].max(self.state.floors[1]);
        if generation >= newest {
            self.state.floors = [generation; 2];
        } else if message["state"] == "connected" {
            if !self.record.has_lost_data.load(Ordering::Relaxed) {
                self.wrong(&format!("an older peer than {newest}: {message}"));
            }
            self.state.floors = [generation; 2];
        }
    }

    fn on_frame(&mut self, stream: u8, frame: Frame) {
        let reliable = stream >= 0x80;
        let lane = if reliable { RELIABLE[0] } else { stream };
        if frame.user != self.user || usize::from(frame.device) != 1 - self.device {
            self.wrong(&format!("a foreign frame: {frame:?}"));
        }
        if frame.mark == Mark::Late {
            self.wrong(&format!("an overwritten connection reached this one: {frame:?}"));
        }
        let floor = &mut self.state.floors[usize::from(!reliable)];
        if frame.generation < *floor {
            let floor = *floor;
            self.wrong(&format!("a frame from an older connection than {floor}: {frame:?}"));
        } else {
            *floor = frame.generation;
        }
        let last = self.state.last.insert((frame.sender, lane), frame.number);
        if last.is_some_and(|last| last >= frame.number) {
            self.wrong(&format!("{frame:?} came after {last:?} on {lane:#x}"));
        }
        self.record.count(&self.record.frames);
        if frame.mark == Mark::Calm && reliable {
            let received = (frame.sender, frame.number, self.number);
            self.record.calm_received.lock().unwrap().push(received);
        }
        let at = Instant::now();
        self.record.with(self.number, |known| {
            known.heard[usize::from(!reliable)] = Some((frame.sender, at));
            if reliable {
                let range = known.received.entry((frame.sender, reliable));
                range.or_insert((frame.number, frame.number)).1 = frame.number;
            }
        });
    }

    fn wrong(&self, what: &str) {
        self.record.wrong_for(self.user, &format!("#{}: {what}", self.number));
    }
}

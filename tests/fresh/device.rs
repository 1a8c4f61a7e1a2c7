//! A device that streams, as the libraries do it: it reports what it reads, and holds frames by the law.

use std::collections::BTreeMap;
use std::time::Duration;

use duorelay::relay::pacing::{Kind, Pacing, Reporter};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::support::{Client, Event};

/// Frames a second.
pub const FPS: f64 = 30.0;
const STREAM: u8 = 1;

/// What one device does.
#[derive(Debug, Clone, Copy)]
pub struct Habit {
    pub frame_bytes: usize,
    /// It reports what it reads, and holds frames by what the relay reports. A raw client does neither.
    pub reports: bool,
}

/// What one device made and read.
#[derive(Debug, Default)]
pub struct Record {
    /// When each of its frames was made, in seconds.
    pub made: Vec<f64>,
    /// When each frame of the other device arrived, and how old it was.
    pub arrived: Vec<(f64, f64)>,
    /// Its other messages, by their type.
    pub texts: BTreeMap<String, u32>,
    /// How the connection ended before its time.
    pub ended: Option<Event>,
}

/// Bytes on the wire of a message that a client sends.
fn wire_bytes(payload: usize) -> u32 {
    let head = if payload < 126 { 6 } else { 8 };
    u32::try_from(payload + head).unwrap()
}

struct Device {
    client: Client,
    habit: Habit,
    start: Instant,
    pacing: Pacing,
    reporter: Reporter,
    asked: u16,
    /// The frame that waits.
    waiting: Option<f64>,
    record: Record,
}

/// Streams until then, after so many messages were read, of which the last is reported at once. Both devices count the time
/// from `start`.
pub async fn stream(client: Client, habit: Habit, read: u32, start: Instant, until: Instant) -> Record {
    let mut device = Device {
        client,
        habit,
        start,
        pacing: Pacing::new(0.0, 0, true),
        reporter: Reporter::new(read - 1),
        asked: duorelay::relay::pacing::SLOW_PACE,
        waiting: None,
        record: Record::default(),
    };
    device.reporter.on_read(device.ms(), true);
    device.go(until).await;
    device.record
}

impl Device {
    fn ms(&self) -> f64 {
        Instant::now().saturating_duration_since(self.start).as_secs_f64() * 1_000.0
    }

    fn at(&self, ms: f64) -> Instant {
        self.start + Duration::from_secs_f64(ms.clamp(0.0, 1e9) / 1_000.0) + Duration::from_micros(1)
    }

    async fn go(&mut self, until: Instant) {
        let mut tick = Instant::now();
        while Instant::now() < until && self.record.ended.is_none() {
            let now = self.ms();
            if Instant::now() >= tick {
                tick += Duration::from_secs_f64(1.0 / FPS);
                self.record.made.push(now / 1_000.0);
                self.waiting = Some(now);
            }
            let look_at = self.push(now).await;
            let next = tick.min(look_at).min(until);
            tokio::select! {
                event = self.client.next() => self.on_event(event),
                () = sleep_until(next) => {}
            }
        }
    }

    /// Sends what may leave now; when to look again.
    async fn push(&mut self, now: f64) -> Instant {
        if !self.habit.reports {
            if let Some(made) = self.waiting.take() {
                self.send_frame(made).await;
            }
            return self.at(1e9);
        }
        if let Some((messages, time)) = self.reporter.report(now) {
            self.send_quiet(now, json!({"type": "received", "messages": messages, "time": time})).await;
        }
        let mut look_at = self.reporter.due_at();
        if let Some(made) = self.waiting {
            let leaves_at = self.pacing.may_leave_at(now, Kind::Volatile);
            if leaves_at <= now {
                self.waiting = None;
                self.pacing.on_sent(now, wire_bytes(self.habit.frame_bytes), Kind::Volatile);
                self.send_frame(made).await;
            } else {
                look_at = look_at.min(leaves_at);
            }
        }
        if self.pacing.pace() != self.asked {
            self.asked = self.pacing.pace();
            self.send_quiet(now, json!({"type": "reports", "every_ms": self.asked})).await;
        }
        self.at(look_at)
    }

    async fn send_frame(&mut self, made: f64) {
        let mut payload = vec![0; self.habit.frame_bytes - 1];
        payload[..8].copy_from_slice(&made.to_be_bytes());
        self.client.send_frame(STREAM, &payload).await;
    }

    async fn send_quiet(&mut self, now: f64, message: Value) {
        let text = message.to_string();
        self.pacing.on_sent(now, wire_bytes(text.len()), Kind::Quiet);
        self.client.send_text(&text).await;
    }

    fn on_event(&mut self, event: Event) {
        let now = self.ms();
        match event {
            Event::Binary(bytes) => {
                self.reporter.on_read(now, true);
                let made = f64::from_be_bytes(bytes[1..9].try_into().unwrap());
                self.record.arrived.push((now / 1_000.0, (now - made) / 1_000.0));
            }
            Event::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                let kind = message["type"].as_str().unwrap().to_owned();
                let is_quiet = matches!(kind.as_str(), "received" | "reports" | "ping" | "pong");
                self.reporter.on_read(now, !is_quiet);
                match kind.as_str() {
                    "received" => {
                        let messages = u32::try_from(message["messages"].as_u64().unwrap()).unwrap();
                        let time = message["time"].as_f64().unwrap();
                        self.pacing.on_report(now, messages, time).expect("a report that can be true");
                    }
                    "reports" => {
                        let every_ms = message["every_ms"].as_u64().unwrap();
                        self.reporter.set_pace(u16::try_from(every_ms).unwrap());
                    }
                    _ => {}
                }
                *self.record.texts.entry(kind).or_default() += 1;
            }
            end @ (Event::Close(..) | Event::End) => self.record.ended = Some(end),
        }
    }
}

//! The socket's loop over a stream in memory, on a clock that moves by itself when nothing else does.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::LocalSet;
use tokio::time::Instant as Clock;
use uuid::Uuid;

use super::*;
use crate::auth::settings::{Issuer, Settings};
use crate::edge::gate::Gate;
use crate::hub::Joining;
use crate::metrics::Metrics;
use crate::relay::budget::Budget;
use crate::relay::ids::{ConnectionId, Device, InstanceId, UserId};
use crate::relay::protocol::{ClientLimits, Protocol};
use crate::relay::session::{CLOSE_LIMIT, LAST_LOOK, STALL_LIMIT};

const HEARTBEAT: Duration = Duration::from_secs(25);

/// A worker without a thread, a gate or a network.
struct Worker {
    hub: Rc<Hub>,
    sockets: Rc<Sockets>,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
}

/// The other end of a socket, and how the socket's task ends.
struct Client {
    stream: DuplexStream,
    task: JoinHandle<()>,
}

impl Worker {
    fn new(budget: usize) -> Self {
        let settings = HubSettings {
            instance: InstanceId(Uuid::from_u128(1)),
            limits: ClientLimits {
                message_bytes: 65_536,
                messages_per_second: 0,
                queue_bytes: 1 << 20,
                bytes_per_second: 0,
            },
            features: vec![Feature::Received],
            stun: Vec::new(),
            heartbeat: HEARTBEAT,
            lease: Duration::from_secs(10),
            budget: Budget::new(budget),
        };
        let metrics = Arc::new(Metrics::default());
        let issuer = Issuer::Emulator { project_id: "test".into(), host: "127.0.0.1:1".into() };
        let verifier = Verifier::start(Settings { issuer, revocation: None }, &metrics).unwrap();
        let socket = SocketSettings {
            verifier,
            message_bytes: 65_536,
            enforce_expiry: true,
            max_lifetime: None,
            leave_within: Duration::from_secs(30),
        };
        let sockets = Rc::new(Sockets::new(socket, &settings));
        let hub = Hub::alone(settings, Arc::clone(&metrics));
        Self { hub, sockets, gate: Gate::new(None, None, vec![], None), metrics }
    }

    /// A v1 connection whose stream holds so many bytes on each way.
    async fn join(&self, device: Device, holds: usize) -> Client {
        self.join_as("ann", device, holds).await
    }

    async fn join_as(&self, user: &str, device: Device, holds: usize) -> Client {
        let user = UserId::new(user).unwrap();
        let expires_at = crate::auth::unix_now() + 24 * 3600;
        let joining = Joining {
            user: user.clone(),
            device,
            client: None,
            attempt: None,
            protocol: Protocol::V1,
            label: "ann".into(),
            expires_at,
        };
        let identity = Identity { user, email: None, expires_at, issued_at: 0, auth_time: None };
        let connection = ConnectionId(Uuid::new_v4());
        let seat = self.hub.join(joining, connection).await.unwrap();
        let admission = self.gate.admit().unwrap();
        let (stream, ours) = duplex(holds);
        let (hub, sockets) = (Rc::clone(&self.hub), Rc::clone(&self.sockets));
        let socket = Socket::new(hub, seat, sockets, Stream::Memory(ours), &[], identity, admission);
        let mut client = Client { stream, task: tokio::task::spawn_local(socket.run()) };
        assert!(client.text().await.starts_with(r#"{"type":"welcome""#));
        client
    }
}

impl Client {
    /// One frame, with a mask of zeros.
    async fn send(&mut self, opcode: u8, payload: &[u8]) {
        let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126);
        let mut frame = vec![0x80 | opcode, 0x80 | length.unwrap_or(126)];
        if length.is_none() {
            frame.extend((payload.len() as u16).to_be_bytes());
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.stream.write_all(&frame).await.unwrap();
    }

    /// The next frame: its opcode and its payload.
    async fn next(&mut self) -> (u8, Vec<u8>) {
        let first = self.stream.read_u8().await.unwrap();
        let length = match self.stream.read_u8().await.unwrap() {
            126 => usize::from(self.stream.read_u16().await.unwrap()),
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await.unwrap();
        (first & 0x0F, payload)
    }

    async fn text(&mut self) -> String {
        let (opcode, payload) = self.next().await;
        assert_eq!(opcode, 1);
        String::from_utf8(payload).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_socket_is_pinged_and_closed_on_time_and_one_that_speaks_goes_on() {
    let test = async {
        let worker = Worker::new(1 << 30);
        let start = Clock::now();
        let mut desktop = worker.join(Device::Desktop, 65_536).await;
        desktop.send(1, br#"{"type":"ping","id":"a"}"#).await;
        assert!(desktop.text().await.starts_with(r#"{"type":"pong","id":"a""#));
        assert_eq!(desktop.next().await, (9, vec![]), "a WebSocket ping");
        assert_eq!(start.elapsed().as_secs(), HEARTBEAT.as_secs());
        desktop.send(10, b"").await;
        assert_eq!(desktop.next().await, (9, vec![]));
        assert_eq!(start.elapsed().as_secs(), 2 * HEARTBEAT.as_secs());
        // From here on it is silent.
        let (opcode, close) = desktop.next().await;
        assert_eq!((opcode, &close[..2]), (8, &4009_u16.to_be_bytes()[..]));
        let silent = 3 * HEARTBEAT + LAST_LOOK;
        assert!(start.elapsed() >= silent && start.elapsed() < silent + Duration::from_millis(10));
        desktop.task.await.unwrap();
        assert!(
            start.elapsed() >= silent + CLOSE_LIMIT && start.elapsed() < silent + CLOSE_LIMIT + HEARTBEAT
        );
        assert_eq!(worker.metrics.heartbeats_missed.get(), 1);
        worker.hub.count_waiting();
        assert_eq!(worker.metrics.users.get(), 0);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_speaks_and_takes_nothing_is_closed_and_a_slow_one_stays() {
    let test = async {
        let worker = Worker::new(1 << 30);
        let mut mobile = worker.join(Device::Mobile, 65_536).await;
        let mut slow = worker.join(Device::Desktop, 1024).await;
        let start = Clock::now();
        mobile.send(2, &[0x80; 60_000]).await;
        // It takes 600 bytes in 50 s, and is alive.
        for _ in 0..5 {
            for _ in 0..5 {
                tokio::time::advance(Duration::from_secs(10)).await;
                slow.send(10, b"").await;
                mobile.send(10, b"").await;
                tokio::task::yield_now().await;
            }
            let mut some = [0; 600];
            slow.stream.read_exact(&mut some).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!((worker.metrics.stalled.get(), start.elapsed().as_secs()), (0, 250));
        // Now it takes nothing, and is as alive as before.
        while worker.metrics.stalled.get() == 0 {
            tokio::time::advance(Duration::from_secs(1)).await;
            slow.send(10, b"").await;
            mobile.send(10, b"").await;
            tokio::task::yield_now().await;
            assert!(start.elapsed().as_secs() < 400);
        }
        let since = start.elapsed().as_secs() - 250;
        assert!((STALL_LIMIT.as_secs() - 1..=STALL_LIMIT.as_secs() + 2).contains(&since), "{since} s");
        slow.task.await.unwrap();
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_socket_holds_is_given_back() {
    let test = async {
        let worker = Worker::new(1 << 30);
        let mut mobile = worker.join(Device::Mobile, 16 * 1024).await;
        let mut desktop = worker.join(Device::Desktop, 512).await;
        while !mobile.text().await.contains(r#""type":"peer""#) {}
        let buffered = || {
            worker.hub.count_waiting();
            (worker.metrics.incoming_bytes.get(), worker.metrics.outbox_bytes.get())
        };
        assert_eq!(buffered(), (0, 0));
        // Half of a message, then the rest of it.
        mobile.stream.write_all(&[0x82, 0xFE, 0x75, 0x30, 0, 0, 0, 0, 0x80]).await.unwrap();
        mobile.stream.write_all(&[7; 14_999]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (incoming, outgoing) = buffered();
        assert!((15_000..30_200).contains(&incoming) && outgoing == 0, "{incoming} {outgoing}");
        mobile.stream.write_all(&[7; 15_000]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (incoming, outgoing) = buffered();
        assert!(incoming == 0 && (29_000..31_000).contains(&outgoing), "{incoming} {outgoing}");
        assert_eq!(desktop.next().await.1.len(), 30_000);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(buffered(), (0, 0));
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn past_the_budget_of_the_process_the_fullest_go_first() {
    let test = async {
        let worker = Worker::new(1 << 20);
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for user in ["a", "b", "c"] {
            receivers.push(worker.join_as(user, Device::Desktop, 512).await);
            senders.push(worker.join_as(user, Device::Mobile, 16 * 1024).await);
        }
        let [small, volatile, reliable] = &mut senders[..] else { panic!() };
        small.send(2, &[0x80; 50_000]).await;
        // 900 KB of 18 streams; then what is reliable passes the budget.
        for stream in 0..18 {
            volatile.send(2, &[stream; 50_000]).await;
        }
        for _ in 0..8 {
            reliable.send(2, &[0x80; 50_000]).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(worker.metrics.closes("4008"), 0, "volatile frames are enough");
        for _ in 0..12 {
            reliable.send(2, &[0x80; 50_000]).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        worker.hub.count_waiting();
        let waiting = worker.metrics.outbox_bytes.get();
        assert!(waiting < (1 << 20) + 64 * 1024, "{waiting}");
        // The fullest had to go; the others are still there.
        tokio::time::timeout(Duration::from_secs(10), receivers.pop().unwrap().task).await.unwrap().unwrap();
        assert_eq!(worker.metrics.closes("4008"), 1);
        assert!(receivers.iter().all(|receiver| !receiver.task.is_finished()));
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_an_overwritten_connection_goes_before_anybody_who_is_here() {
    let test = async {
        let worker = Worker::new(1 << 20);
        let overwritten = worker.join_as("a", Device::Desktop, 512).await;
        let mut sender = worker.join_as("a", Device::Mobile, 16 * 1024).await;
        for _ in 0..16 {
            sender.send(2, &[0x80; 50_000]).await;
        }
        let _newer = worker.join_as("a", Device::Desktop, 512).await;
        let receiver = worker.join_as("b", Device::Desktop, 512).await;
        let mut sender = worker.join_as("b", Device::Mobile, 16 * 1024).await;
        for _ in 0..8 {
            sender.send(2, &[0x80; 50_000]).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        // Its goodbye still comes.
        tokio::time::timeout(Duration::from_secs(10), overwritten.task).await.unwrap().unwrap();
        assert_eq!(worker.metrics.closes("4001"), 1);
        // A close that the receiver does not take is tried for 5 s: it would have counted by now.
        assert_eq!(worker.metrics.closes("4008"), 0);
        assert!(!receiver.task.is_finished());
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_report_that_is_nearly_due_leaves_with_a_frame() {
    let test = async {
        let worker = Worker::new(1 << 30);
        let mut desktop = worker.join(Device::Desktop, 65_536).await;
        let mut mobile = worker.join(Device::Mobile, 65_536).await;
        let (mut reported, mut read) = (Vec::new(), 1);
        for step in 0..50 {
            tokio::time::sleep(Duration::from_millis(89)).await;
            mobile.send(2, &[1, 7]).await;
            desktop.send(2, &[1, 7]).await;
            let report = format!(r#"{{"type":"received","messages":{read},"time":{}}}"#, step * 90);
            desktop.send(1, report.as_bytes()).await;
            while let Ok((opcode, payload)) =
                tokio::time::timeout(Duration::from_millis(1), desktop.next()).await
            {
                read += 1;
                if opcode == 1 && payload.starts_with(br#"{"type":"received""#) {
                    let report: serde_json::Value = serde_json::from_slice(&payload).unwrap();
                    reported.push(report["messages"].as_u64().unwrap());
                }
            }
        }
        // Reports are due each 500 ms once the first second is over. The frame before that comes 50 ms earlier, with the
        // fifth pair of messages.
        let news: Vec<u64> = reported.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(news.ends_with(&[10; 6]), "{news:?}");
    };
    LocalSet::new().run_until(test).await;
}

/// A silent connection is the usual one: what it takes is multiplied by all of them.
#[test]
fn a_socket_is_small() {
    assert!(size_of::<Socket>() <= 672, "{} bytes", size_of::<Socket>());
}

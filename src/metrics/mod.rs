//! What this process counts, in Prometheus's text formats.
//!
//! No label holds a uid, a token or an address. Every label has few values, all of them known here. A series
//! that has not counted yet is 0, not absent, so that dashboards and alerts see it from the start.

mod durations;
mod labels;
mod process;
#[cfg(test)]
mod tests;
mod text;

use std::cell::Cell;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

pub use self::durations::Durations;
use self::labels::{By, ByCode, Label};
pub use self::labels::{
    ClaimResult, Dropped, HttpEnded, KeyRefresh, Path, PublishResult, RenewResult, TakeOver,
};
pub use self::text::Format;
use crate::relay::ids::Device;
use crate::relay::protocol::Protocol;
use crate::relay::refusal::Refusal;

/// The codes that the relay itself sends, and those of clients that it repeats; a client's own are `other`.
const CLOSES: &[&str] =
    &["1000", "1001", "1002", "1007", "1008", "1009", "1012", "1013", "4001", "4002", "4003", "4008", "4009"];

/// What `error` messages say; the rest are refusals of a fresh token.
const ERRORS: &[&str] = &[
    "bad_json",
    "unknown_type",
    "bad_field",
    "empty_frame",
    "peer_absent",
    "ack_unsupported",
    "rate_limited",
    "backplane_unavailable",
    "wrong_user",
    "token_expired",
    "token_not_yet_valid",
    "wrong_audience",
    "wrong_issuer",
    "bad_signature",
    "unknown_key",
    "malformed_token",
    "token_revoked",
    "user_disabled",
];

/// Why the backplane does not do what a handshake needs.
pub const TROUBLES: [&str; 15] = [
    "silent",
    "unreachable",
    "readonly",
    "oom",
    "noreplicas",
    "misconf",
    "loading",
    "masterdown",
    "clusterdown",
    "busy",
    "password",
    "noperm",
    "undelivered",
    "owner",
    "other",
];

/// One worker's part of a gauge that is the sum of all workers' parts.
#[derive(Debug)]
pub struct WorkerGauge {
    gauge: Gauge,
    mine: Cell<i64>,
}

impl WorkerGauge {
    /// A part of this gauge, 0 so far.
    #[must_use]
    pub fn of(gauge: &Gauge) -> Self {
        Self { gauge: gauge.clone(), mine: Cell::new(0) }
    }

    /// What this worker's part is now.
    pub fn set(&self, value: usize) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.gauge.inc_by(value - self.mine.replace(value));
    }
}

/// Makes metrics that are registered under their names.
struct Register<'a>(&'a mut Registry);

type LabelSet = Vec<(&'static str, &'static str)>;

impl Register<'_> {
    fn one<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }

    /// Registers `NAME_seconds`.
    fn seconds<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }

    /// Registers `NAME_bytes`.
    fn bytes<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register_with_unit(name, help, Unit::Bytes, metric.clone());
        metric
    }

    fn by<L: Label>(&mut self, name: &str, help: &str, label: &'static str) -> By<L> {
        let family: Family<LabelSet, Counter> = self.one(name, help);
        By::new(|value: L| family.get_or_create_owned(&vec![(label, value.as_str())]))
    }

    fn by_code(&mut self, name: &str, help: &str, label: &'static str, codes: &[&'static str]) -> ByCode {
        let family: Family<LabelSet, Counter> = self.one(name, help);
        ByCode::new(codes.iter().copied(), |code| family.get_or_create_owned(&vec![(label, code)]))
    }
}

/// All counters of a process; workers share them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    connections: [[Gauge; 2]; 2],
    handshakes: ByCode,
    /// Volatile ones, then reliable ones.
    frames: [By<Path>; 2],
    frame_bytes: [By<Path>; 2],
    dropped: By<Dropped>,
    overwritten: By<TakeOver>,
    closes: ByCode,
    errors: ByCode,
    claims: By<ClaimResult>,
    renewals: By<RenewResult>,
    publishes: By<PublishResult>,
    key_refreshes: By<KeyRefresh>,
    http_closed: By<HttpEnded>,
    max_connections: Gauge<f64, AtomicU64>,
    max_message_bytes: Gauge,
    max_queue_bytes: Gauge,
    /// What all queues of the process may hold together.
    pub budget_bytes: Gauge,
    /// Read from one socket to handed to the other, inside this instance.
    pub relay_seconds: Durations,
    /// Frames that the window of their path held for a while.
    frames_held: Counter,
    /// The queue on the path to a client, as its reports show it.
    pub path_queue_seconds: Durations,
    /// From the question to the backplane to its answer.
    pub claim_seconds: Durations,
    /// How long it takes to verify a token, whatever comes of it.
    pub verify_seconds: Durations,
    /// Connections that speak HTTP: not upgraded yet, or never.
    pub http_connections: Gauge,
    /// Connections that were closed because no whole request came in time.
    pub requests_overdue: Counter,
    /// Pairs of connections whose clients have arranged a direct path, by their signals.
    pub direct_paths: Counter,
    /// Volatile frames that those pairs no longer send by the relay, by their rate before.
    pub direct_frames: Counter,
    /// Connections that were dropped because nothing came from them for two heartbeats.
    pub heartbeats_missed: Counter,
    /// Connections that were closed because they took nothing of what waited for them.
    pub stalled: Counter,
    /// Pings, pongs and empty fragments past their rate.
    pub control_frames_limited: Counter,
    /// Bytes that wait for sockets, as of the last second.
    pub outbox_bytes: Gauge,
    /// Bytes of messages that have not come whole, or may not go on yet, as of the last second.
    pub incoming_bytes: Gauge,
    /// Connections for which anything waits, as of the last second.
    pub waiting_connections: Gauge,
    /// Users with a connection here, as of the last second.
    pub users: Gauge,
    /// 1 from the beginning of a drain.
    pub draining: Gauge,
    /// 1 while the relay refuses new handshakes, because the control group's memory is nearly used.
    pub memory_short: Gauge,
    /// The part of the slots that the backplane serves for all workers: 0 or 1, except on a cluster.
    pub backplane_up: Gauge<f64, AtomicU64>,
    backplane_troubles: [(&'static str, Gauge); TROUBLES.len()],
    /// Round trip of the last message that this instance published to itself.
    pub backplane_probe_seconds: Gauge<f64, AtomicU64>,
    /// Bytes that wait for the backplane, or for its answer.
    pub backplane_queue_bytes: Gauge,
    /// Times at which messages of the backplane may have been lost.
    pub backplane_gaps: Counter,
    /// Messages that came from the backplane on the channels of devices.
    pub backplane_deliveries: Counter,
    /// Messages that came and were lost, because nobody took them in time.
    pub backplane_lagged: Counter,
    /// Connections to the backplane that were made.
    pub backplane_connects: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process::starting_now()));
        let ours = registry.sub_registry_with_prefix("duorelay");
        ours.register("build", "This program", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        let mut new = Register(ours);

        let connections: Family<LabelSet, Gauge> =
            new.one("connections", "Open WebSockets that hold a slot or did");
        let frames: Family<LabelSet, Counter> = new.one("frames", "Messages from a device to the other one");
        let frame_bytes: Family<LabelSet, Counter> = new.bytes("frame", "Payload of those messages");
        let queue_bytes: Family<LabelSet, Gauge> = new.bytes(
            "queue",
            "What waits for sockets (outbox), of sockets (incoming), and for the backplane or its answer (backplane)",
        );
        let troubles: Family<LabelSet, Gauge> =
            new.one("backplane_trouble", "Nodes of the backplane that do not do what a handshake needs");
        let by_way = |family: &Family<LabelSet, Counter>| {
            ["volatile", "reliable"].map(|lane| {
                By::new(|path: Path| {
                    family.get_or_create_owned(&vec![("lane", lane), ("path", path.as_str())])
                })
            })
        };
        let results: Vec<_> = Refusal::ALL.map(Refusal::code).into_iter().chain(["accepted"]).collect();
        Self {
            connections: Device::ALL.map(|device| {
                [Protocol::Classic, Protocol::V1].map(|protocol| {
                    let labels = vec![("device", device.as_str()), ("protocol", protocol.as_str())];
                    connections.get_or_create_owned(&labels)
                })
            }),
            handshakes: new.by_code("handshakes", "WebSocket handshakes by result", "result", &results),
            frames: by_way(&frames),
            frame_bytes: by_way(&frame_bytes),
            dropped: new.by("dropped", "Messages that were not delivered", "cause"),
            overwritten: new.by("overwritten", "Connections that lost their slot to a newer one", "cause"),
            closes: new.by_code("closes", "Close frames sent", "code", CLOSES),
            errors: new.by_code("errors", "Error messages sent to clients", "code", ERRORS),
            claims: new.by("claims", "Claims of slots by result", "result"),
            renewals: new.by("renewals", "Renewals of slots by result", "result"),
            publishes: new.by(
                "backplane_publishes",
                "Messages published on the channels of devices",
                "result",
            ),
            key_refreshes: new.by("key_refreshes", "Fetches of the issuer's keys by result", "result"),
            http_closed: new.by(
                "http_closed",
                "Connections without an upgrade that were closed, or not let in, by cause",
                "cause",
            ),
            max_connections: new.one("max_connections", "Configured limit of connections; +Inf without one"),
            max_message_bytes: new.bytes("max_message", "Configured limit of a message"),
            budget_bytes: new.bytes("queue_budget", "What all queues of the process may hold together"),
            max_queue_bytes: new.bytes("max_queue", "Configured limit of what waits for one connection"),
            relay_seconds: new.seconds("relay", "From one socket to the other, inside this instance"),
            frames_held: new
                .one("frames_held", "Volatile frames that waited, as the path to their receiver had a queue"),
            path_queue_seconds: new
                .seconds("path_queue", "Queue on the way to a client, as its reports show it"),
            claim_seconds: new.seconds("claim", "Duration of claims"),
            verify_seconds: new.seconds("verify", "Duration of verifying a token, whatever the verdict"),
            http_connections: new
                .one("http_connections", "Connections that speak HTTP: not upgraded yet, or never"),
            requests_overdue: new
                .one("requests_overdue", "Connections that were closed, as no whole request came in time"),
            direct_paths: new
                .one("direct_paths", "Pairs of connections whose clients have arranged a direct path"),
            direct_frames: new.one(
                "direct_frames",
                "Estimate of the volatile frames that took a direct path, by their rate before it",
            ),
            heartbeats_missed: new.one(
                "heartbeats_missed",
                "Connections that were dropped, as nothing came from them for two heartbeats",
            ),
            stalled: new
                .one("stalled", "Connections that were closed, as they took nothing of what waited for them"),
            control_frames_limited: new.one(
                "control_frames_limited",
                "Pings, pongs and empty fragments past their rate, which were not answered",
            ),
            incoming_bytes: queue_bytes.get_or_create_owned(&vec![("queue", "incoming")]),
            outbox_bytes: queue_bytes.get_or_create_owned(&vec![("queue", "outbox")]),
            waiting_connections: new.one("waiting_connections", "Connections for which anything waits"),
            users: new.one("users", "Users with a connection here"),
            draining: new.one("draining", "1 from the beginning of a drain"),
            memory_short: new
                .one("memory_short", "1 while nobody new is let in, because memory is nearly used"),
            backplane_up: new.one(
                "backplane_up",
                "1 while the backplane answers; on a cluster the part of the slots that is served",
            ),
            backplane_troubles: TROUBLES
                .map(|cause| (cause, troubles.get_or_create_owned(&vec![("cause", cause)]))),
            backplane_probe_seconds: new
                .seconds("backplane_probe", "Round trip of the last probe through the backplane"),
            backplane_queue_bytes: queue_bytes.get_or_create_owned(&vec![("queue", "backplane")]),
            backplane_gaps: new.one("backplane_gaps", "Times at which messages may have been lost"),
            backplane_deliveries: new
                .one("backplane_deliveries", "Messages that came on the channels of devices"),
            backplane_lagged: new
                .one("backplane_lagged", "Messages that came from the backplane and were lost here"),
            backplane_connects: new.one("backplane_connects", "Connections to the backplane that were made"),
            registry,
        }
    }
}

impl Metrics {
    /// How many nodes of the backplane have this trouble, one of [`TROUBLES`].
    pub fn backplane_trouble(&self, cause: &str, nodes: usize) {
        if let Some((_, gauge)) = self.backplane_troubles.iter().find(|(known, _)| *known == cause) {
            gauge.set(i64::try_from(nodes).unwrap_or(i64::MAX));
        }
    }

    /// All metrics as one text of the format.
    #[must_use]
    pub fn encode(&self, format: Format) -> String {
        let mut text = String::new();
        // Writing to a string fails only if a metric's own encoder does.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        match format {
            Format::OpenMetrics => text,
            Format::Text => text::older(&text),
        }
    }

    /// What was configured; `None` is no limit.
    pub fn limits(&self, connections: Option<u32>, message_bytes: usize, queue_bytes: usize) {
        let size = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.max_connections.set(connections.map_or(f64::INFINITY, f64::from));
        self.max_message_bytes.set(size(message_bytes));
        self.max_queue_bytes.set(size(queue_bytes));
    }

    fn connection(&self, device: Device, protocol: Protocol) -> &Gauge {
        let [[desktop_classic, desktop_v1], [mobile_classic, mobile_v1]] = &self.connections;
        match (device, protocol) {
            (Device::Desktop, Protocol::Classic) => desktop_classic,
            (Device::Desktop, Protocol::V1) => desktop_v1,
            (Device::Mobile, Protocol::Classic) => mobile_classic,
            (Device::Mobile, Protocol::V1) => mobile_v1,
        }
    }

    /// A connection was registered.
    pub fn connected(&self, device: Device, protocol: Protocol) {
        self.connection(device, protocol).inc();
    }

    /// A connection has ended.
    pub fn disconnected(&self, device: Device, protocol: Protocol) {
        self.connection(device, protocol).dec();
    }

    /// A handshake was answered.
    pub fn handshake(&self, refusal: Option<Refusal>) {
        self.handshakes.of(refusal.map_or("accepted", Refusal::code)).inc();
    }

    /// A message goes to the other device.
    pub fn frame(&self, reliable: bool, path: Path, bytes: usize) {
        let way = usize::from(reliable);
        self.frames[way].of(path).inc();
        self.frame_bytes[way].of(path).inc_by(bytes as u64);
    }

    /// So many frames begin to wait for their path.
    pub fn frames_held(&self, frames: usize) {
        if frames > 0 {
            self.frames_held.inc_by(frames as u64);
        }
    }

    /// Messages that will not be delivered.
    pub fn dropped(&self, cause: Dropped, messages: usize) {
        if messages > 0 {
            self.dropped.of(cause).inc_by(messages as u64);
        }
    }

    /// A connection without an upgrade was closed, or not let in.
    pub fn http_ended(&self, ended: HttpEnded) {
        self.http_closed.of(ended).inc();
        if ended == HttpEnded::Overdue {
            self.requests_overdue.inc();
        }
    }

    /// How many of them so far.
    #[must_use]
    pub fn http_closed(&self, ended: HttpEnded) -> u64 {
        self.http_closed.of(ended).get()
    }

    /// A connection lost its slot.
    pub fn overwritten(&self, how: TakeOver) {
        self.overwritten.of(how).inc();
    }

    /// A claim was answered, or not.
    pub fn claimed(&self, result: ClaimResult) {
        self.claims.of(result).inc();
    }

    /// A renewal was answered, or not.
    pub fn renewed(&self, result: RenewResult) {
        self.renewals.of(result).inc();
    }

    /// A publish was answered, or not.
    pub fn published(&self, result: PublishResult) {
        self.publishes.of(result).inc();
    }

    /// The issuer's keys were fetched, or could not be.
    pub fn keys_refreshed(&self, result: KeyRefresh) {
        self.key_refreshes.of(result).inc();
    }

    /// A client got an `error`.
    pub fn error_sent(&self, code: &str) {
        self.errors.of(code).inc();
    }

    /// A close frame was sent. The client chooses the code that its own close is answered with.
    pub fn closed(&self, code: u16) {
        self.closes.of(&code.to_string()).inc();
    }

    /// How many close frames with this code were sent so far.
    #[must_use]
    pub fn closes(&self, code: &str) -> u64 {
        self.closes.of(code).get()
    }
}

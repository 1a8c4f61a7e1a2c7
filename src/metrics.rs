//! What this process counts, in Prometheus's text format (OpenMetrics 1.0).
//!
//! No label holds a uid, a token or an address.

mod process;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::encoding::{
    EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::relay::ids::Device;
use crate::relay::protocol::Protocol;

/// A label with one text value out of a small, fixed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Text(pub &'static str);

impl EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

/// `{device, protocol}`
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabels {
    device: Text,
    protocol: Text,
}

/// `{result}`: `accepted`, or the code of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    result: Text,
}

/// `{cause}`
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CauseLabel {
    cause: Text,
}

/// `{code}`: a WebSocket close code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    code: u16,
}

/// `{lane, path}`
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FrameLabels {
    lane: Text,
    path: Text,
}

/// Why a frame was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// A newer frame of its stream took its place.
    Superseded,
    /// All waiting volatile frames together were past the limit.
    QueueFull,
    /// Nobody held the other slot.
    PeerAbsent,
    /// The sender was past its rate.
    Rate,
    /// Its sender had lost its slot.
    Overwritten,
    /// The slot that it waited for changed hands.
    PeerChanged,
    /// It waited too long for the backplane, or the backplane's queue was full.
    Backplane,
    /// It came on a lane and was not readable.
    Unreadable,
}

impl Dropped {
    const ALL: [Self; 8] = [
        Self::Superseded,
        Self::QueueFull,
        Self::PeerAbsent,
        Self::Rate,
        Self::Overwritten,
        Self::PeerChanged,
        Self::Backplane,
        Self::Unreadable,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::QueueFull => "queue_full",
            Self::PeerAbsent => "peer_absent",
            Self::Rate => "rate",
            Self::Overwritten => "overwritten",
            Self::PeerChanged => "peer_changed",
            Self::Backplane => "backplane",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Which way a frame took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// In memory: both sockets are here.
    Local,
    /// Over the backplane, counted where it is published.
    Backplane,
}

/// What came of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PublishResult {
    /// Somebody was subscribed.
    Heard,
    /// Nobody was.
    Unheard,
    /// It was refused, or not answered.
    Failed,
}

/// Upper bounds of the buckets, in seconds.
const BUCKETS: [f64; 14] = [
    0.000_05,
    0.000_1,
    0.000_25,
    0.000_5,
    0.001,
    0.002_5,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    1.0,
    f64::INFINITY,
];

/// A histogram of durations that takes no lock: the library's own takes one, and this one is on the
/// frame path.
#[derive(Debug, Clone, Default)]
pub struct Durations(Arc<DurationsInner>);

#[derive(Debug, Default)]
struct DurationsInner {
    counts: [AtomicU64; BUCKETS.len()],
    sum_ns: AtomicU64,
}

impl Durations {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len() - 1);
        if let Some(count) = self.0.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.0.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut buckets = [(0.0, 0); BUCKETS.len()];
        let mut total = 0;
        for ((bucket, bound), count) in buckets.iter_mut().zip(BUCKETS).zip(&self.0.counts) {
            let count = count.load(Ordering::Relaxed);
            total += count;
            *bucket = (bound, count);
        }
        #[expect(clippy::cast_precision_loss, reason = "a sum of seconds needs no more than 52 bits")]
        let sum = self.0.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(sum, total, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// All counters of a process; workers share them.
#[derive(Debug)]
pub struct Metrics {
    registry: RwLock<Registry>,
    connections: Family<ConnectionLabels, Gauge>,
    handshakes: Family<ResultLabel, Counter>,
    frames: [Counter; 4],
    frame_bytes: Counter,
    dropped: Family<CauseLabel, Counter>,
    overwritten: Family<CauseLabel, Counter>,
    closes: Family<CodeLabel, Counter>,
    claims: Family<ResultLabel, Counter>,
    renewals: Family<ResultLabel, Counter>,
    publishes: [Counter; 3],
    /// Read from one socket to handed to the other, inside this instance.
    pub relay_seconds: Durations,
    /// From the question to the backplane to its answer.
    pub claim_seconds: Durations,
    /// 1 while the backplane answers all workers.
    pub backplane_up: Gauge,
    /// Round trip of the last message that this instance published to itself.
    pub backplane_probe_seconds: Gauge<f64, AtomicU64>,
    /// Times at which messages of the backplane may have been lost.
    pub backplane_gaps: Counter,
    /// Messages that came from the backplane on the lanes of devices.
    pub backplane_deliveries: Counter,
    /// Messages that came and were lost, because nobody took them in time.
    pub backplane_lagged: Counter,
    /// Connections to the backplane that were made.
    pub backplane_connects: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut root = Registry::default();
        root.register_collector(Box::new(process::Process));
        let registry = root.sub_registry_with_prefix("duorelay");
        let frames: Family<FrameLabels, Counter> = Family::default();
        let frame = |lane, path| {
            let labels = FrameLabels { lane: Text(lane), path: Text(path) };
            frames.get_or_create(&labels).clone()
        };
        let publishes: Family<ResultLabel, Counter> = Family::default();
        let publish = |result| {
            let labels = ResultLabel { result: Text(result) };
            publishes.get_or_create(&labels).clone()
        };
        let metrics = Self {
            registry: RwLock::default(),
            connections: Family::default(),
            handshakes: Family::default(),
            frames: [
                frame("volatile", "local"),
                frame("volatile", "backplane"),
                frame("reliable", "local"),
                frame("reliable", "backplane"),
            ],
            frame_bytes: Counter::default(),
            dropped: Family::default(),
            overwritten: Family::default(),
            closes: Family::default(),
            claims: Family::default(),
            renewals: Family::default(),
            publishes: [publish("heard"), publish("unheard"), publish("failed")],
            relay_seconds: Durations::default(),
            claim_seconds: Durations::default(),
            backplane_up: Gauge::default(),
            backplane_probe_seconds: Gauge::default(),
            backplane_gaps: Counter::default(),
            backplane_deliveries: Counter::default(),
            backplane_lagged: Counter::default(),
            backplane_connects: Counter::default(),
        };
        // A series that has not counted yet is 0, not absent: dashboards and alerts see it from the start.
        for cause in Dropped::ALL {
            let _ = metrics.dropped.get_or_create(&CauseLabel { cause: Text(cause.as_str()) });
        }
        for cause in ["hand_over", "eviction"] {
            let _ = metrics.overwritten.get_or_create(&CauseLabel { cause: Text(cause) });
        }
        let _ = metrics.handshakes.get_or_create(&ResultLabel { result: Text("accepted") });
        registry.register(
            "connections",
            "Open WebSockets that hold a slot or did",
            metrics.connections.clone(),
        );
        registry.register("handshakes", "WebSocket handshakes by result", metrics.handshakes.clone());
        registry.register("frames", "Messages from a device to the other one", frames);
        registry.register("frame_bytes", "Payload of those messages", metrics.frame_bytes.clone());
        registry.register("dropped", "Messages that were not delivered", metrics.dropped.clone());
        registry.register(
            "overwritten",
            "Connections that lost their slot to a newer one",
            metrics.overwritten.clone(),
        );
        registry.register("closes", "Close frames sent", metrics.closes.clone());
        registry.register(
            "relay_seconds",
            "From one socket to the other, inside this instance",
            metrics.relay_seconds.clone(),
        );
        registry.register("claims", "Claims of slots by result", metrics.claims.clone());
        registry.register("renewals", "Renewals of slots by result", metrics.renewals.clone());
        registry.register("claim_seconds", "Duration of claims", metrics.claim_seconds.clone());
        registry.register("backplane_up", "1 while the backplane answers", metrics.backplane_up.clone());
        registry.register(
            "backplane_probe_seconds",
            "Round trip of the last probe through the backplane",
            metrics.backplane_probe_seconds.clone(),
        );
        registry.register(
            "backplane_gaps",
            "Times at which messages may have been lost",
            metrics.backplane_gaps.clone(),
        );
        registry.register("backplane_publishes", "Messages published on the lanes of devices", publishes);
        registry.register(
            "backplane_deliveries",
            "Messages that came on the lanes of devices",
            metrics.backplane_deliveries.clone(),
        );
        registry.register(
            "backplane_lagged",
            "Messages that came from the backplane and were lost here",
            metrics.backplane_lagged.clone(),
        );
        registry.register(
            "backplane_connects",
            "Connections to the backplane that were made",
            metrics.backplane_connects.clone(),
        );
        Self { registry: RwLock::new(root), ..metrics }
    }
}

impl Metrics {
    /// Everything, as text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string fails only if a metric's own encoder does.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }

    fn connection(&self, device: Device, protocol: Protocol) -> Gauge {
        let labels = ConnectionLabels { device: Text(device.as_str()), protocol: Text(protocol.as_str()) };
        self.connections.get_or_create(&labels).clone()
    }

    /// A connection was registered.
    pub fn connected(&self, device: Device, protocol: Protocol) {
        self.connection(device, protocol).inc();
    }

    /// A connection has ended.
    pub fn disconnected(&self, device: Device, protocol: Protocol) {
        self.connection(device, protocol).dec();
    }

    /// A handshake was answered: `accepted`, or a refusal's code.
    pub fn handshake(&self, result: &'static str) {
        self.handshakes.get_or_create(&ResultLabel { result: Text(result) }).inc();
    }

    /// A message goes to the other device.
    pub fn frame(&self, reliable: bool, path: Path, bytes: usize) {
        let [volatile_local, volatile_away, reliable_local, reliable_away] = &self.frames;
        match (reliable, path) {
            (false, Path::Local) => volatile_local,
            (false, Path::Backplane) => volatile_away,
            (true, Path::Local) => reliable_local,
            (true, Path::Backplane) => reliable_away,
        }
        .inc();
        self.frame_bytes.inc_by(bytes as u64);
    }

    /// Messages that will not be delivered.
    pub fn dropped(&self, cause: Dropped, count: usize) {
        if count > 0 {
            self.dropped.get_or_create(&CauseLabel { cause: Text(cause.as_str()) }).inc_by(count as u64);
        }
    }

    /// A connection lost its slot.
    pub fn overwritten(&self, same_client: bool) {
        let cause = Text(if same_client { "hand_over" } else { "eviction" });
        self.overwritten.get_or_create(&CauseLabel { cause }).inc();
    }

    /// A claim was answered: `claimed`, or a refusal's code.
    pub fn claimed(&self, result: &'static str) {
        self.claims.get_or_create(&ResultLabel { result: Text(result) }).inc();
    }

    /// A renewal was answered: `kept`, `overwritten`, or `failed`.
    pub fn renewed(&self, result: &'static str) {
        self.renewals.get_or_create(&ResultLabel { result: Text(result) }).inc();
    }

    /// A publish was answered, or not.
    pub fn published(&self, result: PublishResult) {
        let [heard, unheard, failed] = &self.publishes;
        match result {
            PublishResult::Heard => heard,
            PublishResult::Unheard => unheard,
            PublishResult::Failed => failed,
        }
        .inc();
    }

    /// A close frame was sent.
    pub fn closed(&self, code: u16) {
        // The client chooses the code that its own close is answered with: only known ones are labels.
        let code = if matches!(code, 1000..=1015 | 4000..=4009) { code } else { 0 };
        self.closes.get_or_create(&CodeLabel { code }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_memory_of_the_process_stand_beside_our_own_metrics() {
        let text = Metrics::default().encode();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_cpu_seconds_total ") > 0.0, "{text}");
        assert!(value("process_resident_memory_bytes ") > 1e6, "{text}");
        assert_eq!(value("duorelay_backplane_up "), 0.0);
        assert!(text.ends_with("# EOF\n"));
    }
}

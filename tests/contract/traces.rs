//! Traces: what a collector gets of a handshake, and that nothing waits for it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::support::{Config, Issuer, LIMIT, Token, within};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// An OTLP/HTTP receiver; each export as it came, with the bytes of its body.
struct Collector {
    address: SocketAddr,
    exports: mpsc::UnboundedReceiver<(String, Vec<u8>)>,
}

impl Collector {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to_exports, exports) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let to_exports = to_exports.clone();
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    loop {
                        if let Some((head, length)) = complete(&bytes) {
                            let rest = bytes.split_off(head.len() + length);
                            let body = bytes.split_off(head.len());
                            bytes = rest;
                            to_exports.send((head, body)).unwrap();
                            let answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";
                            stream.write_all(answer).await.unwrap();
                        } else if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, exports }
    }

    /// Waits until these spans have come, by name, with the resource of the last export.
    async fn spans(&mut self, names: &[&str]) -> (BTreeMap<String, Span>, BTreeMap<String, String>, Vec<u8>) {
        let (mut spans, mut resource, mut raw) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        while !names.iter().all(|name| spans.contains_key(*name)) {
            let (head, body) = within(LIMIT, "an export", self.exports.recv()).await.unwrap();
            assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
            assert!(head.to_lowercase().contains("content-type: application/x-protobuf"), "{head}");
            let export = ExportTraceServiceRequest::decode(&body[..]).unwrap();
            raw.extend(body);
            for of_resource in export.resource_spans {
                resource = attributes(&of_resource.resource.unwrap().attributes);
                let all = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.extend(all.map(|span| (span.name.clone(), span)));
            }
        }
        (spans, resource, raw)
    }
}

/// The head of a request that is there whole, and the length of its body.
fn complete(bytes: &[u8]) -> Option<(String, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let length = head.to_lowercase().split("content-length: ").nth(1)?.split("\r\n").next()?.parse().ok()?;
    (bytes.len() >= end + length).then_some((head, length))
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    list.iter()
        .map(|pair| {
            let value = match pair.value.clone().and_then(|value| value.value) {
                Some(Value::StringValue(text)) => text,
                Some(Value::IntValue(number)) => number.to_string(),
                other => format!("{other:?}"),
            };
            (pair.key.clone(), value)
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_collector_gets_a_handshake_with_its_steps_and_nobodys_name() {
    let (issuer, mut collector) = (Issuer::start(), Collector::start().await);
    let relay = Config::new(&issuer)
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}/", collector.address))
        .set("OTEL_SERVICE_NAME", "relay-of-a-test")
        .set("OTEL_BSP_SCHEDULE_DELAY", 50)
        .set("LOG_FORMAT", "gcp")
        .start()
        .await;
    let token = Token::firebase("private-uid").claim("email", "private@example.org").sign();
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let handshake = relay.handshake().offer(&["duorelay.v1"]).header("clientid", &token);
    let _mobile = handshake.header("traceparent", &parent).open_v1().await;
    let (spans, resource, raw) = collector.spans(&["handshake", "verify", "claim"]).await;
    assert_eq!(resource["service.name"], "relay-of-a-test");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    let root = &spans["handshake"];
    assert_eq!((hex(&root.trace_id), hex(&root.parent_span_id)), (TRACE.into(), "00f067aa0ba902b7".into()));
    assert_eq!(root.kind, SpanKind::Server as i32);
    let recorded = attributes(&root.attributes);
    for (name, value) in [
        ("duorelay.device", "mobile"),
        ("duorelay.protocol", "v1"),
        ("duorelay.result", "accepted"),
        ("http.response.status_code", "101"),
    ] {
        assert_eq!(recorded.get(name).map(String::as_str), Some(value), "{recorded:?}");
    }
    for step in ["verify", "claim"] {
        let span = &spans[step];
        assert_eq!((&span.trace_id, &span.parent_span_id), (&root.trace_id, &root.span_id), "{step}");
        let inside = root.start_time_unix_nano..=root.end_time_unix_nano;
        assert!(inside.contains(&span.start_time_unix_nano) && inside.contains(&span.end_time_unix_nano));
    }
    assert_eq!(attributes(&spans["claim"].attributes)["result"], "claimed");
    let raw = String::from_utf8_lossy(&raw);
    for private in ["private", "example.org", &token[..40], "127.0.0.1"] {
        assert!(!raw.contains(private), "{private} is in a trace");
    }

    // A refusal's log line names the relay's own span, in a trace of its own if the client's is nonsense.
    relay.handshake().header("traceparent", "00-nonsense\"}{").refused().await;
    let (spans, _, _) = collector.spans(&["handshake"]).await;
    let root = &spans["handshake"];
    assert!(root.parent_span_id.is_empty() && hex(&root.trace_id) != TRACE);
    assert_eq!(attributes(&root.attributes)["duorelay.result"], "missing_token");
    let log = relay.log();
    let line = log.lines().find(|line| line.contains("missing_token")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let trace = format!("projects/{}/traces/{}", crate::support::PROJECT, hex(&root.trace_id));
    assert_eq!(line["logging.googleapis.com/trace"], trace.as_str(), "{line}");
    assert_eq!(line["logging.googleapis.com/spanId"], hex(&root.span_id).as_str(), "{line}");
    assert_eq!(line["logging.googleapis.com/trace_sampled"], true, "{line}");
    assert!(!log.contains("nonsense"), "{log}");
}

#[tokio::test]
async fn what_waits_is_sent_at_the_end() {
    let (issuer, mut collector) = (Issuer::start(), Collector::start().await);
    let mut relay = Config::new(&issuer)
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address))
        .set("OTEL_BSP_SCHEDULE_DELAY", 60_000)
        .set("DUORELAY_DRAIN_DELAY_SECONDS", 0)
        .start()
        .await;
    relay.handshake().refused().await;
    relay.signal("TERM");
    let (_, resource, _) = collector.spans(&["handshake"]).await;
    assert_eq!(resource["service.name"], "duorelay");
    assert!(relay.exit(Duration::from_secs(5)).await.success());
}

#[tokio::test]
async fn a_collector_that_is_away_or_silent_is_not_waited_for() {
    let issuer = Issuer::start();
    // Its kernel accepts connections; nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for endpoint in ["http://127.0.0.1:1".to_owned(), format!("http://{}", silent.local_addr().unwrap())] {
        let mut relay = Config::new(&issuer)
            .set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .set("OTEL_BSP_SCHEDULE_DELAY", 20)
            .set("OTEL_BSP_MAX_QUEUE_SIZE", 4)
            .set("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 2)
            .set("DUORELAY_DRAIN_DELAY_SECONDS", 0)
            .start()
            .await;
        // More than the queue holds.
        for _ in 0..40 {
            relay.handshake().refused().await;
        }
        let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
        mobile.send_frame(0x80, b"x").await;
        desktop.expect_binary().await;
        drop((desktop, mobile));
        let begun = std::time::Instant::now();
        relay.signal("TERM");
        assert!(relay.exit(Duration::from_secs(5)).await.success());
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        let logged = relay.log().matches("traces cannot be sent").count();
        assert!(logged <= 1, "logged {logged} times");
    }
}

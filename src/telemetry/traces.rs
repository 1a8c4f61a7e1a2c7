//! Traces of handshakes, sent to a collector by OTLP over HTTP where one is configured. Without one, the spans of a
//! handshake's steps are disabled where they stand, and only the handshake itself has one, for its log lines.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, Protocol, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tracing::field::{Empty, display};
use tracing::{Span, info, info_span, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use url::Url;

use super::context::TraceContext;

/// The target of spans that are for traces only and never in log lines.
pub const STEPS: &str = "duorelay::steps";

/// What still waits is sent at exit for at most this long: a drain's end has a time limit of its own.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);

/// The collector, and this service's name there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceSettings {
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`, without the signal's path.
    pub endpoint: String,
    /// From `OTEL_SERVICE_NAME`; `duorelay` without it.
    pub service_name: Option<String>,
}

/// An HTTP URL without a password in it, on any host: collectors are often neighbours, without TLS.
pub(crate) fn collector(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL ({error})"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or a password; OTEL_EXPORTER_OTLP_HEADERS may".to_owned());
    }
    match url.scheme() {
        "http" | "https" if url.has_host() && url.query().is_none() => Ok(text.to_owned()),
        _ => Err("must be an http:// or https:// URL, such as http://localhost:4318".to_owned()),
    }
}

/// Builds what sends spans, on a thread of its own, from a queue that drops what does not fit (2048 spans, or
/// `OTEL_BSP_MAX_QUEUE_SIZE`). The library reads the other variables of the standard itself: `OTEL_TRACES_SAMPLER`,
/// `OTEL_TRACES_SAMPLER_ARG`, `OTEL_BSP_…`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS` and `…_TIMEOUT`.
pub(super) fn provider(settings: &TraceSettings) -> Result<SdkTracerProvider, ExporterBuildError> {
    // https://opentelemetry.io/docs/specs/otel/protocol/exporter/#endpoint-urls-for-otlphttp
    let endpoint = format!("{}/v1/traces", settings.endpoint.trim_end_matches('/'));
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(endpoint)
        .build()?;
    let mut resource = Resource::builder_empty()
        .with_service_name("duorelay")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_detector(Box::new(EnvResourceDetector::new()));
    if let Some(name) = &settings.service_name {
        resource = resource.with_service_name(name.clone());
    }
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(Exporter { inner: exporter, fails: AtomicBool::new(false) })
        .with_resource(resource.build())
        .build())
}

/// Sends what still waits, if the collector takes it in time.
pub(super) fn flush(provider: &SdkTracerProvider) {
    // What did not leave is lost: nothing may wait for a collector.
    let _ = provider.shutdown_with_timeout(FLUSH_LIMIT);
}

/// Logs once when the collector does not take spans, and once when it does again; the library would with each batch.
#[derive(Debug)]
struct Exporter {
    inner: opentelemetry_otlp::SpanExporter,
    fails: AtomicBool,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported = self.inner.export(batch).await;
        let failed = self.fails.swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            Err(error) if !failed => warn!(%error, "traces cannot be sent; they are dropped until they can"),
            Ok(()) if failed => info!("traces are sent again"),
            Ok(()) | Err(_) => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// The span of a handshake: a child of the client's span, if its headers name one. The trace's ids are in the log
/// lines inside it.
#[must_use]
pub fn handshake(headers: &HeaderMap) -> Span {
    let span = info_span!(
        "handshake",
        otel.kind = "server",
        trace_id = Empty,
        span_id = Empty,
        trace_sampled = Empty,
    );
    let caller = TraceContext::of(headers);
    if let Some(parent) = caller.and_then(remote) {
        // Without a collector there is nothing that could have a parent.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
    let own = span.context();
    let own = own.span().span_context().clone();
    if own.is_valid() {
        span.record("trace_id", display(own.trace_id()));
        span.record("span_id", display(own.span_id()));
        span.record("trace_sampled", own.is_sampled());
    } else if let Some(caller) = caller {
        span.record("trace_id", display(format_args!("{:032x}", caller.trace)));
        if let Some(id) = caller.span {
            span.record("span_id", display(format_args!("{id:016x}")));
        }
        span.record("trace_sampled", caller.sampled);
    }
    span
}

fn remote(caller: TraceContext) -> Option<SpanContext> {
    let span = SpanId::from(caller.span?.get());
    let flags = TraceFlags::default().with_sampled(caller.sampled);
    Some(SpanContext::new(TraceId::from(caller.trace.get()), span, flags, true, TraceState::default()))
}

/// What is known of a handshake when it is read.
pub fn handshake_is_for(span: &Span, device: &'static str, protocol: &'static str) {
    span.set_attribute("duorelay.device", device);
    span.set_attribute("duorelay.protocol", protocol);
}

/// How a handshake ended: `accepted`, or a refusal's code. One that is our fault is an error, by OpenTelemetry's
/// conventions for HTTP servers.
pub fn handshake_ended(span: &Span, status: u16, result: &'static str) {
    span.set_attribute("http.response.status_code", i64::from(status));
    span.set_attribute("duorelay.result", result);
    if status >= 500 {
        span.set_attribute("error.type", result);
        span.set_status(Status::error(result));
    }
}

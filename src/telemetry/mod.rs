//! Logs: which lines there are, and how they look; standard output takes them all. And traces of handshakes.

mod cloud;
mod context;
mod seldom;
mod traces;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry};

use self::cloud::CloudLogging;
pub use self::seldom::Seldom;
pub(crate) use self::traces::collector;
pub use self::traces::{STEPS, TraceSettings, handshake, handshake_ended, handshake_is_for};

/// What a process says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How a log line looks.
    pub format: LogFormat,
    /// Which lines there are (`RUST_LOG`'s syntax).
    pub filter: String,
    /// The Google Cloud project that log lines name their traces in.
    pub project: Option<String>,
    /// Where traces go; nowhere without.
    pub traces: Option<TraceSettings>,
}

impl Settings {
    /// Nothing but errors, for people.
    pub(crate) fn errors() -> Self {
        Self { format: LogFormat::Pretty, filter: "error".to_owned(), project: None, traces: None }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people at a terminal.
    Pretty,
    /// One JSON object a line.
    Json,
    /// One JSON object a line, with the fields of Google's Cloud Logging.
    Gcp,
}

impl LogFormat {
    /// As `LOG_FORMAT` names it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            "gcp" => Ok(Self::Gcp),
            _ => Err(format!("must be pretty, json or gcp, but is {text:?}")),
        }
    }
}

/// Logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in `RUST_LOG`'s syntax.
    #[error("RUST_LOG {0}")]
    Filter(String),
    /// Somebody else in this process already did it.
    #[error("logs are already set up: {0}")]
    AlreadySet(#[from] TryInitError),
    /// Traces cannot be sent as it was configured.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT: {0}")]
    Traces(#[from] ExporterBuildError),
}

/// What was set up.
#[derive(Debug)]
#[must_use]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Sends what still waits, for a short time.
    pub fn stop(self) {
        if let Some(provider) = &self.0 {
            traces::flush(provider);
        }
    }
}

/// Sets up this process's logs and traces, once; logs go to standard output.
///
/// # Errors
/// See [`TelemetryError`].
pub fn start(settings: &Settings) -> Result<Telemetry, TelemetryError> {
    let provider = settings.traces.as_ref().map(traces::provider).transpose()?;
    subscriber(settings, provider.as_ref(), std::io::stdout)?.try_init()?;
    Ok(Telemetry(provider))
}

fn subscriber<W>(
    settings: &Settings,
    traces: Option<&SdkTracerProvider>,
    writer: W,
) -> Result<impl Subscriber + Send + Sync, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = parse_filter(&settings.filter).map_err(TelemetryError::Filter)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match settings.format {
        LogFormat::Pretty => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        LogFormat::Gcp => {
            let format = CloudLogging { project: settings.project.clone() };
            lines.fmt_fields(JsonFields::new()).event_format(format).boxed()
        }
    };
    // The hint leaves the level to `filter`. Without it the `log` crate would ask about each trace line of each library.
    let harmless = filter_fn(is_ours_or_harmless).with_max_level_hint(LevelFilter::TRACE);
    let lines = lines.with_filter(filter.and(harmless));
    let spans = traces.map(|provider| {
        let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("duorelay"));
        let spans = spans.with_location(false).with_threads(false).with_tracked_inactivity(false);
        let spans = spans.with_target(false).with_context_activation(false);
        // The hint keeps events below `info`, of libraries too, disabled where they stand.
        spans.with_filter(filter_fn(is_our_span).with_max_level_hint(LevelFilter::INFO))
    });
    Ok(tracing_subscriber::registry().with(lines).with(spans))
}

/// A filter in `RUST_LOG`'s syntax; or the problem, to be read after the setting's name.
pub(crate) fn check_filter(text: &str) -> Result<String, String> {
    parse_filter(text).map(|_| text.to_owned())
}

fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in text.split(',').map(str::trim) {
        // A lone word that is no level means "everything of the crate of that name, and nothing else".
        let word = directive.to_ascii_lowercase();
        let typo = |level: &&str| strsim::damerau_levenshtein(level, &word) == 1;
        if let Some(level) = LEVELS.into_iter().find(typo)
            && !LEVELS.contains(&word.as_str())
        {
            return Err(format!("has {directive:?}, which is no level; did you mean {level}?"));
        }
    }
    // Our own lines log once what fred says of each connection and try. `RUST_LOG=fred=warn` shows both.
    let quiet = ["fred=off", text].join(",");
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(if text.trim().is_empty() { "fred=off,info" } else { &quiet })
        .map_err(|error| format!("must be levels such as info,duorelay=debug, but is {text:?} ({error})"))
}

/// Below `info`, WebSocket, HTTP and Redis libraries print what they carry: tokens and payloads.
/// No setting may bring those lines back.
fn is_ours_or_harmless(metadata: &Metadata<'_>) -> bool {
    (is_ours(metadata) || *metadata.level() <= Level::INFO) && metadata.target() != STEPS
}

/// All of our spans are parts of handshakes.
fn is_our_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && is_ours(metadata)
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    target == "duorelay" || target.starts_with("duorelay::")
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use http::HeaderMap;
    use serde_json::Value;
    use tracing::{debug, error, info, info_span, subscriber::with_default, trace, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_below_the_level_are_dropped_where_they_stand() {
        let hint = |filter: &str| {
            let settings =
                Settings { format: LogFormat::Json, filter: filter.to_owned(), project: None, traces: None };
            subscriber(&settings, None, io::sink).unwrap().max_level_hint()
        };
        assert_eq!(hint("info"), Some(LevelFilter::INFO));
        assert_eq!(hint("warn,duorelay=debug"), Some(LevelFilter::DEBUG));
    }

    fn logged(format: LogFormat, filter: &str, log: impl FnOnce()) -> Vec<String> {
        let sink = Sink::default();
        let writer = sink.clone();
        let project = Some("p".to_owned());
        let settings = Settings { format, filter: filter.to_owned(), project, traces: None };
        with_default(subscriber(&settings, None, move || writer.clone()).unwrap(), log);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    fn json(line: &str) -> Value {
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn cloud_logging_gets_its_fields_and_those_of_the_spans() {
        let lines = logged(LogFormat::Gcp, "trace", || {
            let mut headers = HeaderMap::new();
            let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
            headers.insert("traceparent", parent.parse().unwrap());
            let outer = handshake(&headers);
            let _outer = outer.enter();
            let step = info_span!(target: STEPS, "step", hidden = 1);
            let _step = step.enter();
            let inner = info_span!("inner", user.id = "u");
            let _inner = inner.enter();
            info!(connections = 3, ready = true, share = 0.5, "moved {} sockets", 2);
            warn!("w");
            error!("e");
            debug!("d");
            trace!("t");
        });
        let mut first = json(&lines[0]);
        let time = first.as_object_mut().unwrap().remove("time").unwrap();
        assert!(time.as_str().unwrap().ends_with('Z'));
        assert_eq!(
            first,
            serde_json::json!({
                "severity": "INFO",
                "message": "moved 2 sockets",
                "target": "duorelay::telemetry::tests",
                "logging.googleapis.com/trace": "projects/p/traces/4bf92f3577b34da6a3ce929d0e0e4736",
                "logging.googleapis.com/spanId": "00f067aa0ba902b7",
                "logging.googleapis.com/trace_sampled": true,
                "user.id": "u",
                "connections": 3,
                "ready": true,
                "share": 0.5,
            })
        );
        let severities: Vec<_> = lines.iter().map(|line| json(line)["severity"].clone()).collect();
        assert_eq!(severities, ["INFO", "WARNING", "ERROR", "DEBUG", "DEBUG"]);
    }

    #[test]
    fn json_lines_have_time_level_message_and_fields() {
        let lines = logged(LogFormat::Json, "info", || info!(connections = 3, "moved"));
        let line = json(&lines[0]);
        assert_eq!(
            (&line["level"], &line["message"], &line["connections"]),
            (&"INFO".into(), &"moved".into(), &3.into())
        );
        assert!(line["timestamp"].is_string());
    }

    #[test]
    fn pretty_lines_are_for_people() {
        let lines = logged(LogFormat::Pretty, "info", || info!(connections = 3, "moved"));
        assert!(lines.len() == 1 && lines[0].contains("moved"), "{lines:?}");
    }

    #[test]
    fn the_filter_decides() {
        let all = || {
            debug!("d");
            info!("i");
            warn!("w");
        };
        assert_eq!(logged(LogFormat::Json, "info", all).len(), 2);
        assert_eq!(logged(LogFormat::Json, "info,duorelay::telemetry=debug", all).len(), 3);
        assert_eq!(logged(LogFormat::Json, "off", all).len(), 0);
    }

    #[test]
    fn no_filter_brings_back_what_libraries_print_below_info() {
        let lines = logged(LogFormat::Json, "trace,tungstenite=trace", || {
            trace!(target: "tungstenite::protocol", "Received message PAYLOAD");
            debug!(target: "hyper::proto", "authorization: TOKEN");
            debug!(target: "duorelayed", "TOKEN");
            info!(target: "hyper", "connected");
        });
        assert!(lines.len() == 1 && lines[0].contains("connected"), "{lines:?}");
    }

    #[test]
    fn the_redis_library_is_silent_unless_it_is_named() {
        let log = || warn!(target: "fred::router", "Broadcasting error");
        for (filter, lines) in [
            ("", 0),
            ("info", 0),
            ("trace", 0),
            ("fred=warn", 1),
            ("debug,fred=info", 1),
            ("warn,fred=error", 0),
        ] {
            assert_eq!(logged(LogFormat::Json, filter, log).len(), lines, "{filter:?}");
        }
    }

    #[test]
    fn a_bad_filter_is_reported() {
        for good in
            ["info", "INFO", "warn,duorelay=debug", "duorelay::edge=trace,off", "error,hyper", "", "3"]
        {
            assert_eq!(check_filter(good).as_deref(), Ok(good), "{good}");
        }
        for (bad, part) in [
            ("duorelay=loud", "duorelay=loud"),
            ("inof", "mean info"),
            ("warn,debgu", "mean debug"),
            ("=", "must be"),
        ] {
            let problem = check_filter(bad).unwrap_err();
            assert!(problem.contains(part), "{bad}: {problem}");
        }
    }
}
